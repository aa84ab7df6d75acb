"""What a network costs: parameters, true multiply-accumulates, and the papers' own accounting.

Networks run on the meta device, where tensors have shapes but no memory: a 2032x2912 photograph
costs nothing. Two counters, because the printed "FLOPs" of crowd-counting papers are no FLOPs:

* `macs`: multiply-accumulates of every convolution, transposed convolution and matrix product in
  the traced graph, by fvcore. One MAC is two FLOPs.
* `paper_flops`: what SKT's tables print (Liu et al., ACM MM 2020, arXiv:2003.10120, Tables 1, 2
  and 8), worked out from the printed cells; see `crowdrt.export.paper_accounting`.

Nothing is silently zero: an operator or a module that neither counter knows is an error.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from crowdrt.contracts import PRUNED, Size
from crowdrt.errors import ExportError
from crowdrt.export.paper_accounting import count_paper_flops
from crowdrt.lazy import require
from crowdrt.models import build_model
from crowdrt.models.network import Network
from crowdrt.models.weights import load_outline

# fvcore's names of what multiplies and accumulates. It also counts normalisation and resizing,
# which are no MACs and are left out.
MAC_OPERATORS = ("conv", "linear", "matmul", "mm", "bmm", "addmm", "einsum")

# Operators without a product over channels or positions; fvcore knows the rest of their kind.
# Element by element, a pool, a comparison, a resize: arithmetic, but no multiply-accumulate.
NO_MACS = tuple(
    "aten::" + name
    for name in (
        *("add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "neg", "rsub", "reciprocal"),
        *("abs", "abs_", "exp", "log", "sqrt", "rsqrt", "pow", "square", "maximum", "minimum"),
        *("sum", "mean", "amax", "min", "softmax", "sigmoid", "sigmoid_", "tanh", "softplus"),
        *("prelu", "leaky_relu", "leaky_relu_", "elu", "gelu", "silu", "silu_", "hardtanh"),
        *("max_pool2d", "avg_pool2d", "adaptive_max_pool2d", "pixel_shuffle", "clone", "alias"),
        *("topk", "sort", "where", "repeat", "lt", "le", "ne", "logical_and", "numel", "pad"),
    )
)


USUAL_SIZE: Size = (576, 864)  # the mean of ShanghaiTech A, and SKT's first column


@dataclass(frozen=True, kw_only=True)
class Complexity:
    """The cost of one image through the network that ships."""

    network: str
    width: str  # "1", "1/4", "pruned 1/4"
    size: Size  # height, width in pixels
    params: int
    macs: int
    paper_flops: int

    def as_dict(self) -> dict[str, Any]:
        """The JSON document of one row."""
        return {
            "network": self.network,
            "width": self.width,
            "size": list(self.size),
            "params": self.params,
            "macs": self.macs,
            "paper_flops": self.paper_flops,
        }


def complexity(network: str, width: Fraction, size: Size | None = None) -> Complexity:
    """Count `network` at `width` on one image of `size`, exactly as large: nothing is padded.

    Without `size`, the only one that the network takes, or 576x864.

    Raises:
        RecipeError: no such network or width.
        ExportError: the image is too small, or something in the network cannot be counted.
    """
    with torch.device("meta"):
        model = build_model(network, width)
    return counted(model, network, str(width), size)


def complexity_of_weights(path: Path, size: Size | None = None) -> Complexity:
    """Count the network that a weights file holds, as narrow as pruning left it.

    Raises:
        WeightsError: the file is missing or damaged, or its tensors fit no network.
        ExportError: the image is too small, or something in the network cannot be counted.
    """
    model, network, width = load_outline(path)
    return counted(model, network, PRUNED * model.pruned + str(width), size)


def counted(model: Network, network: str, width: str, size: Size | None) -> Complexity:
    """Count a network on the meta device at a size, or at its usual one."""
    size = size or model.fixed_size or USUAL_SIZE
    params, macs, paper_flops = count(model, size)
    return Complexity(
        network=network,
        width=width,
        size=size,
        params=params,
        macs=macs,
        paper_flops=paper_flops,
    )


def count(model: Network, size: Size) -> tuple[int, int, int]:
    """Return parameters, MACs and the papers' FLOPs of a network on the meta device.

    Branches that only training needs are removed from `model` first, as `export.deploy` does.
    Nothing is folded: the papers count batch norm.
    """
    height, width = size
    if model.fixed_size not in (None, size):
        raise ExportError(
            f"{type(model).__name__} takes one size and no other, not {height}x{width}",
            fix="use --size {}x{}".format(*model.fixed_size),
        )
    for name in model.train_only:
        delattr(model, name)
    model.eval()
    image = torch.empty(1, model.preprocessing.num_channels, *size, device="meta")
    try:
        paper_flops = count_paper_flops(model, image, unseen=model.unseen)
    except (RuntimeError, ValueError) as error:  # ValueError: instance norm of one pixel
        raise ExportError(
            f"{type(model).__name__} cannot run at {height}x{width}: {error}",
            fix=f"use a size of at least {model.preprocessing.stride * 4} px on each side, "
            "height first: --size 576x864",
        ) from error
    params = sum(parameter.numel() for parameter in model.parameters())
    return params, count_macs(model, image), paper_flops


def conv2d(
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Do what torch.conv2d does, in the form that can be traced on the meta device."""
    sizes = (pair(stride), pair(padding), pair(dilation), False, (0, 0), groups)
    return torch._convolution(image, weight, bias, *sizes, False, False, False, False)


