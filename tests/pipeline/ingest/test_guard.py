"""The guarded decoder: a bad picture costs one sample and bounded time, and the child can do next to nothing."""

import contextlib
import io
import json
import os
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.ingest.decode import FORMATS, Decoded, canonical
from pipeline.ingest.decoder_child import ANSWER, KEPT, READY
from pipeline.ingest.guard import DecodeLimits, GuardedDecoder, decode_with
from pipeline.ingest.refusals import Refusal
from pipeline.ingest.samples import printable
from tests.pipeline.ingest.test_colours import PACK

FAULTY = "tests.pipeline.ingest.faulty_child"
Make = Callable[..., bytes]


def guarded(seconds: float = 5, **settings: object) -> GuardedDecoder:
    return GuardedDecoder(DecodeLimits(seconds=seconds, **settings), child=FAULTY)


def outcomes(decoder: GuardedDecoder, raws: list[bytes]) -> list[Decoded | Refusal]:
    """Of each; that keys and bytes come back in order is checked on the way."""
    done = list(decoder.decode(enumerate(raws)))
    assert [(number, raw) for number, raw, _ in done] == list(enumerate(raws))
    return [outcome for _, _, outcome in done]


def said(question: str) -> str:
    """What the child finds when it tries."""
    with guarded() as decoder:
        (answer,) = outcomes(decoder, [f"SAY {question}".encode()])
    assert isinstance(answer, Refusal)
    return answer.detail


def exists(pid: int) -> bool:
    """Zombies exist, too."""
    return Path(f"/proc/{pid}").exists()


def garbage(kind: int, header: object, body: bytes = b"") -> bytes:
    head = json.dumps(header).encode()
    return b"GARBAGE " + (ANSWER.pack(kind, len(head), len(body)) + head + body).hex().encode()


def lies(picture: Make) -> dict[str, bytes]:
    """Answers of a child that has been taken over, each wrong in one point."""
    good = canonical(picture(), 288, 90)
    measures = vars(good.measures) | {"thumb": good.measures.thumb.hex()}
    header = {name: value for name, value in vars(good).items() if name != "jpeg"} | {"measures": measures}
    return {
        "noise": b"GARBAGE " + b"ff" * 64,
        "a huge body": b"GARBAGE " + ANSWER.pack(KEPT, 2, 2**32 - 1).hex().encode(),
        "a huge header": b"GARBAGE " + ANSWER.pack(KEPT, 2**31, 0).hex().encode(),
        "an unknown kind": garbage(9, {}),
        "ready again": garbage(READY, {}),
        "no fields": garbage(KEPT, {}),
        "one field more": garbage(KEPT, header | {"more": 1}, good.jpeg),
        "no JPEG": garbage(KEPT, header, b"<script>"),
        "another format": garbage(KEPT, header | {"format": "EPS"}, good.jpeg),
        "a larger picture": garbage(KEPT, header | {"width": 10**9}, good.jpeg),
        "not a number": garbage(KEPT, header | {"measures": measures | {"mean": float("nan")}}, good.jpeg),
        "a hash that is a path": garbage(KEPT, header | {"pixels": "../" * 21 + "x"}, good.jpeg),
        "a reason of another's": garbage(2, {"reason": "eval_overlap", "detail": ""}),
    }


def test_it_gives_what_decoding_in_the_own_process_gives(picture: Make, encode: Make) -> None:
    raws = [picture(seed, size=(30 + seed, 40)) for seed in range(40)]
    raws += [picture(0, size=(50, 40), format=format) for format in FORMATS]
    raws += [encode(Image.new("RGBA", (20, 20), (9, 9, 9, 99))), encode(Image.new("I;16", (20, 20), 999))]
    with GuardedDecoder(DecodeLimits(side=32, quality=80)) as decoder:
        assert outcomes(decoder, raws) == [canonical(raw, 32, 80) for raw in raws]
        assert decoder.restarts == 0
    with GuardedDecoder(DecodeLimits(side=32, encode=False)) as decoder:
        (natural,) = outcomes(decoder, [picture(0, size=(100, 70))])
        assert isinstance(natural, Decoded)
        assert (natural.jpeg, natural.width, natural.height) == (b"", 100, 70)


