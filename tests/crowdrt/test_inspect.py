"""`crowdrt inspect`: what a file or an engine is, and `crowdrt export FILE.onnx --keep-output`."""

import json
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from crowdrt.manifest import read_manifest


@pytest.fixture
def foreign(tmp_path):
    """A network of another tool: two heads on one convolution, and something idle."""
    text = """
    <ir_version: 8, opset_import: ["" : 17], producer_name: "somebody", producer_version: "2">
    g (float[1,3,h,w] image) => (float[1,1,h,w] density, float[1,2,h,w] mask) {
        features = Conv (image, w0)
        density = Conv (features, w1)
        mask = Conv (features, w2)
    }"""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in {"w0": (8, 3, 1, 1), "w1": (1, 8, 1, 1), "w2": (2, 8, 1, 1)}.items():
        weight = rng.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(weight, name))
    path = tmp_path / "foreign.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture
def copied(tiny, tmp_path):
    """The tiny network and its manifest, to be spoilt."""
    for suffix in ("", ".json"):
        shutil.copy(f"{tiny.onnx}{suffix}", tmp_path / f"tiny.onnx{suffix}")
    return tmp_path / "tiny.onnx"


def num_nodes(path):
    return len(onnx.load(path).graph.node)


def test_an_exported_network(crowdrt, tiny):
    (found,) = crowdrt("inspect", tiny.onnx, "--json").json()
    assert found["kind"] == "onnx"
    assert found["bytes"] == tiny.onnx.stat().st_size
    assert found["sha256"] == read_manifest(tiny.onnx)["sha256"]
    assert (found["info"]["network"], found["info"]["width"]) == ("csrnet", "1/16")
    assert found["inputs"] == [
        {"name": "image", "shape": ["batch", 3, "height", "width"], "dtype": "uint8"}
    ]
    assert [each["name"] for each in found["outputs"]] == ["density", "count"]
    assert (found["opset"], found["precision"]) == ({"ai.onnx": 17}, "fp32")
    assert found["producer"].startswith("crowdrt ")
    assert found["operators"]["Conv"] == 17
    assert found["nodes"] == sum(found["operators"].values()) == num_nodes(tiny.onnx)
    assert found["unneeded"] == {"nodes": [], "initializers": [], "inputs": []}
    assert found["manifest"]["intact"] is True
    assert found["manifest"]["made_from"]["weights"]["network"] == "csrnet"
    assert found["manifest"]["facts"]["stripped"]["branches"] == []


def test_macs_and_parameters_are_those_of_complexity(crowdrt, tiny):
    """Biases of fresh weights are all 0, and equal tensors are stored once."""
    from crowdrt.export.complexity import complexity
    from crowdrt.models import build_model

    width = Fraction(1, 16)
    row = complexity("csrnet", width, (96, 128))
    (found,) = crowdrt("inspect", tiny.onnx, "--size", "96x128", "--json").json()
    assert (found["macs"], found["macs_at"]) == (row.macs, [96, 128])
    biases = [p.numel() for p in build_model("csrnet", width).parameters() if p.dim() == 1]
    assert found["params"] == row.params - sum(biases) + sum(set(biases))
    (default,) = crowdrt("inspect", tiny.onnx, "--json").json()
    assert default["macs_at"] == [576, 864]
    assert default["macs"] == found["macs"] * (576 * 864) // (96 * 128)


def test_an_int8_network(crowdrt, tiny):
    floating, int8 = crowdrt("inspect", tiny.onnx, tiny.int8, "--json").json()
    assert int8["precision"] == "int8"
    assert int8["operators"]["QuantizeLinear"] > 16
    assert int8["macs"] == floating["macs"]
    assert floating["int8_macs"] is floating["int8_macs_cpu"] is None
    assert 0.98 < int8["int8_macs_cpu"] < int8["int8_macs"] < 1  # the answer's layer, and before it
    assert int8["manifest"]["made_from"]["onnx"] == floating["sha256"]


def test_for_people(crowdrt, tiny):
    answer = crowdrt("inspect", tiny.onnx)
    assert answer.code == 0
    lines = {line.split("  ")[0]: line for line in answer.out.splitlines()}
    assert "csrnet at width 1/16, fp32" in lines["network"]
    assert "uint8 (batch, 3, height, width)" in lines["input"]
    assert f"{num_nodes(tiny.onnx)}: Conv 17, Relu 16" in lines["nodes"]
    assert " G at 576x864" in lines["MACs"]
    assert "network csrnet, width 1/16, weights_sha256 " in lines["made from"]
    assert "nothing: every node" in lines["idle"]


