"""A campaign on the GPU, with a stand-in for the interpreters that would be there."""

import json
import shutil
import sys
import tarfile
import textwrap
import time

import numpy as np
import pytest
from PIL import Image

from crowdrt.benchmarks.timing.records import read_records
from crowdrt.errors import BenchmarkError
from crowdrt.pipeline.gpu.campaign import Campaign, run_campaign
from crowdrt.pipeline.gpu.heats import doubts_of
from crowdrt.pipeline.gpu.processes import Process, Pythons, ask_once
from crowdrt.pipeline.gpu.rows import HEATS, TORCH_FORMS, heats, row_from, rows_of

# A Python that has no GPU and answers as a worker with one does.
STAND_IN = """
    #!{python}
    import json, sys, time
    if sys.argv[1] == "-c":
        print("9.9"); raise SystemExit
    order = json.loads(sys.argv[4])
    row = order.get("row", {{}})
    plan = {{"folder": "{folder}", "reused": False, "seconds": 1.0, "plan_bytes": 2**20,
            "precision": {{"obeyed": {{"int8": 3}}, "errors": [], "tf32": []}},
            "counts": {{"worst": 0.0, "agrees": True}}, "layers": {{"ms": 1.0}}}}
    if order["do"] == "peaks":
        print(json.dumps({{"peaks": {{"gpu": "stand-in", "bytes_per_s": 1e12,
                                     "operations_per_s": {{}}}}}})); raise SystemExit
    if order["do"] == "build":
        if row["precision"] == "int8":
            print(json.dumps({{"failed": "no kernel"}})); raise SystemExit
        if row["precision"] == "fp16":
            plan["precision"]["errors"] = ["Conv a runs in fp32"]
        print(json.dumps({{"built": plan}})); raise SystemExit
    print(json.dumps({{"open": True}}), flush=True)
    if row["precision"] == "compiled fp16":
        raise SystemExit(3)
    for line in sys.stdin:
        runs = int((line.split() + ["3"])[1]) if line.startswith("visit") else 3
        part = {{"to_device_ms": 0.1, "compute_ms": 1.0, "to_host_ms": 0.1}}
        print(json.dumps({{"samples_ms": [100.0] * runs, "wall_s": 1.0, "cpu_s": 0.1,
                          "busy_s": None, "peak_mib": 9.0, "parts": [part] * runs}}), flush=True)
"""


@pytest.fixture
def campaign(tmp_path):
    (tmp_path / "engine").mkdir()
    python = tmp_path / "python"
    text = textwrap.dedent(STAND_IN).strip()
    python.write_text(text.format(python=sys.executable, folder=tmp_path / "engine"))
    python.chmod(0o755)
    folder = tmp_path / "prepared"
    (folder / "images").mkdir(parents=True)
    (folder / "prepared.json").write_text("{}")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3)).astype(np.uint8)
    for size in ("576x864", "2032x2912"):
        Image.fromarray(pixels).save(folder / "images" / f"{size}-3.png")
    return Campaign(
        folder=folder,
        work=tmp_path / "work",
        out=tmp_path / "out",
        pythons=Pythons(tensorrt=str(python), torch=str(python)),
        race_s=0.1,
        chosen=("csrnet@576x864",),
    )


def test_it_goes_on_after_failures_says_why_and_brings_all_home(campaign, tmp_path):
    measured = run_campaign(campaign)
    rows = {row.name: row for row in read_records(campaign.out / "records.jsonl")}
    assert len(rows) == 20
    failed = {name for name, row in rows.items() if row.verdict.startswith("failed")}
    assert failed == {name for name in rows if "int8" in name or "compiled" in name}
    assert measured == 20 - len(failed) == 14
    assert rows["csrnet 1/4 tensorrt int8 576x864"].verdict == "failed: no kernel"
    assert "exit code 3" in rows["csrnet 1 pytorch compiled fp16 576x864"].verdict
    half = rows["csrnet 1/4 tensorrt fp16 graph 576x864"]
    assert "disobeys: Conv a runs in fp32" in half.verdict
    assert "unwatched" in half.verdict
    assert set(half.compute_ms) == {1.0}
    assert len(half.samples_ms) >= 3
    assert half.machine["engines"] == {"tensorrt": "9.9", "pytorch": "9.9"}
    facts = json.loads((campaign.out / "facts.json").read_text())
    assert facts["csrnet-1-4.int8@576x864"] == {"failed": "no kernel"}
    assert json.loads((tmp_path / "engine" / "peaks.json").read_text())["gpu"] == "stand-in"
    assert {path.name for path in campaign.out.iterdir()} >= {
        "records.jsonl", "facts.json", "peaks.json", "log.txt", "nvidia-smi.txt",
    }  # fmt: skip


