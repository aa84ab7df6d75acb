"""Shape arithmetic that is computed before a build: the same answers from fewer nodes."""

from fractions import Fraction

import numpy as np
import onnx

from crowdrt.engines.ort import OrtEngine
from crowdrt.engines.trt.building.estimate import estimate_memory
from crowdrt.engines.trt.building.options import PlanOptions, parse_shape
from crowdrt.engines.trt.graphs.folding import fold_shapes
from crowdrt.engines.trt.graphs.graph import plan_graph
from crowdrt.export.deploy import ShippedNetwork
from crowdrt.export.onnx_export import to_onnx
from crowdrt.export.simplify import simplify
from crowdrt.pipeline.networks import Origin

GRID = """<ir_version: 8, opset_import: ["" : 17]>
net (float[1,3,8,16] image) => (float[N,M] out) {
  shape = Shape(image)
  height = Gather(shape, two)
  rows = Range(zero, height, one)
  grid = Cast<to = 1>(rows)
  halved = Mul(grid, half)
  sums = ReduceMean<axes = [1, 3], keepdims = 0>(image)
  column = Unsqueeze(halved, axis)
  out = Mul(sums, halved)
}"""
STORED = {
    "two": np.array(2),
    "zero": np.array(0),
    "one": np.array(1),
    "half": np.array(0.5, np.float32),
    "axis": np.array([1]),
}


def test_what_follows_from_the_shape_is_computed(from_text):
    model = from_text(GRID, STORED)
    folded = fold_shapes(model)
    onnx.checker.check_model(folded, full_check=True)
    assert [node.op_type for node in folded.graph.node] == ["ReduceMean", "Mul"]
    image = np.random.default_rng(0).normal(size=(1, 3, 8, 16)).astype(np.float32)
    got, expected = (
        OrtEngine(each.SerializeToString()).run({"image": image})["out"] for each in (folded, model)
    )
    assert expected.std() > 0
    np.testing.assert_array_equal(got, expected)


def test_quantizers_of_weights_stay(from_text):
    # at 17 onnx's evaluator has none of them anyway
    model = from_text(
        """<ir_version: 9, opset_import: ["" : 19]>
        net (float[1,3,8,8] image) => (float[1,4,8,8] out) {
          w = DequantizeLinear(codes, scale, zero)
          out = Conv<pads = [1,1,1,1]>(image, w)
        }""",
        {
            "scale": np.array(0.1, np.float32),
            "zero": np.array(0, np.int8),
            "codes": np.ones((4, 3, 3, 3), np.int8),
        },
    )
    assert len(fold_shapes(model).graph.node) == 2


def test_what_an_image_decides_stays(from_text):
    model = from_text(
        """<ir_version: 8, opset_import: ["" : 17]>
        net (float[4] image) => (int64[1,N] out) { out = NonZero(image) }""",
        {},
    )
    assert len(fold_shapes(model).graph.node) == 1


def test_a_network_with_shape_arithmetic_answers_alike():
    network = "can"  # DSLA's priors were tried by hand; its export takes long
    model = Origin(network=network, width=Fraction(1, 16), weights=None).build()
    traced, _ = to_onnx(ShippedNetwork(model, model.preprocessing), model.fixed_size, 17)
    exported, _ = simplify(traced, [])
    graph = plan_graph(exported, PlanOptions(shape=parse_shape("128x192")), source=network)
    left = {node.op_type for node in graph.model.graph.node}
    assert "Range" in {node.op_type for node in exported.graph.node}
    assert not left & {"Range", "Shape", "ConstantOfShape"}
    assert not estimate_memory(graph.largest, 0).unknown
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 128, 192)).astype(np.uint8)
    got, expected = (
        OrtEngine(each.SerializeToString(), optimise=False).run({"image": image})
        for each in (graph.model, exported)
    )
    name = next(iter(expected))
    assert expected[name].std() > 0
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-5, atol=1e-6)
