from ssl_models.objectives.redundancy import BarlowTwins, VICReg
from tests.ssl_models.cases.case import RESNET, Case

CASES = {
    # × 0.1: 8 dimensions that do not correlate lose 1 each, collapsed ones, too; the least is 0
    "barlow_twins": Case(BarlowTwins.Config(projector_dims=(16, 8)), RESNET, start=(0.5, 1.0), floor=0.1),
    # × 0.1: 24.75 when collapsed, more where the views disagree; the least is 0
    "vicreg": Case(VICReg.Config(projector_dims=(16, 8)), RESNET, start=(1.0, 5.0), floor=0.6),
}
