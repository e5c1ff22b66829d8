"""Embeddings as Parquet, and what is found among them."""

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pipeline.evaluate.encoders import RunEncoders
from pipeline.run import Run
from pipeline.search import vectors
from pipeline.search.page import write_found
from pipeline.search.searching import search
from pipeline.search.vectors import embed_source
from pipeline.train.checkpoints import save_checkpoint
from pipeline.train.worker import fresh_state
from tests.pipeline.embedding import HERE, embed_here

CLIP = {"name": "clip", "dim": 8, "text": {"width": 16, "layers": 1, "heads": 2, "context_length": 12}}


@pytest.fixture
def run(small_experiment, tmp_path) -> Run:
    experiment = small_experiment.override({"objective": CLIP})
    found = Run.prepare(tmp_path / "run", experiment, ["feral", "pretrain"])
    save_checkpoint(found.checkpoints, fresh_state(experiment, torch.device("cpu")), keep=2)
    return found


@pytest.fixture
def embedded(monkeypatch) -> list[int]:
    monkeypatch.setattr(vectors, "PART_SAMPLES", 64)
    return embed_here(monkeypatch, block=70)


def embed(run: Run, store, folder):
    return embed_source(str(run.path), RunEncoders.of(run), store, "dump", folder, HERE)


def test_every_image_has_a_row_with_what_is_known_of_it(run, embedded, small_store, tmp_path):
    about = embed(run, small_store, tmp_path / "out")
    found = ds.dataset(tmp_path / "out", format="parquet").to_table()
    assert about.images == len(found) == 300
    assert found["number"].to_pylist() == list(range(300))
    expected = small_store.columns("id", "source", "captions")
    for name in expected.column_names:
        assert found[name].to_pylist() == expected[name].to_pylist()
    classes = small_store.manifest.classes
    assert found["label"].to_pylist() == [classes[label] for label in small_store.column("label").to_pylist()]
    direct = HERE.samples(RunEncoders.of(run), small_store, np.arange(300))
    rows = np.stack(found["embedding"].to_numpy())
    assert np.allclose(rows, direct.features["trained"], atol=1e-5)
    assert np.allclose(np.linalg.norm(np.stack(found["projection"].to_numpy()), axis=1), 1, atol=1e-5)


def test_what_was_embedded_before_an_interruption_is_not_embedded_again(run, embedded, small_store, tmp_path):
    embed(run, small_store, tmp_path / "out")
    names = [path.name for path in sorted((tmp_path / "out").glob("*.parquet"))]
    assert [pq.read_metadata(tmp_path / "out" / name).num_rows for name in names] == [64, 64, 64, 64, 44]
    whole = ds.dataset(tmp_path / "out", format="parquet").to_table()
    for name in (names[1], names[4]):
        (tmp_path / "out" / name).unlink()
    embedded.clear()
    embed(run, small_store, tmp_path / "out")
    assert embedded == [108]
    assert ds.dataset(tmp_path / "out", format="parquet").to_table().equals(whole)
    embed(run, small_store, tmp_path / "out")
    assert embedded == [108]


def test_embeddings_of_two_encoders_are_not_mixed(run, embedded, small_store, tmp_path):
    embed(run, small_store, tmp_path / "out")
    state = fresh_state(run.experiment, torch.device("cpu"))
    state.step = 5
    save_checkpoint(run.checkpoints, state, keep=2)
    with pytest.raises(ValueError, match=r"holds embeddings of .*run, as it was then: give --to another folder"):
        embed(run, small_store, tmp_path / "out")
    with pytest.raises(ValueError, match=r"is not as it was when .* was written \(step 5 now\)"):
        search(tmp_path / "out", text="a red square")


@pytest.mark.parametrize("rows", [7, 8192])
def test_a_search_finds_what_comparing_with_all_finds(run, embedded, small_store, tmp_path, monkeypatch, rows):
    monkeypatch.setattr("pipeline.search.searching.ROWS", rows)
    embed(run, small_store, tmp_path / "out")
    features = HERE.samples(RunEncoders.of(run), small_store, np.arange(300)).features
    objective = RunEncoders.of(run).load()["trained"]
    from pipeline.stream.read import tokenize

    with torch.no_grad():
        text = objective.project_text(torch.from_numpy(tokenize(["a red square"], 12)))[0].numpy()
    expected = np.argsort(-(features["trained_projection"] @ text), kind="stable")[:6]
    hits = search(tmp_path / "out", text="a red square", count=6)
    assert [hit.number for hit in hits] == expected.tolist()
    assert hits[0].similarity >= hits[-1].similarity
    assert hits[0].source == small_store.column("source")[hits[0].number].as_py()


def test_an_image_finds_itself_and_the_page_shows_it(run, embedded, small_store, tmp_path):
    embed(run, small_store, tmp_path / "out")
    (tmp_path / "query.jpg").write_bytes(small_store.read(17))
    hits = search(tmp_path / "out", image=tmp_path / "query.jpg", count=400)
    assert len(hits) == 300
    assert hits[0].number == 17
    assert hits[0].similarity == pytest.approx(1, abs=1e-4)
    write_found(tmp_path / "page.html", tmp_path / "out", hits[:3], tmp_path / "query.jpg", None)
    page = (tmp_path / "page.html").read_text()
    assert page.count("<img") == 4
    assert "http" not in page.replace("http-equiv", "")


def test_what_cannot_be_searched_is_said(run, embedded, small_store, tmp_path):
    with pytest.raises(ValueError, match="holds no embeddings: make them with `feral embed"):
        search(tmp_path, text="x")
    embed(run, small_store, tmp_path / "out")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    with pytest.raises(ValueError, match=r"broken\.jpg cannot be used as an image"):
        search(tmp_path / "out", image=tmp_path / "broken.jpg")
    with pytest.raises(ValueError, match=r"nowhere\.jpg cannot be used as an image"):
        search(tmp_path / "out", image=tmp_path / "nowhere.jpg")
    simclr = Run.prepare(tmp_path / "simclr", run.experiment.override({"objective": {"name": "simclr"}}), [])
    save_checkpoint(simclr.checkpoints, fresh_state(simclr.experiment, torch.device("cpu")), keep=2)
    embed(simclr, small_store, tmp_path / "other")
    with pytest.raises(ValueError, match=r"was not trained with text, .* search with --image"):
        search(tmp_path / "other", text="a red square")
    Image.new("RGB", (30, 20), "red").save(tmp_path / "red.png")
    assert search(tmp_path / "other", image=tmp_path / "red.png", count=1)
