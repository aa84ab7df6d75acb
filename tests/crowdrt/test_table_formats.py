"""One choice of format for every table: what is written, and what excludes what."""

import csv
import io
from pathlib import Path

import pytest

from crowdrt.benchmarks.tables.table import Operations
from crowdrt.benchmarks.timing.records import read_records
from crowdrt.verbs.options import Format, format_of

RECORDS = Path(__file__).resolve().parents[2] / "results" / "skt-8.xeon-amx-2-cores.jsonl"
RACED = [row for row in read_records(RECORDS) if row.network == "csrnet"]
RACE = ("table", "skt-8", "--records", RECORDS, "--network", "csrnet")
FULL = Operations(16_263_489, 205_531_748_352, 205_881_116_256)
STUDENT = Operations(1_017_681, 13_007_070_720, 13_094_327_808)


@pytest.fixture(autouse=True)
def counted_before(monkeypatch):
    """What tests/export/test_complexity.py works out in seconds."""

    def operations_of(rows):
        keys = [(row.network, row.width, row.size) for row in rows]
        return {key: FULL if key[1] == "1" else STUDENT for key in keys}

    monkeypatch.setattr("crowdrt.pipeline.measuring.operations_of", operations_of)


def lines_of(answer):
    assert answer.code == 0, answer.err
    return list(csv.DictReader(io.StringIO(answer.out, newline="")))


def test_json_rows_of_a_race_have_the_promised_keys(crowdrt):
    rows = crowdrt(*RACE, "--json").json()
    assert len(rows) == len(RACED) > 5
    kinds = {
        "network": str, "width": str, "engine": str, "precision": str, "size": list,
        "params": int, "macs": int, "paper_flops": int, "cpu_s": float, "cpu_ratio": float,
        "verdict": str, "printed": dict,
    }  # fmt: skip
    for row in rows:
        assert {name: type(row[name]) for name in kinds} == kinds
        assert row["gpu_ms"] is row["gpu_ratio"] is None  # a record of a machine without one
        assert row["size"] == [576, 864]
    assert crowdrt(*RACE, "--format", "json").json() == rows


def test_csv_of_a_race_says_what_json_says(crowdrt):
    answer = crowdrt(*RACE, "--format", "csv")
    assert answer.out.count("\r\n") == 1 + len(RACED)
    for line, row in zip(lines_of(answer), crowdrt(*RACE, "--json").json(), strict=True):
        for name in ("network", "width", "engine", "precision", "verdict", "run_id"):
            assert line[name] == row[name]
        for name in ("params", "macs", "paper_flops", "cpu_s", "cpu_ratio", "peak_mib"):
            assert float(line[name]) == row[name]
        assert [line["height_px"], line["width_px"]] == ["576", "864"]
        assert int(line["printed_params"]) == round(row["printed"]["params_m"] * 1e6)
        assert int(line["printed_flops"]) == round(row["printed"]["flops_g"] * 1e9)
        assert float(line["printed_cpu_ratio"]) == row["printed"]["cpu_ratio"]
        assert (line["gpu_ms"], line["gpu_reason"]) == ("", row["gpu_reason"])


def test_latex_of_a_race_has_the_cells_of_its_markdown(crowdrt):
    latex = crowdrt(*RACE, "--format", "latex").out
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 1
    markdown = crowdrt(*RACE, "--markdown").out
    assert crowdrt(*RACE, "--format", "markdown").out == markdown
    row = next(line for line in markdown.splitlines() if "OpenVINO | INT8" in line)
    cells = [cell.strip(" *") for cell in row.strip("| ").split("|")]
    set_row = next(line for line in latex.splitlines() if "OpenVINO INT8 &" in line)
    found = [cell.strip() for cell in set_row.removesuffix(r" \\").split("&")]
    assert found == [
        cells[0],
        "OpenVINO INT8",
        *(c.replace("–", r"\textendash{}") for c in cells[3:]),
    ]
    doubts = next(each.verdict for each in RACED if each.engine == "pytorch-compiled")
    assert "% of the median" in doubts
    assert doubts.replace("%", r"\%") + r"\par" in latex


def test_costs_and_errors_of_one_table_share_a_header(crowdrt):
    lines = lines_of(crowdrt("table", "deepcount-7", "--format", "csv"))
    assert {line["table"] for line in lines} == {"deepcount-7"}
    costs, errors = lines[:5], lines[5:]
    assert [costs[1][name] for name in ("row", "metric", "printed", "ours", "matches")] == [
        *("Branch 2", "flops", "2152000000", "2152071168", "true")
    ]
    assert costs[0]["column"] == "FLOPs of the 48x64 map"
    assert (costs[0]["matches"], costs[0]["true_macs"]) == ("false", "2143813632")
    assert [errors[0][name] for name in ("row", "test", "metric", "printed", "ours")] == [
        *("Branch 1", "ShanghaiTech part_A test", "mae", "79.2", "")
    ]
    latex = crowdrt("table", "deepcount-7", "--format", "latex").out
    assert latex.count(r"\begin{tabular}") == 2
    assert r"Branch 2 & 73.4 &  & 8.9" in latex


