from ssl_models.objectives.supervised import Supervised
from tests.ssl_models.cases.case import RESNET, Case

CASES = {
    # ln 4 = 1.39 by chance
    "supervised": Case(Supervised.Config(), RESNET, start=(1.1, 1.9), floor=0.05),
}
