"""DeepCount's accuracy: Tables 2, 4, 5, 7, 8 and 9, digit by digit.

Chen, Cheng, Yuan, Liao, Li and Lv, "Deep Density-aware Count Regressor", ECAI 2020,
arXiv:1908.03314. Table 7 stands here with its rows and columns exchanged: one row per output.
"""

from crowdrt.benchmarks.tables.trained.definition import (
    MALL,
    QNRF,
    A,
    B,
    Column,
    PrintedRow,
    PrintedTable,
    errors_on,
    quoted,
    row,
)
from crowdrt.benchmarks.tables.trained.names import CSRNET, DEEPCOUNT, without_branches

BUDGET = (
    "DeepCount's: about a hundred epochs of 384x512 crops in batches of 32, its first ten layers "
    "from ImageNet's VGG-16"
)
NEVER_BELOW = "of one test set the RMSE is never below the MAE; printed so"
MAE_ON_B = (Column("MAE", B, "mae"),)

TABLE_2 = """
Switching CNN | 90.4 135.0 21.6 33.4
DecideNet     | - - 20.75 29.42
CP-CNN        | 73.6 106.4 20.1 30.1
ic-CNN        | 68.5 116.2 10.7 16.0
"""
DEEPCOUNT_TABLE_2 = PrintedTable(
    title="DeepCount, Table 2: ShanghaiTech",
    columns=(*errors_on(A, "A"), *errors_on(B, "B")),
    rows=(
        row("MCNN", "1", "110.2 173.2 26.4 41.3", "skt-6-mcnn"),
        *quoted(TABLE_2),
        row("CSRNet", "1", "68.2 115.0 10.6 16.0", *CSRNET),
        *quoted("PSDDN+ | 65.9 112.3 9.1 14.2"),
        row("SANet", "1", "67.0 104.5 8.4 13.6", "skt-6-sanet"),
        row("DeepCount", "1", "65.2 112.5 7.2 11.3", *DEEPCOUNT),
    ),
    budget=BUDGET,
)

TABLE_4 = """
CMTL                   | 252 514
Switching CNN          | 228 445
Resnet101              | 190 277
Densenet201            | 163 226
Idrees et al. (2018)   | 132 191
TEDnet                 | 113 188
"""
DEEPCOUNT_TABLE_4 = PrintedTable(
    title="DeepCount, Table 4: UCF-QNRF",
    columns=errors_on(QNRF),
    rows=(
        *quoted("Idrees et al. (2013) | 315 508"),
        row("MCNN", "1", "277 426", "skt-7-mcnn"),
        *quoted(TABLE_4),
        row("DeepCount", "1", "95.7 167.1", "deepcount-4"),
    ),
    budget=BUDGET,
)

TABLE_5 = """
R-FCN         | 6.02 5.46
Faster R-CNN  | 5.91 6.60
COUNT Forest  | 4.40 2.40
Weighted VLAD | 2.41 9.12
DecideNet     | 1.52 1.90
"""
DEEPCOUNT_TABLE_5 = PrintedTable(
    title="DeepCount, Table 5: Mall",
    columns=errors_on(MALL),
    rows=(*quoted(TABLE_5), row("DeepCount", "1", "1.55 2.00", "deepcount-5")),
    budget=BUDGET,
    notes={("R-FCN", "RMSE"): NEVER_BELOW, ("COUNT Forest", "RMSE"): NEVER_BELOW},
)

TABLE_7 = (  # a branch's MAE on A, B, UCF-QNRF and Mall, the largest map first
    "79.2 9.7 193.3 4.74",
    "73.4 8.9 185.0 2.89",
    "69.7 8.0 155.3 2.46",
    "66.7 7.4 112.3 1.77",
    "65.8 7.2 96.9 1.56",
)
DEEPCOUNT_TABLE_7 = PrintedTable(
    title="DeepCount, Table 7: MAE of what each branch and the backbone count",
    columns=tuple(
        Column(heading, test, "mae")
        for heading, test in (("A", A), ("B", B), ("UCF-QNRF", QNRF), ("Mall", MALL))
    ),
    rows=(
        *(
            row(f"Branch {number}", "1", cells, f"deepcount-7-branch-{number}")
            for number, cells in enumerate(TABLE_7, start=1)
        ),
        row("Backbone", "1", "65.2 7.2 95.7 1.55", *DEEPCOUNT, "deepcount-4", "deepcount-5"),
    ),
    budget=BUDGET,
)

DEEPCOUNT_TABLE_8 = PrintedTable(
    title="DeepCount, Table 8: the activation, on ShanghaiTech B",
    columns=MAE_ON_B,
    rows=(
        row("ReLU", "1", "8.3", "deepcount-8-relu"),
        row(
            "PReLU (leaky ReLU)",
            "1",
            "7.2",
            "deepcount-8-leaky-relu",
            *(name for name in DEEPCOUNT if name != "deepcount-8-leaky-relu"),
        ),
    ),
    budget=BUDGET,
)

TABLE_9 = ("7.2", "7.4", "7.7", "8.2", "8.3", "9.1")  # by how many branches are left out


def ablation(num_ablated: int, mae: str) -> PrintedRow:
    """Return a row of Table 9."""
    label = {0: "No ablation", 1: "Branch 1 ablated"}.get(
        num_ablated, f"Branch 1-{num_ablated} ablated"
    )
    name = without_branches(num_ablated)
    same = tuple(other for other in DEEPCOUNT if other != name) if not num_ablated else ()
    return row(label, "1", mae, name, *same)


DEEPCOUNT_TABLE_9 = PrintedTable(
    title="DeepCount, Table 9: branches left out of training, on ShanghaiTech B",
    columns=MAE_ON_B,
    rows=tuple(ablation(number, mae) for number, mae in enumerate(TABLE_9)),
    budget=BUDGET,
)
