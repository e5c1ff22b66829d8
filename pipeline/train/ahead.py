"""One batch ahead: a GPU makes the next batch's views while it takes a step."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Generic, TypeVar

import torch

from ssl_models.batch import Batch

Raw = TypeVar("Raw")


class Ahead(Generic[Raw]):
    """Prepares batches on a stream of the device of their own. What is copied from memory that is not pinned, as Ray's,
    makes its stream wait; on the one that trains, that would end all overlap of host and device."""

    def __init__(self, prepare: Callable[[Raw], Batch], device: torch.device) -> None:
        self._prepare = prepare
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None

    def prepare(self, raw: Raw) -> Batch:
        """May return before the device has made it: see `ready`."""
        with torch.cuda.stream(self._side) if self._side is not None else nullcontext():
            return self._prepare(raw)

    def ready(self, batch: Batch) -> Batch:
        """The batch, for use on the stream that trains."""
        if self._side is not None:
            training = torch.cuda.current_stream(batch.ids.device)
            training.wait_stream(self._side)
            for tensor in (*batch.views, batch.ids, batch.tokens, batch.labels):
                if tensor is not None:
                    tensor.record_stream(training)  # its memory is free only when that one is through with it
        return batch
