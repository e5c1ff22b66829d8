"""Weights are part of a selection: what they are, what refuses them, and that the stream reads what the card says."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from jobs.cli import app
from pipeline.ingest import selection as module
from pipeline.ingest.blocklist import BlockList, block
from pipeline.ingest.config import CurateConfig
from pipeline.ingest.selection import check_selection, digest_of, read_decisions, read_selection
from pipeline.ingest.store import Store
from pipeline.report.data_card import data_card
from pipeline.select.policy import Funnel, Inputs, Policy
from pipeline.select.selecting import Stages, select
from pipeline.select.weights import weigh
from pipeline.stream.plan import Plan
from tests.pipeline.stores import curate_here, write_dump

PLAIN: dict[str, Any] = {"near_distance": None, "exact_duplicates": False}


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("weights")
    return curate_here(write_dump(folder / "dump", 120), folder / "store", CurateConfig(holdout=0.2))


@pytest.fixture
def store(sealed: Store, tmp_path: Path) -> Store:
    """A copy, to spoil."""
    import shutil

    return Store(shutil.copytree(sealed.path, tmp_path / "store"))


def funnel(origins: list[str | None], labels: list[int] | None = None, tests: int = 0) -> Funnel:
    """The first `tests` samples are for testing."""
    count = len(origins)
    table = pa.table(
        {
            "origin": pa.array(origins, pa.string()),
            "label": pa.array(labels or [-1] * count, pa.int32()),
            "split": ["test"] * tests + ["train"] * (count - tests),
        }
    )
    return Funnel(table, np.full(count, None, object), np.full(count, -1, np.int64))


def weights(on_its_way: Funnel, classes: tuple[str, ...] = (), **settings: Any) -> list[float]:
    weigh(Policy(**PLAIN, **settings), on_its_way, classes)
    assert on_its_way.weights is not None
    return on_its_way.weights.tolist()


def test_a_class_weighs_what_it_is_given_and_the_others_one() -> None:
    labelled = funnel(["x"] * 5, [0, 1, 2, -1, 1], tests=1)
    given = {"weight_by": "label", "weights": {"cat": 0.5, "ant": 3}}
    assert weights(labelled, ("ant", "cat", "dog"), **given) == [1, 0.5, 1, 1, 0.5]  # the first is for testing
    assert labelled.notes == {"weights by label": {"cat": 0.5, "dog": 1.0}}


def test_a_folder_weighs_for_every_origin_in_it_and_the_innermost_counts() -> None:
    origins = ["a/0.tar", "a/1.tar", "a/b/2.tar", "ab/3.tar", None]
    assert weights(funnel(origins), weight_by="origin", weights={"a": 2, "a/b": 0}) == [2, 2, 0, 1, 1]
    assert weights(funnel(origins), weight_by="origin", weights={"a/1.tar": 4}) == [1, 4, 1, 1, 1]


@pytest.mark.parametrize("balance", [0.25, 0.5, 1.0])
def test_balance_tempers_the_shares_and_keeps_the_length_of_an_epoch(balance: float) -> None:
    sizes = np.array([800, 50, 150])
    found = np.array(weights(funnel(["a"] * 800 + ["b"] * 50 + ["c"] * 150), weight_by="origin", balance=balance))
    shares = np.add.reduceat(found, [0, 800, 850])
    assert found.sum() == pytest.approx(1000)
    assert shares / shares.sum() == pytest.approx(sizes ** (1 - balance) / (sizes ** (1 - balance)).sum())


def test_weights_multiply_balance_and_what_there_was_before() -> None:
    balanced = funnel(["a"] * 6 + ["b"] * 2)
    assert weights(balanced, weight_by="origin", balance=1, weights={"b": 3}) == pytest.approx([2 / 3] * 6 + [6] * 2)
    heavy = funnel(["a"] * 2 + ["b"] * 2, [0, 1, 0, 1])
    assert weights(heavy, weight_by="origin", weights={"a": 3}) == [3, 3, 1, 1]
    assert weights(heavy, ("x", "y"), weight_by="label", weights={"x": 2}) == [6, 3, 2, 1]


def test_a_folder_that_is_named_is_one_group_to_balance() -> None:
    origins = ["a/0"] * 3 + ["a/1"] * 3 + ["b"] * 2
    found = weights(funnel(origins), weight_by="origin", balance=1, weights={"a": 1})
    assert found == pytest.approx([4 / 6] * 6 + [2] * 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight_by": "origin", "weights": {"dmup/0": 2}}, r"no origin 'dmup/0'; did you mean 'dump/0'"),
        ({"weight_by": "origin", "weights": {"zzz": 2}}, r"no origin 'zzz'; there are 'dump', 'dump/0', 'dump/1'"),
        ({"weight_by": "label", "weights": {"cta": 2}}, r"no class 'cta'; did you mean 'cat'\?"),
        ({"weight_by": "origin", "weights": {"dump": 0}}, "every training sample would weigh 0"),
        ({"weight_by": "origin", "balance": 1}, r"'dump/1' would come 150 times an epoch, over 100: use balance=0\.85"),
    ],
)  # fmt: skip
def test_weights_that_cannot_be_are_refused_with_a_way_out(settings: dict[str, Any], message: str) -> None:
    lopsided = funnel(["dump/0"] * 299 + ["dump/1"], [0, 1] * 150)
    with pytest.raises(ValueError, match=message):
        weights(lopsided, ("ant", "cat"), **settings)


def test_the_balance_that_is_proposed_fits() -> None:
    fits = weights(funnel(["dump/0"] * 299 + ["dump/1"]), weight_by="origin", balance=0.85)
    assert 50 < max(fits) <= 100


def test_without_labels_there_is_nothing_to_weigh_by() -> None:
    with pytest.raises(ValueError, match="no training sample has a weight and a label"):
        weights(funnel(["a"] * 3), weight_by="label", balance=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"balance": 0.5}, "of what\\? add weight_by=label or weight_by=origin"),
        ({"weight_by": "label"}, "weight_by=label does nothing alone"),
        ({"weight_by": "label", "weights": {"a": -1}}, "greater than or equal to 0"),
        ({"weight_by": "label", "weights": {"a": 101}}, "less than or equal to 100"),
        ({"weight_by": "label", "balance": 1.5}, "less than or equal to 1"),
    ],
)
def test_a_policy_of_weights_must_make_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Policy(**settings)


def test_the_stream_maps_what_the_decisions_say(store: Store) -> None:
    policy = Policy(**PLAIN, max_aspect=1.05, weight_by="label", weights={"red": 3, "green": 0.25})
    selection, _ = select(store, "mix", policy, Inputs(), Stages())
    opened = Store(store.path, "mix")
    decisions, split = read_decisions(opened, "mix").to_pydict(), store.index["split"].to_pylist()
    for name in ("train", "test"):
        numbers = opened.select(name)
        assert numbers.dtype == np.int64
        assert numbers.tolist() == [
            n for n, reason in enumerate(decisions["reason"]) if reason is None and split[n] == name
        ]
    found = opened.weights("train")
    assert found is not None
    assert found.dtype == np.float32
    assert found.tolist() == [decisions["weight"][n] or 1 for n in opened.select("train")]
    classes = np.array(store.manifest.classes)[store.index["label"].to_numpy()[opened.select("train")]]
    assert dict(zip(classes, found.tolist(), strict=True)) == {"red": 3, "green": 0.25}  # no blue one is so narrow
    assert opened.weights("test") is None
    assert selection.weights == {"least": 0.25, "most": 3, "sum": found.sum()}
    assert Plan(len(found), 8, 4, 0, weights=found).entries == selection.entries == int(found.sum())
    assert Store(store.path).weights("train") is None
    assert read_selection(store, "default").weights == {}
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 1


def test_a_blocked_sample_leaves_a_selection_but_not_its_order(store: Store) -> None:
    select(store, "mix", Policy(**PLAIN, weight_by="label", weights={"red": 3}), Inputs(), Stages())
    opened = Store(store.path, "mix")
    before = opened.select("train")
    ids = store.index["id"].to_pylist()
    block(store.path, BlockList(frozenset(ids[number] for number in before[[0, 5, -1]])))
    assert np.array_equal(opened.select("train"), np.delete(before, [0, 5, len(before) - 1]))
    assert np.array_equal(opened.select("train", with_blocked=True), before)
    assert len(opened.weights("train")) == len(before)


def test_the_digest_covers_weights_only_where_there_are_any(store: Store) -> None:
    ids, splits = pa.chunked_array([["b", "a", "a"]]), pa.chunked_array([["train", "test", "train"]])

    def digest(weights: list[float], order: tuple[int, ...] = (0, 1, 2)) -> str:
        column = pa.chunked_array([pa.array(weights, pa.float32())])
        return digest_of(*(part.take(pa.array(order)) for part in (ids, splits, column)))

    assert digest([1, 1, 1]) != digest([2, 1, 1]) != digest([1, 1, 2])
    assert digest([2, 1, 0.5]) == digest([2, 1, 0.5], (2, 0, 1))
    plain, _ = select(store, "plain", Policy(**PLAIN), Inputs(), Stages())
    even, _ = select(store, "even", Policy(**PLAIN, weight_by="label", weights={"red": 1}), Inputs(), Stages())
    heavy, _ = select(store, "heavy", Policy(**PLAIN, weight_by="label", weights={"red": 2}), Inputs(), Stages())
    assert plain.digest == even.digest == store.manifest.selection != heavy.digest
    assert even.weights == {}
    assert not (store.path / "selections/even/train_weights.npy").exists()


def test_a_narrower_selection_keeps_the_weights_of_the_wider_one(store: Store) -> None:
    select(store, "wide", Policy(**PLAIN, weight_by="label", weights={"red": 4}), Inputs(), Stages())
    narrow, _ = select(store, "narrow", Policy(**PLAIN, max_aspect=1.05), Inputs(), Stages(), based_on="wide")
    assert narrow.weights["most"] == 4
    both = Policy(**PLAIN, weight_by="label", weights={"red": 2, "blue": 0.5})
    twice, _ = select(store, "twice", both, Inputs(), Stages(), based_on="wide")
    assert twice.weights == {"least": 0.5, "most": 8, "sum": pytest.approx(twice.weights["sum"])}


@pytest.mark.parametrize("name", ["decisions.parquet", "train.npy", "test.npy", "train_weights.npy"])
@pytest.mark.parametrize("damage", ["bit", "cut", "gone"])
def test_a_changed_selection_is_found_and_made_anew(
    store: Store, name: str, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Policy(**PLAIN, weight_by="label", weights={"red": 4})
    whole, _ = select(store, "mine", policy, Inputs(), Stages())
    assert check_selection(store, "mine") == check_selection(store, "default") == []
    path = store.path / "selections/mine" / name
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:] if damage == "bit" else content[:-1])
    opened = Store(store.path, "mine")
    reads = {
        "decisions.parquet": lambda: read_decisions(opened, "mine"), "train.npy": lambda: opened.select("train"),
        "test.npy": lambda: opened.select("test"), "train_weights.npy": lambda: opened.weights("train"),
    }  # fmt: skip
    with pytest.raises(ValueError, match=rf"{name} (was changed after it was written|is missing): restore it, or make"):
        reads[name]()
    assert [name in fault for fault in check_selection(store, "mine")] == [True]
    monkeypatch.setattr(module, "COMPARED_BYTES", 0)  # as if it were large: opening it takes no time
    if damage == "bit" and name != "decisions.parquet":
        reads[name]()
        assert len(check_selection(store, "mine")) == 1
    again, new = select(store, "mine", policy, Inputs(), Stages())
    assert new
    assert again.digest == whole.digest
    assert path.read_bytes() == content
    assert check_selection(store, "mine") == []


def test_a_missing_or_foreign_selection_is_a_fault(store: Store) -> None:
    assert "no selection 'other'" in check_selection(store, "other")[0]
    card = store.path / "selections/default/selection.json"
    card.write_text(card.read_text().replace(store.manifest.selection, "0" * 64))
    assert check_selection(store, "default") == [f"{card} is not the one that the store was sealed with"]


def test_the_command_makes_and_tells_of_weights(store: Store) -> None:
    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["select", str(store.path), *arguments])
        return result.output + str(result.exception or "")

    train = store.manifest.splits["train"]
    red = np.bincount(store.index["label"].to_numpy()[store.select("train")])[store.manifest.classes.index("red")]
    told = run("mix", "--policy", "none", "weight_by=label", 'weights={"red": 2}')
    assert "weights by label: " in told
    assert "red ×2" in told
    assert f"; an epoch has {train + red} entries of {train} pictures" in told
    narrow = run("narrow", "--from", "mix", "max_aspect=1.05")
    assert "weights: 1 to 2, as in the wider selection; an epoch has" in narrow
    assert f"an epoch has {train} entries" in run("even", "--policy", "none", "weight_by=label", "balance=1")
    assert "did you mean 'red'" in run("wrong", "weight_by=label", 'weights={"rde": 2}')
    assert "add weight_by=label or weight_by=origin" in run("wrong", "balance=1")
    card = data_card(store, "mix")
    assert card["selection"]["notes"]["weights by label"]["red"] == 2
    again = card["commands"]["again"]
    assert "weight_by=label" in again
    assert """'weights={"red": 2.0}'""" in again
