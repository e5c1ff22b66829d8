"""A worker of Ray Train, in this process."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.ingest.blocklist import BlockList, block
from pipeline.ingest.store import Store
from pipeline.run import Run
from pipeline.train.attempts import read_failure
from pipeline.train.worker import train_worker
from tests.pipeline.stores import tiny_experiment


def test_a_store_that_cannot_be_trained_on_is_told_once_and_no_restart_tries_again(
    small_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1, get_local_world_size=lambda: 1)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr("ray.train.get_context", lambda: alone)
    monkeypatch.setattr("ray.train.torch.get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr("ray.train.collective.broadcast_from_rank_zero", lambda value: value)
    store = Store(shutil.copytree(small_store.path, tmp_path / "store"))
    experiment = tiny_experiment(store.path)
    run = Run.prepare(tmp_path / "run", experiment, ["feral", "pretrain"])
    config: dict[str, Any] = {
        "run": str(run.path), "experiment": experiment.model_dump(mode="json"), "sharing": 1, "save_at": [],
        "keep_at": [],
    }  # fmt: skip
    block(store.path, BlockList(frozenset(store.column("id").to_pylist())))
    with pytest.raises(ValueError, match="the block-list names every sample"):
        train_worker(config)
    failure = read_failure(run.path)
    assert failure is not None
    assert failure["message"].startswith("the block-list names every sample")
    assert not (run.path / "logs").exists()
    train_worker(config)  # started again by Ray: it leaves at once
    assert len(list((run.path / "attempts").iterdir())) == 1
