"""SANet: multi-kernel encoder and transposed-convolution decoder, people per pixel.

Cao, Wang, Zhao and Su, "Scale Aggregation Network for Accurate and Efficient Crowd Counting",
ECCV 2018. No code was released with it: kernel sizes and reductions are the ones that reproduce
the parameters and all FLOPs that SKT prints (Liu et al., ACM MM 2020, arXiv:2003.10120, Table 8),
with `width` scaling every layer. Departure from the paper: weights begin Kaiming-normal.

Shapes: B images, H x W input pixels, both multiples of 8; the map is (H + 7) x (W + 7) pixels.

Each transposed convolution answers 2n + 1 values for n, as its kernel of 3 hangs over the border
and nothing crops it. Three of them turn H/8 into H + 7: the map sees 3.5 px more on each side,
and its cell (i, j) lies at input pixel (i - 3.5, j - 3.5). The people there belong to the sum,
which is the count. A training target has this size too, and an overlay shifts by 3.5 px.

Instance norm takes its statistics from the image at inference too: it cannot be folded into a
convolution, and padding changes it a little.
"""

from fractions import Fraction

import torch
from torch import Tensor, nn

from crowdrt.contracts import IMAGENET
from crowdrt.models.layers import initialise, start_positive
from crowdrt.models.network import Network
from crowdrt.models.scaling import scaled

ENCODER = (16, 32, 32, 16)  # channels per branch of each aggregation; four branches
KERNELS = (1, 3, 5, 7)  # of an aggregation's branches


def conv_norm_relu(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    """Return a convolution that keeps the size, instance norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2),
        nn.InstanceNorm2d(out_channels, affine=True),
        nn.ReLU(inplace=True),
    )


def doubling(channels: int) -> nn.ConvTranspose2d:
    """Return the learned upsampling: n values become 2n + 1."""
    return nn.ConvTranspose2d(channels, channels, kernel_size=3, stride=2)


class ScaleAggregation(nn.Module):
    """Four branches that see 1, 3, 5 and 7 pixels wide, side by side in the output."""

    def __init__(self, in_channels: int, branch_channels: int, *, reduce: bool) -> None:
        super().__init__()
        inner = in_channels // 2
        self.branches = nn.ModuleList()
        for kernel in KERNELS:
            if kernel == 1 or not reduce:
                self.branches.append(conv_norm_relu(in_channels, branch_channels, kernel))
                continue
            reduction = conv_norm_relu(in_channels, inner, 1)
            self.branches.append(
                nn.Sequential(reduction, conv_norm_relu(inner, branch_channels, kernel))
            )

    def forward(self, features: Tensor) -> Tensor:
        """(B, in, h, w) -> (B, 4 * branch, h, w)."""
        return torch.cat([branch(features) for branch in self.branches], dim=1)


class SANet(Network):
    """`forward` is the deployed network; nothing is only for training."""

    preprocessing = IMAGENET
    density_stride = 1

    def __init__(self, width: Fraction = Fraction(1)) -> None:
        super().__init__()
        channels = 3
        encoder: list[nn.Module] = []
        for branch in (scaled(c, width) for c in ENCODER):
            first = not encoder
            encoder += [] if first else [nn.MaxPool2d(kernel_size=2, stride=2)]
            encoder.append(ScaleAggregation(channels, branch, reduce=not first))
            channels = len(KERNELS) * branch
        wide, half, narrow = (scaled(c, width) for c in (64, 32, 16))
        self.encoder = nn.Sequential(*encoder)
        self.decoder = nn.Sequential(
            conv_norm_relu(channels, wide, 9),
            doubling(wide),
            conv_norm_relu(wide, half, 7),
            doubling(half),
            conv_norm_relu(half, narrow, 5),
            doubling(narrow),
            conv_norm_relu(narrow, narrow, 3),
            conv_norm_relu(narrow, narrow, 5),
        )
        self.density_head = nn.Sequential(nn.Conv2d(narrow, 1, kernel_size=1), nn.ReLU())
        initialise(self)
        start_positive(self.density_head)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) ImageNet-normalised RGB -> (B, 1, H + 7, W + 7); sum = count."""
        density: Tensor = self.density_head(self.decoder(self.encoder(image)))
        return density
