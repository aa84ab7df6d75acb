"""Table 8 of SKT from our records: the printed column beside ours.

A ratio is the full network in PyTorch FP32 divided by the row, and both come from one race:
numbers of different runs are never divided by each other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from crowdrt.benchmarks.labels import engine_label, network_label
from crowdrt.benchmarks.tables.formats import csv_text
from crowdrt.benchmarks.tables.printed import SKT_TABLE_8, printed_cost, printed_row
from crowdrt.benchmarks.timing.statistics import uncertainty
from crowdrt.benchmarks.timing.verdict import has_failed
from crowdrt.contracts import Measurement, Size

EAGER, CHANNELS_LAST = "pytorch", "pytorch-channels-last"
ENGINE_ORDER = (
    *(EAGER, CHANNELS_LAST, "pytorch-compiled"),
    *("onnxruntime", "openvino", "tensorrt"),
)
PRECISION_ORDER = ("fp32", "fp16", "int8+fp16", "int8")
NVIDIA_DEVICE = Path("/dev/nvidia0")
# of a CSV file: keys of `--json`, what holds several figures taken apart and in whole units
CSV_COLUMNS = (
    *("network", "width", "engine", "engine_version", "form", "precision", "height_px", "width_px"),
    *("num_threads", "params", "macs", "paper_flops", "cpu_s", "cpu_p90_s", "cpu_ratio", "gpu_ms"),
    *("cpu_uncertainty", "channels_last_ratio"),
    *("gpu_ratio", "peak_mib", "num_samples", "runs_per_visit", "verdict", "printed_params"),
    "printed_flops",
    *("printed_cpu_s", "printed_cpu_ratio", "printed_gpu_ms", "printed_gpu_ratio"),
    *("ratio_reason", "gpu_reason", "gpu", "run_id"),
)


class Operations(NamedTuple):
    """A network's cost at one size, as `crowdrt.export.complexity` works it out."""

    params: int
    macs: int
    paper_flops: int


