"""A trained network on real photographs: INT8 counts people as float does."""

import numpy as np
import pytest

from crowdrt.calibration.calibrate import calibrate
from crowdrt.contracts import CalibrationConfig
from crowdrt.data.heads.shanghaitech import shanghaitech
from crowdrt.data.preprocess import load_feed
from crowdrt.engines.ort import OrtEngine
from crowdrt.manifest import read_manifest

NUM_CALIBRATION, NUM_TEST = 8, 8


@pytest.mark.data
def test_int8_counts_within_two_percent(mcnn, smallest, data_root, tmp_path):
    root = data_root / "ShanghaiTech"
    train = smallest(shanghaitech(root, "A", "train"), NUM_CALIBRATION)
    test = smallest(shanghaitech(root, "A", "test"), NUM_TEST)
    out = tmp_path / "mcnn.int8.onnx"
    calibrate(mcnn, [sample.image for sample in train], out, CalibrationConfig())
    assert read_manifest(out)["facts"]["int8_macs"] > 0.99

    float_counts, int8_counts = (
        np.array([count(OrtEngine(path), sample) for sample in test]) for path in (mcnn, out)
    )
    annotated = np.array([sample.annotated for sample in test])
    assert float_counts.std() > 50
    assert int8_counts.sum() == pytest.approx(float_counts.sum(), rel=0.02)
    errors = [np.abs(counts - annotated).mean() for counts in (float_counts, int8_counts)]
    assert errors[1] < 1.02 * errors[0]


def count(engine, sample) -> float:
    assert engine.info is not None
    return float(
        engine.run({"image": load_feed(sample.image, engine.info.preprocessing)})["count"][0]
    )
