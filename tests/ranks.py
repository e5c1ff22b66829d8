"""Several ranks on this machine: processes that meet through gloo."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def on_ranks(work: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
    """What `work(rank, world_size, *arguments)` returns on each rank: tensors, numbers, and containers of them."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_on_rank, (work, world_size, arguments, folder), nprocs=world_size)
        return [torch.load(Path(folder, str(rank)), weights_only=True) for rank in range(world_size)]


def _on_rank(rank: int, work: Callable[..., Any], world_size: int, arguments: tuple[Any, ...], folder: str) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // world_size))
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size)
    torch.save(work(rank, world_size, *arguments), Path(folder, str(rank)))
    dist.destroy_process_group()  # a process that exits with gloo's threads running may abort
