from ssl_models.objectives.inpainting import AdversarialContextEncoder, ContextEncoder
from ssl_models.objectives.masked import MAE, SimMIM
from tests.ssl_models.cases.case import RESNET, VIT, Case

CASES = {
    # 1 if zero is predicted; noise is only predicted from memory
    "mae": Case(MAE.Config(decoder_dim=16, decoder_depth=1, decoder_heads=2), VIT, start=(0.9, 1.6), floor=0.7),
    # √(2/π) = 0.80 if zero is predicted
    "simmim": Case(SimMIM.Config(), VIT, start=(0.75, 1.2), floor=0.65),
    # 1 if zero is predicted
    "context_encoder": Case(ContextEncoder.Config(decoder_dim=16), RESNET, start=(0.9, 2.0), floor=0.7),
    # 2 ln 2 = 1.39 of the discriminator by chance, and the squared error
    "context_encoder_adversarial": Case(
        AdversarialContextEncoder.Config(decoder_dim=16, discriminator_dim=8), RESNET, start=(2.0, 3.8), floor=1.5
    ),
}
