"""Small sealed stores, made by the real ingest code, and an experiment that trains on them in seconds."""

import colorsys
import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline.experiment import Experiment, build_experiment
from pipeline.ingest import curate as curation
from pipeline.ingest.curate import CurateConfig, curate, curate_unit
from pipeline.ingest.store import Store


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


def curate_here(source: Path, store: Path, config: CurateConfig) -> Store:
    """Curates in this process: the same units in a plain loop, for tests that need a store but no Ray."""

    def run(plan: Any, store: Path, config: CurateConfig, tell: Any) -> list[pa.Table]:
        batches = [pa.table({"unit": [unit.model_dump_json()]}) for unit in plan.units]
        return [table for batch in batches for table in curate_unit(batch, plan.root, store, config, plan.class_names)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curation, "_run", run)
        patch.setattr(curation, "connected", lambda address: contextlib.nullcontext())
        curate(source, store, config)
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