def test_what_is_done_is_not_done_again_and_no_time_is_no_heat(campaign, capsys):
    assert run_campaign(campaign) == 14
    assert run_campaign(campaign) == 0
    assert "measured before" in capsys.readouterr().err
    later = Campaign(**{**campaign.__dict__, "chosen": ("bl@576x864",), "budget_s": 10.0})
    assert run_campaign(later) == 0
    assert "no time is left" in capsys.readouterr().err
    assert len(read_records(campaign.work / "records.jsonl")) == 20


def test_sidecars_travel_as_one_file(campaign):
    (campaign.work / "sidecars" / "a").mkdir(parents=True)
    (campaign.work / "sidecars" / "a" / "engine.json").write_text("{}")
    run_campaign(Campaign(**{**campaign.__dict__, "budget_s": 1.0}))
    with tarfile.open(campaign.out / "sidecars.tar.gz") as tar:
        assert "sidecars/a/engine.json" in tar.getnames()


def test_timings_come_home_and_go_along_to_the_next_host(campaign, tmp_path):
    (campaign.work / "store" / "timings").mkdir(parents=True)
    (campaign.work / "store" / "timings" / "gpu.cache").write_bytes(b"measured")
    run_campaign(Campaign(**{**campaign.__dict__, "budget_s": 1.0}))
    archive = campaign.out / "timings.tar.gz"
    fresh = {"work": tmp_path / "fresh", "out": tmp_path / "again", "budget_s": 1.0}
    run_campaign(Campaign(**{**campaign.__dict__, **fresh, "timings": archive}))
    assert (tmp_path / "fresh/store/timings/gpu.cache").read_bytes() == b"measured"
    archive.write_bytes(b"no archive")
    other = {**fresh, "work": tmp_path / "other", "timings": archive}
    with pytest.raises(BenchmarkError, match="cannot be unpacked"):
        run_campaign(Campaign(**{**campaign.__dict__, **other}))


def test_a_folder_that_was_not_prepared_is_refused(campaign, tmp_path):
    with pytest.raises(BenchmarkError, match="was not prepared"):
        run_campaign(Campaign(**{**campaign.__dict__, "folder": tmp_path / "empty"}))


def test_an_interpreter_that_is_not_there_is_named(tmp_path):
    with (tmp_path / "log").open("ab") as log, pytest.raises(BenchmarkError, match="trt-python"):
        ask_once(str(tmp_path / "none"), {"do": "peaks"}, log, 1)


def test_a_process_that_hangs_is_left_and_ended(tmp_path):
    sleeper = tmp_path / "sleeper"
    sleeper.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\n")
    sleeper.chmod(0o755)
    start = time.monotonic()
    with (tmp_path / "log").open("ab") as log, Process(str(sleeper), {}, log) as process:
        assert process.answer(0.2) == {"failed": "no answer within 0 s"}
    assert time.monotonic() - start < 20


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="here is a GPU")
def test_a_worker_here_fails_at_the_device_and_says_so(tmp_path):
    """The real worker, in this Python, which has no GPU."""
    row = next(row for row in rows_of("csrnet", (576, 864)) if row.engine == "pytorch")
    order = {"do": "serve", "row": row.to_json(), "image": "unused"}
    with (tmp_path / "log").open("ab") as log:
        answer = ask_once(sys.executable, order, log, 120)
    assert "no CUDA device" in answer["failed"]


def test_every_heat_has_both_widths_all_precisions_and_all_forms_of_pytorch():
    for network, size in HEATS:
        rows = rows_of(network, size)
        assert len({row.name for row in rows}) == len(rows) == 20
        assert {row.precision for row in rows if row.engine == "pytorch"} == set(TORCH_FORMS)
        assert [row_from(json.loads(json.dumps(row.to_json()))) for row in rows] == rows
    assert len(list(heats())) == 6
    assert list(heats(["bl@2032x2912"])) == [("bl", (2032, 2912))]


def test_what_gives_to_doubt():
    facts = {
        "precision": {"errors": ["a", "b"], "tf32": ["c"]},
        "counts": {"agrees": False, "worst": 0.031},
    }
    assert doubts_of(facts) == [
        "disobeys: a and 1 more",
        "disobeys: 1 layers in tf32",
        "counts differ by 3.10% from ONNX Runtime's",
    ]
    assert doubts_of({"precision": {}, "counts": {"agrees": None}}) == []
