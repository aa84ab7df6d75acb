"""ResNet-50 and a feature pyramid of five levels, the trunk of one-stage detectors.

He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", CVPR 2016,
arXiv:1512.03385, in the form of the first Caffe release: a stage halves the resolution in the 1x1
convolution that it begins with, not in the 3x3 behind it. Lin, Dollar, Girshick, He, Hariharan and
Belongie, "Feature Pyramid Networks for Object Detection", CVPR 2017, arXiv:1612.03144, with the
two extra levels of FCOS (Tian, Shen, Chen and He, ICCV 2019, arXiv:1904.01355).

Shapes: B images, H x W input pixels. Level 3 is H/8 x W/8, level 4 H/16 x W/16, level 5 H/32 x
W/32; levels 6 and 7 halve again and round up: 25 rows become 13 and then 7.
"""

from fractions import Fraction

from torch import Tensor, nn
from torch.nn import functional

from crowdrt.models.layers import NormedConv
from crowdrt.models.scaling import scaled

STEM = 64  # channels
STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))  # channels inside a bottleneck, bottlenecks
EXPANSION = 4  # channels that leave a bottleneck, per channel inside
PYRAMID = 256  # channels of every level

# The scale of a fresh residual branch. At 1 each of the 16 bottlenecks doubles the variance; at 0,
# the usual start of a trained ResNet, a fresh network would ignore what lies in its branches.
BRANCH_SCALE = 0.25


def normed(in_channels: int, out_channels: int, kernel: int, *, stride: int = 1) -> NormedConv:
    """Return a convolution that keeps the size but for its stride, with batch normalisation."""
    padding = kernel // 2
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=padding, bias=False)
    return NormedConv(conv)


class Bottleneck(nn.Module):
    """Three convolutions beside a shortcut, which is a convolution where the shape changes."""

    def __init__(self, in_channels: int, inner: int, *, stride: int) -> None:
        super().__init__()
        out_channels = EXPANSION * inner
        self.reduce = normed(in_channels, inner, 1, stride=stride)
        self.middle = normed(inner, inner, 3)
        self.expand = normed(inner, out_channels, 1)
        nn.init.constant_(self.expand[1].weight, BRANCH_SCALE)  # type: ignore[arg-type]
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != out_channels:
            self.shortcut = normed(in_channels, out_channels, 1, stride=stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        """(B, in, h, w) -> (B, 4 * inner, h / stride, w / stride)."""
        branch = self.relu(self.reduce(features))
        branch = self.expand(self.relu(self.middle(branch)))
        total: Tensor = self.relu(branch + self.shortcut(features))
        return total


class ResNet50(nn.Module):
    """The backbone; it hands on what its last three stages make."""

    def __init__(self, width: Fraction = Fraction(1)) -> None:
        super().__init__()
        channels = scaled(STEM, width)
        self.stem = nn.Sequential(
            normed(3, channels, 7, stride=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        )
        self.stages = nn.ModuleList()
        for position, (inner, depth) in enumerate(STAGES):
            inner = scaled(inner, width)
            stride = 1 if position == 0 else 2  # the stem's pool has halved for the first
            blocks = [Bottleneck(channels, inner, stride=stride)]
            channels = EXPANSION * inner
            blocks += [Bottleneck(channels, inner, stride=1) for _ in range(depth - 1)]
            self.stages.append(nn.Sequential(*blocks))

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> stages 3, 4 and 5 at 1/8, 1/16 and 1/32."""
        features, stages = self.stem(image), []
        for stage in self.stages:
            features = stage(features)
            stages.append(features)
        return stages[1:]


class FeaturePyramid(nn.Module):
    """Five levels of equal width from three stages; coarse levels are added to finer ones."""

    def __init__(self, width: Fraction = Fraction(1)) -> None:
        super().__init__()
        channels = scaled(PYRAMID, width)
        stages = [EXPANSION * scaled(inner, width) for inner, _ in STAGES[1:]]
        self.lateral = nn.ModuleList(nn.Conv2d(stage, channels, 1) for stage in stages)
        self.smooth = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in stages)
        self.level_6 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.level_7 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, stages: list[Tensor]) -> list[Tensor]:
        """Stages 3 to 5 -> levels 3 to 7, each (B, pyramid, h, w)."""
        sums = [lateral(stage) for lateral, stage in zip(self.lateral, stages, strict=True)]
        for fine in reversed(range(len(sums) - 1)):
            coarse = functional.interpolate(sums[fine + 1], size=sums[fine].shape[2:])
            sums[fine] = sums[fine] + coarse
        levels = [smooth(total) for smooth, total in zip(self.smooth, sums, strict=True)]
        levels.append(self.level_6(levels[-1]))
        levels.append(self.level_7(functional.relu(levels[-1])))
        return levels
