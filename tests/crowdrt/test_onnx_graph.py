"""What an output needs, what is stored and what layers cost, on graphs small enough to count."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from crowdrt.onnx_graph import (
    GraphSize,
    count_nodes,
    graph_size,
    image_size,
    layer_macs,
    needed_nodes,
    num_parameters,
    precision_of,
    reads,
    stored_tensors,
    unneeded,
)

NOTHING = {"nodes": [], "initializers": [], "inputs": []}


def model_of(text, **stored):
    """Parse a graph; `stored` become its initializers."""
    head = '<ir_version: 8, opset_import: ["" : 17]>'
    model = onnx.parser.parse_model(f"{head} {text}")
    for name, array in stored.items():
        array = np.asarray(array, getattr(array, "dtype", np.float32))
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.checker.check_model(model)
    return model


TWO_HEADS = """
g (float[1,3,h,w] image, float[1] gain) => (float[n,c,h,w] density, float[n,d,h,w] mask) {
    body = Conv <pads = [1,1,1,1]> (image, w0)
    features = Relu (body)
    density = Conv (features, w1)
    logit = Conv (features, w2)
    scaled = Mul (logit, gain)
    mask = Sigmoid (scaled)
}"""


@pytest.fixture
def two_heads():
    weights = {
        "w0": np.ones((8, 3, 3, 3)),
        "w1": np.ones((1, 8, 1, 1)),
        "w2": np.ones((2, 8, 1, 1)),
    }
    return model_of(TWO_HEADS, **{k: v.astype(np.float32) for k, v in weights.items()})


def test_what_one_output_needs(two_heads):
    kinds = [node.op_type for node in needed_nodes(two_heads.graph, ["density"])]
    assert kinds == ["Conv", "Relu", "Conv"]
    assert unneeded(two_heads.graph) == NOTHING
    assert unneeded(two_heads.graph, ["mask"]) == {
        "nodes": ["density"],
        "initializers": ["w1"],
        "inputs": [],
    }
    assert unneeded(two_heads.graph, ["density"]) == {
        "nodes": ["logit", "scaled", "mask"],
        "initializers": ["w2"],
        "inputs": ["gain"],
    }


def test_what_no_output_needs(two_heads):
    node = helper.make_node("Relu", ["mask"], ["idle"], name="left behind")
    two_heads.graph.node.append(node)
    two_heads.graph.initializer.append(numpy_helper.from_array(np.ones(3), "forgotten"))
    assert unneeded(two_heads.graph) == NOTHING | {
        "nodes": ["left behind"],
        "initializers": ["forgotten"],
    }


def test_a_branch_of_control_flow_reads_from_outside():
    model = model_of(
        """
        g (bool yes, float[3] x) => (float[3] y) {
            z = Relu (x)
            y = If (yes) <
                then_branch = a () => (float[3] t) { inner = Add (z, w)  t = Mul (inner, inner) },
                else_branch = b () => (float[3] e) { e = Identity (x) }
            >
        }""",
        w=np.ones(3, np.float32),
        idle=np.ones(3, np.float32),
    )
    node = model.graph.node[1]
    assert reads(node) == {"yes", "z", "w", "x"}
    assert unneeded(model.graph) == NOTHING | {"initializers": ["idle"]}
    assert count_nodes(model.graph) == {"Add": 1, "Identity": 1, "If": 1, "Mul": 1, "Relu": 1}


def test_parameters_are_what_layers_learned():
    """Weights through Q/DQ or a cast, norms without statistics, slopes; no constant beside them."""
    model = model_of(
        """
        g (float[1,3,h,w] image) => (float[n,c,h,w] y) {
            centred = Sub (image, mean)
            q = QuantizeLinear (w0, scale, zero)
            w = DequantizeLinear (q, scale, zero)
            a = Conv (centred, w, bias)
            b = BatchNormalization (a, gamma, beta, moving_mean, moving_var)
            c = PRelu (b, slope)
            grid = Add (c, places)
            half = Cast <to = 1> (half_weight)
            y = Conv (grid, half)
        }""",
        mean=np.ones((1, 3, 1, 1), np.float32),
        w0=np.ones((4, 3, 1, 1), np.float32),
        scale=np.float32(0.1),
        zero=np.int8(0),
        bias=np.ones(4, np.float32),
        gamma=np.ones(4, np.float32),
        beta=np.ones(4, np.float32),
        moving_mean=np.ones(4, np.float32),
        moving_var=np.ones(4, np.float32),
        slope=np.ones((4, 1, 1), np.float32),
        places=np.ones((1, 4, 1, 1), np.float32),
        half_weight=np.ones((2, 4, 1, 1), np.float16),
    )
    assert num_parameters(model.graph) == 12 + 4 + (4 + 4) + 4 + 8


def test_a_shared_weight_is_counted_once_and_works_twice():
    model = model_of(
        """g (float[1,2,h,w] image) => (float[n,c,h,w] y) {
            a = Conv (image, w0)
            y = Conv (a, w0)
        }""",
        w0=np.ones((2, 2, 1, 1), np.float32),
    )
    assert graph_size(model, (4, 5)) == GraphSize(nodes=2, params=4, macs=2 * 4 * 20)


def test_macs_by_hand():
    model = model_of(
        """g (float[n,3,h,w] image, float[6,7] rows) => (float[a,b,c,d] y, float z, float v) {
            a = Conv <strides = [2,2], group = 1> (image, w0)
            y = ConvTranspose <strides = [2,2]> (a, w1)
            z = MatMul (rows, w2)
            v = Gemm <transA = 1> (rows, w3)
        }""",
        w0=np.ones((5, 3, 2, 2), np.float32),
        w1=np.ones((5, 4, 2, 2), np.float32),
        w2=np.ones((7, 9), np.float32),
        w3=np.ones((6, 2), np.float32),
    )
    assert layer_macs(model, (8, 12)) == {
        "a": 5 * 4 * 6 * 3 * 2 * 2,
        "y": 5 * 4 * 6 * 4 * 2 * 2,  # on the input's grid
        "z": 6 * 7 * 9,
        "v": 7 * 6 * 2,
    }


def test_a_fixed_size_wins_over_the_one_asked_for():
    model = model_of(
        "g (float[1,3,4,6] image) => (float[n,c,h,w] y) { y = Conv (image, w0) }",
        w0=np.ones((5, 3, 1, 1), np.float32),
    )
    assert image_size(model.graph) == (4, 6)
    assert layer_macs(model, (100, 100)) == {"y": 5 * 3 * 24}


def test_an_unknown_shape_is_said_to_be(two_heads):
    two_heads.graph.node[1].op_type = "Unheard"
    two_heads.graph.node[1].domain = "some.where"
    two_heads.opset_import.append(helper.make_opsetid("some.where", 1))
    macs = layer_macs(two_heads, (4, 6))
    assert macs["body"] == 8 * 24 * 27
    assert macs["density"] is None
    assert graph_size(two_heads, (4, 6)).macs is None
    assert image_size(two_heads.graph) is None
    kinds = count_nodes(two_heads.graph)
    assert max(kinds, key=kinds.__getitem__) == next(iter(kinds)) == "Conv"
    assert "some.where::Unheard" in kinds


def test_types_that_contradict_each_other_leave_every_shape_unknown(two_heads):
    two_heads.graph.node[1].domain = "nobody.imported"
    assert set(layer_macs(two_heads, (4, 6)).values()) == {None}


@pytest.mark.parametrize(
    ("text", "dtype", "expected"),
    [
        ("y = Add (x, w)", np.float32, "fp32"),
        ("c = Cast <to = 1> (w) y = Add (x, c)", np.float16, "fp16"),
        ("q = QuantizeLinear (x, w) y = DequantizeLinear (q, w)", np.float32, "int8"),
        ("y = Relu (x)", np.int64, "fp32"),
    ],
)
def test_precision(text, dtype, expected):
    model = model_of(f"g (float x) => (float y) {{ {text} }}", w=np.ones((), dtype))
    assert precision_of(model.graph) == expected


def test_constants_are_stored_too():
    model = model_of("g () => (float[2] y) { y = Constant <value = float[2] {1, 2}> () }")
    (stored,) = stored_tensors(model.graph).values()
    assert numpy_helper.to_array(stored).tolist() == [1, 2]


def test_how_a_change_is_told():
    was, now = GraphSize(9, 1000, 2 * 10**9), GraphSize(7, 10, 10**9)
    assert was.change(now, (4, 6)) == (
        "9 -> 7 nodes, 1,000 -> 10 parameters, 2.00 -> 1.00 G MACs at 4x6"
    )
    assert was.change(GraphSize(7, 10, None), (4, 6)) == "9 -> 7 nodes, 1,000 -> 10 parameters"


def test_an_initializer_among_the_inputs_is_no_input():
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "old",
        [value("x", TensorProto.FLOAT, [1, 1, 2, 2]), value("w", TensorProto.FLOAT, [1, 1, 9, 9])],
        [value("y", TensorProto.FLOAT, [1, 1, 2, 2])],
        [numpy_helper.from_array(np.ones((1, 1, 9, 9), np.float32), "w")],
    )
    assert unneeded(graph) == NOTHING | {"initializers": ["w"]}
    assert image_size(graph) == (2, 2)
