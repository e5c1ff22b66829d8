"""The momentum teacher: a copy of modules that follows them as an exponential moving average."""

import copy

import torch
from timm.layers import DropPath, PatchDropout
from torch import Tensor, nn


class MomentumTeacher(nn.Module):
    """Copies of `modules` without gradient, called one after the other: (B, …) → the last one's output.

    Only parameters follow the students. Buffers (BatchNorm's statistics) are the copy's own, from its own forward
    passes (He et al. 2020, MoCo). It stays in training mode with its owner: its outputs use the batch's statistics, but
    it drops nothing (dropout of values, patches and whole branches are the student's alone: Caron et al. 2021, DINO).

    The average is kept in single precision: at bf16 a momentum of 0.999 would never move a weight.
    """

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(copy.deepcopy(module) for module in modules)
        self.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            elif isinstance(module, DropPath):
                module.drop_prob = 0.0
            elif isinstance(module, PatchDropout):
                module.prob = 0.0

    @torch.no_grad()
    def forward(self, inputs: Tensor) -> Tensor:
        for layer in self.layers:
            inputs = layer(inputs)
        return inputs

    @torch.no_grad()
    def follow(self, momentum: float, *students: nn.Module) -> None:
        """θ' ← m θ' + (1 − m) θ, once after each step of the optimizer; `students` as they were given at the start."""
        own: list[Tensor] = [parameter for layer in self.layers for parameter in layer.parameters()]
        theirs: list[Tensor] = [parameter for student in students for parameter in student.parameters()]
        assert len(own) == len(theirs)
        torch._foreach_lerp_(own, theirs, 1 - momentum)
