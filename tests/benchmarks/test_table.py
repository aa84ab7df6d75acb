import json
from dataclasses import replace

import pytest
from examples import COSTS, a_race, measured
from rich.console import Console

from crowdrt.benchmarks.tables.printed import (
    SIZES,
    SKT_TABLE_8,
    printed_cost,
    printed_row,
)
from crowdrt.benchmarks.tables.render import markdown_table, print_table
from crowdrt.benchmarks.tables.table import newest, printed_cells, table_rows

A = (576, 864)


def test_the_printed_table_is_whole():
    assert len(SKT_TABLE_8) == 8
    assert all(set(row.costs) == set(SIZES) for row in SKT_TABLE_8)


def test_printed_cells_lie_where_the_paper_has_them():
    # the paper's text: "1/4-BL+SKT only requires 90.96 milliseconds on GPU and 9.78 seconds on
    # CPU, being 6.5/13.4x faster than the original BL model"
    cells = printed_cells("bl", "1/4", (2032, 2912))
    assert (cells["gpu_ms"], cells["cpu_s"]) == (90.96, 9.78)
    assert round(cells["gpu_ratio"], 1) == 6.5
    assert round(cells["cpu_ratio"], 1) == 13.4
    # "7.5x speed-up" on the GPU and "9.0x" on the CPU for 1/4-CSRNet at 576x864
    cells = printed_cells("csrnet", "1/4", A)
    assert round(cells["gpu_ratio"], 1) == 7.5
    assert round(cells["cpu_ratio"], 1) == 9.0


def test_students_are_cheaper_at_every_size():
    for size in SIZES:
        for network in ("csrnet", "bl", "sanet"):
            full, student = printed_cost(network, "1", size), printed_cost(network, "1/4", size)
            assert full.flops_g / student.flops_g > 13
            assert full.gpu_ms > student.gpu_ms
            assert full.cpu_s > student.cpu_s
    areas = sorted(SIZES, key=lambda size: size[0] * size[1])
    for row in SKT_TABLE_8:
        flops = [row.costs[size].flops_g for size in areas]
        assert flops == sorted(flops)


def test_what_the_paper_does_not_print_is_absent():
    assert printed_cost("csrnet", "1/3", A) is None
    assert printed_cost("csrnet", "1", (64, 64)) is None
    assert printed_cells("mcnn", "1", A) == {}
    assert printed_cells("csrnet", "1", (64, 64)) == {"params_m": 16.26}
    assert printed_row("sanet", "1/4").params_decimals == 3


def by_name(rows):
    return {(row.network, row.width, row.engine, row.precision): row for row in rows}


def test_ratios_are_of_the_full_network_in_the_same_race():
    rows = by_name(table_rows(a_race(), COSTS))
    int8 = rows["csrnet", "1/4", "onnxruntime", "int8"]
    assert int8.cpu_s == pytest.approx(0.113)
    assert int8.cpu_ratio == pytest.approx(3955 / 113)
    assert int8.ratio_reason is None
    assert int8.params == 1_017_681
    assert int8.printed["cpu_s"] == 0.87
    assert rows["csrnet", "1", "pytorch", "fp32"].cpu_ratio == 1.0


def test_the_teacher_in_channels_last_is_a_second_measure():
    """Faster than eager, so that every ratio over it is smaller; nothing else changes."""
    last = measured("csrnet", "1", "pytorch-channels-last", 3107.0)
    rows = table_rows([*a_race(), last], COSTS)
    found = by_name(rows)
    int8 = found["csrnet", "1/4", "onnxruntime", "int8"]
    assert int8.channels_last_ratio == pytest.approx(3107 / 113)
    assert int8.cpu_ratio == pytest.approx(3955 / 113)
    assert found["csrnet", "1", "pytorch-channels-last", "fp32"].cpu_ratio > 1.2
    assert [row.engine for row in rows[:2]] == ["pytorch", "pytorch-channels-last"]
    note = "Over CSRNet in PyTorch channels-last: 1/4-CSRNet ONNX Runtime INT8 27.5x."
    assert note in markdown_table(rows)
    assert "channels-last" not in markdown_table(table_rows(a_race(), COSTS))


