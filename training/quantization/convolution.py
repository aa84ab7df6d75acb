"""A convolution that learns in simulated INT8, by one of two methods.

QAT: Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", CVPR 2018, arXiv:1712.05877. Weights are rounded by their
largest value, activations by a moving average of theirs. Departures: symmetric ranges, and one
scale for each output channel's weights, as the INT8 file has them; a network that has learned
already is begun with, so activations are rounded from the first step on; no batch normalisation.

DoReFa: Zhou et al., "DoReFa-Net: Training Low Bitwidth Convolutional Neural Networks with Low
Bitwidth Gradients", arXiv:1606.06160, equation 9. With t = tanh(w) and m the layer's largest |t|,
the paper's weight is 2 quantize(t / 2m + 1/2) - 1 and here it is f round(127 t / m) / 127:

- 254 steps instead of 255, so that 0 is a code and codes are those of int8.
- Times f, the largest |weight| that the layer began with. The paper's weights reach 1 in every
  layer, which a network bears that normalises behind each; here nothing would take that out. So a
  layer has one scale, f / 127, for ever.
- What is learned begins where the rule gives the weights of a trained network. With those weights
  themselves behind tanh, the shipped 1/4-CSRNet's counts of five photographs of 90 to 390 people
  moved by 31 in the mean.
- Activations are clipped at a bound that was measured, the moving average of QAT, which a recipe
  lets move in its first steps alone: those of a regressor are not in [0, 1]. 127 steps.
- Gradients stay float, as the paper has it for G = 32.
- The first layer is quantized too, since the INT8 file has it so; the last one is not.
"""

import math
from typing import Any

import torch
from torch import Tensor, distributed, nn

from crowdrt.int8 import MIN_SCALE, WEIGHT_MAX, activation_scale
from crowdrt.learning import Quantization
from crowdrt.training.quantization.grid import (
    quantized_activations,
    rounded_weights,
    scales_of_weights,
)


class QuantizedConv(nn.Conv2d):
    """Multiplies the numbers that the engine will: both factors lie on the grid.

    Attributes:
        input_range: |x| up to which INT8 reaches of what it reads; 0 while nothing was seen.
        observing: whether training moves the range.
        factor: of "dorefa", f above.
    """

    input_range: Tensor
    options: Quantization
    observing: bool
    factor: Tensor

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) -> as the convolution does."""
        if features.is_meta:  # of which only the shape is asked
            return super().forward(features)
        if self.training and self.observing:
            self.observe(features.detach())
        rounded = quantized_activations(features, self.input_scale)
        answer: Tensor = self._conv_forward(rounded, self.shipped_weight(), self.bias)
        return answer

    @property
    def input_scale(self) -> float:
        """The step of what it reads."""
        return float(activation_scale(float(self.input_range)))

    def observe(self, features: Tensor) -> None:
        """Move the range towards the largest |x| of a batch, of all processes."""
        low, high = torch.aminmax(features)
        largest = torch.maximum(-low, high)
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(largest, op=distributed.ReduceOp.MAX)
        average = largest.lerp(self.input_range, self.options.range_decay)
        self.input_range.copy_(torch.where(self.input_range == 0, largest, average))

    def shipped_weight(self) -> Tensor:
        """Return the weights as the method rounds them."""
        limit = WEIGHT_MAX[self.options.weight_bits]
        weight = self.weight
        if self.options.method == "dorefa":
            bounded = torch.tanh(weight)
            weight = self.factor * bounded / bounded.abs().max().clamp(min=MIN_SCALE)
        scales = scales_of_weights(weight, self.bias, self.input_scale, limit)
        if self.options.weight_scales == "layer":
            scales = scales.max().expand_as(scales)
        return rounded_weights(weight, scales)


def quantize_conv(conv: nn.Conv2d, options: Quantization) -> QuantizedConv:
    """Make a convolution learn in simulated INT8, in place: its parameters keep their names."""
    changed: Any = conv
    changed.__class__ = QuantizedConv
    changed.options, changed.observing = options, True
    changed.register_buffer("input_range", torch.zeros((), device=conv.weight.device))
    if options.method == "dorefa":
        largest = conv.weight.detach().abs().max().clamp(min=MIN_SCALE)
        changed.register_buffer("factor", largest)
        with torch.no_grad():  # any bound under 1 gives the same weights; this one's largest is 1
            conv.weight.copy_(torch.atanh(math.tanh(1) * conv.weight / largest))
    assert isinstance(changed, QuantizedConv)
    return changed


def plain_conv(conv: QuantizedConv) -> nn.Conv2d:
    """Make it the float convolution of the rounded weights again, in place."""
    with torch.no_grad():
        conv.weight.copy_(conv.shipped_weight())
    plain: Any = conv
    if conv.options.method == "dorefa":
        del plain.factor
    del plain.input_range, plain.options, plain.observing
    plain.__class__ = nn.Conv2d
    assert type(plain) is nn.Conv2d
    return plain
