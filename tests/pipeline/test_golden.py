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
from tests.ssl_models.contract import CASES

FILE = Path(__file__).with_name("golden.json")


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_losses_are_what_they_were(small_store, name):
    case = CASES[name]
    content = tiny_experiment(small_store.path).model_dump(mode="json")
    content |= {"objective": case.config.model_dump(mode="json"), "encoder": case.encoder.model_dump(mode="json")}
    content["views"] |= {"local_crops": case.local_crops, "local_size": case.encoder.image_size // 2}
    experiment = build_experiment(content).override({"optimizer.learning_rate": 0.001, "training.images_seen": 640})
    experiment = experiment.fitted(small_store)
    rows: list[tuple[int, float]] = []
    run(experiment, fresh_state(experiment, torch.device("cpu")), experiment.total_steps, rows)
    losses = [round(loss, 6) for _, loss in rows]
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    if os.environ.get("FERAL_WRITE_GOLDEN"):
        FILE.write_text(json.dumps(known | {name: losses}, indent=1))
    else:
        assert losses == pytest.approx(known[name], abs=case.golden)
