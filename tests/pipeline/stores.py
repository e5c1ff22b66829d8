"""Small sealed stores, made by the real ingest code, and an experiment that trains on them in seconds."""

import colorsys
import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline import curate as curation
from pipeline.experiment import Experiment, build_experiment
from pipeline.ingest.config import CurateConfig
from pipeline.ingest.sources import Unit
from pipeline.ingest.store import Store
from pipeline.select.policy import Inputs, Policy

EVERYTHING = Policy(near_distance=None)  # exact duplicates only: generated pictures may look alike


def write_dump(root: Path, count: int, side: int = 24, classes: tuple[str, ...] = ("red", "green", "blue")) -> Path:
    """Class folders of noisy pictures whose hue tells the class, each with a caption beside it."""
    generator = np.random.default_rng(0)
    for i in range(count):
        label = i % len(classes)
        colour = 200 * np.array(colorsys.hsv_to_rgb(label / len(classes), 0.8, 1.0))
        pixels = (colour + generator.integers(0, 55, (side, side + i % 3, 3))).astype(np.uint8)
        path = root / classes[label] / f"{i:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        path.with_suffix(".txt").write_text(f"a {classes[label]} square, number {i}")
    return root


def curate_here(
    source: Path | str,
    store: Path,
    config: CurateConfig = CurateConfig(),
    policy: Policy = EVERYTHING,
    inputs: Inputs | None = None,
    *,
    overwrite: bool = False,
) -> Store:
    """Curates in this process: the same units in a plain loop, for tests that need a store but no Ray."""

    def run(units: list[Unit], task: Any, watch: Any) -> None:
        for unit in units:
            for progress in task(pa.table({"unit": [unit.model_dump_json()]})):
                watch.take(progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curation, "run_units", run)
        patch.setattr(curation, "connected", lambda address: contextlib.nullcontext())
        curation.curate(source, store, config, policy=policy, inputs=inputs, overwrite=overwrite)
    return Store(store)


def tiny_experiment(store: Path) -> Experiment:
    """SimCLR at 16 px for 12 steps, in single precision."""
    return build_experiment(
        {
            "data": {"store": str(store), "batch_size": 32, "lanes": 4},
            "encoder": {
                "name": "resnet18",
                "image_size": 16,
                "stem": "small_stride2",
                "arguments": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]},
            },
            "objective": {"name": "simclr", "projector_dims": [16, 8]},
            "optimizer": {"name": "sgd", "learning_rate": 0.1},
            "training": {"images_seen": 384, "precision": "fp32", "log_every": 1, "checkpoint_every": 4},
        }
    )
