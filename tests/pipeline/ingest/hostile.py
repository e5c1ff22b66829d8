"""A dump that attacks its reader in every way that is known, built by code, with what must become of each part.

Each function adds the cases of one hazard (the numbers are those of the project's list of hazards), and lays harmless
neighbours beside them: those must be kept.
"""

import gzip
import hashlib
import io
import itertools
import json
import lzma
import os
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.ingest.blocklist import BlockList
from pipeline.ingest.decode import FORMATS, canonical
from tests.pipeline.ingest.test_guard import zeros

DOOR = "feral.test.door"  # an Arrow extension type that runs code when it is read, where somebody has registered it
MAX_MEMBERS = 500  # of a tar, for the run over this dump: a million headers would take half a gigabyte
ATTACK = "\"><img src=x onerror=alert(1)><script>alert(1)<&'\u202e"  # as a caption or a name
END = bytes(1024)
KEPT = "kept"


class Payload:
    """Unpickling it runs a command."""

    def __init__(self, ran: Path) -> None:
        self.command = f"touch {ran}"

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


@dataclass
class Dump:
    """A source under construction. `expected` tells the outcome of each sample and container by its name: kept, or a
    reason; two outcomes of one name, sorted, are joined by a comma. `ran` is the file that every payload would make."""

    source: Path
    ran: Path
    expected: dict[str, str] = field(default_factory=dict)
    declared: list[dict[str, object]] = field(default_factory=list)  # of _MANIFEST.json
    notes: list[dict[str, object]] = field(default_factory=list)  # of captions.jsonl
    blocked: BlockList = field(default_factory=BlockList)
    lost: int = 0
    captions_dropped: int = 0
    _seeds: "itertools.count[int]" = field(default_factory=itertools.count)

    @property
    def payload(self) -> bytes:
        """A pickle that runs a command."""
        return pickle.dumps(Payload(self.ran))

    def noise(self, width: int = 40, height: int = 30) -> Image.Image:
        """A picture that is like no other."""
        pixels = np.random.default_rng(next(self._seeds)).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return Image.fromarray(pixels)

    def photo(self, format: str = "JPEG", **options: object) -> bytes:
        """A small good picture that is like no other."""
        return encoded(self.noise(), format, **options)

    def file(self, name: str, content: bytes, outcome: str, **notes: object) -> None:
        """A loose file, and what captions.jsonl says of it."""
        (self.source / name).write_bytes(content)
        self.expected[name] = outcome
        if notes:
            self.notes.append({"path": name, **notes})

    def pack(
        self, name: str, content: bytes | list[bytes | int], outcomes: dict[str, str], damage: str = "", lost: int = 0,
        **declared: object,
    ) -> None:  # fmt: skip
        """A tar or Parquet file (pieces of bytes, or holes of so many zeros), the outcomes of its samples, its damage,
        and how many samples are lost to it."""
        with (self.source / name).open("wb") as file:
            for piece in [content] if isinstance(content, bytes) else content:
                if isinstance(piece, bytes):
                    file.write(piece)
                else:
                    file.truncate(file.seek(piece, os.SEEK_CUR))
        count = sum(outcome.count(",") + 1 for outcome in outcomes.values()) + lost
        self.declared.append({"path": name, "samples": count, **declared})
        self.expected |= {f"{name}#{key}": outcome for key, outcome in outcomes.items()}
        self.expected |= {name: damage} if damage else {}
        self.lost += lost

    def around(self, *hostile: bytes) -> list[bytes | int]:
        """Tar members between two good ones, `first` and `last`."""
        return [member("first.jpg", self.photo()), *hostile, member("last.jpg", self.photo()), END]

    def table(self, columns: dict[str, object], **options: object) -> bytes:
        """A Parquet file."""
        buffer = io.BytesIO()
        pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), buffer, **options)
        return buffer.getvalue()


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    """The bytes of a picture."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def member(name: str, content: bytes = b"", **fields: object) -> bytes:
    """One member of a tar; `fields` of its header."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    pax = tarfile.PAX_FORMAT if info.pax_headers else tarfile.GNU_FORMAT
    return info.tobuf(pax, errors="surrogateescape") + content + bytes(-len(content) % 512)


