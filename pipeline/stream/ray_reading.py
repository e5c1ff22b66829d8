"""Referred samples, read ahead by Ray Data on the cluster's CPUs for data."""

from collections.abc import Iterator
from math import ceil
from typing import Protocol

import pyarrow as pa
import torch

from pipeline.placement import data_nodes
from pipeline.stream.patience import Patience
from pipeline.stream.read import Columns

BLOCK_SAMPLES, BLOCK_BYTES = 256, 2**25  # that a data task hands over at once, at most: few, for an early first batch
TASK_BLOCKS = 8  # that it makes one after another: Ray's loop is slow to start tasks; 1 was 2.2 times slower
READ_AHEAD_BYTES = 2**26  # of crops waiting for a worker, at least; see `_read_ahead`


class Reads(Protocol):
    """Reads, decodes and crops the samples that a table of references names: see `Reader.read`."""

    @property
    def sample_bytes(self) -> int:
        """Of the crops of one sample."""

    def read(self, references: pa.Table) -> Columns: ...


def read_with_ray(reader: Reads, references: pa.Table, batch_size: int, cpus: float | None = None) -> Iterator[Columns]:
    """Reads referred samples in their order, in batches (the last may be short).

    What flows through Ray is references in and fixed-shape crops out: encoded bytes never become rows.
    """
    data = reading_dataset(reader, references)
    if cpus is not None:
        from ray.data import ExecutionResources
        from ray.data._internal.execution.backpressure_policy import ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY

        from pipeline.stream.read_ahead import ReadAhead

        data.context.execution_options.resource_limits = ExecutionResources.for_limits(
            cpu=cpus, object_store_memory=_read_ahead(reader.sample_bytes, batch_size, cpus)
        )
        data.context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, [ReadAhead])
    yield from data.iter_batches(batch_size=batch_size, batch_format="numpy", prefetch_batches=2)


def _block_samples(sample_bytes: int, most: int = BLOCK_SAMPLES) -> int:
    """The more bytes a sample has, the fewer make a block."""
    return max(1, min(most, BLOCK_BYTES // sample_bytes))


def _read_ahead(sample_bytes: int, batch_size: int, cpus: float) -> int:
    """Bytes of crops that may wait in the object store before no further task is started: what all CPUs but the one
    whose turn it is have made in the meantime, or some batches."""
    task_bytes = TASK_BLOCKS * _block_samples(sample_bytes) * sample_bytes
    return max(READ_AHEAD_BYTES, ceil(cpus) * task_bytes, 4 * batch_size * sample_bytes)


def reading_dataset(
    reader: Reads, references: pa.Table, nodes: dict[str, str] | None = None, block_samples: int = BLOCK_SAMPLES
):
    """A lazy Ray Dataset of crops, in the order of the references, made on nodes with these labels; default: those for
    data, see `pipeline.placement.data_nodes`. A block has `block_samples`, or fewer if they are large."""
    import logging
    import warnings

    import ray

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its notes would tear a progress line
    length = _block_samples(reader.sample_bytes, block_samples)
    blocks = ceil(len(references) / length)
    per_task = max(1, min(TASK_BLOCKS, blocks // 64))  # of few samples, every CPU is to have a part
    tasks = ceil(blocks / per_task)
    table = ray.put(references)

    def read(batch: Columns) -> Iterator[Columns]:
        torch.set_num_threads(1)  # one task, one core
        shared = ray.get(table)  # mapped from the object store, not copied
        for task in batch["id"]:
            for block in range(int(task) * per_task, min((int(task) + 1) * per_task, blocks)):
                yield reader.read(shared.slice(block * length, length))

    data = ray.data.range(tasks, override_num_blocks=tasks)
    data.context.target_max_block_size = length * reader.sample_bytes  # else Ray packs what a task yields
    data.context.execution_options.preserve_order = True
    data.context.execution_options.label_selector = data_nodes() if nodes is None else nodes
    data.context.execution_options.verbose_progress = False
    data.context.enable_progress_bars = False
    data.context.custom_execution_callback_classes = [Patience]
    data.context.execution_no_progress_timeout_s = -1  # a paused consumer (checkpoint, evaluation) is no fault
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")  # no other way to max_retries in Ray 2.60
        return data.map_batches(read, batch_format="numpy", max_retries=2)  # the default, without end, hides a crash
