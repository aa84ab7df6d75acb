"""Networks of other tools, cut to the outputs that ship: what goes, what stays, and the proof."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from crowdrt.contracts import IMAGENET, GraphInfo
from crowdrt.engines.ort import OrtEngine
from crowdrt.errors import ExportError, ParityError
from crowdrt.export import keep_output
from crowdrt.export.keep_output import difference, keep_outputs, varies
from crowdrt.export.simplify import simplify
from crowdrt.manifest import read_manifest
from crowdrt.onnx_file import graph_info, set_info

GRAPH = """
<ir_version: 8, opset_import: ["" : 17], producer_name: "somebody">
foreign (float[1,3,h,w] image, float[1] gain) => (float[1,1,h,w] density, float[1,2,h,w] mask, float[1] total) {
    body = Conv <pads = [1,1,1,1]> (image, w0)
    features = Relu (body)
    density = Conv (features, w1)
    logit = Conv (features, w2)
    scaled = Mul (logit, gain)
    mask = Sigmoid (scaled)
    axes = Constant <value = int64[3] {1,2,3}> ()
    total = ReduceSum <keepdims = 0> (density, axes)
}"""  # noqa: E501
SHAPES = {"w0": (8, 3, 3, 3), "w1": (1, 8, 1, 1), "w2": (2, 8, 1, 1)}


def foreign(text=GRAPH, shapes=SHAPES):
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(text)
    for name, shape in shapes.items():
        weight = rng.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(weight, name))
    model.metadata_props.add(key="author", value="somebody")
    onnx.checker.check_model(model)
    return model


@pytest.fixture(autouse=True)
def _no_simplifier(monkeypatch):
    """Leave onnxsim out, whose import takes seconds."""
    monkeypatch.setattr(keep_output, "simplify", lambda model, _: (model, "not tried"))


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "foreign.onnx"
    onnx.save(foreign(), path)
    return path


def names(values):
    return [value.name for value in values]


def test_what_goes_and_what_stays(source, tmp_path, capsys):
    artifact = keep_outputs(source, ["density"], tmp_path / "cut.onnx")
    assert (artifact.path, artifact.kind, artifact.reused) == (tmp_path / "cut.onnx", "onnx", False)
    model = onnx.load(artifact.path)
    assert [node.op_type for node in model.graph.node] == ["Conv", "Relu", "Conv"]
    assert names(model.graph.initializer) == ["w0", "w1"]
    assert names(model.graph.input) == ["image"]
    assert names(model.graph.output) == ["density"]
    assert [(entry.key, entry.value) for entry in model.metadata_props] == [("author", "somebody")]
    assert model.producer_name == "somebody"
    said = capsys.readouterr()
    assert said.out == ""
    assert "cut mask, total, gain: 8 -> 3 nodes, 240 -> 224 parameters" in said.err
    assert "density on made-up input: differ from the original by 0.0e+00" in said.err


def test_the_answer_is_the_originals(source, tmp_path):
    keep_outputs(source, ["density"], tmp_path / "cut.onnx")
    image = np.random.default_rng(5).normal(size=(1, 3, 33, 47)).astype(np.float32)
    was = OrtEngine(source).run({"image": image, "gain": np.ones(1, np.float32)})["density"]
    now = OrtEngine(tmp_path / "cut.onnx").run({"image": image})["density"]
    assert was.std() > 0.1
    np.testing.assert_array_equal(now, was)


def test_the_manifest_says_what_went(source, tmp_path):
    artifact = keep_outputs(source, ["density"], tmp_path / "cut.onnx")
    record = read_manifest(artifact.path)["facts"]["cut"]
    assert record["kept"] == ["density"]
    assert record["outputs"] == ["mask", "total"]
    assert record["nodes"] == ["logit", "scaled", "mask", "axes", "total"]
    assert (record["initializers"], record["inputs"]) == (["w2"], ["gain"])
    assert record["before"]["macs"] - record["after"]["macs"] == 2 * 8 * 576 * 864
    assert (record["max_rel"], record["unvarying"], record["not_run"]) == (0.0, [], "")
    assert str(tmp_path) not in (tmp_path / "cut.onnx.json").read_text()


def test_outputs_keep_the_files_order_and_may_be_several(source, tmp_path):
    keep_outputs(source, ["total", "density", "total"], tmp_path / "cut.onnx")
    model = onnx.load(tmp_path / "cut.onnx")
    assert names(model.graph.output) == ["density", "total"]
    assert len(model.graph.node) == 5


def test_nothing_is_done_twice(source, tmp_path):
    out = tmp_path / "cut.onnx"
    keep_outputs(source, ["density", "total"], out)
    assert keep_outputs(source, ["total", "density"], out).reused
    assert not keep_outputs(source, ["density"], out).reused
    onnx.save(foreign(shapes=SHAPES | {"w2": (2, 8, 1, 1)} | {"idle": (3,)}), source)
    assert not keep_outputs(source, ["density"], out).reused


def test_the_real_simplifier(source, tmp_path, monkeypatch):
    """An identity goes too, and the answer stays."""
    monkeypatch.setattr(keep_output, "simplify", simplify)
    text = GRAPH.replace("features = Relu (body)", "same = Identity (body) features = Relu (same)")
    onnx.save(foreign(text), source)
    artifact = keep_outputs(source, ["total"], tmp_path / "cut.onnx")
    facts = read_manifest(artifact.path)["facts"]
    assert facts["simplification"].startswith("simplified: 6 -> ")
    assert "Identity" not in [node.op_type for node in onnx.load(artifact.path).graph.node]
    assert facts["cut"]["file_nodes"] == facts["nodes"] < facts["cut"]["after"]["nodes"] == 6
    assert facts["cut"]["max_rel"] < 1e-5


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        (["people"], "'people' is no output of"),
        (["density", "people"], "'people' is no output of"),
        (["features"], "'features' is an inner tensor of"),
        (["image"], "'image' is no output of"),
        (["density", "mask", "total"], "has nothing to cut"),
    ],
)
def test_outputs_that_cannot_be_kept(source, tmp_path, wanted, problem):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ExportError, match=problem) as caught:
        keep_outputs(source, wanted, tmp_path / "cut.onnx")
    if "nothing" not in problem:
        assert "density, mask, total" in caught.value.fix
    assert sorted(tmp_path.iterdir()) == before


def test_dead_weight_alone_can_be_cut(source, tmp_path):
    model = foreign(shapes=SHAPES | {"forgotten": (100,)})
    model.graph.node.append(helper.make_node("Relu", ["mask"], ["idle"], name="idle"))
    onnx.save(model, source)
    artifact = keep_outputs(source, ["density", "mask", "total"], tmp_path / "cut.onnx")
    record = read_manifest(artifact.path)["facts"]["cut"]
    assert (record["nodes"], record["initializers"]) == (["idle"], ["forgotten"])
    assert len(onnx.load(artifact.path).graph.node) == 8


@pytest.mark.parametrize("content", [b"", b"hello", b"cut"])
def test_a_damaged_file(source, tmp_path, content):
    source.write_bytes(source.read_bytes()[:-40] if content == b"cut" else content)
    with pytest.raises(ExportError, match=r"foreign\.onnx"):
        keep_outputs(source, ["density"], tmp_path / "cut.onnx")
    assert sorted(tmp_path.iterdir()) == [source]


def test_the_original_is_not_written_over(source):
    before = source.read_bytes()
    with pytest.raises(ExportError, match="is to be cut"):
        keep_outputs(source, ["density"], source.parent / "." / source.name)
    assert source.read_bytes() == before


def test_a_cut_that_changes_the_answer_is_never_written(source, tmp_path, monkeypatch):
    right = keep_output.cut

    def wrong(model, wanted):
        shorter = right(model, wanted)
        weight = numpy_helper.to_array(shorter.graph.initializer[1]) * np.float32(1.001)
        shorter.graph.initializer[1].CopyFrom(numpy_helper.from_array(weight, "w1"))
        return shorter

    monkeypatch.setattr(keep_output, "cut", wrong)
    with pytest.raises(ParityError, match="density differs"):
        keep_outputs(source, ["density"], tmp_path / "cut.onnx")
    assert sorted(tmp_path.iterdir()) == [source]


def test_answers_that_never_vary_prove_nothing(source, tmp_path):
    text = GRAPH.replace("Conv (features, w1)", "Mul (features, nothing)")
    text = text.replace("float[1,1,h,w] density", "float[1,8,h,w] density")
    model = foreign(text, SHAPES | {"nothing": (1,)})
    model.graph.initializer[-1].CopyFrom(numpy_helper.from_array(np.zeros(1, "f4"), "nothing"))
    onnx.save(model, source)
    with pytest.raises(ParityError, match="the same on whatever goes in"):
        keep_outputs(source, ["density"], tmp_path / "cut.onnx")
    artifact = keep_outputs(source, ["density", "mask"], tmp_path / "cut.onnx")
    assert read_manifest(artifact.path)["facts"]["cut"]["unvarying"] == ["density"]


def test_a_graph_that_cannot_be_run_is_cut_and_said_to_be_unproven(source, tmp_path, capsys):
    """As one with a TensorRT plugin."""
    model = foreign()
    model.graph.node[-3].op_type, model.graph.node[-3].domain = "Nms_TRT", "plugins"
    model.opset_import.append(helper.make_opsetid("plugins", 1))
    onnx.save(model, source)
    artifact = keep_outputs(source, ["mask"], tmp_path / "cut.onnx")
    facts = read_manifest(artifact.path)["facts"]
    assert facts["cut"]["max_rel"] is None
    assert "ONNX Runtime" in facts["cut"]["not_run"]
    assert "it cannot be run" in facts["simplification"]
    assert "NOT compared with the original by running it" in capsys.readouterr().err
    assert len(onnx.load(artifact.path).graph.node) == 5


def test_the_first_size_on_which_a_graph_runs_is_used(source, tmp_path):
    """This one reshapes to 56x56 cells of 4 px: only 224 px will do."""
    text = GRAPH.replace(
        "mask = Sigmoid (scaled)",
        "shape = Constant <value = int64[3] {2,56,896}> () "
        "cells = Reshape (scaled, shape) mask = Sigmoid (cells)",
    ).replace("float[1,2,h,w] mask", "float[a,b,c] mask")
    onnx.save(foreign(text), source)
    artifact = keep_outputs(source, ["mask"], tmp_path / "cut.onnx")
    assert read_manifest(artifact.path)["facts"]["cut"]["max_rel"] == 0.0


def test_weights_in_another_file_move_into_the_cut(source, tmp_path):
    folder = tmp_path / "split"
    folder.mkdir()
    path = folder / "model.onnx"
    onnx.save(foreign(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    out = tmp_path / "alone" / "cut.onnx"
    keep_outputs(path, ["density"], out)
    model = onnx.load(out)
    assert names(model.graph.initializer) == ["w0", "w1"]
    assert numpy_helper.to_array(model.graph.initializer[0]).std() > 0.5


def test_initializers_among_the_inputs_go_with_their_nodes(source, tmp_path):
    """As in files of IR version 3, and of a tool that still writes so."""
    model = foreign()
    for name, shape in SHAPES.items():
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    onnx.save(model, source)
    keep_outputs(source, ["density"], tmp_path / "cut.onnx")
    cut = onnx.load(tmp_path / "cut.onnx").graph
    assert names(cut.input) == ["image", "w0", "w1"]
    assert names(cut.initializer) == ["w0", "w1"]


def test_what_control_flow_reads_stays(source, tmp_path):
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (bool yes, float[1,3,h,w] image) => (float[1,3,h,w] y, float[1,3,h,w] other) {
        z = Mul (image, w0)
        y = If (yes) <
            then_branch = a () => (float[1,3,h,w] t) { t = Mul (z, w1) },
            else_branch = b () => (float[1,3,h,w] e) { e = Neg (z) }
        >
        other = Mul (image, w2)
    }"""
    onnx.save(foreign(text, {"w0": (1,), "w1": (1,), "w2": (1,)}), source)
    artifact = keep_outputs(source, ["y"], tmp_path / "cut.onnx")
    cut = onnx.load(artifact.path).graph
    assert [node.op_type for node in cut.node] == ["Mul", "If"]
    assert names(cut.initializer) == ["w0", "w1"]
    assert read_manifest(artifact.path)["facts"]["cut"]["max_rel"] == 0.0


