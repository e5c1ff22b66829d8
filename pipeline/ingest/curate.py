"""Curation: a source of untrusted images becomes a sealed store.

One Ray Data task a unit reads, decodes and writes its own shards; only metadata comes back to the driver, which drops
duplicates, assigns splits, writes the index and seals.
"""

import hashlib
import json
import logging
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipeline.cluster import connected
from pipeline.ingest.decode import Refusal, canonical
from pipeline.ingest.merge import REPORT_SCHEMA, Merged, merged
from pipeline.ingest.samples import Broken, Sample
from pipeline.ingest.sources import Plan, Unit, list_source, read
from pipeline.ingest.store import INDEX, MANIFEST, REFUSED, Manifest, read_manifest
from pipeline.ingest.write import ShardWriter, begin, seal, write_table
from ssl_models.config import Config

MAX_UNITS = 100_000  # five digits of a shard's name


class CurateConfig(Config):
    """What is let into a store, and in which form."""

    side: int = Field(default=288, ge=16, le=4096, description="short side of the stored pictures, at most, in pixels")
    quality: int = Field(default=90, ge=30, le=100, description="JPEG quality of the stored pictures")
    min_side: int = Field(default=8, ge=1, description="pictures with a shorter side are refused, in pixels")
    max_pixels: int = Field(
        default=50_000_000, ge=1, le=89_000_000, description="larger pictures are refused undecoded"
    )
    samples_per_shard: int = Field(default=2000, ge=1, le=100_000, description="samples in a shard, at most")
    holdout: float = Field(default=0.1, ge=0, lt=1, description="share that becomes test if the source names no split")
    image_column: str | None = Field(default=None, description="Parquet column of images; None: the usual names")
    caption_column: str | None = Field(default=None, description="Parquet column of captions; None: the usual names")


@dataclass(frozen=True)
class Progress:
    """How far a curation is. `total` is None where only reading can tell; `sealed_before`: there was nothing to do."""

    kept: int = 0
    refused: int = 0
    total: int | None = None
    sealed_before: bool = False

    @property
    def seen(self) -> int:
        """Samples read so far."""
        return self.kept + self.refused


def curate(
    source: Path,
    store: Path,
    config: CurateConfig,
    on_progress: Callable[[Progress], None] | None = None,
    *,
    overwrite: bool = False,
    address: str | None = None,
) -> Manifest:
    """Curates `source` into a sealed store at `store`; after an interruption, the same call starts it anew.

    Uses the Ray that is connected, else joins the one at `address` or starts one. On several machines, all must see
    both folders at the same paths.

    Raises:
        ValueError: no source, nothing in it that can be kept, or `store` holds something else.
    """
    started = time.perf_counter()
    tell = on_progress or (lambda progress: None)
    source, store = Path(os.path.abspath(source)), Path(os.path.abspath(store))
    places = source.resolve(), store.resolve()
    if any(one == other or one in other.parents for one, other in (places, places[::-1])):
        raise ValueError(f"source {source} and store {store} lie within one another: choose a --to outside the source")
    plan = list_source(source, config.samples_per_shard, config.image_column, config.caption_column)
    if len(plan.units) > MAX_UNITS:
        raise ValueError(f"{source} makes {len(plan.units)} shards, over {MAX_UNITS}: raise --samples-per-shard")
    if (store / MANIFEST).exists() and not overwrite:
        tell(Progress(sealed_before=True))
        return _same(read_manifest(store), source, store, plan, config)
    begin(store, overwrite)
    with connected(address):
        content = merged(_run(plan, store, config, tell), config.holdout)
    write_table(content.refused, store / REFUSED)
    if not content.index.num_rows:
        reasons = dict(Counter(content.refused["reason"].to_pylist()))
        raise ValueError(f"nothing in {source} could be kept; refused: {reasons}. {store / REFUSED} lists all of them")
    manifest = _manifest(content, source, plan, config, write_table(content.index, store / INDEX), started)
    assert manifest.seen == manifest.kept + sum(manifest.refused.values()), manifest
    seal(store, manifest)
    return manifest


def _same(manifest: Manifest, source: Path, store: Path, plan: Plan, config: CurateConfig) -> Manifest:
    """The sealed store's manifest, if curating again would make the same store."""
    differs = [f"{name} {manifest.config.get(name)!r} → {value!r}" for name, value in config.model_dump().items()
               if manifest.config.get(name) != value]  # fmt: skip
    if manifest.source != str(source):
        differs.insert(0, f"source {manifest.source} → {source}")
    elif manifest.listing != plan.listing:
        differs.insert(0, f"files were added to, removed from or changed in {source}")
    if differs:
        raise ValueError(
            f"{store} is sealed already, from something else ({'; '.join(differs)}), and a sealed store never changes: "
            "choose another --to, or replace it with --overwrite"
        )
    return manifest


