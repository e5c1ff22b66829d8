"""Selections are immutable, named, and functions of the store and their settings."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.ingest.config import CurateConfig
from pipeline.ingest.selection import read_decisions, read_selection
from pipeline.ingest.store import Store
from pipeline.select import selecting
from pipeline.select.blocks import EmbeddingBlocks
from pipeline.select.policy import PRESETS, Inputs, Policy
from pipeline.select.selecting import BalanceConfig, ConceptsConfig, SemanticConfig, Stages, select
from tests.pipeline.stores import curate_here, write_dump

NONE = PRESETS["none"][0]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return curate_here(write_dump(tmp_path / "dump", 120), tmp_path / "store", CurateConfig(holdout=0.2))


@pytest.fixture
def embedded(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store whose embeddings are three tight groups, one a class: 40 samples each."""
    labels = store.index["label"].to_numpy()

    def embeddings(store: Store, run: str, numbers: np.ndarray, folder: Path) -> EmbeddingBlocks:
        noise = np.random.default_rng(0).normal(size=(len(labels), 16)) * 0.05
        vectors = np.eye(16)[labels] + noise
        return EmbeddingBlocks.write(folder, [vectors[numbers].astype(np.float32)])

    monkeypatch.setattr(selecting, "_embedded", embeddings)
    monkeypatch.setattr(selecting, "_digests_of", lambda stages: {"encoder": "x"} if stages.encoder else {})
    return store


def test_another_policy_reads_no_picture_and_closes_its_account(store: Store) -> None:
    for shard in store.paths.to_pylist():
        Path(shard).unlink()
    selection, new = select(store, "wide", NONE.model_copy(update={"max_aspect": 1.05}), Inputs(), Stages())
    assert new
    assert selection.kept + sum(selection.dropped.values()) == 120 == store.manifest.admitted
    assert selection.dropped == {"aspect_over_max": int((store.index["width"].to_numpy() > 25).sum())}
    kept = Store(store.path, "wide")
    assert len(kept.select("train")) + len(kept.select("test")) == selection.kept


def test_a_selection_never_changes(store: Store) -> None:
    policy = NONE.model_copy(update={"max_aspect": 1.05})
    first, _ = select(store, "mine", policy, Inputs(), Stages())
    again, new = select(store, "mine", policy, Inputs(), Stages())
    assert (again, new) == (first, False)
    with pytest.raises(ValueError, match="made otherwise, and none ever changes: choose"):
        select(store, "mine", NONE, Inputs(), Stages())
    with pytest.raises(ValueError, match="no name for a selection"):
        select(store, "../mine", NONE, Inputs(), Stages())
    path = store.path / "selections/mine/train.npy"
    path.write_bytes(path.read_bytes()[:-9] + b"x" + path.read_bytes()[-8:])
    with pytest.raises(ValueError, match="changed after it was written"):
        Store(store.path, "mine").select("train")
    with pytest.raises(ValueError, match=r"no selection 'other'.*there are: default, mine"):
        Store(store.path, "other").select("train")


def test_a_selection_of_another_store_is_refused(store: Store, tmp_path: Path) -> None:
    other = curate_here(write_dump(tmp_path / "b/dump", 30), tmp_path / "b/store")
    select(other, "mine", NONE, Inputs(), Stages())
    (other.path / "selections/mine").rename(store.path / "selections/mine")
    with pytest.raises(ValueError, match="belongs to another store"):
        Store(store.path, "mine").select("train")


def test_the_digest_names_the_samples_not_their_packing(store: Store, tmp_path: Path) -> None:
    packed = curate_here(tmp_path / "dump", tmp_path / "small", CurateConfig(samples_per_shard=7, holdout=0.2))
    assert packed.manifest.selection == store.manifest.selection
    assert packed.manifest.digest != store.manifest.digest


