"""What the INT8 file of a trained network counts, computed in PyTorch with the engine's integers.

Rounding is brittle: a result that differs in its last bit may fall to the other side of a half,
and some layers on a tenth of all codes are others. So this follows the engine number by number.
Sums of products of codes are whole numbers, which float32 holds exactly below 2**24; biases are
rounded to the unit of those sums; and one product brings a sum into steps of the next layer.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from crowdrt.int8 import INT8_MAX, WEIGHT_MAX, TrainedInt8, activation_scale
from crowdrt.models.mcnn import MCNN
from crowdrt.models.network import Network
from crowdrt.training.quantization.grid import scales_of_weights


class IntegerConv(nn.Conv2d):
    """A convolution of codes.

    Attributes:
        trained: how its weights learned to be quantized.
        input_scale: of what it reads.
        output_scale: of what the next convolution reads; None: its result stays float.
    """

    trained: TrainedInt8
    input_scale: float
    output_scale: float | None

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) -> as the convolution does, on the grid where the next one reads codes."""
        codes = nearest_codes(features / self.input_scale)
        scales = self.weight_scales()
        weight = torch.round(self.weight / scales.view(-1, 1, 1, 1))
        if self.output_scale is None:
            numbers = codes * self.input_scale
            answer: Tensor = self._conv_forward(
                numbers, weight * scales.view(-1, 1, 1, 1), self.bias
            )
            return answer
        unit = scales * self.input_scale
        sums: Tensor = self._conv_forward(codes, weight, None)
        if self.bias is not None:
            sums = sums + torch.round(self.bias / unit).view(1, -1, 1, 1)
        steps = sums * (unit / self.output_scale).view(1, -1, 1, 1)
        return nearest_codes(steps) * self.output_scale

    def weight_scales(self) -> Tensor:
        """Return the scale of each output channel's weights, (C_out,)."""
        limit = WEIGHT_MAX[self.trained.weight_bits]
        scales = scales_of_weights(self.weight, self.bias, self.input_scale, limit)
        return scales.max().expand_as(scales) if self.trained.weight_scales == "layer" else scales


def nearest_codes(steps: Tensor) -> Tensor:
    """Return int8's codes, as float32."""
    return torch.round(steps).clamp(-INT8_MAX - 1, INT8_MAX)


def simulate(model: Network) -> Network:
    """Make a network with trained ranges count as its INT8 file does, in place.

    One without stays as it is. Weights are not changed: they shipped rounded.
    """
    trained = model.trained_int8
    if trained is None:
        return model
    for chain in chains(model, trained):
        scales = [float(activation_scale(trained.ranges[name])) for name in chain]
        for name, scale, following in zip(chain, scales, [*scales[1:], None], strict=True):
            conv: Any = model.get_submodule(name)
            conv.__class__ = IntegerConv
            conv.trained, conv.input_scale, conv.output_scale = trained, scale, following
    return model


def chains(model: Network, trained: TrainedInt8) -> Iterator[list[str]]:
    """Yield layers of which each reads the one before, behind its ReLU and perhaps a pool.

    CSRNet is one such chain, each of MCNN's columns another.
    """
    names = [name for name, _ in model.named_modules() if name in trained.ranges]
    if not isinstance(model, MCNN):
        yield names
        return
    for number in range(len(model.columns)):
        yield [name for name in names if name.startswith(f"columns.{number}.")]
