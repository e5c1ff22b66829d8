"""No damage to a tar goes unnoticed, costs more than it touches, or makes the reader raise, hang or swell."""

import bz2
import gzip
import io
import lzma
import random
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.ingest import tar_members
from pipeline.ingest.compressed import COMPRESSED, decompressed
from pipeline.ingest.refusals import Refusal
from pipeline.ingest.samples import Address, Broken, Sample
from pipeline.ingest.tars import MAX_BROKEN, read_tar

END = bytes(1024)
MB = 2**20
quick = settings(deadline=None, derandomize=True, max_examples=300)


def plain(number: int, size: int = 1000) -> bytes:
    """Bytes without zeros, so that they are told from padding."""
    return bytes([number + 1]) * size


def make(members: dict[str, bytes], format: int = tarfile.GNU_FORMAT) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """A tar, and from where to where each key lies in it: from its first header to the end of its content."""
    buffer, places = io.BytesIO(), {}
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for name, content in members.items():
            info, start = tarfile.TarInfo(name), archive.offset
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
            content_end = archive.offset - (-len(content) % 512)
            key = name.partition(".")[0]
            places[key] = (min(start, places.get(key, (start,))[0]), content_end)
    return buffer.getvalue(), places


def read(raw: bytes | BinaryIO) -> tuple[list[Sample], list[Broken]]:
    file = io.BytesIO(raw) if isinstance(raw, bytes) else raw
    found = list(read_tar(file, "t", None, addressed="t"))
    return [item for item in found if isinstance(item, Sample)], [item for item in found if isinstance(item, Broken)]


def saved(samples: list[Sample]) -> dict[str, bytes]:
    kept = [(item.source.removeprefix("t#"), item.content) for item in samples if isinstance(item.content, bytes)]
    assert len(dict(kept)) == len(kept), "a sample was yielded twice"
    return dict(kept)


TEN, _ = make({f"{number}.jpg": plain(number) for number in range(10)})  # each of three blocks
IMAGES = {str(number): plain(number) for number in range(10)}


def without(*numbers: int) -> dict[str, bytes]:
    return {key: image for key, image in IMAGES.items() if int(key) not in numbers}


@pytest.mark.parametrize(
    ("mutate", "kept", "reason", "byte"),
    [
        (lambda raw: raw, IMAGES, None, 0),
        (lambda raw: raw[: 6 * 1536], without(6, 7, 8, 9), "tar_truncated", 9216),  # between members
        (lambda raw: raw[: 4 * 1536 + 100], without(4, 5, 6, 7, 8, 9), "tar_truncated", 6244),  # in a header
        (lambda raw: raw[: 6 * 1536 + 700], without(6, 7, 8, 9), "tar_truncated", 9916),  # in data
        (lambda raw: raw[: 7 * 1536 - 10], without(7, 8, 9), "tar_truncated", 10742),  # in padding
        (lambda raw: raw[:6144] + b"x" * 512 + raw[6656:], without(4), "tar_header_bad", 6144),  # a garbage header
        (lambda raw: raw[:6144] + bytes(1024) + raw[7168:], without(4), "tar_header_bad", 6144),  # two zero blocks
        (lambda raw: raw[: 10 * 1536 + 512], IMAGES, "tar_truncated", 15872),  # one zero block at the end
        (lambda raw: raw + make({"x.jpg": b"y"})[0], IMAGES | {"x": b"y"}, "tar_trailing", 15360),  # two tars
    ],
    ids=["none", "between", "header", "data", "padding", "garbage", "zeros", "marker", "two"],
)
def test_h20_each_kind_of_damage_costs_what_it_touches(
    mutate: Callable[[bytes], bytes], kept: dict[str, bytes], reason: str | None, byte: int
) -> None:
    samples, broken = read(mutate(TEN))
    assert saved(samples) == kept
    assert [item.reason for item in broken] == ([reason] if reason else [])
    assert not broken or f"byte {byte}" in broken[0].why


def test_damage_is_told_behind_the_samples_before_it() -> None:
    found = list(read_tar(io.BytesIO(TEN[:6144] + b"x" * 512 + TEN[6656:]), "t", None))
    place = next(number for number, item in enumerate(found) if isinstance(item, Broken))
    assert place == 4


