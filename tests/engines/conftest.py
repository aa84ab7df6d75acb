"""Small networks written node by node, so that engines are tested without PyTorch."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from crowdrt.contracts import GraphInfo, Preprocessing
from crowdrt.onnx_file import set_info

sys.path.insert(0, str(Path(__file__).parent))  # for what several tests share

CHANNELS = 16  # a multiple of ONNX Runtime's block, so that it fuses into blocked layouts

INFO = GraphInfo(
    network="tiny",
    width="1",
    preprocessing=Preprocessing(channels="rgb", mean=(120.0,) * 3, std=(60.0,) * 3, stride=8),
    density_stride=8,
)
GraphMaker = Callable[..., onnx.ModelProto]


def conv(name: str, x: str, y: str) -> onnx.NodeProto:
    return helper.make_node("Conv", [x, f"{name}_w"], [y], name=name, pads=[1, 1, 1, 1])


def crowd_graph(
    size: tuple[int | str, int | str] = ("height", "width"),
    *,
    info: GraphInfo | None = INFO,
    batch: int | str = "batch",
) -> onnx.ModelProto:
    """uint8 image -> normalise -> conv, ReLU, conv, pool by 8 -> density and count."""
    rng = np.random.default_rng(0)
    weights = {
        "mean": np.full((1, 3, 1, 1), 120, np.float32),
        "std": np.full((1, 3, 1, 1), 60, np.float32),
        "first_w": rng.normal(0, 0.3, (CHANNELS, 3, 3, 3)).astype(np.float32),
        "second_w": rng.normal(0, 0.1, (1, CHANNELS, 3, 3)).astype(np.float32),
        "axes": np.array([1, 2, 3]),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["pixels", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["normal"]),
        conv("first", "normal", "a"),
        helper.make_node("Relu", ["a"], ["b"]),
        conv("second", "b", "c"),
        helper.make_node("AveragePool", ["c"], ["density"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("ReduceSum", ["density", "axes"], ["count"], keepdims=0),
    ]
    return finish(nodes, weights, [batch, 3, *size], TensorProto.UINT8, info)


def finish(
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    shape: list[int | str],
    dtype: int,
    info: GraphInfo | None,
) -> onnx.ModelProto:
    cells = [None if isinstance(side, str) else side // 8 for side in shape[2:]]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", dtype, shape)],
        [
            helper.make_tensor_value_info("density", TensorProto.FLOAT, [shape[0], 1, *cells]),
            helper.make_tensor_value_info("count", TensorProto.FLOAT, [shape[0]]),
        ],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if info is not None:
        set_info(model, info)
    return model


@pytest.fixture
def tiny_onnx(tmp_path: Path) -> Path:
    """A dynamic FP32 network in a file."""
    path = tmp_path / "tiny.onnx"
    onnx.save(crowd_graph(), path)
    return path


@pytest.fixture
def graph_maker() -> GraphMaker:
    return crowd_graph


@pytest.fixture
def pixels() -> np.ndarray:
    """One image (1, 3, 40, 64) with a bright and a dark half."""
    image = np.random.default_rng(3).integers(0, 128, (1, 3, 40, 64))
    image[..., 32:] += 127
    return image.astype(np.uint8)


@pytest.fixture
def from_text() -> Callable[..., onnx.ModelProto]:
    """Makes a checked model of ONNX text and of the arrays that it reads."""

    def make(text: str, arrays: dict[str, np.ndarray | tuple[int, ...]]) -> onnx.ModelProto:
        """Make it; a shape instead of an array asks for random weights."""
        rng = np.random.default_rng(0)
        model = parser.parse_model(text)
        read = {name for node in model.graph.node for name in node.input}
        for name, array in arrays.items():
            if isinstance(array, tuple):
                array = rng.normal(0, 0.3, array).astype(np.float32)
            if name in read:
                model.graph.initializer.append(numpy_helper.from_array(array, name))
        onnx.checker.check_model(model, full_check=True)
        return model

    return make


@pytest.fixture
def adding() -> bytes:
    """`a` + `b` = `sum` of any lengths; only the runtime finds out which lengths it cannot add."""
    names = {"a": ["n"], "b": ["m"], "sum": ["k"]}
    a, b, total = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in names.items()
    )
    graph = helper.make_graph([helper.make_node("Add", ["a", "b"], ["sum"])], "g", [a, b], [total])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()
