"""How fast training data comes: our stream against other loaders, from the same photos, at the same work.

Works: (a) decode and one random resized crop of 224; (b) two whole SimCLR views, of which ours leaves the colour to the
device, unless "colour on the CPU" is said; (c) one crop and the 77 tokens of a caption, for CLIP.

MosaicML streaming 0.13 asks for numpy below 2.2, so no environment holds it beside feral. To measure it, put it, what
it needs and such a numpy in a folder of their own, name that in PYTHONPATH, and ask for loaders=feral,image,mosaic.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, astuple, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from jobs.bench import ROOT, Cell, Table
from pipeline.train.fit import KEEP_FREED_MEMORY
from tests.benchmarks.peers import PEERS, Decoding, Work
from tests.benchmarks.stream_case import ALL_CPU, IN_PLACE, OURS, Case, Measured
from tests.benchmarks.stream_data import LITDATA, MOSAIC, write_data

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
LETTERS: dict[str, Work] = {"a": "crop", "b": "simclr", "c": "clip"}
TITLES: dict[Work, str] = {
    "crop": "(a) decode, one crop",
    "simclr": "(b) decode, two SimCLR views",
    "clip": "(c) decode, one crop, tokens of a caption",
}
# Pillow's blur and colour operations are faster than torchvision's on tensors, its decoder and resize slower. Both are
# measured of ImageFolder; other peers get the better one.
BETTER: dict[Work, Decoding] = {"crop": "tensor", "simclr": "pil", "clip": "tensor"}
BOTH = "ImageFolder"
FORMATS = {"LitData": LITDATA, "MosaicML": MOSAIC}  # peers that need a package which may be missing
# Work, our loader, by what the best peer is chosen, the least ratio that is wanted.
TARGETS: list[tuple[Work, str, str, float | None]] = [
    ("crop", "feral", "images/s", 1.5),
    ("crop", IN_PLACE, "images/s", 0.9),
    ("simclr", "feral", "images/CPU-s", 5.0),
    ("simclr", ALL_CPU, "images/CPU-s", 1.5),
    ("simclr", ALL_CPU, "images/s", None),
    ("clip", "feral", "images/s", None),
]
PATIENCE = 300  # seconds that a case may take beyond what it measures


def main(
    source: Path | None = None,
    images: Annotated[int, Field(ge=16)] = 500,
    rounds: Annotated[int, Field(ge=1)] = 3,
    loaders: str = "all",
    work: Annotated[str, Field(pattern="^[abc]+$")] = "abc",
    batch: Annotated[int, Field(ge=8)] = 128,
    seconds: Annotated[float, Field(gt=0)] = 10,
    side: Annotated[int, Field(ge=32, le=4096)] = 500,
    size: Annotated[int, Field(ge=16, le=1024)] = 224,
    cpus: Annotated[int, Field(ge=1)] = CORES,
) -> list[Table]:
    """Images a second and CPU time an image of our stream and of other loaders, at three kinds of work.

    Reads `images` JPEGs of the folder `source`, or as many generated ones `side` pixels wide, again and again for
    `seconds`. loaders=feral,webdataset measures only those whose names begin so.
    """
    works = [LETTERS[letter] for letter in dict.fromkeys(work)]
    chosen = [(name, decoding, one) for one in works for name, decoding in _loaders(one, loaders)]
    with tempfile.TemporaryDirectory(prefix="bench", ignore_cleanup_errors=True) as folder:
        written = write_data(Path(folder), images, side, source, cpus)
        if written.images < 2 * batch:
            raise ValueError(
                f"{written.images} images are too few for batches of {batch}: lower batch, or raise images"
            )
        asked = [
            Case(name, decoding, one, folder, written.images, batch, size, cpus, seconds, began=0)
            for name, decoding, one in chosen
        ]
        missing = {name: written.missing[form] for name, form in FORMATS.items() if form in written.missing}
        cases = [case for case in asked if case.loader not in missing]
        found: dict[Case, list[Measured]] = {case: [] for case in cases}
        failed = {case: missing[case.loader] for case in asked if case.loader in missing}
        for number in range(rounds):
            for case in cases:
                if case not in failed:
                    _measure(case, Path(folder), f"round {number + 1} of {rounds}", found[case], failed)
    medians = {case: median(measured) for case, measured in found.items() if measured and case not in failed}
    note = (
        f"medians of {rounds} rounds, {seconds:g} s each after a warm-up; batches of {batch}, {cpus} CPUs; "
        f"{written.images} JPEGs of {written.photo_bytes / 1000:.0f} KB ({written.dropped} more were dropped by "
        f"curation), in our store {written.stored_bytes / 1000:.0f} KB; peers read the original files' bytes. Memory: "
        "all processes, Ray's too, what they share counted once; stored: of it in Ray's object store"
    )
    tables = [_table(one, [case for case in asked if case.work == one], medians, found, failed, note) for one in works]
    return [*tables, ratios(medians)]


def _loaders(work: Work, wanted: str) -> Iterable[tuple[str, Decoding | None]]:
    """Names of loaders and what decodes in them.

    Raises:
        ValueError: a name that none begins with.
    """
    known = [name for name in (*OURS, *PEERS) if name != ALL_CPU or work == "simclr"]
    starts = [start.strip().lower() for start in wanted.split(",")]
    for start in starts:
        if start != "all" and not any(name.lower().startswith(start) for name in (*OURS, *PEERS)):
            raise ValueError(f"loaders={wanted}: none begins with {start!r}; there are {', '.join((*OURS, *PEERS))}")
    for name in known:
        if "all" in starts or name.lower().startswith(tuple(starts)):
            decodings: tuple[Decoding | None, ...] = (None,) if name in OURS else (BETTER[work],)
            yield from ((name, decoding) for decoding in (("pil", "tensor") if name == BOTH else decodings))


def _measure(case: Case, folder: Path, when: str, found: list[Measured], failed: dict[Case, str]) -> None:
    """Runs a case in a process of its own.

    Raises:
        RuntimeError: it is ours, and failed.
    """
    answer, log = folder / "answer.json", folder / "log"
    answer.unlink(missing_ok=True)
    asked = json.dumps(asdict(replace(case, began=time.time())))
    environment = dict(os.environ) | {"TMPDIR": str(folder)}  # Ray's, too: it goes with the folder
    if case.loader == ALL_CPU:
        environment |= KEEP_FREED_MEMORY  # as a training worker has it
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.stream_case", asked, str(answer)],
            cwd=ROOT, stdout=file, stderr=file, start_new_session=True,
            env=environment,
        )  # fmt: skip
        try:
            process.wait(case.seconds * 3 + PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if answer.exists():
        found.append(Measured(**json.loads(answer.read_text())))
        told = f"{found[-1].per_second:,.0f} images/s, {found[-1].cpu_ms:.2f} CPU-ms an image"
    else:
        lines = log.read_text(errors="replace").strip().splitlines()
        failed[case] = told = f"{lines[-1] if lines else f'status {process.returncode}'}"
        if case.loader in OURS:
            raise RuntimeError(f"{case.name} at {case.work}: " + "\n".join(lines[-30:]))
    print(f"{when}: {case.work}: {case.name}: {told}", file=sys.stderr, flush=True)


def median(measured: list[Measured]) -> Measured:
    """Of each figure."""
    columns = zip(*map(astuple, measured), strict=True)
    figures: list[Any] = [None if None in column else statistics.median(column) for column in columns]
    return Measured(*figures)


def _table(
    work: Work, cases: list[Case], medians: dict[Case, Measured], found: dict[Case, list[Measured]],
    failed: dict[Case, str], note: str,
) -> Table:  # fmt: skip
    rows: list[tuple[Cell, ...]] = []
    for case in cases:
        if case not in medians:
            rows.append((f"{case.name}: {failed[case][:60]}", *[None] * 8))
            continue
        one = medians[case]
        speeds = [each.per_second for each in found[case]]
        spread = (max(speeds) - min(speeds)) / one.per_second * 100 if len(speeds) > 1 else None
        stored = None if one.object_store is None else one.object_store / 2**20
        rows.append(
            (case.name, one.per_second, one.cpu_ms, spread, one.start_seconds, one.first_seconds, one.memory / 2**20,
             stored, f"{one.distinct:.0f}/{case.images}")
        )  # fmt: skip
    columns = ("loader", "images/s", "CPU ms", "spread %", "start s", "first s", "MB", "stored MB", "seen")
    return Table(TITLES[work], columns, rows, note)


def ratios(medians: dict[Case, Measured]) -> Table:
    """Ours over the best peer, beside what is wanted."""
    rows: list[tuple[Cell, ...]] = []
    for work, loader, unit, target in TARGETS:
        speeds = {case: one.per_second if unit == "images/s" else 1000 / one.cpu_ms
                  for case, one in medians.items() if case.work == work}  # fmt: skip
        peers = {case: speed for case, speed in speeds.items() if case.loader in PEERS}
        ours = next((speed for case, speed in speeds.items() if case.loader == loader), None)
        if ours is not None and peers:
            best = max(peers, key=peers.__getitem__)
            ratio = ours / peers[best]
            met = None if target is None else "yes" if ratio >= target else "no"
            rows.append((f"{work}: {loader}", unit, ours, best.name, peers[best], ratio, target, met))
    columns = ("ours", "in", "found", "best peer", "its", "ratio", "wanted", "met")
    return Table("our stream ÷ the best peer", columns, rows, "the best peer in that unit, of all that were measured")
