"""What TensorRT's parser is documented to take, on graphs that break one rule each."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from crowdrt.engines.trt.graphs.parser_support import misfits, tensorrt_support
from crowdrt.engines.trt.graphs.parser_tables import PARSERS

GOOD = """
<ir_version: 8, opset_import: ["" : 17]>
net (uint8[1, 3, H, W] image) => (float[1, 4, H, W] y)
{
    x = Cast <to = 1> (image)
    q = QuantizeLinear (x, step, zero)
    d = DequantizeLinear (q, step, zero)
    wq = QuantizeLinear <axis = 0> (w, steps, zeros)
    wd = DequantizeLinear <axis = 0> (wq, steps, zeros)
    c = Conv <pads = [1, 1, 1, 1]> (d, wd)
    y = Relu (c)
}
"""
STORED = {
    "step": np.array(0.5, np.float32),
    "zero": np.array(0, np.int8),
    "w": np.ones((4, 3, 3, 3), np.float32),
    "steps": np.full(4, 0.1, np.float32),
    "zeros": np.zeros(4, np.int8),
}


def network(text: str = GOOD, **stored: np.ndarray) -> onnx.ModelProto:
    model = onnx.parser.parse_model(text)
    for name, array in (STORED | stored).items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def body(lines: str, output: str = "float[N] y", opset: int = 17) -> onnx.ModelProto:
    """A network of a uint8 image that is cast to x."""
    return network(
        f"""<ir_version: 8, opset_import: ["" : {opset}]>
        net (uint8[1, 3, 16, 16] image) => ({output}) {{ x = Cast <to = 1> (image)\n{lines} }}"""
    )


def reasons(model: onnx.ModelProto, generation: str = "8.6") -> list[str]:
    return tensorrt_support(model)[generation]


def test_a_network_as_crowdrt_writes_it_is_taken_by_all():
    assert tensorrt_support(network()) == {"8.6": [], "10": [], "11": []}


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        ({"zero": np.array(3, np.int8)}, "zero point is 3"),
        ({"zero": np.array(0, np.uint8)}, "zero point is uint8"),
        ({"zeros": np.array([0, 0, 7, 0], np.int8)}, "zero point is 7"),
        ({"step": np.array(0.0, np.float32)}, "not positive"),
        ({"steps": np.array([0.1, np.nan, 0.1, 0.1], np.float32)}, "not positive"),
        ({"steps": np.full(3, 0.1, np.float32)}, "3 scales for an axis of 4"),
        ({"step": np.full(3, 0.5, np.float32)}, "3 scales for a tensor that is computed"),
    ],
)
def test_quantization_is_symmetric_positive_and_per_channel_of_weights_alone(stored, said):
    model = network(**stored)
    for parser in PARSERS:
        assert any(said in misfit.reason for misfit in misfits(model, parser)), parser.generation


def test_scales_along_another_axis_than_the_convolutions_outputs():
    model = network(
        GOOD.replace("<axis = 0>", "<axis = 1>"),
        steps=np.full(3, 0.1, np.float32),
        zeros=np.zeros(3, np.int8),
    )
    assert reasons(model) == [
        "DequantizeLinear wd: has its scales along axis 1, Conv its outputs along 0"
    ]


def test_scales_that_the_network_computes_are_named():
    model = network(GOOD.replace("    q = Q", "s = Abs (step)\nq = Q").replace("(x, step", "(x, s"))
    assert reasons(model) == ["QuantizeLinear q: its scale must be stored, and s is computed"]


def test_codes_are_for_dequantize_linear():
    model = network(GOOD.replace("y = Relu (c)", "y = Relu (c)\nz = Identity (q)"))
    assert any("codes are read by Identity" in reason for reason in reasons(model))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("y = Resize <mode = \"cubic\"> (x, , step)", "mode is cubic"),
        ("y = Resize <mode = \"linear\", coordinate_transformation_mode = \"tf_crop_and_resize\">"
         " (x, , step)", "coordinate_transformation_mode is tf_crop_and_resize"),
        ("y = InstanceNormalization (x, s, s)\ns = Abs (step)", "its scale must be stored"),
        ("y = Det (x)", "is no operator that the parser lists"),
        ("y = MaxPool <kernel_shape = [2]> (r)\nr = Reshape (x, shape)", "pools over 1 axes"),
        ("b = Cast <to = 9> (x)\ny = Relu (b)", "b is BOOL"),
        ("y = Relu (image)", "is UINT8 and may only be cast"),
        ("u = Cast <to = 2> (x)\ny = Cast <to = 1> (u)", "u is UINT8"),
        ("y = Squeeze (x, a)\na = Identity (zero)", "its axes must be stored"),
    ],
)  # fmt: skip
def test_each_documented_limit(lines, said):
    model = body(lines)
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 3, 256]), "shape"))
    assert any(said in reason for reason in reasons(model)), reasons(model)


def test_top_k_beyond_the_limit():
    for count, taken in ((3839, True), (3840, False)):
        model = body("y, i = TopK <axis = 2> (x, k)")
        model.graph.initializer.append(numpy_helper.from_array(np.array([count]), "k"))
        assert (reasons(model) == []) is taken


@pytest.mark.parametrize(
    ("opset", "takes"), [(17, "8.6 10 11"), (20, "10 11"), (23, "11"), (26, "")]
)
def test_the_opset_decides_which_generation_reads_it(opset, takes):
    found = tensorrt_support(body("y = Relu (x)", opset=opset))
    assert [generation for generation, said in found.items() if not said] == takes.split()


def test_what_was_added_after_8_6_is_refused_by_8_6_alone():
    found = tensorrt_support(body("y = Mish (x)", opset=18))
    assert [any("Mish" in reason for reason in said) for said in found.values()] == [
        True, False, False,
    ]  # fmt: skip


def test_operators_of_other_domains_need_plugins():
    model = body("y = Relu (x)")
    model.graph.node[-1].domain = "com.microsoft"
    assert reasons(model) == ["Relu y: is of the domain com.microsoft, and no plugins are loaded"]


def test_int64_is_read_as_int32_by_8_6_and_bfloat16_is_unknown_to_it():
    types = helper.make_tensor_value_info("y", TensorProto.BFLOAT16, None)
    model = body("y = Cast <to = 16> (x)")
    model.graph.output[0].CopyFrom(types)
    assert any("BFLOAT16" in reason for reason in reasons(model))
    assert reasons(model, "11") == []
    assert reasons(body("i = Cast <to = 7> (x)\ny = Add (i, i)")) == []


def test_nodes_inside_of_an_if_are_looked_at_too():
    inner = helper.make_graph(
        [helper.make_node("Det", ["x"], ["z"])], "then", [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )  # fmt: skip
    model = body("y = Relu (x)")
    model.graph.node.append(
        helper.make_node("If", ["yes"], ["out"], then_branch=inner, else_branch=inner)
    )
    assert any("Det" in reason for reason in reasons(model))
