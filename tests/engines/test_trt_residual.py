"""The one step between the INT8 file and what TensorRT parses: one rounding less per sum."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from crowdrt.engines.ort import OrtEngine
from crowdrt.engines.trt.graphs.residual import fuse_residual_sums

STEPS = {"s1": 0.01, "s2": 0.02, "s3": 0.03, "s4": 0.04, "sw": 0.005}

PLAIN = """
    c1 = Conv <pads = [1, 1, 1, 1]> ({x}, {w1})
    r1 = Relu (c1)
    c2 = Conv <pads = [1, 1, 1, 1]> ({r1}, {w2})
    sum = Add ({c2}, {r1})
    r2 = Relu (sum)
    density = Conv ({r2}, {w3})
"""


def quantized(text: str, **steps: str) -> onnx.ModelProto:
    """The text with a pair in front of each {name}, that of weights with the step `sw`."""
    lines, count = [], 0
    for line in filter(None, map(str.strip, text.splitlines())):
        while "{" in line:
            name = line[line.index("{") + 1 : line.index("}")]
            step = steps.get(name, "sw")
            lines += [
                f"q{count} = QuantizeLinear ({name}, {step}, zero)",
                f"d{count} = DequantizeLinear (q{count}, {step}, zero)",
            ]
            line, count = line.replace(f"{{{name}}}", f"d{count}", 1), count + 1
        lines.append(line)
    return model_of("\n".join(lines))


def model_of(text: str) -> onnx.ModelProto:
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[1, 4, 8, 8] x) => '
        f"(float[1, 4, 8, 8] density) {{ {text} }}"
    )
    rng = np.random.default_rng(0)
    for i, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{node.output[0]}_{i}"
    stored = {name: np.array(step, np.float32) for name, step in STEPS.items()}
    stored["zero"] = np.array(0, np.int8)
    for name, kernel in (("w1", 3), ("w2", 3), ("w3", 1)):
        stored[name] = rng.normal(0, 0.2, (4, 4, kernel, kernel)).astype(np.float32)
    for name, array in stored.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


ACTIVATIONS = {"x": "s1", "r1": "s2", "c2": "s3", "r2": "s4"}


def run(model):
    x = np.random.default_rng(1).normal(0, 0.5, (1, 4, 8, 8)).astype(np.float32)
    return OrtEngine(model.SerializeToString(), num_threads=1, optimise=False).run({"x": x})


def test_the_convolution_before_a_residual_sum_is_read_in_float():
    model = quantized(PLAIN, **ACTIVATIONS)
    before = run(model)["density"]
    num_nodes = len(model.graph.node)
    (name,) = fuse_residual_sums(model)
    assert name.startswith("Conv_c2")
    onnx.checker.check_model(model, full_check=True)
    assert len(model.graph.node) == num_nodes - 2
    (add,) = [node for node in model.graph.node if node.op_type == "Add"]
    assert add.input[0] == "c2"
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    assert makers[add.input[1]] == "DequantizeLinear"  # the shortcut stays INT8

    # the same sum, less the rounding of one term
    after = run(model)["density"]
    plain = run(model_of(PLAIN.replace("{", "").replace("}", "")))["density"]
    assert after.std() > 0.1
    assert 0 < np.abs(after - before).max() < 0.1
    noise = [np.square(each - plain).mean() for each in (before, after)]
    assert noise[1] < noise[0]


def test_of_two_convolutions_one_keeps_its_pair():
    text = PLAIN.replace("r1 = Relu (c1)", "r1 = Conv ({c1}, {w3})")
    model = quantized(text, **ACTIVATIONS, c1="s2")
    assert len(fuse_residual_sums(model)) == 1
    (add,) = [node for node in model.graph.node if node.op_type == "Add"]
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    assert sorted(makers[name] for name in add.input) == ["Conv", "DequantizeLinear"]


@pytest.mark.parametrize(
    ("change", "steps"),
    [
        (("sum = Add ({c2}, {r1})", "sum = Add (c2, r1)"), {}),  # a float sum
        (("density = Conv ({r2}, {w3})", "density = Conv (r2, w3)"), {}),  # read in float
        (("{c2}, {r1})", "{p2}, {r1}) p2x = Identity (sum)"), {"p2": "s3"}),
        (("sum = Add ({c2}, {r1})", "sum = Add ({a2}, {r1})"), {"a2": "s3"}),
    ],
    ids=["float sum", "float reader", "no maker", "activation"],
)
def test_what_does_not_fuse_is_left(change, steps):
    text = PLAIN.replace(*change)
    if "a2" in steps:
        text = text.replace("sum = Add", "a2 = LeakyRelu (c2)\n    sum = Add")
    if "p2" in steps:
        text = text.replace("c2 = Conv", "p2 = Sigmoid (r1)\n    c2 = Conv")
    model = quantized(text, **ACTIVATIONS, **steps)
    before = model.SerializeToString()
    assert fuse_residual_sums(model) == []
    assert model.SerializeToString() == before


def test_a_branch_that_something_else_reads_is_left():
    text = PLAIN.replace("r2 = Relu (sum)", "r2 = Relu (sum)\n    other = Sigmoid (c2)")
    model = quantized(text, **ACTIVATIONS)
    assert fuse_residual_sums(model) == []
