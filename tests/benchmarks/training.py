"""How fast the recipes train on CPU: what each choice of the loop gives, and where the time of a step goes."""

import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from jobs.bench import Cell, Table
from jobs.recipes import find_recipe
from pipeline.train.fit import KEEP_FREED_MEMORY
from pipeline.train.loop import TrainState, train
from ssl_models.batch import Batch
from ssl_models.collectives import synchronize_batchnorm
from ssl_models.objectives import build_objective
from tests.benchmarks.processes import Cost

CPU = torch.device("cpu")
END_TOKEN = 49407  # of CLIP's vocabulary; the largest


@dataclass(frozen=True)
class Variant:
    """How a recipe is trained. The defaults are what `feral pretrain` does with one worker and one thread."""

    what: str
    precision: Literal["bf16", "fp32"] = "bf16"
    memory_format: Literal["channels_last", "contiguous_format"] = "channels_last"
    fused_attention: bool = False  # timm's; the text tower's is always plain on CPU
    keep_memory: bool = True
    optimizer: Literal["own", "fused", "foreach", "loop"] = "own"
    batchnorm_over_ranks: bool = False
    compiled: bool = False
    threads: int = 1
    workers: int = 1


FLOOR, TRAINED, TWO_WORKERS = "fp32", "trained", "workers2"
VARIANTS = {
    FLOOR: Variant("single precision, contiguous", "fp32", "contiguous_format"),
    "channels_last": Variant("single precision, channels last", "fp32"),
    "bf16": Variant("bf16, contiguous", memory_format="contiguous_format"),
    TRAINED: Variant("bf16, channels last: as recipes train"),
    "memory": Variant("trained, glibc's own thresholds", keep_memory=False),
    "attention": Variant("trained, torch's fused attention", fused_attention=True),
    "loop": Variant("trained, optimizer: a loop", optimizer="loop"),
    "foreach": Variant("trained, optimizer: foreach", optimizer="foreach"),
    "fused": Variant("trained, optimizer: fused", optimizer="fused"),
    "batchnorm": Variant("trained, BatchNorm over (one) rank", batchnorm_over_ranks=True),
    "compiled": Variant("trained, torch.compile", compiled=True),
    "threads2": Variant("trained, 2 threads", threads=2),
    TWO_WORKERS: Variant("trained, 2 workers of 1 thread", workers=2),
}


def main(
    recipes: str = "simclr_32px,mae_64px,clip_small",
    variants: str = ",".join(VARIANTS),
    batch: Annotated[int, Field(ge=4, multiple_of=2)] = 128,
    steps: Annotated[int, Field(ge=1)] = 2,
    rounds: Annotated[int, Field(ge=1)] = 5,
) -> list[Table]:
    """Images/s of the real loop on batches in memory, variant by variant; and where the time of a step goes.

    Each variant has processes of its own, of about 1 GB, and all take turns. `compiled` needs a C++ compiler, and takes
    a minute a recipe.
    """
    chosen = {name: find_recipe(name) for name in recipes.split(",")}
    if wrong := sorted(set(variants.split(",")) - VARIANTS.keys()):
        raise ValueError(f"variants={','.join(wrong)}: there are {', '.join(VARIANTS)}")
    named = {name: variant for name, variant in VARIANTS.items() if name in variants.split(",")}
    speeds, laps = [], []
    for recipe in chosen:
        speed, parts = _measured(recipe, named, batch, steps, rounds)
        speeds.append(speed)
        laps += parts
    columns = ("recipe, variant", "views", "forward", "backward", "optimizer", "the rest", "ms a step")
    note = (
        f"wall ms of a step of {batch} images; backward with clipping and the averaging over ranks; the rest: DDP, the "
        "learning rate, meters and a row of metrics every ten steps"
    )
    return [*speeds, Table("where the time goes", columns, laps, note)]


