"""The shipped student at its gates: what its recipe ships holds, plain INT8 does not."""

from dataclasses import replace
from functools import partial

import pytest
from PIL import Image

from crowdrt.benchmarks.accuracy.counts import predict, predict_sample
from crowdrt.benchmarks.accuracy.gates import judge
from crowdrt.calibration.fp16.cast import CastConfig, cast
from crowdrt.calibration.fp16.rounded import RoundedEngine
from crowdrt.data.heads.shanghaitech import shanghaitech
from crowdrt.data.synthetic.photographs import generate
from crowdrt.engines.ort import OrtEngine
from crowdrt.pipeline.precision.comparing import compare, comparison_of
from crowdrt.pipeline.stages import calibrate_stage
from crowdrt.recipes import recipe_named

RECIPE = recipe_named("csrnet-quarter")
FEW = replace(RECIPE.calibration, num_images=4)


@pytest.fixture
def student(student_onnx):
    return student_onnx


@pytest.fixture(scope="module")
def crowds(tmp_path_factory):
    """Generated photographs, four to calibrate on and six to count."""
    folder = tmp_path_factory.mktemp("crowds")
    made = generate(folder, num_images=10, seed=11, size=(320, 448), people=(10, 250))
    return made[:4], made[4:]


def against(reference, engine, samples):
    found = [predict(engine, sample.image) for sample in samples]
    return comparison_of(compare(samples, found, partial(predict_sample, OrtEngine(reference))))


def verdict(precision, found):
    return judge(RECIPE.gates[precision], found)


def test_one_float_layer_is_what_int8_needs(student, crowds, tmp_path):
    calibration, test = crowds
    assert len(RECIPE.keep_float) == 1
    path = tmp_path / "student.int8.onnx"
    calibrate_stage(student, calibration, path, FEW, RECIPE.keep_float)
    shipped = against(student, OrtEngine(path), test)
    assert verdict("int8", shipped).held, verdict("int8", shipped).reason
    assert shipped.sums.mean > 0.01  # it is INT8
    plain = tmp_path / "plain.int8.onnx"
    calibrate_stage(student, calibration, plain, FEW)
    lost = against(student, OrtEngine(plain), test)
    assert not verdict("int8", lost).held
    assert lost.ssim.median < shipped.ssim.median


def test_float16_holds_a_tenth_of_that(student, crowds, tmp_path):
    calibration, test = crowds
    path = tmp_path / "student.fp16.onnx"
    looked_at = [s.image for s in calibration]
    cast(student, looked_at, path, CastConfig(num_images=2), RECIPE.keep_float)
    found = against(student, RoundedEngine(path), test[:2])
    assert verdict("fp16", found).held, verdict("fp16", found).reason


def test_float16_is_counted_with_more_than_its_weights_rounded(student, crowds, tmp_path):
    calibration, test = crowds
    path = tmp_path / "plain.fp16.onnx"
    cast(student, [s.image for s in calibration], path, CastConfig(num_images=2))
    rounded, on_a_cpu = (
        against(student, engine(path), test[:2]) for engine in (RoundedEngine, OrtEngine)
    )
    assert rounded.psnr_db.median + 3 < on_a_cpu.psnr_db.median


@pytest.mark.data
def test_on_real_streets_the_float_layer_keeps_counts(student, data_root, tmp_path):
    calibration = shanghaitech(data_root, "B", "train")[::100]
    test = shanghaitech(data_root, "B", "test")[::80]
    found = {}
    for name, keep_float in (("shipped", RECIPE.keep_float), ("plain", ())):
        path = tmp_path / f"{name}.onnx"
        calibrate_stage(student, calibration, path, FEW, keep_float)
        found[name] = against(student, OrtEngine(path), test)
    assert found["shipped"].sums.mean < found["plain"].sums.mean / 2
    assert found["shipped"].psnr_db.lowest > found["plain"].psnr_db.lowest + 3


@pytest.mark.data
def test_on_real_photographs_the_float_layer_keeps_counts_in_float16(student, data_root, tmp_path):
    two = shanghaitech(data_root, "A", "train")[:200:100]
    looked_at = [part_of(sample.image, tmp_path) for sample in two]
    every = sorted(shanghaitech(data_root, "A", "test"), key=lambda sample: sample.annotated)
    test = every[:36:12]  # sparse ones, where float16 adds people
    config = CastConfig(num_images=2, tolerance=0.1)  # the gate judges, not the cast
    held = {}
    for name, keep_float in (("shipped", RECIPE.keep_float), ("plain", ())):
        path = tmp_path / f"{name}.onnx"
        cast(student, looked_at, path, config, keep_float)
        held[name] = verdict("fp16", against(student, RoundedEngine(path), test)).held
    assert held == {"shipped": True, "plain": False}


def part_of(photograph, folder):
    """Write the lower left of a photograph: ranges need no more, and a cast takes long."""
    path = folder / f"{photograph.stem}.png"
    with Image.open(photograph) as image:
        image.convert("RGB").crop((0, image.height - 320, 448, image.height)).save(path)
    return path
