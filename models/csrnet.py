"""CSRNet: a VGG-16 front end and a dilated back end regressing people per cell at stride 8.

Li, Zhang and Chen, "CSRNet: Dilated Convolutional Neural Networks for Understanding the Highly
Congested Scenes", CVPR 2018, arXiv:1802.10062. Two departures from the paper: `width` scales
every layer, for distilled students (SKT, Liu et al., ACM MM 2020, arXiv:2003.10120), and weights
begin Kaiming-normal instead of from ImageNet's VGG-16. SKT's code pools with rounding up and the
original with rounding down; inputs are padded to the stride, where the two are the same.

Shapes: B images, H x W input pixels, h x w = H/8 x W/8 output cells.
"""

from fractions import Fraction

from torch import Tensor, nn

from crowdrt.contracts import IMAGENET
from crowdrt.models.layers import POOL, conv_stack, initialise
from crowdrt.models.network import Network
from crowdrt.models.scaling import scaled

FRONT_END = (64, 64, POOL, 128, 128, POOL, 256, 256, 256, POOL, 512, 512, 512)
BACK_END = (512, 512, 512, 256, 128, 64)


class CSRNet(Network):
    """`forward` is the deployed network; nothing is only for training."""

    preprocessing = IMAGENET
    density_stride = 8

    def __init__(self, width: Fraction = Fraction(1)) -> None:
        super().__init__()
        front = [c and scaled(c, width) for c in FRONT_END]
        back = [scaled(c, width) for c in BACK_END]
        self.front_end = conv_stack(3, front)
        self.back_end = conv_stack(front[-1], back, dilation=2)
        self.density_head = nn.Conv2d(back[-1], 1, kernel_size=1)
        initialise(self)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) ImageNet-normalised RGB -> (B, 1, h, w) people per cell; sum = count."""
        density: Tensor = self.density_head(self.back_end(self.front_end(image)))
        return density