def _measured(
    recipe: str, variants: dict[str, Variant], batch: int, steps: int, rounds: int
) -> tuple[Table, list[tuple[Cell, ...]]]:
    found: dict[str, list[Cost]] = defaultdict(list)
    laps: list[tuple[Cell, ...]] = []
    with ExitStack() as stack:
        groups = {name: stack.enter_context(_processes(recipe, one, batch)) for name, one in variants.items()}
        ready = {name: group for name, group in groups.items() if group.why_not is None}
        for _ in range(rounds):
            for name, group in ready.items():
                costs = [Cost(*cost) for cost in group.ask("cost", steps)]
                found[name].append(Cost(sum(cost.cpu for cost in costs), max(cost.wall for cost in costs)))
        for name in (TRAINED, TWO_WORKERS):
            if name in ready:
                parts = ready[name].ask("laps", 10)[0]
                laps.append((f"{recipe}, {name}", *parts, sum(parts)))
    median = {name: Cost(*map(statistics.median, zip(*costs, strict=True))) for name, costs in found.items()}
    images = batch * steps
    rows: list[tuple[Cell, ...]] = []
    for name, variant in variants.items():
        cost, group = median.get(name), groups[name]
        if cost is None:
            rows.append((name, f"{variant.what}: {group.why_not}", *[None] * 6))
            continue
        ratios = (median[other].wall / cost.wall if other in median else None for other in (FLOOR, TRAINED))
        speed, effort = images / cost.wall, 1000 * cost.cpu / images
        rows.append((name, variant.what, speed, effort, *ratios, group.seconds, group.mb))
    columns = ("variant", "what", "images/s", "CPU ms/image", f"× {FLOOR}", f"× {TRAINED}", "first 3 steps, s", "MB")
    note = f"batch {batch}; medians of {rounds} × {steps} steps in turns, no views; ratios of images/s; MB a process"
    return Table(recipe, columns, rows, note), laps


# ---- processes ------------------------------------------------------------------------------------------------------


@dataclass
class _Group:
    """The processes of a variant, one a worker."""

    pipes: list[Connection]
    why_not: str | None = None  # they could not be set up
    seconds: float = 0.0  # of the first steps
    mb: float = 0.0  # the most that was resident in one, after these

    def ask(self, question: str, steps: int) -> list[Any]:
        """The answers of all, who work at the same time."""
        for pipe in self.pipes:
            pipe.send((question, steps))
        return [pipe.recv() for pipe in self.pipes]


