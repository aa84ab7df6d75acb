"""The tables of the papers that need no stopwatch: parameters and operations, cell by cell."""

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

from crowdrt.benchmarks.labels import network_label, size_label
from crowdrt.benchmarks.tables.cells import (
    Cell,
    cells_table,
    matched,
    notes_of,
)
from crowdrt.benchmarks.tables.printed import (
    SHANGHAITECH_A,
    SIZES,
    SKT_TABLE_1,
    SKT_TABLE_2,
    SKT_TABLE_8,
    UCF_QNRF,
    PrintedRow,
)
from crowdrt.console import show_table, tell
from crowdrt.contracts import Size
from crowdrt.pipeline.tables.deepcount import deepcount_3, deepcount_6, deepcount_7
from crowdrt.pipeline.tables.dsla import dsla_5

SWAPPED = (
    "comes out with height and width exchanged, as the printed row must have been worked out; "
    "as they are, 2032x2912 costs 29.89"
)
SANET = (
    "contains the papers' counters' slip (the bias of a transposed convolution counted on height x "
    "height) and a map that grows by 7 px at the border"
)
DSSINET = (
    "leaves out an eighth of the work: the counter does not see the convolutions of message "
    "passing, decoder and fusion"
)
CUT_OFF = "printed cut off, where every other cell is rounded: 647,489 parameters are 0.65 M"
CAVEATS: Mapping[tuple[str, str], str] = {
    ("sanet", "1"): SANET,
    ("sanet", "1/4"): SWAPPED,
    ("dssinet", "1"): DSSINET,
}


def skt_1() -> list[Cell]:
    """SKT, Table 1: the cost at 2032x2912; its other columns are errors and times."""
    return [cell for row in SKT_TABLE_1 for cell in costs_of_row(row, (UCF_QNRF,))]


def skt_2() -> list[Cell]:
    """SKT, Table 2: CSRNet at five widths."""
    return [
        cell
        for width, (params, flops) in SKT_TABLE_2.items()
        for cell in costs_of("csrnet", width, params, {SHANGHAITECH_A: flops})
    ]


def skt_8() -> list[Cell]:
    """SKT, Table 8: all eight rows at four sizes; its times take a race to measure."""
    return [cell for row in SKT_TABLE_8 for cell in costs_of_row(row, SIZES)]


def costs_of_row(row: PrintedRow, sizes: Sequence[Size]) -> list[Cell]:
    """Return the cells of a row of Table 8 at some of its sizes."""
    params = f"{row.params_m:.{row.params_decimals}f}"
    flops = {size: f"{row.costs[size].flops_g:.2f}" for size in sizes}
    return costs_of(row.network, row.width, params, flops)


def costs_of(network: str, width: str, params: str, flops: Mapping[Size, str]) -> list[Cell]:
    """Return the parameters in M and the FLOPs in G of a network beside what is printed."""
    from crowdrt.export.complexity import complexity

    name, caveat = network_label(network, width), CAVEATS.get((network, width), "")
    cells, num_params = [], 0
    for size, printed in flops.items():
        cost = complexity(network, Fraction(width), size)
        paper = complexity(network, Fraction(width), size[::-1]) if caveat == SWAPPED else cost
        num_params = cost.params
        cells.append(
            Cell.of(
                row=name,
                column=f"FLOPs at {size_label(size)}, G",
                printed=printed,
                value=paper.paper_flops,
                true=cost.macs,
                unit=10**9,
                note=caveat,
            )
        )
    first = Cell.of(
        row=name,
        column="parameters, M",
        printed=params,
        value=num_params,
        unit=10**6,
        note=CUT_OFF if (network, width) == ("csrnet", "1/5") else "",
    )
    return [first, *cells]


TABLES: Mapping[str, Callable[[], list[Cell]]] = {
    "skt-1": skt_1,
    "skt-2": skt_2,
    "skt-8": skt_8,
    "deepcount-3": deepcount_3,
    "deepcount-6": deepcount_6,
    "deepcount-7": deepcount_7,
    "dsla-5": dsla_5,
}


def show_cells(cells: Sequence[Cell]) -> None:
    """Print the cells for a terminal."""
    show_table(cells_table(cells))
    for text, number in notes_of(cells).items():
        tell(f"({number}) {text}")
    tell(matched(cells))