def test_shares_are_from_0_to_1_and_ours_is_not_rounded(crowdrt, tmp_path):
    lines = lines_of(crowdrt("table", "dsla-2", "--format", "csv"))
    shown = crowdrt("table", "dsla-2", "--json").json()
    assert len(lines) == len(shown) > 20
    known = [(a, b) for a, b in zip(lines, shown, strict=True) if b["printed"] not in (None, "-")]
    assert all(float(a["printed"]) == pytest.approx(float(b["printed"]) / 100) for a, b in known)
    (tmp_path / "a.jsonl").write_text(
        '{"recipe": "skt-3-none", "network": "csrnet", "width": "1/4", "test": "ShanghaiTech part_A'
        ' test", "mae": 100.123456, "rmse": 150.0, "num_images": 182, "seed": 3, "steps": 15,'
        ' "crops": 120, "wall_s": 63.5, "num_threads": 2, "machine": "a", "weights_sha256": "ab",'
        ' "teacher": null}\n'
    )
    answer = crowdrt("table", "skt-3", "--records", tmp_path / "a.jsonl", "--format", "csv")
    (line,) = [each for each in lines_of(answer) if each["ours"] and each["metric"] == "mae"]
    assert (line["ours"], line["ours_std"], line["seeds"]) == ("100.123456", "", "3")
    assert (line["train_s"], line["machines"], line["printed"]) == ("63.5", "a, 2 threads", "89.65")


def test_every_printed_cell_of_every_table_is_a_number_or_absent(crowdrt):
    from crowdrt.benchmarks.tables.trained.tables import ACCURACY_TABLES

    for name in sorted({*ACCURACY_TABLES} - {"skt-2", "deepcount-7"}):  # whose costs take seconds
        lines = lines_of(crowdrt("table", name, "--format", "csv"))
        shown = [cell["printed"] for cell in crowdrt("table", name, "--json").json()]
        empty = [line["printed"] == "" for line in lines]
        assert empty == [text in (None, "-") for text in shown], name


def test_table_5_has_its_formats_too(crowdrt, tmp_path, monkeypatch):
    from crowdrt.pipeline.tables import compression

    monkeypatch.setattr(compression, "COMPRESSION_RECORDS", tmp_path / "none.jsonl")
    lines = lines_of(crowdrt("table", "skt-5", "--format", "csv"))
    assert [line["printed_mae"] for line in lines][-1] == "71.55"
    assert {line["verdict"] for line in lines} == {"not run"}
    latex = crowdrt("table", "skt-5", "--format", "latex").out
    assert latex.startswith("% SKT, Table 5")
    assert "DoReFa & int8 trained &" in latex


@pytest.mark.parametrize(
    "options",
    [("--markdown", "--json"), ("--format", "csv", "--markdown"), ("--format", "csv", "--json"),
     ("--format", "markdown", "--markdown")],
)  # fmt: skip
def test_two_formats_at_once_are_a_usage_error(crowdrt, options):
    answer = crowdrt("table", "skt-3", *options)
    assert (answer.code, answer.out) == (2, "")
    assert "exclude each other" in " ".join(answer.err.split())


@pytest.mark.parametrize("verb", ["compare", "precisions"])
def test_the_other_verbs_refuse_it_before_any_work(crowdrt, verb, tmp_path):
    names = {"compare": ("a", "--data", "b"), "precisions": ("a", "--images", "b", "--test", "c")}
    answer = crowdrt(verb, *names[verb], "-o", tmp_path / "o", "--json", "--format", "latex")
    assert answer.code == 2
    assert "exclude each other" in " ".join(answer.err.split())


def test_a_format_that_is_unknown_names_the_known_ones(crowdrt):
    answer = crowdrt("table", "skt-3", "--format", "xml")
    assert answer.code == 2
    assert all(str(form) in answer.err for form in Format)


def test_the_choice():
    assert format_of(None, markdown=False, as_json=False) == "terminal"
    assert format_of(Format.CSV, markdown=False, as_json=False) == "csv"
    assert format_of(None, markdown=True, as_json=False) == "markdown"
    assert format_of(None, markdown=False, as_json=True) == "json"
