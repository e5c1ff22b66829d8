"""The report of a run: whole, self-contained, deaf to what strangers wrote, and true. No Ray."""

import base64
import html
import io
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.evaluate.protocol import Evaluation, Health, Score, wilson
from pipeline.experiment import Experiment, build_experiment
from pipeline.export.card import MADE_BY
from pipeline.ingest.config import CurateConfig
from pipeline.ingest.selection import read_selection
from pipeline.ingest.store import Store
from pipeline.report import run_report
from pipeline.report.curves import draw_curves
from pipeline.report.pictures import neighbours, reconstructions, retrieved_captions, training_views
from pipeline.report.run_report import data_summary, write_report
from pipeline.report.scores import verdict
from pipeline.run import Run
from pipeline.stream.batches import to_batch
from pipeline.train.checkpoints import save_checkpoint
from pipeline.train.worker import fresh_state, open_stream
from tests.pipeline.pages import ATTACK, Page, refuse_network
from tests.pipeline.stores import curate_here

CLASSES = ("cat", 'dog"<i>')
COMMAND = ["feral", "pretrain", "small", "data.store=a store/it's", "--run", "runs/<b>"]
ALWAYS = ["headline", "scores", "curves", "time", "views", "neighbours", "data", "lineage", "reproduce"]
SECTIONS = {
    "simclr": ALWAYS,
    "mae": [*ALWAYS[:6], "reconstructions", *ALWAYS[6:]],
    "clip": [*ALWAYS[:6], "captions", *ALWAYS[6:]],
}
RESNET = {"name": "resnet18", "arguments": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}}
VIT = {"name": "vit_tiny_patch16_224", "patch_size": 8, "arguments": {"depth": 1, "embed_dim": 48, "num_heads": 3}}
OBJECTIVES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "simclr": (RESNET, {"projector_dims": [8]}),
    "mae": (VIT, {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}),
    "clip": (RESNET, {"dim": 8, "text": {"width": 16, "layers": 1, "heads": 2, "context_length": 12}}),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """40 noisy pictures of two classes, half of them for testing, all with captions; one refused."""
    source, sealed = tmp_path_factory.mktemp("data") / "source", tmp_path_factory.mktemp("stores") / "noise"
    for number in range(40):
        path = source / ("test" if number % 2 else "train") / CLASSES[number % 4 // 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (32, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        path.with_suffix(".txt").write_text(f"{number} {ATTACK}")
    (path.parent / "broken.png").write_bytes(b"no picture")

    return curate_here(source, sealed, CurateConfig())


def experiment_of(name: str, store: Store) -> Experiment:
    encoder, objective = OBJECTIVES[name]
    return build_experiment(
        {
            "data": {"store": str(store.path), "batch_size": 8, "lanes": 4},
            "encoder": encoder,
            "objective": {"name": name, **objective},
            "training": {"images_seen": 80},
        }
    )


BEGIN = 1_790_000_000  # Unix seconds


def metrics(steps: int, attempt: int = 1, restored: int = 0, begin: float = BEGIN + 10) -> list[dict[str, float]]:
    """A row a step of two seconds, from the restored one to `steps`."""
    return [
        {"step": step, "images_seen": 8 * step, "loss": 5 - step / 10, "scale": 14.0, "learning_rate": 0.1 / step,
         "images_per_second": 100.0, "data_wait_ratio": 0.01, "data_wait_seconds": 0.02, "samples": 2**40,
         "seconds": 2.0 * (step - restored), "began": begin + 2 * (step - restored - 1),
         "time": begin + 2 * (step - restored), "attempt": attempt, "restored_step": restored}
        for step in range(restored + 1, steps + 1)
    ]  # fmt: skip


def event(name: str, seconds: float, **facts: Any) -> dict[str, Any]:
    return {"event": name, "time": BEGIN + seconds, **facts}


UNDISTURBED = [
    event("command", 0, pid=1), event("fit", 1), event("attempt", 9, attempt=1, step=0, world_size=2, began=BEGIN + 8),
    event("checkpoint", 30, attempt=1, step=10, blocked_seconds=1), event("fit_ended", 32), event("evaluate", 32),
    event("evaluated", 40), event("end", 40, code=0),
]  # fmt: skip


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def score(trained: float, random: float, pixels: float, name: str = "knn_top1", count: int = 1000) -> Score:
    return Score(name=name, protocol="a protocol", num_queries=count, trained=trained, random_encoder=random,
                 raw_pixels=pixels, chance=0.1)  # fmt: skip


def evaluation_of(store: Store, *scores: Score, step: int = 10) -> Evaluation:
    train, test = store.select("train"), store.select("test")
    return Evaluation(
        checkpoint=f"step_{step:09d}",
        step=step,
        store_digest=store.manifest.digest,
        scores=list(scores),
        skipped=["zero_shot_top1: for a reason"],
        neighbours={int(test[0]): train[:3].tolist(), int(test[-1]): train[-3:].tolist()},
        seconds=3,
    )


def make_run(path: Path, experiment: Experiment, store: Store) -> Run:
    """A finished and evaluated run."""
    run = Run.prepare(path, experiment, COMMAND)
    state = fresh_state(experiment, torch.device("cpu"))
    state.step = experiment.total_steps
    save_checkpoint(run.checkpoints, state, keep=1)
    write_lines(run.path / "metrics.jsonl", metrics(10))
    write_lines(run.path / "events.jsonl", UNDISTURBED)
    run.evaluation_file.write_text(evaluation_of(store, score(0.62, 0.48, 0.53)).model_dump_json())
    return run


@pytest.fixture(scope="module", params=list(OBJECTIVES))
def run(request: pytest.FixtureRequest, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of each objective, with its report."""
    run = make_run(tmp_path_factory.mktemp(request.param) / "<b>", experiment_of(request.param, store), store)
    assert write_report(run) == run.report_file
    return run


def page_of(run: Run) -> Page:
    return Page(run.report_file.read_text())


def test_the_page_has_all_sections_of_its_objective_in_order(run: Run) -> None:
    page, name = page_of(run), run.experiment.objective.name
    assert page.ids == SECTIONS[name]
    assert "Not shown" not in page.text
    curves, views, near, rebuilt = 5, 6 * (1 + run.experiment.num_views), 2 * (1 + 3), 8 * 3 if name == "mae" else 0
    assert page.tags.count("figure") == curves + views + near + rebuilt
    for words in ("k-NN 62.0 %: 14.0 points above the random encoder, 9.0 above raw pixels.", "a protocol",
                  "zero_shot_top1: for a reason", "waiting for data", "refused: format_forbidden",
                  "data.batch_size", "finished", "without interruption",
                  "of 40 s went into steps that count"):  # fmt: skip
        assert words in page.text


def test_the_page_is_whole_in_itself_and_runs_nothing(run: Run) -> None:
    refuse_network(page_of(run))


def test_what_strangers_wrote_is_text(run: Run) -> None:
    page = page_of(run)
    if run.experiment.needs_text:
        assert html.escape(ATTACK) in page.text
    assert "<script" not in page.text
    assert CLASSES[1] not in page.text
    assert "dog&#34;&lt;i&gt;" in page.text
    assert "&lt;b&gt;" in page.text
    assert "<b>:" not in page.text


def test_the_commands_can_be_pasted_into_a_shell(run: Run) -> None:
    blocks = re.findall(r"<pre>(.*?)</pre>", run.report_file.read_text(), re.DOTALL)
    assert [shlex.split(html.unescape(block)) for block in blocks] == [COMMAND]


def test_the_same_run_gives_the_same_page(run: Run) -> None:
    before, generator, threads = run.report_file.read_bytes(), torch.get_rng_state(), torch.get_num_threads()
    write_report(run)
    assert run.report_file.read_bytes() == before
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.get_num_threads() == threads
    assert not list(run.path.glob(".*"))


def pixels_of(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_the_views_shown_are_those_of_the_first_batch(store: Store, name: str) -> None:
    experiment = experiment_of(name, store)
    views = experiment.device_views()
    columns = next(open_stream(experiment, store).local(0, 1))
    fed = [views.denormalize(view) for view in to_batch(columns, views, torch.device("cpu")).views]
    rows = training_views(experiment)
    assert len(rows) == 6
    for row, place in zip(rows, (0, 1, 2, 4, 5, 7), strict=True):  # spread over a batch of eight
        assert len(row.others) == experiment.num_views
        for shown, view in zip(row.others, fed, strict=True):
            expected = view[place].permute(1, 2, 0).numpy() * 255
            assert np.abs(pixels_of(shown.uri) - expected).max() <= 1
        stored = np.asarray(Image.open(io.BytesIO(store.read(int(columns["number"][place])))))
        assert np.array_equal(pixels_of(row.first.uri), stored)
        caption = store.index["captions"][int(columns["number"][place])].as_py()[0]
        assert row.caption == (caption if experiment.needs_text else "")


def test_neighbours_are_framed_by_class_and_only_for_the_store_that_was_evaluated(store: Store) -> None:
    labels, judged = store.index["label"].to_numpy(), evaluation_of(store)
    for row, (query, found) in zip(neighbours(judged, store), judged.neighbours.items(), strict=True):
        assert [other.same for other in row.others] == (labels[found] == labels[query]).tolist()
        assert row.first.text == CLASSES[labels[query]]
    with pytest.raises(ValueError, match="not the store that was evaluated"):
        neighbours(judged.model_copy(update={"store_digest": "x"}), store)


def test_a_reconstruction_keeps_what_is_visible(store: Store, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", experiment_of("mae", store), store)
    checkpoint = run.newest_checkpoint()
    assert checkpoint
    rows = reconstructions(run.experiment, checkpoint, store)
    assert len(rows) == 8
    for row in rows:
        true, left, predicted = (pixels_of(shown.uri).astype(int) for shown in (row.first, *row.others))
        visible = (left == true).all(-1)
        assert visible.mean() == pytest.approx(0.25, abs=0.01)
        assert np.array_equal(predicted[visible], true[visible])
        assert not np.array_equal(predicted, true)


def test_retrieved_captions_are_of_held_back_images(store: Store, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", experiment_of("clip", store), store)
    checkpoint = run.newest_checkpoint()
    assert checkpoint
    held_back = {store.index["captions"][int(number)].as_py()[0] for number in store.select("test")}
    found = retrieved_captions(run.experiment, checkpoint, store)
    assert len(found) == 4
    for one in found:
        texts, cosines, own = zip(*one.captions, strict=True)
        assert set(texts) <= held_back
        assert list(cosines) == sorted(cosines, reverse=True)
        assert (one.own in texts) == any(own) == (one.rank <= 3)
        assert one.among == len(held_back)


def test_a_run_that_has_just_begun_has_a_report(store: Store, tmp_path: Path) -> None:
    run = Run.prepare(tmp_path / "run", experiment_of("mae", store), COMMAND)
    text = write_report(run).read_text()
    for words in ("not finished: step 0 of 10", "Not evaluated yet.", "No metrics were logged yet",
                  "the run has no checkpoint yet"):  # fmt: skip
        assert words in text
    (run.path / "metrics.jsonl").write_text(json.dumps(metrics(1)[0]) + '\n{"cut')
    text = write_report(run).read_text()
    assert "not finished: step 1 of 10" in text
    assert 'class="dot"' in text


def test_a_page_tells_where_the_time_went_and_how_each_attempt_ended(store: Store, tmp_path: Path) -> None:
    """A worker lost after step 7; the checkpoint of step 4; a command killed in between, and given again later."""
    run = make_run(tmp_path / "run", experiment_of("simclr", store), store)
    write_lines(run.path / "metrics.jsonl", [
        *metrics(7), *metrics(8, attempt=2, restored=4, begin=BEGIN + 40),
        *metrics(10, attempt=4, restored=8, begin=BEGIN + 120),
    ])  # fmt: skip
    write_lines(run.path / "events.jsonl", [
        *UNDISTURBED[:3], event("checkpoint", 18, attempt=1, step=4, blocked_seconds=0),
        event("attempt", 38, attempt=2, step=4, world_size=1, began=BEGIN + 36),
        event("checkpoint", 48, attempt=2, step=8, blocked_seconds=2), event("command", 90, pid=2),
        event("attempt", 100, attempt=3, step=8, world_size=2), event("attempt", 115, attempt=4, step=8, world_size=2),
        event("fit_ended", 126), event("evaluate", 126), event("evaluated", 130),
    ])  # fmt: skip
    page = Page(write_report(run).read_text())
    spent = {"step": 19.8, "data wait": 0.2, "checkpoint": 2.0, "evaluation": 4, "lost work": 6 + 12 + 15, "idle": 40}
    spent["start-up"] = 130 - sum(spent.values())
    table = re.findall(r"</i>([a-z -]+)</td><td>([0-9.]+) s</td><td>([^<]+)</td>", page.text)
    assert {name: float(seconds) for name, seconds, _ in table} == pytest.approx(spent, abs=0.5)
    assert sum(float(share.removeprefix("&lt; ").removesuffix(" %")) for *_, share in table) == pytest.approx(
        100, abs=3
    )
    assert 'class="spent" role="img" aria-label="step 15 %, data wait &lt; 1 %, ' in page.text
    rows = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in page.text.split('"attempts"')[1].split("<tr>")[2:6]]
    assert rows == [
        ["1", "8.0 s", "2", "0", "7", "workers or their node were lost", "3", "–"],
        ["2", "36 s", "1", "4", "8", "the command was killed", "–", "16 s"],
        ["3", "1 min 40 s", "2", "8", "8", "workers or their node were lost", "–", "–"],
        ["4", "1 min 55 s", "2", "8", "10", "finished", "–", "32 s"],
    ]
    for words in ("4 attempts at the run, by 2 commands", "with 3 restarts", "A dashed line stands"):
        assert words in page.text
    (run.path / "events.jsonl").unlink()
    assert "Not shown: the run has no events.jsonl" in write_report(run).read_text()


def test_scores_of_an_older_step_are_said_to_be_so(store: Store, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", experiment_of("simclr", store), store)
    run.evaluation_file.write_text(evaluation_of(store, step=4).model_dump_json())
    text = write_report(run).read_text()
    assert "The scores are those of step 4; training has reached step 10" in text
    assert "No score could be computed" in text


def test_a_page_names_a_collapse_and_shows_peak_memory(store: Store, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", experiment_of("simclr", store), store)
    alike = Health(num_images=400, dim=256, rank=2.5, spread=0.02, mean_cosine=0.9996)
    random = Health(num_images=400, dim=256, rank=60, spread=0.3, mean_cosine=0.9)
    evaluation = evaluation_of(store, score(0.3, 0.48, 0.53))
    run.evaluation_file.write_text(
        evaluation.model_copy(update={"health": {"trained": alike, "random": random}}).model_dump_json()
    )
    write_lines(run.path / "metrics.jsonl", [{**row, "peak_memory_bytes": 1_234_000_000} for row in metrics(10)])
    text = write_report(run).read_text()
    assert "no labels: collapsed: all embeddings are alike (mean cosine 0.9996)" in text
    assert "Effective rank (RankMe) 2.5 of 256 (random encoder 60.0)" in text
    assert "<dt>Memory</dt><dd>1.23 GB<small>peak of the first worker, resident" in text
    assert "<b>peak memory bytes" not in text  # no curve of what only grows


def test_the_lineage_names_what_is_on_record_by_its_digest(store: Store, tmp_path: Path) -> None:
    experiment = experiment_of("simclr", store)
    first = make_run(tmp_path / "first one", experiment, store)
    write_report(first)
    begun = first.newest_checkpoint()
    start = {"training.start_from": str(first.path), "training.start_digest": begun.digest if begun else ""}
    run = make_run(tmp_path / "second", experiment.override(start), store)
    (run.path / "exports" / "timm").mkdir(parents=True)
    (run.path / "exports" / "timm" / "README.md").write_text(f"# An encoder\n{MADE_BY}")
    (run.path / "exports" / "other").mkdir()
    page = Page(write_report(run).read_text())
    kinds = re.findall("<li><small>([a-z ]+)</small>", page.text)
    assert kinds == ["dump", "store", "selection", "encoder from", "run", "checkpoint", "evaluation", "export"]
    checkpoint, selection = run.newest_checkpoint(), read_selection(store, store.selection)
    assert checkpoint
    for digest in (store.manifest.digest, selection.digest, start["training.start_digest"], run.experiment.digest,
                   checkpoint.digest):  # fmt: skip
        assert f'class="digest">{digest}<' in page.text
    assert {"../first%20one/report.html", "exports/timm/README.md"} <= {*page.links}
    refuse_network(page)
    assert f"torch {torch.__version__.partition('+')[0]}" in page.text
    assert "encoder from" not in first.report_file.read_text()


def test_the_commit_of_the_code_is_on_record_where_it_is_known(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.run._commit", lambda: "0123456789ab-dirty")
    run = make_run(tmp_path / "run", experiment_of("simclr", store), store)
    assert ", commit 0123456789ab-dirty" in write_report(run).read_text()
    monkeypatch.setattr("pipeline.run._commit", lambda: None)
    assert (
        ", commit" not in write_report(make_run(tmp_path / "other", experiment_of("simclr", store), store)).read_text()
    )


def test_without_its_store_a_run_still_has_scores_and_curves(store: Store, tmp_path: Path) -> None:
    experiment = experiment_of("clip", store).override({"data.store": str(tmp_path / "gone")})
    text = write_report(make_run(tmp_path / "run", experiment, store)).read_text()
    assert text.count(f"Not shown: no store at {tmp_path / 'gone'}") == 4
    assert "k-NN 62.0 %" in text
    assert "lowest 4 at 80 images" in text


def test_a_report_that_fails_leaves_the_old_one(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", experiment_of("simclr", store), store)
    run.report_file.write_text("old")
    monkeypatch.setattr(run_report, "data_summary", lambda store: {})  # the template is strict
    with pytest.raises(Exception, match="has no attribute 'manifest'"):
        write_report(run)
    assert run.report_file.read_text() == "old"
    assert not list(run.path.glob(".*"))


def test_the_data_card_counts_what_the_manifest_counts(store: Store) -> None:
    card = data_summary(store)
    assert card["manifest"].refused == {"format_forbidden": 1}
    assert card["classes"] == [("cat", 20), (CLASSES[1], 20)]
    assert card["sizes"] == ["40 × 32"] * 3
    assert card["unlabelled"] == 0


@pytest.mark.parametrize(
    ("scores", "tone", "words"),
    [
        ([(0.62, 0.48, 0.53)], "good", "k-NN 62.0 %: 14.0 points above the random encoder, 9.0 above raw pixels."),
        ([(0.27, 0.24, 0.35)], "bad", "above the random encoder, but 8.0 below raw pixels. It does NOT beat raw"),
        ([(0.54, 0.48, 0.53)], "close", "Too close to raw pixels to tell apart with 1,000 test images."),
        ([(0.10, 0.10, 0.10)], "bad", "It does NOT beat the random encoder or raw pixels or chance."),
        ([(0.62, 0.48, 0.53), (0.3, 0.4, 0.2)], "good", "Above both baselines: 1 of 2 scores."),
        ([], "none", "No score could be computed. zero_shot_top1: for a reason"),
    ],
)  # fmt: skip
def test_the_verdict_says_whether_baselines_are_beaten(store: Store, scores: Any, tone: str, words: str) -> None:
    said = verdict(evaluation_of(store, *(score(*values) for values in scores)))
    assert said["tone"] == tone
    assert words in f"{said['title']} {said['more']}"


@pytest.mark.parametrize(("share", "count"), [(0.0, 10), (0.1, 10), (0.62, 1000), (1.0, 3)])
def test_the_interval_ends_where_the_share_is_just_plausible(share: float, count: int) -> None:
    """Wilson's bounds p solve |share − p| = z · √(p(1 − p)/count)."""
    for bound in wilson(share, count):
        assert abs(share - bound) == pytest.approx(1.96 * sqrt(bound * (1 - bound) / count), abs=1e-9)


def test_curves_keep_every_metric_mark_restarts_and_average_long_runs() -> None:
    curves = draw_curves([*metrics(4), *metrics(8, attempt=2, restored=4)])
    assert [curve.title for curve in curves] == [
        "loss", "learning rate", "images per second", "waiting for data", "scale",
    ]  # fmt: skip
    assert [curve.restarts for curve in curves] == [(50.0,)] * 5
    assert not curves[0].band
    assert curves[0].summary == "from 4.9 to 4.2; lowest 4.2 at 64 images"
    (loss, *_) = draw_curves(metrics(5000))
    assert len(loss.line.split()) == 400
    assert len(loss.band.split()) == 800
    assert draw_curves([]) == []
    flat = draw_curves([{**row, "loss": 14.2 + row["step"] / 1e4} for row in metrics(9)])[0]
    assert len({tick.label for tick in flat.y_ticks}) == len(flat.y_ticks)


def browse(page: Path, picture: Path, profile: Path) -> str:
    """Renders a page to a PNG; returns what the browser logged."""
    browser = shutil.which("chromium")
    assert browser
    switches = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
                "--disable-background-networking", "--disable-component-update", "--disable-sync",
                "--enable-logging=stderr", "--window-size=1200,4000")  # fmt: skip
    command = [browser, *switches, f"--user-data-dir={profile}", f"--screenshot={picture}", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stderr


@pytest.fixture
def profile(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "profile"
    shutil.rmtree(tmp_path / "profile", ignore_errors=True)


needs_chromium = pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium on PATH")


@pytest.mark.browser
@needs_chromium
def test_a_browser_shows_it_and_blocks_nothing(run: Run, tmp_path: Path, profile: Path) -> None:
    page, picture = tmp_path / "report.html", tmp_path / "report.png"
    shutil.copy(run.report_file, page)
    log = browse(page, picture, profile)
    assert "CONSOLE" not in log, log
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1000  # noise pictures
    accent = (pixels == (0x25, 0x57, 0xB8)).all(-1).sum()
    assert accent > 500  # bars and curves


@pytest.mark.browser
@needs_chromium
def test_the_policy_blocks_what_would_be_loaded_and_the_browser_says_so(
    run: Run, tmp_path: Path, profile: Path
) -> None:
    """Else the test above would see nothing."""
    policy = page_of(run).policy
    page = tmp_path / "page.html"
    picture = "<img src='https://example.invalid/x.png'>"
    page.write_text(
        f'<!doctype html><head><meta http-equiv="Content-Security-Policy" content="{policy}"></head>{picture}'
    )
    assert "Content Security Policy" in browse(page, tmp_path / "page.png", profile)
