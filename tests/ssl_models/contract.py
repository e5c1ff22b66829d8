"""One tiny case of every objective, for the contract tests."""

import importlib
import pkgutil

import torch

from ssl_models.batch import Batch, Step
from ssl_models.objectives import OBJECTIVES, Objective, build_objective
from ssl_models.optimizers import OptimizerConfig, build_optimizer
from tests.ssl_models import cases
from tests.ssl_models.cases.case import CLASSES, SAMPLES, TEXT, Case

FAMILIES = [
    importlib.import_module(f"{cases.__name__}.{module.name}")
    for module in pkgutil.iter_modules(cases.__path__)
    if module.name != "case"
]
CASES: dict[str, Case] = {name: case for family in FAMILIES for name, case in family.CASES.items()}
assert CASES.keys() == OBJECTIVES.keys(), "every objective of the table has a case"


def build(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Objective:
    torch.manual_seed(seed)
    case = CASES[name]
    filled = {"num_samples": SAMPLES, "num_classes": CLASSES}
    known = {key: value for key, value in filled.items() if key in type(case.config).model_fields}
    return build_objective(case.config.model_copy(update=known), case.encoder).to(dtype)


def batch(name: str, size: int = 16, dtype: torch.dtype = torch.float32, seed: int = 0) -> Batch:
    """Noise; ids are below SAMPLES and all different."""
    generator = torch.Generator().manual_seed(seed)
    side, num_views = CASES[name].encoder.image_size, OBJECTIVES[name].num_views
    sides = [side] * num_views + [side // 2] * CASES[name].local_crops
    views = tuple(
        torch.randn(size, 3, side, side, generator=generator, dtype=torch.float64).to(dtype) for side in sides
    )
    tokens = None
    if OBJECTIVES[name].needs_text:
        tokens = torch.randint(1, 49000, (size, TEXT.context_length), generator=generator)
        end = torch.randint(3, TEXT.context_length, (size, 1), generator=generator)  # ranks get unequally many tokens
        place = torch.arange(TEXT.context_length)
        tokens = tokens.where(place < end, 0).where(place != end, 49407)
    ids = torch.arange(size) * 7 + 3
    assert ids.max() < SAMPLES
    return Batch(views, ids, tokens, labels=ids % CLASSES)


def part(whole: Batch, rank: int, world_size: int) -> Batch:
    """One rank's share of a batch."""

    def cut(tensor):
        return None if tensor is None else tensor.chunk(world_size)[rank]

    return Batch(tuple(cut(view) for view in whole.views), cut(whole.ids), cut(whole.tokens), cut(whole.labels))


def optimizers_of(objective: Objective, rate: float = 3e-3):
    """One a phase, as the loop has them."""
    config = OptimizerConfig(name="adamw", learning_rate=rate * 16, weight_decay=0.0)  # × batch 16 / 256
    return {phase: build_optimizer(objective.trainable(phase), config, batch_size=16) for phase in objective.phases}


def step(model, objective: Objective, optimizers, batch: Batch, number: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """One step of training through all phases: losses by phase. `model` is the objective, or what wraps it."""
    losses = {}
    for phase, optimizer in optimizers.items():
        loss = model(batch, Step(number, 0.5, seed, phase))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses[phase] = loss.detach()
    objective.after_step(Step(number, 0.5, seed))
    return losses