@pytest.mark.parametrize(
    ("raw", "reason", "why"),
    [
        (b"", "tar_truncated", "byte 0"),
        (b"version 1\noid sha256:abc\n", "tar_truncated", "inside a header"),
        (b"<html></html>" * 100, "tar_header_bad", "byte 0"),
        (gzip.compress(TEN), "tar_header_bad", "is compressed (gzip)"),
        (bz2.compress(TEN), "tar_header_bad", "is compressed (bzip2)"),
        (lzma.compress(TEN), "tar_header_bad", "is compressed (xz)"),
        (b"\x28\xb5\x2f\xfd" + TEN, "tar_header_bad", "is compressed (zstd)"),
        (TEN + b"foreign", "tar_trailing", f"byte {len(TEN)}"),
        (TEN[:-1] + b"x" * 5000, "tar_trailing", f"byte {len(TEN) - 1}"),
    ],
)
def test_what_is_no_tar_is_one_damage_that_says_so(raw: bytes, reason: str, why: str) -> None:
    samples, broken = read(raw)
    assert len(samples) in (0, 10)
    assert [item.reason for item in broken] == [reason]
    assert why in broken[0].why


def test_the_middle_of_a_huge_zero_filled_region_costs_one_damage() -> None:
    samples, broken = read(TEN[:4608] + bytes(5 * MB) + TEN[4608:])
    assert saved(samples) == IMAGES
    assert [item.reason for item in broken] == ["tar_trailing"]


def test_a_lost_block_costs_the_image_it_was_in_and_no_other() -> None:
    """Its neighbour's header then lies in what looks like its content."""
    samples, broken = read(TEN[: 3 * 1536 + 512] + TEN[3 * 1536 + 1024 :])
    assert saved(samples) == without(3)
    assert len(broken) == 1
    refused = [item for item in samples if isinstance(item.content, Refusal)]
    assert [(item.source, item.content.reason) for item in refused if isinstance(item.content, Refusal)] == [
        ("t#3", "tar_header_bad")
    ]


def test_added_bytes_cost_the_image_they_are_in_and_no_other() -> None:
    samples, broken = read(TEN[: 3 * 1536 + 600] + b"1234567" + TEN[3 * 1536 + 600 :])
    assert saved(samples) == without(3)
    assert len(broken) == 1


def test_a_whole_tar_after_a_cut_one_is_read() -> None:
    other = make({f"x{number}.jpg": plain(number) for number in range(5)})[0]
    for cut in (2 * 1536 + 700, 2 * 1536 + 1520, 2 * 1536 + 77):
        samples, broken = read(TEN[:cut] + other)
        assert {f"x{number}" for number in range(5)} | {"0", "1"} <= set(saved(samples))
        assert len(broken) == 1


@pytest.mark.parametrize("cut", ["jpg header", "jpg data"])
def test_a_text_without_its_image_is_refused_under_its_key(cut: str) -> None:
    raw, places = make({"a.jpg": b"a", "b.jpg": plain(1), "b.txt": b"a bird", "c.jpg": b"c"})
    start = places["b"][0]
    damaged = raw[:start] + b"\1" * 512 + raw[start + 512 :] if cut == "jpg header" else raw[: start + 800]
    samples, broken = read(damaged)
    refused = {item.source: item.content for item in samples if isinstance(item.content, Refusal)}
    assert list(refused) == ["t#b"]
    assert set(saved(samples)) == ({"a", "c"} if cut == "jpg header" else {"a"})
    assert len(broken) == 1
    assert ("damage" if cut == "jpg header" else "cut after 288 of 1000") in refused["t#b"].detail


def test_half_a_caption_is_none() -> None:
    raw, _ = make({"a.jpg": b"a", "a.txt": b"two dogs"})
    samples, broken = read(raw[: 3 * 512 + 4])
    assert [(item.content, item.captions.texts) for item in samples] == [(b"a", [])]
    assert [item.reason for item in broken] == ["tar_truncated"]


def checked(header: bytes) -> bytes:
    """The header with a right checksum."""
    return header[:148] + b"%06o\0 " % (sum(header[:148]) + 256 + sum(header[156:512])) + header[156:]


