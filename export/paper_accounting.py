"""The accounting behind the printed FLOPs: hooks on modules, as the ptflops family counts.

With these rules the parameter and FLOP cells of SKT's Tables 1, 2 and 8 come out to the last
printed digit (Liu et al., ACM MM 2020, arXiv:2003.10120). They count multiply-accumulates, not
twice that, per call of a module:

* convolution: its MACs, and one per output element for a bias; a linear layer likewise;
* transposed convolution: its MACs on the input grid, and for a bias channels x height x height:
  the width is forgotten, a slip in the public counters that the printed numbers contain;
* ReLU and its relatives: output elements; pools: input elements;
* batch and group norm: elements, twice that with learned scale and shift;
* instance norm, sigmoid and everything functional (resize, add, concatenate): nothing;
* a convolution of a class of its own, which hooks on nn.Conv2d miss: nothing. A network names
  where it has such in `unseen`.
"""

import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import batchnorm, pooling

from crowdrt.errors import ExportError

Rule = Callable[[Any, Tensor, Tensor], int]  # module, input, output -> FLOPs


def conv_flops(module: Any, _image: Tensor, output: Tensor) -> int:
    """Count the MACs on the output grid and the bias."""
    per_element: int = module.in_channels // module.groups * math.prod(module.kernel_size)
    return output.numel() * (per_element + (module.bias is not None))


def transposed_conv_flops(module: Any, image: Tensor, output: Tensor) -> int:
    """Count the MACs on the input grid and, as the papers' counters do, the bias on H x H."""
    per_element: int = module.out_channels // module.groups * math.prod(module.kernel_size)
    batch, channels, height, _ = output.shape
    bias = batch * channels * height * height if module.bias is not None else 0
    return image.numel() * per_element + bias


def linear_flops(module: Any, _image: Tensor, output: Tensor) -> int:
    """Count the MACs and the bias."""
    per_element: int = module.in_features
    return output.numel() * (per_element + (module.bias is not None))


def output_elements(_module: Any, _image: Tensor, output: Tensor) -> int:
    """Count one per output element."""
    return output.numel()


def input_elements(_module: Any, image: Tensor, _output: Tensor) -> int:
    """Count one per input element."""
    return image.numel()


def norm_flops(module: Any, image: Tensor, _output: Tensor) -> int:
    """Count one per element, two with learned scale and shift."""
    return image.numel() * (1 if module.weight is None else 2)


def nothing(_module: Any, _image: Tensor, _output: Tensor) -> int:
    """Count what the papers' counters do not see."""
    return 0


# The first class that a module is an instance of decides.
RULES: tuple[tuple[tuple[type[nn.Module], ...], Rule], ...] = (
    ((nn.ConvTranspose2d,), transposed_conv_flops),
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), conv_flops),
    ((nn.Linear,), linear_flops),
    ((nn.ReLU, nn.ReLU6, nn.PReLU, nn.LeakyReLU, nn.ELU, nn.Upsample), output_elements),
    ((pooling._MaxPoolNd, pooling._AvgPoolNd), input_elements),
    ((pooling._AdaptiveAvgPoolNd, pooling._AdaptiveMaxPoolNd), input_elements),
    ((batchnorm._BatchNorm, nn.GroupNorm), norm_flops),
    ((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.Sigmoid), nothing),
    ((nn.Identity, nn.Flatten, nn.Dropout, nn.Dropout2d), nothing),
)


def count_paper_flops(model: nn.Module, image: Tensor, *, unseen: Collection[str] = ()) -> int:
    """Return what the papers' counter says of one call of `model`.

    A module that holds parameters of its own, or has no children, must have a rule: its work
    would be lost otherwise. What a module with children does beside calling them is functional
    and free.

    Args:
        model: the network; it runs once.
        image: its input.
        unseen: attributes of `model` whose convolutions the papers' counter did not see.

    Raises:
        ExportError: a module without a rule was called.
    """
    total = 0

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += rule_for(module)(module, inputs[0], output)

    missed = [each for name in unseen for each in convolutions(model.get_submodule(name))]
    counted = [each for each in model.modules() if is_counted(each) and each not in missed]
    hooks = [module.register_forward_hook(add) for module in counted]
    try:
        with torch.no_grad():
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
    return total


def is_counted(module: nn.Module) -> bool:
    """Tell the modules that do work from the ones that only hold others."""
    childless = next(module.children(), None) is None
    return childless or next(module.parameters(recurse=False), None) is not None


def convolutions(model: nn.Module) -> list[nn.Module]:
    """Return every convolution in `model`."""
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


def rule_for(module: nn.Module) -> Rule:
    """Return how `module` is counted."""
    for classes, rule in RULES:
        if isinstance(module, classes):
            return rule
    raise ExportError(
        f"the papers' accounting has no rule for the module {type(module).__name__}",
        fix="add its class to RULES in export/paper_accounting.py, with the source of the rule",
    )
