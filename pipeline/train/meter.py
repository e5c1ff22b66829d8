"""What is known of the steps between two log rows, gathered without stalling the device."""

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from ssl_models.collectives import mean_over_ranks, rank, world_size


@dataclass
class LogRow:
    """What is known at a log step. All means are over the steps since the row before, and over ranks."""

    step: int
    images_seen: int
    learning_rate: float
    images_per_second: float
    data_wait_ratio: float  # share of the time that the loop waited for its next batch
    seconds: float  # since the loop began
    metrics: dict[str, float] = field(default_factory=dict)
    began: float = 0.0  # Unix seconds: the interval of the row
    ended: float = 0.0
    data_wait_seconds: float = 0.0
    samples: int = 0  # fingerprint of the samples of these steps and their visits, over all ranks
    read_retries: int = 0  # reads of samples that failed and were tried again
    stores: tuple[int, ...] = ()  # samples of each store, where there are several
    step_seconds: float = 0.0  # mean over ranks: what they agree on
    peak_memory_bytes: int = 0  # of this rank, since its process began


class NotFinite(FloatingPointError):
    """A loss, another logged value or a weight that is no finite number. Raised on all ranks at the same step."""

    def __init__(self, step: int, values: dict[str, float], learning_rate: float, ids: list[int]) -> None:
        self.step, self.values, self.ids = step, values, ids
        shown = ", ".join(map(str, ids[:8])) + (f" … ({len(ids)} in all)" if len(ids) > 8 else "")
        super().__init__(
            f"step {step}: {', '.join(f'{name} is {value}' for name, value in values.items())} at learning rate "
            f"{learning_rate:.3g}; samples {shown}. Lower optimizer.learning_rate, lengthen optimizer.warmup, set "
            "optimizer.clip_gradient, or let training.on_nonfinite=skip go back and skip the batches"
        )


class Meter:
    """Means and rates between two log rows."""

    def __init__(self, batch_size: int, step: int) -> None:
        self.batch_size = batch_size
        self.begun = time.perf_counter()
        self.restart(step)

    def restart(self, step: int) -> None:
        """Begins a new interval after `step`; the time of a checkpoint is nobody's training speed."""
        self.first, self.began, self.since, self.waited = step, time.time(), time.perf_counter(), 0.0
        self.values: list[dict[str, Tensor]] = []  # one a step, on the device: reading them would stall it
        self.ids: list[Tensor] = []
        self.accounts: list[tuple[int, ...]] = []  # one a step

    def wait_begins(self) -> None:
        self.waited -= time.perf_counter()

    def wait_ends(self) -> None:
        self.waited += time.perf_counter()

    def add(self, values: dict[str, Tensor], ids: Tensor, account: tuple[int, ...]) -> None:
        self.values.append(values)
        self.ids.append(ids)
        self.accounts.append(account)

    @property
    def steps(self) -> int:
        return len(self.values)

    def row(self, rate: float) -> LogRow:
        """The row of the interval that ends now; the same on all ranks but for the waiting.

        Raises:
            NotFinite: names the first step with a value that is not finite, on every rank.
        """
        names = list(self.values[0])
        local = torch.stack([torch.stack([values[name].float() for name in names]) for values in self.values])
        table = mean_over_ranks(local).cpu()  # (steps, metrics); waits for the device
        elapsed, ended = time.perf_counter() - self.since, time.time()
        counted = [sum(of_steps) for of_steps in zip(*self.accounts, strict=True)]
        total, samples, retries, *stores = _sum_over_ranks([elapsed, *counted], local.device)
        bad = ~table.isfinite()
        if bad.any():
            at = int(bad.any(1).nonzero()[0, 0])
            values = {name: float(table[at, i]) for i, name in enumerate(names) if bad[at, i]}
            raise NotFinite(self.first + at + 1, values, rate, _all_ids(self.ids[at]))
        return LogRow(
            step=self.first + self.steps,
            images_seen=(self.first + self.steps) * self.batch_size,
            learning_rate=rate,
            images_per_second=self.steps * self.batch_size / elapsed,
            data_wait_ratio=self.waited / elapsed,
            seconds=time.perf_counter() - self.begun,
            metrics=dict(zip(names, table.double().mean(0).tolist(), strict=True)),
            began=self.began,
            ended=ended,
            data_wait_seconds=self.waited,
            samples=int(samples),
            read_retries=int(retries),
            stores=tuple(map(int, stores)),
            step_seconds=total / world_size() / self.steps,
            peak_memory_bytes=peak_memory(local.device),
        )

    def refuse_nonfinite_weights(self, parameters: Sequence[Tensor], rate: float) -> None:
        """A step may poison the weights after a finite loss: they must not become a checkpoint.

        Raises:
            NotFinite: on every rank, as all hold the same weights.
        """
        norms = torch.stack(torch._foreach_norm([parameter.detach() for parameter in parameters]))
        if not norms.isfinite().all():
            raise NotFinite(self.first + self.steps, {"the weights": float("nan")}, rate, _all_ids(self.ids[-1]))


def peak_memory(device: torch.device) -> int:
    """Bytes: on a GPU the most that tensors have taken, on a CPU the most that this process has had resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the process that started this one had resident
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _sum_over_ranks(values: list[float], device: torch.device) -> list[float]:
    """Exact for integers below 2^53."""
    if world_size() == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.tolist()


def _all_ids(ids: Tensor) -> list[int]:
    """Sample numbers of a step on all ranks, in rank order."""
    if world_size() == 1:
        return ids.tolist()
    parts: list[list[int]] = [[] for _ in range(world_size())]
    parts[rank()] = ids.tolist()
    dist.all_gather_object(parts, parts[rank()])
    return [number for part in parts for number in part]
