"""MCNN: three columns of different kernel sizes regressing people per cell at stride 4.

Zhang, Zhou, Chen, Gao and Ma, "Single-Image Crowd Counting via Multi-Column Convolutional Neural
Network", CVPR 2016. Grey images, as in the paper; papers that compare costs count an RGB form
(133,705 parameters instead of 127,953). Two departures from the paper: `width` scales every
layer, and weights begin Kaiming-normal instead of from columns trained one by one. The fusion has
no ReLU: the trained arrays that `importers.import_mcnn` reads count worse with one.

Shapes: B images, C = 1 (grey) or 3 (RGB), H x W input pixels, h x w = H/4 x W/4 output cells.
"""

from fractions import Fraction

import torch
from torch import Tensor, nn

from crowdrt.contracts import Channels, Preprocessing
from crowdrt.models.layers import initialise
from crowdrt.models.network import Network
from crowdrt.models.scaling import scaled

COLUMNS = (  # kernel sizes and channels of the large, the medium and the small column
    ((9, 7, 7, 7), (16, 32, 16, 8)),
    ((7, 5, 5, 5), (20, 40, 20, 10)),
    ((5, 3, 3, 3), (24, 48, 24, 12)),
)


def column(in_channels: int, kernels: tuple[int, ...], channels: list[int]) -> nn.Sequential:
    """Return four convolutions with ReLU; the first two halve the resolution."""
    layers: list[nn.Module] = []
    for position, (kernel, out_channels) in enumerate(zip(kernels, channels, strict=True)):
        layers.append(nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2))
        layers.append(nn.ReLU(inplace=True))
        if position < 2:
            layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
        in_channels = out_channels
    return nn.Sequential(*layers)


def centred(channels: Channels) -> Preprocessing:
    """Return (pixel - 127.5) / 128, as the trained arrays expect it."""
    planes = 3 if channels == "rgb" else 1
    return Preprocessing(channels=channels, mean=(127.5,) * planes, std=(128.0,) * planes, stride=4)


class MCNN(Network):
    """`forward` is the deployed network; nothing is only for training."""

    preprocessing = centred("grey")
    density_stride = 4

    def __init__(self, width: Fraction = Fraction(1), *, channels: Channels = "grey") -> None:
        super().__init__()
        self.preprocessing = centred(channels)
        planes = self.preprocessing.num_channels
        widths = [[scaled(c, width) for c in plan] for _, plan in COLUMNS]
        self.columns = nn.ModuleList(
            column(planes, kernels, plan)
            for (kernels, _), plan in zip(COLUMNS, widths, strict=True)
        )
        fused = sum(plan[-1] for plan in widths)
        self.density_head = nn.Conv2d(fused, 1, kernel_size=1)
        initialise(self)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) normalised image -> (B, 1, h, w) people per cell; sum = count."""
        features = torch.cat([branch(image) for branch in self.columns], dim=1)
        density: Tensor = self.density_head(features)
        return density
