"""`crowdrt table` for what the papers print of accuracy: terminal, Markdown, JSON, and refusals."""

import json
from pathlib import Path

import pytest

from crowdrt.benchmarks.tables.cells import Cell
from crowdrt.benchmarks.tables.trained.tables import ACCURACY_TABLES
from crowdrt.pipeline.tables import accuracy

OWN = accuracy.TRAINING_RECORDS
RECORD = {
    "recipe": "skt-3-none", "network": "csrnet", "width": "1/4", "test": "ShanghaiTech part_A test",
    "mae": 100.0, "rmse": 150.0, "bias": -3.0, "num_images": 182, "seed": 0, "steps": 1500,
    "crops": 12000, "wall_s": 630.0, "num_threads": 2, "machine": "[red] Xeon",
    "weights_sha256": "ab", "teacher": None,
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_records_of_the_checkout(monkeypatch, tmp_path):
    monkeypatch.setattr(accuracy, "TRAINING_RECORDS", tmp_path / "none.jsonl")


@pytest.fixture
def records(tmp_path):
    def write(name, *changes):
        path = tmp_path / name
        path.write_text("".join(json.dumps(RECORD | change) + "\n" for change in changes))
        return path

    return write


@pytest.mark.parametrize("name", sorted({*ACCURACY_TABLES} - {"skt-2", "deepcount-7"}))
def test_every_table_is_shown_without_records(crowdrt, name):
    table = ACCURACY_TABLES[name]
    said = crowdrt("table", name)
    assert said.code == 0, said.err
    assert said.out.splitlines()[0] == table.title
    assert table.budget in said.out
    assert "no training record of these recipes" in said.out
    cells = crowdrt("table", name, "--json").json()
    assert len(cells) == len(table.rows) * len(table.columns)
    assert {cell["ours"] for cell in cells} == {None}
    markdown = crowdrt("table", name, "--markdown").out
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(table.rows)
    assert {row.count("|") for row in rows} == {3 + 2 * len(table.columns)}


def test_costs_and_accuracy_of_one_table_stand_below_each_other(crowdrt, records, monkeypatch):
    assert {*accuracy.COST_TABLES} & {*ACCURACY_TABLES} == {"skt-2", "deepcount-7"}
    cost = Cell(row="CSRNet", column="FLOPs, G", printed="205.88", ours="205.88", true="205.53")
    monkeypatch.setattr(accuracy, "COST_TABLES", {"skt-2": lambda: [cost]})  # test_tables.py counts
    path = records("a.jsonl", {})
    said = crowdrt("table", "skt-2", "--records", path)
    assert said.code == 0, said.err
    costs, _, errors = said.out.partition("SKT, Table 2: CSRNet's width")
    assert "FLOPs, G" in costs
    assert "1 of 1 printed figures come out" in costs
    [row] = [line for line in errors.splitlines() if line.startswith("1/4-CSRNet  ")]
    assert row.split() == [
        "1/4-CSRNet",
        "146.40",
        "150.00",
        *("1,500", "steps,", "12,000", "crops,", "10", "min"),
    ]
    cells = crowdrt("table", "skt-2", "--records", path, "--json").json()
    assert [cell["column"] for cell in cells] == ["FLOPs, G", *["RMSE"] * 9]
    assert [cell["row"] for cell in cells if cell["ours"] == "150.00"] == ["1/4-CSRNet"]


def test_table_7_keeps_its_costs_and_gains_its_errors(crowdrt):
    cells = crowdrt("table", "deepcount-7", "--json").json()
    assert [cell["printed"] for cell in cells if cell["row"] == "Branch 2"] == [
        *("2152", "73.4", "8.9", "185.0", "2.89"),
    ]
    markdown = crowdrt("table", "deepcount-7", "--markdown").out
    assert "| Branch 2 | FLOPs of the 24x32 map, M | 2152 | 2152 |" in markdown
    assert "| Branch 2 | 73.4 |  | 8.9 |  | 185.0 |  | 2.89 |  |  |" in markdown


def test_records_of_several_files_are_pooled_and_say_where_they_are_from(crowdrt, records):
    files = records("a.jsonl", {}), records("b.jsonl", {"seed": 1, "mae": 104.0})
    options = [part for path in files for part in ("--records", path)]
    said = crowdrt("table", "skt-3", *options).out
    assert "102.00 ± 2.83" in said
    assert "12,000 crops, 10 min, 2 seeds" in said
    assert "trained on: [red] Xeon, 2 threads" in said
    assert "is not the paper's" in said
    assert "no training record" not in said


def test_the_checkouts_records_are_read_by_default(crowdrt, records, monkeypatch):
    monkeypatch.setattr(accuracy, "TRAINING_RECORDS", records("own.jsonl", {"mae": 99.0}))
    assert "99.00" in crowdrt("table", "skt-3").out
    assert "99.00" not in crowdrt("table", "skt-3", "--records", records("a.jsonl", {})).out


def test_they_lie_in_the_folder_of_results():
    assert Path(__file__).resolve().parents[2] / "results" / "training.jsonl" == OWN


def test_refusals_say_what_would_do(crowdrt, records, tmp_path):
    path = records("a.jsonl", {}, {"steps": "many"})
    said = crowdrt("table", "skt-3", "--records", path)
    assert said.code == 1
    assert f"{path}, line 2 is no whole training record: steps is 'many'" in said.err
    missing = crowdrt("table", "skt-3", "--records", tmp_path / "missing.jsonl")
    assert missing.code == 1
    assert "missing.jsonl cannot be read" in missing.err
    nothing = crowdrt("table", "skt-1", "--records", path)
    assert nothing.code == 1
    assert "table skt-1 prints no accuracy" in nothing.err
    several = crowdrt("table", "skt-8", "--records", path, "--records", path)
    assert several.code == 1
    assert "one file of records, not 2" in several.err
    unknown = crowdrt("table", "skt-10")
    assert unknown.code == 1
    assert "table 'skt-10' is unknown" in unknown.err
    assert "deepcount-9, dsla-2" in unknown.err
