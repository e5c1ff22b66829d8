from ssl_models.objectives.contrastive import SimCLR
from tests.ssl_models.cases.case import RESNET, Case

CASES = {
    # ln 31 = 3.43 by chance; at τ = ½ the least is ln(1 + 30 · exp(−2 − 2/15)) = 1.52
    "simclr": Case(SimCLR.Config(temperature=0.5, projector_dims=(16, 8)), RESNET, start=(2.5, 4.5), floor=1.75),
}
