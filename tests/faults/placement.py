"""The stages of a run on a cluster whose nodes carry labels: prints, as JSON, on which kind of node each task ran.

python -m tests.faults.placement FOLDER
"""

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline import curate as curation
from pipeline.ingest.config import CurateConfig
from pipeline.ingest.store import Store
from pipeline.ingest.task import curate_unit
from pipeline.run import Run
from pipeline.select.blocks import in_order
from pipeline.stream.ray_reading import read_with_ray
from pipeline.stream.read import Columns
from pipeline.train import fit as fitting
from pipeline.train import worker as working
from pipeline.train.worker import open_stream, train_worker
from tests.pipeline.stores import EVERYTHING, tiny_experiment, write_dump


def main(folder: str) -> None:
    import ray
    from ray.cluster_utils import Cluster

    memory = {"object_store_memory": 80 * 2**20}
    head = {"num_cpus": 0, "include_dashboard": False, "labels": {"ray-subcluster": "head"}, **memory}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    data = cluster.add_node(num_cpus=2, labels={"ray-subcluster": "data"}, **memory)
    training = cluster.add_node(num_cpus=6, **memory)  # the larger: without labels most tasks would go there
    ray.init(address=cluster.address, log_to_driver=False)
    kinds = {cluster.head_node.node_id: "head", data.node_id: "data", training.node_id: "training"}
    try:
        stages(Path(folder))
        for file in Path(folder).glob("*.nodes"):
            print(json.dumps({file.stem: [kinds[node] for node in file.read_text().split()]}))
    finally:
        ray.shutdown()
        cluster.shutdown()


def stages(folder: Path) -> None:
    dump = write_dump(folder / "dump", 120)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curation, "curate_unit", noted_unit)
        curation.curate(dump, folder / "store", CurateConfig(samples_per_shard=20), policy=EVERYTHING)
    list(in_order(noted_item, range(12), folder))
    store = Store(folder / "store")
    experiment = tiny_experiment(store.path).override(
        {"cluster.workers": 2, "cluster.min_workers": 1, "training.images_seen": 64}
    )
    stream = open_stream(experiment, store)
    list(read_with_ray(Noting(stream.reader, folder, "read"), stream.references(0, 2, 0, 1), 32))
    run = Run.prepare(folder / "run", experiment, ["feral", "pretrain"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "train_worker", noted_worker)
        fitting.fit(experiment, run, tell=lambda line: print(line, file=sys.stderr))


def noted_unit(block: pa.Table, *arguments: Any, **options: Any) -> Iterator[pa.Table]:
    note(Path(options["store"]).parent, "curate")
    yield from curate_unit(block, *arguments, **options)


def noted_item(item: int, folder: Path) -> int:
    note(folder, "select")
    return item


def noted_worker(config: dict[str, Any]) -> None:
    """A `train_worker` that notes where it runs, and whose data tasks do."""
    opened, folder = working.open_batches, Path(config["run"]).parent
    note(folder, "train")

    def open_noted(experiment: Any) -> Any:
        batches = opened(experiment)
        return dataclasses.replace(batches, reader=Noting(batches.reader, folder, "stream"))

    working.open_batches = open_noted
    train_worker(config)


@dataclasses.dataclass(frozen=True)
class Noting:
    """A reader that notes where it reads."""

    reader: Any
    folder: Path
    stage: str

    @property
    def sample_bytes(self) -> int:
        return self.reader.sample_bytes

    def references(self, *arguments: Any) -> pa.Table:
        return self.reader.references(*arguments)

    def read(self, references: pa.Table) -> Columns:
        note(self.folder, self.stage)
        return self.reader.read(references)


def note(folder: Path, stage: str) -> None:
    import ray

    with (folder / f"{stage}.nodes").open("a") as file:
        file.write(ray.get_runtime_context().get_node_id() + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
