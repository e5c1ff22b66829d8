"""Where the work runs: the resources a run asks for, and the one place that starts or joins Ray."""

import ctypes
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from pydantic import Field

from ssl_models.config import Config

# Set before Ray starts, and inherited by the cluster that we start.
QUIET_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one of Tune prints a box of its settings even when silent
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_JOB_STOP_WAIT_TIME_S": "60",  # a job that is stopped saves first
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",
}

# Of the workers that a Ray of our own starts. With Ray's 15 an online probe, at idle priority, takes a twelfth of a
# core that trains; with this less than 1 % (Linux: 3 parts against 526), and what keeps Ray alive goes before both.
WORKER_NICENESS = "3"

# Environment of processes that run networks. They free and allocate the same large tensors again and again; glibc would
# return them to the kernel and fault in every page anew, which was half of the time of an encoder of large maps on a
# CPU. One arena, because the others, which threads as that of Ray Train use, cannot hold a large tensor.
KEEP_FREED_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
}

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h

# Each lets Ray Data run code that a data file brings along.
UNSAFE_RAY = (
    "RAY_DATA_WEBDATASET_ALLOW_UNSAFE_DESERIALIZATION",
    "RAY_DATA_AUTOLOAD_PICKLE_OBJECT_SCALAR",
    "RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA",
    "RAY_DATA_AUTOLOAD_PYEXTENSIONTYPE",
)


class ClusterConfig(Config):
    """Resources of a run. They never change what a run computes, so they are not part of its identity."""

    workers: int = Field(1, ge=1, description="training processes; each trains on an equal share of the batch")
    use_gpu: bool = Field(False, description="one GPU for each worker, NCCL between them")
    cpus_per_worker: int = Field(1, ge=1, description="CPUs reserved for each worker beside its GPU")
    worker_resources: dict[str, float] = Field(
        {}, description='what else each worker takes, as nodes were started with: {"train": 1} keeps workers on those'
    )
    data_cpus: int = Field(1, ge=1, description="CPUs kept free for reading, decoding and cropping")
    max_failures: int = Field(3, ge=0, description="worker deaths survived in one invocation")
    min_workers: int | None = Field(
        None, ge=1, description="train on with as few when nodes go, with more when they come; None: always `workers`"
    )
    resize_seconds: float = Field(
        300,
        gt=0,
        description="how often more workers are looked for; taking them in costs the steps since a checkpoint",
    )
    hang_seconds: float = Field(
        900, gt=0, description="a worker that ends no step for so long is started again; its stack is in RUN/logs"
    )

    @property
    def worlds(self) -> range:
        """The numbers of workers that may train."""
        return range(min(self.min_workers or self.workers, self.workers), self.workers + 1)

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers may change."""
        return len(self.worlds) > 1

    @property
    def worker(self) -> dict[str, float]:
        """What Ray reserves for one worker."""
        gpu = {"GPU": 1.0} if self.use_gpu else {}
        return {"CPU": float(self.cpus_per_worker), **gpu, **self.worker_resources}

    @property
    def cpus(self) -> int:
        """All CPUs that must exist before anything is started."""
        return self.worlds[0] * self.cpus_per_worker + self.data_cpus


def cores_each(sharing: int) -> int:
    """Threads for each of the processes that share this machine's cores. With more threads than cores a convolution's
    backward pass is a hundred times slower (seen of two trainings with 2 threads each on 2 cores)."""
    return max(1, (os.cpu_count() or 1) // sharing)


def refuse_unsafe_settings(environment: Mapping[str, str] = os.environ) -> None:
    """Raises ValueError where the environment tells Ray Data to unpickle what it reads."""
    for name in UNSAFE_RAY:
        if environment.get(name, "0").lower() not in ("", "0", "false"):
            raise ValueError(
                f"{name} is set, which lets a data file run code here: unset it (for a cluster, where Ray was started)"
            )


def keep_freed_memory() -> None:
    """KEEP_FREED_MEMORY for a process that runs already, in its main thread: a fresh one takes 2 s to start. Does
    nothing where the C library is not glibc."""
    with suppress(AttributeError, OSError):
        for option in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
            ctypes.CDLL(None).mallopt(option, 2**31 - 1)


@contextmanager
def connected(address: str | None = None, *, cpus: int = 1, offer: int = 1) -> Iterator[None]:
    """Joins the cluster at `address`, or starts one on this machine for the time of the block.

    `address` falls back to RAY_ADDRESS (which a submitted job has), then to a fresh local instance. A local
    instance offers at least `cpus` and `offer` logical CPUs: shares of the real cores, not a claim to more of them.
    If Ray is connected already, the block uses that connection and leaves it open.

    Raises:
        ValueError: no cluster answers at `address`, the cluster has fewer than `cpus` CPUs, or an unsafe environment.
    """
    refuse_unsafe_settings()
    import ray  # here, not above: the training loop reads ClusterConfig on machines that have no Ray

    if ray.is_initialized():
        yield
        return
    for name, value in QUIET_RAY.items():
        os.environ.setdefault(name, value)
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    temporary = tempfile.mkdtemp(prefix="feral") if address == "local" else None
    try:
        if address == "local":
            _want_a_token()
            os.environ.setdefault("RAY_worker_niceness", WORKER_NICENESS)
            ray.init(
                address="local",
                num_cpus=max(cpus, offer, os.cpu_count() or 1),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=temporary,
            )
        else:
            _join(address, cpus)
        yield
    finally:
        ray.shutdown()
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)


def _want_a_token() -> None:
    """Ray (2.60) listens on every interface of the machine, whatever it is told, and runs what it is sent. Unless
    RAY_AUTH_MODE says otherwise it asks for a token: here for one of this process alone, not that of ~/.ray."""
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # it tells that it does


def _join(address: str, cpus: int) -> None:
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError) as error:
        raise ValueError(
            f"no Ray cluster answers at {address!r} ({error}); start one with `ray start --head`, or leave --address "
            "and RAY_ADDRESS empty to run on this machine"
        ) from error
    available = ray.cluster_resources().get("CPU", 0)
    if available < cpus:
        raise ValueError(
            f"the cluster at {address!r} has {available:.0f} CPUs, but this run needs {cpus} (workers × "
            "cpus_per_worker + data_cpus): lower cluster.workers or add nodes"
        )
