"""The comparison as people and programs read it: terminal, Markdown, CSV, LaTeX, JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from crowdrt.benchmarks.labels import ABSENT, fixed, network_label, size_label
from crowdrt.benchmarks.tables.compression.judgement import LEVEL, Judged, neighbours
from crowdrt.benchmarks.tables.compression.printed import NAIVE, TEACHER
from crowdrt.benchmarks.tables.compression.rows import CompressionRow
from crowdrt.benchmarks.tables.formats import (
    NUMBER,
    PROSE,
    TEXT,
    Column,
    Sheet,
    csv_text,
    markdown_row,
)

HEADINGS = (
    "method",
    "form",
    "network",
    "MAE printed",
    "MAE ours",
    "RMSE printed",
    "RMSE ours",
    "budget",
    "params, M",
    "MACs, G",
    "file, MB",
    "CPU, ms",
    "GPU, ms",
    "peak, MiB",
    "verdict",
)
LEFT = ("method", "form", "network", "budget", "verdict")
# of a CSV file: keys of `--json`, what holds several figures taken apart
CSV_COLUMNS = (
    *("method", "kind", "form", "recipe", "start", "network", "width", "test", "num_images"),
    *("seeds", "printed_mae", "mean_mae", "std_mae", "printed_rmse", "mean_rmse", "std_rmse"),
    *("steps", "crops", "train_s", "search", "params", "macs", "file_bytes"),
    *("height_px", "width_px", "engine", "engine_version", "num_threads", "median_ms", "p90_ms"),
    *("num_samples", "gpu", "gpu_ms", "peak_mib", "timing", "on_front", "dominated_by", "verdict"),
    *("failure", "machine", "run_id", "sha256"),
)


def spread(mean: float | None, deviation: float | None) -> str:
    """Return `71.55 ± 0.42`, without a spread where there is one seed."""
    tail = "" if deviation is None else f" ± {deviation:.2f}"
    return ABSENT if mean is None else f"{mean:.2f}{tail}"


def scaled(value: float | None, unit: float, decimals: int = 2) -> str:
    """Return a figure in a larger unit."""
    return fixed(None if value is None else value / unit, decimals)


def network_of(row: CompressionRow) -> str:
    """Return `1/8-CSRNet`; what a pruned one was before, since its layers have no common width."""
    if not row.network:
        return ABSENT
    pruned = "pruning" in row.kind.split(" + ")
    return network_label(row.network, row.width) + ", pruned" * pruned


def budget(row: CompressionRow) -> str:
    """Return what one training took: `600 steps, 2,400 crops, 14.3 min`."""
    if row.steps is None or row.crops is None or row.minutes is None:
        return ABSENT
    seeds = f", {len(row.seeds)} seeds" if len(row.seeds) > 1 else ""
    after = f" after those of {row.start}" if row.start else ""
    found = f"{row.steps:,} steps{after}, {row.crops:,} crops, {row.minutes:.1f} min{seeds}"
    return f"{found}; searched {row.search}" if row.search else found


def texts(judged: Judged) -> tuple[str, ...]:
    """Return a row's cells, in the order of `HEADINGS`."""
    row, printed = judged.row, judged.row.printed
    return (
        row.method,
        row.form,
        network_of(row),
        printed.mae if printed else ABSENT,
        spread(row.mean_mae, row.spread_mae),
        printed.rmse if printed else ABSENT,
        spread(row.mean_rmse, row.spread_rmse),
        budget(row),
        scaled(row.params, 1e6, 3),
        scaled(row.macs, 1e9),
        scaled(row.file_bytes, 1e6),
        fixed(row.median_ms, 1),
        fixed(row.gpu_ms),
        fixed(row.peak_mib, 0),
        judged.verdict,
    )


