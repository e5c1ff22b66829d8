"""The guarded tar reader: what it groups, what it takes from notes, what it refuses, and what it bounds."""

import gzip
import hashlib
import io
import itertools
import json
import random
import subprocess
import sys
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from pipeline.ingest import tars
from pipeline.ingest.compressed import decompressed
from pipeline.ingest.refusals import Refusal
from pipeline.ingest.samples import Address, Broken, Sample
from pipeline.ingest.tars import read_tar

Make = Callable[..., bytes]
END = bytes(1024)
MB = 2**20


def read(raw: bytes) -> tuple[list[Sample], list[Broken]]:
    found = list(read_tar(io.BytesIO(raw), "some.tar", None))
    return [item for item in found if isinstance(item, Sample)], [item for item in found if isinstance(item, Broken)]


def reasons(samples: list[Sample]) -> list[str]:
    return [sample.content.reason if isinstance(sample.content, Refusal) else "" for sample in samples]


def header(name: str, size: int = 0, **fields: object) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape")


def member(name: str, size: int = 0, **fields: object) -> bytes:
    """One member, header and zero content."""
    return header(name, size, **fields) + bytes(-(-size // 512) * 512)


class Pieces:
    """A stream that can only be read, and gives its pieces as they come."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces

    def read(self, size: int) -> bytes:
        return next(self._pieces, b"")


def pieces(values: Iterator[bytes]) -> BinaryIO:
    return cast(BinaryIO, Pieces(values))


def peak_of(run: Callable[[], object]) -> int:
    """The most bytes that were allocated at a time while `run` ran."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_members_are_grouped_into_samples(tar: Make) -> None:
    notes = json.dumps({"caption": ["a cat", "grey cat"], "label": "cat", "width": 3})
    samples, broken = read(
        tar({
            "./a/0.jpg": b"zero", "./a/0.txt": " a \n cat ", "./a/0.json": notes,
            "b.PNG": b"one", "b.cls": "7\n",
            "._b.png": "resource fork", "a/.hidden.jpg": "hidden",
            "c.webp": b"two", "c.json": "{broken",
            "d.jpg": b"three", "d.json": json.dumps({"label": 3, "class": "three"}), "d.cls": " \n",
            "e.jpg": b"four", "e.json": json.dumps({"label": True, "class": None, "cls": "four"}),
        })
    )  # fmt: skip
    assert not broken
    assert [(s.source, s.content, s.captions.texts, s.label) for s in samples] == [
        ("some.tar#a/0", b"zero", ["a cat", "grey cat"], "cat"),
        ("some.tar#b", b"one", [], "7"),
        ("some.tar#c", b"two", [], None),
        ("some.tar#d", b"three", [], "3"),
        ("some.tar#e", b"four", [], "four"),
    ]


def test_every_image_is_kept_or_refused(tar: Make) -> None:
    samples, broken = read(
        tar({
            "a.mask.png": b"mask", "a.jpg": b"image", "a.left.jpg": b"left",
            "b.pkl": b"cos\nsystem\n", "b.txt": "no image",
            "c.jpg": b"c", "d.jpg": b"d", "c.txt": "too late",
        })
    )  # fmt: skip
    assert not broken
    assert dict(zip([s.source for s in samples], reasons(samples), strict=True)) == {
        "some.tar#a.mask.png": "key_duplicate",
        "some.tar#a.left.jpg": "key_duplicate",
        "some.tar#a": "",
        "some.tar#b": "ext_forbidden",
        "some.tar#c": "key_duplicate",  # the second group of this key
        "some.tar#d": "",
    }
    assert [s.content for s in samples if s.content == b"image"] == [b"image"]


def test_an_image_is_found_again_at_its_address(tar: Make) -> None:
    raw = tar({f"x{'long' * n}.{n}.jpg": bytes([n]) * 70 * n for n in range(1, 41)})
    found = list(read_tar(io.BytesIO(raw), "shown", "test", addressed="a/some.tar"))
    assert len(found) == 40
    for item in found:
        assert isinstance(item, Sample)
        assert isinstance(item.content, bytes)
        assert isinstance(item.address, Address)
        assert (item.address.path, item.split) == ("a/some.tar", "test")
        assert raw[item.address.offset :].startswith(item.content)
    assert all(item.address is None for item in read_tar(io.BytesIO(raw), "", None) if isinstance(item, Sample))


@pytest.mark.parametrize(
    ("notes", "origin", "sha256"),
    [
        ({"url": "https://user@Example.org:80/a.jpg"}, "example.org", None),
        ({"sha256": "AB" * 32, "key": "000", "status": "success"}, None, "ab" * 32),
        ({"sha256": "ab" * 32, "original_width": None}, None, "ab" * 32),
        ({"sha256": "ab" * 32, "original_width": 400}, None, None),  # encoded anew: the digest is of other bytes
        ({"sha256": "zz" * 32, "url": ["no text"]}, None, None),
        ([1, 2], None, None),
    ],
)
def test_notes_tell_origin_and_digest(tar: Make, notes: object, origin: str | None, sha256: str | None) -> None:
    samples, _ = read(tar({"a.jpg": b"a", "a.json": json.dumps(notes)}))
    assert [(s.content, s.origin, s.sha256) for s in samples] == [(b"a", origin, sha256)]


@pytest.mark.parametrize(
    "name",
    ["white space's (1)+,@=&~#!", "_leading", "größe/ж/猫", "cafe\u0301", "50%[x]{y};z$", "😀", "a" * 251],
)
def test_a_name_that_is_never_a_path_may_be_any_text(tar: Make, name: str) -> None:
    samples, broken = read(tar({f"{name}.jpg": b"data"}))
    assert not broken
    assert [(s.source, s.content) for s in samples] == [(f"some.tar#{name}", b"data")]


@pytest.mark.parametrize(
    ("hostile", "reason"),
    [
        (member("/etc/x.jpg", 4), "key_invalid"),
        (member("../x.jpg", 4), "key_invalid"),
        (member("a/../x.jpg", 4), "key_invalid"),
        (member("a//x.jpg", 4), "key_invalid"),
        (member("-x.jpg", 4), "key_invalid"),
        (member("a\\x.jpg", 4), "key_invalid"),
        (member("\u202egpj.x.jpg", 4), "key_invalid"),
        (member("\udcff.jpg", 4), "key_invalid"),
        (member("esc\x1b[2Jape.jpg", 4), "key_invalid"),
        (member("a" * 300 + ".jpg", 4), "key_invalid"),
        (member("ж" * 130 + ".jpg", 4), "key_invalid"),
        (member("", 4), "key_invalid"),
        (member("x.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "tar_nonregular"),
        (member("x.jpg", type=tarfile.LNKTYPE, linkname="good0.jpg"), "tar_nonregular"),
        (member("x", type=tarfile.CHRTYPE), "tar_nonregular"),
        (member("x.jpg", type=tarfile.FIFOTYPE), "tar_nonregular"),
        (member("x.jpg", type=b"?"), "tar_nonregular"),
        (member("x.jpg", 65 * MB), "tar_member_too_big"),
    ],
)
def test_h19_a_hostile_member_costs_one_sample(hostile: bytes, reason: str) -> None:
    samples, broken = read(member("good0.jpg", 4) + hostile + member("good1.jpg", 4) + END)
    assert not broken
    assert reasons(samples) == ["", reason, ""]
    assert samples[1].source.isprintable()


def test_folders_labels_and_global_headers_are_no_samples() -> None:
    info = tarfile.TarInfo("x")
    notes = info.create_pax_global_header({"comment": "path=evil"})
    raw = member("a", type=tarfile.DIRTYPE) + notes + member("label", type=b"V") + member("a/x.jpg", 4, type=b"7")
    samples, broken = read(raw + END)
    assert not broken
    assert [s.source for s in samples] == ["some.tar#a/x"]


def test_an_unreadable_extended_header_is_damage_and_costs_no_picture() -> None:
    info = tarfile.TarInfo("x.jpg")
    info.pax_headers = {"path": "other/x.jpg"}
    raw = info.tobuf(tarfile.PAX_FORMAT)
    samples, broken = read(raw.replace(b" path=", b" ..th=", 1) + END)
    assert (reasons(samples), broken) == ([""], [])  # an unknown key
    samples, broken = read(raw.replace(b"20 path=", b"99 path=", 1) + END)
    assert reasons(samples) == [""]
    assert [item.reason for item in broken] == ["tar_header_bad"]
    assert "extended header at byte 0" in broken[0].why


def test_h18_a_sparse_member_is_refused_without_being_read() -> None:
    info = tarfile.TarInfo("x.jpg")
    info.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "x.jpg",
                        "GNU.sparse.map": "0,0,419430400,0", "GNU.sparse.size": "419430400"}  # fmt: skip
    old = bytearray(member("y.jpg", type=tarfile.GNUTYPE_SPARSE))
    old[482], old[483:495] = 1, b"03100000000\0"  # an extended map; 400 MB
    old[148:156] = b"%06o\0 " % (sum(old[:148]) + 256 + sum(old[156:512]))
    extended = bytes(504) + b"\1" + bytes(7) + bytes(512)
    raw = member("a.jpg", 4) + info.tobuf(tarfile.PAX_FORMAT) + bytes(old) + extended + member("z.jpg", 4) + END
    found: list[Sample] = []
    assert peak_of(lambda: found.extend(read(raw)[0])) < 4 * MB
    assert reasons(found) == ["", "tar_sparse", "tar_sparse", ""]
    assert not read(raw)[1]


def test_h18_a_giant_member_is_read_through_in_little_memory() -> None:
    def giant(claimed: int, given: int) -> Iterator[bytes]:
        yield member("a.jpg", 4) + header("b.jpg", claimed)
        yield from (bytes(MB) for _ in range(given // MB))
        yield member("c.jpg", 4) + END

    found: list[Sample | Broken] = []
    assert peak_of(lambda: found.extend(read_tar(pieces(giant(200 * MB, 200 * MB)), "x", None))) < 8 * MB
    assert reasons([item for item in found if isinstance(item, Sample)]) == ["", "tar_member_too_big", ""]
    found.clear()
    assert peak_of(lambda: found.extend(read_tar(pieces(giant(2**60, 20 * MB)), "x", None))) < 8 * MB
    assert [item.reason for item in found if isinstance(item, Broken)] == ["tar_truncated"]


MANY = """
import resource
from tests.pipeline.ingest.test_tars import member, pieces
from pipeline.ingest.tars import read_tar

pattern = member("000000.jpg", 4)
base = sum(pattern[:148]) + 256 + sum(pattern[156:512]) - 6 * ord("0")

def members(count):
    for number in range(count):
        digits = b"%06d" % number
        yield digits + pattern[6:148] + b"%06o\\0 " % (base + sum(digits)) + pattern[156:]
    yield bytes(1024)

def peak(count):
    assert sum(isinstance(item.content, bytes) for item in read_tar(pieces(members(count)), "x", None)) == count
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

print(-peak(100) + peak(100_000))
"""


def test_h18_a_hundred_thousand_members_take_little_memory() -> None:
    """In a process of its own: tracing each allocation would take long."""
    run = subprocess.run([sys.executable, "-c", MANY], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 24 * 1024  # KB


def test_h18_members_over_the_limit_are_not_read(tar: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tars, "MAX_MEMBERS", 5)
    samples, broken = read(tar({f"{number}.jpg": b"x" for number in range(9)}))
    assert len(samples) == 5
    assert [item.reason for item in broken] == ["tar_too_many_members"]


def test_h18_a_header_that_announces_gigabytes_is_not_read() -> None:
    giant = header("long", 2**31, type=tarfile.GNUTYPE_LONGNAME)
    samples, broken = read(member("a.jpg", 4) + giant + bytes(4096) + member("b.jpg", 4) + END)
    assert reasons(samples) == ["", ""]
    assert len(broken) == 1
    assert "2147483648" in broken[0].why


def test_a_chain_of_headers_does_not_exhaust_the_stack() -> None:
    chain = member("long", 4, type=tarfile.GNUTYPE_LONGNAME) * 3000
    samples, broken = read(member("good.jpg", 4) + chain + END)
    assert reasons(samples) == [""]
    assert len(broken) == 1
    assert "has no member" in broken[0].why


def test_oversized_texts_are_dropped_and_counted_and_their_image_kept(tar: Make) -> None:
    samples, _ = read(tar({"a.jpg": b"a", "a.txt": "x" * 9000, "a.json": "[" * 2**20 + "]", "a.cls": "y" * 2000}))
    assert reasons(samples) == [""]
    assert (samples[0].captions, samples[0].label) == (([], 2), None)


def test_deeply_nested_json_is_no_caption(tar: Make) -> None:
    samples, broken = read(tar({"a.jpg": b"a", "a.json": "[" * 100_000}))
    assert not broken
    assert samples[0].captions == ([], 0)


LONG = "/".join(["folder" * 10] * 3) + "/x"
NAMES = ["a", "ü/b", "n" * 90, "n" * 150, LONG, LONG + "y"]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_dialect_is_read_in_any_pieces(format: int) -> None:
    buffer = io.BytesIO()
    names = [name for name in NAMES if format != tarfile.USTAR_FORMAT or len(name) != 150]  # ustar splits at a /
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for name in names:
            info = tarfile.TarInfo(name + ".jpg")
            info.size, info.mtime = len(name) * 9, 1.5
            archive.addfile(info, io.BytesIO(name.encode() * 9))
    raw, chance = buffer.getvalue(), random.Random(0)
    cuts = sorted({0, len(raw), *(chance.randrange(len(raw)) for _ in range(60))})
    for file in (io.BytesIO(raw), pieces(raw[a:b] for a, b in itertools.pairwise(cuts))):
        found = list(read_tar(file, "some.tar", None))
        assert [item.source for item in found] == [f"some.tar#{name}" for name in names]
        sizes = [len(item.content) for item in found if isinstance(item, Sample) and isinstance(item.content, bytes)]
        assert sizes == [len(name) * 9 for name in names]


@pytest.mark.parametrize("format", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_tars_of_the_tar_program_are_read(tmp_path: Path, format: str) -> None:
    contents = {}
    for name in NAMES[:3] if format in ("v7", "ustar") else NAMES:  # the longest name that fits there
        path = tmp_path / "in" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 100)
        contents[f"t#{name}"] = name.encode() * 100
    run = ["tar", f"--format={format}", "-C", str(tmp_path / "in"), "-cf", str(tmp_path / "t"), "."]
    try:
        subprocess.run(run, check=True, capture_output=True, env={"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"})
    except FileNotFoundError:
        pytest.skip("no tar program")
    with (tmp_path / "t").open("rb") as file:
        found = list(read_tar(file, "t", None))
    assert {item.source: item.content for item in found if isinstance(item, Sample)} == contents
    assert len(found) == len(contents)


def test_a_read_error_ends_the_tar_and_keeps_what_came_before(tar: Make) -> None:
    raw = tar({f"{number}.jpg": bytes([number]) * 1000 for number in range(10)})

    def failing() -> Iterator[bytes]:
        yield raw[:4000]
        raise OSError("connection reset")

    found = list(read_tar(pieces(failing()), "x", None))
    assert [type(item) for item in found] == [Sample, Sample, Sample, Broken]
    assert isinstance(found[-1], Broken)
    assert "connection reset" in found[-1].why


def test_a_compressed_tar_has_no_addresses_but_the_same_samples(tar: Make) -> None:
    raw = tar({f"{number}.jpg": hashlib.sha256(b"%d" % number).digest() * 40 for number in range(10)})
    plain, _ = read(raw)
    packed = decompressed(io.BytesIO(gzip.compress(raw)), "some.tar.gz")
    assert list(read_tar(packed, "some.tar", None)) == plain
