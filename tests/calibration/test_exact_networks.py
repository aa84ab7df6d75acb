"""Whole trained networks: ONNX Runtime's INT8 counts are those of exact integer arithmetic."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import onnx
import pytest
from exact_integers import ExactNetwork
from PIL import Image
from test_qdq import weight_codes

from crowdrt import weights
from crowdrt.calibration.calibrate import calibrate
from crowdrt.contracts import CalibrationConfig, GraphInfo
from crowdrt.data.heads.shanghaitech import shanghaitech
from crowdrt.data.preprocess import load_feed
from crowdrt.data.synthetic.photographs import generate
from crowdrt.engines.ort import OrtEngine

STUDENT = weights.FOLDER / "csrnet-quarter.safetensors"
SAME = 1e-5  # the last convolutions are float; INT8 moves these counts by 4e-3 and more


def exported(model, out, **info):
    from crowdrt.export.onnx_export import export_onnx

    described = GraphInfo(
        preprocessing=model.preprocessing, density_stride=model.density_stride, **info
    )
    export_onnx(model, described, out, size=None)
    return out


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    from crowdrt.models.weights import load_network

    model, network, width = load_network(STUDENT)
    out = tmp_path_factory.mktemp("student") / "student.onnx"
    return exported(model.eval(), out, network=network, width=str(Fraction(width)))


@pytest.fixture(scope="module")
def crowds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crowds")
    return [
        sample.image
        for sample in generate(folder, num_images=3, seed=5, size=(120, 168), people=(5, 20))
    ]


@pytest.fixture(scope="module")
def real(data_root):
    """Calibration and test photographs of Part A, the smallest of each."""

    def num_pixels(sample):
        with Image.open(sample.image) as image:
            return image.width * image.height

    root = data_root / "ShanghaiTech"
    sets = (shanghaitech(root, "A", part) for part in ("train", "test"))
    return [[sample.image for sample in sorted(each, key=num_pixels)[:2]] for each in sets]


def answers(onnx_path, calibrating, photographs, out):
    """For each photograph: float, INT8 as ONNX Runtime and as exact integers compute it."""
    calibrate(onnx_path, calibrating, out, CalibrationConfig(), num_threads=1)
    exact = ExactNetwork(onnx.load(out))
    engines = [OrtEngine(path, num_threads=1) for path in (onnx_path, out)]
    for path in photographs:
        image = load_feed(path, engines[0].info.preprocessing)
        yield *(engine.run({"image": image}) for engine in engines), exact.run(image)


def assert_exact(onnx_path, calibrating, photographs, out):
    apart = []
    for plain, int8, exact in answers(onnx_path, calibrating, photographs, out):
        assert int8["density"].std() > 1e-3
        assert int8["count"] == pytest.approx(exact["count"], rel=SAME)
        largest = np.abs(exact["density"]).max()
        np.testing.assert_allclose(int8["density"], exact["density"], atol=10 * SAME * largest)
        apart.append(abs(float(plain["count"][0] / exact["count"][0]) - 1))
    assert max(apart) > 100 * SAME  # else the comparison would not see INT8 at all
    assert_no_pair_saturates(onnx.load(out))


def assert_no_pair_saturates(quantized):
    """Whatever codes a network sees, and however a kernel orders its products."""
    found = list(weight_codes(quantized))
    assert len(found) > 10
    for codes, axis in found:
        rows = np.abs(np.moveaxis(codes, axis, 0)).reshape(codes.shape[axis], -1)
        assert 255 * np.sort(rows, axis=1)[:, -2:].sum(axis=1).max() <= 2**15 - 1


def test_the_shipped_student_on_generated_crowds(student, crowds, tmp_path):
    assert_exact(student, crowds[:1], crowds[1:], tmp_path / "int8.onnx")


def test_eight_bits_would_count_otherwise_without_vnni(student, crowds, tmp_path):
    """The planted case: the same simulation sees saturation where there is some."""
    wrong = {}
    for bits in (7, 8):
        out = tmp_path / f"{bits}.onnx"
        config = replace(CalibrationConfig(), weight_bits=bits)
        calibrate(student, crowds[:1], out, config, num_threads=1)
        image = load_feed(crowds[1], OrtEngine(out).info.preprocessing)[:, :, :80, :104]
        counts = [
            float(ExactNetwork(onnx.load(out), saturating=saturating).run(image)["count"][0])
            for saturating in (False, True)
        ]
        wrong[bits] = abs(counts[1] / counts[0] - 1)
    assert wrong[7] == 0
    assert wrong[8] > 1e-3


@pytest.mark.data
def test_the_shipped_student_on_real_photographs(student, real, tmp_path):
    assert_exact(student, *real, tmp_path / "int8.onnx")


@pytest.mark.data
def test_a_trained_mcnn_on_real_photographs(mcnn, real, tmp_path):
    assert_exact(mcnn, *real, tmp_path / "int8.onnx")