def test_a_models_own_operators_go_with_their_last_call(source, tmp_path):
    text = """
    <ir_version: 8, opset_import: ["" : 17, "own" : 1]>
    g (float[3] x) => (float[3] y, float[3] z) {
        y = own.twice (x)
        z = own.thrice (x)
    }
    <domain: "own", opset_import: ["" : 17, "own" : 1]> twice (a) => (b) { b = own.add (a, a) }
    <domain: "own", opset_import: ["" : 17, "own" : 1]>
    thrice (a) => (b) { c = own.add (a, a) b = Mul (c, a) }
    <domain: "own", opset_import: ["" : 17]> add (a, b) => (c) { c = Add (a, b) }
    """
    onnx.save(foreign(text, {}), source)
    keep_outputs(source, ["y"], tmp_path / "cut.onnx")
    kept = {each.name for each in onnx.load(tmp_path / "cut.onnx").functions}
    assert kept == {"twice", "add"}


def test_a_network_of_crowdrt_keeps_what_it_says_of_itself(source, tmp_path):
    info = GraphInfo(network="tiny", width="1", preprocessing=IMAGENET, density_stride=1)
    model = foreign()
    set_info(model, info)
    onnx.save(model, source)
    keep_outputs(source, ["total"], tmp_path / "cut.onnx")
    assert graph_info(tmp_path / "cut.onnx") == info


