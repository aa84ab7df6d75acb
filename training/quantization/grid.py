"""The INT8 grid in PyTorch, with gradients that pass straight through the rounding.

What `calibration.int8.qdq` writes into a file: activations int8 with one scale per tensor, weights
with one per output channel, zero points 0, rounding half to even. Straight-through: Bengio, Leonard
and Courville, "Estimating or Propagating Gradients Through Stochastic Neurons", arXiv:1308.3432.
"""

import torch
from torch import Tensor

from crowdrt.int8 import INT8_MAX, MAX_BIAS_STEPS, MIN_SCALE


def quantized_activations(features: Tensor, scale: float) -> Tensor:
    """Return the nearest numbers that int8 has; the gradient is 1 inside its range, 0 outside."""
    return torch.fake_quantize_per_tensor_affine(features, scale, 0, -INT8_MAX - 1, INT8_MAX)


def rounded_weights(weight: Tensor, scales: Tensor) -> Tensor:
    """(C_out, C_in, h, w) -> the same on the grid of (C_out,) scales; the gradient is 1."""
    scale = scales.view(-1, 1, 1, 1)
    return weight + (torch.round(weight / scale) * scale - weight).detach()


def scales_of_weights(
    weight: Tensor, bias: Tensor | None, input_scale: float, limit: int
) -> Tensor:
    """Return each output channel's scale, by the rule of the file: (C_out,) without a gradient.

    Args:
        weight: (C_out, C_in, h, w).
        bias: (C_out,); it must fit int32, which gives a channel of tiny weights a larger scale.
        input_scale: of what the convolution reads.
        limit: the largest code, 127 for 8 bits.
    """
    scales = weight.detach().abs().amax((1, 2, 3)).double() / limit
    if bias is not None:
        scales = scales.maximum(bias.detach().abs() / (input_scale * MAX_BIAS_STEPS))
    return scales.clamp(min=MIN_SCALE).float()
