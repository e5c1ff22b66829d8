"""One unit of a curation: reads a part of the source, decodes in a guarded child, writes its shards and its sidecar.

A unit leaves, below STORE/units/: 00012.parquet (what was admitted), 00012.refused.parquet, and last 00012.json, the
report that says it is done. A unit that is done is never done again, whatever happens to the rest.
"""

import hashlib
import json
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.cluster import refuse_unsafe_settings
from pipeline.ingest.blocklist import BlockList
from pipeline.ingest.config import CurateConfig
from pipeline.ingest.guard import Decoded, DecodeLimits, GuardedDecoder, decode_with
from pipeline.ingest.language import language_of
from pipeline.ingest.places import Place
from pipeline.ingest.refusals import Refusal
from pipeline.ingest.samples import Broken, Sample
from pipeline.ingest.sources import Unit, read
from pipeline.ingest.store import MEASURED, REFUSED_SCHEMA, SHARDS, Damage, SealedFile
from pipeline.ingest.write import UNITS, ShardWriter, Sidecar, replaced
from ssl_models.config import Config

_PAUSES = (1.0, 10.0)  # seconds before a unit is read again after its storage failed
TOLD_EVERY = 500  # samples between two words about progress; a count and no time, so that a repeated task says the same
ADMITTED = pa.schema(
    [
        ("id", pa.string()), ("file", pa.string()), ("offset", pa.int64()), ("length", pa.int32()),
        ("checksum", pa.uint32()), ("width", pa.int32()), ("height", pa.int32()),
        ("captions", pa.list_(pa.string())), ("label", pa.string()), ("split", pa.string()), ("pixels", pa.string()),
        ("source", pa.string()), *MEASURED,
    ]
)  # fmt: skip


class UnitReport(Config):
    """What a unit has to say when it is done."""

    plan: str = ""  # digest of what was asked for; an earlier version told none
    unit: int
    name: str  # what it read, for a person
    declared: int | None
    seen: int
    admitted: int
    refused: dict[str, int]
    shards: tuple[SealedFile, ...]
    damaged: tuple[Damage, ...]
    captions_dropped: int
    labels: tuple[str, ...]
    splits_told: bool
    content: str  # sha256 over (id, split, label, captions) of what was admitted, in order
    seconds: dict[str, float]  # wall clock in this task: read, decode (waiting for the child), write


PROGRESS = pa.schema([("unit", pa.int64()), ("seen", pa.int64()), ("admitted", pa.int64()), ("refused", pa.string())])


def report_file(store: Path, unit: int) -> Path:
    """Where a unit says that it is done."""
    return store / UNITS / f"{unit:05d}.json"


def report_of(store: Path, plan: str, unit: int) -> UnitReport | None:
    """What a unit of this plan has said; None while it is not done. A task of another plan, whose driver was killed,
    may live on for a while."""
    path = report_file(store, unit)
    report = UnitReport.model_validate_json(path.read_bytes()) if path.exists() else None
    return report if report and report.plan == plan else None


def attempts_file(store: Path, unit: int) -> Path:
    """One byte an attempt at the unit in this execution: what tells one that kills its workers from one that died
    beside it."""
    return store / UNITS / f"{unit:05d}.attempts"


def curate_unit(
    batch: pa.Table, plan: str, root: Place, store: Path, config: CurateConfig, class_names: dict[str, str],
    blocked: BlockList, decoders: int = 1,
) -> Iterator[pa.Table]:  # fmt: skip
    """The task. Yields how far it is (`PROGRESS`, one row, cumulative) now and then, and at its end.

    Raises:
        ConnectionError: the source's storage failed, again and again; the file itself may be good.
    """
    refuse_unsafe_settings()  # this process is another than the driver's
    unit = Unit.model_validate_json(batch["unit"][0].as_py())
    with attempts_file(store, unit.number).open("ab") as attempts:
        attempts.write(b".")
    for pause in (*_PAUSES, None):
        try:
            yield from _curated(unit, plan, root, store, config, class_names, blocked, decoders)
            return
        except ConnectionError:
            if pause is None:
                raise
            time.sleep(pause)


