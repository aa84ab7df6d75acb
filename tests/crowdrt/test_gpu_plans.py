"""One TensorRT row of a campaign, built, checked and served on the stand-in for a GPU."""

import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))

from stand_in_tensorrt import installed

from crowdrt.calibration.fp16.graph import prepared, to_fp16
from crowdrt.calibration.fp16.plan import plan_fp16
from crowdrt.onnx_file import graph_info, set_info
from crowdrt.pipeline.gpu import heats, worker
from crowdrt.pipeline.gpu.dry import Pool, dry
from crowdrt.pipeline.gpu.plans import build_row
from crowdrt.pipeline.gpu.prepare import counted, read_image
from crowdrt.pipeline.gpu.rows import Row

SIZE = (112, 136)


def row(precision="fp32", **changes):
    common = {"network": "csrnet", "width": "1/4", "engine": "tensorrt", "size": SIZE}
    return Row(**{**common, "precision": precision, **changes})


@pytest.fixture
def folder(tiny, tmp_path):
    """What `prepare` writes, of the tiny network under the name of the student."""
    folder, pool, counts = tmp_path / "prepared", Pool(), {}
    (folder / "images").mkdir(parents=True)
    (folder / "files").mkdir()
    image = folder / "images" / "112x136-3.png"
    Image.open(sorted(tiny.photos.glob("*.jpg"))[0]).save(image)
    assert read_image(image).shape == (3, *SIZE)
    whole = tmp_path / "whole"
    whole.mkdir()
    shutil.copy(tiny.onnx, whole / "csrnet-1-4.fp32.onnx")
    shutil.copy(tiny.int8, whole / "csrnet-1-4.int8.onnx")
    model = prepared(onnx.load(tiny.onnx))
    half = to_fp16(model, plan_fp16(model))
    set_info(half, graph_info(tiny.onnx))
    onnx.save(half, whole / "csrnet-1-4.fp16.onnx")
    for path in sorted(whole.iterdir()):
        onnx.save(dry(onnx.load(path), pool, prefix=path.name), folder / "files" / path.name)
        counts[path.name] = counted(path, {SIZE: [image]}, "1/4", True)
    pool.save(folder)
    (folder / "counts.json").write_text(json.dumps(counts))
    return folder


def test_a_row_is_built_checked_and_its_sidecars_kept(folder, tmp_path, monkeypatch):
    installed(monkeypatch, "8.6")
    facts = build_row(row(), folder, tmp_path / "work")
    assert facts["reused"] is False
    assert facts["counts"]["agrees"] is True
    assert facts["counts"]["worst"] < 1e-4
    assert facts["layers"]["ms"] > 0
    assert facts["precision"]["errors"] == []  # an FP32 file asks for nothing less
    kept = tmp_path / "work" / "sidecars" / "csrnet-1-4.fp32@112x136"
    assert {path.name for path in kept.iterdir()} == {
        "engine.json", "inspector.json", "profile.json",
    }  # fmt: skip
    assert build_row(row(), folder, tmp_path / "work")["reused"] is True


def test_a_plan_whose_precision_nobody_can_tell_is_in_doubt(folder, tmp_path, monkeypatch):
    trt, _ = installed(monkeypatch, "10.16")
    trt.my_types = False  # its inspector says layers' names and no more
    facts = build_row(row("int8"), folder, tmp_path / "work")
    nodes = onnx.load(tmp_path / "whole" / "csrnet-1-4.int8.onnx").graph.node
    coded = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
    asked = [node for node in nodes if node.op_type == "Conv" and node.input[1] in coded]
    assert len(facts["precision"]["errors"]) == len(asked) > 10
    assert heats.doubts_of(facts)[0].startswith("disobeys: Conv ")


def test_a_plan_that_counts_otherwise_is_in_doubt(folder, tmp_path, monkeypatch):
    installed(monkeypatch, "11.4")
    counts = json.loads((folder / "counts.json").read_text())
    for figures in counts["csrnet-1-4.fp32.onnx"].values():
        figures["count"] += 0.01 * figures["absolute"]
    (folder / "counts.json").write_text(json.dumps(counts))
    facts = build_row(row(), folder, tmp_path / "work")
    assert facts["counts"]["agrees"] is False
    assert "counts differ by 1.00%" in heats.doubts_of(facts)[0]


def test_a_row_without_recorded_counts_is_not_judged_by_them(folder, tmp_path, monkeypatch):
    installed(monkeypatch, "11.4")
    (folder / "counts.json").write_text("{}")
    assert build_row(row(), folder, tmp_path / "work")["counts"]["agrees"] is None


@pytest.mark.parametrize("graphs", [True, False])
def test_the_worker_serves_it_and_answers_visits(graphs, folder, tmp_path, monkeypatch):
    installed(monkeypatch, "8.6")
    facts = build_row(row(), folder, tmp_path / "work")
    order = {
        "do": "serve",
        "row": row(graphs=graphs).to_json(),
        "engine_folder": facts["folder"],
        "image": str(folder / "images" / "112x136-3.png"),
    }
    monkeypatch.setattr(worker, "WARM_UP", worker.WarmUp(runs=2, seconds=0.0))
    monkeypatch.setattr(sys, "stdin", io.StringIO("warm\nvisit 3\n"))
    answers = io.StringIO()
    worker.do(order, answers)
    opened, warm, visit = map(json.loads, answers.getvalue().splitlines())
    assert opened == {"open": True}
    assert len(warm["samples_ms"]) >= 2
    timed = heats.visit_from(visit)
    assert len(timed.samples_ms) == len(timed.parts) == 3
    assert all(np.isfinite(part.compute_ms) for part in timed.parts)
