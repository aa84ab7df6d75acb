"""What a run's report shows beside the run itself: stripping, calibration methods, a comparison."""

import json
import os
import shutil
from fractions import Fraction

import pytest

from crowdrt.benchmarks.tables.compression.rows import CompressionRow, row_line
from crowdrt.benchmarks.timing.records import append_records
from crowdrt.contracts import Measurement
from crowdrt.errors import MissingDependencyError
from crowdrt.manifest import manifest_path, sha256_file, write_json
from crowdrt.pipeline.networks import Origin
from crowdrt.pipeline.precision.record import Methods, methods_of, write_methods
from crowdrt.pipeline.stages import export_stage
from crowdrt.pipeline.stripped import stripping_section
from crowdrt.pipeline.tables.compression import comparison_in

REASON = "bias moves by -3.00 people on all photographs"


def method(name, **changes):
    row = {
        "name": name, "precision": "int8", "path": f"/somewhere/{name}.onnx", "reason": "",
        "mb": 4.1, "bytes": 4_100_000, "int8_macs": 1.0, "mae": 20.5, "rmse": 30.0, "bias": -2.25,
        "moved": {"all": -3.0, "dense": -5.0}, "psnr_db": 37.5,
        "gate": {"held": False, "reason": REASON}, "p50_ms": None, "speedup": None, "verdict": None,
    }  # fmt: skip
    return row | changes


ROWS = [
    method("fp32", precision="fp32", int8_macs=0.0, moved={}, psnr_db=None, gate=None),
    method("fp16", precision="fp16"),
    method("int8 minmax"),
    method("int8 repaired", mae=None, bias=None, bytes=None, mb=None, path=None, int8_macs=0.0,
           reason="too few layers", moved={}, gate={"held": False, "reason": "too few layers"}),
]  # fmt: skip


def keep(folder, sha256, rows=ROWS):
    folder.mkdir(parents=True, exist_ok=True)
    methods = Methods(model="a.onnx", sha256=sha256, num_ranges=32, num_counted=182)
    write_methods(folder, methods, rows)
    return folder / "precisions.json"


def compared(mae, ms, **changes):
    fields = {
        "method": "SKT", "kind": "distillation", "form": "fp32", "recipe": "skt", "network": "bl",
        "width": "1/8", "test": "ShanghaiTech part_A test", "num_images": 182, "size": (576, 864),
        "seeds": tuple(range(len(mae))), "mae": mae, "rmse": mae, "median_ms": ms,
        "num_threads": 1, "timing": "valid",
    }  # fmt: skip
    return CompressionRow(**fields | changes)


