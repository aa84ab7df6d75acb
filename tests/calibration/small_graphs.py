"""Small networks written as text; weights are drawn for whatever the text leaves undefined."""

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper, parser

from crowdrt.contracts import GraphInfo, Preprocessing
from crowdrt.onnx_file import set_info

INFO = GraphInfo(
    network="small",
    width="1",
    preprocessing=Preprocessing(channels="rgb", mean=(120.0,) * 3, std=(60.0,) * 3, stride=4),
    density_stride=4,
)
NORMALISE = """
    pixels = Cast <to = 1> (image)
    centred = Sub (pixels, mean)
    normal = Div (centred, std)
"""
CONSTANTS = {
    "mean": np.full((1, 3, 1, 1), 120, np.float32),
    "std": np.full((1, 3, 1, 1), 60, np.float32),
    "axes": np.array([1, 2, 3]),
    "twice": np.array([1, 1, 2, 2], np.float32),
    "fixed_sizes": np.array([1, 3, 8, 8]),
    "grouped": np.array([0, 4, -1]),
}

# Shapes of weights by name; biases follow from them.
VGG = (
    NORMALISE
    + """
    y1 = Conv <pads = [1, 1, 1, 1]> (normal, w1, b1)
    r1 = Relu (y1)
    p1 = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r1)
    y2 = Conv <pads = [1, 1, 1, 1]> (p1, w2, b2)
    r2 = Relu (y2)
    p2 = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r2)
    y3 = Conv <pads = [2, 2, 2, 2], dilations = [2, 2]> (p2, w3, b3)
    r3 = Relu (y3)
    y4 = Conv <pads = [1, 1, 1, 1]> (r3, w4, b4)
    r4 = Relu (y4)
    density = Conv (r4, w5, b5)
    count = ReduceSum <keepdims = 0> (density, axes)
"""
)
VGG_WEIGHTS = {
    "w1": (8, 3, 3, 3),
    "w2": (16, 8, 3, 3),
    "w3": (16, 16, 3, 3),
    "w4": (8, 16, 3, 3),
    "w5": (1, 8, 1, 1),
}

COLUMNS = (
    NORMALISE
    + """
    ya = Conv <pads = [2, 2, 2, 2]> (normal, wa, ba)
    ra = Relu (ya)
    pa = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (ra)
    yb = Conv <pads = [1, 1, 1, 1]> (normal, wb, bb)
    rb = Relu (yb)
    pb = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (rb)
    both = Concat <axis = 1> (pa, pb)
    y = Conv <pads = [1, 1, 1, 1]> (both, wc, bc)
    fused = Relu (y)
    last = Conv (fused, wd, bd)
    density = Relu (last)
    count = ReduceSum <keepdims = 0> (density, axes)
"""
)
COLUMNS_WEIGHTS = {
    "wa": (8, 3, 5, 5),
    "wb": (8, 3, 3, 3),
    "wc": (8, 16, 3, 3),
    "wd": (1, 8, 1, 1),
}

NORMED = (
    NORMALISE
    + """
    y1 = Conv <pads = [1, 1, 1, 1]> (normal, w1, b1)
    n1 = InstanceNormalization (y1, g1, o1)
    r1 = Relu (n1)
    y2 = ConvTranspose <strides = [2, 2]> (r1, w2, b2)
    up = Resize <mode = "linear"> (y2, , twice)
    y3 = Conv <pads = [1, 1, 1, 1]> (up, w3, b3)
    density = Relu (y3)
    count = ReduceSum <keepdims = 0> (density, axes)
"""
)
NORMED_WEIGHTS = {
    "w1": (8, 3, 3, 3),
    "g1": (8,),
    "o1": (8,),
    "w2": (8, 6, 3, 3),
    "b2": (6,),
    "w3": (1, 6, 3, 3),
}

TEXTS = {
    "vgg": (VGG, VGG_WEIGHTS),
    "columns": (COLUMNS, COLUMNS_WEIGHTS),
    "normed": (NORMED, NORMED_WEIGHTS),
}


def network(
    kind: str = "vgg",
    *,
    seed: int = 0,
    size: tuple[int | str, int | str] = ("H", "W"),
    info: GraphInfo | None = INFO,
    opset: int = 17,
) -> onnx.ModelProto:
    """One of the texts as a checked model with drawn weights that carry the signal."""
    text, shapes = TEXTS[kind]
    return from_text(text, shapes, seed=seed, size=size, info=info, opset=opset)


def from_text(
    text: str,
    shapes: dict[str, tuple[int, ...]],
    *,
    seed: int = 0,
    size: tuple[int | str, int | str] = ("H", "W"),
    info: GraphInfo | None = INFO,
    opset: int = 17,
    arrays: dict[str, np.ndarray] | None = None,
) -> onnx.ModelProto:
    """Lines of ONNX text from `image` to `density` and `count` as a model; `arrays` are stored."""
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["": {opset}]> g '
        f"(uint8[N, 3, {size[0]}, {size[1]}] image) => "
        f"(float[N, 1, h, w] density, float[N] count) {{ {text} }}"
    )
    for node in model.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    read = {name for node in model.graph.node for name in node.input}
    for name, array in (drawn(shapes, seed) | (arrays or {})).items():
        if name in read:
            model.graph.initializer.append(numpy_helper.from_array(array, name))
    if info is not None:
        set_info(model, info)
    onnx.checker.check_model(model, full_check=True)
    return model


def drawn(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Kaiming-normal weights (gains near 1 for vectors) and small biases; the constants."""
    rng = np.random.default_rng(seed)
    arrays = dict(CONSTANTS)
    for name, shape in shapes.items():
        if len(shape) == 1:
            arrays[name] = (1 + 0.1 * rng.standard_normal(shape)).astype(np.float32)
            continue
        spread = np.sqrt(2 / np.prod(shape[1:]))
        arrays[name] = (spread * rng.standard_normal(shape)).astype(np.float32)
        arrays.setdefault(
            name.replace("w", "b"), (0.1 * rng.standard_normal(shape[0])).astype(np.float32)
        )
    return arrays


def picture(height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """(1, 3, height, width) uint8: noise on a coarse pattern."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (3, height // 8 + 1, width // 8 + 1))
    pattern = np.kron(coarse, np.ones((1, 8, 8)))[:, :height, :width]
    return (pattern + rng.normal(0, 10, pattern.shape)).clip(0, 255).astype(np.uint8)[None]


def with_outputs(model: onnx.ModelProto, names: dict[str, int]) -> onnx.ModelProto:
    """A copy that also answers the tensors in `names` (name -> ONNX type)."""
    more = onnx.ModelProto()
    more.CopyFrom(model)
    known = {value.name for value in more.graph.output}
    for name, kind in names.items():
        if name not in known:
            more.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, [None] * 4))
    return more


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray], *, optimise: bool = True):
    """Every output by name, as ONNX Runtime computes it."""
    from crowdrt.engines.ort import OrtEngine

    return OrtEngine(model.SerializeToString(), num_threads=1, optimise=optimise).run(feeds)


def without_qdq(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every Q/DQ pair is a wire."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    source: dict[str, str] = {}
    nodes = []
    for node in bare.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = source.get(name, name)
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            source[node.output[0]] = node.input[0]
        else:
            nodes.append(node)
    del bare.graph.node[:]
    bare.graph.node.extend(nodes)
    return bare


def constants_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {value.name: numpy_helper.to_array(value) for value in model.graph.initializer}


FLOAT, UINT8 = TensorProto.FLOAT, TensorProto.UINT8