def test_pictures_larger_than_pipes_and_window_block_neither_side(picture: Make) -> None:
    small, large = picture(0), picture(1, size=(700, 500), format="BMP")  # 1 MB
    huge = picture(2, size=(3, 3), format="PNG") + bytes(70 * 2**20)  # what follows the end is ignored
    raws = [large] * 6 + [small, huge, small]
    with GuardedDecoder(DecodeLimits(side=900, quality=100, min_side=1)) as decoder:
        done = outcomes(decoder, raws)
    assert all(isinstance(outcome, Decoded) for outcome in done)
    assert len({outcome.pixels for outcome in done if isinstance(outcome, Decoded)}) == 3


@pytest.mark.parametrize(
    ("fault", "reason", "word"),
    [
        (b"CRASH", "decode_crash", "SIGSEGV"),
        (b"EXIT", "decode_crash", "status 0"),
        (b"CLOSE", "decode_crash", "closed"),
        (b"HANG", "decode_timeout", "0.5 s"),
        (b"SPIN", "decode_timeout", "0.5 s"),
        (b"EAT", "decode_oom", "memory"),
        (b"KILLED", "decode_oom", "killed"),
    ],
)
def test_h28_a_fault_costs_one_picture_and_bounded_time(picture: Make, fault: bytes, reason: str, word: str) -> None:
    good = [picture(seed) for seed in range(12)]
    raws = [*good[:3], fault, *good[3:5], fault, *good[5:]]
    start = time.monotonic()
    with guarded(seconds=0.5) as decoder:
        done = outcomes(decoder, raws)
    assert time.monotonic() - start < 15
    assert [isinstance(outcome, Decoded) for outcome in done] == [raw != fault for raw in raws]
    for refusal in (done[3], done[6]):
        assert isinstance(refusal, Refusal)
        assert refusal.reason == reason
        assert word in refusal.detail


def test_a_child_that_is_killed_once_from_outside_costs_nothing(picture: Make) -> None:
    with guarded() as decoder:
        done = decoder.decode(enumerate([picture(seed) for seed in range(40)]))
        assert isinstance(next(done)[2], Decoded)
        assert decoder._child is not None
        os.kill(decoder._child._process.pid, signal.SIGKILL)
        assert all(isinstance(outcome, Decoded) for _, _, outcome in done)
        assert decoder.restarts == 1


def test_no_answer_of_a_child_is_believed_unchecked(picture: Make) -> None:
    good, wrong = picture(), lies(picture)
    with guarded() as decoder:
        done = outcomes(decoder, [raw for lie in wrong.values() for raw in (good, lie)])
        assert decoder.restarts >= len(wrong) - 1
    assert all(isinstance(outcome, Decoded) for outcome in done[::2])
    for what, outcome in zip(wrong, done[1::2], strict=True):
        assert isinstance(outcome, Refusal), what
        assert outcome.reason == "decode_crash", what
        assert len(outcome.detail) <= 300
        assert outcome.detail.isprintable()


def test_h14_the_child_has_no_secrets_and_no_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "WANDB_API_KEY", "RAY_AUTH_TOKEN", "HOME"):
        monkeypatch.setenv(name, "secret")
    names = set(json.loads(said("environment")))
    assert names <= {  # Python sets LC_CTYPE
        "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "LC_CTYPE", "LD_LIBRARY_PATH",
        "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_",
    }  # fmt: skip
    assert said("folder") == "/"
    assert said("open") == said("socket") == "OSError Too many open files"


