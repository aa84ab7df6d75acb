"""A small network that answers differently everywhere, as a trained one does."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from crowdrt.contracts import IMAGENET, GraphInfo
from crowdrt.models.network import Network


class Foldable(nn.Module):
    """A convolution and a scale that `fold` multiplies into it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.scale = nn.Parameter(torch.rand(channels, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.scale

    def fold(self) -> nn.Conv2d:
        with torch.no_grad():
            self.conv.weight.mul_(self.scale[..., None])
            self.conv.bias.mul_(self.scale.flatten())
        return self.conv


class Tiny(Network):
    """Convolutions, a foldable block, pools to 1/8; the auxiliary head is for training."""

    preprocessing = IMAGENET
    density_stride = 8
    train_only = ("auxiliary",)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=2, dilation=2)
        self.block = Foldable(8)
        self.last = nn.Conv2d(8, 1, 1)
        self.auxiliary = nn.Conv2d(8, 4, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, image: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.first(image)), 2)
        x = nn.functional.max_pool2d(torch.relu(self.block(x)), 4)
        return self.last(x)


class Total(Tiny):
    """Answers with the number of people alone, or with the map beside it; 32x48 px only."""

    offers = ("count", "density")
    output_names = ("count",)
    fixed_size = (32, 48)

    def forward(self, image):
        density = super().forward(image)
        count = density.sum(dim=(1, 2, 3))
        return count if self.output_names == ("count",) else (density, count)

    def keep(self, output):
        super().keep(output)
        self.output_names = ("count",) if output == "count" else ("density", "count")


@pytest.fixture
def total() -> Network:
    torch.manual_seed(0)
    return Total().eval()


@pytest.fixture
def tiny() -> Network:
    torch.manual_seed(0)
    return Tiny().eval()


@pytest.fixture
def info() -> GraphInfo:
    return GraphInfo(network="tiny", width="1", preprocessing=IMAGENET, density_stride=8)


@pytest.fixture
def no_simplifier(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave onnxsim out, whose import takes seconds."""
    monkeypatch.setattr(
        "crowdrt.export.onnx_export.simplify", lambda model, _: (model, "not tried")
    )


@pytest.fixture
def make_network() -> Callable[[], Network]:
    return Tiny


@pytest.fixture
def pictures() -> list[np.ndarray]:
    """Pictures of 57x85 and 40x48 px, the first padded to the stride of 8, and a batch of two."""
    return [
        padded(np.random.default_rng(0).integers(0, 256, (1, 3, 57, 85))),
        padded(np.random.default_rng(1).integers(0, 100, (1, 3, 40, 48))),
        padded(np.random.default_rng(2).integers(90, 256, (2, 3, 32, 33))),
    ]


def padded(image: np.ndarray) -> np.ndarray:
    """Pad at the bottom and the right to multiples of 8 with the mean grey level."""
    rows, columns = -image.shape[2] % 8, -image.shape[3] % 8
    return np.pad(image, ((0, 0), (0, 0), (0, rows), (0, columns)), constant_values=118).astype(
        np.uint8
    )
