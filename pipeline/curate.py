"""Curation: a source of untrusted images becomes a sealed store, with a selection of what a policy keeps of it.

Ray Data runs one task a unit; a task leaves its shards and a sidecar, and only counts come back to the driver, which
joins the sidecars to the index, applies the policy and seals. A unit that is done is done: a killed curation goes on
from there.
"""

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import __version__ as pillow_version
from PIL import features

from pipeline.cluster import connected, refuse_unsafe_settings
from pipeline.ingest.blocklist import block
from pipeline.ingest.config import CurateConfig
from pipeline.ingest.index import Indexed, build_index
from pipeline.ingest.running import MAX_ATTEMPTS, Progress, Tell, Watch, run_units
from pipeline.ingest.selection import DECISIONS, Selection
from pipeline.ingest.sources import Plan, Unit, list_source
from pipeline.ingest.store import (
    DATA_CARD,
    DEFAULT,
    INDEX,
    MANIFEST,
    REFUSED,
    SELECTIONS,
    Manifest,
    Store,
    read_manifest,
)
from pipeline.ingest.task import attempts_file, curate_unit, leave_quarantined
from pipeline.ingest.write import begin, seal
from pipeline.lock import locked
from pipeline.report.data_card import write_data_card
from pipeline.select.policy import PRESETS, Inputs, Policy
from pipeline.select.selecting import select_new

MAX_UNITS = 100_000  # five digits of a shard's name
MAX_IDLE = 3  # failures of the whole without any progress
DECODER = {"pillow": pillow_version, "libjpeg": features.version("libjpeg_turbo") or features.version("jpg")}
CLEAN = PRESETS["clean"][0]


class NothingKept(ValueError):
    """Every sample of a source was refused; `refused` counts them by reason."""

    def __init__(self, said: str, refused: dict[str, int]) -> None:
        super().__init__(said)
        self.refused = refused


def curate(
    source: str | Path,
    store: Path,
    config: CurateConfig = CurateConfig(),
    *,
    policy: Policy = CLEAN,
    inputs: Inputs | None = None,
    on_progress: Tell | None = None,
    overwrite: bool = False,
    only: Collection[str] | None = None,
    address: str | None = None,
) -> Manifest:
    """Curates `source` (a folder, file or URI) into a sealed store at `store`.

    After an interruption, the same call goes on from the units that were finished. A sealed store that the same call
    would make again is left alone. Uses the Ray that is connected, else joins the one at `address` or starts one; on
    several machines, all must see the store, and a local source, at the same path.

    Args:
        only: paths in the source; all others are as if they were not there.

    Raises:
        NoSamples: nothing in the source could be a sample.
        NothingKept: nothing in it can be kept.
        ValueError: no source, `store` holds something else, or another command curates into it.
    """
    refuse_unsafe_settings()
    tell, inputs = on_progress or (lambda progress: None), inputs or Inputs()
    store, stages = Path(os.path.abspath(store)), _Stages()
    with stages("list"):
        plan = list_source(
            source, config.samples_per_shard, image_column=config.image_column, caption_column=config.caption_column,
            compressed=config.compressed, in_place=config.in_place, only=only,
        )  # fmt: skip
        _check_apart(source, store)
    if len(plan.units) > MAX_UNITS:
        raise ValueError(
            f"{source} makes {len(plan.units)} shards, over {MAX_UNITS}: raise samples_per_shard="
            f"{config.samples_per_shard}, or curate it in parts"
        )
    settings = {**config.model_dump(), "decoder": DECODER}
    if (store / MANIFEST).exists() and not overwrite:
        manifest = _same(read_manifest(store), store, plan, config, policy, inputs)
        if not (store / DATA_CARD).exists():  # killed between seal and card
            write_data_card(Store(store), DEFAULT)
        tell(Progress(sealed_before=True))
        return manifest
    digest = _digest(plan.listing, settings, inputs.block_list.digest)
    with locked(store, "the store"):
        begin(store, digest, overwrite)
        with stages("read and decode"):
            progress = _read_and_decode(plan, digest, store, config, inputs, address, tell)
        with stages("index"):
            tell(replace(progress, stage="indexing"))
            indexed = build_index(store, len(plan.units), holdout=config.holdout, in_place=config.in_place)
            if indexed.held_out_by:
                settings["held_out_by"] = indexed.held_out_by
        with stages("select"):
            tell(replace(progress, stage="selecting"))
            selection = select_new(store, policy, inputs, indexed.classes)
        _check_not_empty(plan.root.shown, store, indexed, selection)
        block(store, inputs.block_list)
        manifest = _manifest(plan, indexed, selection, settings, policy, inputs, store, stages.seconds)
        assert manifest.seen == manifest.kept + sum(manifest.refused.values()), manifest
        assert manifest.declared is None or manifest.lost == manifest.declared - manifest.seen, manifest
        seal(store, manifest)
        write_data_card(Store(store), DEFAULT)
    tell(replace(progress, stage="done"))
    return manifest


