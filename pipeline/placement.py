"""Which nodes of a cluster do what, by Ray's label `ray-subcluster`: data on CPU nodes, training on the others."""

from collections.abc import Mapping
from typing import Any

from pipeline.cluster import ClusterConfig

SUBCLUSTER = "ray-subcluster"  # label of nodes by which Ray Data, too, tells the parts of a cluster apart
DATA, TRAINING = "data", "training"  # its values


def data_nodes() -> dict[str, str]:
    """Ray's label selector of the nodes that read, decode and crop: those labelled ray-subcluster=data, where there
    are such; else {}, any node. Ray must be connected."""
    return {SUBCLUSTER: DATA} if any(_subcluster(node) == DATA for node in _alive()) else {}


def training_nodes(cluster: ClusterConfig) -> dict[str, str]:
    """Ray's label selector of the nodes that train: those labelled ray-subcluster=training, where there are such; else
    those that are not of the data, if they have room for all workers; else any. A GPU needs no label. Ray must be
    connected.

    Raises:
        ValueError: the number of workers may change, and Ray would never see the nodes that train.
    """
    nodes = _alive()
    unlabelled = [node for node in nodes if _subcluster(node) is None]
    labelled = [node for node in nodes if _subcluster(node) == TRAINING]
    if cluster.is_elastic and (labelled or not (unlabelled or cluster.use_gpu)):
        raise ValueError(
            f"cluster.min_workers={cluster.min_workers}: Ray 2.60 counts only nodes without the label {SUBCLUSTER} for "
            f"a changing number of workers: start the nodes that train without it (those for data keep "
            f"{SUBCLUSTER}={DATA}), or leave cluster.min_workers out"
        )
    if labelled:
        return {SUBCLUSTER: TRAINING}
    if data_nodes() and not cluster.use_gpu and room(unlabelled, cluster) >= cluster.workers:
        return {SUBCLUSTER: f"!{DATA}"}
    return {}


def selected(labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """The living nodes with CPUs that a selector of `data_nodes` or `training_nodes` stands for."""
    wanted = labels.get(SUBCLUSTER)
    if wanted is None:
        return _alive()
    return [node for node in _alive() if (_subcluster(node) == wanted.removeprefix("!")) != wanted.startswith("!")]


def room(nodes: list[dict[str, Any]], cluster: ClusterConfig) -> int:
    """Workers that these nodes could hold at once, if nothing else ran there."""
    return sum(
        int(min(node["Resources"].get(name, 0) // amount for name, amount in cluster.worker.items() if amount))
        for node in nodes
    )


def _alive() -> list[dict[str, Any]]:
    """Living nodes that take work: a head without CPUs takes none."""
    import ray

    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0)]


def _subcluster(node: Mapping[str, Any]) -> str | None:
    return (node.get("Labels") or {}).get(SUBCLUSTER)
