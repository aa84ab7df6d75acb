"""BL: VGG-19 and a small head regressing people per cell at stride 8.

Ma, Wei, Hong and Gong, "Bayesian Loss for Crowd Count Estimation with Point Supervision",
ICCV 2019, arXiv:1908.03684. The paper's subject is a loss; this is the network it trains, with
the last pool left out. Two departures from the paper: `width` scales every layer, for distilled
students (SKT, Liu et al., ACM MM 2020, arXiv:2003.10120), and weights begin Kaiming-normal
instead of from ImageNet's VGG-19.

Shapes: B images, H x W input pixels, both multiples of 16, h x w = H/8 x W/8 output cells.
"""

from dataclasses import replace
from fractions import Fraction

from torch import Tensor, nn
from torch.nn import functional

from crowdrt.contracts import IMAGENET
from crowdrt.models.layers import POOL, conv_stack, initialise
from crowdrt.models.network import Network
from crowdrt.models.scaling import scaled

FRONT_END = (
    *(64, 64, POOL),
    *(128, 128, POOL),
    *(256, 256, 256, 256, POOL),
    *(512, 512, 512, 512, POOL),
    *(512, 512, 512, 512),
)
BACK_END = (256, 128)


class BL(Network):
    """`forward` is the deployed network; nothing is only for training."""

    preprocessing = replace(IMAGENET, stride=16)
    density_stride = 8

    def __init__(self, width: Fraction = Fraction(1)) -> None:
        super().__init__()
        front = [c and scaled(c, width) for c in FRONT_END]
        back = [scaled(c, width) for c in BACK_END]
        self.front_end = conv_stack(3, front)
        self.back_end = conv_stack(front[-1], back)
        self.density_head = nn.Conv2d(back[-1], 1, kernel_size=1)
        initialise(self)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) ImageNet-normalised RGB -> (B, 1, h, w) people per cell; sum = count."""
        features = functional.interpolate(
            self.front_end(image), scale_factor=2, mode="bilinear", align_corners=True
        )
        density: Tensor = self.density_head(self.back_end(features))
        return density.abs()
