"""`crowdrt cast`: a network in float16 from the command line, and what is done with it."""

import json
import tempfile
from functools import partial

import pytest

from crowdrt.data.synthetic.photographs import generate
from crowdrt.onnx_file import graph_info


@pytest.fixture
def command(tiny, tmp_path):
    out = tmp_path / "tiny.fp16.onnx"
    return ("cast", tiny.onnx, "--fp16", "--images", tiny.photos, "--num-images", 3, "-o", out)


def test_cast(crowdrt, command, tmp_path):
    said = crowdrt(*command, "--json").json()
    assert (said["path"], said["reused"]) == (str(tmp_path / "tiny.fp16.onnx"), False)
    assert 0 < said["counts"]["mean"] <= said["counts"]["largest"] < 0.01
    assert said["counts"]["where"].startswith("crowd_000")
    assert said["unfit"] == {}
    assert said["judged"] == 2
    assert 0.99 < said["fp16_macs"] < 1
    assert graph_info(tmp_path / "tiny.fp16.onnx").precision == "fp16"
    again = crowdrt(*command, "--json").json()
    assert again == said | {"reused": True}
    assert crowdrt(*command, "--tolerance", "0.5", "--json").json()["reused"] is False


def test_a_layer_that_is_named_stays_fp32(crowdrt, command, tmp_path):
    layer = "/network/front_end/front_end.0/Conv"
    said = crowdrt(*command, "--keep-float", layer, "--json").json()
    assert 0 < said["fp16_macs"] < 0.99
    (described,) = crowdrt("inspect", command[-1], "--json").json()
    assert described["precision"] == "fp16"
    manifest = json.loads((tmp_path / "tiny.fp16.onnx.json").read_text())
    assert manifest["facts"]["float"][layer] == "kept float on request"
    assert crowdrt(*command, "--json").json()["reused"] is False
    refused = crowdrt(*command, "--keep-float", "nowhere")
    assert refused.code == 1
    assert "keep_float names nowhere, no convolution" in refused.err


def test_what_changed_is_printed(crowdrt, command):
    path, figures = crowdrt(*command).out.splitlines()
    assert path.endswith("tiny.fp16.onnx")
    assert figures.startswith("counts of 2 photographs move by 0.")
    assert "(crowd_000" in figures
    assert figures.endswith("of the convolutions' MACs in float16")
    assert crowdrt(*command).out.splitlines() == [f"{path} (nothing had changed)", figures]


def test_an_engine_of_it_counts_the_same_people(crowdrt, command, tiny, tmp_path):
    assert crowdrt(*command).code == 0
    before, after = (
        [row["count"] for row in crowdrt("count", path, tiny.photos, "--json").json()]
        for path in (tiny.onnx, tmp_path / "tiny.fp16.onnx")
    )
    assert len(set(before)) == len(before) > 2
    assert before != after == pytest.approx(before, rel=0.01)
    (described,) = crowdrt("inspect", command[-1], "--json").json()
    assert described["precision"] == "fp16"


def test_without_images_generated_crowds_are_looked_at(crowdrt, tiny, tmp_path, monkeypatch, tree):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    small = partial(generate, size=(112, 136), people=(5, 20))
    monkeypatch.setattr("crowdrt.pipeline.photographs.generate", small)
    command = ("cast", tiny.onnx, "--fp16", "--num-images", 2, "-o", tmp_path / "o.onnx")
    assert crowdrt(*command, "--json").json()["reused"] is False
    assert crowdrt(*command, "--json").json()["reused"] is True
    assert tree(folder) == {}


def test_what_is_refused(crowdrt, command, tiny, tmp_path, tree):
    out = command[-1]
    without = [each for each in command if each != "--fp16"]
    for arguments, problem, fix in (
        (without, "nothing says what to cast to", f"crowdrt cast {tiny.onnx} --fp16 -o {out}"),
        ((*command, "--tolerance", "1e-9"), "moves the count of crowd_000", "--tolerance"),
        ((*command, "--tolerance", "0"), "tolerance=0.0", "0.01 is 1 %"),
        ((*command, "--num-images", "0"), "num_images=0", "16"),
        (("cast", tiny.int8, *command[2:]), f"nothing in {tiny.int8} can work", "as it is"),
    ):
        answer = crowdrt(*arguments, "--json")
        assert (answer.code, answer.out) == (1, "")
        said, mended = answer.err.split("error: ", 1)[1].split("\n  fix: ")
        assert problem in said
        assert fix in mended
        assert tree(tmp_path) == {}


def test_a_cast_network_is_not_cast_or_calibrated_again(crowdrt, command, tiny):
    assert crowdrt(*command).code == 0
    out = command[-1]
    twice = ("cast", out, *command[2:-1], "twice.onnx")
    assert f"{out} works in float16 already" in crowdrt(*twice).err
    calibrated = ("calibrate", out, "--images", tiny.photos, "-o", "int8.onnx")
    assert f"{out} is a network of precision fp16 already" in crowdrt(*calibrated).err
