"""The table as people read it: in a terminal, as Markdown, and in a paper."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement as Measured
from rich.table import Table
from rich.text import Text

from crowdrt.benchmarks.labels import (
    ABSENT,
    engine_label,
    fixed,
    network_label,
    significant,
    size_label,
    times,
)
from crowdrt.benchmarks.tables.formats import TEXT, Column, Sheet, markdown_row, markdown_text
from crowdrt.benchmarks.tables.printed import CPU, GPU, printed_row
from crowdrt.benchmarks.tables.table import TableRow
from crowdrt.contracts import Size

PIPE_WIDTH = 120  # of a table that goes into a file or another program
STYLES = {"valid": "green", "failed": "red"}


@dataclass(frozen=True)
class Pair:
    """A printed figure and ours, as text."""

    paper: str
    ours: str


@dataclass(frozen=True, kw_only=True)
class Cells:
    """One row as text; every renderer starts from this."""

    network: str
    engine: str
    precision: str
    params_m: Pair
    flops_g: Pair
    cpu_s: Pair
    speed_up: Pair
    gpu_ms: Pair
    peak_mib: str
    verdict: str  # its first word; the reasons are in the notes


PAIRS = {
    "params_m": "Params, M",
    "flops_g": "FLOPs, G",
    "cpu_s": "CPU, s",
    "speed_up": "Speed-up",
    "gpu_ms": "GPU, ms",
}


def cells(row: TableRow) -> Cells:
    """Return the row's text, with as many digits as the paper prints."""
    paper = row.printed
    printed = printed_row(row.network, row.width)
    decimals = printed.params_decimals if printed else 2
    device = "gpu" if row.gpu_reason is None else "cpu"  # whose ratio it is
    return Cells(
        network=network_label(row.network, row.width),
        engine=row.engine_text,
        precision=row.precision.upper(),
        params_m=Pair(fixed(paper.get("params_m"), decimals), _scaled(row.params, 6, decimals)),
        flops_g=Pair(fixed(paper.get("flops_g")), _scaled(row.paper_flops, 9, 2)),
        cpu_s=Pair(fixed(paper.get("cpu_s")), significant(row.cpu_s)),
        speed_up=Pair(times(paper.get(f"{device}_ratio")), times(row.cpu_ratio or row.gpu_ratio)),
        gpu_ms=Pair(fixed(paper.get("gpu_ms")), fixed(row.gpu_ms)),
        peak_mib=f"{row.peak_mib:.0f}" if row.num_samples else ABSENT,
        verdict=row.verdict.partition(":")[0],
    )


def notes(rows: Sequence[TableRow]) -> list[str]:
    """Return what a reader must know beside the figures, every reason for a missing one too."""
    first = rows[0]
    engines = {f"{engine_label(r.engine)} {r.engine_version}" for r in rows}
    lines = [
        f"paper: {GPU}, {CPU}. ours: {', '.join(sorted(engines))}, {first.num_threads} threads,"
        " batch 1, uint8 image in memory to count in memory; medians of interleaved runs.",
        "Speed-up: the full network in PyTorch FP32 over the row, within one race.",
    ]
    lines += [
        f"Over {network_label(row.network, '1')} in PyTorch channels-last: {row.label} "
        f"{times(row.channels_last_ratio)}."
        for row in _fastest(rows)
        if row.channels_last_ratio
    ]
    lines += [
        f"GPU, ours: {gpu}, what it computed by its own clock, copies left out; Speed-up likewise."
        for gpu in sorted({r.gpu for r in rows if r.gpu})
    ]
    lines += [
        f"GPU, ours: not measured, {why}."
        for why in sorted({r.gpu_reason for r in rows if r.gpu_reason})
    ]
    missing = sorted({r.ratio_reason for r in rows if r.ratio_reason and r.cpu_s})
    lines += [f"Speed-up {ABSENT}: {why}." for why in missing]
    old = [row.label for row in rows if row.num_samples and not row.runs_per_visit]
    if old:
        which = "all rows" if len(old) == len(rows) else ", ".join(old)
        lines.append(f"Verdict by the rules before visits were kept; race anew: {which}.")
    return lines + [f"{row.label}: {row.verdict}" for row in rows if row.verdict != "valid"]


def _fastest(rows: Sequence[TableRow]) -> list[TableRow]:
    """Return, of every network, the row that takes the least time on the CPU."""
    best: dict[str, TableRow] = {}
    for row in sorted((r for r in rows if r.cpu_s), key=lambda r: r.cpu_s or 0.0):
        best.setdefault(row.network, row)
    return list(best.values())


def print_table(rows: Sequence[TableRow], console: Console) -> None:
    """Print one table per size; where the terminal is too narrow for it, one block per row."""
    if not console.is_terminal:
        console = Console(file=console.file, width=max(console.width, PIPE_WIDTH))
    for size, group in groupby(rows, key=lambda row: row.size):
        of_size = list(group)
        table = _wide(of_size)
        console.print(Text(_title(size), style="bold"))
        needed = Measured.get(console, console.options.update(width=1000), table).maximum
        console.print(table if needed <= console.width else _blocks(of_size))
        for line in notes(of_size):
            console.print(Text(line, style="dim"))
        console.print()


