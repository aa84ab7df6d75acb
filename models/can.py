"""CAN: what surrounds a place, seen at four scales, decides how its features are read.

Liu, Salzmann and Fua, "Context-Aware Crowd Counting", CVPR 2019, arXiv:1811.10452. The front end
and the dilated back end are CSRNet's, the latter with batch norm: SKT's tables count it (Liu et
al., ACM MM 2020, arXiv:2003.10120, Tables 1 and 8; without it 218.16 G instead of 218.20 at
576x864). Two departures from the paper: `width` scales every layer, and weights begin
Kaiming-normal instead of from ImageNet's VGG-16.

Shapes: B images, H x W input pixels, h x w = H/8 x W/8 output cells, C feature channels.
"""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional

from crowdrt.contracts import IMAGENET
from crowdrt.models.csrnet import BACK_END, FRONT_END
from crowdrt.models.layers import NormedConv, conv_stack, initialise
from crowdrt.models.network import Network
from crowdrt.models.scaling import scaled

BINS = (1, 2, 3, 6)  # average windows along each side of the map, per scale


class GridAverage(nn.AdaptiveAvgPool2d):
    """Average over a grid of windows, as two matrix products.

    The same numbers as PyTorch's adaptive pool, up to rounding, in operators that every runtime
    has: ONNX knows no such pool, and its AveragePool only windows that are all alike, which 6 of
    them are on a map of 72x108 cells and not on one of 96x128 or 254x364. The matrices depend on
    nothing but the map's size: in a graph for one size they are stored numbers.
    """

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, bins, bins)."""
        assert isinstance(self.output_size, int)
        height, width = features.shape[2:]
        columns = windows(width, self.output_size).to(features)
        return windows(height, self.output_size).to(features) @ (features @ columns.t())


def windows(length: int, bins: int) -> Tensor:
    """Return (bins, length): row i holds 1 / n at the n cells that window i averages.

    Window i reaches from floor(i * length / bins) to ceil((i + 1) * length / bins), the last
    cell excluded, as in PyTorch: neighbours share a cell where `bins` does not divide `length`.
    """
    cells, first = torch.arange(length), torch.arange(bins)[:, None]
    inside = ((cells + 1) * bins > first * length) & (cells * bins < (first + 1) * length)
    return inside.float() / inside.float().sum(dim=1, keepdim=True)


class ContextBlock(nn.Module):
    """Adds to each place's features an average of its surroundings, weighted by contrast."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pools = nn.ModuleList(GridAverage(bins) for bins in BINS)
        self.scales = nn.ModuleList(nn.Conv2d(channels, channels, 1, bias=False) for _ in BINS)
        self.contrast = nn.Conv2d(channels, channels, kernel_size=1)  # one for all scales
        self.merge = nn.Sequential(nn.Conv2d(2 * channels, channels, 1), nn.ReLU(inplace=True))

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        surroundings = [
            functional.interpolate(scale(pool(features)), size=features.shape[2:], mode="bilinear")
            for pool, scale in zip(self.pools, self.scales, strict=True)
        ]
        weights = relative_sigmoids([self.contrast(features - seen) for seen in surroundings])
        weighted = total(seen * weight for seen, weight in zip(surroundings, weights, strict=True))
        merged: Tensor = self.merge(torch.cat([weighted / total(weights), features], dim=1))
        return merged


def relative_sigmoids(logits: Sequence[Tensor]) -> list[Tensor]:
    """Return the sigmoids of several tensors up to a factor that is common to them.

    Where all of them are near 0 their ratios are lost, and runtimes differ: ONNX Runtime's sigmoid
    is never below 1e-8, FP16 knows nothing between 6e-8 and 0. With n = min(0, the largest logit),
    sigmoid(z) is e^n / (e^n + e^(n - z)), of which e^n is the common factor; the largest of what
    remains lies between 1/2 and 1. Ratios below e^-60 stay at that, so that gradients are finite.
    """
    shift = reduce(torch.maximum, logits).clamp(max=0)
    floor = shift.exp()
    return [((shift - logit).clamp(max=60).exp() + floor).reciprocal() for logit in logits]


def total(terms: Iterable[Tensor]) -> Tensor:
    """Return the sum; Python's own would add 0 first, in the graph too."""
    return reduce(torch.add, terms)


def normed_stack(in_channels: int, plan: Iterable[int]) -> nn.Sequential:
    """Return dilated 3x3 convolutions, each with batch norm and ReLU."""
    layers: list[nn.Module] = []
    for channels in plan:
        conv = nn.Conv2d(in_channels, channels, kernel_size=3, padding=2, dilation=2)
        layers += [NormedConv(conv), nn.ReLU(inplace=True)]
        in_channels = channels
    return nn.Sequential(*layers)


class CAN(Network):
    """`forward` is the deployed network; nothing is only for training."""

    preprocessing = IMAGENET
    density_stride = 8
    whole_image = "CAN averages over the whole map, so every answer depends on every pixel"

    def __init__(self, width: Fraction = Fraction(1)) -> None:
        super().__init__()
        front = [c and scaled(c, width) for c in FRONT_END]
        back = [scaled(c, width) for c in BACK_END]
        self.front_end = conv_stack(3, front)
        self.context = ContextBlock(front[-1])
        self.back_end = normed_stack(front[-1], back)
        self.density_head = nn.Conv2d(back[-1], 1, kernel_size=1)
        initialise(self)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) ImageNet-normalised RGB -> (B, 1, h, w) people per cell; sum = count."""
        features = self.context(self.front_end(image))
        density: Tensor = self.density_head(self.back_end(features))
        return density