def test_a_network_of_another_tool(crowdrt, foreign):
    model = onnx.load(foreign)
    model.graph.node.append(helper.make_node("Relu", ["mask"], ["unread"], name="idle one"))
    onnx.save(model, foreign)
    (found,) = crowdrt("inspect", foreign, "--json").json()
    assert (found["info"], found["manifest"]) == (None, None)
    assert (found["producer"], found["precision"]) == ("somebody 2", "fp32")
    assert (found["params"], found["macs"]) == (24 + 8 + 16, (24 + 8 + 16) * 576 * 864)
    assert found["unneeded"]["nodes"] == ["idle one"]
    shown = crowdrt("inspect", foreign).out
    assert "of another tool (somebody 2), fp32" in shown
    assert "no output needs idle one" in shown
    assert "there is no manifest beside it" in shown


def test_what_tensorrt_takes(crowdrt, tiny, foreign):
    for file in (tiny.onnx, tiny.int8):
        (found,) = crowdrt("inspect", file, "--json").json()
        assert found["tensorrt"] == {"8.6": [], "10": [], "11": []}
    model = onnx.load(foreign)
    model.graph.node[1].op_type = "Det"
    del model.graph.node[1].input[1]
    onnx.save(model, foreign)
    shown = crowdrt("inspect", foreign)
    assert "no: Det density: is no operator that the parser lists" in shown.out


def test_a_layer_whose_shape_is_unknown(crowdrt, foreign):
    model = onnx.load(foreign)
    model.graph.node[0].op_type, model.graph.node[0].domain = "Conv2", "plugins"
    model.opset_import.append(helper.make_opsetid("plugins", 3))
    onnx.save(model, foreign)
    (found,) = crowdrt("inspect", foreign, "--json").json()
    assert found["opset"] == {"ai.onnx": 17, "plugins": 3}
    assert found["layers_without_shape"] == ["density", "mask"]
    assert found["macs"] is None
    shown = crowdrt("inspect", foreign).out
    assert "unknown: no shape of density, mask" in shown
    assert "plugins::Conv2 1" in shown


def test_an_engine(crowdrt, tiny):
    path = crowdrt("build", tiny.onnx, "--json").json()["path"]
    (found,) = crowdrt("inspect", path, "--json").json()
    assert found["kind"] == "engine"
    assert (found["runs_here"], found["why_not"]) == (True, None)
    assert found["source"] == "tiny.onnx"
    assert found["identity"]["onnx_sha256"] == read_manifest(tiny.onnx)["sha256"]
    assert found["identity"]["engine"] == "onnxruntime"
    assert found["info"]["network"] == "csrnet"
    assert found["inputs"][0]["dtype"] == "uint8"
    assert sum(found["operators"].values()) < num_nodes(tiny.onnx)  # fused
    shown = crowdrt("inspect", path).out
    assert "onnxruntime " in shown
    assert any(line.split() == ["runs", "here", "yes"] for line in shown.splitlines())


def test_an_engine_of_another_machine_is_shown_all_the_same(crowdrt, tiny, tmp_path):
    path = Path(crowdrt("build", tiny.onnx, "--json").json()["path"])
    document = json.loads((path / "engine.json").read_text())
    document["identity"]["machine"]["cpu"] = "Another CPU"
    (path / "engine.json").write_text(json.dumps(document))
    (found,) = crowdrt("inspect", path, "--json").json()
    assert found["runs_here"] is False
    assert "Another CPU there" in found["why_not"]
    assert "no: " in crowdrt("inspect", path).out


def test_an_openvino_engine_has_no_graph_to_show(crowdrt, tiny):
    pytest.importorskip("openvino")
    path = crowdrt("build", tiny.onnx, "--engine", "openvino", "--json").json()["path"]
    (found,) = crowdrt("inspect", path, "--json").json()
    assert found["identity"]["engine"] == "openvino"
    assert found["runs_here"] is True
    assert "operators" not in found
    assert crowdrt("inspect", path).code == 0


def test_a_manifest_of_another_file(crowdrt, copied):
    model = onnx.load(copied)
    model.doc_string = "altered"
    onnx.save(model, copied)
    (found,) = crowdrt("inspect", copied, "--json").json()
    assert found["manifest"]["intact"] is False
    assert "not the one of which its manifest speaks" in crowdrt("inspect", copied).out


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: "",
        lambda _: "[]",
        lambda text: json.dumps({**json.loads(text), "made_from": [1], "facts": None}),
        lambda text: json.dumps({**json.loads(text), "facts": {"stripped": {"size": 3}}}),
        lambda text: json.dumps({**json.loads(text), "facts": {"stripped": [1]}}),
    ],
)
def test_a_damaged_manifest_spoils_nothing_else(crowdrt, copied, damage):
    manifest = copied.with_name("tiny.onnx.json")
    manifest.write_text(damage(manifest.read_text()))
    assert crowdrt("inspect", copied, "--json").json()[0]["nodes"] == num_nodes(copied)
    assert "made from" in crowdrt("inspect", copied).out
    refused = crowdrt("inspect", copied, "--markdown")
    assert refused.code == 1
    assert "tiny.onnx has no record of stripping" in refused.err


