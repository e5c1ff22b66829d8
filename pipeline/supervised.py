"""The supervised twin of a run: its encoder, trained from scratch on the same images by their labels. What it reaches,
judged in the same way, stands beside the scores of the run."""

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.evaluate.twin import twin_of
from pipeline.experiment import Experiment, build_experiment
from pipeline.pretrain import Progress, Tell, plan_line, prepared, train, working_on
from pipeline.run import Run
from pipeline.stream.views import ViewsConfig
from pipeline.train.continuing import ALONE
from ssl_models.encoders import ImageEncoder
from ssl_models.objectives.supervised import Supervised
from ssl_models.optimizers import OptimizerConfig

BATCH = 256  # at most: what the rates below were tried with


def supervised_experiment(there: Experiment) -> Experiment:
    """Another experiment with its encoder learning from labels, from scratch: the same data, and as many images seen
    as by it and the runs that it goes on from; crops and flips alone, for labels need no other views.

    With BatchNorm SGD, at half the rate of He et al. (arXiv 1512.03385). Without: AdamW, stochastic depth, mixup and
    CutMix as DeiT (arXiv 2012.12877, table 9), at twice its rate, for these runs are short.
    """
    content = there.model_dump(mode="json")
    with torch.device("meta"):
        modules = list(ImageEncoder(there.encoder).modules())
    if any(isinstance(module, _BatchNorm) for module in modules):
        objective = Supervised.Config()
        optimizer = OptimizerConfig(name="sgd", learning_rate=0.05, weight_decay=5e-4)
    else:
        objective = Supervised.Config(label_smoothing=0.1, mixup=0.8, cutmix=1.0)
        optimizer = OptimizerConfig(name="adamw", learning_rate=5e-4, weight_decay=0.05, betas=(0.9, 0.999))
        content["encoder"]["arguments"] |= {"drop_path_rate": 0.1}
    views = ViewsConfig(crop_scale=there.views.crop_scale, flip=there.views.flip, jitter_probability=0, grayscale=0)
    for name, part in {"views": views, "objective": objective, "optimizer": optimizer}.items():
        content[name] = part.model_dump(mode="json")
    lanes = there.data.lanes
    content["data"]["batch_size"] = min(there.data.batch_size, lanes * max(1, BATCH // lanes))
    content["training"] |= {"micro_batch": None, "images_seen": there.total_steps * there.data.batch_size}
    return build_experiment(content).override(ALONE)


def twin_experiment(run: Run) -> Experiment:
    """The experiment of the twin of a run. One that is there already is taken as it is, whatever its settings, if it
    learned from labels.

    Raises:
        ValueError: the run learns from labels itself, or its store has none; or what is there is no twin.
    """
    there, twin = run.experiment, twin_of(run)
    if there.needs_labels:
        raise ValueError(f"{run.path} learns from labels itself, so it has no supervised twin: leave out --supervised")
    if not twin.experiment_file.exists():
        return prepared(supervised_experiment(there), twin.path)
    experiment = twin.experiment
    if not experiment.needs_labels or experiment.encoder.name != there.encoder.name:
        raise ValueError(
            f"{twin.path} is no supervised twin (objective {experiment.objective.name!r}, encoder "
            f"{experiment.encoder.name}): move it elsewhere, and one is trained there"
        )
    return experiment


def train_twin(run: Run, experiment: Experiment, command: list[str], progress: Progress, tell: Tell) -> Run:
    """Trains the twin of a run to its end, or finds it trained; the same call again resumes. Ray must be connected.

    Raises:
        TrainingFailed, Stopped: as `pipeline.pretrain.train`.
    """
    twin = twin_of(run)
    checkpoint = twin.newest_checkpoint()
    if checkpoint is None or checkpoint.step < experiment.total_steps:
        tell(f"training the supervised twin, {plan_line(experiment, experiment.open_stores())}")
        with working_on(experiment, twin.path, command, tell):
            train(twin, progress, tell)
    return twin
