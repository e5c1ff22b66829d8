"""Which checkpoints saw a sample? The question of a takedown, answered from stores and plans; nothing of it is stored.

The order of training is a function (`pipeline.stream.plan`), so that not only "listed" but "seen" can be told: the
first step of a run whose batch held the sample. What is not known is which samples were blocked at that time; then the
answer errs on the side of "seen": the block-list of today is assumed, but for the sample itself. So it does where the
order cannot be computed any more, since it is that of several stores and one of the others is gone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from sqlalchemy import Connection, Row, select

from pipeline.experiment import Experiment, build_experiment
from pipeline.ingest.blocklist import replaced_numbers
from pipeline.ingest.store import Store
from pipeline.ledger.lineage import descendants
from pipeline.ledger.tables import checkpoint, dump, run, run_input, selection
from pipeline.stream.mixture import Order, orders
from pipeline.train.attempts import Skips

STEPS = 500  # of the plan, looked at at a time
NO_SKIPS, ALONE = Skips(), Order()


@dataclass(frozen=True)
class Place:
    """A recorded selection in whose store the sample lies."""

    selection: Row
    admit_no: int
    store: Store
    number: int
    split: str
    reason: str | None  # why the selection leaves it out

    @cached_property
    def blocked(self) -> bool:
        return self.number in self.store.blocked


@dataclass(frozen=True)
class Reader:
    """A run that reads such a selection. `first`: the step (from 1, of all that the weights were trained for) whose
    batch was the first to hold the sample, as far as the run came; None: none has. `inexact`: why that cannot be
    computed, so that what is listed counts as seen from the run's first step."""

    run: Row
    place: Place
    first: int | None
    inexact: str | None
    checkpoints: tuple[Row, ...]

    @property
    def saw(self) -> tuple[Row, ...]:
        return tuple(one for one in self.checkpoints if self.first is not None and one.step >= self.first)


@dataclass(frozen=True)
class Sight:
    sample: str
    places: tuple[Place, ...]
    readers: tuple[Reader, ...]
    descendants: tuple[Row, ...]  # checkpoints of runs that start from one that saw it, and so on
    unreadable: tuple[str, ...]  # stores that could not be looked into, each with its reason

    @property
    def tainted(self) -> list[Row]:
        """All checkpoints that saw it, themselves or through what they start from; each once."""
        found = {one.digest: one for reader in self.readers for one in reader.saw}
        found |= {one.digest: one for one in self.descendants}
        return list(found.values())


def saw(connection: Connection, sample: str) -> Sight:
    """Where a sample (sha256 of its file, or at least 8 digits of it) lies, and which recorded checkpoints saw it.

    Raises:
        ValueError: that is no sample id, or the beginning of several.
    """
    sample = sample.strip().lower().removeprefix("sha256:")
    if len(sample) < 8 or len(sample) > 64 or set(sample) - set("0123456789abcdef"):
        raise ValueError(f"{sample[:80]!r} is no sample id: give the sha256 of the image's file, 8 digits at least")
    places, unreadable = [], []
    found: set[str] = set()
    chosen = select(selection, dump.c.admit_no).join(dump, dump.c.dump_id == selection.c.dump_id)
    for row in connection.execute(chosen.order_by(dump.c.admit_no)).all():
        try:
            for place in _places(row, sample, found):
                places.append(place)
        except (ValueError, OSError) as error:
            unreadable.append(f"{row.store} ({row.name}): {error}")
    if len(found) > 1:
        raise ValueError(f"{len(found)} samples begin with {sample}: give more of the sha256")
    readers = [reader for place in places for reader in _readers(connection, place)]
    seen = [one.digest for reader in readers for one in reader.saw]
    after = descendants(connection, seen) if seen else []
    return Sight(next(iter(found), sample), tuple(places), tuple(readers), tuple(after), tuple(unreadable))