def claiming(name: str, size: int) -> bytes:
    """The header of a member that claims so many bytes."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


NEIGHBOURS = {"first": KEPT, "last": KEPT}


def h01_pickles_and_modules(dump: Dump) -> None:
    endings = ("pkl", "pickle", "pyd", "pth", "pt", "py", "so")
    members = [member(f"{ending}.{ending}", dump.payload) for ending in endings]
    dump.pack("h01.tar", dump.around(*members), NEIGHBOURS | dict.fromkeys(endings, "ext_forbidden"))
    for ending in endings:
        dump.file(f"h01.{ending}", dump.payload, "format_forbidden")
    dump.file("h01_named_as_a_picture.jpg", dump.payload, "format_forbidden")


def h03_a_command_as_a_url(dump: Dump) -> None:
    (dump.source / "h03.tar").write_bytes(b"".join(dump.around()))  # type: ignore[arg-type]
    url = f"pipe:touch {dump.ran}; cat x/h03.tar"
    (dump.source / "h03_index.json").write_text(json.dumps({"shardlist": [{"url": url, "nsamples": 2}]}))
    dump.expected |= {f"h03.tar#{key}": KEPT for key in NEIGHBOURS}


def h05_parquet_extension_types(dump: Dump) -> None:
    for name in (DOOR, "ray.data.arrow_tensor", "ray.data.arrow_pickled_object"):
        metadata = {"ARROW:extension:name": name, "ARROW:extension:metadata": dump.payload}
        schema = pa.schema([pa.field("image", pa.binary()), pa.field("other", pa.binary(), metadata=metadata)])
        table = pa.table({"image": [dump.photo()] * 2, "other": [dump.payload] * 2}).cast(schema)
        dump.pack(f"h05_{name}.parquet", dump.table(table), {}, "parquet_unsafe", lost=2)


def h06_parquet_of_pickled_objects(dump: Dump) -> None:
    columns = {"image": [dump.photo(), dump.payload, dump.photo()], "object": [dump.payload] * 3}
    dump.pack("h06.parquet", dump.table(columns), {"0": KEPT, "1": "format_forbidden", "2": KEPT})


def h07_arrays_of_objects(dump: Dump) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Payload(dump.ran)], object), allow_pickle=True)
    dump.file("h07.npy", buffer.getvalue(), "format_forbidden")
    dump.file("h07_named_as_a_picture.png", buffer.getvalue(), "format_forbidden")
    dump.pack("h07.tar", dump.around(member("x.npy", buffer.getvalue())), NEIGHBOURS | {"x": "ext_forbidden"})


def h14_broken_pictures_of_each_format(dump: Dump) -> None:
    for format in FORMATS:
        good = dump.photo(format)
        name, magic = f"h14_{format}", {"WEBP": 12, "PNG": 8, "JPEG": 3, "TIFF": 4, "GIF": 4, "BMP": 2}[format]
        dump.file(f"{name}_good", good, KEPT)
        dump.file(f"{name}_half", good[: len(good) // 2], "header_bad" if format == "WEBP" else "decode_failed")
        dump.file(f"{name}_header", good[:magic] + b"\xff" * (len(good) - magic), "header_bad")
        dump.file(f"{name}_magic_only", good[:magic], "header_bad")
    dump.file("h14_empty.jpg", b"", "header_bad")


def h15_formats_that_run_programs(dump: Dump) -> None:
    eps = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n(%pipe%touch {dump.ran}) (w) file closefile\nshowpage\n"
    svg = f'<svg xmlns="http://www.w3.org/2000/svg"><image href="file://{dump.ran}"/></svg>'
    for name, text in {"eps": eps, "svg": svg, "pdf": "%PDF-1.7\n", "html": "<html>"}.items():
        dump.file(f"h15_{name}.jpg", text.encode(), "format_forbidden")
        dump.file(f"h15.{name}", text.encode(), "format_forbidden")


def h16_pixel_bombs(dump: Dump) -> None:
    for side in (10_000, 14_000):  # Pillow warns of the first and raises at the second
        dump.file(f"h16_{side}.png", zeros(side, side, 8, 0), "pixels_over_cap")
    dump.pack("h16.tar", dump.around(member("x.png", zeros(9_000, 9_000, 1, 0))), NEIGHBOURS | {"x": "pixels_over_cap"})


def h17_frame_bombs(dump: Dump) -> None:
    still = Image.new("L", (4000, 4000), 0)
    still.paste(255, (1000, 1000, 2000, 3000))
    single = encoded(still, "GIF")
    start = single.index(b"\x2c")
    dump.file("h17.gif", single[:start] + single[start:-1] * 201 + b"\x3b", KEPT)
    for format in ("PNG", "WEBP"):
        dump.file(f"h17.{format}", dump.photo(format, save_all=True, append_images=[dump.noise()] * 99), KEPT)


def h18_sparse_members(dump: Dump) -> None:
    pax = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "x.jpg",
           "GNU.sparse.map": "0,0,419430400,0", "GNU.sparse.size": "419430400"}  # fmt: skip
    old = member("y.jpg", type=tarfile.GNUTYPE_SPARSE)
    hostile = dump.around(member("x.jpg", pax_headers=pax), old)
    dump.pack("h18_sparse.tar", hostile, NEIGHBOURS | {"x": "tar_sparse", "y": "tar_sparse"})


def h18_giant_members(dump: Dump) -> None:
    first, last, end = dump.around()
    outcomes = NEIGHBOURS | {"x": "tar_member_too_big"}
    dump.pack("h18_giant.tar", [first, claiming("x.jpg", 300 * 2**20), 300 * 2**20, last, end], outcomes)
    first, *_ = dump.around()
    outcomes = {"first": KEPT, "x": "tar_member_too_big"}
    dump.pack("h18_endless.tar", [first, claiming("x.jpg", 2**40), 2**20], outcomes, "tar_truncated")


def h18_too_many_members(dump: Dump) -> None:
    members = [member(f"first.{number}") for number in range(MAX_MEMBERS)]
    first, last, end = dump.around()
    dump.pack("h18_many.tar", [first, *members, last, end], {"first": KEPT}, "tar_too_many_members", lost=1)


def h18_compressed_bombs(dump: Dump) -> None:
    for suffix, compress in {"gz": gzip.compress, "xz": partial(lzma.compress, preset=0)}.items():
        first, _, end = dump.around()
        raw = b"".join([first, member("x.jpg", bytes(60 * 2**20)), end])  # type: ignore[list-item]
        outcomes = {"first": KEPT, "x": "tar_truncated"}
        dump.pack(f"h18_bomb.tar.{suffix}", compress(raw), outcomes, "tar_ratio")
    dump.pack("h18_disguised.tar", gzip.compress(bytes(10_240)), {}, "tar_header_bad")
    dump.file("h18.zip", b"PK\3\4", "ext_forbidden")


def h19_member_names(dump: Dump) -> None:
    names = ("/etc/x", "../x", "a/../x", "a//x", "-rf", "a\\x", "\u202egpj", "esc\x1b[2J", "a" * 300)
    members = [member(f"{name}.jpg", dump.photo()) for name in names]
    outcomes = dict.fromkeys(names, "key_invalid")
    outcomes |= {r"\u202egpj": outcomes.pop("\u202egpj"), r"esc\x1b[2J": outcomes.pop("esc\x1b[2J")}
    members += [member("x.jpg", dump.photo(), pax_headers={"path": "nul\0.jpg"})]
    outcomes[r"nul\x00"] = "key_invalid"
    dump.pack("h19_names.tar", dump.around(*members), NEIGHBOURS | outcomes)
    both = [member("Case.jpg", dump.photo()), member("case.jpg", dump.photo())]
    dump.pack("h19_case.tar", dump.around(*both), NEIGHBOURS | {"Case": KEPT, "case": KEPT})
    again = [member("twice.jpg", dump.photo()), member("other.jpg", dump.photo()), member("twice.jpg", dump.photo())]
    dump.pack("h19_twice.tar", dump.around(*again), NEIGHBOURS | {"twice": f"{KEPT}, key_duplicate", "other": KEPT})


def h19_links_and_devices(dump: Dump) -> None:
    kinds = {"soft": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "character": tarfile.CHRTYPE, "block": tarfile.BLKTYPE,
             "pipe": tarfile.FIFOTYPE, "unknown": b"?"}  # fmt: skip
    members = [member(f"{name}.jpg", type=kind, linkname="/etc/passwd") for name, kind in kinds.items()]
    outcomes = NEIGHBOURS | dict.fromkeys(kinds, "tar_nonregular")
    dump.pack("h19_links.tar", dump.around(*members), outcomes)


def h19_links_in_folders(dump: Dump) -> None:
    secret = dump.ran.parent / "secrets"
    secret.mkdir()
    (secret / "secret.jpg").write_bytes(dump.photo())
    (dump.source / "h19_link.jpg").symlink_to(secret / "secret.jpg")
    (dump.source / "h19_folder").symlink_to(secret)
    os.mkfifo(dump.source / "h19_pipe.jpg")
    (dump.source / "h19_back\\slash.jpg").write_bytes(dump.photo())
    Path(os.fsdecode(os.fsencode(dump.source) + b"/h19_\xff.jpg")).write_bytes(dump.photo())
    names = ("h19_link.jpg", "h19_folder", "h19_pipe.jpg", "h19_back\\slash.jpg", r"h19_\xff.jpg")
    dump.expected |= dict.fromkeys(names, "key_invalid")


def h20_damaged_tars(dump: Dump) -> None:
    def three() -> bytes:
        return b"".join(member(f"{name}.jpg", dump.photo()) for name in "abc") + END

    size = len(member("a.jpg", dump.photo()))
    all_three = dict.fromkeys("abc", KEPT)
    raw = three()
    where = raw.index(b"b.jpg")
    dump.pack(
        "h20_garbage.tar", raw[:where] + b"x" * 512 + raw[where + 512 :], {"a": KEPT, "c": KEPT}, "tar_header_bad", 1
    )
    raw = three()
    dump.pack("h20_cut.tar", raw[: raw.index(b"c.jpg")], {"a": KEPT, "b": KEPT}, "tar_truncated", 1)
    raw = three()
    cut = raw[: raw.index(b"c.jpg") + size // 2]
    dump.pack("h20_cut_in_data.tar", cut, {"a": KEPT, "b": KEPT, "c": "tar_truncated"}, "tar_truncated")
    dump.pack("h20_marker.tar", three()[:-512], all_three, "tar_truncated")
    dump.pack("h20_foreign_end.tar", three() + b"foreign", all_three, "tar_trailing")
    two = three() + member("d.jpg", dump.photo()) + END
    dump.pack("h20_two.tar", two, all_three | {"d": KEPT}, "tar_trailing")
    dump.pack("h20_changed.tar", three(), all_three, "hash_mismatch", sha256="0" * 64)
    dump.declared.append({"path": "h20_gone.tar", "samples": 5})
    dump.expected["h20_gone.tar"] = "missing"
    dump.lost += 5


def h20_damaged_parquet(dump: Dump) -> None:
    images = [dump.photo() for _ in range(4)]
    whole = dump.table({"image": images})
    dump.pack("h20_no_footer.parquet", whole[:-20], {}, "parquet_damaged", lost=4)
    raw = bytearray(
        dump.table({"image": [*images[2:], dump.photo(), dump.photo()]}, row_group_size=2, use_dictionary=False)
    )
    column = pq.read_metadata(io.BytesIO(raw)).row_group(0).column(0)
    start = column.data_page_offset
    raw[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    dump.pack("h20_page.parquet", bytes(raw), {"2": KEPT, "3": KEPT}, "parquet_damaged", lost=2)


def h23_other_bytes_than_declared(dump: Dump) -> None:
    wrong = "f" * 64
    good = dump.photo()
    dump.file("h23_right.jpg", good, KEPT, sha256=hashlib.sha256(good).hexdigest())
    dump.file("h23_wrong.jpg", dump.photo(), "hash_mismatch", sha256=wrong)
    dump.declared.append({"path": "h23_size.jpg", "size": 7})
    dump.file("h23_size.jpg", dump.photo(), "hash_mismatch")
    members = [member("x.jpg", dump.photo()), member("x.json", json.dumps({"sha256": wrong}).encode())]
    dump.pack("h23.tar", dump.around(*members), NEIGHBOURS | {"x": "hash_mismatch"})
    columns = {"image": [dump.photo(), dump.photo()], "sha256": [None, wrong]}
    dump.pack("h23_rows.parquet", dump.table(columns), {"0": KEPT, "1": "hash_mismatch"})


def h24_blocked_pictures(dump: Dump) -> None:
    raw, other = dump.photo(), dump.noise(200, 150)
    smaller = encoded(other.resize((160, 120)), "JPEG", quality=80)
    blocked = BlockList(
        frozenset({hashlib.sha256(raw).hexdigest()}), (canonical(encoded(other), 288, 90).measures.phash,)
    )
    dump.blocked |= blocked
    dump.file("h24_named.jpg", raw, "blocklisted")
    dump.file("h24_smaller_copy.jpg", smaller, "blocklisted")
    exif = Image.Exif()
    exif[0x010E], exif[0x9286] = "PRIVATE description", "PRIVATE comment"
    dump.file("h24_exif.jpg", dump.photo(exif=exif, comment=b"PRIVATE"), KEPT)


def h26_names_and_captions_for_the_page(dump: Dump) -> None:
    name = ATTACK.replace("/", "")
    dump.file(f"h26_{name}.jpg", dump.photo(), KEPT, caption=ATTACK, label=ATTACK)
    dump.file(f"h26_refused_{name}.jpg", b"<script>alert(1)</script>", "format_forbidden", caption=ATTACK)
    members = [member("x.jpg", dump.photo()), member("x.txt", ATTACK.encode())]
    dump.pack("h26.tar", dump.around(*members), NEIGHBOURS | {"x": KEPT})


def h27_oversized_parquet(dump: Dump) -> None:
    bomb = dump.table({"image": [bytes(8 * 2**20)] * 10}, compression="zstd", use_dictionary=False)
    dump.pack("h27_bomb.parquet", bomb, {}, "parquet_unsafe", lost=10)
    image = pa.DictionaryArray.from_arrays(pa.array([0] * 40, pa.int32()), pa.array([b"x" * (20 << 20)]))  # 800 MB
    options = {"compression": "zstd", "dictionary_pagesize_limit": 2**30, "store_schema": False}
    values = {str(row): "format_forbidden" for row in range(40)}
    dump.pack("h27_dictionary.parquet", dump.table({"image": image}, **options), values)
    captions = [["x" * 2**20, "short"], ["[" * 100_000]]
    columns = {"image": [dump.photo(), dump.photo()], "captions": captions}
    dump.pack("h27_captions.parquet", dump.table(columns), {"0": KEPT, "1": KEPT})
    dump.captions_dropped += 2


def h27_oversized_texts(dump: Dump) -> None:
    members = [
        member("long.jpg", dump.photo()), member("long.txt", b"x" * 9000),
        member("json.jpg", dump.photo()), member("json.json", b" " * (2**20 + 1)),
        member("deep.jpg", dump.photo()), member("deep.json", b"[" * 500_000),
    ]  # fmt: skip
    dump.pack("h27_texts.tar", dump.around(*members), NEIGHBOURS | {"long": KEPT, "json": KEPT, "deep": KEPT})
    dump.file("h27_sidecar.jpg", dump.photo(), KEPT)
    (dump.source / "h27_sidecar.txt").write_bytes(b"x" * 2**20)
    dump.captions_dropped += 3


def h28_faults_of_the_decoder(dump: Dump) -> None:
    faults = {"CRASH": "decode_crash", "EXIT": "decode_crash", "HANG": "decode_timeout", "SPIN": "decode_timeout",
              "EAT": "decode_oom", "KILLED": "decode_oom", "CLOSE": "decode_crash"}  # fmt: skip
    for fault, reason in faults.items():  # see faulty_child.py
        dump.file(f"h28_{fault}", fault.encode(), reason)
    dump.pack("h28.tar", dump.around(member("x.jpg", b"CRASH")), NEIGHBOURS | {"x": "decode_crash"})


CASES = {name: case for name, case in list(globals().items()) if name.startswith("h") and name[1:3].isdigit()}


def build(root: Path) -> tuple[Dump, dict[str, str]]:
    """Writes the whole dump to `root`/source. Returns it, and the case that each name in `expected` belongs to."""
    dump = Dump(root / "source", root / "outside" / "ran")
    dump.source.mkdir(parents=True)
    dump.ran.parent.mkdir()
    owners: dict[str, str] = {}
    for name, case in CASES.items():
        case(dump)
        owners |= {part: name for part in dump.expected if part not in owners}
    (dump.source / "_MANIFEST.json").write_text(json.dumps({"files": dump.declared}))
    (dump.source / "captions.jsonl").write_text("".join(json.dumps(note) + "\n" for note in dump.notes))
    return dump, owners
