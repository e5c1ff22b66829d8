"""Is it worth going on? A labelled store's classes come in successive dumps; every way of training sees as many images.

Three ways: on from dump to dump with replay, the same without, and, when the last dump is there, from scratch on
everything. All are the same SimCLR with warm-up and plateau; at the end each is cooled down on its own mixture. Without
Ray, in this process, with the experiments, orders and checkpoints of `feral continue` and `feral cooldown`.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pydantic import Field

from jobs.bench import Cell, Table
from jobs.recipes import find_recipe
from pipeline.cluster import ClusterConfig
from pipeline.evaluate.embed import Embedding
from pipeline.evaluate.encoders import RunEncoders
from pipeline.evaluate.forgetting import Forgetting
from pipeline.evaluate.probes import knn_predictions
from pipeline.experiment import Experiment
from pipeline.ingest.selection import read_decisions, write_selection
from pipeline.ingest.store import Store
from pipeline.run import Run
from pipeline.stream.batches import to_batch
from pipeline.train.checkpoints import save_checkpoint
from pipeline.train.continuing import COOLDOWN_SHARE, continued, cooled_down
from pipeline.train.loop import train
from pipeline.train.worker import fresh_state, open_batches

CPU = torch.device("cpu")
OVERALL = "all classes"


def main(
    store: Path,
    dumps: Annotated[int, Field(ge=2)] = 4,
    images: Annotated[int, Field(ge=16)] = 25_000,
    share: Annotated[float, Field(gt=0, lt=1)] = 0.25,
    seeds: Annotated[int, Field(ge=1)] = 1,
    batch: Annotated[int, Field(ge=16, multiple_of=16)] = 256,
) -> list[Table]:
    """A store's classes in `dumps` dumps: going on with replay, without, from scratch: k-NN, forgetting, cost.

    Each dump is trained on for `images` images; from scratch for as many in all. Averages over `seeds`.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(store, Path(folder, "store"), copy_function=_linked))
        names = _split(Store(copy), dumps)
        ways: dict[str, list[_Way]] = {}
        for seed in range(seeds):
            first = _first(copy, names[0], images, batch, seed)
            for name, found in _ways(Path(folder, f"seed{seed}"), copy, names, first, share).items():
                ways.setdefault(name, []).append(found)
        return [_scores(ways, names), *(_matrix(name, found, names) for name, found in ways.items() if name != SCRATCH)]


# ---- the dumps ------------------------------------------------------------------------------------------------------


def _split(store: Store, dumps: int) -> list[str]:
    """Makes a selection of each part of the classes; returns their names."""
    if dumps > len(store.manifest.classes):
        raise ValueError(f"dumps={dumps}: {store.path} has only {len(store.manifest.classes)} classes")
    labels, decisions = store.column("label").to_numpy(), read_decisions(store, store.selection)
    columns = store.columns("id", "split")
    names = []
    for number, classes in enumerate(np.array_split(np.arange(len(store.manifest.classes)), dumps), 1):
        here = pa.array(np.isin(labels, classes))
        reasons = pc.if_else(here, decisions["reason"], pc.coalesce(decisions["reason"], "other_dump"))
        names.append(f"dump{number}")
        write_selection(
            store.path, names[-1], store.manifest.index_sha256, columns["id"], columns["split"],
            decisions.set_column(0, "reason", reasons), based_on=None, policy={}, inputs={}, notes={},
        )  # fmt: skip
    return names


def _linked(source: str, target: str) -> None:
    """Shards are not copied, where links can be made."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


# ---- the ways of training -------------------------------------------------------------------------------------------


@dataclass
class _Way:
    """What one way of training gave: after each dump and after the cooldown, k-NN of each slice and of all classes."""

    before: float = 0.0  # k-NN of all classes, of the encoder before its first step
    after: list[dict[str, float]] = field(default_factory=list)
    images: int = 0
    cooldown: int = 0  # of these, in the cooldown
    seconds: float = 0.0  # of training, without judging


SCRATCH = "from scratch on everything"


def _first(store: Path, selection: str, images: int, batch: int, seed: int) -> Experiment:
    return find_recipe("simclr_32px")().override(
        {
            "data.store": str(store),
            "data.selection": selection,
            "data.batch_size": batch,
            "data.lanes": 16,
            "encoder.arguments": {"channels": [16, 32, 64, 128], "zero_init_last": False},
            "optimizer.schedule": "constant",
            "optimizer.warmup_images": images // 5,
            "training.images_seen": images,
            "training.seed": seed,
        }
    )


def _ways(folder: Path, store: Path, names: Sequence[str], first: Experiment, share: float) -> dict[str, _Way]:
    start = _Way()
    begun = _trained(folder / names[0], first, start)
    start.before = _judged(begun, store, names, "random")[OVERALL]
    start.after.append(_judged(begun, store, names))
    ways = {}
    for way, replay in ((f"going on, {100 * share:g} % replay", True), ("going on, no replay", False)):
        found, run = replace(start, after=[*start.after]), begun
        for number, name in enumerate(names[1:], 1):
            older = [f"{store}@{before}" for before in names[:number]] if replay else []
            changes = {"data.selection": name, "data.replay": older, "data.replay_share": share}
            run = _trained(folder / way / name, continued(run.experiment, run.path, changes), found)
            found.after.append(_judged(run, store, names))
        ways[way] = _cooled(folder / way / "cooldown", run, store, names, found)
    everything = {
        "data.selection": names[-1],
        "data.replay": [f"{store}@{name}" for name in names[:-1]],
        "data.replay_share": None,
        "training.images_seen": len(names) * first.training.images_seen,
    }
    found = _Way(start.before)
    run = _trained(folder / "scratch" / "run", first.override(everything), found)
    found.after.append(_judged(run, store, names))
    ways[SCRATCH] = _cooled(folder / "scratch" / "cooldown", run, store, names, found)
    return ways


def _cooled(path: Path, run: Run, store: Path, names: Sequence[str], found: _Way) -> _Way:
    """Anneals what was trained last, for 15 % of a dump's images."""
    images = max(run.experiment.data.batch_size, round(COOLDOWN_SHARE * found.images / len(names)))
    before = found.images
    cooled = _trained(path, cooled_down(run.experiment, run.path, {"training.images_seen": images}), found)
    found.cooldown = found.images - before
    found.after.append(_judged(cooled, store, names))
    return found


