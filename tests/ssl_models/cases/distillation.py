from ssl_models.objectives.distillation import BYOL, DINO, SimSiam
from tests.ssl_models.cases.case import RESNET, Case

CASES = {
    # 4 at cosine 0; 0 is the least
    "byol": Case(
        BYOL.Config(projector_dims=(16, 8), predictor_dim=16, momentum=(0.9, 1.0)), RESNET, start=(2.5, 5.5), floor=1.0
    ),
    # 0 at cosine 0; −1 is the least
    "simsiam": Case(SimSiam.Config(projector_dims=(16, 16), predictor_dim=8), RESNET, start=(-0.7, 0.7), floor=-0.8),
    # ln 32 = 3.47 by chance
    "dino": Case(
        DINO.Config(head_dims=(16, 8), num_prototypes=32, momentum=(0.9, 1.0), batchnorm=True),
        RESNET,
        start=(3.0, 7.0),
        floor=2.0,
        local_crops=2,
    ),
}
