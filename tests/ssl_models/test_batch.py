"""Random numbers that belong to a sample."""

import scipy.stats
import torch

from ssl_models.batch import normal, uniform


def test_a_sample_draws_the_same_in_any_batch():
    ids = torch.tensor([5, 17, 2**40, 0])
    together = uniform(3, 11, ids, 7, "mask")
    alone = torch.cat([uniform(3, 11, ids[i : i + 1], 7, "mask") for i in (2, 0, 3, 1)])
    assert torch.equal(together[[2, 0, 3, 1]], alone)


def test_seed_step_sample_and_purpose_are_independent():
    ids = torch.arange(4)
    draws = [
        uniform(0, 0, ids, 5, "mask"),
        uniform(1, 0, ids, 5, "mask"),
        uniform(0, 1, ids, 5, "mask"),
        uniform(0, 0, ids + 4, 5, "mask"),
        uniform(0, 0, ids, 5, "crop"),
    ]
    values = torch.cat(draws).flatten()
    assert len(values.unique()) == len(values)


def test_draws_are_uniform_and_uncorrelated():
    draws = uniform(0, 0, torch.arange(20_000), 4, "mask")
    assert draws.min() >= 0
    assert draws.max() < 1
    assert torch.histc(draws.float(), bins=10, min=0, max=1).sub(8000).abs().max() < 400  # about 4.7 σ
    correlation = torch.corrcoef(torch.cat([draws.T, uniform(0, 1, torch.arange(20_000), 4, "mask").T]))
    assert (correlation - torch.eye(8)).abs().max() < 0.03


def test_normal_numbers_are_normal_and_independent():
    draws = normal(1, 2, torch.arange(20), 9999, "noise").double()
    assert draws.shape == (20, 9999)
    assert scipy.stats.kstest(draws.ravel().numpy(), "norm").pvalue > 0.01  # a fixed seed: no chance of failing
    lags = [(draws[:, :-lag] * draws[:, lag:]).mean().abs().item() for lag in (1, 2, 3, 4999, 5000)]
    assert max(lags) < 4 / draws.numel() ** 0.5
    assert (draws[:-1] * draws[1:]).mean().abs() < 4 / draws.numel() ** 0.5  # neighbouring samples
    assert 4 < draws.abs().max() < 6.2  # the tails are there


def test_normal_numbers_belong_to_the_sample():
    together = normal(1, 2, torch.tensor([4, 9, 70]), 31, "noise")
    assert torch.equal(together[1:2], normal(1, 2, torch.tensor([9]), 31, "noise"))
    for other in (
        normal(0, 2, torch.tensor([9]), 31, "noise"),
        normal(1, 3, torch.tensor([9]), 31, "noise"),
    ):
        assert not torch.isclose(together[1:2], other).any()
