"""lightly's benchmark on CIFAR-10, method by method: for one GPU.

Its tables: https://docs.lightly.ai/self-supervised-learning/getting_started/benchmarks.html, batch 512, 200 epochs.
"""

from jobs.recipes.sizes import CIFAR10_SGD, cifar10_resnet18
from pipeline.experiment import Experiment
from ssl_models.objectives import BYOL, BarlowTwins, MoCo, SimCLR, SimSiam


def simclr_cifar10() -> Experiment:
    """SimCLR on CIFAR-10, as lightly's benchmark has it, but for BatchNorm on the projector's output, and views that
    pass the encoder apart.

    Paper: Chen et al. 2020, arXiv 2002.05709; lightly reports k-NN 84.8 %.
    Result: not yet measured at its length; after 136 epochs, of CIFAR-10 as JPEG, k-NN 76.4 % (random encoder 37.2).
    Cost: 10,000,000 images of a ResNet-18: eleven minutes of an H200, at the speed of that run.
    Command: feral pretrain simclr_cifar10 data.store=STORE cluster.use_gpu=true
    """
    return cifar10_resnet18(SimCLR.Config(temperature=0.5, projector_dims=(512, 128)))


def moco_cifar10() -> Experiment:
    """MoCo v2 on CIFAR-10, symmetric, as lightly's benchmark has it. Its second direction finds the first one's keys,
    of the same images, among its negatives; ours are queued after both.

    Paper: Chen et al. 2020, arXiv 2003.04297; lightly reports k-NN 84.7 %.
    Result: not yet measured.
    Cost: 10,000,000 images of a ResNet-18, both views encoded with gradient and both without: a GPU.
    Command: feral pretrain moco_cifar10 data.store=STORE cluster.use_gpu=true
    """
    return cifar10_resnet18(MoCo.Config(temperature=0.1, projector_dims=(512, 128), symmetric=True))


def byol_cifar10() -> Experiment:
    """BYOL on CIFAR-10, as lightly's benchmark has it. Its loss is a quarter of the paper's and ours, but for a
    constant: a quarter of the rate and four times the decay give the same steps of SGD.

    Paper: Grill et al. 2020, arXiv 2006.07733; lightly reports k-NN 86.8 %.
    Result: not yet measured.
    Cost: 10,000,000 images of a ResNet-18, both views encoded with gradient and both without: a GPU.
    Command: feral pretrain byol_cifar10 data.store=STORE cluster.use_gpu=true
    """
    objective = BYOL.Config(projector_dims=(1024, 256), predictor_dim=1024, momentum=(0.99, 0.99))
    return cifar10_resnet18(objective, CIFAR10_SGD.model_copy(update={"learning_rate": 0.03, "weight_decay": 2e-3}))


def simsiam_cifar10() -> Experiment:
    """SimSiam on CIFAR-10, as lightly's benchmark has it: a rate of 0.06 at batch 512, not scaled. Their predictor's
    rate falls with the others, and the projector's last BatchNorm has weights; ours are the paper's.

    Paper: Chen and He 2020, arXiv 2011.10566; lightly reports k-NN 76.4 % (90.4 after 800 epochs).
    Result: not yet measured.
    Cost: 10,000,000 images of a ResNet-18, both views encoded: a GPU.
    Command: feral pretrain simsiam_cifar10 data.store=STORE cluster.use_gpu=true
    """
    objective = SimSiam.Config(projector_dims=(2048, 2048), predictor_dim=512)
    return cifar10_resnet18(objective, CIFAR10_SGD.model_copy(update={"learning_rate": 0.03}))


def barlow_cifar10() -> Experiment:
    """Barlow Twins on CIFAR-10, as lightly's benchmark has it: its loss is not scaled down for SGD.

    Paper: Zbontar et al. 2021, arXiv 2103.03230; lightly reports k-NN 81.9 %.
    Result: not yet measured.
    Cost: 10,000,000 images of a ResNet-18, both views encoded: a GPU.
    Command: feral pretrain barlow_cifar10 data.store=STORE cluster.use_gpu=true
    """
    return cifar10_resnet18(BarlowTwins.Config(loss_scale=1.0, projector_dims=(2048, 2048)))
