"""Blocks that several networks share, and how their weights begin."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

POOL = 0  # in a plan: halve the resolution; any other number is a convolution's channels


def conv_stack(in_channels: int, plan: Sequence[int], *, dilation: int = 1) -> nn.Sequential:
    """Return the 3x3 convolutions of `plan`, each with a ReLU, and its 2x2 max pools.

    Pools round down. Inputs are padded to the network's stride, so rounding never happens in
    the pipeline; on other sizes the last row or column that does not fill a window is dropped.
    """
    layers: list[nn.Module] = []
    for channels in plan:
        if channels == POOL:
            layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
            continue
        layers.append(nn.Conv2d(in_channels, channels, 3, padding=dilation, dilation=dilation))
        layers.append(nn.ReLU(inplace=True))
        in_channels = channels
    return nn.Sequential(*layers)


class NormedConv(nn.Sequential):
    """A convolution and its batch normalisation; `fold()` makes them one convolution."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv, nn.BatchNorm2d(conv.out_channels))

    def fold(self) -> nn.Conv2d:
        """Return the convolution that computes the same in evaluation mode."""
        conv, norm = self
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        return fuse_conv_bn_eval(conv.eval(), norm.eval())


def initialise(model: nn.Module) -> None:
    """Draw Kaiming-normal weights by fan-in and set biases to zero.

    He et al., arXiv:1502.01852. Fan-in keeps the signal's size from layer to layer, whatever
    the widths. PyTorch's default shrinks it, and a narrow CSRNet then answers one constant.
    Tensors on the meta device hold nothing to draw; PyTorch would load its compiler for them.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and not module.weight.is_meta:
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def start_positive(head: nn.Module) -> None:
    """Make the weights of a head that ends in ReLU non-negative.

    Its inputs are non-negative too. With weights of both signs a narrow head is often negative
    everywhere: it answers 0, has no gradient, and never learns.
    """
    with torch.no_grad():
        for parameter in head.parameters():
            if not parameter.is_meta:
                parameter.abs_()
