"""A network of one size is calibrated on tiles, and every layer that DeepCount has becomes INT8."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from PIL import Image
from small_graphs import INFO, NORMALISE, from_text

from crowdrt.benchmarks.accuracy.counts import predict
from crowdrt.calibration.calibrate import calibrate, collect
from crowdrt.calibration.int8.plan import plan_int8
from crowdrt.contracts import CalibrationConfig
from crowdrt.data.tiles import tiles_of, tiling_of
from crowdrt.engines.ort import OrtEngine
from crowdrt.manifest import read_manifest

TILE = (24, 32)
TILED = replace(INFO, density_stride=2, fixed_size=TILE)
REGRESSOR = (
    NORMALISE
    + """
    y1 = Conv <pads = [1, 1, 1, 1]> (normal, w1, b1)
    l1 = LeakyRelu <alpha = 0.2> (y1)
    y2 = Conv <pads = [0, 0, 1, 1], strides = [2, 2]> (l1, w2, b2)
    l2 = LeakyRelu <alpha = 0.2> (y2)
    y3 = Conv <pads = [0, 0, 1, 1], strides = [4, 4]> (l2, w3, b3)
    l3 = LeakyRelu <alpha = 0.2> (y3)
    y4 = Conv (l3, w4, b4)
    summary = LeakyRelu <alpha = 0.2> (y4)
    y5 = Conv (summary, w5)
    people = Relu (y5)
    count = ReduceSum <keepdims = 0> (people, axes)
    y6 = ConvTranspose (summary, w6, b6)
    l6 = LeakyRelu <alpha = 0.2> (y6)
    y7 = ConvTranspose <strides = [4, 4]> (l6, w7, b7)
    l7 = LeakyRelu <alpha = 0.2> (y7)
    both = Concat <axis = 1> (l7, l2)
    y8 = Conv (both, w8)
    density = Relu (y8)
"""
)
WEIGHTS = {
    "w1": (8, 3, 3, 3),
    "w2": (8, 8, 3, 3),
    "w3": (16, 8, 3, 3),
    "w4": (32, 16, 3, 4),
    "w5": (1, 32, 1, 1),
    "w6": (32, 8, 3, 4),
    "b6": (8,),
    "w7": (8, 8, 4, 4),
    "b7": (8,),
    "w8": (1, 16, 1, 1),
}


@pytest.fixture
def regressor() -> onnx.ModelProto:
    model = from_text(REGRESSOR, WEIGHTS, size=TILE, info=TILED)
    for value in model.graph.initializer:
        if value.name in ("w5", "w8"):  # heads that are not negative everywhere
            array = np.abs(onnx.numpy_helper.to_array(value))
            value.CopyFrom(onnx.numpy_helper.from_array(array, value.name))
    return model


def test_the_tiles_of_every_photograph_are_seen(regressor, photographs):
    seen = collect(regressor, plan_int8(regressor), TILED, photographs)
    levels = []
    for path in photographs:
        pixels = np.asarray(Image.open(path)).transpose(2, 0, 1)
        tiling = tiling_of(pixels.shape[1:], TILE)
        levels += [(tile - 120.0) / 60.0 for tile in tiles_of(pixels, tiling, INFO.preprocessing)]
    assert len(levels) > len(photographs)
    assert seen["normal"].histogram.num_values == np.size(levels)
    assert seen["normal"].histogram.largest == pytest.approx(np.abs(levels).max())
    np.testing.assert_allclose(seen["normal"].means, np.mean(levels, axis=(0, 1, 3, 4)), rtol=1e-5)


def test_a_regressor_and_its_branch_become_int8(regressor, photographs, tmp_path):
    path, out = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    onnx.save(regressor, path)
    calibrate(path, photographs, out, CalibrationConfig(method="minmax"))

    facts = read_manifest(out)["facts"]
    assert set(facts["float"]) == {"Conv_y5", "Conv_y8"}
    assert facts["int8_macs"] > 0.97
    exact, quantized = (OrtEngine(file, num_threads=1) for file in (path, out))
    rows = [(predict(exact, photo), predict(quantized, photo)) for photo in photographs]
    counts = np.array([[a.count, b.count] for a, b in rows])
    assert counts[:, 0].std() > 0.05 * counts[:, 0].mean() > 0
    np.testing.assert_allclose(counts[:, 1], counts[:, 0], rtol=0.05)
    for a, b in rows:
        assert a.density.std() > 0.1 * a.density.mean()
        assert np.corrcoef(a.density.ravel(), b.density.ravel())[0, 1] > 0.99
