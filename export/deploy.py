"""Training network -> the network that ships, with proof that it still answers the same."""

import copy

import torch
from torch import Tensor, nn

from crowdrt.contracts import Preprocessing
from crowdrt.errors import ParityError
from crowdrt.models.network import Network, fold_blocks

MAX_CHANGE = 1e-4  # of the largest output; folding rounds differently, and no more


def deploy(model: Network, image: Tensor) -> Network:
    """Copy `model` without its training-only branches and with its blocks folded.

    A class names the branches in `train_only`; a block that has a simpler inference form offers
    `fold()`. Both networks run on `image`, so a fold that changes the numbers fails here and
    not on the device.

    Args:
        model: a trained network; it is left as it was.
        image: (B, C, H, W) normalised, with enough structure that the output varies.

    Raises:
        ParityError: the output changed, or is the same everywhere and so proves nothing.
    """
    trained = copy.deepcopy(model).eval()
    shipped = copy.deepcopy(trained)
    for name in shipped.train_only:
        delattr(shipped, name)
    fold_blocks(shipped)
    with torch.no_grad():
        before, after = trained(image), shipped(image)
    _prove_unchanged(type(model).__name__, before, after)
    return shipped


def _prove_unchanged(name: str, before: Tensor, after: Tensor) -> None:
    scale = before.abs().max().item()
    if not before.std().item() > 1e-6 * scale:  # also true for NaN
        raise ParityError(
            f"{name} answers the same everywhere, so deploying it cannot be checked",
            fix="load trained weights, or deploy with an image that is not uniform",
        )
    change = (before - after).abs().max().item() / scale
    if not change <= MAX_CHANGE:
        raise ParityError(
            f"deploying {name} moved its output by {change:.1%}",
            fix="run each block before and after fold(); the first that differs is the culprit",
        )


class ShippedNetwork(nn.Module):
    """What becomes the ONNX graph: pixels in, density map and count out."""

    mean: Tensor  # (1, C, 1, 1) grey levels
    std: Tensor

    def __init__(
        self, network: nn.Module, preprocessing: Preprocessing, *, normalised_input: bool = False
    ) -> None:
        """Wrap `network`, a deployed one.

        Args:
            network: (N, C, H, W) float32 normalised -> (N, 1, h, w) people per cell.
            preprocessing: its normalisation.
            normalised_input: True when the caller normalises and feeds float32.
        """
        super().__init__()
        self.network = network
        self.normalised_input = normalised_input
        for name in ("mean", "std"):
            levels = torch.tensor(getattr(preprocessing, name), dtype=torch.float32)
            self.register_buffer(name, levels.view(1, -1, 1, 1))
        self.eval()

    def normalise(self, image: Tensor) -> Tensor:
        """(N, C, H, W) uint8 pixels -> float32 as the network takes them.

        It stays outside the first convolution: folded into the weights, the convolution would
        pad with black instead of with the mean.
        """
        return (image.float() - self.mean) / self.std

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) uint8, or float32 normalised -> density (N, 1, h, w), count (N,)."""
        density = self.network(image if self.normalised_input else self.normalise(image))
        return density, density.sum(dim=(1, 2, 3))