@contextmanager
def _processes(recipe: str, variant: Variant, batch: int) -> Iterator[_Group]:
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="bench") as folder, ExitStack() as stack:
        pipes = []
        for rank in range(variant.workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, recipe, variant, batch, rank, folder), daemon=True)
            with _environment(
                (KEEP_FREED_MEMORY if variant.keep_memory else {}) | {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/compiled"}
            ):
                process.start()
            theirs.close()
            stack.callback(process.join)
            stack.callback(ours.close)  # which ends it
            pipes.append(ours)
        answers = [pipe.recv() for pipe in pipes]
        refused = next((answer for answer in answers if isinstance(answer, str)), None)
        seconds, mb = (0.0, 0.0) if refused else map(max, zip(*answers, strict=True))
        yield _Group(pipes, refused, seconds, mb)


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Of processes that are started within: glibc reads its settings at their start."""
    before = dict(os.environ)
    for name in KEEP_FREED_MEMORY:
        os.environ.pop(name, None)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _serve(pipe: Connection, recipe: str, variant: Variant, batch: int, rank: int, folder: str) -> None:
    """A process of a variant: first says what its set-up took, or why it cannot be; then answers questions."""
    try:
        trainer = _Trainer(recipe, variant, batch, rank, Path(folder))
        began = time.perf_counter()
        trainer.cost(2)
        seconds = time.perf_counter() - began
    except Exception as error:
        pipe.send(f"{error}".strip().partition("\n")[0] or type(error).__name__)
        return
    pipe.send((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
    while True:
        try:
            question, steps = pipe.recv()
        except EOFError:
            return
        pipe.send(getattr(trainer, question)(steps))


# ---- one worker -----------------------------------------------------------------------------------------------------


class _Trainer:
    """One rank of a variant, on one batch for ever."""

    def __init__(self, recipe: str, variant: Variant, batch: int, rank: int, folder: Path) -> None:
        torch.set_num_threads(variant.threads)
        if variant.workers > 1:
            meeting = f"file://{folder}/meeting"
            torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=variant.workers)
        self.experiment = find_recipe(recipe)()
        self.global_batch, local = batch, batch // variant.workers
        torch.manual_seed(self.experiment.training.seed)
        objective = build_objective(self.experiment.objective, self.experiment.encoder)
        if variant.batchnorm_over_ranks:
            synchronize_batchnorm(objective, CPU)
        self.state = TrainState.fresh(objective, self.experiment.optimizer, batch, CPU)
        self._set(variant)
        size, views = self.experiment.encoder.image_size, self.experiment.num_views
        generator = torch.Generator().manual_seed(rank)
        self.ids = torch.arange(local) + rank * local
        self.crops = torch.randint(256, (local, views, size, size, 3), dtype=torch.uint8, generator=generator)
        self.tokens = captions(local, self.experiment.context_length, generator) if self.experiment.needs_text else None
        self.views = self.experiment.device_views()
        made = self._batch(0)
        memory_format = getattr(torch, variant.memory_format)
        self.batch = replace(made, views=tuple(view.contiguous(memory_format=memory_format) for view in made.views))
        self.training = self.experiment.training.model_copy(update={"precision": variant.precision, "log_every": 10})

    def _set(self, variant: Variant) -> None:
        objective = self.state.objective.to(memory_format=getattr(torch, variant.memory_format))
        attention = [module for module in objective.modules() if hasattr(module, "fused_attn")]
        if variant.fused_attention and not attention:
            raise ValueError("has none")
        for module in attention:
            module.fused_attn = variant.fused_attention  # type: ignore[assignment]
        if variant.optimizer != "own":
            for optimizer in self.state.optimizers.values():
                for group in optimizer.param_groups:
                    group |= {"fused": variant.optimizer == "fused", "foreach": variant.optimizer == "foreach"}
        if variant.compiled:
            objective.compile()

    def _batch(self, epoch: int) -> Batch:
        return Batch(self.views(self.crops, self.ids, epoch), self.ids, self.tokens)

    def _train(self, batches: Iterator[Any], **more: Any) -> None:
        train(
            self.state,
            batches,
            training=self.training,
            optimizer=self.experiment.optimizer.model_copy(update={"schedule": "constant"}),  # a run without end
            batch_size=self.global_batch,
            total_steps=None,
            **more,
        )

    def cost(self, steps: int) -> tuple[float, float]:
        """Seconds of processor and of wall that the loop takes, after one step for the caches."""
        found = []

        def batches() -> Iterator[Batch]:
            for number in range(steps + 1):
                if number == 1:
                    found.append((time.process_time(), time.perf_counter()))
                yield self.batch
            found.append((time.process_time(), time.perf_counter()))

        self._train(batches())
        (cpu, wall), (cpu_after, wall_after) = found
        return cpu_after - cpu, wall_after - wall

    def laps(self, steps: int) -> list[float]:
        """Wall ms a step of views, forward, backward, optimizer, all else."""
        seconds = dict.fromkeys(("views", "forward", "backward", "optimizer", "rest"), 0.0)
        last = time.perf_counter()

        def lap(name: str) -> None:
            nonlocal last
            now = time.perf_counter()
            seconds[name] += now - last
            last = now

        def prepare(epoch: int) -> Batch:
            lap("rest")
            batch = self._batch(epoch)
            lap("views")
            return batch

        objective = self.state.objective
        with ExitStack() as hooks:
            hooks.enter_context(objective.register_forward_pre_hook(lambda *_: lap("rest")))
            hooks.enter_context(objective.register_forward_hook(lambda *_: lap("forward")))
            for optimizer in self.state.optimizers.values():
                hooks.enter_context(optimizer.register_step_pre_hook(lambda *_: lap("backward")))
                hooks.enter_context(optimizer.register_step_post_hook(lambda *_: lap("optimizer")))
            self._train(iter(range(steps)), prepare=prepare)
        lap("rest")
        return [1000 * value / steps for value in seconds.values()]


def captions(count: int, length: int, generator: torch.Generator) -> Tensor:
    """(count, length) int64: random tokens, an end token, zeros."""
    tokens = torch.randint(1, END_TOKEN, (count, length), generator=generator)
    end = torch.randint(length // 2, length, (count, 1), generator=generator)
    place = torch.arange(length)
    return tokens.where(place < end, 0).where(place != end, END_TOKEN)
