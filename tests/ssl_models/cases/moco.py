from ssl_models.objectives.moco import MoCo, MoCoV3
from tests.ssl_models.cases.case import RESNET, VIT, Case

CASES = {
    # A fresh model's rows are alike, and far from the queue's random directions: ln(1 + 40 · exp(−2 + 4/16)) = 2.07.
    # When the queue holds its keys, ln 41 = 3.71. They are older keys of the same batch: 2.5 of each image, so that the
    # least is −2 + ln(3.5 · e² + 37.5 · exp(−2/15)) = 2.07
    "moco": Case(
        MoCo.Config(
            temperature=0.5, projector_dims=(16, 8), queue_size=40, momentum=0.9, symmetric=True, split_batchnorm=4
        ),
        RESNET,
        start=(1.5, 2.8),
        floor=2.8,
        after=5,
    ),
    # 4τ ln 16 = 5.55 by chance; at τ = ½ the least is 2 ln(1 + 15 · exp(−2 − 2/15)) = 2.06
    "moco_v3": Case(
        MoCoV3.Config(
            temperature=0.5,
            projector_dims=(16, 8),
            predictor_dim=16,
            normalize_prediction=True,
            momentum=(0.9, 1.0),
            freeze_patch_embedding=True,
        ),
        VIT,
        start=(4.5, 7.0),
        floor=3.0,
    ),
}
