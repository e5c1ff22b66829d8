import math

from ssl_models.objectives.colour import Colorization, SplitBrain, ab_bins
from tests.ssl_models.cases.case import RESNET, Case

CHANCE = math.log(len(ab_bins()))  # 5.56
CASES = {
    # ln Q by chance, whatever the weights; ln 5 is the most that a soft target leaves
    "colorization": Case(
        Colorization.Config(momentum=0.5, decoder_width=16), RESNET, start=(CHANCE - 0.4, CHANCE + 1), floor=2.5
    ),
    # ln Q + ln 10 by chance
    "split_brain": Case(
        SplitBrain.Config(lightness_bins=10, decoder_width=16),
        RESNET,
        start=(CHANCE + math.log(10) - 0.5, CHANCE + math.log(10) + 1),
        floor=4.0,
    ),
}