def test_a_row_says_how_far_its_time_is_known():
    one = replace(measured("csrnet", "1/4", "onnxruntime", 100.0, num_samples=11), runs_per_visit=1)
    (row,) = table_rows([one])  # 90, 92 ... 110
    assert row.cpu_uncertainty == pytest.approx((108 - 92) / 2 / 100)
    assert row.as_record()["cpu_uncertainty"] == row.cpu_uncertainty
    (row,) = table_rows([replace(one, samples_ms=one.samples_ms[:5])])
    assert row.cpu_uncertainty is None


def on_gpu(width, engine, form, compute_ms, **changes):
    row = measured("csrnet", width, engine, 2 * compute_ms, precision="fp16")
    return replace(
        row,
        name=f"csrnet {width} {engine} {form} 576x864",
        compute_ms=(compute_ms,) * 3,
        machine={**row.machine, "gpu": "NVIDIA H200"},
        **changes,
    )


def a_gpu_race():
    return [
        on_gpu("1/4", "tensorrt", "fp16 graph", 0.25),
        on_gpu("1/4", "tensorrt", "fp16", 0.5),
        on_gpu("1", "pytorch", "eager tf32", 6.0, precision="fp32"),
        on_gpu("1", "pytorch", "eager fp32", 12.0, precision="fp32"),
        on_gpu("1/4", "pytorch", "compiled fp16", 1.0),
        replace(on_gpu("1/4", "tensorrt", "int8", 1.0), compute_ms=(), samples_ms=(),
                precision="int8", verdict="failed: no kernel"),
    ]  # fmt: skip


def test_a_gpu_row_has_its_computing_time_and_its_ratio_to_fp32_without_tf32():
    rows = {row.label: row for row in table_rows(a_gpu_race(), COSTS)}
    graph = rows["1/4-CSRNet TensorRT graph FP16"]
    assert (graph.gpu_ms, graph.gpu_ratio, graph.cpu_s, graph.cpu_ratio) == (0.25, 48.0, None, None)
    assert rows["CSRNet PyTorch eager tf32 FP32"].gpu_ratio == 2.0
    assert rows["1/4-CSRNet PyTorch compiled FP16"].gpu_ratio == 12.0
    assert rows["1/4-CSRNet TensorRT INT8"].gpu_ms is None
    assert {row.gpu_reason for row in rows.values()} == {None}
    text = markdown_table(list(rows.values()))
    line = next(line for line in text.splitlines() if "TensorRT graph" in line)
    assert "| 7.5x | **48.0x** | 8.88 | **0.25** |" in line
    assert "NVIDIA H200, what it computed by its own clock" in text


def test_another_race_another_size_or_a_failed_teacher_give_no_ratio():
    student = measured("csrnet", "1/4", "onnxruntime", 100)
    teacher = measured("csrnet", "1", "pytorch", 4000)
    for other in (
        replace(teacher, run_id="20200101T000000Z-000000"),
        replace(teacher, size=(768, 1024)),
        replace(teacher, engine="onnxruntime"),
        replace(teacher, verdict="failed: died"),
        replace(teacher, samples_ms=()),
    ):
        row = by_name(table_rows([student, other]))["csrnet", "1/4", "onnxruntime", "fp32"]
        assert row.cpu_ratio is None
        assert "not measured in this race" in row.ratio_reason


def test_a_missing_figure_has_a_reason():
    failed = by_name(table_rows(a_race()))["bl", "1", "pytorch", "fp32"]
    assert (failed.cpu_s, failed.cpu_ratio, failed.ratio_reason) == (None, None, "the row failed")
    assert failed.gpu_ms is None
    assert failed.gpu_reason
    assert failed.params is None


def test_rows_come_in_the_papers_order():
    rows = table_rows([*a_race(), measured("mcnn", "1", "onnxruntime", 50)])
    order = [(row.network, row.width, row.precision) for row in rows]
    assert order == [
        ("csrnet", "1", "fp32"),
        ("bl", "1", "fp32"),
        ("csrnet", "1/4", "fp32"),
        ("csrnet", "1/4", "int8"),
        ("sanet", "1/4", "fp32"),
        ("mcnn", "1", "fp32"),
    ]


