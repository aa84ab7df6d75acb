"""Graphs that hold a size inside see photographs of other sizes in tiles of their own."""

import numpy as np
import onnx
import pytest
from PIL import Image
from small_graphs import INFO, NORMALISE, from_text, network

from crowdrt.calibration.calibrate import calibrate, collect
from crowdrt.calibration.int8.plan import plan_int8
from crowdrt.calibration.layerwise import only_size
from crowdrt.contracts import CalibrationConfig
from crowdrt.data.tiles import tiles_of, tiling_of
from crowdrt.engines.ort import OrtEngine

SIZE = (16, 24)
# A pyramid of two levels: the coarse one is resized to the stored size of the fine one.
PYRAMID = (
    NORMALISE
    + """
    y1 = Conv <pads = [1, 1, 1, 1]> (normal, w1, b1)
    fine = Relu (y1)
    coarse = Conv <strides = [2, 2]> (fine, w2, b2)
    wide = Resize <mode = "nearest"> (coarse, , , target)
    sums = Add (fine, wide)
    density = Conv (sums, w3)
    count = ReduceSum <keepdims = 0> (density, axes)
"""
)
WEIGHTS = {"w1": (8, 3, 3, 3), "w2": (8, 8, 1, 1), "w3": (1, 8, 1, 1)}


@pytest.fixture
def pyramid() -> onnx.ModelProto:
    target = f"target = Constant <value_ints = [1, 8, {SIZE[0]}, {SIZE[1]}]> ()"
    return from_text(target + PYRAMID, WEIGHTS, size=SIZE)


def test_only_a_graph_with_a_size_inside_insists_on_it(pyramid):
    assert only_size(pyramid, SIZE) is None
    assert only_size(pyramid, (32, 24)) == SIZE
    assert only_size(network(size=SIZE), (32, 24)) is None
    assert only_size(network(), (32, 24)) is None


def test_its_tiles_are_the_photographs_padded_not_stretched(pyramid, photographs):
    seen = collect(pyramid, plan_int8(pyramid), INFO, photographs)
    levels = []
    for path in photographs:
        pixels = np.asarray(Image.open(path)).transpose(2, 0, 1)
        tiling = tiling_of(pixels.shape[1:], SIZE, "pad")
        levels += [(tile - 120.0) / 60.0 for tile in tiles_of(pixels, tiling, INFO.preprocessing)]
    assert len(levels) > len(photographs)
    assert seen["normal"].histogram.num_values == np.size(levels)
    np.testing.assert_allclose(seen["normal"].means, np.mean(levels, axis=(0, 1, 3, 4)), rtol=1e-5)


def test_it_becomes_int8(pyramid, photographs, tmp_path):
    path, out = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    onnx.save(pyramid, path)
    calibrate(path, photographs, out, CalibrationConfig(method="minmax"))
    image = np.random.default_rng(0).integers(0, 256, (1, 3, *SIZE), np.uint8)
    exact, close = (OrtEngine(file).run({"image": image})["density"] for file in (path, out))
    assert exact.std() > 0.1
    assert 0 < np.abs(exact - close).max() < 0.1 * np.abs(exact).max()