def test_the_child_can_write_no_file(tmp_path: Path, picture: Make) -> None:
    """It gets a file that is open for writing, which it could not open itself."""
    code = (
        "import os, sys; from pipeline.ingest.decoder_child import confine\n"
        "file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT); confine(2**28)\n"
        "try: os.write(file, b'x')\nexcept OSError as error: print(error.strerror)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "file")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3], check=True)
    assert result.stdout.strip() == "File too large"
    assert (tmp_path / "file").read_bytes() == b""


def test_no_process_is_left(picture: Make) -> None:
    def children() -> set[int]:
        return {
            int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()
        }

    before = children()
    with guarded(seconds=0.5) as decoder:
        outcomes(decoder, [picture(), b"CRASH", picture(), b"HANG", picture()])
        assert len(children() - before) == 1
    assert children() <= before
    abandoned = guarded()
    pictures = abandoned.decode((number, picture()) for number in range(10**9))
    assert isinstance(next(pictures)[2], Decoded)
    pictures.close()  # type: ignore[attr-defined]
    assert children() <= before


def test_what_an_abandoned_iteration_left_is_not_taken_for_answers(picture: Make) -> None:
    with guarded() as decoder:
        first = decoder.decode(enumerate([picture(size=(20, 20))] * 20))
        next(first)
        with pytest.raises(RuntimeError, match="already decoding"):
            next(decoder.decode([(0, picture())]))
        first.close()  # type: ignore[attr-defined]
        (answer,) = outcomes(decoder, [picture(size=(33, 44))])
        assert isinstance(answer, Decoded)
        assert (answer.width, answer.height) == (33, 44)


@pytest.mark.parametrize("fault", [b"", b"HANG", b"SPIN"])
def test_a_child_outlives_its_parent_by_seconds_at_most(fault: bytes) -> None:
    code = (
        "import sys; from tests.pipeline.ingest.test_guard import guarded, time\n"
        "decoder = guarded(seconds=1)\n"
        "next(decoder.decode([(0, b'SAY hello')])); pid = decoder._child._process.pid\n"
        "child = decoder._child; child.send(sys.argv[1].encode()) if sys.argv[1] else None; child._write()\n"
        "print(pid, flush=True); time.sleep(1000)"
    )
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", code, fault.decode()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert exists(child)
        parent.kill()
    end = time.monotonic() + 6
    while exists(child) and time.monotonic() < end and "Z" not in status(child):
        time.sleep(0.05)
    assert not exists(child) or "Z" in status(child)  # a zombie where nobody collects orphans


def status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def test_a_decoder_that_cannot_start_says_why_and_does_not_try_for_ever(picture: Make) -> None:
    with GuardedDecoder(DecodeLimits(), child="tests.no_such_module") as decoder:
        with pytest.raises(RuntimeError, match="no_such_module"):
            next(decoder.decode([(0, picture())]))
        assert decoder.restarts == 2


def test_pictures_are_taken_lazily(picture: Make) -> None:
    taken = 0

    def endless() -> Iterator[tuple[int, bytes]]:
        nonlocal taken
        while True:
            taken += 1
            yield taken, picture()

    with guarded() as decoder:
        done = decoder.decode(endless())
        for _ in range(40):
            next(done)
        assert taken <= 40 + 16
        done.close()  # type: ignore[attr-defined]


def test_an_error_of_the_source_is_the_callers_and_the_decoder_goes_on(picture: Make) -> None:
    def breaking() -> Iterator[tuple[int, bytes]]:
        yield 0, picture()
        raise OSError("source is gone")

    with guarded() as decoder:
        with pytest.raises(OSError, match="source is gone"):
            list(decoder.decode(breaking()))
        assert isinstance(outcomes(decoder, [picture()])[0], Decoded)


def zeros(width: int, height: int, depth: int, kind: int) -> bytes:
    """A whole PNG of zeros, made without holding it: `kind` 0 gray, 2 RGB, 6 RGBA; `depth` bits."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    row = bytes(1 + width * {0: 1, 2: 3, 6: 4}[kind] * depth // 8)
    packer = zlib.compressobj(1)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_h16_pixel_bombs_are_refused(picture: Make) -> None:
    raws = [zeros(10_000, 10_000, 8, 0), picture(), zeros(14_000, 14_000, 8, 0), picture()]
    with GuardedDecoder(DecodeLimits()) as decoder:
        done = outcomes(decoder, raws)
        assert decoder.restarts == 0
    assert [getattr(outcome, "reason", "kept") for outcome in done] == ["pixels_over_cap", "kept"] * 2


def test_the_largest_pictures_fit_in_the_memory_and_in_less_are_refused(picture: Make) -> None:
    raws = [zeros(7000, 7000, 8, 6), zeros(7000, 7000, 16, 0), zeros(7000, 7000, 16, 6), picture()]
    with GuardedDecoder(DecodeLimits(seconds=60)) as decoder:
        done = outcomes(decoder, raws)
        assert decoder.restarts == 0
    assert [getattr(outcome, "reason", "kept") for outcome in done] == ["kept"] * 4
    with GuardedDecoder(DecodeLimits(seconds=60, memory_bytes=2**28)) as decoder:
        done = outcomes(decoder, [raws[0], raws[3]])
    assert [getattr(outcome, "reason", "kept") for outcome in done] == ["decode_oom", "kept"]


def test_h17_a_frame_bomb_is_kept_as_its_first_frame(encode: Make) -> None:
    """201 frames of 16 megapixels: written once, the image block is repeated."""
    single = encode(Image.new("P", (4000, 4000), 0), "GIF")
    start = single.index(b"\x2c")  # the image descriptor; all before it are zeros and the header
    bomb = single[:start] + single[start:-1] * 201 + b"\x3b"
    begin = time.monotonic()
    with GuardedDecoder(DecodeLimits(seconds=10)) as decoder:
        (kept,) = outcomes(decoder, [bomb])
    assert isinstance(kept, Decoded)
    assert "multi_frame" in kept.flags
    assert (kept.original_width, kept.original_height) == (4000, 4000)
    assert time.monotonic() - begin < 10


def sources() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    raws = []
    for format in FORMATS:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format)
        raws.append(buffer.getvalue())
    return raws


@pytest.fixture(scope="module")
def decoder() -> Iterator[GuardedDecoder]:
    with GuardedDecoder(DecodeLimits(side=16, max_pixels=10**6, seconds=5)) as decoder:
        yield decoder


SOURCES = sources()
CHANGE = st.tuples(st.sampled_from(["flip", "cut", "insert"]), st.floats(0, 1), st.binary(min_size=1, max_size=8))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(source=st.sampled_from(SOURCES), changes=st.lists(CHANGE, min_size=1, max_size=4))
def test_h14_mutated_pictures_are_decoded_or_refused(
    decoder: GuardedDecoder, source: bytes, changes: list[tuple[str, float, bytes]]
) -> None:
    raw = bytearray(source)
    for kind, share, data in changes:
        place = int(share * len(raw))
        end = {"flip": place + len(data), "cut": place + 16 * len(data), "insert": place}[kind]
        raw[place:end] = b"" if kind == "cut" else data
    (outcome,) = outcomes(decoder, [bytes(raw)])
    assert isinstance(outcome, Decoded | Refusal)
    if isinstance(outcome, Decoded):
        assert min(outcome.width, outcome.height) <= 16
        assert outcome.original_width * outcome.original_height <= 10**6


@pytest.mark.skipif(not PACK.exists(), reason=f"needs {PACK.name}: set FERAL_TEST_DATA to the folder that holds it")
def test_a_real_pack_has_the_same_outcomes_in_the_child_as_here() -> None:
    """So nothing that a decoder needs is missing where no file can be opened."""
    with tarfile.open(PACK) as archive:
        raws = [archive.extractfile(member).read() for member in archive if member.isfile()]  # type: ignore[union-attr]
    with GuardedDecoder(DecodeLimits(side=64, min_side=1)) as decoder:
        there = outcomes(decoder, raws)
        assert decoder.restarts == 0
    assert [said_of(outcome) for outcome in there] == [said_of(here(raw)) for raw in raws]


def here(raw: bytes) -> Decoded | Refusal:
    try:
        return canonical(raw, 64, 90, min_side=1)
    except Refusal as refusal:
        return refusal


def said_of(outcome: Decoded | Refusal) -> object:
    return (outcome.reason, printable(outcome.detail)[:300]) if isinstance(outcome, Refusal) else outcome


def test_the_child_sees_the_end_of_its_input_at_once(picture: Make) -> None:
    decoder = guarded()
    outcomes(decoder, [picture()])
    assert decoder._child is not None
    process = decoder._child._process
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(5) == 0
    os.close(decoder._child._complaints)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 50])
def test_several_decoders_keep_the_order_and_a_bad_picture_still_costs_only_itself(picture: Make, count: int) -> None:
    raws = [b"CRASH" if number % 7 == 5 else picture(number) for number in range(count)]
    with contextlib.ExitStack() as stack:
        decoders = [stack.enter_context(guarded(side=16)) for _ in range(3)]
        found = list(decode_with(decoders, enumerate(raws)))
        assert [number for number, _, _ in found] == list(range(count))
        for number, raw, outcome in found:
            assert raw is raws[number]
            if number % 7 == 5:
                assert isinstance(outcome, Refusal)
                assert outcome.reason == "decode_crash"
            else:
                assert isinstance(outcome, Decoded)
                assert outcome.pixels == canonical(raw, 16, 90).pixels
        with pytest.raises(ConnectionError):
            list(decode_with(decoders, failing(picture(1))))
        assert len(list(decode_with(decoders, enumerate([picture(1)] * 4)))) == 4  # they can be used again


def failing(raw: bytes) -> Iterator[tuple[int, bytes]]:
    yield from enumerate([raw] * 20)
    raise ConnectionError