def test_pixels_and_whole_numbers_are_fed_as_such(source, tmp_path):
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (uint8[n,h,w,3] image, int64[k] order, bool[1] flag) =>
        (float[n,h,w,3] y, int64[k] sorted, bool[1] same) {
        f = Cast <to = 1> (image)
        y = Mul (f, w0)
        sorted = Neg (order)
        same = Not (flag)
    }"""
    onnx.save(foreign(text, {"w0": (1,)}), source)
    for wanted in (["y"], ["sorted", "same"]):
        artifact = keep_outputs(source, wanted, tmp_path / "cut.onnx")
        assert read_manifest(artifact.path)["facts"]["cut"]["max_rel"] == 0.0


def test_differences():
    ones = np.ones((2, 3), np.float32)
    assert difference(ones, ones) == 0
    assert difference(ones * 4, ones * 5) == pytest.approx(0.25)
    assert difference(ones, ones[:1]) == np.inf
    assert difference(ones, ones.astype(np.float64)) == np.inf
    assert difference(np.arange(3), np.arange(3)) == 0
    assert difference(np.arange(3), np.arange(3)[::-1]) == np.inf
    assert difference(ones * np.nan, ones * np.nan) == 0
    assert not difference(ones * np.nan, ones) <= 1
    assert difference(np.zeros(0, np.float32), np.zeros(0, np.float32)) == 0


def test_what_counts_as_varying():
    assert varies([np.array([1.0, 2.0])] * 2)
    assert varies([np.array([1.0]), np.array([2.0])])
    assert not varies([np.array([1.0, 1.0])] * 2)
    assert not varies([np.zeros(0)] * 2)
    assert varies([np.zeros(0), np.zeros(1)])


def test_it_needs_no_pytorch(source, tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from crowdrt.export.keep_output import keep_outputs\n"
        f"keep_outputs(Path({str(source)!r}), ['density'], Path({str(tmp_path / 'cut.onnx')!r}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert len(onnx.load(tmp_path / "cut.onnx").graph.node) == 3
