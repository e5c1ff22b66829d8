"""`feral curate` as a person sees it."""

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from jobs.cli import app
from pipeline.ingest.config import CurateConfig
from pipeline.ingest.store import Store
from pipeline.select.policy import PRESETS, Policy
from tests.pipeline.stores import curate_here


def picture(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two classes of ten pictures, one of them twice; a page, a damaged tar, hostile names."""
    for number in range(20):
        (tmp_path / "source" / f"class{number % 2}").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"source/class{number % 2}/{number}.png").write_bytes(picture(min(number, 18)))
    (tmp_path / "source/class0/x\x1b[2J.jpg").write_text("<html>")
    (tmp_path / "source/\x1bbad.tar").write_bytes(b"x" * 2000)
    return tmp_path / "source"


@pytest.mark.cluster
def test_it_ends_with_five_lines_of_what_happened_and_what_comes_next(
    ray_local: Any, tmp_path: Path, source: Path
) -> None:
    arguments = ["curate", str(source), "--to", str(tmp_path / "store"), "side=16", "near_distance=null"]
    first, second = CliRunner().invoke(app, arguments), CliRunner().invoke(app, arguments)
    assert first.exit_code == second.exit_code == 0, first.output
    lines = first.stdout.splitlines()
    assert len(lines) == 5
    assert lines[0] == f"21 seen = 19 kept + 2 refused → {tmp_path / 'store'}"
    assert lines[1] == f"refused: 1 dup_exact, 1 format_forbidden; see {tmp_path / 'store/data_card.html'}"
    assert lines[2].startswith("damaged: \\x1bbad.tar (0 samples saved, an unknown number lost): ")
    assert lines[3].endswith("images/s")
    assert "2 classes, 0 with captions" in lines[3]
    assert lines[4] == f"next: feral pretrain RECIPE data.store={tmp_path / 'store'}"
    assert "nothing to do" in second.output
    card = json.loads((tmp_path / "store/data_card.json").read_text())
    assert card["counts"]["seen"] == 21


def test_select_and_block_change_what_is_read_without_reading_a_picture(tmp_path: Path, source: Path) -> None:
    store = curate_here(source, tmp_path / "store").path

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, [*arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    told = run("select", str(store), "all", "--policy", "none")
    assert "20 in the store = 20 kept + 0 dropped" in told
    assert f"next: feral pretrain RECIPE data.store={store} data.selection=all" in told
    assert (store / "selections/all/data_card.html").exists()
    assert "nothing to do" in run("select", str(store), "all", "--policy", "none")
    first = Store(store).index["id"].to_pylist()[0]
    assert "1 hashes added, 1 in" in run("block", str(store), first)
    assert "1 of 20 samples are blocked now" in run("block", str(store), first)
    assert len(Store(store, "all").select("train")) + len(Store(store, "all").select("test")) == 19
    narrow = run("select", str(store), "narrow", "--from", "default", "min_side=20")
    assert "20 in the store = 19 kept + 1 dropped; 1 dup_exact" in narrow


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "basc"], "'basc' is unknown: choose one of none, clean, basic, strict"),
        (["min_sde=3"], r"min_sde: no such setting; did you mean min_std\?|min_sde: no such setting"),
        (["quality=3"], r"quality=3: should be greater than or equal to 30 \(`feral policies` lists"),
        (["near_distance=7"], "near_distance=7: should be less than or equal to 6"),
        (["side"], "'side' is no setting: write key=value"),
        (["--eval-set", "nowhere"], "no store at .*nowhere: make one with"),
        (["--block-list", "nowhere"], "--block-list nowhere: no such file"),
    ],
)
def test_a_mistake_is_told_before_anything_starts(
    tmp_path: Path, source: Path, arguments: list[str], message: str
) -> None:
    result = CliRunner().invoke(app, ["curate", str(source), "--to", str(tmp_path / "store"), *arguments])
    assert isinstance(result.exception, ValueError)
    assert re.search(message, str(result.exception)), result.exception
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        (["--concept-target", "9"], "--concepts"),
        (["--concept-cap", "9"], "--concepts"),
        (["--concept-min-count", "9"], "--concepts auto"),
        (["--concept-min-count", "9", "--concepts", "words.txt", "--concept-cap", "9"], "--concepts auto"),
        (["--clusters", "9,3"], "--balance"),
        (["--encoder", "runs/first"], "--semantic-share, --semantic-epsilon or --balance"),
    ],
)
def test_an_option_of_select_that_would_do_nothing_is_refused(
    tmp_path: Path, source: Path, arguments: list[str], needed: str
) -> None:
    store = curate_here(source, tmp_path / "store").path
    result = CliRunner().invoke(app, ["select", str(store), "mine", *arguments])
    assert isinstance(result.exception, ValueError)
    assert f"{arguments[0]} does nothing without {needed}: add that" in str(result.exception)
    assert not (store / "selections/mine").exists()


def test_policies_are_listed_with_every_threshold() -> None:
    told = CliRunner().invoke(app, ["policies"], env={"COLUMNS": "200"}).stdout
    for name in [*PRESETS, *Policy.model_fields, *CurateConfig.model_fields]:
        assert name in told


def test_a_wrong_source_is_a_message_and_starts_no_ray(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["curate", str(tmp_path / "nowhere"), "--to", str(tmp_path / "store")])
    assert isinstance(result.exception, ValueError)
    assert "no source at" in str(result.exception)
    assert not (tmp_path / "store").exists()


def test_a_store_in_a_bucket_is_refused_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (
        ["curate", "photos", "--to", "s3://bucket/store"],
        ["pretrain", "simclr_32px", "data.store=s3://bucket/store"],
        ["pretrain", "simclr_32px", "data.store=a", "data.replay=[stores/a,gs://bucket/store]"],
    ):
        with pytest.raises(ValueError, match=r"a store lies on a file system that all nodes mount.*--in-place"):
            CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert list(tmp_path.iterdir()) == []
