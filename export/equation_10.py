"""DeepCount's own accounting, layer by layer, beside what the layers really take.

Equation 10 of the paper (Chen et al., ECAI 2020, arXiv:1908.03314): output height x width x
channels x kernel height x width x channels in, that is multiply-accumulates, without biases and
activations. The paper applies it to transposed convolutions as well, on their output grid, where
every product is counted once per output element that its kernel reaches past: stride x stride
times too many, and for a 3x4 kernel on a single cell 12 times.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class LayerCost:
    """One convolution, called once on one image."""

    kernel: str  # height x width x channels in x channels out
    output: str  # height x width x channels
    equation_10: int
    macs: int


def layer_costs(
    model: nn.Module, run: Callable[[Tensor], Any], image: Tensor
) -> dict[str, LayerCost]:
    """Run `model` once and return its convolutions' costs by module name, in order of the calls.

    Args:
        model: on the meta device, where running costs nothing.
        run: one of its forward methods.
        image: (1, C, H, W).
    """
    costs: dict[str, LayerCost] = {}
    names = {
        module: name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
    }

    def note(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        costs[names[module]] = cost_of(module, inputs[0], output)

    hooks = [module.register_forward_hook(note) for module in names]
    try:
        run(image)
    finally:
        for hook in hooks:
            hook.remove()
    return costs


def cost_of(module: nn.Conv2d | nn.ConvTranspose2d, image: Tensor, output: Tensor) -> LayerCost:
    """Return one layer's cost from what it was given and what it answered, a batch of one."""
    inside, outside = module.in_channels // module.groups, module.out_channels
    taps = math.prod(module.kernel_size)
    _, channels, height, width = output.shape
    # a transposed convolution multiplies every input element by its whole kernel
    transposed = isinstance(module, nn.ConvTranspose2d)
    cells = math.prod(image.shape[2:]) if transposed else height * width
    return LayerCost(
        kernel="x".join(map(str, (*module.kernel_size, inside, outside))),
        output=f"{height}x{width}x{channels}",
        equation_10=height * width * channels * taps * inside,
        macs=cells * channels * taps * inside,
    )