def test_a_negative_size_does_not_lead_back() -> None:
    header = nested("x.jpg", 0)
    samples, broken = read(checked(header[:124] + b"-0000001000\0" + header[136:]) + TEN)
    assert saved(samples) == IMAGES
    assert [item.reason for item in broken] == ["tar_header_bad"]


def test_a_header_shifted_by_a_byte_is_none_even_if_its_checksum_is_right() -> None:
    """Leading zeros let each field survive the shift; the byte that leaves must equal the one that enters."""
    raw, _ = make({"a.jpg": plain(0), "kb.jpg": b"k" * 600, "c.jpg": plain(2)})
    samples, broken = read(raw[:1535] + raw[1536:3000] + b"\0" + raw[3000:])
    assert saved(samples) == {"kb": b"k" * 600, "c": plain(2)}  # a, too: its end is not where it should be
    assert broken


def test_no_image_gets_the_name_of_another_when_blocks_between_are_lost() -> None:
    raw, places = make({"n" * 130 + ".jpg": b"", "b.jpg": b"", "c.jpg": plain(2)})
    samples, broken = read(raw[:512] + raw[places["b"][0] :])  # the header of b stands where a long name should
    assert saved(samples) == {"c": plain(2)}
    assert [item.reason for item in broken] == ["tar_header_bad"]


def test_an_image_keeps_the_texts_on_the_far_side_of_damage() -> None:
    raw, _ = make({"a.jpg": b"a", "a.json": b"{}", "a.txt": b"a cat", "b.jpg": b"b"})
    samples, broken = read(raw[:1024] + b"\1" * 512 + raw[1536:])
    assert [(item.content, item.captions.texts) for item in samples] == [(b"a", ["a cat"]), (b"b", [])]
    assert len(broken) == 1


def test_a_hundred_damages_are_told_and_the_rest_counted() -> None:
    blocks = [make({f"{number}.jpg": b"a"})[0][:1024] for number in range(130)]
    samples, broken = read((b"\1" * 512).join(blocks) + END)
    assert len(saved(samples)) == 130
    assert len(broken) == MAX_BROKEN + 1
    assert "29 more" in broken[-1].why


