"""A dump that attacks its reader is curated whole: nothing runs, nothing is written elsewhere, memory is bounded, each
attack costs what it touches, and the accounts close. The run is a process of its own, watched and under limits."""

import ast
import base64
import io
import json
import os
import pickle
import re
import resource
import socket
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.ingest import guard
from pipeline.ingest.blocklist import parse_block_list
from pipeline.ingest.config import CurateConfig
from pipeline.ingest.places import Place
from pipeline.ingest.selection import read_decisions
from pipeline.ingest.store import Store
from pipeline.report.pictures import stored
from pipeline.select.policy import PRESETS, Inputs, Policy
from pipeline.select.selecting import Stages, select
from tests.pipeline.ingest import hostile
from tests.pipeline.ingest.hostile import ATTACK, CASES, DOOR, MAX_MEMBERS, Dump, build
from tests.pipeline.stores import curate_here
from tests.test_architecture import ROOT, SOURCES, imported

LOCK = ".store.lock"
FAULTY = "tests.pipeline.ingest.faulty_child"
GROWTH_MB = 400  # of this process; an image file may have 64 MB, and up to 64 MB wait for the decoder
CHILD_MB = 300  # of the decoder
WATCHED = {
    "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pty.spawn", "subprocess.Popen",
    "socket.__new__", "socket.connect", "socket.bind", "urllib.Request", "pickle.find_class",
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What one curation of the dump left."""

    dump: Dump
    owners: dict[str, str]
    store: Store
    said: dict[str, Any]
    before: dict[str, tuple[int, ...]]
    after: dict[str, tuple[int, ...]]

    @property
    def found(self) -> dict[str, str]:
        """As `Dump.expected`, read from the store."""
        outcomes: defaultdict[str, list[str]] = defaultdict(list)
        decisions = read_decisions(self.store, "default")["reason"].to_pylist()
        for source, reason in zip(self.store.index["source"].to_pylist(), decisions, strict=True):
            outcomes[source].append(reason or "kept")
        for row in self.store.refused.to_pylist():
            outcomes[row["source"]].append(row["reason"])
        for damage in self.store.manifest.damaged:
            outcomes[damage.shard].append(damage.reason)
        return {source: ", ".join(sorted(reasons)) for source, reasons in outcomes.items()}


def listing(root: Path) -> dict[str, tuple[int, ...]]:
    """Kind and, of files, size and time of change of all below a folder, but for the store, its lock, and programs' own
    files."""
    found = {}
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in ("store", "program")]
        for name in [name for name in (*folders, *files) if name != LOCK]:
            path = os.path.join(folder, name)
            about = os.lstat(path)
            found[path] = (about.st_mode, *((about.st_size, about.st_mtime_ns) if name in files else ()))
    return found


class Door(pa.ExtensionType):
    """Registered in the run: does what it is told by the file that is read."""

    def __init__(self) -> None:
        super().__init__(pa.binary(), DOOR)

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> "Door":
        os.mkdir("opened")
        return cls()


def peak_mb(process: int) -> float:
    """The most memory that a process has held since it began its program (`getrusage` counts what was before); 0 after
    its end."""
    status = Path(f"/proc/{process}/status").read_text()
    found = re.search(r"VmHWM:\s*(\d+) kB", status)
    return int(found[1]) / 1024 if found else 0


def watched_decoders() -> dict[int, float]:
    """From now on, the most memory (MB) that each decoder of this process has held, by its process number."""
    peaks: dict[int, float] = {}
    receive = guard._Child.receive

    def received(child: Any, seconds: float) -> Any:
        answer = receive(child, seconds)
        peaks[child._process.pid] = max(peak_mb(child._process.pid), peaks.get(child._process.pid, 0))
        return answer

    guard._Child.receive = received  # type: ignore[method-assign]
    return peaks


def watched_run(root: Path) -> None:
    """Curates `root`/source in this process, under limits, and writes to `root`/program/said.json what it did."""
    import matplotlib.font_manager  # noqa: F401 - asks a program for fonts when it is first imported

    from pipeline.ingest import tars, task
    from pipeline.ingest.language import language_of

    language_of("a caption in English")  # its model is a pickle, not of the source
    tars.MAX_MEMBERS = MAX_MEMBERS
    task.GuardedDecoder = partial(guard.GuardedDecoder, child=FAULTY)  # type: ignore[assignment, misc]
    decoders = watched_decoders()
    pa.register_extension_type(Door())
    store, events = root / "store", list[str]()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
            if not os.path.abspath(os.fsdecode(path)).startswith((f"{store}/", f"{root}/{LOCK}", os.devnull)):
                events.append(f"writes {path!r}")
        elif event in WATCHED and not (event == "subprocess.Popen" and arguments[1][-1] == FAULTY):
            events.append(f"{event} {arguments!r}"[:500])

    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + 3 * 2**30,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (120, 120))
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = peak_mb(os.getpid())
    sys.addaudithook(hook)
    config = CurateConfig(compressed=True, decode_seconds=2.5, holdout=0)
    listed = parse_block_list((root / "blocked.txt").read_text().splitlines(), "blocked.txt")
    curate_here(root / "source", store, config, PRESETS["clean"][0], Inputs(block_list=listed))
    descriptors = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    said = {
        "events": events,
        "sockets": [target for target in descriptors if target.startswith("socket:")],
        "grown_mb": peak_mb(os.getpid()) - before,
        "child_mb": max(decoders.values()),
        "done": len(events),
    }
    # what would have been noticed
    pickle.loads(pickle.dumps(Outcome))
    socket.socket().close()
    (root / "program" / "elsewhere").touch()
    (root / "program" / "said.json").write_text(json.dumps(said))


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    root = tmp_path_factory.mktemp("hostile")
    dump, owners = build(root)
    (root / "blocked.txt").write_text("\n".join(dump.blocked.lines))
    for name in ("working", "home", "program"):
        (root / name).mkdir()
    environment = {
        "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(root / "home"), "OMP_NUM_THREADS": "1",
        "TMPDIR": str(root / "program"), "PYTHONDONTWRITEBYTECODE": "1", "MPLCONFIGDIR": str(root / "program"),
    }  # fmt: skip
    code = "import sys, pathlib; from tests.pipeline.ingest.test_hostile_corpus import watched_run as run\n"
    before = listing(root)
    done = subprocess.run(
        [sys.executable, "-c", f"{code}run(pathlib.Path(sys.argv[1]))", str(root)],
        cwd=root / "working", env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    said = json.loads((root / "program" / "said.json").read_text())
    return Outcome(dump, owners, Store(root / "store"), said, before, listing(root))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_each_attack_costs_what_it_touches(outcome: Outcome, case: str) -> None:
    mine = {name: reason for name, reason in outcome.dump.expected.items() if outcome.owners[name] == case}
    assert mine
    assert {name: outcome.found.get(name) for name in mine} == mine


@pytest.mark.slow
def test_nothing_else_was_seen(outcome: Outcome) -> None:
    assert set(outcome.found) == set(outcome.dump.expected)


@pytest.mark.slow
def test_nothing_ran(outcome: Outcome) -> None:
    assert not outcome.dump.ran.exists()
    assert outcome.said["done"] == 0, outcome.said["events"]
    assert outcome.said["sockets"] == []
    noticed = [event.split(" ")[0] for event in outcome.said["events"]]
    assert noticed == ["pickle.find_class", "socket.__new__", "writes"]


def test_what_would_run_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dump = Dump(tmp_path, tmp_path / "ran")
    pickle.loads(dump.payload)
    assert dump.ran.exists()
    hostile.h05_parquet_extension_types(dump)
    monkeypatch.chdir(tmp_path)
    pa.register_extension_type(Door())
    try:
        pq.read_metadata(tmp_path / f"h05_{DOOR}.parquet")
    finally:
        pa.unregister_extension_type(DOOR)
    assert (tmp_path / "opened").exists()


@pytest.mark.slow
def test_nothing_was_written_elsewhere(outcome: Outcome) -> None:
    assert outcome.after == outcome.before
    assert not list(outcome.store.path.rglob("*.tmp"))


@pytest.mark.slow
def test_memory_is_bounded(outcome: Outcome) -> None:
    assert outcome.said["grown_mb"] < GROWTH_MB
    assert outcome.said["child_mb"] < CHILD_MB


@pytest.mark.slow
def test_accounts_close(outcome: Outcome) -> None:
    manifest = outcome.store.manifest
    outcomes = [one for name, reasons in outcome.dump.expected.items() for one in reasons.split(", ")
                if name not in {damage.shard for damage in manifest.damaged}]  # fmt: skip
    assert manifest.seen == len(outcomes) == manifest.kept + sum(manifest.refused.values())
    assert manifest.kept == outcomes.count("kept")
    assert manifest.refused == {reason: outcomes.count(reason) for reason in set(outcomes) - {"kept"}}
    assert manifest.lost == outcome.dump.lost
    assert manifest.declared == manifest.seen + manifest.lost
    assert manifest.captions_dropped == outcome.dump.captions_dropped


@pytest.mark.slow
def test_h24_nothing_private_is_stored(outcome: Outcome) -> None:
    for path in outcome.store.path.rglob("*"):
        assert path.is_dir() or b"PRIVATE" not in path.read_bytes(), path
    assert b"PRIVATE" in (outcome.dump.source / "h24_exif.jpg").read_bytes()


@pytest.mark.slow
def test_h26_the_page_shows_hostile_names_as_text(outcome: Outcome) -> None:
    page = (outcome.store.path / "data_card.html").read_text()
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "\u202e" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"(?:src|href|url|data|action)\s*[=(]\s*[\"']?\s*https?:", page)
    captions = [caption for captions in outcome.store.index["captions"].to_pylist() for caption in captions]
    assert captions.count(ATTACK) == 2  # as it came, in the data


@pytest.mark.slow
def test_h23_one_source_is_capped(outcome: Outcome) -> None:
    kept = outcome.store.manifest.kept
    selection, _ = select(outcome.store, "capped", Policy(max_origin_share=0.05), Inputs(), Stages())
    origins = outcome.store.index["origin"].filter(pc.is_null(read_decisions(outcome.store, "capped")["reason"]))
    counts = {row["values"]: row["counts"] for row in pc.value_counts(origins).to_pylist()}
    assert selection.dropped["over_quota"] > 0
    assert max(counts.values()) <= 0.05 * kept + 1


def test_h14_a_report_decodes_pictures_of_an_index_in_place_as_foreign_bytes(tmp_path: Path) -> None:
    turned = Image.new("RGB", (40, 20), "red")
    turned.paste("blue", (0, 0, 20, 20))
    exif = turned.getexif()
    exif[0x0112] = 6
    (tmp_path / "source").mkdir()
    turned.save(tmp_path / "source" / "a.jpg", exif=exif)
    store = curate_here(tmp_path / "source", tmp_path / "store", CurateConfig(in_place=True, holdout=0))
    shown = Image.open(io.BytesIO(base64.b64decode(stored(store, 0).uri.split(",")[1])))
    assert shown.size == (20, 40)
    assert shown.getpixel((10, 5))[2] > 200  # blue is on top, upright
    turned.save(tmp_path / "source" / "a.jpg")
    with pytest.raises(ValueError, match=r"sample 0 is damaged: a\.jpg at byte 0: the file ends"):
        stored(store, 0)


def test_h16_what_a_raised_bound_let_in_can_be_read_again(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.png").write_bytes(hostile.zeros(7200, 7000, 1, 0))  # 50.4 million pixels
    config = CurateConfig(in_place=True, holdout=0, max_pixels=60_000_000)
    store = curate_here(tmp_path / "source", tmp_path / "store", config)
    assert stored(store, 0).uri


# ---- what is refused whole -----------------------------------------------------------------------------------------

LEADS_OUT = (
    "/etc/passwd", "../x.tar", "a/../../x.tar", "file:x.tar", "file:///x.tar", "s3://other/x.tar", "pipe:touch ran",
    "simplecache::http://h/x.tar", "reference://x", "a\\b.tar", "a\0.tar",
)  # fmt: skip


@pytest.mark.parametrize("path", LEADS_OUT)
@pytest.mark.parametrize("name", ["_MANIFEST.json", "list.jsonl", "list.csv"])
def test_h21_h3_a_list_that_leads_out_is_refused_and_nothing_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, path: str
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.jpg").write_bytes(b"a")
    text = {"_MANIFEST.json": json.dumps({"files": [{"path": path}]}), "list.jsonl": json.dumps({"path": path}),
            "list.csv": f'path\n"{path}"\n'}[name]  # fmt: skip
    (source / name).write_text(text)
    opened: list[str] = []
    really = Place.open
    monkeypatch.setattr(Place, "open", lambda self, path: opened.append(path) or really(self, path))
    monkeypatch.chdir(tmp_path)
    before = listing(tmp_path)
    with pytest.raises(ValueError, match=r"nothing of (it|the source) was read"):
        curate_here(source if name == "_MANIFEST.json" else source / name, tmp_path / "store")
    assert opened == [name]
    assert listing(tmp_path) == before


# ---- what the code never does --------------------------------------------------------------------------------------


@cache
def nodes() -> list[tuple[Path, ast.AST]]:
    return [(path, node) for path in SOURCES for node in ast.walk(ast.parse(path.read_text()))]


@cache
def calls() -> list[tuple[Path, ast.Call]]:
    return [(path, node) for path, node in nodes() if isinstance(node, ast.Call)]


def importing(doors: set[str]) -> list[str]:
    """Where modules, or what lies in them, are imported."""
    return [
        f"{path.relative_to(ROOT)}: {name}" for path in SOURCES for name in sorted(imported(path))
        if any(f"{name}.".startswith(f"{door}.") for door in doors)
    ]  # fmt: skip


def where(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


def calls_of(*names: str) -> list[tuple[Path, ast.Call]]:
    """Calls of functions and methods whose last name is one of `names`."""
    called = ((path, call, getattr(call.func, "attr", getattr(call.func, "id", ""))) for path, call in calls())
    return [(path, call) for path, call, name in called if name in names]


def test_h2_h9_h10_h11_no_loader_that_unpickles_is_imported_or_called() -> None:
    doors = {"webdataset", "pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "mlflow", "torch.hub",
             "torch.distributed.checkpoint", "huggingface_hub", "transformers", "datasets", "fsspec"}  # fmt: skip
    written = "pipeline/export/loaders.py"  # tries what this process has just written; stands in that export's README
    names = ("runs.py: mlflow.entities", "runs.py: mlflow.exceptions", "server.py: mlflow")  # its client loads nothing
    sends = [f"pipeline/mirror/{name}" for name in names]
    assert importing(doors) == [f"{written}: transformers", *sends]
    bad = calls_of("load_model", "read_webdataset", "read_numpy", "from_pretrained", "unsafe_load", "full_load")
    assert [(str(path.relative_to(ROOT)), ast.unparse(call)) for path, call in bad] == [
        (written, "AutoModel.from_pretrained(folder, use_safetensors=True)")
    ]
    restored = [(path, call) for path, call in calls_of("restore", "can_restore") if "Tuner" in ast.unparse(call.func)
                or "Trainer" in ast.unparse(call.func)]  # fmt: skip
    assert not [where(path, call) for path, call in restored]
    assert not [where(path, call) for path, call in calls_of("load") if ast.unparse(call.func) == "yaml.load"]


def test_h7_h13_no_setting_lets_code_in() -> None:
    """`trust_remote_code`, `allow_pickle` and a shell are never asked for; torch loads weights only."""
    for path, call in calls():
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert "trust_remote_code" not in given, where(path, call)
        assert given.get("allow_pickle", "False") == "False", where(path, call)
        assert given.get("shell", "False") == "False", where(path, call)
        assert given.get("weights_only", "True") == "True", where(path, call)
        assert ast.unparse(call.func) not in {"eval", "exec", "os.system", "os.popen", "compile"}, where(path, call)


def test_h19_no_archive_is_ever_extracted() -> None:
    assert not [where(path, call) for path, call in calls_of("extract", "extractall", "unpack_archive")]


def test_h22_no_url_is_ever_opened() -> None:
    closed = {"urllib.request", "http.client", "requests", "httpx", "aiohttp", "urllib3", "ftplib"}
    assert not [place for place in importing(closed) if not place.startswith("jobs/")]  # jobs talk to a named cluster
    assert not [where(path, call) for path, call in calls_of("urlopen", "urlretrieve", "load_state_dict_from_url")]


def test_h14_every_picture_is_opened_with_a_list_of_formats() -> None:
    """Without one, Pillow offers the bytes to all its parsers."""
    ours = {"jobs/demo_dump.py"}  # opens what it has just encoded
    opened = [(path, call) for path, call in calls_of("open") if "image" in ast.unparse(call.func).lower()]
    assert opened
    for path, call in opened:
        named = {keyword.arg for keyword in call.keywords}
        assert "formats" in named or str(path.relative_to(ROOT)) in ours, where(path, call)


def test_h16_no_limit_of_pillow_is_lifted() -> None:
    limits = {"MAX_IMAGE_PIXELS", "LOAD_TRUNCATED_IMAGES", "MAX_TEXT_CHUNK", "MAX_TEXT_MEMORY"}
    named = [where(path, node) for path, node in nodes() if isinstance(node, ast.Attribute) and node.attr in limits]
    assert not named


def test_h25_submission_is_tested_for_tokens() -> None:
    """By tests/jobs: generated clusters want a token, and an unauthenticated address elsewhere is refused."""
    tests = "".join((ROOT / "tests" / "jobs" / name).read_text() for name in ("test_submit.py", "test_manifests.py"))
    assert "--unauthenticated" in tests
    assert "def test_the_cluster_wants_a_token" in tests
