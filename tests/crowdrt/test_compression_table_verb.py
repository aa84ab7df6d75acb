"""crowdrt table skt-5: the printed rows, ours where they were run, and nothing else."""

import pytest

from crowdrt.benchmarks.tables.compression.printed import SKT_TABLE_5
from crowdrt.benchmarks.tables.compression.rows import CompressionRow, row_line
from crowdrt.pipeline.tables import compression

SKT = CompressionRow(
    method="SKT",
    kind="distillation",
    form="fp32",
    recipe="skt-3-cosine-dense-fsp-cpu",
    network="csrnet",
    width="1/8",
    test="ShanghaiTech part_A test",
    num_images=182,
    seeds=(0, 1),
    mae=(150.0, 152.0),
    rmse=(240.0, 244.0),
    size=(576, 864),
)


@pytest.fixture(autouse=True)
def _no_results(monkeypatch, tmp_path):
    monkeypatch.setattr(compression, "COMPRESSION_RECORDS", tmp_path / "compression.jsonl")


def test_without_records_every_row_is_printed_and_none_is_ours(crowdrt):
    rows = crowdrt("table", "skt-5", "--json").json()["rows"]
    assert [row["method"] for row in rows] == list(SKT_TABLE_5)
    assert {row["verdict"] for row in rows} == {"not run"}
    assert {row["mean_mae"] for row in rows} == {None}
    assert [row["printed"]["mae"] for row in rows][-1] == "71.55"


def test_ours_stands_beside_what_is_printed(crowdrt, tmp_path):
    (tmp_path / "compression.jsonl").write_text(row_line(SKT) + "\n")
    text = crowdrt("table", "skt-5", "--markdown").out
    assert "151.00 ± 1.41 | 114.40 | 242.00 ± 2.83" in text
    assert "| AB | fp32 | – | 75.73 | – | 123.28 | – |" in text
    assert text.count("not run") == len(SKT_TABLE_5) - 1
    assert "SKT, Table 5" in crowdrt("table", "skt-5").out


def test_several_comparisons_are_never_one_table(crowdrt, tmp_path):
    path = tmp_path / "other.jsonl"
    path.write_text(row_line(SKT) + "\n")
    answer = crowdrt("table", "skt-5", "--records", path, "--records", path)
    assert answer.code == 1
    assert "one comparison, not 2" in answer.err
    assert crowdrt("table", "skt-5", "--records", tmp_path / "none").code == 1
    assert "skt-4, skt-5, skt-6" in crowdrt("table", "skt-10").err


def test_printed_rows_are_the_papers():
    """Digit by digit as Table 5 prints them, in its order."""
    rows = [(name, row.mae, row.rmse) for name, row in SKT_TABLE_5.items()]
    assert len(rows) == 13
    assert rows[1] == ("naive student", "89.65", "146.40")
    assert rows[2:4] == [("DoReFa", "80.02", "124.1"), ("QAT", "75.50", "128.09")]
    assert all(float(rmse) > float(mae) for _, mae, rmse in rows)
