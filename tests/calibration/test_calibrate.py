import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image
from small_graphs import INFO, constants_of, network, picture, run

from crowdrt.calibration.calibrate import calibrate, pick
from crowdrt.contracts import CalibrationConfig
from crowdrt.data.preprocess import load_feed
from crowdrt.errors import CalibrationError, CrowdRTError, DataError, ExportError
from crowdrt.manifest import read_manifest, sha256_file
from crowdrt.onnx_file import graph_info, set_info

CONFIG = CalibrationConfig(method="minmax", num_images=3)


@pytest.fixture
def float_onnx(tmp_path):
    path = tmp_path / "small.onnx"
    onnx.save(network(), path)
    return path


def with_weight(path, name, change):
    model = onnx.load(path)
    (value,) = [v for v in model.graph.initializer if v.name == name]
    array = numpy_helper.to_array(value).copy()
    change(array)
    value.CopyFrom(numpy_helper.from_array(array, name))
    onnx.save(model, path)


def test_the_int8_file_counts_like_the_float_one(float_onnx, photographs, tmp_path):
    out = tmp_path / "small.int8.onnx"
    artifact = calibrate(float_onnx, photographs, out, CONFIG)
    assert artifact.path == out
    assert artifact.kind == "onnx"
    assert artifact.sha256 == sha256_file(out)
    assert not artifact.reused
    told = INFO.with_calibration(map(sha256_file, pick(photographs, 3)))
    assert graph_info(out) == replace(told, precision="int8", weight_bits=7)
    counts = {
        path: [
            float(run(onnx.load(path), {"image": load_feed(p, INFO.preprocessing)})["count"][0])
            for p in photographs
        ]
        for path in (float_onnx, out)
    }
    assert np.std(counts[float_onnx]) > 1
    np.testing.assert_allclose(
        counts[out], counts[float_onnx], atol=0.05 * np.abs(counts[float_onnx]).max()
    )


def test_the_manifest_says_what_was_done(float_onnx, photographs, tmp_path):
    out = tmp_path / "small.int8.onnx"
    calibrate(float_onnx, photographs, out, CONFIG, keep_float=["Conv_y2"])
    manifest = read_manifest(out)
    assert manifest["made_from"]["onnx"] == sha256_file(float_onnx)
    facts = manifest["facts"]
    assert (facts["method"], facts["weight_bits"]) == ("minmax", 7)
    assert facts["images"]["num"] == 3
    chosen = pick(photographs, 3)
    assert facts["images"]["files"] == [{"name": p.name, "sha256": sha256_file(p)} for p in chosen]
    assert facts["float"] == {
        "Conv_y2": "kept float on request",
        "Conv_density": "it makes the network's answer",
    }
    macs = {"y1": 8 * 27 * 16, "y2": 16 * 72 * 4, "y3": 16 * 144, "y4": 8 * 144, "density": 8}
    in_int8 = macs["y1"] + macs["y3"] + macs["y4"]
    assert facts["int8_macs"] == pytest.approx(in_int8 / sum(macs.values()))
    stored = constants_of(onnx.load(out))
    assert set(facts["tensors"]) == {"normal", "p2", "r2", "r3"}
    for name, tensor in facts["tensors"].items():
        if name != "r2":  # its only reader, the pool, passes p2's scale on
            assert stored[f"{name}_scale"] == np.float32(tensor["scale"])
        assert tensor["scale"] == pytest.approx(tensor["range"] / 127)
        assert tensor["range"] == tensor["largest"]
    json.dumps(manifest)


