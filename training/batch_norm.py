"""Batch normalisation that helps a network learn from scratch and is gone when it ships.

A network without a pretrained backbone trains far better with normalisation between its layers,
but the published networks have none. So training puts one behind every convolution, and folding
turns each pair back into the one convolution that the paper describes.
"""

import torch
from torch import Tensor, distributed, nn
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

from crowdrt.models.layers import NormedConv


class AddedNorm(NormedConv):
    """One that only training has; folding it leaves the convolution that the paper describes."""


def add_batch_norm(model: nn.Module) -> nn.Module:
    """Put a batch normalisation behind every convolution that can take one in, in place.

    Left alone are a map of one channel, a convolution without a bias, which could not hold the
    shift, and what the network normalises itself.
    """
    for parent in list(model.modules()):
        if isinstance(parent, NormedConv):
            continue
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and child.out_channels > 1 and child.bias is not None:
                setattr(parent, name, AddedNorm(child))
    return model


class MeanOfAll(Function):
    """The mean of a tensor over all processes; its gradient is shared the same way."""

    @staticmethod
    def forward(_context: FunctionCtx, here: Tensor) -> Tensor:
        """Return the same mean in every process."""
        return mean_of_all(here)

    @staticmethod
    def backward(_context: FunctionCtx, gradient: Tensor) -> Tensor:
        """Return what the losses of all processes want of this one's tensor.

        The loop averages gradients over processes, as it does losses, so the sum is divided here.
        """
        return mean_of_all(gradient)


def mean_of_all(here: Tensor) -> Tensor:
    """Return the mean over all processes, without a gradient."""
    total = here.detach().clone()
    distributed.all_reduce(total)
    return total / distributed.get_world_size()


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation over the batches of all processes, on any device.

    PyTorch's SyncBatchNorm takes CUDA tensors alone. The mean and the mean square of equal parts
    of a batch average to the batch's, and their gradients flow back the same way.
    """

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) -> the same, normalised."""
        if not self.training:
            return super().forward(features)
        wide = features.float()
        here = torch.stack([wide.mean((0, 2, 3)), wide.square().mean((0, 2, 3))])
        mean, square = MeanOfAll.apply(here)  # type: ignore[no-untyped-call]
        variance = (square - mean.square()).clamp(min=0)
        self.remember(mean.detach(), variance.detach(), features.numel() // features.shape[1])
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        normalised: Tensor = wide * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)
        return normalised.to(features.dtype)

    def remember(self, mean: Tensor, variance: Tensor, cells: int) -> None:
        """Move the running statistics towards the batch's, as PyTorch does."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        total = cells * distributed.get_world_size()
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (total / max(1, total - 1)), self.momentum)
        self.num_batches_tracked.add_(1)


def share_statistics(model: nn.Module) -> None:
    """Make every batch normalisation see the batches of all processes, in place."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm2d
