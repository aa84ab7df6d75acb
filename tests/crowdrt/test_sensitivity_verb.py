"""`crowdrt sensitivity` and `crowdrt calibrate --keep-float` from the command line."""

import pytest
from PIL import Image

from crowdrt.manifest import read_manifest

FIRST = "/network/front_end/front_end.0/Conv"


@pytest.fixture
def command(tiny, tmp_path):
    records = tmp_path / "trials.jsonl"
    return ("sensitivity", tiny.onnx, "--images", tiny.photos, "--num-judged", 1, "--num-images", 1,
            "--threads", 1, "--records", records)  # fmt: skip


def test_layers_are_ranked_printed_drawn_and_repaired(crowdrt, command, tmp_path, monkeypatch):
    out, plot = tmp_path / "mixed.onnx", tmp_path / "layers.png"
    repair = ("--repair", "-o", out, "--tolerance", "0.9", "--plot", plot)
    said = crowdrt(*command, *repair, "--json").json()
    layers = said["layers"]
    assert len(layers) == 16
    changes = [layer["change"] for layer in layers]
    assert changes == sorted(changes, reverse=True)
    assert changes[0] > 0
    assert sum(layer["macs_share"] for layer in layers) == pytest.approx(1, abs=0.01)
    assert said["annotated"] is True
    assert said["artifact"]["path"] == str(out)
    assert said["repair"]["kept"] == {}
    assert said["every_layer"]["int8_macs"] == pytest.approx(1, abs=0.01)
    with Image.open(plot) as image:
        assert image.format == "PNG"

    monkeypatch.setattr("crowdrt.calibration.sensitivity.judge.Judge.verdict", None)
    printed = crowdrt(*command, *repair)
    assert printed.code == 0, printed.err
    lines = printed.out.splitlines()
    assert lines[0].split() == ["in", "INT8", "MACs", "count", "error", "mean", "change", "MAE",
                                "SQNR"]  # fmt: skip
    assert [line.split()[0] for line in lines[1:17]] == [layer["name"] for layer in layers]
    assert lines[17].startswith("every layer")
    assert lines[18].startswith("nothing has to stay float: change of the MAE")
    assert lines[19] == f"{out} (nothing had changed)"


def test_what_cannot_be_repaired_still_is_drawn(crowdrt, command, tmp_path):
    plot = tmp_path / "layers.png"
    said = crowdrt(*command, "--repair", "-o", tmp_path / "m.onnx", "--min-int8", 1,
                   "--tolerance", "1e-9", "--plot", plot)  # fmt: skip
    assert said.code in (0, 1)  # one photograph may by chance count better in INT8
    assert plot.exists()
    assert (tmp_path / "m.onnx").exists() == (said.code == 0)


def test_repair_and_out_go_together(crowdrt, command, tmp_path):
    for lonely in (("--repair",), ("-o", tmp_path / "m.onnx")):
        said = crowdrt(*command, *lonely)
        assert said.code == 1
        assert "--repair -o " in said.err


def test_keep_float_leaves_layers_in_float(crowdrt, tiny, tmp_path):
    out = tmp_path / "kept.onnx"
    command = ("calibrate", tiny.onnx, "--images", tiny.photos, "--num-images", 1, "-o", out)
    assert (
        crowdrt(*command, "--keep-float", FIRST, "--keep-float", FIRST.replace("0", "2")).code == 0
    )
    facts = read_manifest(out)["facts"]
    kept = [name for name, why in facts["float"].items() if why == "kept float on request"]
    assert kept == [FIRST, FIRST.replace("0", "2")]
    assert facts["int8_macs"] < 0.95


def test_an_unknown_layer_is_refused_with_the_known_ones(crowdrt, tiny, tmp_path):
    out = tmp_path / "kept.onnx"
    said = crowdrt("calibrate", tiny.onnx, "--images", tiny.photos, "-o", out,
                   "--keep-float", "front_end")  # fmt: skip
    assert said.code == 1
    assert "front_end" in said.err
    assert FIRST in said.err
    assert not out.exists()
