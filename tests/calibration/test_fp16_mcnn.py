"""A trained network on real photographs: float16 counts people as FP32 does."""

import numpy as np
import onnx
import pytest

from crowdrt.calibration.fp16.cast import CastConfig, cast
from crowdrt.calibration.fp16.measure import float16_tensors, observe
from crowdrt.data.heads.shanghaitech import shanghaitech
from crowdrt.manifest import read_manifest
from crowdrt.onnx_file import graph_info

NUM_LOOKED_AT, NUM_TEST = 8, 8


@pytest.mark.data
def test_float16_moves_the_mae_by_less_than_a_thousandth(mcnn, smallest, data_root, tmp_path):
    source, out = mcnn, tmp_path / "mcnn.fp16.onnx"
    root = data_root / "ShanghaiTech"
    train = smallest(shanghaitech(root, "A", "train"), NUM_LOOKED_AT)
    cast(source, [sample.image for sample in train], out, CastConfig(num_images=NUM_LOOKED_AT))
    facts = read_manifest(out)["facts"]
    assert facts["fp16_macs"] > 0.99
    assert facts["unfit"] == {}
    assert facts["corrected"]

    test = smallest(shanghaitech(root, "A", "test"), NUM_TEST)
    images, annotated = [s.image for s in test], np.array([s.annotated for s in test])
    before, half = onnx.load(source), onnx.load(out)
    info = graph_info(source)
    float_counts = np.array([*observe(before, info, images, "", {}).values()])
    rounded = {name: [] for name in float16_tensors(half)}
    half_counts = np.array([*observe(half, info, images, "", rounded).values()])
    assert float_counts.std() > 20
    assert 0 < np.abs(half_counts / float_counts - 1).mean() < 0.001
    errors = [np.abs(counts - annotated).mean() for counts in (float_counts, half_counts)]
    assert errors[1] == pytest.approx(errors[0], rel=0.001)