def _places(row: Row, sample: str, found: set[str]) -> Iterator[Place]:
    from pipeline.ingest.selection import read_decisions

    store = _unchanged(row)
    ids = store.column("id")
    numbers = np.flatnonzero(pc.starts_with(ids, sample).to_numpy(zero_copy_only=False))
    for number in map(int, numbers):
        found.add(ids[number].as_py())
        reason = read_decisions(store, row.name)["reason"][number].as_py()
        yield Place(row, row.admit_no, store, number, store.column("split")[number].as_py(), reason)


def _unchanged(row: Row) -> Store:
    """The store of a recorded selection. Raises ValueError: it is not what it was."""
    from pipeline.ingest.selection import read_selection

    store = Store(row.store, row.name)
    if read_selection(store, row.name).digest != row.digest:
        raise ValueError("it was made anew since: what was read of it then is not known any more")
    return store


def _readers(connection: Connection, place: Place) -> Iterator[Reader]:
    reads = (
        select(run, run_input.c.consumed)
        .join(run_input, run_input.c.run_id == run.c.run_id)
        .where(run_input.c.selection_id == place.selection.selection_id)
        .order_by(run.c.recorded_at)
    )
    for row in connection.execute(reads).all():
        own = select(checkpoint).where(checkpoint.c.run_id == row.run_id).order_by(checkpoint.c.step)
        checkpoints = tuple(connection.execute(own).all())
        steps = max((one.step for one in checkpoints), default=0)
        experiment, inexact = build_experiment(row.experiment), None
        try:
            first = _first(connection, experiment, place, steps, Skips.read(Path(row.path)))
        except (ValueError, OSError) as error:
            listed = place.split == "train" and place.reason is None
            first, inexact = experiment.training.continue_step + 1 if listed else None, str(error)
        yield Reader(row, place, first, inexact, checkpoints)


def _first(connection: Connection, experiment: Experiment, place: Place, steps: int, skips: Skips) -> int | None:
    """As `first_step`. Raises ValueError: another store that has a part in the order is not what it was."""
    if not experiment.data.replay:
        return first_step(experiment, [place.store], place.number, steps, skips)
    selections, own = experiment.data.digests, place.selection.selection_id
    if own not in selections:
        raise ValueError("its experiment names other samples")
    order = next(order for order in orders(experiment.data) if selections.index(own) in order.stores)
    together = [selections[index] for index in order.stores]
    stores = [place.store if one == own else _recorded_store(connection, one) for one in together]
    return first_step(experiment, stores, place.number, steps, skips, order=order, which=together.index(own))


def _recorded_store(connection: Connection, selection_id: str) -> Store:
    row = connection.execute(select(selection).where(selection.c.selection_id == selection_id)).one()
    try:
        return _unchanged(row)
    except (ValueError, OSError) as error:
        raise ValueError(f"{row.store} ({row.name}): {error}") from error


def first_step(
    experiment: Experiment, stores: Sequence[Store], number: int, steps: int, skips: Skips = NO_SKIPS, *,
    order: Order = ALONE, which: int = 0,
) -> int | None:  # fmt: skip
    """The first of the steps 1 … `steps` of a run whose batch held a sample of `stores[which]`; None: none of them.

    Args:
        stores: of the run's, those that stand in the same `order` of samples.
    """
    samples = [experiment.training_samples(store) for store in stores]
    numbers, blocked = samples[which][0], stores[which].blocked
    read = replaced_numbers(numbers, blocked[blocked != number])
    rows = np.flatnonzero(read == number)  # its own, and those of blocked samples that it stands in for
    if not len(rows):
        return None
    rows += sum(len(before) for before, _ in samples[:which])
    plan = order.plan(samples, experiment.data, experiment.training.seed)
    step, begun = experiment.training.continue_step, experiment.data.first_step
    for first, stop in skips.stretches(step, steps):
        for begin in range(first, stop, STEPS):
            end = min(begin + STEPS, stop)
            held = np.isin(plan.rank_rows(begin - begun, end - begun, 0, 1)[0], rows).any(axis=1)
            if held.any():
                return step + (begin - first) + int(held.argmax()) + 1
        step += stop - first
    return None
