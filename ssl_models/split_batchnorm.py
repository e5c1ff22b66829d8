"""BatchNorm in groups, for methods that must not see which samples were normalised together (MoCo)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_models.collectives import mean_over_ranks, world_size


class SplitBatchNorm(nn.Module):
    """BatchNorm over `groups` equal, consecutive parts of the *global* batch, each with its own statistics.

    It computes the same on any number of ranks that divides `groups`: a rank holds whole groups, as a GPU of MoCo's
    paper holds one. It takes over the parameters and statistics of `norm`, under their names. The running statistics
    follow the mean over groups, and are equal on all ranks.

    Raises:
        ValueError: when called, if the ranks do not divide the groups or these do not divide the batch.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, norm: _BatchNorm, groups: int) -> None:
        super().__init__()
        assert norm.momentum is not None
        self.groups, self.eps, self.momentum = groups, norm.eps, norm.momentum
        self.weight, self.bias = norm.weight, norm.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(norm, name))

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, …), this rank's part of the batch."""
        if not self.training:
            return self._normalize(input, self.running_mean, self.running_var)
        own, rest = divmod(self.groups, world_size())
        if rest:
            raise ValueError(
                f"objective.split_batchnorm={self.groups} groups cannot be shared out to {world_size()} workers: use a "
                f"multiple of {world_size()}"
            )
        if len(input) % own or len(input) == own:
            raise ValueError(
                f"a batch of {len(input) * world_size()} does not make objective.split_batchnorm={self.groups} equal "
                "groups of two or more: lower it, or change data.batch_size"
            )
        found = input.new_zeros(2, own, len(self.running_mean), dtype=self.running_mean.dtype)
        output = torch.cat([self._normalize(*part) for part in zip(input.chunk(own), *found, strict=True)])
        self._track(*found)
        return output

    def _normalize(self, input: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """In training `mean` and `variance` (unbiased) are written: the batch's own, for the momentum is 1."""
        return F.batch_norm(input, mean, variance, self.weight, self.bias, self.training, 1.0, self.eps)

    @torch.no_grad()
    def _track(self, means: Tensor, variances: Tensor) -> None:
        """means, variances: (groups of this rank, C)."""
        mean, variance = mean_over_ranks(torch.stack([means.mean(0), variances.mean(0)]))
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        self.num_batches_tracked += 1


def split_batchnorm(module: nn.Module, groups: int) -> int:
    """Replaces every BatchNorm inside by one in groups. Returns how many there were.

    Raises:
        ValueError: a fused BatchNorm of timm, which has no counterpart.
    """
    plain, found = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), 0
    for name, child in module.named_children():
        if type(child) in plain:
            setattr(module, name, SplitBatchNorm(child, groups))  # type: ignore[arg-type]
            found += 1
        elif isinstance(child, _BatchNorm):
            raise ValueError(
                f"{type(child).__name__} cannot be split: use objective.split_batchnorm=1, or an encoder with "
                "plain BatchNorm (resnet18, resnet50, …) or LayerNorm (vit_*)"
            )
        else:
            found += split_batchnorm(child, groups)
    return found