class _Stages:
    """Wall clock of each stage, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - began, 3)


def _check_apart(source: str | Path, store: Path) -> None:
    if "://" in str(source):
        return
    places = Path(source).resolve(), store.resolve()
    if any(one == other or one in other.parents for one, other in (places, places[::-1])):
        raise ValueError(f"source {source} and store {store} lie within one another: choose a --to outside the source")


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _same(
    manifest: Manifest, store: Path, plan: Plan, config: CurateConfig, policy: Policy, inputs: Inputs
) -> Manifest:
    """The sealed store's manifest, if curating again would make the same store."""
    now = {**config.model_dump(mode="json"), **policy.model_dump(mode="json")}
    then = {**manifest.config, **manifest.policy}
    differs = [f"{name} {then.get(name)!r} → {value!r}" for name, value in now.items() if then.get(name) != value]
    inputs_then = {name: digest for name, digest in manifest.inputs.items() if name != "block-list"}
    inputs_now = {name: digest for name, digest in inputs.digests.items() if name != "block-list"}
    if inputs_then != inputs_now:
        differs.append("other evaluation sets or history")
    if manifest.source != plan.root.shown:
        differs.insert(0, f"source {manifest.source} → {plan.root.shown}")
    elif manifest.listing != plan.listing:
        differs.insert(0, f"files were added to, removed from or changed in {plan.root.shown}")
    if differs:
        raise ValueError(
            f"{store} is sealed already, from something else ({'; '.join(differs)}), and a sealed store never changes: "
            "choose another --to, replace it with --overwrite, or, for another policy only, use `feral select`"
        )
    block(store, inputs.block_list)
    return manifest


def _read_and_decode(
    plan: Plan, digest: str, store: Path, config: CurateConfig, inputs: Inputs, address: str | None, tell: Tell
) -> Progress:
    """Runs every unit that is not done yet. A unit that keeps killing its workers is quarantined, and costs itself."""
    task = partial(curate_unit, plan=digest, root=plan.root, store=store, config=config, class_names=plan.class_names,
                   blocked=inputs.block_list)  # fmt: skip
    watch = Watch(store, plan, digest, tell)
    if not watch.pending:
        return watch.progress
    with connected(address):
        idle = 0  # failures in a row that neither finished a unit nor showed which one is to blame
        while pending := watch.pending:
            for unit in pending:  # counted within one execution: a unit may die beside several killers
                attempts_file(store, unit.number).unlink(missing_ok=True)
            error = run_units(pending, task, watch)
            if error is None:
                break
            for unit in watch.pending:
                if _attempts(store, unit) >= MAX_ATTEMPTS:
                    leave_quarantined(store, digest, unit, f"it killed {MAX_ATTEMPTS} workers ({type(error).__name__})")
            idle = 0 if len(watch.pending) < len(pending) else idle + 1
            if idle == MAX_IDLE:
                raise ValueError(f"workers die of no unit in particular ({error}): run the command again") from error
    assert not watch.pending, watch.pending
    return watch.progress


def _attempts(store: Path, unit: Unit) -> int:
    path = attempts_file(store, unit.number)
    return path.stat().st_size if path.exists() else 0


def _check_not_empty(source: str, store: Path, indexed: Indexed, selection: Selection) -> None:
    if selection.kept:
        return
    reasons = dict(indexed.refused + Counter(selection.dropped))
    way = "another --policy may keep some" if indexed.admitted else f"{store / REFUSED} lists every file"
    raise NothingKept(f"nothing in {source} could be kept; refused: {reasons}; {way}", reasons)


def _manifest(
    plan: Plan, indexed: Indexed, selection: Selection, settings: dict[str, Any], policy: Policy, inputs: Inputs,
    store: Path, seconds: dict[str, float],
) -> Manifest:  # fmt: skip
    missing = sum(damage.lost or 0 for damage in plan.damaged)  # declared, and not even there to be read
    captions = pq.read_table(store / INDEX, columns=["captions"])["captions"]
    kept = pc.is_null(pq.read_table(store / SELECTIONS / DEFAULT / DECISIONS)["reason"])
    return Manifest(
        source=plan.root.shown,
        in_place=settings["in_place"],
        listing=plan.listing,
        declared=None if plan.declared is None or indexed.declared is None else indexed.declared + missing,
        seen=indexed.seen,
        lost=indexed.lost + missing,
        admitted=indexed.admitted,
        kept=selection.kept,
        refused=dict(sorted((indexed.refused + Counter(selection.dropped)).items())),
        captioned=pc.sum(pc.and_(kept, pc.greater(pc.list_value_length(captions), 0))).as_py() or 0,
        captions_dropped=indexed.captions_dropped,
        classes=indexed.classes,
        splits=selection.splits,
        shards=indexed.shards,
        files=indexed.files,
        damaged=(*plan.damaged, *indexed.damaged),
        config=settings,
        policy=policy.model_dump(mode="json"),
        inputs=inputs.digests,
        digest=_digest(indexed.content, settings),
        selection=selection.digest,
        index_sha256=indexed.index_sha256,
        seconds=seconds | {f"tasks: {name}": round(value, 3) for name, value in indexed.task_seconds.items()},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
