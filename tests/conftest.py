"""Shared by all tests: a quiet environment, one Ray for the session, a small store and what trains on it; and which
tests may run beside others."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

# Before anything imports ray.
os.environ.update(
    RAY_AUTH_MODE="disabled",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_TRAIN_ENABLE_PREEMPTION_WATCHER="0",
    RAY_TRAIN_METRICS_ENABLED="0",
    RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2",
    RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="30",
    RAY_TRAIN_COLLECTIVE_TIMEOUT_S="60",
    TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S="2",
    RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S="60",
    RAY_DATA_DISABLE_PROGRESS_BARS="1",
)
if "PYTEST_XDIST_WORKER" in os.environ:  # processes that share the cores: threads of each would wait for the other's
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """For pytest-xdist: files with tests that start Ray go one after another, in one process; of the others each goes
    as a whole. (Its own groups, by marker, do nothing with pytest 9.2.)"""
    from xdist.scheduler import LoadFileScheduling

    class RayByItself(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            starts_ray = re.search(r"mark\.(cluster|faults|long)", (config.rootpath / file).read_text())
            return "ray" if starts_ray else file

    return RayByItself(config, log)


@pytest.fixture(scope="session")
def ray_local() -> Iterator[Any]:
    """The session's own Ray with six logical CPUs; it never joins a cluster that runs on this machine."""
    import ray

    folder = tempfile.mkdtemp(prefix="r")  # short: Ray adds about 65 of the 107 bytes that a socket's path may have
    ray.init(
        address="local",
        num_cpus=6,
        include_dashboard=False,
        object_store_memory=150 * 2**20,
        log_to_driver=False,
        _temp_dir=folder,
    )
    yield ray
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """300 pictures of three colours with captions, in six shards; a fifth of them for testing."""
    from pipeline.ingest.config import CurateConfig
    from tests.pipeline.stores import curate_here, write_dump

    folder = tmp_path_factory.mktemp("small")
    config = CurateConfig(samples_per_shard=50, holdout=0.2)
    return curate_here(write_dump(folder / "dump", 300), folder / "store", config)


@pytest.fixture(scope="session")
def small_experiment(small_store: Any) -> Any:
    """SimCLR on the small store, 12 steps of 32 images."""
    from tests.pipeline.stores import tiny_experiment

    return tiny_experiment(small_store.path)