def _curated(
    unit: Unit, plan: str, root: Place, store: Path, config: CurateConfig, class_names: dict[str, str],
    blocked: BlockList, decoders: int,
) -> Iterator[pa.Table]:  # fmt: skip
    base = store / UNITS / f"{unit.number:05d}"
    with (
        ShardWriter(store, unit.number, config.samples_per_shard) as shards,
        Sidecar(base.with_suffix(".parquet"), ADMITTED) as kept,
        Sidecar(base.with_suffix(".refused.parquet"), REFUSED_SCHEMA) as left_out,
    ):
        work = _UnitWork(decoders, unit, root, config, class_names, blocked, shards, kept, left_out)
        yield from work.run()
        for output in (shards, kept, left_out):
            output.close()
        with replaced(report_file(store, unit.number)) as file:
            file.write(work.report(plan).model_dump_json().encode())


def leave_quarantined(store: Path, plan: str, unit: Unit, why: str) -> None:
    """Ends a unit that cannot be run: nothing of it is let in, and the report says so."""
    for shard in (store / SHARDS).glob(f"{unit.number:05d}*.tar"):  # finished before it died
        shard.unlink()
    base = store / UNITS / f"{unit.number:05d}"
    with Sidecar(base.with_suffix(".parquet"), ADMITTED) as kept:
        kept.close()
    with Sidecar(base.with_suffix(".refused.parquet"), REFUSED_SCHEMA) as left_out:
        left_out.close()
    damage = Damage(shard=_name(unit), reason="quarantined", saved=0, lost=unit.declared, why=why)
    report = UnitReport(
        plan=plan, unit=unit.number, name=_name(unit), declared=unit.declared, seen=0, admitted=0, refused={},
        shards=(), damaged=(damage,), captions_dropped=0, labels=(), splits_told=False, content="", seconds={},
    )  # fmt: skip
    with replaced(report_file(store, unit.number)) as file:
        file.write(report.model_dump_json().encode())


_idle: list[GuardedDecoder] = []  # their children outlive a unit, and end with this process


def _decoders(limits: DecodeLimits, count: int) -> list[GuardedDecoder]:
    """This process's decoders: starting children for every unit would cost small units a third of their time."""
    if _idle and _idle[0].limits != limits:
        for decoder in _idle:
            decoder.close()
        _idle.clear()
    _idle.extend(GuardedDecoder(limits) for _ in range(count - len(_idle)))
    return _idle[:count]


@dataclass
class _Seen:
    """A sample on its way through the decoder."""

    sample: Sample
    id: str
    position: int


