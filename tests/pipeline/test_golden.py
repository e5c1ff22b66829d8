"""A refactoring gives the identical loss: what every objective computed when its numbers were last looked at.

After a change that is meant to change them: `FERAL_WRITE_GOLDEN=1 pytest tests/pipeline/test_golden.py`.
"""

import json
import os
from pathlib import Path

import pytest
import torch

from pipeline.experiment import build_experiment
from pipeline.train.worker import fresh_state
from ssl_models.objectives import OBJECTIVES
from tests.pipeline.stores import tiny_experiment
from tests.pipeline.test_loop import run

FILE = Path(__file__).with_name("golden.json")
CHANGES = {
    "simclr": {},
    "mae": {
        "encoder": {"name": "vit_tiny_patch16_224", "image_size": 16, "patch_size": 4, "stem": "auto",
                    "arguments": {"embed_dim": 24, "depth": 2, "num_heads": 2}},
        "objective": {"name": "mae", "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2},
    },
    "clip": {
        "objective": {"name": "clip", "dim": 8, "text": {"width": 16, "layers": 1, "heads": 2, "context_length": 12}}
    },
}  # fmt: skip


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_losses_are_what_they_were(small_store, name):
    content = tiny_experiment(small_store.path).model_dump(mode="json") | CHANGES[name]
    experiment = build_experiment(content).override({"optimizer.learning_rate": 0.001, "training.images_seen": 640})
    rows: list[tuple[int, float]] = []
    run(experiment, fresh_state(experiment, torch.device("cpu")), experiment.total_steps, rows)
    losses = [round(loss, 6) for _, loss in rows]
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    if os.environ.get("FERAL_WRITE_GOLDEN"):
        FILE.write_text(json.dumps(known | {name: losses}, indent=1))
    else:
        assert losses == pytest.approx(known[name], abs=5e-4)  # of other processors' rounding, after 20 steps