def _run(plan: Plan, store: Path, config: CurateConfig, tell: Callable[[Progress], None]) -> list[pa.Table]:
    """Runs one task a unit; returns their reports, one row each, in the order in which they came."""
    import ray.data  # here, not above: reading a store needs no Ray
    from ray.exceptions import NodeDiedError, OutOfMemoryError, WorkerCrashedError

    logging.getLogger(ray.data.__name__).setLevel(logging.ERROR)  # its notes would tear a progress line
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = -1  # a large tar may take longer than any timeout
    reports: list[pa.Table] = []
    kept = refused = 0
    with ray.data.DataContext.current(context), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")  # no other way to max_retries in Ray 2.60
        tasks = ray.data.from_items(
            [{"unit": unit.model_dump_json()} for unit in plan.units], override_num_blocks=len(plan.units)
        ).map_batches(
            partial(curate_unit, root=plan.root, store=store, config=config, class_names=plan.class_names),
            batch_size=1,
            batch_format="pyarrow",
            max_retries=2,  # not Ray Data's default, for ever: a picture that kills its process would hang the job
        )
        blocks: Iterator[Any] = iter(tasks.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
        try:
            for block in blocks:
                reports.extend(block.slice(row, 1) for row in range(block.num_rows))
                kept += pc.sum(pc.list_value_length(block["kept"])).as_py()
                refused += pc.sum(pc.list_value_length(block["refused"])).as_py()
                tell(Progress(kept, refused, plan.samples))
        except (WorkerCrashedError, OutOfMemoryError, NodeDiedError) as error:
            finished = {report["unit"][0].as_py() for report in reports}
            suspects = [unit.path or unit.files[0].path for unit in plan.units if unit.number not in finished][:5]
            raise ValueError(
                f"a worker died three times on the same work ({type(error).__name__}), most likely of a file that "
                f"kills the decoder; not finished when it died: what begins at {', '.join(suspects)}. Move the file "
                "away and run the command again"
            ) from error
    assert len(reports) == len(plan.units), (len(reports), len(plan.units))
    return reports


def curate_unit(
    batch: Any, root: Path, store: Path, config: CurateConfig, class_names: dict[str, str]
) -> Iterator[Any]:
    """The task: reads one unit, writes its shards, yields its report (`REPORT_SCHEMA`, one row)."""
    unit = Unit.model_validate_json(batch["unit"][0].as_py())
    kept: list[dict[str, object]] = []
    refused, damaged = [], []
    seen = captions_dropped = 0
    with ShardWriter(store, unit.number, config.samples_per_shard) as writer:
        for seen, found in enumerate(read(unit, root), 1):
            if isinstance(found, Broken):
                damaged.append({"shard": found.source, "saved": len(kept), "why": found.why})
                refused.append({"source": found.source, "reason": found.reason, "detail": found.why})
                continue
            try:
                kept.append(_keep(found, seen - 1, writer, config, class_names))
                captions_dropped += found.captions.dropped
            except Refusal as refusal:
                refused.append({"source": found.source, "reason": refusal.reason, "detail": refusal.detail})
    report = {
        "unit": unit.number,
        "seen": seen,
        "kept": kept,
        "refused": refused,
        "shards": [shard.model_dump() for shard in writer.shards],
        "damaged": damaged,
        "captions_dropped": captions_dropped,
    }
    yield pa.Table.from_pylist([report], schema=REPORT_SCHEMA)


def _keep(
    sample: Sample, position: int, writer: ShardWriter, config: CurateConfig, class_names: dict[str, str]
) -> dict[str, object]:
    """Decodes a sample and appends it to the unit's shard; its row of the report."""
    if isinstance(sample.content, Refusal):
        raise sample.content
    decoded = canonical(
        sample.content, config.side, config.quality, min_side=config.min_side, max_pixels=config.max_pixels
    )
    id_ = hashlib.sha256(sample.content).hexdigest()
    label = class_names.get(sample.label, sample.label) if sample.label is not None else None
    record = {"id": id_, "captions": sample.captions.texts, "label": label, "source": sample.source}
    shard, offset = writer.add(position, decoded.jpeg, sample.captions.texts, record)
    return {
        "id": id_, "shard": shard, "offset": offset, "length": len(decoded.jpeg),
        "width": decoded.width, "height": decoded.height, "captions": sample.captions.texts, "label": label,
        "split": sample.split, "pixels": decoded.pixels, "source": sample.source,
    }  # fmt: skip


def _manifest(
    content: Merged, source: Path, plan: Plan, config: CurateConfig, index_sha256: str, started: float
) -> Manifest:
    index, settings = content.index, config.model_dump()
    refused = Counter(content.refused["reason"].to_pylist())
    splits = Counter(index["split"].to_pylist())
    return Manifest(
        source=str(source),
        listing=plan.listing,
        seen=content.seen,
        kept=index.num_rows,
        refused=dict(sorted(refused.items())),
        captioned=int(np.count_nonzero(pc.list_value_length(index["captions"]))),
        captions_dropped=content.captions_dropped,
        classes=tuple(content.classes),
        splits={"train": splits["train"], "test": splits["test"]},
        shards=tuple(content.shards),
        damaged=(*plan.damaged, *content.damaged),
        config=settings,
        digest=hashlib.sha256((content.content + json.dumps(settings, sort_keys=True)).encode()).hexdigest(),
        index_sha256=index_sha256,
        seconds=round(time.perf_counter() - started, 2),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
