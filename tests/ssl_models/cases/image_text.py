from ssl_models.objectives.image_text import CLIP
from tests.ssl_models.cases.case import RESNET, TEXT, Case

CASES = {
    # ln 16 = 2.77 by chance
    "clip": Case(CLIP.Config(text=TEXT, dim=8, temperature=0.5), RESNET, start=(2.3, 3.5), floor=0.3),
}