def test_the_table_of_what_was_stripped(crowdrt, tmp_path, tiny, foreign):
    skt, cut = tmp_path / "skt.onnx", tmp_path / "cut.onnx"
    made = crowdrt("export", "skt", "--width", "1/16", "--random", "-o", skt)
    assert "stripped adapters (" in made.err
    crowdrt("export", foreign, "--keep-output", "density", "-o", cut, "--json").json()
    answer = crowdrt("inspect", "--markdown", tiny.onnx, skt, cut)
    head, rule, plain, student, other = answer.out.splitlines()
    assert head.count("|") == rule.count("|") == plain.count("|") == 6
    assert plain.startswith(f"| csrnet 1/16, density | 36 → 36 → {num_nodes(tiny.onnx)} |")
    assert plain.endswith("| nothing |")
    assert student.startswith(f"| skt 1/16, density | 48 → 36 → {num_nodes(skt)} |")
    assert "adapters (" in student
    assert other.startswith("| cut.onnx | 3 → 2 → 2 | 48 → 32 |")
    assert other.endswith("| mask |")
    shown = crowdrt("inspect", skt).out
    assert "48 -> 36 nodes" in shown
    assert "removed: adapters (" in shown
    assert "answers differ by" in shown


def test_a_size_that_the_file_does_not_take(crowdrt, tmp_path, foreign):
    model = onnx.load(foreign)
    for axis, length in ((2, 96), (3, 128)):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = length
    onnx.save(model, foreign)
    (found,) = crowdrt("inspect", foreign, "--json").json()
    assert found["macs_at"] == [96, 128]
    refused = crowdrt("inspect", foreign, "--size", "64x64")
    assert refused.code == 1
    assert "takes 96x128 px" in refused.err
    assert "--size 96x128" in refused.err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("inspect", "missing.onnx"), "missing.onnx does not exist"),
        (("inspect", "empty"), "empty is no engine folder"),
        (("inspect", "text.onnx"), "text.onnx is no ONNX file"),
        (("inspect", "text.onnx", "--size", "big"), "'big'"),
        (("inspect", "text.onnx", "--markdown", "--json"), "--markdown and --json"),
        (("export", "foreign.onnx", "-o", "o.onnx"), "foreign.onnx is exported already"),
        (("export", "csrnet", "--keep-output", "density", "-o", "o.onnx"), "'csrnet' is none"),
        (("export", "text.onnx", "--keep-output", "density", "-o", "o.onnx"), "text.onnx"),
        (("export", "foreign.onnx", "--keep-output", "people", "-o", "o.onnx"), "'people'"),
        (("export", "foreign.onnx", "--keep-output", "features", "-o", "o.onnx"), "inner tensor"),
        (("export", "foreign.onnx", "--keep-output", "mask", "-o", "foreign.onnx"), "to be cut"),
        *(
            (("export", "foreign.onnx", "--keep-output", "mask", "-o", "o.onnx", *given), given[0])
            for given in (
                ("--width", "1/4"),
                ("--weights", "w.safetensors"),
                ("--size", "96x128"),
                ("--opset", "18"),
                ("--input", "float32"),
                ("--output", "density"),
                ("--random",),
            )
        ),
    ],
)
def test_what_is_refused(crowdrt, tmp_path, monkeypatch, foreign, tree, arguments, problem):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.onnx").write_text("no network")
    before = tree(tmp_path)
    answer = crowdrt(*arguments)
    assert (answer.code, answer.out) == (1, "")
    said, fix = answer.err.split("\n  fix: ")
    assert problem in said
    assert fix.strip()
    assert tree(tmp_path) == before


def test_a_cut_by_the_command_line(crowdrt, tmp_path, foreign):
    out = tmp_path / "cut.onnx"
    command = ("export", foreign, "--keep-output", "density", "-o", out)
    assert crowdrt(*command, "--json").json()["reused"] is False
    assert len(onnx.load(out).graph.node) == 2
    assert crowdrt(*command).out == f"{out} (nothing had changed)\n"


def test_a_network_of_crowdrt_is_cut_and_still_counts(crowdrt, tiny, tmp_path):
    out = tmp_path / "density.onnx"
    crowdrt("export", tiny.onnx, "--keep-output", "density", "-o", out, "--json").json()
    (found,) = crowdrt("inspect", out, "--json").json()
    assert [each["name"] for each in found["outputs"]] == ["density"]
    assert found["info"] == crowdrt("inspect", tiny.onnx, "--json").json()[0]["info"]


def test_inspection_needs_no_pytorch(tiny):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        f"sys.argv = ['crowdrt', 'inspect', {str(tiny.onnx)!r}, '--json']\n"
        "from crowdrt.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)[0]["nodes"] == num_nodes(tiny.onnx)