def _trained(path: Path, asked: Experiment, way: _Way) -> Run:
    """Trains to the end, as `feral pretrain` would, but in this process."""
    own = asked.data.open()
    experiment = asked.fitted(own)
    experiment.check(own)
    run = Run.prepare(path, experiment, ["feral", "bench", "continual"])
    began = time.perf_counter()
    state, views, batches = fresh_state(experiment, CPU), experiment.device_views(), open_batches(experiment)
    train(
        state,
        batches.local(state.step, experiment.total_steps),
        training=experiment.training.model_copy(update={"checkpoint_every": 10**9}),
        optimizer=experiment.optimizer,
        batch_size=experiment.data.batch_size,
        total_steps=experiment.total_steps,
        prepare=lambda columns: to_batch(columns, views, CPU),
    )
    way.seconds += time.perf_counter() - began
    way.images += (experiment.total_steps - experiment.training.continue_step) * experiment.data.batch_size
    save_checkpoint(run.checkpoints, state, keep=1)
    print(f"{path.parent.name}/{path.name}: step {state.step}, {way.seconds:.0f} s so far", flush=True)
    return run


# ---- scores ---------------------------------------------------------------------------------------------------------


def _judged(run: Run, store: Path, names: Sequence[str], encoder: str = "trained") -> dict[str, float]:
    """Weighted k-NN among the training images of all classes: of the test images of each dump, and of all."""
    everything, config = Store(store), run.experiment.evaluation
    train_numbers, test_numbers = everything.select("train"), everything.select("test")
    labels = everything.column("label").to_numpy()
    embedding = Embedding(ClusterConfig(), threads=torch.get_num_threads())
    numbers = np.concatenate([train_numbers, test_numbers])
    rows = embedding.here(RunEncoders.of(run), everything, numbers, (encoder,))[encoder]
    bank, queries = rows[: len(train_numbers)], rows[len(train_numbers) :]
    answers = knn_predictions(bank, labels[train_numbers], queries, config.neighbours, config.neighbour_temperature)
    right = answers == labels[test_numbers]
    slices = {name: np.isin(test_numbers, Store(store, name).select("test")) for name in names}
    return {name: float(right[chosen].mean()) for name, chosen in slices.items()} | {OVERALL: float(right.mean())}


def _scores(ways: dict[str, list[_Way]], names: Sequence[str]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, found in ways.items():
        plateau, cooled = ([100 * way.after[at][OVERALL] for way in found] for at in (-2, -1))
        spread = float(np.std(cooled, ddof=1)) if len(found) > 1 else None
        lost = None if name == SCRATCH else mean(100 * _forgetting(way, names).mean_of_older for way in found)
        dumps = len(names)
        trained = range(1, dumps + 1) if name == SCRATCH else [1] * dumps  # dumps that are trained on when one lands
        every = sum(trained) * (found[0].images - found[0].cooldown) // dumps + dumps * found[0].cooldown
        minutes = mean(way.seconds / 60 for way in found)
        rows.append((name, mean(plateau), mean(cooled), spread, lost, found[0].images, minutes, every))
    columns = ("way", "plateau", "cooled", "± seeds", "forgotten", "images", "minutes", "images, each dump")
    random = mean(way.before for found in ways.values() for way in found)
    note = (
        f"plateau, cooled: k-NN % of the test images of all classes (random encoder: {100 * random:.1f}); forgotten: "
        "points between the best value of an older dump's test images after an earlier dump and that after the last, "
        "mean of dumps, on the plateau; last column: images that are seen to have a cooled encoder of everything after "
        "each dump"
    )
    return Table(f"{len(names)} dumps", columns, rows, note)


def _forgetting(way: _Way, names: Sequence[str]) -> Forgetting:
    """On the plateau, dump after dump."""
    values = tuple(tuple(after[name] for name in names) for after in way.after[: len(names)])
    return Forgetting(score="knn_top1", encoders=tuple(names), stores=tuple(names), values=values)


def _matrix(name: str, found: list[_Way], names: Sequence[str]) -> Table:
    each = [_forgetting(way, names) for way in found]
    rows: list[tuple[Cell, ...]] = []
    for at, encoder in enumerate(names):
        means = np.mean([one.values[at] for one in each], axis=0)
        overall = mean(way.after[at][OVERALL] for way in found)
        rows.append((f"after {encoder}", *(100 * means).tolist(), 100 * overall))
    lost = np.mean([one.forgotten for one in each], axis=0)
    rows.append(("forgotten", *(100 * lost).tolist(), None))
    return Table(name, ("k-NN %", *names, OVERALL), rows, "rows: plateau after a dump; columns: test images of a dump")