@pytest.fixture
def run_folder(tiny, tmp_path):
    """What `crowdrt run` leaves, as far as the report reads it."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in (tiny.onnx, manifest_path(tiny.onnx)):
        shutil.copy(name, folder / name.name)
    digest = sha256_file(tiny.onnx)
    row = Measurement(
        name="a", network="csrnet", width="1/16", engine="onnxruntime", engine_version="1",
        precision="fp32", size=(96, 128), num_threads=1, samples_ms=(1.0,), peak_mib=1.0,
        machine={"cpu": "one"}, verdict="valid", run_id="20260101T000000Z-000000",
    )  # fmt: skip
    append_records(folder / "records.jsonl", [row])
    document = {
        "recipe": {"name": "tiny", "network": "csrnet", "width": "1/16"}, "source": "photographs",
        "stages": [], "overlays": [], "gates": {}, "precisions": [],
        "files": [{"path": "/elsewhere/tiny.onnx", "kind": "onnx", "sha256": digest}],
    }  # fmt: skip
    write_json(folder / "run.json", document)
    return folder


def page_of(crowdrt, folder):
    answer = crowdrt("report", folder)
    assert answer.code == 0, answer.err
    return (folder / "report.html").read_text(), answer.err


def test_a_run_alone_says_in_one_line_that_nothing_was_stripped(crowdrt, run_folder):
    page, _ = page_of(crowdrt, run_folder)
    section = page.partition("<h2>What was stripped</h2>")[2].partition("<h2>")[0]
    assert section.count("Nothing: it has nothing for training alone.") == 1
    assert section.count("<li>") == 1
    assert "<table" not in section
    assert "Calibration methods" not in page
    assert "Accuracy against latency" not in page
    assert not (run_folder / "pareto.png").exists()


def test_records_in_the_runs_folder_become_sections(crowdrt, run_folder):
    keep(run_folder / "precisions", sha256_file(run_folder / "tiny.onnx"))
    lines = [row_line(compared((150.0, 152.0), 31.0)), row_line(compared((180.0,), 74.0))]
    (run_folder / "compression.jsonl").write_text("\n".join(lines) + "\n")
    page, _ = page_of(crowdrt, run_folder)
    for expected in (
        *("<h2>Calibration methods</h2>", "182 photographs counted, ranges from 32 others."),
        *(REASON, "-3.00", "37.5", "4.10", "100.0 %", "too few layers"),
        *("<h2>Accuracy against latency</h2>", "151.00 ± 1.41", "Pareto front", "ours: Shanghai"),
    ):
        assert expected in page, expected
    assert "fp16" not in page
    assert (run_folder / "pareto.png").read_bytes().startswith(b"\x89PNG")


def test_precisions_of_another_network_are_left_out_and_said(crowdrt, run_folder):
    path = keep(run_folder / "precisions", "ab" * 32)
    page, said = page_of(crowdrt, run_folder)
    assert "Calibration methods" not in page
    assert f"{path} is of another network" in " ".join(said.split())


def test_the_newest_record_counts(tmp_path):
    keep(tmp_path / "b", "sha", [method("int8 minmax", mae=1.0)])
    keep(tmp_path / "a", "sha", [method("int8 minmax", mae=2.0)])
    os.utime(tmp_path / "b" / "precisions.json", (2e9, 2e9))
    found = methods_of(tmp_path, "sha")
    assert [line.mae for line in found.lines] == [1.0]
    assert methods_of(tmp_path, "other") is None
    assert methods_of(tmp_path / "nothing", "sha") is None


def test_a_record_names_no_folder(tmp_path):
    assert "/somewhere" not in keep(tmp_path, "sha").read_text()


@pytest.mark.parametrize(
    "change",
    [
        *({"schema": 2}, {"rows": [{"name": "fp32"}]}, {"rows": None}, {"sha256": None}),
        *({"rows": [method("fp32") | {name: "x"}]} for name in ("mae", "bias", "psnr_db")),
        {"rows": [method("fp32", moved={"all": "x"})]},
    ],
)
def test_a_damaged_record_is_left_out_and_says_how_to_make_it_again(tmp_path, change, capsys):
    older = keep(tmp_path / "older", "sha", [method("int8 minmax", mae=2.0)])
    os.utime(older, (1e9, 1e9))
    path = keep(tmp_path, "sha")
    document = json.loads(path.read_text()) | change
    if change.get("sha256", "") is None:
        del document["sha256"]
    path.write_text(json.dumps(document))
    assert [line.mae for line in methods_of(tmp_path, "sha").lines] == [2.0]
    said = " ".join(capsys.readouterr().err.split())
    assert f"{path} is no whole record of precisions" in said
    assert f"-o {tmp_path}" in said


def test_a_page_is_written_beside_records_that_are_damaged_or_of_others(crowdrt, run_folder):
    digest = sha256_file(run_folder / "tiny.onnx")
    for name, of, schema in (("own", digest, 1), ("old", digest, 0), ("others", "ab" * 32, 0)):
        path = keep(run_folder / name, of)
        path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": schema}))
    for name, text in (("own", row_line(compared((147.25,), 30.0))), ("old", '{"schema": 0}')):
        path = run_folder / name / "compression.jsonl"
        path.write_text(text + "\n")
        os.utime(path, (1e9, 1e9) if name == "own" else (2e9, 2e9))
    page, said = page_of(crowdrt, run_folder)
    assert "Calibration methods" in page
    assert "147.25" in page
    said = " ".join(said.split())
    assert "old/precisions.json is no whole record of precisions" in said
    assert "others/precisions.json is of another network" in said
    assert "old/compression.jsonl, line 1 is no whole row" in said


def test_what_an_export_stripped_is_shown_with_its_proof(tmp_path):
    path = tmp_path / "skt.onnx"
    origin = Origin(network="skt", width=Fraction(1, 16), weights=None)
    made = export_stage(origin, path, size=(96, 128))
    found = stripping_section(path, made.sha256)
    sizes = {what: (training, deployed, file) for what, training, deployed, file in found.sizes}
    record = json.loads(manifest_path(path).read_text())["facts"]["stripped"]
    was, now = record["before"], record["after"]
    assert was["params"] > now["params"]
    assert sizes["Nodes"] == (str(was["nodes"]), str(now["nodes"]), str(record["file_nodes"]))
    assert sizes["Parameters"][:2] == (f"{was['params']:,}", f"{now['params']:,}")
    assert sizes["Bytes"] == (
        f"{4 * was['params']:,}", f"{4 * now['params']:,}", f"{path.stat().st_size:,}"
    )  # fmt: skip
    assert "G MACs at 96x128" in sizes
    removed = dict(found.removed)
    assert removed["branches"][0].startswith("adapters (")
    assert list(removed["parameters"]) == record["parameters"]
    assert list(removed["nodes"]) == record["nodes"]
    proof = "\n".join(found.proof)
    assert "forward_train of the whole training network" in proof
    assert f"{record['max_rel']:.1e}" in proof
    assert all(name in proof for name in record["alike"])
    assert stripping_section(path, "another file's") is None
    path.unlink()
    assert stripping_section(path, made.sha256) is None


def test_a_folder_without_a_comparison_has_none(tmp_path):
    assert comparison_in(tmp_path) is None
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "compression.jsonl").write_text(row_line(compared((1.0,), None)) + "\n")
    found = comparison_in(tmp_path)
    assert found.plot is None
    assert [(line.mae, line.latency) for line in found.lines] == [("1.00", "–")]


@pytest.mark.parametrize("damage", [{"mae": ["x"]}, {"rmse": [None]}, {"median_ms": "1"},
                                    {"label": 3}, {"method": 3}, {"size": [96]}])  # fmt: skip
def test_a_damaged_comparison_is_said_and_an_older_one_shown(tmp_path, damage, capsys):
    line = row_line(compared((150.0,), 31.0))
    for name, text, when in (("old", line, 1e9), ("new", None, 2e9)):
        path = tmp_path / name / "compression.jsonl"
        path.parent.mkdir()
        path.write_text((text or json.dumps(json.loads(line) | damage)) + "\n")
        os.utime(path, (when, when))
    assert [each.mae for each in comparison_in(tmp_path).lines] == ["150.00"]
    assert "new/compression.jsonl, line 1 is no whole row" in "".join(
        capsys.readouterr().err.split("\n")
    )


def test_of_an_empty_comparison_there_is_no_section(tmp_path, capsys):
    (tmp_path / "compression.jsonl").write_text("\n")
    assert comparison_in(tmp_path) is None
    assert "holds no row" in " ".join(capsys.readouterr().err.split())


def test_a_comparison_that_cannot_be_judged_here_is_said(tmp_path, monkeypatch, capsys):
    def missing(rows):
        raise MissingDependencyError("scipy could not be imported", fix="pip install scipy")

    monkeypatch.setattr("crowdrt.pipeline.tables.compression.judge", missing)
    (tmp_path / "compression.jsonl").write_text(row_line(compared((150.0,), 31.0)) + "\n")
    assert comparison_in(tmp_path) is None
    assert "scipy could not be imported; it is left out" in capsys.readouterr().err


def test_damaged_layers_are_said_and_left_out(crowdrt, run_folder):
    (run_folder / "layers.jsonl").write_text('{"schema": 1}\n')
    page, said = page_of(crowdrt, run_folder)
    assert "Layers at" not in page
    assert "layers.jsonl, line 1: not a whole profile" in " ".join(said.split())


def test_pictures_of_an_earlier_report_go_and_others_stay(crowdrt, run_folder):
    (run_folder / "compression.jsonl").write_text(row_line(compared((150.0,), 31.0)) + "\n")
    for name in ("layers-96x128.png", "roofline-96x128.png", "counts.png", "layers-mine.png"):
        (run_folder / name).write_bytes(b"")
    page_of(crowdrt, run_folder)
    drawn = {"latency-96x128.png", "layers-mine.png"}
    assert {path.name for path in run_folder.glob("*.png")} == drawn | {"pareto.png"}
    (run_folder / "compression.jsonl").unlink()
    page_of(crowdrt, run_folder)
    assert {path.name for path in run_folder.glob("*.png")} == drawn
