from ssl_models.objectives.predictive import CPC
from tests.ssl_models.cases.case import RESNET, Case

# BatchNorm is refused: it lets patches see each other.
_PATCHWISE = RESNET.model_copy(update={"arguments": RESNET.arguments | {"norm_layer": "groupnorm1"}})

CASES = {
    # 16 images of 7 × 7 patches: ln 784 = 6.66 by chance
    "cpc": Case(
        CPC.Config(
            patch_size=4,
            stride=2,
            furthest=3,
            directions=("down", "right"),
            context_dim=8,
            context_depth=2,
            target_dim=8,
        ),
        _PATCHWISE,
        start=(6.5, 6.9),
        floor=5.5,
    ),
}
