"""DeepCount: a backbone that regresses the count, and five branches that teach it density.

Chen, Cheng, Yuan, Liao, Li and Lv, "Deep Density-aware Count Regressor", ECAI 2020,
arXiv:1908.03314, Table 1. The branches feed gradients of five density maps to the backbone and
are detached for inference; one can be kept to show where people are. The count is always the
regressor's: a map's sum is a worse one (Table 7).

What the paper leaves open is as in its published code: stride-2 convolutions pad at the bottom
and the right alone, as TensorFlow does, and a ReLU follows both answers at evaluation. Departures:
`width` scales every layer, and weights begin Kaiming-normal instead of from ImageNet's VGG-16.
`slope=0` builds `deepcount-relu`, the network of Table 8 whose every activation is a ReLU.

Shapes: B images of 384 x 512 px, and no others: the last convolution takes its whole input.
"""

from collections.abc import Collection
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from crowdrt.contracts import COUNT, DENSITY, IMAGENET
from crowdrt.models.csrnet import FRONT_END
from crowdrt.models.layers import conv_stack, initialise, start_positive
from crowdrt.models.network import Network
from crowdrt.models.scaling import scaled

SLOPE = 0.2  # of LeakyReLU; the paper calls it parametric, it is fixed
SUMMARY_KERNEL = (3, 4)  # the coarsest features, whole
# The paper's branches by the size of their maps.
BRANCHES = {
    "3x4": "branch_5",
    "6x8": "branch_4",
    "12x16": "branch_3",
    "24x32": "branch_2",
    "48x64": "branch_1",
}


class TrainOutputs(NamedTuple):
    """What the losses see: the count, and the branches' maps by their sizes, coarsest first.

    All before the ReLU of evaluation, so slightly negative answers have gradients.
    """

    people: Tensor  # (B,)
    density: dict[str, Tensor]  # (B, 1, h, w) people per cell


class HalvingConv2d(nn.Conv2d):
    """A 3x3 convolution of stride 2 that pads at the bottom and the right alone."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, stride=2)

    def forward(self, image: Tensor) -> Tensor:
        """(B, in, h, w) -> (B, out, h / 2, w / 2), both sides even."""
        return super().forward(functional.pad(image, (0, 1, 0, 1)))


def leaky(layer: nn.Module, slope: float) -> nn.Sequential:
    """Return a layer and its LeakyReLU, which is a ReLU where the slope is 0."""
    return nn.Sequential(layer, nn.LeakyReLU(slope) if slope else nn.ReLU())


class Branch(nn.Module):
    """Doubles the summary up to a map, seeing the backbone's features of each size on the way."""

    def __init__(self, num_doublings: int, *, feature: int, summary: int, slope: float) -> None:
        super().__init__()
        self.spread = leaky(nn.ConvTranspose2d(summary, feature, SUMMARY_KERNEL), slope)
        doublings = [
            nn.ConvTranspose2d(2 * feature, feature, kernel_size=4, stride=2, padding=1)
            for _ in range(num_doublings)
        ]
        self.doublings = nn.ModuleList(leaky(each, slope) for each in doublings)
        self.density_head = nn.Conv2d(2 * feature, 1, kernel_size=1)

    def forward(self, summary: Tensor, features: list[Tensor]) -> Tensor:
        """(B, C, 1, 1) and the backbone's features, coarsest first -> (B, 1, h, w), no ReLU."""
        up = self.spread(summary)
        for doubling, feature in zip(self.doublings, features, strict=False):
            up = doubling(torch.cat([up, feature], dim=1))
        last = features[len(self.doublings)]
        density: Tensor = self.density_head(torch.cat([up, last], dim=1))
        return density


class DeepCount(Network):
    """`forward` counts; `forward_train` adds the five maps, of which `keep` can save one."""

    preprocessing = IMAGENET
    density_stride = 8
    train_only = tuple(BRANCHES.values())
    offers = (COUNT, *(f"{DENSITY}:{cells}" for cells in BRANCHES))
    output_names: tuple[str, ...] = (COUNT,)
    fixed_size = (384, 512)
    whole_image = "DeepCount's regressor sees its 384x512 px whole"

    def __init__(self, width: Fraction = Fraction(1), slope: float = SLOPE) -> None:
        super().__init__()
        self.slope = slope
        self.kept: str | None = None  # the branch that ships
        front = [c and scaled(c, width) for c in FRONT_END]
        feature, wide, summary = (scaled(c, width) for c in (256, 512, 1024))
        self.front_end = conv_stack(3, front)
        self.first = leaky(nn.Conv2d(front[-1], feature, 3, padding=1), slope)
        self.halvings = nn.ModuleList(
            nn.Sequential(
                leaky(HalvingConv2d(feature, wide), slope),
                leaky(nn.Conv2d(wide, feature, 3, padding=1), slope),
            )
            for _ in range(4)
        )
        self.summary = leaky(nn.Conv2d(feature, summary, SUMMARY_KERNEL), slope)
        self.count_head = nn.Conv2d(summary, 1, kernel_size=1)
        for num_doublings, name in enumerate(BRANCHES.values()):
            branch = Branch(num_doublings, feature=feature, summary=summary, slope=slope)
            setattr(self, name, branch)
        initialise(self)
        for module in self.modules():
            if isinstance(module, Branch):
                start_positive(module.density_head)
        start_positive(self.count_head)

    def keep(self, output: str) -> None:
        """Let the count alone ship, or with it one branch's map; the other branches go."""
        super().keep(output)
        cells = output.removeprefix(f"{DENSITY}:")
        self.kept = BRANCHES.get(cells)
        self.train_only = tuple(name for name in BRANCHES.values() if name != self.kept)
        self.output_names = (DENSITY, COUNT) if self.kept else (COUNT,)
        if self.kept:
            self.density_stride = self.fixed_size[0] // int(cells.split("x")[0])

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """(B, 3, 384, 512) ImageNet-normalised RGB -> count (B,), behind the kept map if any."""
        summary, features = self.look(image)
        count = torch.relu(self.count_head(summary)).sum(dim=(1, 2, 3))
        if self.kept is None:
            return count
        return torch.relu(getattr(self, self.kept)(summary, features)), count

    def forward_train(
        self, image: Tensor, branches: Collection[str] = tuple(BRANCHES)
    ) -> TrainOutputs:
        """(B, 3, 384, 512) ImageNet-normalised RGB -> the count and the maps of these branches.

        Branches are named by the sizes of their maps; one that is left out is not computed.
        """
        summary, features = self.look(image)
        people = self.count_head(summary).sum(dim=(1, 2, 3))
        maps = {
            cells: getattr(self, name)(summary, features)
            for cells, name in BRANCHES.items()
            if cells in branches
        }
        return TrainOutputs(
            functional.leaky_relu(people, self.slope),
            {cells: functional.leaky_relu(each, self.slope) for cells, each in maps.items()},
        )

    def look(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the summary (B, C, 1, 1) and the features from 3x4 to 48x64, coarsest first."""
        features = [self.first(self.front_end(image))]
        for halving in self.halvings:
            features.append(halving(features[-1]))
        features.reverse()
        return self.summary(features[0]), features