def test_nothing_is_done_twice_and_every_change_is_noticed(float_onnx, photographs, tmp_path):
    out = tmp_path / "small.int8.onnx"
    first = calibrate(float_onnx, photographs, out, CONFIG)
    again = calibrate(float_onnx, photographs, out, CONFIG)
    assert again.reused
    assert again.sha256 == first.sha256

    def redone(*args, **kwargs):
        return not calibrate(*args, **kwargs).reused

    assert redone(float_onnx, photographs[1:], out, CONFIG)
    assert redone(float_onnx, photographs, out, replace(CONFIG, weight_bits=8))
    assert redone(float_onnx, photographs, out, replace(CONFIG, method="percentile"))
    assert redone(float_onnx, photographs, out, CONFIG, ["Conv_y2"])
    with_weight(float_onnx, "w1", lambda w: np.multiply(w, 2, out=w))
    assert redone(float_onnx, photographs, out, CONFIG, ["Conv_y2"])
    out.write_bytes(out.read_bytes()[:-1])
    assert redone(float_onnx, photographs, out, CONFIG, ["Conv_y2"])


def test_the_order_of_the_images_does_not_matter(float_onnx, photographs, tmp_path):
    config = replace(CONFIG, num_images=5, method="percentile", percentile=99.0)
    forward = calibrate(float_onnx, photographs, tmp_path / "a.onnx", config)
    backward = calibrate(float_onnx, photographs[::-1], tmp_path / "b.onnx", config)
    first, second = (constants_of(onnx.load(a.path)) for a in (forward, backward))
    for name, array in first.items():
        np.testing.assert_allclose(second[name], array, rtol=1e-6, atol=1e-7)
        if name.endswith("_scale"):
            np.testing.assert_array_equal(second[name], array)


@pytest.mark.parametrize("kind", ["vgg", "columns", "normed"])
def test_opset_and_sizes_stay(kind, photographs, tmp_path):
    for opset, size in ((13, (32, 48)), (17, ("H", "W")), (20, ("H", "W"))):
        path, out = tmp_path / f"{kind}{opset}.onnx", tmp_path / f"{kind}{opset}.int8.onnx"
        onnx.save(network(kind, opset=opset, size=size), path)
        calibrate(path, photographs, out, CONFIG)
        before, after = onnx.load(path), onnx.load(out)
        assert after.opset_import == before.opset_import
        assert after.ir_version == before.ir_version
        assert list(after.graph.input) == list(before.graph.input)
        assert list(after.graph.output) == list(before.graph.output)


def test_a_network_without_its_normalisation(photographs, tmp_path):
    text_model = network()
    for _ in range(3):  # Cast, Sub, Div
        text_model.graph.node.remove(text_model.graph.node[0])
    text_model.graph.node[0].input[0] = "image"
    text_model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    inside, outside = tmp_path / "inside.onnx", tmp_path / "outside.onnx"
    onnx.save(network(), inside)
    set_info(text_model, replace(INFO, normalised_input=True))
    onnx.save(text_model, outside)
    for path in (inside, outside):
        calibrate(path, photographs, path.with_suffix(".int8.onnx"), CONFIG)
    first, second = (
        read_manifest(path.with_suffix(".int8.onnx"))["facts"]["tensors"]
        for path in (inside, outside)
    )
    assert second["image"]["range"] == pytest.approx(first["normal"]["range"], rel=1e-6)
    assert second["r3"]["range"] == pytest.approx(first["r3"]["range"], rel=1e-5)


def test_images_are_taken_at_even_distances():
    assert pick(range(10), 3) == [0, 3, 6]
    assert pick(range(3), 10) == [0, 1, 2]
    assert pick(range(7), 7) == list(range(7))


def refused(error, float_onnx, images, tmp_path, match, config=CONFIG, **options):
    out = tmp_path / "refused" / "small.int8.onnx"
    with pytest.raises(error, match=match) as caught:
        calibrate(float_onnx, images, out, config, **options)
    assert caught.value.fix
    assert not list(tmp_path.rglob("refused/*"))


def test_no_images_are_refused(float_onnx, tmp_path):
    refused(CalibrationError, float_onnx, [], tmp_path, "no images")


