import math

from ssl_models.objectives.captioning import Captioning
from ssl_models.objectives.image_text import CLIP, SigLIP
from tests.ssl_models.cases.case import RESNET, TEXT, Case

CASES = {
    # ln 16 = 2.77 by chance
    "clip": Case(CLIP.Config(text=TEXT, dim=8, temperature=0.5, chunk=3), RESNET, start=(2.3, 3.5), floor=0.3),
    # with bias −ln 15 and cos = 0: ln 16 + 15 ln(16/15) = 3.74; pairs that are told apart cost nothing
    "siglip": Case(
        SigLIP.Config(text=TEXT, dim=8, temperature=0.5, bias=-math.log(15), chunk=3),
        RESNET,
        start=(3.2, 5.0),
        floor=0.5,
    ),
    # 2 ln 49408 = 21.6 by chance; random words are only told from memory
    "captioning": Case(Captioning.Config(text=TEXT, chunk=5), RESNET, start=(21.2, 22.0), floor=12.0),
}