def conv_transpose2d(
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """Do what torch.conv_transpose2d does, in the form that can be traced on the meta device."""
    sizes = (pair(stride), pair(padding), pair(dilation), True, pair(output_padding), groups)
    return torch._convolution(image, weight, bias, *sizes, False, False, False, False)


def pair(value: Any) -> tuple[int, int]:
    """Return height and width of a convolution's argument; one number is for both."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


class TraceableConvolutions(TorchFunctionMode):
    """Lets fvcore trace convolutions on the meta device.

    There the plain functions reach a shape rule written in Python, which fails on traced sizes,
    and their graph node would be one that fvcore does not know. The inner function has neither
    problem. A convolution that comes another way fails loudly.
    """

    FORMS: Mapping[Any, Callable[..., Tensor]] = MappingProxyType(
        {torch.conv2d: conv2d, torch.conv_transpose2d: conv_transpose2d}
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.FORMS.get(func, func)(*args, **(kwargs or {}))


def matmul_macs(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Count a matrix product in a traced graph; fvcore forgets the batch that shares a matrix.

    Args:
        inputs: graph values of shapes (..., n, k) and (..., k, m).
        outputs: one graph value of shape (..., n, m).
    """
    inner: int = inputs[0].type().sizes()[-1]
    return int(math.prod(outputs[0].type().sizes())) * inner


def count_macs(model: nn.Module, image: Tensor) -> int:
    """Return the multiply-accumulates of convolutions and matrix products, by fvcore.

    Raises:
        ExportError: the graph holds an operator that nobody vouched for.
    """
    fvcore = require("fvcore.nn", extra="train")
    analysis = fvcore.FlopCountAnalysis(model, image)
    analysis.set_op_handle("aten::matmul", matmul_macs)
    analysis.set_op_handle(**dict.fromkeys(NO_MACS))  # None: known, and no MACs
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    with torch.no_grad(), TraceableConvolutions():
        by_operator = analysis.by_operator()
    if unknown := sorted(analysis.unsupported_ops()):
        raise ExportError(
            f"{type(model).__name__} uses operators that cannot be counted: {', '.join(unknown)}",
            fix="add each to NO_MACS in export/complexity.py, or a handler that counts it",
        )
    return int(sum(by_operator[name] for name in MAC_OPERATORS))
