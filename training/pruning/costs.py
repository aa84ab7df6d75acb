"""What the convolutions of a network cost, in the order in which they run."""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from crowdrt.contracts import Size
from crowdrt.models.network import Network

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
SIZE: Size = (576, 864)  # of the image that is counted: the mean of ShanghaiTech A


@dataclass(frozen=True)
class ConvolutionCost:
    """A convolution as it stands."""

    inputs: int
    outputs: int
    macs: int
    stride: float  # input pixels per cell of what it writes


def convolution_costs(model: Network) -> dict[str, ConvolutionCost]:
    """Return what every convolution costs on one image, counted on the meta device.

    The first that runs comes first.
    """
    outline = copy.deepcopy(model).to("meta").eval()
    costs: dict[str, ConvolutionCost] = {}
    for name, layer in outline.named_modules():
        if isinstance(layer, CONVOLUTIONS):

            def note(layer: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
                assert isinstance(layer, CONVOLUTIONS)
                # a transposed convolution multiplies at each of its inputs, others at each output
                at = inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output
                macs = math.prod(at.shape[2:]) * layer.weight.numel()
                before = costs[name].macs if name in costs else 0  # one that runs several times
                stride = math.sqrt(math.prod(SIZE) / math.prod(output.shape[2:]))
                costs[name] = ConvolutionCost(
                    layer.in_channels, layer.out_channels, before + macs, stride
                )

            layer.register_forward_hook(note)
    with torch.no_grad():
        outline(torch.empty(1, model.preprocessing.num_channels, *SIZE, device="meta"))
    return costs
