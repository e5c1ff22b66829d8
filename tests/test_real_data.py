"""Real packs, where they are: FERAL_TEST_DATA, or `shared/data` beside the checkout."""

import json
import os
import tarfile
from pathlib import Path

import pytest

from pipeline.ingest.config import CurateConfig
from pipeline.train.worker import open_stream
from tests.pipeline.stores import curate_here, tiny_experiment

DATA = Path(os.environ.get("FERAL_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


def unpacked(name: str, folder: Path) -> Path:
    pack = DATA / name
    if not pack.exists():
        pytest.skip(f"needs {name}: set FERAL_TEST_DATA to the folder that holds it")
    with tarfile.open(pack) as archive:
        archive.extractall(folder, filter="data")
    return next(path for path in folder.iterdir() if path.is_dir())


@pytest.mark.slow
def test_class_folders_and_split_folders_of_tiny_imagenet(tmp_path):
    store = curate_here(unpacked("tinyimagenet_dev50.tar.gz", tmp_path / "pack"), tmp_path / "store", CurateConfig())
    manifest = store.manifest
    assert manifest.seen == 12_500 == manifest.kept + sum(manifest.refused.values())
    assert len(manifest.classes) == 50
    assert "American alligator" in manifest.classes  # from classes.csv, not the folder's name
    assert manifest.splits["test"] == 2_500


@pytest.mark.slow
def test_every_caption_of_flickr_is_kept_and_one_is_read(tmp_path):
    source = unpacked("flickr8k_train3000_224q75.tar.gz", tmp_path / "pack")
    store = curate_here(source, tmp_path / "store", CurateConfig())
    told: dict[str, set[str]] = {}
    for line in (source / "captions.jsonl").read_text().splitlines():
        row = json.loads(line)
        told.setdefault(row["image"], set()).add(" ".join(row["caption"].split()))
    for image, captions in zip(*store.index.select(["source", "captions"]).to_pydict().values(), strict=True):
        assert {" ".join(caption.split()) for caption in captions} == told[image]  # the same words twice count once
    assert store.manifest.seen == 3_000
    experiment = tiny_experiment(store.path).override(
        {"objective": {"name": "clip", "dim": 8, "text": {"width": 16, "layers": 1, "heads": 2, "context_length": 24}}}
    )
    (batch,) = open_stream(experiment, store).local(0, 1)
    assert batch["crops"].std() > 30  # photos, not blanks
    assert ((batch["tokens"] > 0).sum(1) > 5).all()
