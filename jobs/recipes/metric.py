"""Recipes of metric learning between two views: one objective, a recipe for each of its losses."""

from jobs.recipes.sizes import SGD, small
from pipeline.experiment import Experiment
from ssl_models.objectives import Siamese


def triplet_32px() -> Experiment:
    """Triplet loss for 32-pixel images: semi-hard negatives of the batch.

    Paper: Schroff et al. 2015, arXiv 1503.03832 (FaceNet); as a pretext task Chen et al. 2020, arXiv 2002.05709, where
    it stays 6 points behind NT-Xent.
    Result: k-NN 42.8 ± 0.6 %, linear probe 45.5 ± 0.4 % (random encoder 25.9, 29.8) in the README's
    comparison: a quarter of the width, 100,000 images, 2 seeds.
    Cost: that of simclr_32px.
    Command: feral pretrain triplet_32px data.store=STORE
    """
    return small(Siamese.Config(loss="triplet"))


def siamese_margin_32px() -> Experiment:
    """Margin contrastive loss for 32-pixel images: two views attract, two images repel up to a distance.

    Paper: Hadsell, Chopra, LeCun 2006, "Dimensionality reduction by learning an invariant mapping".
    Result: k-NN 36.9 ± 0.2 %, linear probe 40.7 ± 1.0 % (random encoder 25.9, 29.8) in the README's
    comparison: a quarter of the width, 100,000 images, 2 seeds.
    Cost: that of simclr_32px.
    Command: feral pretrain siamese_margin_32px data.store=STORE
    """
    return small(Siamese.Config(loss="margin"))


def n_pair_32px() -> Experiment:
    """N-pair loss for 32-pixel images: a softmax over inner products of rows that are not normalised.

    Paper: Sohn 2016, "Improved deep metric learning with multi-class N-pair loss objective".
    Result: k-NN 38.8 ± 0.2 %, linear probe 41.6 ± 1.6 % (random encoder 25.9, 29.8) in the README's
    comparison: a quarter of the width, 100,000 images, 2 seeds.
    Cost: that of simclr_32px.
    Command: feral pretrain n_pair_32px data.store=STORE
    """
    # Rows without bound: at the shared rate they grew until the loss was not finite, in ten steps of a narrow encoder.
    return small(Siamese.Config(loss="n_pair"), SGD.model_copy(update={"learning_rate": 0.05, "clip_gradient": 1.0}))


def lifted_32px() -> Experiment:
    """Lifted structured loss for 32-pixel images: each pair against the smooth hardest negative of both its ends.

    Paper: Oh Song et al. 2016, arXiv 1511.06452.
    Result: k-NN 34.7 ± 1.4 %, linear probe 41.2 ± 1.2 % (random encoder 25.9, 29.8) in the README's
    comparison: a quarter of the width, 100,000 images, 2 seeds.
    Cost: that of simclr_32px.
    Command: feral pretrain lifted_32px data.store=STORE
    """
    return small(Siamese.Config(loss="lifted"))


def nt_logistic_32px() -> Experiment:
    """NT-Logistic for 32-pixel images, with semi-hard negatives.

    Paper: Chen et al. 2020, arXiv 2002.05709, where it stays 6 points behind NT-Xent (12 without mining).
    Result: k-NN 41.2 ± 0.8 %, linear probe 42.4 ± 0.1 % (random encoder 25.9, 29.8) in the README's
    comparison: a quarter of the width, 100,000 images, 2 seeds.
    Cost: that of simclr_32px.
    Command: feral pretrain nt_logistic_32px data.store=STORE
    """
    return small(Siamese.Config(loss="nt_logistic"))