def test_the_newest_race_of_each_network_and_size_is_taken():
    old = measured("csrnet", "1", "pytorch", 1, run_id="20261120T000000Z-ffffff")
    new = measured("csrnet", "1", "pytorch", 2, run_id="20261121T000000Z-000000")
    larger = measured("csrnet", "1", "pytorch", 3, run_id="20261101T000000Z-0", size=(768, 1024))
    before = measured("bl", "1", "pytorch", 4, run_id="20261101T000000Z-1")
    assert newest([new, old, larger, before]) == [new, larger, before]


def test_json_has_the_agreed_keys():
    rows = json.loads(json.dumps([row.as_dict() for row in table_rows(a_race(), COSTS)]))
    agreed = {
        *("network", "width", "engine", "precision", "size", "params", "macs", "paper_flops"),
        *("cpu_s", "gpu_ms", "cpu_ratio", "gpu_ratio", "peak_mib", "verdict", "printed"),
    }
    assert agreed | {"gpu_reason"} <= set(rows[0])
    assert rows[0]["size"] == [576, 864]
    assert set(rows[0]["printed"]) >= {"params_m", "flops_g", "gpu_ms", "cpu_s", "cpu_ratio"}


GOLDEN = """\
### 576x864

| Network | Engine | Precision | Params, M: paper | ours | FLOPs, G: paper | ours |\
 CPU, s: paper | ours | Speed-up: paper | ours | GPU, ms: paper | ours | Peak, MiB | Verdict |
|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|
| CSRNet | PyTorch | FP32 | 16.26 | **16.26** | 205.88 | **205.88** | 7.85 | **3.96** |\
 1.0x | **1.0x** | 66.58 | **–** | 742 | valid |
| 1/4-CSRNet | ONNX Runtime | INT8 | 1.02 | **1.02** | 13.09 | **13.09** | 0.87 | **0.113** |\
 9.0x | **35.0x** | 8.88 | **–** | 742 | unstable |

- paper: GTX 1080, 2.4 GHz Xeon E5. ours: ONNX Runtime 1.31.1, PyTorch 2.13.0, 2 threads, batch 1,\
 uint8 image in memory to count in memory; medians of interleaved runs.
- Speed-up: the full network in PyTorch FP32 over the row, within one race.
- GPU, ours: not measured, no CUDA device.
- 1/4-CSRNet ONNX Runtime INT8: unstable: a \\| b
"""


def test_markdown(monkeypatch):
    monkeypatch.setattr("crowdrt.benchmarks.tables.table._why_no_gpu", lambda: "no CUDA device")
    student = measured(
        "csrnet", "1/4", "onnxruntime", 113, precision="int8", verdict="unstable: a | b"
    )
    rows = table_rows([student, measured("csrnet", "1", "pytorch", 3955)], COSTS)
    assert markdown_table([replace(row, runs_per_visit=1) for row in rows]) == GOLDEN


@pytest.mark.parametrize("width", [120, 60])
def test_a_terminal_shows_every_figure_whole(width, capsys):
    sizes = [A, (2032, 2912)]
    rows = table_rows([replace(row, size=size) for row in a_race() for size in sizes], COSTS)
    print_table(rows, Console(width=width, force_terminal=True, color_system=None))
    text = capsys.readouterr().out
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for figure in ("16.26", "205.88", "2447.91", "0.113", "35.0x", "742", "failed", "0.058"):
        assert figure in text
    assert "others used 8 % of the CPU" in " ".join(text.split())


def test_a_pipe_gets_the_wide_table(capsys):
    print_table(table_rows(a_race(), COSTS), Console(width=80))
    lines = capsys.readouterr().out.splitlines()
    assert any("1/4-CSRNet" in line and "0.113" in line and "35.0x" in line for line in lines)


def test_records_from_before_visits_were_kept_do_not_claim_todays_verdict():
    old = table_rows([measured("csrnet", "1", "pytorch", 100.0),
                      measured("csrnet", "1/4", "onnxruntime", 9.0)], COSTS)  # fmt: skip
    note = "Verdict by the rules before visits were kept; race anew: "
    assert note + "all rows." in markdown_table(old)
    new = [replace(row, runs_per_visit=1) for row in old]
    assert note + "CSRNet PyTorch FP32." in markdown_table([old[0], new[1]])
    assert note not in markdown_table(new)
