"""Which operators are local, and how they read: from an ONNX node to its windows.

An operator is local where a row of its output depends on a bounded window of input rows whose place
follows from the row's number alone. Where it also depends on how large the image is, or on all
of it, there is no such window, and `steps_of` says why.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from crowdrt.engines.base import CHANNELS, HEIGHT, WIDTH
from crowdrt.engines.tiling.windows import HERE, Interpolating, Sliding, Spreading, Steps

ONNX_DOMAINS = ("", "ai.onnx")
Constants = Mapping[str, npt.NDArray[Any]]


class NotLocalError(Exception):
    """An operator whose answer needs more than a window of its input; says why."""


PER_PIXEL = frozenset(
    {
        *(
            "Abs",
            "Ceil",
            "Exp",
            "Erf",
            "Floor",
            "Log",
            "Neg",
            "Reciprocal",
            "Round",
            "Sign",
            "Sqrt",
        ),
        *("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Sum", "Clip", "Where"),
        *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Not"),
        *("Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Gelu", "Mish", "ThresholdedRelu"),
        *("Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Softplus", "Softsign"),
        *("BatchNormalization", "Cast", "Dropout", "Identity"),
        *("QuantizeLinear", "DequantizeLinear"),
    }
)
PER_CHANNEL = ("BatchNormalization", "QuantizeLinear", "DequantizeLinear")  # 1-D parameters
ACROSS = frozenset(  # along the channels of each pixel, if not along rows or columns
    {
        *("Concat", "Split", "Slice", "Softmax", "LogSoftmax"),
        *("ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"),
        *("ReduceSum", "ReduceSumSquare", "ReduceLogSumExp"),
    }
)
WHOLE = {
    "GlobalAveragePool": "takes the mean of the whole image",
    "GlobalMaxPool": "takes the largest value of the whole image",
    "InstanceNormalization": "takes its statistics from the whole image",
    "GroupNormalization": "takes its statistics from the whole image",
    "LayerNormalization": "takes its statistics from the whole image",
    "MatMul": "mixes all places of the image",
    "Gemm": "mixes all places of the image",
    "Einsum": "mixes all places of the image",
    "Reshape": "lays the image out by its size",
    "Flatten": "lays the image out by its size",
}


def steps_of(node: onnx.NodeProto, constants: Constants) -> Steps:
    """Return how a node reads rows and columns.

    Args:
        node: one that reads the image, or what was made of it.
        constants: the arrays that the graph stores.

    Raises:
        NotLocalError: an output row does not follow from a window of input rows.
    """
    if node.domain not in ONNX_DOMAINS:
        raise NotLocalError(f"is no operator of ONNX itself, but of {node.domain}")
    match node.op_type:
        case "Conv" | "ConvInteger" | "QLinearConv":
            return _convolution(node, constants)
        case "MaxPool" | "AveragePool" | "LpPool":
            return _pool(node)
        case "ConvTranspose":
            return _transposed(node, constants)
        case "Resize":
            return _resize(node, constants)
        case "Pad":
            return _pad(node, constants)
        case operator if operator in PER_PIXEL:
            return HERE
        case operator if operator in ACROSS:
            return _across(node, constants)
        case operator:
            raise NotLocalError(WHOLE.get(operator, "is not known to act on a window"))


def _convolution(node: onnx.NodeProto, constants: Constants) -> Steps:
    weights = 3 if node.op_type == "QLinearConv" else 1
    kernel = _ints(node, "kernel_shape") or _kernel(node.input[weights], constants)
    return _sliding(node, kernel)


def _pool(node: onnx.NodeProto) -> Steps:
    if len([name for name in node.output if name]) > 1:
        raise NotLocalError("also gives positions in the whole image")
    return _sliding(node, _ints(node, "kernel_shape"))


def _sliding(node: onnx.NodeProto, kernel: Sequence[int]) -> Steps:
    _two_axes(kernel)
    extents = _extents(node, kernel)
    strides = _ints(node, "strides") or [1, 1]
    before, after = _pads(node, extents, strides)
    rows, columns = (
        Sliding(
            extent=extents[axis],
            stride=strides[axis],
            before=before[axis],
            after=after[axis],
            round_up=bool(_attribute(node, "ceil_mode", 0)),
        )
        for axis in (0, 1)
    )
    return rows, columns


def _transposed(node: onnx.NodeProto, constants: Constants) -> Steps:
    kernel = _ints(node, "kernel_shape") or _kernel(node.input[1], constants)
    _two_axes(kernel)
    if _ints(node, "output_shape"):
        raise NotLocalError("has an output of a fixed size")
    extents = _extents(node, kernel)
    strides = _ints(node, "strides") or [1, 1]
    extra = _ints(node, "output_padding") or [0, 0]
    if _auto_pad(node) not in ("NOTSET", "VALID"):
        raise NotLocalError(f"crops by the size of its input (auto_pad={_auto_pad(node)})")
    before, after = _pads(node, extents, strides)
    rows, columns = (
        Spreading(
            extent=extents[axis],
            stride=strides[axis],
            before=before[axis],
            after=after[axis],
            extra=extra[axis],
        )
        for axis in (0, 1)
    )
    return rows, columns


def _pads(
    node: onnx.NodeProto, extents: Sequence[int], strides: Sequence[int]
) -> tuple[Sequence[int], Sequence[int]]:
    """Return the padding before and after, of rows and of columns."""
    kind = _auto_pad(node)
    if kind == "VALID":
        return [0, 0], [0, 0]
    if kind == "NOTSET":
        pads = _ints(node, "pads") or [0, 0, 0, 0]
        return pads[:2], pads[2:]
    if any(stride > 1 for stride in strides):
        raise NotLocalError(f"pads by the size of its input (auto_pad={kind})")
    less, more = [(e - 1) // 2 for e in extents], [e - 1 - (e - 1) // 2 for e in extents]
    return (less, more) if kind == "SAME_UPPER" else (more, less)


def _resize(node: onnx.NodeProto, constants: Constants) -> Steps:
    if len(node.input) < 3 or node.input[2] not in constants or _ints(node, "axes"):
        raise NotLocalError("resizes to a size instead of by a factor")
    scales = [Fraction(float(scale)) for scale in constants[node.input[2]]]
    if len(scales) != 4 or scales[:HEIGHT] != [1, 1]:
        raise NotLocalError("resizes to a size instead of by a factor")
    if _attribute(node, "antialias", 0):
        raise NotLocalError("smooths by a window that is not followed here (antialias)")
    mode = _text(node, "mode", "nearest")
    rounding = _text(node, "nearest_mode", "round_prefer_floor")
    rows, columns = (
        Interpolating(scale=scale, shift=_shift(node, scale), mode=mode, rounding=rounding)
        for scale in scales[HEIGHT:]
    )
    return rows, columns


def _shift(node: onnx.NodeProto, scale: Fraction) -> Fraction:
    """Return where output row 0 lies; only where no row's place depends on the image's size."""
    kind = _text(node, "coordinate_transformation_mode", "half_pixel")
    if kind == "align_corners":
        raise NotLocalError("places its rows by the size of the whole map (align_corners)")
    powers = all(part & (part - 1) == 0 for part in (scale.numerator, scale.denominator))
    if not powers:  # its coordinates are rounded, each row's a little differently
        raise NotLocalError(f"resizes by {float(scale):g}, which is no power of two")
    if kind == "asymmetric":
        return Fraction(0)
    # pytorch_half_pixel is half_pixel but where a single row comes out
    if kind == "half_pixel" or (kind == "pytorch_half_pixel" and scale >= 1):
        return (1 / scale - 1) / 2
    raise NotLocalError(f"places its rows by the size of the whole map ({kind})")


def _pad(node: onnx.NodeProto, constants: Constants) -> Steps:
    pads = constants.get(node.input[1]) if len(node.input) > 1 else None
    if pads is None or len(pads) != 8 or len(node.input) > 3:
        raise NotLocalError("pads by what is computed, not by what is stored")
    if _text(node, "mode", "constant") not in ("constant", "edge") and pads[[2, 3, 6, 7]].any():
        raise NotLocalError(f"pads with rows from elsewhere (mode={_text(node, 'mode', '')})")
    sides = [(int(pads[axis]), int(pads[4 + axis])) for axis in (HEIGHT, WIDTH)]
    rows, columns = (Sliding(before=before, after=after) for before, after in sides)
    return rows, columns


def _across(node: onnx.NodeProto, constants: Constants) -> Steps:
    """Accept what works along the channels, or the images, of each pixel for itself."""
    axes = _axes(node, constants)
    if not axes or any(axis in (HEIGHT, WIDTH) or not -4 <= axis < 4 for axis in axes):
        raise NotLocalError("goes along the rows or the columns of the whole image")
    if node.op_type.startswith("Reduce") and not _attribute(node, "keepdims", 1):
        raise NotLocalError("takes an axis away")
    return HERE


def _axes(node: onnx.NodeProto, constants: Constants) -> list[int]:
    """Return the axes that a node works along, from 0; none where they are not stored."""
    if (axis := _attribute(node, "axis", None)) is not None:
        found = [axis]
    elif node.op_type in ("Softmax", "LogSoftmax", "Split"):
        found = [0 if node.op_type == "Split" else -1]
    else:
        place = 3 if node.op_type == "Slice" else 1
        stored = constants.get(node.input[place]) if len(node.input) > place else None
        found = _ints(node, "axes") or ([] if stored is None else stored.tolist())
    return [int(axis) + 4 if axis < 0 else int(axis) for axis in found]


def _kernel(weights: str, constants: Constants) -> list[int]:
    if weights not in constants:
        raise NotLocalError("has weights that are computed")
    return list(constants[weights].shape[2:])


def _extents(node: onnx.NodeProto, kernel: Sequence[int]) -> list[int]:
    dilations = _ints(node, "dilations") or [1, 1]
    return [(side - 1) * apart + 1 for side, apart in zip(kernel, dilations, strict=True)]


def _two_axes(kernel: Sequence[int]) -> None:
    if len(kernel) != 2:
        raise NotLocalError(f"has a window of {len(kernel)} axes instead of 2")


def _auto_pad(node: onnx.NodeProto) -> str:
    return _text(node, "auto_pad", "NOTSET")


def _text(node: onnx.NodeProto, name: str, default: str) -> str:
    value = _attribute(node, name, default)
    return value.decode() if isinstance(value, bytes) else str(value)


def _ints(node: onnx.NodeProto, name: str) -> list[int]:
    return list(_attribute(node, name, ()))


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            return helper.get_attribute_value(attribute)
    return default


def check_operands(
    node: onnx.NodeProto, sources: Sequence[str], shapes: Mapping[str, Sequence[int]]
) -> None:
    """Refuse a node of which an operand would be another one at another place.

    Args:
        node: a local one.
        sources: those of its inputs that are made of the image.
        shapes: of the others, as far as they are known.

    Raises:
        NotLocalError: weights made of the image, or a stored map that has a place in it.
    """
    others = [name for name in node.input if name and name not in sources]
    if node.op_type in PER_PIXEL:
        if node.op_type in PER_CHANNEL and _attribute(node, "axis", CHANNELS) in (CHANNELS, -3):
            return
        # the same at every pixel that it is broadcast over
        if not all(name in shapes and all(s == 1 for s in shapes[name][-2:]) for name in others):
            raise NotLocalError("joins the image with a map of a fixed size")
    elif node.op_type == "Concat":
        if others:
            raise NotLocalError("joins the image with a map of a fixed size")
    elif list(sources) != [node.input[0]]:
        raise NotLocalError("has weights that are made of the image")


def stored_arrays(graph: onnx.GraphProto) -> dict[str, npt.NDArray[Any]]:
    """Return what a graph stores: its initializers and its Constant nodes."""
    found = {value.name: numpy_helper.to_array(value) for value in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            value = node.attribute[0]
            array = (
                numpy_helper.to_array(value.t)
                if value.name == "value"
                else np.asarray(helper.get_attribute_value(value))
            )
            found[node.output[0]] = array
    return found
