"""The guarded tar reader: what it groups, what it bounds, and that no damage goes unnoticed."""

import io
import json
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.ingest.decode import Refusal
from pipeline.ingest.samples import Broken, Sample
from pipeline.ingest.tars import read_tar

Make = Callable[..., bytes]


def read(path: Path, raw: bytes) -> tuple[list[Sample], Broken | None]:
    path = path / "some.tar"
    path.write_bytes(raw)
    found = list(read_tar(path, "some.tar", None))
    broken = [item for item in found if isinstance(item, Broken)]
    assert len(broken) <= 1
    assert not broken or found[-1] is broken[0]
    return [item for item in found if isinstance(item, Sample)], broken[0] if broken else None


def reasons(samples: list[Sample]) -> list[str]:
    return [sample.content.reason if isinstance(sample.content, Refusal) else "" for sample in samples]


def member(name: str, size: int = 0, **fields: object) -> bytes:
    """One member, header and zero content."""
    info = tarfile.TarInfo(name)
    info.size = size
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape") + bytes(
        -(-size // 512) * 512 if info.isreg() else 0
    )


END = bytes(1024)


def test_members_are_grouped_into_samples(tmp_path: Path, tar: Make) -> None:
    notes = json.dumps({"caption": ["a cat", "grey cat"], "label": "cat", "width": 3})
    samples, broken = read(
        tmp_path,
        tar({
            "./a/0.jpg": b"zero", "./a/0.txt": " a \n cat ", "./a/0.json": notes,
            "b.PNG": b"one", "b.cls": "7\n",
            "._b.png": "resource fork",
            "c.webp": b"two", "c.json": "{broken",
        }),
    )  # fmt: skip
    assert broken is None
    assert [(s.source, s.content, s.captions.texts, s.label) for s in samples] == [
        ("some.tar#a/0", b"zero", ["a cat", "grey cat"], "cat"),
        ("some.tar#b", b"one", [], "7"),
        ("some.tar#c", b"two", [], None),
    ]


def test_every_image_is_kept_or_refused(tmp_path: Path, tar: Make) -> None:
    samples, broken = read(
        tmp_path,
        tar({
            "a.mask.png": b"mask", "a.jpg": b"image", "a.left.jpg": b"left",
            "b.pkl": b"cos\nsystem\n", "b.txt": "no image",
            "c.jpg": b"c", "d.jpg": b"d", "c.txt": "too late",
        }),
    )  # fmt: skip
    assert broken is None
    assert dict(zip([s.source for s in samples], reasons(samples), strict=True)) == {
        "some.tar#a.mask.png": "key_duplicate",
        "some.tar#a.left.jpg": "key_duplicate",
        "some.tar#a": "",
        "some.tar#b": "ext_forbidden",
        "some.tar#c": "key_duplicate",  # the second group of this key
        "some.tar#d": "",
    }
    assert [s.content for s in samples if s.content == b"image"] == [b"image"]


