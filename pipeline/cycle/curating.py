"""The first stage: a dump becomes a sealed store of what is new in it, if there is enough of it and nothing is odd."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import Connection, Row, func, select

from pipeline.curate import DECODER, NothingKept, curate
from pipeline.cycle.config import Cycle, Source
from pipeline.cycle.contents import Contents, read_contents
from pipeline.cycle.delivery import child_of, still_sealed
from pipeline.cycle.job import Ended, Job
from pipeline.ingest.blocklist import BlockList, block, read_block_list
from pipeline.ingest.declared import MANIFEST
from pipeline.ingest.places import place_of
from pipeline.ingest.running import Progress
from pipeline.ingest.selection import Selection, read_decisions, read_selection, selections_of, write_selection
from pipeline.ingest.sources import NoSamples
from pipeline.ingest.store import DEFAULT, Store
from pipeline.ledger.records import record_store
from pipeline.ledger.tables import dump, selection, work
from pipeline.select.draws import draw, keys_of
from pipeline.select.policy import Inputs
from pipeline.stream.batches import named_store

HISTORY = ("curated", "trained", "evaluated", "promoted", "held")  # states of dumps whose images are not new any more
KNOWN = ("dup_exact", "dup_near", "eval_overlap")  # reasons that say that an image is not new
QUOTA = "quota"  # the selection of a store whose source has a share
FEWEST_COPIES = 10  # of one picture, from which on they can be suspicious: in a small dump two copies are a large share
_SECONDS_BETWEEN_LINES = 10


def curate_inputs(job: Job) -> Any:
    source, inputs = job.cycle.source(job.dump.source_id), _inputs(job)
    return {
        "policy": source.chosen_policy.model_dump(mode="json"),
        "reading": source.chosen_reading.model_dump(mode="json"),
        "decoder": DECODER,
        "inputs": inputs.digests,
        "quota": (source.quota, _trained_on(job)) if source.quota else None,
        "suspicious": (source.suspicious_cluster_share, source.suspicious_origin_share),
    }


def curate_dump(job: Job, digest: str) -> Ended:
    source, contents = job.cycle.source(job.dump.source_id), read_contents(job.cycle.root, job.dump.dump_id)
    if not contents.files:
        return Ended("it is empty", state="skipped", reason="it is empty")
    if drifted := still_sealed(source, contents):
        return Ended(drifted, state="drifted", reason=f"{drifted}, after it was sealed")
    place = child_of(source.root, contents.name)
    path = job.cycle.root / "stores" / f"{job.name}-{digest[:6]}"
    try:
        curate(
            place, path, source.chosen_reading, policy=source.chosen_policy, inputs=_inputs(job),
            only=_only(place, contents, job.dump), on_progress=_progress(job.tell),
        )  # fmt: skip
    except NoSamples:
        why = "no image, .tar or .parquet file is in it"
        return Ended(why, state="skipped", reason=why)
    except NothingKept as nothing:
        why = f"{_nothing(nothing.refused)}: {_counted(nothing.refused)}"
        return Ended(why, state="skipped", reason=why)
    if drifted := still_sealed(source, contents):  # while it was read
        return Ended(drifted, state="drifted", reason=f"{drifted}, after it was sealed")
    return _judged(job, source, Store(path))


def _judged(job: Job, source: Source, store: Store) -> Ended:
    """What a store that was made comes to."""
    suspicion = suspicious(store, source)
    manifest, capped = store.manifest, ""
    said = f"{manifest.kept:,} new images of {manifest.seen:,}"
    if source.quota is not None and (room := _room(source, _trained_on(job))) is not None:
        if room <= 0:
            why = f"{source.name} has its share of {source.quota:.0%} of all training images without it"
            return Ended(why, state="skipped", reason=why)
        if room < store.count("train"):
            cut = capped_selection(store, room)
            capped = (
                f"; {cut.splits['train']:,} of its {store.count('train'):,} training images: {source.name} may give "
                f"{source.quota:.0%} of all"
            )
            store = Store(store.path, QUOTA)
    named = str(store.path) if store.selection == DEFAULT else f"{store.path}@{store.selection}"
    if suspicion:  # capped, too: a person may let it go on
        return Ended(
            f"{suspicion}{capped}; see {store.path / 'data_card.html'}", named, "quarantined", suspicion,
            record=lambda connection, work_id: _record(connection, store, job),
        )  # fmt: skip
    refused = f", left out: {_counted(manifest.refused)}" if manifest.refused else ""
    return Ended(
        f"{said}{capped}{refused}", named, "curated",
        f"capped by the quota of {source.name}" if capped else None,
        record=lambda connection, work_id: _record(connection, store, job),
        facts={"seen": manifest.seen, "kept": manifest.kept, "refused": manifest.refused},
    )  # fmt: skip


def _record(connection: Connection, store: Store, job: Job) -> None:
    record_store(connection, store, job.dump.dump_id)


def _inputs(job: Job) -> Inputs:
    """What else decides: what was let in before is not new, and what is judged on is never trained on."""
    source = job.cycle.source(job.dump.source_id)
    evaluation_sets = tuple(dict.fromkeys((*job.cycle.judge_on, *source.eval_sets)))
    for path in evaluation_sets:
        Store(path)  # a ValueError of the configuration
    return Inputs(evaluation_sets, _history(job), listed_pictures(job.cycle)[source.name])


def listed_pictures(cycle: Cycle) -> dict[str, BlockList]:
    """What the block-list of each source names now.

    Raises:
        ValueError: one is not there, or a line of it is no hash.
    """
    files = {source.name: source.block_list for source in cycle.sources}
    for file in filter(None, files.values()):
        if not file.is_file():
            raise ValueError(f"sources.block_list={file}: no such file")
    return {name: read_block_list(file) if file else BlockList() for name, file in files.items()}


def block_listed(job: Job) -> None:
    """Blocks what the sources list now in all stores that were made of them: a takedown works on what was sealed long
    ago, replay included."""
    for source, listed in listed_pictures(job.cycle).items():
        outputs = (
            select(work.c.output)
            .join(dump, dump.c.dump_id == work.c.dump_id)
            .where(work.c.stage == "curate", work.c.state == "done", work.c.output != "", dump.c.source_id == source)
        )
        with job.ledger.reading() as connection:
            names = connection.execute(outputs).scalars().all()
        for name in names:
            try:
                path = named_store(name).path
            except ValueError:  # it is gone, or damaged: nothing is trained on it
                continue
            block(path, listed)


def _history(job: Job) -> tuple:
    """Stores of all other dumps of the cycle whose images are not new any more, oldest first."""
    names = [source.name for source in job.cycle.sources]
    rows = (
        select(work.c.output)
        .join(dump, dump.c.dump_id == work.c.dump_id)
        .where(
            work.c.stage == "curate", work.c.state == "done", work.c.output != "", dump.c.source_id.in_(names),
            dump.c.state.in_(HISTORY), dump.c.dump_id != job.dump.dump_id,
        )
        .order_by(dump.c.admit_no)
    )  # fmt: skip
    with job.ledger.reading() as connection:
        return tuple(named_store(output).path for output in connection.execute(rows).scalars())


def _only(place: str, contents: Contents, row: Row) -> set[str] | None:
    """The files of a dump; with what declares their counts, where it is the whole delivery."""
    if place_of(place)[1]:
        return None  # a single file
    return set(contents.files) | ({MANIFEST} if row.parent_id is None else set())


def _nothing(refused: dict[str, int]) -> str:
    return "no new samples" if all(reason in KNOWN for reason in refused) else "nothing could be kept"


def _counted(refused: dict[str, int], most: int = 4) -> str:
    """As in: 12 dup_exact, 3 blank."""
    reasons = sorted(refused.items(), key=lambda item: -item[1])
    more = f" and {len(reasons) - most} more reasons" if len(reasons) > most else ""
    return ", ".join(f"{count:,} {reason}" for reason, count in reasons[:most]) + more


def _progress(tell: Callable[[str], None]) -> Callable[[Progress], None]:
    last = time.monotonic()

    def show(progress: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            tell(f"  {progress.seen:,} seen, {progress.admitted:,} let in")

    return show


def suspicious(store: Store, source: Source) -> str | None:
    """Why a dump should wait for a person: so much of it is one picture, or comes from one place, that somebody may
    want to teach it to the encoder (or a download failed in a new way)."""
    decisions = read_decisions(store, DEFAULT)
    because = decisions["because"].drop_null().to_numpy()
    if len(because):
        copies = np.bincount(because)
        picture, size = int(copies.argmax()), int(copies.max()) + 1
        share = size / store.manifest.admitted
        if size >= FEWEST_COPIES and share > source.suspicious_cluster_share:
            name = store.column("source")[picture].as_py()
            return (
                f"{size:,} of {store.manifest.admitted:,} pictures ({share:.0%}) are copies of {name}; at most "
                f"suspicious_cluster_share = {source.suspicious_cluster_share:g} go without a person's look"
            )
    origins = store.column("origin").filter(pc.is_null(decisions["reason"]))
    most = max(pc.value_counts(origins).to_pylist(), key=lambda entry: entry["counts"])
    share = most["counts"] / len(origins)
    if share > source.suspicious_origin_share:
        return (
            f"{most['counts']:,} of {len(origins):,} pictures ({share:.0%}) come from {most['values']}; at most "
            f"suspicious_origin_share = {source.suspicious_origin_share:g} go without a person's look"
        )
    return None


def _trained_on(job: Job) -> dict[str, int]:
    """Training images of all other dumps, by source."""
    names = [source.name for source in job.cycle.sources]
    counts = (
        select(dump.c.source_id, func.sum(selection.c.samples))
        .join(selection, selection.c.dump_id == dump.c.dump_id)
        .where(dump.c.source_id.in_(names), dump.c.state.in_(HISTORY), dump.c.dump_id != job.dump.dump_id)
        .group_by(dump.c.source_id)
    )
    with job.ledger.reading() as connection:
        return {source: int(count) for source, count in connection.execute(counts)}


def _room(source: Source, given: dict[str, int]) -> int | None:
    """How many more training images the source may give: with m of them, (own + m) / (all + m) is its quota at most.
    None: no other source has given any."""
    own = given.get(source.name, 0)
    others = sum(given.values()) - own
    if not others or source.quota is None:
        return None
    return int(source.quota / (1 - source.quota) * others) - own


def capped_selection(store: Store, images: int) -> Selection:
    """The selection QUOTA: of the training images that the store's own selection keeps, so many, drawn by their ids."""
    if QUOTA in selections_of(store.path):
        return read_selection(store, QUOTA)  # of an attempt that was killed: by the same inputs
    decisions, base = read_decisions(store, DEFAULT), read_selection(store, DEFAULT)
    reasons = np.array(decisions["reason"].to_pylist(), object)
    train = store.select("train", with_blocked=True)
    ids = store.column("id").take(pa.array(train)).to_pylist()
    reasons[train[np.argsort(draw(0, keys_of(ids), QUOTA), kind="stable")[images:]]] = "over_quota"
    table = decisions.set_column(0, "reason", pa.array(reasons.tolist(), pa.string()))
    return write_selection(
        store.path, QUOTA, store.manifest.index_sha256, store.column("id"), store.column("split"), table,
        based_on=base.digest, policy=base.policy, inputs=base.inputs, notes={"images at most": images},
    )  # fmt: skip
