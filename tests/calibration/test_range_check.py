"""Whole photographs that leave the ranges of crops are reported, with what INT8 clips of them."""

import numpy as np
import onnx
import pytest
from PIL import Image
from small_graphs import FLOAT, network, run, with_outputs

from crowdrt.calibration.calibrate import calibrate
from crowdrt.calibration.ranges.check import FURTHER, exceeded_ranges
from crowdrt.contracts import CalibrationConfig
from crowdrt.errors import CalibrationError
from crowdrt.manifest import manifest_path, read_manifest

CONFIG = CalibrationConfig(method="minmax")


@pytest.fixture
def whole(tmp_path):
    """A photograph that is calm in its middle, and its middle."""
    rng = np.random.default_rng(3)
    pixels = rng.normal(120, 70, (96, 128, 3))
    pixels[32:64, 32:96] = rng.normal(120, 15, (32, 64, 3))
    photograph = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    photograph.save(tmp_path / "whole.png")
    photograph.crop((32, 32, 96, 64)).save(tmp_path / "crop.png")
    return tmp_path / "whole.png"


@pytest.fixture
def float_onnx(tmp_path):
    path = tmp_path / "small.onnx"
    onnx.save(network(), path)
    return path


@pytest.mark.parametrize("keep_float", [(), ("Conv_y4",)])
def test_what_a_crop_did_not_show_is_named(float_onnx, whole, tmp_path, keep_float):
    out = tmp_path / "out.onnx"
    calibrate(float_onnx, [tmp_path / "crop.png"], out, CONFIG, keep_float)
    found = exceeded_ranges(float_onnx, out, [whole])

    known = read_manifest(out)["facts"]["tensors"]
    names = {"normal", "p1", "p2", "r3"} & set(known)
    image = np.asarray(Image.open(whole)).transpose(2, 0, 1)[None]
    values = run(with_outputs(network(), dict.fromkeys(names, FLOAT)), {"image": image})
    far = {name for name in names if np.abs(values[name]).max() > FURTHER * known[name]["largest"]}
    assert {each.tensor for each in found} == far
    assert {"normal", "p1"} <= far
    for each in found:
        magnitude = np.abs(values[each.tensor])
        assert each.largest == pytest.approx(magnitude.max(), rel=1e-5)
        assert each.clipped == pytest.approx((magnitude > each.range).mean(), rel=0.02, abs=1e-4)
        assert each.tensor in str(each)
    shares = [each.clipped for each in found]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.01


def test_what_was_calibrated_on_leaves_nothing(float_onnx, whole, tmp_path):
    out = tmp_path / "out.onnx"
    calibrate(float_onnx, [whole], out, CalibrationConfig(percentile=90.0))
    assert not exceeded_ranges(float_onnx, out, [whole, tmp_path / "crop.png"])


def test_a_network_without_its_manifest_is_refused(float_onnx, whole, tmp_path):
    out = tmp_path / "out.onnx"
    calibrate(float_onnx, [whole], out, CONFIG)
    manifest_path(out).unlink()
    with pytest.raises(CalibrationError, match=r"out\.onnx has no manifest"):
        exceeded_ranges(float_onnx, out, [whole])