def terminal_table(rows: Sequence[Judged]) -> Table:
    """Return the table for a terminal; rows of the front are bold, failed ones dim."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in LEFT else "right")
    for each in rows:
        style = "bold" if each.on_front else "dim" if each.row.failure else ""
        table.add_row(*(Text(cell) for cell in texts(each)), style=style)
    return table


def markdown(rows: Sequence[Judged]) -> str:
    """Return the table as Markdown with its notes below it; rows of the front are bold."""
    rule = "|" + "".join("---|" if name in LEFT else "--:|" for name in HEADINGS)
    lines = [markdown_row(HEADINGS), rule]
    for each in rows:
        method, form, *others = texts(each)
        mark = "**" if each.on_front else ""
        lines.append(markdown_row((f"{mark}{method}{mark}", f"{mark}{form}{mark}", *others)))
    return "\n".join([*lines, "", *(f"- {note}" for note in notes(rows))]) + "\n"


def as_csv(rows: Sequence[Judged]) -> str:
    """Return the rows as comma-separated values, not rounded."""
    return csv_text(CSV_COLUMNS, map(record_of, rows))


def record_of(judged: Judged) -> dict[str, Any]:
    """Return a row under `CSV_COLUMNS`."""
    row, printed = judged.row, judged.row.printed
    known = {name: value for name, value in asdict(row).items() if name in CSV_COLUMNS}
    return known | {
        "height_px": row.size[0],
        "width_px": row.size[1],
        "printed_mae": float(printed.mae) if printed else None,
        "mean_mae": row.mean_mae,
        "std_mae": row.spread_mae,
        "printed_rmse": float(printed.rmse) if printed else None,
        "mean_rmse": row.mean_rmse,
        "std_rmse": row.spread_rmse,
        "train_s": None if row.minutes is None else row.minutes * 60,
        "on_front": judged.on_front,
        "dominated_by": judged.dominated_by,
        "verdict": judged.verdict,
    }


def sheet(rows: Sequence[Judged], title: str) -> Sheet:
    """Return the table for LaTeX."""
    prose = ("budget", "verdict")
    columns = [
        Column(name, PROSE if name in prose else TEXT if name in LEFT else NUMBER)
        for name in HEADINGS
    ]
    return Sheet(title=title, columns=columns, lines=[*map(texts, rows)], notes=notes(rows))


def as_document(rows: Sequence[Judged]) -> dict[str, Any]:
    """Return everything that is known, as `--json` prints it."""
    return {
        "rows": [
            {
                **asdict(each.row),
                "mean_mae": each.row.mean_mae,
                "spread_mae": each.row.spread_mae,
                "printed": None if each.row.printed is None else each.row.printed._asdict(),
                "on_front": each.on_front,
                "dominated_by": each.dominated_by,
                "verdict": each.verdict,
            }
            for each in rows
        ],
        "ranking": [
            {
                "better": found.better.label,
                "worse": found.worse.label,
                "people": found.people,
                "test": found.test,
                "p": found.p,
                "exceeds_spread": found.exceeds,
                "every_seed_agrees": found.apart,
            }
            for found in neighbours([each.row for each in rows])
        ],
    }


def notes(judged: Sequence[Judged]) -> list[str]:
    """Return what stands below the table, the differences of the ranking too."""
    rows = [each.row for each in judged]
    engines = {f"{row.engine} {row.engine_version}" for row in rows if row.median_ms is not None}
    threads = {threads_of(row) for row in rows if row.median_ms is not None}
    machines = {row.machine for row in rows if row.machine}
    tests = {f"{row.test}, {row.num_images} images" for row in rows if row.mae}
    sizes = {size_label(row.size) for row in rows}
    found = [
        "printed: SKT's Table 5, on the paper's budget and networks, which its text does not say; "
        "quantized rows there are of full CSRNet, CP's has 6.89 M parameters, the others 1.02 M",
        f"ours: {', '.join(sorted(tests)) or 'nothing tested'}; mean ± sample standard deviation "
        "over seeds",
    ]
    if engines:
        found.append(
            f"CPU: medians of one interleaved race at {', '.join(sorted(sizes))}, of the seed that "
            f"is the median by validation: {', '.join(sorted(engines))}, "
            f"{', '.join(sorted(threads))}, {', '.join(sorted(machines))}; {samples_of(rows)}"
        )
        found.append(
            "front and dominance: rows of the same layers are one graph, and have the median of "
            "their latencies"
        )
    found += [f"GPU: {gpu}" for gpu in sorted({row.gpu for row in rows if row.gpu})]
    if tests and not any(row.is_naive for row in rows):
        found.append(f"no {NAIVE} was swept, so no row is held against one")
    ranking = neighbours(rows)
    if ranking:
        found.append(
            f"ranking by mean MAE; a difference exceeds the spread where p < {LEVEL:g}. With few "
            "seeds only large differences can: three against three that all agree, one way or "
            "the other, are one in ten by chance"
        )
    found += [each.said for each in ranking]
    most = max((len(row.seeds) for row in rows), default=0)
    found += [
        f"{row.label}: {len(row.seeds)} of {most} seeds"
        for row in rows
        if row.recipe and row.method != TEACHER and not row.failure and len(row.seeds) < most
    ]
    found += [
        f"{row.label}: timing {row.timing}" for row in rows if row.timing not in ("", "valid")
    ]
    return found + [
        f"{row.label}: seed {seed} failed: {why}"
        for row in rows
        for seed, why in row.lost_seeds.items()
        if not row.failure
    ]


def samples_of(rows: Sequence[CompressionRow]) -> str:
    """Return how many samples the medians are of: `24 to 26 samples each`."""
    found = {row.num_samples for row in rows if row.median_ms is not None}
    few, many = min(found), max(found)
    return f"{few} samples each" if few == many else f"{few} to {many} samples each"


def threads_of(row: CompressionRow) -> str:
    """Return `1 thread`, `2 threads`."""
    return f"{row.num_threads} thread{'s' * (row.num_threads != 1)}"