Complexity = Mapping[tuple[str, str, Size], Operations]  # by network, width and size


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One row. A figure that is None has its reason in the field of that name."""

    network: str
    width: str
    engine: str
    engine_version: str
    precision: str
    size: Size
    num_threads: int
    params: int | None  # None: complexity was not worked out, which needs torch
    macs: int | None
    paper_flops: int | None
    cpu_s: float | None  # median
    cpu_p90_s: float | None
    cpu_uncertainty: float | None  # half the median's 95 % interval, over the median; of six visits
    cpu_ratio: float | None
    channels_last_ratio: float | None  # the same over the full network in channels-last
    ratio_reason: str | None
    gpu_ms: float | None
    gpu_ratio: float | None
    gpu_reason: str | None
    peak_mib: float
    num_samples: int
    verdict: str
    run_id: str
    printed: Mapping[str, float]  # empty where the paper has no such row
    form: str = ""  # of a GPU row: eager, compiled, graph
    gpu: str = ""  # that it ran on
    runs_per_visit: int = 0  # 0: of a record from before visits were kept

    @property
    def label(self) -> str:
        """Return `1/4-CSRNet ONNX Runtime INT8`."""
        name = network_label(self.network, self.width)
        return f"{name} {self.engine_text} {self.precision.upper()}"

    @property
    def engine_text(self) -> str:
        """Return `ONNX Runtime`, `TensorRT graph`, `PyTorch compiled`."""
        return f"{engine_label(self.engine)} {self.form}".rstrip()

    def as_dict(self) -> dict[str, Any]:
        """Return the row as `--json` prints it."""
        return asdict(self)

    def as_record(self) -> dict[str, Any]:
        """Return the row under `CSV_COLUMNS`."""
        record = self.as_dict()
        record["height_px"], record["width_px"] = record.pop("size")
        printed = record.pop("printed")
        for name, in_units, unit in (("params", "params_m", 1e6), ("flops", "flops_g", 1e9)):
            if in_units in printed:
                record[f"printed_{name}"] = round(printed.pop(in_units) * unit)
        return record | {f"printed_{name}": value for name, value in printed.items()}


def table_rows(
    measurements: Sequence[Measurement], complexity: Complexity | None = None
) -> list[TableRow]:
    """Return the rows of the table, in the paper's order, engines from slow to fast kinds.

    Args:
        measurements: of any number of races; `newest` chooses where there are several.
        complexity: for as many rows as it is known; benchmarks cannot work it out themselves.
    """
    costs = complexity or {}
    rows = [
        _row(
            row,
            _teacher_of(row, measurements),
            _teacher_of(row, measurements, CHANNELS_LAST),
            costs.get((row.network, row.width, row.size)),
        )
        for row in measurements
    ]
    return sorted(rows, key=_paper_order)


def race_csv(rows: Sequence[TableRow]) -> str:
    """Return the rows of every size as comma-separated values."""
    return csv_text(CSV_COLUMNS, (row.as_record() for row in rows))


def newest(measurements: Sequence[Measurement]) -> list[Measurement]:
    """Return, for every network and size, the rows of its newest race.

    Run ids start with the time. A network's full form and students are raced together; other
    networks may have been raced before or after.
    """
    last: dict[tuple[str, Size], str] = {}
    for row in measurements:
        key = (row.network, row.size)
        last[key] = max(last.get(key, ""), row.run_id)
    return [row for row in measurements if row.run_id == last[row.network, row.size]]


def printed_cells(network: str, width: str, size: Size) -> dict[str, float]:
    """Return what the paper prints for this row, its ratios worked out; {} where nothing."""
    row, cost = printed_row(network, width), printed_cost(network, width, size)
    if row is None:
        return {}
    cells = {"params_m": row.params_m}
    teacher = printed_cost(network, "1", size)
    if cost is not None and teacher is not None:
        cells |= {"flops_g": cost.flops_g, "gpu_ms": cost.gpu_ms, "cpu_s": cost.cpu_s}
        cells["cpu_ratio"] = teacher.cpu_s / cost.cpu_s
        cells["gpu_ratio"] = teacher.gpu_ms / cost.gpu_ms
    return cells


def _row(
    row: Measurement,
    teacher: Measurement | None,
    last: Measurement | None,
    cost: Operations | None,
) -> TableRow:
    timed = bool(row.samples_ms) and not has_failed(row.verdict)
    on_gpu = bool(row.compute_ms) or row.engine == "tensorrt"
    on_cpu = timed and not on_gpu
    cpu_s = row.median_ms / 1000 if on_cpu else None
    ratio = teacher.median_ms / row.median_ms if on_cpu and teacher else None
    over_last = last.median_ms / row.median_ms if on_cpu and last else None
    gpu_ms = _compute_ms(row) if timed and on_gpu else None
    of_teacher = _compute_ms(teacher) if teacher else None
    return TableRow(
        network=row.network,
        width=row.width,
        engine=row.engine,
        engine_version=row.engine_version,
        precision=row.precision,
        size=row.size,
        num_threads=row.num_threads,
        params=cost.params if cost else None,
        macs=cost.macs if cost else None,
        paper_flops=cost.paper_flops if cost else None,
        cpu_s=cpu_s,
        cpu_p90_s=row.percentile_ms(90) / 1000 if on_cpu else None,
        cpu_uncertainty=uncertainty(row.samples_ms, row.runs_per_visit) if on_cpu else None,
        cpu_ratio=ratio,
        channels_last_ratio=over_last,
        ratio_reason=None if ratio else _why_no_ratio(timed),
        gpu_ms=gpu_ms,
        gpu_ratio=of_teacher / gpu_ms if of_teacher and gpu_ms else None,
        gpu_reason=None if on_gpu else _why_no_gpu(),
        peak_mib=row.peak_mib,
        num_samples=len(row.samples_ms),
        verdict=row.verdict,
        run_id=row.run_id,
        printed=printed_cells(row.network, row.width, row.size),
        form=_form(row) if on_gpu else "",
        gpu=str(row.machine.get("gpu", "")) if on_gpu else "",
        runs_per_visit=row.runs_per_visit,
    )


def _compute_ms(row: Measurement) -> float | None:
    """Return the median of what the GPU computed, as the paper's column has it: no copies."""
    return float(np.median(row.compute_ms)) if row.compute_ms else None


def _form(row: Measurement) -> str:
    """Return what tells a campaign's rows apart: between engine and size in their names."""
    words = row.name.split()
    between = words[words.index(row.engine) + 1 : -1] if row.engine in words else []
    return " ".join(word for word in between if word != row.precision)


def _teacher_of(
    row: Measurement, measurements: Sequence[Measurement], engine: str = EAGER
) -> Measurement | None:
    """Return the full network in PyTorch FP32 of the same race, if it was measured; not in TF32."""
    wanted = (row.run_id, row.size, row.network, "1", engine, "fp32")
    for other in measurements:
        found = (other.run_id, other.size, other.network, other.width, other.engine)
        if "tf32" in other.name:
            continue
        if (*found, other.precision) == wanted and other.samples_ms:
            return None if has_failed(other.verdict) else other
    return None


def _why_no_ratio(timed: bool) -> str:
    if not timed:
        return "the row failed"
    return "the full network in PyTorch FP32 was not measured in this race"


def _why_no_gpu() -> str:
    return "no GPU engine was raced" if NVIDIA_DEVICE.exists() else "no CUDA device"


def _paper_order(row: TableRow) -> tuple[object, ...]:
    printed = [(p.network, p.width) for p in SKT_TABLE_8]
    return (
        row.size[0] * row.size[1],
        _place((row.network, row.width), printed),
        _place(row.engine, ENGINE_ORDER),
        _place(row.precision, PRECISION_ORDER),
    )


def _place(item: object, order: Sequence[object]) -> int:
    return order.index(item) if item in order else len(order)
