from ssl_models.objectives.pretext import Jigsaw, RelativePatch, Rotation
from tests.ssl_models.cases.case import RESNET, Case

CASES = {
    # ln 4 = 1.39 by chance
    "rotation": Case(Rotation.Config(), RESNET, start=(1.1, 1.9), floor=0.3),
    # ln 8 = 2.08 by chance
    "relative_patch": Case(
        RelativePatch.Config(patch_size=4, gap=2, jitter=1, pairs=2, head_dim=16), RESNET, start=(1.8, 2.7), floor=1.0
    ),
    # ln 24 = 3.18 by chance
    "jigsaw": Case(Jigsaw.Config(tile_size=4, num_permutations=24, tile_dim=8), RESNET, start=(2.7, 3.9), floor=1.0),
}