def test_a_missing_or_damaged_image_is_named(float_onnx, photographs, tmp_path):
    missing = tmp_path / "gone.png"
    refused(DataError, float_onnx, [missing], tmp_path, r"gone\.png")
    photographs[2].write_bytes(photographs[2].read_bytes()[:200])
    refused(DataError, float_onnx, photographs[2:3], tmp_path, r"IMG_2\.png")


def test_the_float_network_is_not_written_over(float_onnx, photographs):
    before = float_onnx.read_bytes()
    with pytest.raises(CalibrationError, match="network itself") as caught:
        calibrate(float_onnx, photographs, float_onnx, CONFIG)
    assert caught.value.fix.endswith(f"-o {float_onnx.with_suffix('.int8.onnx')}")
    assert float_onnx.read_bytes() == before


def test_an_image_that_may_not_be_read_is_named(float_onnx, photographs, tmp_path, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    # the tests may run as root, who may read everything
    monkeypatch.setattr("crowdrt.calibration.calibrate.sha256_file", denied)
    refused(DataError, float_onnx, photographs, tmp_path, r"IMG_0\.png.*[Pp]ermission denied")


def test_an_int8_network_is_not_calibrated_again(float_onnx, photographs, tmp_path):
    out = tmp_path / "small.int8.onnx"
    calibrate(float_onnx, photographs, out, CONFIG)
    refused(CalibrationError, out, photographs, tmp_path, "precision int8")


def test_networks_of_other_tools_and_other_files_are_refused(photographs, tmp_path):
    foreign, text = tmp_path / "foreign.onnx", tmp_path / "text.onnx"
    onnx.save(network(info=None), foreign)
    text.write_text("no network")
    refused(ExportError, foreign, photographs, tmp_path, "not exported by crowdrt")
    refused(ExportError, text, photographs, tmp_path, r"text\.onnx")
    refused(ExportError, tmp_path / "none.onnx", photographs, tmp_path, "does not exist")


def test_an_old_opset_is_refused(photographs, tmp_path):
    model = network()
    model.opset_import[0].version = 12
    path = tmp_path / "old.onnx"
    onnx.save(model, path)
    refused(CrowdRTError, path, photographs, tmp_path, "opset 12|not a valid ONNX")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_activations_that_are_not_finite_name_tensor_and_image(
    bad, float_onnx, photographs, tmp_path
):
    with_weight(float_onnx, "b2", lambda bias: bias.fill(bad))
    refused(CalibrationError, float_onnx, photographs, tmp_path, r"(p2|r2).*IMG_0\.png")


def test_a_black_picture_and_a_dead_network_still_calibrate(float_onnx, tmp_path):
    with_weight(float_onnx, "w1", lambda weight: weight.fill(0))
    with_weight(float_onnx, "b1", lambda bias: bias.fill(-1))
    black = tmp_path / "black.png"
    Image.fromarray(np.full((40, 48, 3), 120, np.uint8)).save(black)  # normalises to 0
    out = tmp_path / "small.int8.onnx"
    calibrate(float_onnx, [black], out, CalibrationConfig())
    facts = read_manifest(out)["facts"]["tensors"]
    assert facts["normal"]["range"] == facts["p1"]["range"] == 0
    assert all(tensor["scale"] > 0 for tensor in facts.values())
    image = {"image": picture()}
    expected, got = (run(onnx.load(p), image)["density"] for p in (float_onnx, out))
    np.testing.assert_allclose(got, expected, atol=0.05)


def test_progress_counts_the_images_on_stderr(float_onnx, photographs, tmp_path, capsys):
    calibrate(float_onnx, photographs, tmp_path / "out.onnx", CONFIG)
    assert capsys.readouterr().out == ""


def test_an_interrupted_run_leaves_nothing(float_onnx, photographs, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    out = tmp_path / "results" / "small.int8.onnx"
    monkeypatch.setattr(onnx, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        calibrate(float_onnx, photographs, out, CONFIG)
    assert not list(tmp_path.rglob("*int8*"))
    monkeypatch.undo()
    assert not calibrate(float_onnx, photographs, out, CONFIG).reused