def nested(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def test_headers_within_headers_are_not_searched_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    searched = 0
    find = tar_members._find

    def counted(window: bytes) -> int | None:
        nonlocal searched
        searched += len(window)
        return find(window)

    monkeypatch.setattr(tar_members, "_find", counted)
    raw = b"".join(nested(f"{number}.jpg", MB) for number in range(6000)) + b"x" * 5 * MB  # each says it holds the next
    assert len(read(raw)[1]) > 0
    assert searched < 4 * len(raw)


def test_a_search_tries_few_of_the_magic_numbers_of_a_file_that_is_full_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = 0
    header = tar_members._header

    def counted(block: bytes) -> tarfile.TarInfo:
        nonlocal tried
        tried += 1
        return header(block)

    monkeypatch.setattr(tar_members, "_header", counted)
    samples, broken = read(b"ustar  \0" * (MB // 8) + bytes(512) + TEN)
    assert saved(samples) == IMAGES
    assert len(broken) == 1
    assert tried < MB // 32


# Properties


names = st.lists(
    st.text(st.sampled_from("abcß猫 +-_"), min_size=1, max_size=70)
    .map(lambda text: "k" + text)
    .flatmap(lambda text: st.sampled_from([text, f"folder/{text}", "long/" * 25 + text])),
    min_size=1,
    max_size=12,
    unique=True,
)
formats = st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])


@st.composite
def tars(draw: st.DrawFn) -> dict[str, bytes]:
    """Up to twelve samples, each image told from every other; some have a caption."""
    members = {}
    for number, key in enumerate(draw(names)):
        size = draw(st.sampled_from([0, 1, 100, 511, 512, 513, 1024, 2500]))
        members[f"{key}.jpg"] = random.Random(number).randbytes(size)
        if draw(st.booleans()):
            members[f"{key}.txt"] = b"caption of " + str(number).encode()
    return members


def images(members: dict[str, bytes]) -> dict[str, bytes]:
    return {name.removesuffix(".jpg"): content for name, content in members.items() if name.endswith(".jpg")}


@quick
@given(tars(), formats)
def test_an_undamaged_tar_is_read_whole(members: dict[str, bytes], format: int) -> None:
    samples, broken = read(make(members, format)[0])
    assert not broken
    assert saved(samples) == images(members)


@quick
@given(tars(), formats, st.floats(0, 1))
def test_every_truncation_is_noticed(members: dict[str, bytes], format: int, where: float) -> None:
    raw, places = make(members, format)
    end = -(-max(end for _, end in places.values()) // 512) * 512 + 1024  # of the end marker; more zeros are padding
    samples, broken = read(raw[: int(where * (end - 1))])
    assert broken
    assert saved(samples).items() <= images(members).items()


def test_every_truncation_of_one_tar_is_noticed() -> None:
    raw, places = make({"a.jpg": plain(0, 600), "n" * 120 + ".jpg": plain(1, 512), "b.jpg": plain(2, 3)})
    for cut in range(places["b"][1] // 512 * 512 + 1536):
        samples, broken = read(raw[:cut])
        assert len(broken) == 1
        kept = saved(samples)
        assert sum(end <= cut for _, end in places.values()) == len(kept)


Mutation = tuple[str, float, int, float]
mutations = st.lists(
    st.tuples(
        st.sampled_from(["cut", "flip", "zero", "insert", "delete", "repeat"]),
        st.floats(0, 1),
        st.sampled_from([1, 7, 512, 513, 1024, 1536, 4000]),
        st.floats(0, 1),
    ),
    min_size=1,
    max_size=4,
)


def mutated(raw: bytes, places: dict[str, tuple[int, int]], todo: list[Mutation]) -> tuple[bytes, set[str]]:
    """The damaged tar, and the keys of which any byte was changed, or between whose bytes something was changed."""
    owner: list[str | None] = [None] * len(raw)
    for key, (start, end) in places.items():
        owner[start:end] = [key] * (end - start)
    hit: set[str | None] = set()
    data = bytearray(raw)
    for kind, where, length, other in todo:
        start = int(where * len(data))
        end = min(len(data), start + length)
        hit |= set(owner[max(0, start - 1) : end + 1])
        if kind == "cut":
            hit |= set(owner[start:])
            del data[start:], owner[start:]
        elif kind == "flip":
            for place in range(start, min(end, start + 3)):
                data[place] ^= 1 + int(other * 254)
        elif kind == "zero":
            data[start:end] = bytes(end - start)
        elif kind == "delete":
            del data[start:end], owner[start:end]
        else:
            place = start if kind == "insert" else int(other * len(data))
            piece = random.Random(length).randbytes(length) if kind == "insert" else bytes(data[start:end])
            hit |= set(owner[max(0, place - 1) : place + 1])
            data[place:place] = piece
            owner[place:place] = [None] * len(piece) if kind == "insert" else owner[start:end]
    return bytes(data), {key for key in hit if key is not None}


@settings(quick, max_examples=600)
@given(tars(), formats, mutations)
def test_whatever_happens_to_a_tar_no_image_that_was_not_hit_is_changed(
    members: dict[str, bytes], format: int, todo: list[Mutation]
) -> None:
    raw, places = make(members, format)
    damaged, hit = mutated(raw, places, todo)
    whole = images(members)
    samples, broken = read(damaged)
    for item in samples:
        if isinstance(item.content, bytes):
            assert isinstance(item.address, Address)
            assert damaged[item.address.offset :].startswith(item.content)  # even what is wrong is in the file
    for key, content in saved(samples).items():
        assert content == whole.get(key) or key in hit or (key not in whole and hit)
    assert len(broken) <= MAX_BROKEN + 1
    assert all(item.source.isprintable() for item in samples)


@settings(quick, max_examples=200)
@given(st.binary(max_size=3000), st.lists(st.binary(max_size=600), max_size=6))
def test_foreign_bytes_never_raise(raw: bytes, pieces: list[bytes]) -> None:
    read(raw)
    head = nested("a.jpg", 600)
    mixed = b"".join(piece + head[: 512 - len(piece) % 40] for piece in pieces)
    read(mixed)
    header = bytearray(head)
    for place, piece in enumerate(pieces):  # headers of any content and a right checksum
        start = (157, 124, 100, 257, 345, 0)[place]
        header[start : start + len(piece)] = piece[: 512 - start]
    for kind in range(256):
        header[156] = kind
        read(checked(bytes(header[:512])) * 3 + raw)


# Compressed tars


def zstd(raw: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(raw)
    return sink.getvalue().to_pybytes()


PACK: dict[str, Callable[[bytes], bytes]] = {
    ".tar.gz": gzip.compress, ".tgz": gzip.compress, ".tar.bz2": bz2.compress, ".tar.xz": lzma.compress,
    ".tar.zst": zstd,
}  # fmt: skip
NOISY = make({f"{number}.jpg": random.Random(number).randbytes(100_000) for number in range(12)})[0]


def peak_of(run: Callable[[], Any]) -> int:
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def unpack(packed: bytes, suffix: str) -> tuple[list[Sample], list[Broken]]:
    return read(decompressed(io.BytesIO(packed), "a" + suffix))


@pytest.mark.parametrize("suffix", COMPRESSED)
def test_a_compressed_tar_is_read_as_if_it_were_not(suffix: str) -> None:
    pack, (whole, _) = PACK[suffix], read(NOISY)
    assert unpack(pack(NOISY), suffix) == (whole, [])
    assert unpack(pack(NOISY[:500_000]) + pack(NOISY[500_000:]), suffix) == (whole, [])  # several streams in one file


@pytest.mark.parametrize("suffix", COMPRESSED)
def test_a_cut_or_changed_compressed_tar_keeps_the_samples_before(suffix: str) -> None:
    packed = PACK[suffix](NOISY)
    samples, broken = unpack(packed[: int(len(packed) * 0.9)], suffix)
    assert [item.reason for item in broken] == ["tar_truncated"]
    floor = 0 if suffix == ".tar.bz2" else 8  # bzip2 knows nothing before its 900 KB block is whole
    assert saved(samples).items() <= saved(read(NOISY)[0]).items()
    assert len(saved(samples)) >= floor
    assert unpack(b"", suffix)[1][0].reason == "tar_truncated"
    if suffix == ".tar.zst":
        return  # without a checksum a changed byte is a changed picture
    changed = bytearray(packed)
    changed[len(packed) // 2] ^= 255
    samples, broken = unpack(bytes(changed), suffix)
    assert broken
    assert "compressed bytes" in broken[-1].why


def bomb(suffix: str) -> bytes:
    """Two pictures, then 400 MB of zeros in a member, packed piece by piece."""
    head = make({"a.jpg": plain(0), "b.jpg": plain(1)})[0][:3072] + nested("c.jpg", 400 * MB)
    if suffix in (".tar.gz", ".tgz"):
        packer: Any = zlib.compressobj(wbits=31)
    else:
        packer = bz2.BZ2Compressor() if suffix == ".tar.bz2" else lzma.LZMACompressor()
    packed = [packer.compress(head)]
    packed += [packer.compress(bytes(MB)) for _ in range(60 if suffix == ".tar.xz" else 400)]
    return b"".join([*packed, packer.flush()])


@pytest.mark.parametrize("suffix", [".tar.gz", ".tar.bz2", ".tar.xz"])
def test_h18_a_compressed_bomb_is_refused_by_its_ratio_in_little_memory(suffix: str) -> None:
    packed = bomb(suffix)
    found: list[Any] = []
    assert peak_of(lambda: found.extend(unpack(packed, suffix))) < 24 * MB
    samples, broken = found
    assert set(saved(samples)) == {"a", "b"}
    assert [item.reason for item in broken] == ["tar_ratio"]


def test_an_xz_header_that_claims_gigabytes_is_refused() -> None:
    packed = lzma.compress(TEN, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 3 * 2**29}])
    samples, broken = unpack(packed, ".tar.xz")
    assert (samples, [item.reason for item in broken]) == ([], ["tar_header_bad"])


def test_another_suffix_is_an_error_for_people() -> None:
    with pytest.raises(ValueError, match=r"\.tar\.gz"):
        decompressed(io.BytesIO(b""), "a.zip")
