"""A run on several nodes of one machine, which come and go: prints what the worlds of its attempts were.

python -m tests.faults.nodes RUN EXPERIMENT
"""

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

from pipeline.experiment import build_experiment
from pipeline.train.fit import fit
from pipeline.train.record import read_all_metrics
from tests.faults.injected import begun, struck_by

SECONDS_A_STEP = 0.5


def main(path: str, experiment_json: str) -> None:
    import ray
    from ray.cluster_utils import Cluster

    memory = {"object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False, **memory})
    nodes = [cluster.add_node(num_cpus=1, resources={"train": 1}, **memory) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    experiment = build_experiment(json.loads(experiment_json))
    run = begun(Path(path), experiment)

    def train() -> None:
        with struck_by(seconds_a_step=SECONDS_A_STEP):
            fit(experiment, run, tell=lambda line: print(line, flush=True))

    training = threading.Thread(target=train)  # Ray starts nodes in the main thread only
    training.start()
    wait_for(run.path, 6)
    drain(cluster, nodes[1], seconds=15)  # longer than the workers need to leave
    time.sleep(15)
    cluster.remove_node(nodes[1], allow_graceful=False)
    wait_for_row(run.path, 2)
    new = cluster.add_node(num_cpus=1, resources={"train": 1}, **memory)
    wait_for_row(run.path, 3)
    cluster.remove_node(new, allow_graceful=False)  # without notice
    training.join()
    ray.shutdown()
    cluster.shutdown()


def wait_for(path: Path, step: int) -> None:
    while not any(row["step"] >= step for row in read_all_metrics(path)):
        time.sleep(0.1)


def wait_for_row(path: Path, attempt: int) -> None:
    while sum(row["attempt"] == attempt for row in read_all_metrics(path)) < 5:
        time.sleep(0.1)


def drain(cluster: Any, node: Any, seconds: float) -> None:
    """As a cloud does that takes a machine back, with notice."""
    import ray
    from ray.core.generated import autoscaler_pb2

    gcs = ray._raylet.GcsClient(address=cluster.address)
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, why = gcs.drain_node(node.node_id, reason, "test", int((time.time() + seconds) * 1000))
    assert accepted, why


if __name__ == "__main__":
    main(*sys.argv[1:])
