"""`crowdrt sensitivity`: which layers INT8 costs counts, and a network repaired by that."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from crowdrt.calibration.sensitivity.judge import CountError
from crowdrt.calibration.sensitivity.plot import write_plot
from crowdrt.calibration.sensitivity.rank import Layer, rank
from crowdrt.calibration.sensitivity.repair import Repair, repair, write_repaired
from crowdrt.calibration.sensitivity.search import Search, SensitivityConfig
from crowdrt.console import show_table
from crowdrt.contracts import Artifact, Sample
from crowdrt.lazy import check_installed
from crowdrt.pipeline.stages import as_json

__all__ = ["Findings", "SensitivityConfig", "findings_as_json", "sensitivity_stage"]


@dataclass(frozen=True)
class Findings:
    """What the search found, and what it wrote."""

    search: Search
    layers: Sequence[Layer]  # the most harmful first
    repaired: Repair | None
    artifact: Artifact | None  # the repaired network
    plot: Path | None


def sensitivity_stage(
    onnx_path: Path,
    samples: Sequence[Sample],
    config: SensitivityConfig,
    *,
    out: Path | None = None,
    plot: Path | None = None,
    records: Path | None = None,
    num_threads: int = 0,
) -> Findings:
    """Rank the layers of a float network; with `out`, repair it and write it there."""
    if plot is not None:
        check_installed("matplotlib", extra="report")
    search = Search(onnx_path, samples, config, records=records, num_threads=num_threads)
    layers = rank(search)
    search.trial(search.plan.convs)
    try:
        found = None if out is None else repair(search, layers)
    finally:  # what is known is worth drawing when the repair fails
        if plot is not None:
            write_plot(layers, plot)
    artifact = None
    if found is not None and out is not None:
        artifact = write_repaired(search, found, out)
        if plot is not None and found.kept:
            write_plot(layers, plot, found.kept)
    return Findings(search, layers, found, artifact, plot)


def findings_as_json(found: Findings) -> dict[str, Any]:
    """Return everything that was found."""
    search, convs = found.search, found.search.plan.convs
    return {
        "onnx": str(search.onnx_path),
        "records": str(search.journal.path),
        "plot": None if found.plot is None else str(found.plot),
        **search.facts(),
        "layers": [layer.facts() for layer in found.layers],
        "every_layer": error_facts(search, convs),
        "repair": None if found.repaired is None else found.repaired.facts(),
        "artifact": None if found.artifact is None else as_json(found.artifact),
    }


def error_facts(search: Search, int8: Sequence[str]) -> dict[str, Any]:
    """Return what some convolutions in INT8 together do."""
    return {
        **asdict(search.error(int8)),
        "sqnr_db": search.trial(int8).sqnr_db,
        "int8_macs": search.share(int8),
    }


def show_findings(found: Findings) -> None:
    """Print the layers for people, the most harmful first, and what the repair did."""
    search = found.search
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for head in headings(search):
        table.add_column(head, justify="left" if head == "in INT8" else "right")
    for layer in found.layers:
        cells = row(search, layer.macs_share, layer.error, layer.sqnr_db)
        table.add_row(Text(layer.name), *cells)
    together = [("every layer", search.plan.convs)]
    if found.repaired is not None and found.repaired.kept:
        together.append((f"all but {len(found.repaired.kept)}", found.repaired.int8))
    for name, int8 in together:
        cells = row(search, search.share(int8), search.error(int8), search.trial(int8).sqnr_db)
        table.add_row(Text(name, style="bold"), *cells)
    show_table(table)


def headings(search: Search) -> list[str]:
    """Return the table's first line."""
    annotated = [] if search.annotated is None else ["MAE"]
    return ["in INT8", "MACs", "count error", "mean change", *annotated, "SQNR"]


def row(search: Search, share: float, error: CountError, sqnr_db: float | None) -> list[str]:
    """Return the numbers of one line."""
    mae = [] if search.annotated is None else [f"{error.mae_change or 0:+.2%}"]
    noise = "exact" if sqnr_db is None else f"{sqnr_db:.1f} dB"
    return [f"{share:.2%}", f"{error.change:.2%}", f"{error.bias:+.2%}", *mae, noise]


def describe_repair(found: Findings) -> str:
    """Return in one line what the repaired network is."""
    assert found.repaired is not None
    repaired, config = found.repaired, found.search.config
    measure = "change of the count" if repaired.error.mae_change is None else "change of the MAE"
    error = f"{measure} {repaired.error.judged_by:.2%} ({config.tolerance:.2%} is tolerated)"
    if not repaired.kept:
        return f"nothing has to stay float: {error}"
    options = " ".join(f"--keep-float {name}" for name in repaired.kept)
    return f"{error}, {repaired.int8_macs:.1%} of the MACs in INT8; by hand: {options}"