@pytest.mark.parametrize(
    ("hostile", "reason"),
    [
        (member("/etc/x.jpg", 4), "key_invalid"),
        (member("../x.jpg", 4), "key_invalid"),
        (member("a/../x.jpg", 4), "key_invalid"),
        (member("a//x.jpg", 4), "key_invalid"),
        (member("white space.jpg", 4), "key_invalid"),
        (member("\udcff.jpg", 4), "key_invalid"),
        (member("esc\x1b[2Jape.jpg", 4), "key_invalid"),
        (member("a" * 300 + ".jpg", 4), "key_invalid"),
        (member("x.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "tar_nonregular"),
        (member("x.jpg", type=tarfile.LNKTYPE, linkname="good0.jpg"), "tar_nonregular"),
        (member("x", type=tarfile.CHRTYPE), "tar_nonregular"),
        (member("x.jpg", type=tarfile.FIFOTYPE), "tar_nonregular"),
        (member("x.jpg", 65 * 2**20), "tar_member_too_big"),
    ],
)
def test_a_hostile_member_costs_one_sample(tmp_path: Path, hostile: bytes, reason: str) -> None:
    samples, broken = read(tmp_path, member("good0.jpg", 4) + hostile + member("good1.jpg", 4) + END)
    assert broken is None
    assert reasons(samples) == ["", reason, ""]
    assert samples[1].source.isprintable()


def test_a_sparse_member_is_refused_without_being_read(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x.jpg")
    info.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "x.jpg",
                        "GNU.sparse.map": "0,0,419430400,0", "GNU.sparse.size": "419430400"}  # fmt: skip
    raw = member("good.jpg", 4) + info.tobuf(tarfile.PAX_FORMAT) + END
    assert len(raw) < 10_240
    tracemalloc.start()
    samples, broken = read(tmp_path, raw)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert broken is None
    assert reasons(samples) == ["", "tar_sparse"]
    assert peak < 20 * 2**20


def test_a_header_that_announces_gigabytes_is_not_read(tmp_path: Path) -> None:
    info = tarfile.TarInfo("long")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**31
    samples, broken = read(tmp_path, member("good.jpg", 4) + info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    assert reasons(samples) == [""]
    assert broken is not None
    assert "2147483648" in broken.why


def test_a_chain_of_headers_does_not_exhaust_the_stack(tmp_path: Path) -> None:
    info = tarfile.TarInfo("long")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 4
    samples, broken = read(tmp_path, member("good.jpg", 4) + (info.tobuf(tarfile.GNU_FORMAT) + bytes(512)) * 3000 + END)
    assert reasons(samples) == [""]
    assert broken is not None
    assert "RecursionError" in broken.why


def test_an_oversized_caption_is_dropped_and_counted_and_its_image_kept(tmp_path: Path, tar: Make) -> None:
    samples, _ = read(tmp_path, tar({"a.jpg": b"a", "a.txt": "x" * 9000, "a.json": "[" * 2**20 + "]"}))
    assert reasons(samples) == [""]
    assert samples[0].captions == ([], 1)


def test_deeply_nested_json_is_no_caption(tmp_path: Path, tar: Make) -> None:
    samples, broken = read(tmp_path, tar({"a.jpg": b"a", "a.json": "[" * 100_000}))
    assert broken is None
    assert samples[0].captions == ([], 0)


CUT_HEADER = 4 * 1536 + 100  # in the header of the fifth of ten members, each of three blocks


@pytest.mark.parametrize(
    ("mutate", "saved", "reason"),
    [
        (lambda raw: raw, 10, None),
        (lambda raw: raw[: 6 * 1536], 6, "tar_truncated"),  # between members: tarfile says nothing
        (lambda raw: raw[:CUT_HEADER], 4, "tar_truncated"),  # in a header: tarfile says nothing
        (lambda raw: raw[: 6 * 1536 + 700], 6, "tar_truncated"),  # in a member's content
        (lambda raw: raw[: 7 * 1536 - 10], 7, "tar_truncated"),  # in a member's padding
        (lambda raw: raw[: 4 * 1536] + b"x" * 512 + raw[4 * 1536 + 512 :], 4, "tar_trailing"),  # a garbage header
        (lambda raw: raw[: 4 * 1536] + bytes(1024) + raw[4 * 1536 + 1024 :], 4, "tar_trailing"),  # zeros mid-file
        (lambda raw: raw[: 10 * 1536 + 512], 10, "tar_truncated"),  # one zero block at the end instead of two
        (lambda raw: raw + raw, 10, "tar_trailing"),  # two tars, one after the other
        (lambda raw: b"", 0, "header_bad"),
        (lambda raw: b"\x1f\x8b" + bytes(2000), 0, "header_bad"),
        (lambda raw: b"<html></html>" * 100, 0, "header_bad"),
    ],
)
def test_damage_is_noticed_and_the_samples_before_it_are_kept(
    tmp_path: Path, tar: Make, mutate: Callable[[bytes], bytes], saved: int, reason: str | None
) -> None:
    whole = tar({f"{number}.jpg": bytes([number]) * 1000 for number in range(10)})
    samples, broken = read(tmp_path, mutate(whole))
    assert [sample.content for sample in samples] == [bytes([number]) * 1000 for number in range(saved)]
    assert (broken.reason if broken else None) == reason


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_of_every_dialect_are_read(tmp_path: Path, format: int) -> None:
    name = "/".join(["folder" * 10] * 3) + "/x.jpg"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        info = tarfile.TarInfo(name)
        info.size = 4
        archive.addfile(info, io.BytesIO(b"data"))
    samples, broken = read(tmp_path, buffer.getvalue())
    assert broken is None
    assert [sample.source for sample in samples] == [f"some.tar#{name.removesuffix('.jpg')}"]