def markdown_table(rows: Sequence[TableRow]) -> str:
    """Return the same tables as Markdown."""
    parts = []
    for size, group in groupby(rows, key=lambda row: row.size):
        of_size = list(group)
        parts.append("\n".join([f"### {size_label(size)}", "", *_markdown(of_size)]))
        parts.append("\n".join(f"- {markdown_text(line)}" for line in notes(of_size)))
    return "\n\n".join(parts) + "\n"


def race_sheets(rows: Sequence[TableRow]) -> list[Sheet]:
    """Return the same tables for LaTeX, one per size."""
    pairs = [Column(whose, group=title) for title in PAIRS.values() for whose in ("paper", "ours")]
    names = (Column("Network", TEXT), Column("Engine", TEXT))
    return [
        Sheet(
            title=_title(size),
            columns=[*names, *pairs, Column("Peak, MiB"), Column("Verdict", TEXT)],
            lines=[_line(cells(row)) for row in of_size],
            notes=notes(of_size),
        )
        for size, group in groupby(rows, key=lambda row: row.size)
        for of_size in [list(group)]
    ]


def _title(size: Size) -> str:
    return f"SKT Table 8 at {size_label(size)} px (height x width)"


def _line(text: Cells) -> list[str]:
    pairs = [getattr(text, name) for name in PAIRS]
    figures = [part for pair in pairs for part in (pair.paper, pair.ours)]
    engine = f"{text.engine} {text.precision}"
    return [text.network, engine, *figures, text.peak_mib, text.verdict]


def _wide(rows: Sequence[TableRow]) -> Table:
    texts = [cells(row) for row in rows]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False, collapse_padding=True)
    table.add_column("\nNetwork", no_wrap=True)
    table.add_column("\nEngine", no_wrap=True)
    widths = {name: _widths([getattr(text, name) for text in texts]) for name in PAIRS}
    for name, title in PAIRS.items():
        header = _pair(Pair("paper", "ours"), widths[name])
        table.add_column(Text(f"{title}\n") + header, justify="right", no_wrap=True)
    table.add_column("Peak\nMiB", justify="right", no_wrap=True)
    table.add_column("\nVerdict", no_wrap=True)
    for text in texts:
        pairs = [_pair(getattr(text, name), widths[name], style="bold") for name in PAIRS]
        engine = f"{text.engine} {text.precision}"
        table.add_row(text.network, engine, *pairs, text.peak_mib, _verdict(text))
    return table


def _blocks(rows: Sequence[TableRow]) -> RenderableType:
    lines = []
    for row in rows:
        text = cells(row)
        lines.append(Text.assemble("\n", (row.label, "bold"), "  ", _verdict(text)))
        for name, title in PAIRS.items():
            pair = getattr(text, name)
            lines.append(
                Text.assemble(
                    f"  {title:10}", (f"{pair.ours:>9}", "bold"), f"   paper {pair.paper}"
                )
            )
        lines.append(Text.assemble("  Peak, MiB ", (f"{text.peak_mib:>9}", "bold")))
    return Group(*lines, "")


def _verdict(text: Cells) -> Text:
    return Text(text.verdict, style=STYLES.get(text.verdict, "yellow"))


def _markdown(rows: Sequence[TableRow]) -> list[str]:
    titles = ["Network", "Engine", "Precision"]
    titles += [half for title in PAIRS.values() for half in (f"{title}: paper", "ours")]
    titles += ["Peak, MiB", "Verdict"]
    lines = [markdown_row(titles), f"|---|---|---|{'--:|' * (2 * len(PAIRS) + 1)}---|"]
    for text in map(cells, rows):
        pairs = [getattr(text, name) for name in PAIRS]
        figures = [part for pair in pairs for part in (pair.paper, f"**{pair.ours}**")]
        columns = [text.network, text.engine, text.precision, *figures, text.peak_mib]
        lines.append(markdown_row([*columns, text.verdict]))
    return lines


def _widths(pairs: Sequence[Pair]) -> tuple[int, int]:
    """Return the widths of the two halves of a column; ours is left out where it is empty."""
    paper = max(len("paper"), *(len(pair.paper) for pair in pairs))
    if all(pair.ours == ABSENT for pair in pairs):
        return paper, 0
    return paper, max(len("ours"), *(len(pair.ours) for pair in pairs))


def _pair(pair: Pair, widths: tuple[int, int], *, style: str = "") -> Text:
    paper, ours = widths
    if not ours:
        return Text(f"{pair.paper:>{paper}}")
    return Text.assemble(f"{pair.paper:>{paper}} ", (f"{pair.ours:>{ours}}", style))


def _scaled(value: int | None, power: int, decimals: int) -> str:
    return fixed(None if value is None else value / 10**power, decimals)