def test_evaluation_pictures_and_old_ones_are_kept_out(store: Store, tmp_path: Path) -> None:
    half = write_dump(tmp_path / "half/dump", 60)  # the first half of the pictures of the store
    old = curate_here(half, tmp_path / "half/store")
    ids = set(old.index["id"].to_pylist())
    shared = sum(id_ in ids for id_ in store.index["id"].to_pylist())
    assert shared == 60
    kept_out, _ = select(store, "clean", NONE, Inputs(evaluation_sets=(old.path,)), Stages())
    assert kept_out.dropped == {"eval_overlap": 60}
    assert list(kept_out.inputs.values()) == [old.manifest.index_sha256]
    new, _ = select(store, "new", NONE, Inputs(history=(old.path,)), Stages())
    assert new.dropped == {"dup_exact": 60}


def test_narrowing_keeps_the_reasons_of_the_wider_selection(store: Store) -> None:
    wide, _ = select(store, "wide", NONE.model_copy(update={"max_aspect": 1.05}), Inputs(), Stages())
    policy = NONE.model_copy(update={"min_entropy": 5.37})
    both, _ = select(store, "both", policy, Inputs(), Stages(), based_on="wide")
    assert both.based_on == wide.digest
    assert both.dropped["aspect_over_max"] == wide.dropped["aspect_over_max"]
    assert 0 < both.kept < wide.kept
    assert both.kept + sum(both.dropped.values()) == 120


def test_balanced_captions(store: Store) -> None:
    stages = Stages(concepts=ConceptsConfig(path=None, target=30, min_count=5))
    selection, _ = select(store, "concepts", NONE, Inputs(), stages)
    test = store.manifest.splits["test"]
    assert 20 < selection.kept - test < 40
    assert selection.splits["test"] == test
    assert {row["concept"] for row in selection.notes["concepts"]["largest"]} >= {"red", "green", "blue"}


def test_semantic_duplicates_leave_one_of_each_group(embedded: Store) -> None:
    stages = Stages(semantic=SemanticConfig(epsilon=0.3), encoder="run")
    selection, _ = select(embedded, "semantic", NONE, Inputs(), stages)
    test = embedded.manifest.splits["test"]
    assert selection.splits == {"train": 0, "test": test}  # a test picture stands for its training twins
    assert selection.dropped == {"dup_semantic": 120 - test}
    decisions = read_decisions(embedded, "semantic").to_pylist()
    labels = embedded.index["label"].to_pylist()
    for number, row in enumerate(decisions):
        if row["reason"]:
            assert labels[row["because"]] == labels[number]
            assert decisions[row["because"]]["reason"] is None
    assert not list((embedded.path / "selections/semantic").glob("scratch*"))


def test_balanced_sampling_draws_alike_from_every_region(embedded: Store) -> None:
    unequal = NONE.model_copy(update={"max_origin_share": 0.5})
    stages = Stages(balance=BalanceConfig(target=30, clusters=(12, 3)), encoder="run")
    selection, _ = select(embedded, "balanced", unequal, Inputs(), stages)
    chosen = Store(embedded.path, "balanced").select("train")
    counts = np.bincount(embedded.index["label"].to_numpy()[chosen])
    assert counts.tolist() == [10, 10, 10]
    assert selection.splits["test"] == embedded.manifest.splits["test"]
    with pytest.raises(ValueError, match="200 samples are asked for, but only"):
        select(embedded, "more", NONE, Inputs(), Stages(balance=BalanceConfig(target=200), encoder="run"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"semantic": {"share": 0.1}}, "name a trained run with --encoder"),
        ({"semantic": {}, "encoder": "x"}, "give either --semantic-share or --semantic-epsilon"),
        ({"concepts": {"target": 3, "cap": 3}}, "give either --concept-target or --concept-cap"),
    ],
)
def test_stages_that_cannot_work_are_refused(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Stages.model_validate(content)


def test_a_card_says_what_decided(store: Store) -> None:
    select(store, "mine", Policy(), Inputs(), Stages())
    card = json.loads((store.path / "selections/mine/selection.json").read_text())
    assert card["policy"]["policy"]["near_distance"] == 4
    assert read_selection(store, "mine").store == store.manifest.index_sha256
