"""The labelled baseline of the small recipes."""

from jobs.recipes.sizes import CROP_ONLY, SGD, small
from pipeline.experiment import Experiment
from ssl_models.objectives.supervised import Supervised


def supervised_32px() -> Experiment:
    """Supervised classification of 32-pixel images such as CIFAR-10: what labels give in the same budget.

    Paper: He et al. 2015, arXiv 1512.03385.
    Result: k-NN 50.0 ± 0.4 %, linear probe 50.5 ± 0.5 % (random encoder 25.9, 29.8) in the README's
    comparison: a quarter of the width, 100,000 images, 2 seeds.
    Cost: 3 minutes of training there, 1,280 MB (2 CPU cores, shared by two).
    Command: feral pretrain supervised_32px data.store=STORE
    """
    # At the 0.4 of methods with a projector the loss stays at chance.
    return small(Supervised.Config(), SGD.model_copy(update={"learning_rate": 0.05}), views=CROP_ONLY)
