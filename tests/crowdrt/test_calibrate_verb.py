"""`crowdrt calibrate`: every method from one pass, where its statistics lie, what --check says."""

import pytest

from crowdrt.contracts import RANGE_METHODS
from crowdrt.manifest import read_manifest


@pytest.fixture
def calibrate(crowdrt, tiny, tmp_path):
    def call(name, *options):
        command = ("calibrate", tiny.onnx, "--images", tiny.photos, "--num-images", 2)
        return crowdrt(*command, "-o", tmp_path / name, *options)

    return call


def test_every_method_after_one_pass(calibrate, tmp_path):
    ranges = set()
    for i, method in enumerate(RANGE_METHODS):
        answer = calibrate(f"{method}.onnx", "--method", method)
        assert (answer.code, answer.out) == (0, f"{tmp_path / method}.onnx\n")
        seen_before = "tiny.calibration.json has seen 2 of 2 images" in answer.err
        assert seen_before == (i > 0)
        facts = read_manifest(tmp_path / f"{method}.onnx")["facts"]
        assert facts["method"] == method
        ranges.add(tuple(tensor["range"] for tensor in facts["tensors"].values()))
    assert len(ranges) == len(RANGE_METHODS)


def test_a_named_folder_that_does_not_fit_is_refused(calibrate, tmp_path):
    kept = tmp_path / "kept"
    assert calibrate("a.onnx", "--cache", kept).code == 0
    assert [path.name for path in kept.iterdir()] == ["tiny.calibration.json"]
    answer = calibrate("b.onnx", "--cache", kept, "--num-images", 3)
    assert (answer.code, answer.out) == (1, "")
    assert "other images: 2, of which" in answer.err
    assert f"rm {kept / 'tiny.calibration.json'}" in answer.err
    assert not (tmp_path / "b.onnx").exists()


def test_check(calibrate, tiny):
    answer = calibrate("a.onnx", "--check", tiny.photos, "--json")
    assert answer.code == 0
    assert answer.json()["kind"] == "onnx"
    assert "no tensor reaches 1.25 times as far" in answer.err
    refused = calibrate("b.onnx", "--check", tiny.photos / "none")
    assert (refused.code, refused.out) == (1, "")
    assert "none" in refused.err


def test_check_names_what_it_found(calibrate, tiny, monkeypatch):
    monkeypatch.setattr("crowdrt.calibration.ranges.check.FURTHER", 0.5)
    answer = calibrate("a.onnx", "--check", tiny.photos)
    assert "warning: on 2 photographs the calibrated ranges are left" in answer.err
    assert "INT8 ends at" in answer.err
    assert answer.out.count("\n") == 1
