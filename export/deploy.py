"""Training network -> the network that ships, with proof that it still answers the same."""

import copy

import numpy as np
import torch
from torch import Tensor, nn

from crowdrt.contracts import COUNT, DENSITY, Feeds, Preprocessing
from crowdrt.errors import ParityError
from crowdrt.export.difference import differences
from crowdrt.models.network import Network, Normalise, fold_blocks

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
    both = torch.cat([image, -image])  # so that a single number, too, has to vary
    with torch.no_grad():
        before, after = outputs_of(trained, both), outputs_of(shipped, both)
    _prove_unchanged(type(model).__name__, before, after)
    return shipped


def outputs_of(network: Network, image: Tensor) -> Feeds:
    """Run a network and return its outputs by name."""
    answer = network(image)
    answers = answer if isinstance(answer, tuple) else (answer,)
    arrays = [each.detach().numpy() for each in answers]
    return dict(zip(network.output_names, arrays, strict=True))


def _prove_unchanged(network: str, before: Feeds, after: Feeds) -> None:
    for name, values in before.items():
        scale = float(np.abs(values).max())
        varies = float(values.std()) > 1e-6 * scale  # not NaN either
        if not varies and np.issubdtype(values.dtype, np.floating):
            raise ParityError(
                f"{network}'s {name} is the same everywhere, so deploying cannot be checked",
                fix="load trained weights, or deploy with an image that is not uniform",
            )
    for name, found in differences(before, after, MAX_CHANGE).items():
        if not found.relative <= MAX_CHANGE:
            raise ParityError(
                f"by deploying, {network}'s {name} moved by {found.relative:.1%}",
                fix="run each block before and after fold(); the first that differs is the culprit",
            )


class ShippedNetwork(nn.Module):
    """What becomes the ONNX graph: pixels in, named outputs out."""

    def __init__(
        self, network: Network, preprocessing: Preprocessing, *, normalised_input: bool = False
    ) -> None:
        """Wrap `network`, a deployed one.

        Args:
            network: (N, C, H, W) float32 normalised -> its outputs.
            preprocessing: its normalisation.
            normalised_input: True when the caller normalises and feeds float32.
        """
        super().__init__()
        self.network = network
        self.normalised_input = normalised_input
        self.normalise = Normalise(preprocessing)
        self.adds_count = network.output_names == (DENSITY,)
        self.output_names = network.output_names + (COUNT,) * self.adds_count
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(N, C, H, W) uint8, or float32 normalised -> one tensor per output name.

        Beside a density map alone, (N, 1, h, w), stands its sum, the count (N,).
        """
        answer = self.network(image if self.normalised_input else self.normalise(image))
        if self.adds_count:
            # Row by row: ONNX Runtime adds one number to the next, and the sum of 1024x1456 cells
            # was off by 8 in 100,000. Without the flatten, onnxsim makes one sum of the two.
            return answer, answer.sum(dim=3).flatten(1).sum(dim=1)
        return answer if isinstance(answer, tuple) else (answer,)