@dataclass
class _UnitWork:
    decoders: int
    unit: Unit
    root: Place
    config: CurateConfig
    class_names: dict[str, str]
    blocked: BlockList
    shards: ShardWriter
    kept: Sidecar
    left_out: Sidecar
    seen: int = 0
    readable: int = 0
    admitted: int = 0
    captions_dropped: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    damaged: list[Damage] = field(default_factory=list)
    labels: set[str] = field(default_factory=set)
    splits_told: bool = False
    content: Any = field(default_factory=hashlib.sha256)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def run(self) -> Iterator[pa.Table]:
        """Does the work; yields progress."""
        config, told, began = self.config, 0, time.perf_counter()
        limits = DecodeLimits(
            side=config.side, quality=config.quality, min_side=config.decode_min_side, max_pixels=config.max_pixels,
            encode=not config.in_place, seconds=config.decode_seconds, memory_bytes=config.decode_memory_bytes,
        )  # fmt: skip
        for item, raw, result in decode_with(_decoders(limits, self.decoders), self._readable()):
            if isinstance(result, Refusal):
                self._refuse(item.sample.source, result)
            else:
                self._admit(item, raw, result)
            if self.seen - told >= TOLD_EVERY:
                told = self.seen
                yield self._progress()
        waited = time.perf_counter() - began - self.seconds["read"] - self.seconds["write"]
        self.seconds["decode"] = waited
        yield self._progress()

    def report(self, plan: str) -> UnitReport:
        """What there is to say in the end."""
        return UnitReport(
            plan=plan,
            unit=self.unit.number,
            name=_name(self.unit),
            declared=self.unit.declared,
            seen=self.seen,
            admitted=self.admitted,
            refused=dict(sorted(self.refused.items())),
            shards=tuple(self.shards.shards),
            damaged=tuple(self.damaged),
            captions_dropped=self.captions_dropped,
            labels=tuple(sorted(self.labels)),
            splits_told=self.splits_told,
            content=self.content.hexdigest(),
            seconds={name: round(value, 3) for name, value in self.seconds.items()},
        )

    def _readable(self) -> Iterator[tuple[_Seen, bytes]]:
        """The samples whose bytes could be read; the others are refused here, and damage is noted."""
        source = iter(read(self.unit, self.root))
        while True:
            began = time.perf_counter()
            found = next(source, None)
            if found is None:
                return
            if isinstance(found, Broken):
                self.damaged.append(
                    Damage(shard=found.source, reason=found.reason, saved=self.readable, lost=found.lost, why=found.why)
                )
                continue
            self.seen += 1
            item = None
            try:
                item = self._identified(found)
            except Refusal as refusal:
                self._refuse(found.source, refusal)
            self.seconds["read"] += time.perf_counter() - began
            if item is not None:
                assert isinstance(found.content, bytes)
                yield item, found.content

    def _identified(self, sample: Sample) -> _Seen:
        if isinstance(sample.content, Refusal):
            raise sample.content
        id_ = hashlib.sha256(sample.content).hexdigest()
        if sample.sha256 is not None and sample.sha256 != id_:
            raise Refusal("hash_mismatch", f"its sha256 is {id_}, but the source declares {sample.sha256}")
        if id_ in self.blocked.ids:
            raise Refusal("blocklisted", "its sha256 is on the block-list")
        self.readable += 1
        # without its bytes, which would pile up behind the decoder
        return _Seen(replace(sample, content=b""), id_, self.seen - 1)

    def _refuse(self, source: str, refusal: Refusal) -> None:
        self.refused[refusal.reason] += 1
        self.left_out.add({"source": source, "reason": refusal.reason, "detail": refusal.detail})

    def _admit(self, item: _Seen, raw: bytes, decoded: Decoded) -> None:
        began = time.perf_counter()
        sample, measures = item.sample, decoded.measures
        if self.blocked.near(measures.phash):
            return self._refuse(sample.source, Refusal("blocklisted", "its perceptual hash is near to a blocked one"))
        label = self.class_names.get(sample.label, sample.label) if sample.label is not None else None
        texts = sample.captions.texts
        if self.config.in_place:
            assert sample.address is not None, sample.source  # the listing refuses sources without addresses
            stored, (file, offset) = raw, sample.address
        else:
            record = {"id": item.id, "captions": texts, "label": label, "source": sample.source}
            stored = decoded.jpeg
            file, offset = self.shards.add(item.position, stored, texts, record)
        self.content.update(json.dumps([item.id, sample.split, label, texts]).encode() + b"\n")
        self.kept.add({
            "id": item.id, "file": file, "offset": offset, "length": len(stored), "checksum": zlib.crc32(stored),
            "width": decoded.width, "height": decoded.height, "captions": texts, "label": label, "split": sample.split,
            "pixels": decoded.pixels, "source": sample.source, "original_width": decoded.original_width,
            "original_height": decoded.original_height, "bytes": len(raw), "format": decoded.format,
            "flags": list(decoded.flags), "mean": measures.mean, "std": measures.std, "entropy": measures.entropy,
            "sharpness": measures.sharpness, "phash": measures.phash, "thumb": measures.thumb,
            "languages": [language_of(text)[0] for text in texts],
            "origin": sample.origin or self._holder(sample.source),
        })  # fmt: skip
        self.admitted += 1
        self.captions_dropped += sample.captions.dropped
        self.splits_told |= sample.split is not None
        if label is not None:
            self.labels.add(label)
        self.seconds["write"] += time.perf_counter() - began
        return None

    def _holder(self, source: str) -> str:
        """The container of a sample, or the folder of a file."""
        return self.unit.path or source.rpartition("/")[0] or "."

    def _progress(self) -> pa.Table:
        row = {"unit": self.unit.number, "seen": self.seen, "admitted": self.admitted,
               "refused": json.dumps(self.refused)}  # fmt: skip
        return pa.Table.from_pylist([row], schema=PROGRESS)


def _name(unit: Unit) -> str:
    """What a unit reads, for a person."""
    return unit.path or (
        unit.files[0].path if len(unit.files) == 1 else f"{unit.files[0].path} … {unit.files[-1].path}"
    )
