"""lightly's benchmark on CIFAR-10, method by method: for one GPU.

Its tables: https://docs.lightly.ai/self-supervised-learning/getting_started/benchmarks.html, batch 512, 200 epochs.
"""

from jobs.recipes.sizes import cifar10_resnet18
from pipeline.experiment import Experiment
from ssl_models.objectives import SimCLR


def simclr_cifar10() -> Experiment:
    """SimCLR on CIFAR-10, as lightly's benchmark has it but for BatchNorm on the projector's output.

    Paper: Chen et al. 2020, arXiv 2002.05709; lightly reports k-NN 84.8 %.
    Result: not yet measured.
    Cost: 10,000,000 images of a ResNet-18: a GPU.
    Command: feral pretrain simclr_cifar10 data.store=STORE cluster.use_gpu=true
    """
    return cifar10_resnet18(SimCLR.Config(temperature=0.5, projector_dims=(512, 128)))
