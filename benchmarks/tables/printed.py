"""The printed cells of the papers that our tables stand beside, digit by digit.

Liu, Chen, Wu, Chen, Li and Lin, "Efficient Crowd Counting via Structured Knowledge Transfer",
ACM Multimedia 2020, arXiv:2003.10120: Tables 1, 2 and 8; errors stand in `trained`. Times are of a
GTX 1080 and of a 2.4 GHz Xeon E5. What the paper calls FLOPs are multiply-accumulates and a few
more.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from crowdrt.contracts import Size

SHANGHAITECH_A: Size = (576, 864)
SHANGHAITECH_B: Size = (768, 1024)
WORLDEXPO: Size = (576, 720)
UCF_QNRF: Size = (2032, 2912)
SIZES = (SHANGHAITECH_A, SHANGHAITECH_B, WORLDEXPO, UCF_QNRF)

GPU = "GTX 1080"
CPU = "2.4 GHz Xeon E5"

# network, width, params in M; then FLOPs in G, GPU ms, CPU s for each of `SIZES`
SKT_TABLE_8_TEXT = """
dssinet 1    8.86  729.20 296.32 32.39  1152.31 471.83 49.49  607.66 250.69 26.13  8670.09 3677.98 378.80
can     1    18.10 218.20 79.02  7.99   344.80  117.12 20.75  181.83 68.00  6.84   2594.18 972.16  149.56
csrnet  1    16.26 205.88 66.58  7.85   325.34  98.68  19.17  171.57 57.57  6.51   2447.91 823.84  119.67
bl      1    21.50 205.32 47.89  8.84   324.46  70.18  19.63  171.10 40.52  6.69   2441.23 595.72  130.76
sanet   1    0.91  33.55  35.20  3.90   52.96   52.85  11.42  27.97  29.84  3.13   397.50  636.48  87.50
csrnet  1/4  1.02  13.09  8.88   0.87   20.69   12.65  1.84   10.91  7.71   0.67   155.69  106.08  9.71
bl      1/4  1.35  13.06  7.40   0.88   20.64   10.42  1.89   10.88  6.25   0.69   155.30  90.96   9.78
sanet   1/4  0.058 2.52   11.83  1.10   3.98    16.86  2.10   2.10   9.72   0.92   29.92   368.04  18.64
"""  # noqa: E501 - as wide as the paper's


@dataclass(frozen=True)
class Cost:
    """One network at one size, as printed; the order is the one of Table 8."""

    flops_g: float
    gpu_ms: float
    cpu_s: float


@dataclass(frozen=True, kw_only=True)
class PrintedRow:
    """One row of Table 8; the students are the ones distilled with SKT."""

    network: str
    width: str
    params_m: float
    params_decimals: int  # 2, or 3 for the smallest
    costs: Mapping[Size, Cost]


def _row(line: str) -> PrintedRow:
    network, width, params_m, *cells = line.split()
    values = [float(cell) for cell in cells]
    costs = [Cost(*values[i : i + 3]) for i in range(0, len(values), 3)]
    return PrintedRow(
        network=network,
        width=width,
        params_m=float(params_m),
        params_decimals=len(params_m.partition(".")[2]),
        costs=dict(zip(SIZES, costs, strict=True)),
    )


SKT_TABLE_8 = tuple(_row(line) for line in SKT_TABLE_8_TEXT.strip().splitlines())

# Table 1 repeats these rows at 2032x2912; beside them stand errors on UCF-QNRF.
SKT_TABLE_1_ROWS = (("dssinet", "1"), ("can", "1"), ("csrnet", "1"), ("bl", "1"), ("bl", "1/4"))
SKT_TABLE_1 = tuple(row for row in SKT_TABLE_8 if (row.network, row.width) in SKT_TABLE_1_ROWS)

# Table 2, CSRNet at 576x864: width -> params in M, FLOPs in G
SKT_TABLE_2: Mapping[str, tuple[str, str]] = {
    "1": ("16.26", "205.88"),
    "1/2": ("4.07", "51.77"),
    "1/3": ("1.81", "23.11"),
    "1/4": ("1.02", "13.09"),
    "1/5": ("0.64", "8.45"),
}


def printed_row(network: str, width: str) -> PrintedRow | None:
    """Return the row of Table 8, or None where the paper has none."""
    for row in SKT_TABLE_8:
        if (row.network, row.width) == (network, width):
            return row
    return None


def printed_cost(network: str, width: str, size: Size) -> Cost | None:
    """Return the printed cost of a network at a size, or None where the paper has none."""
    row = printed_row(network, width)
    return row.costs.get(size) if row else None
