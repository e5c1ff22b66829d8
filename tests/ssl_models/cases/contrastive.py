from ssl_models.objectives.banks import PIRL, Exemplar, InstDisc
from ssl_models.objectives.contrastive import SimCLR
from ssl_models.objectives.metric import Siamese
from tests.ssl_models.cases.case import RESNET, Case

CASES = {
    # ln 31 = 3.43 by chance; at τ = ½ the least is ln(1 + 30 · exp(−2 − 2/15)) = 1.52
    "simclr": Case(SimCLR.Config(temperature=0.5, projector_dims=(16, 8)), RESNET, start=(2.5, 4.5), floor=1.75),
    # α = 0.2 when collapsed; 0 when every image is told from the others
    "siamese": Case(Siamese.Config(projector_dims=(16, 8)), RESNET, start=(0.0, 0.4), floor=0.06),
    # By chance ln 128 + σ²/2 = 5.6, where σ = 1.25 is the spread of cosines / τ of random rows in 16 dimensions. With
    # its own row at cosine 1 and the others at 0, ln(1 + 127 · exp(−5)) = 0.62
    "instdisc": Case(InstDisc.Config(projector_dims=(16,), temperature=0.2), RESNET, start=(4.8, 6.5), floor=1.0),
    "pirl": Case(PIRL.Config(dim=16, temperature=0.2), RESNET, start=(4.8, 6.5), floor=1.0),
    # ln 128 = 4.85 by chance
    "exemplar": Case(Exemplar.Config(), RESNET, start=(4.4, 5.4), floor=0.5),
}
