"""Units of a curation on Ray Data, and how far they are."""

import json
import logging
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.ingest.sources import Plan, Unit
from pipeline.ingest.task import report_of
from pipeline.placement import data_nodes, selected

MAX_DECODERS = 8  # of one unit: decoding a photo takes 20 times what reading and storing it takes
MAX_ATTEMPTS = 3  # at a unit that kills its worker


@dataclass(frozen=True)
class Progress:
    """How far a curation is."""

    stage: str = "listing"
    seen: int = 0
    admitted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    declared: int | None = None  # None where only reading can tell
    resumed: int = 0  # units that an earlier, killed curation had finished
    sealed_before: bool = False  # there was nothing to do


Tell = Callable[[Progress], None]


class Watch:
    """What is known of all units while they run."""

    def __init__(self, store: Path, plan: Plan, digest: str, tell: Tell) -> None:
        self._store, self._plan, self._digest, self._tell = store, plan, digest, tell
        self._latest: dict[int, Counter[str]] = {}  # what each unit counted last
        self._total: Counter[str] = Counter()
        for unit in plan.units:
            if report := report_of(store, digest, unit.number):
                self._count(unit.number, report.seen, report.admitted, report.refused)
        self._resumed = len(self._latest)
        tell(self.progress)

    @property
    def pending(self) -> list[Unit]:
        """The units that are not done."""
        return [unit for unit in self._plan.units if not report_of(self._store, self._digest, unit.number)]

    @property
    def progress(self) -> Progress:
        """All of it, as far as this process has seen it."""
        refused = +Counter({name: count for name, count in self._total.items() if name not in ("seen", "admitted")})
        seen, admitted = self._total["seen"], self._total["admitted"]
        return Progress("decoding", seen, admitted, refused, self._plan.declared, self._resumed)

    def take(self, block: pa.Table) -> None:
        """Takes note of what a task says."""
        for row in block.to_pylist():
            self._count(row["unit"], row["seen"], row["admitted"], json.loads(row["refused"]))
        self._tell(self.progress)

    def _count(self, unit: int, seen: int, admitted: int, refused: dict[str, int]) -> None:
        """Counts of a unit are of all of it so far, and may fall when it is tried again."""
        self._total.subtract(self._latest.get(unit, {}))
        self._latest[unit] = Counter({"seen": seen, "admitted": admitted, **refused})
        self._total.update(self._latest[unit])


def run_units(units: list[Unit], task: Any, watch: Watch) -> Exception | None:
    """One Ray Data execution over some units. Returns the error if workers died over and over.

    Raises:
        ValueError: what a task has to say to a person, such as that its storage does not answer.
    """
    import ray.data  # here, not above: reading a store needs no Ray
    from ray.exceptions import NodeDiedError, OutOfMemoryError, RayTaskError, WorkerCrashedError

    nodes = data_nodes()
    decoders = _decoders_for(len(units), [node["Resources"]["CPU"] for node in selected(nodes)])
    logging.getLogger(ray.data.__name__).setLevel(logging.ERROR)  # its notes would tear a progress line
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.execution_options.label_selector = nodes
    context.target_max_block_size = 1  # byte: each word about progress at once, not when many fill a block
    context.execution_no_progress_timeout_s = -1  # a large tar may take longer than any timeout
    with ray.data.DataContext.current(context), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")  # no other way to max_retries in Ray 2.60
        tasks = ray.data.from_items(
            [{"unit": unit.model_dump_json()} for unit in units], override_num_blocks=len(units)
        ).map_batches(
            partial(task, decoders=decoders),
            num_cpus=decoders,
            batch_size=1,
            batch_format="pyarrow",
            max_retries=MAX_ATTEMPTS - 1,  # Ray Data's default is for ever
        )
        try:
            for found in tasks.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                watch.take(found)
        except (WorkerCrashedError, OutOfMemoryError, NodeDiedError) as error:
            return error
        except RayTaskError as error:
            said = str(error.cause).partition("\n")[0]  # the rest is Ray's
            if isinstance(error.cause, ConnectionError):
                raise ValueError(
                    f"{said}: the source's storage does not answer; what is done is kept: run the command again"
                ) from error
            if isinstance(error.cause, ValueError):
                raise ValueError(said) from error
            raise
    return None


def _decoders_for(units: int, node_cpus: list[float]) -> int:
    """Decoders of a unit, so that a few large tars use all CPUs, too; what one process can feed, at most."""
    return int(max(1, min(MAX_DECODERS, max(node_cpus, default=0), sum(node_cpus) // units)))
