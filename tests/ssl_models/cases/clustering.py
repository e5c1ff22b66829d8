from ssl_models.objectives.clustering import IIC, SwAV
from ssl_models.objectives.deep_cluster import DeepClusterV2
from tests.ssl_models.cases.case import RESNET, Case

CASES = {
    # 0 by chance; the least is −½ (ln 4 + ln 8) = −1.73, when all 16 pairs are found and clusters are of equal size
    "iic": Case(IIC.Config(num_clusters=4, over_clusters=(8,), num_sub_heads=2), RESNET, start=(-0.2, 0.0), floor=-0.9),
    # ln 8 = 2.08 when all prototypes look alike
    "swav": Case(
        SwAV.Config(
            num_prototypes=8,
            epsilon=0.05,
            queue_length=24,
            freeze_prototypes=0.2,
            queue_from=0.2,
            projector_dims=(16, 8),
        ),
        RESNET,
        start=(1.8, 5.0),
        floor=1.0,
        local_crops=2,
    ),
    "deepcluster_v2": Case(
        DeepClusterV2.Config(num_prototypes=4, num_sets=2, assign_every=2, projector_dims=(16, 8)),
        RESNET,
        start=(1.0, 5.0),
        floor=0.5,
        local_crops=1,
    ),
}
