"""Every recipe trains: 20 steps of a narrow encoder, from a store, through the stream, the loop and all phases."""

import math

import pytest
import torch

from jobs.recipes import RECIPES
from pipeline.train.worker import fresh_state
from tests.pipeline.test_loop import run

STEPS = 20


def narrow(experiment):
    """The recipe with an encoder, a queue and batches that a test can afford, in single precision: of convolutions of 8
    channels over maps of a few pixels, torch's bf16 on CPU now and then gives values that are not finite."""
    arguments = dict(experiment.encoder.arguments)
    if experiment.encoder.name.startswith("resnet"):
        arguments |= {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
    else:
        arguments |= {"embed_dim": 48, "depth": 2, "num_heads": 3}
    queue = {"objective.queue_size": 64} if experiment.objective.name == "moco" else {}
    return experiment.override(
        queue
        | {
            "encoder.arguments": arguments,
            "training.precision": "fp32",
            "data.batch_size": 16,
            "data.lanes": 4,
            "training.images_seen": 16 * STEPS,
            "training.log_every": 1,
        }
    )


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_recipe_runs_from_a_store(name, small_store):
    experiment = narrow(RECIPES[name]()).override({"data.store": str(small_store.path)}).fitted(small_store)
    experiment.check(small_store)
    state = fresh_state(experiment, torch.device("cpu"))
    before = {key: value.clone() for key, value in state.objective.encoder.state_dict().items()}
    rows = []
    run(experiment, state, STEPS, on_log=rows.append)
    assert [row.step for row in rows] == list(range(1, STEPS + 1))
    assert all(math.isfinite(value) for row in rows for value in row.metrics.values())
    after = state.objective.encoder.state_dict()
    assert any(not torch.equal(after[key], value) for key, value in before.items()), "the encoder has not moved"
    images = torch.randn(4, 3, experiment.encoder.image_size, experiment.encoder.image_size)
    assert state.objective.eval().embed(images).shape[0] == 4
