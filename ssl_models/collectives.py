"""Communication between ranks inside a loss: with gradient, and the identity when there is one rank.

Data-parallel training averages the ranks' gradients. A loss is right when that average equals the gradient of the
same loss on the concatenated batch in one process; these functions are written so that it does.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather(local: Tensor) -> Tensor:
    """(n, …) on each rank → (world_size · n, …) on all, in rank order, with gradient. n must be equal on all ranks."""
    return _Gather.apply(local) if world_size() > 1 else local


def mean_over_ranks(local: Tensor) -> Tensor:
    """The mean of a tensor over ranks, with gradient."""
    return _Sum.apply(local) / world_size() if world_size() > 1 else local


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Σ w v / Σ w over the *global* batch, where ranks may hold unequal weights; 0 where all weights are 0.

    Ranks return unequal shares whose mean, and the mean of whose gradients, is that of the whole; no gradient reaches
    the weights. A rank's own Σ w v / Σ w would count each sample of a rank with few of them more.
    """
    weights = weights.detach().expand_as(values)
    total = mean_over_ranks(weights.sum())
    return (values * weights).sum() / total.clamp(min=torch.finfo(total.dtype).tiny)


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces gradients by their means over ranks, as data-parallel training does. The same ones on all ranks."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if world_size() > 1 and gradients:
        flat = mean_over_ranks(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))


class _Gather(Function):
    @staticmethod
    def forward(ctx, local: Tensor) -> Tensor:
        gathered = local.new_empty(world_size() * local.shape[0], *local.shape[1:])
        dist.all_gather_into_tensor(gathered, local.contiguous())
        return gathered

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        """Every rank used these rows as keys: the gradient of a row is the sum over ranks."""
        own = gradient.new_empty(gradient.shape[0] // world_size(), *gradient.shape[1:])
        dist.reduce_scatter_tensor(own, gradient.contiguous())
        return own


class _Sum(Function):
    @staticmethod
    def forward(ctx, local: Tensor) -> Tensor:
        total = local.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradient)


class _Normalize(Function):
    """BatchNorm's formula over all ranks, put together from torch's own CPU passes: written out in tensor operations
    it took ten times longer, and half of a small ResNet's step."""

    @staticmethod
    def forward(ctx, input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float):
        """input: (B, C, …), equally many rows on all ranks. Returns the output, mean and biased variance (C,)."""
        unused = input.new_zeros(2, input.shape[1], dtype=torch.promote_types(input.dtype, torch.float32))
        local = torch.batch_norm_update_stats(input, unused[0], unused[1], 0.0)  # mean, variance (C,), as `unused`
        means, variances = gather(torch.stack(local)).unflatten(0, (-1, 2)).unbind(1)  # each (world_size, C)
        mean = means.mean(0)
        variance = (variances + (means - mean).square()).mean(0)
        ctx.save_for_backward(input, weight, mean, variance)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance)
        return torch.native_batch_norm(input, weight, bias, mean, variance, False, 0.0, eps)[0], mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, *_: Tensor):
        """dx = w/σ · (dy − ⟨dy⟩ − x̂ ⟨dy x̂⟩), ⟨⟩ the mean over all ranks (Ioffe and Szegedy 2015, section 3)."""
        input, weight, mean, variance = ctx.saved_tensors
        direct, to_weight, to_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, input, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )  # w/σ · dy; Σ dy x̂; Σ dy
        shares = mean_over_ranks(torch.stack([to_weight, to_bias])) / (input.numel() // input.shape[1])
        slope, offset = shares * torch.rsqrt(variance + ctx.eps) * (1.0 if weight is None else weight)
        through_statistics = torch.native_batch_norm(input, slope, offset, mean, variance, False, 0.0, ctx.eps)[0]
        affine = (to_weight, to_bias) if weight is not None else (None, None)
        return direct.sub_(through_statistics), *affine, None


class _BatchNormOverRanks(nn.modules.batchnorm._BatchNorm):
    """BatchNorm with the statistics of the global batch on CPU; torch's SyncBatchNorm refuses CPU tensors."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass  # any number of dimensions, as in SyncBatchNorm

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        output, mean, variance = _Normalize.apply(input, self.weight, self.bias, self.eps)
        self._track(mean, variance, world_size() * input.numel() // input.shape[1])
        return output

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        momentum = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), momentum)


def synchronize_batchnorm(module: nn.Module, device: torch.device) -> nn.Module:
    """Replaces every BatchNorm by one with global statistics. Per-rank statistics leak which rows belong together
    (contrastive methods learn to read them), and make k ranks differ from one.

    Raises:
        ValueError: a fused BatchNorm of timm on CPU ranks, which has no counterpart there.
    """
    if device.type == "cuda":
        from timm.layers import convert_sync_batchnorm

        return convert_sync_batchnorm(module)
    plain = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    for name, child in module.named_children():
        if isinstance(child, plain) and type(child) in plain:
            setattr(module, name, _over_ranks(child))
        elif isinstance(child, plain):
            raise ValueError(
                f"{type(child).__name__} has no synchronised form on CPU workers: use one worker, GPUs, or an encoder "
                "with plain BatchNorm (resnet18, resnet50, …) or LayerNorm (vit_*)"
            )
        else:
            synchronize_batchnorm(child, device)
    return module


def _over_ranks(norm: nn.modules.batchnorm._BatchNorm) -> _BatchNormOverRanks:
    other = _BatchNormOverRanks(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    other.load_state_dict(norm.state_dict())
    reference = norm.weight if norm.weight is not None else norm.running_mean
    other = other.to(reference.device, reference.dtype) if reference is not None else other
    if norm.affine:
        other.weight, other.bias = norm.weight, norm.bias  # the same: a teacher's stay without gradient
    return other
