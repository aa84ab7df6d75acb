"""SKT's accuracy: Tables 2, 3, 4, 6, 7 and 9, digit by digit.

Liu, Chen, Wu, Chen, Li and Lin, "Efficient Crowd Counting via Structured Knowledge Transfer",
ACM Multimedia 2020, arXiv:2003.10120. Names carry no citation numbers; `*` marks the authors' own
teachers, as printed.
"""

from crowdrt.benchmarks.tables.trained.definition import (
    QNRF,
    SCENES,
    WORLDEXPO,
    A,
    B,
    Column,
    PrintedRow,
    PrintedTable,
    errors_on,
    quoted,
    row,
)
from crowdrt.benchmarks.tables.trained.names import (
    CSRNET,
    CSRNET_NONE,
    CSRNET_SKT,
    SKT_3,
    skt_row,
)

BUDGET = "SKT's text says neither how many steps nor how many epochs its networks were trained"
NAMES = {"sanet": "SANet", "csrnet": "CSRNet", "bl": "BL"}

TABLE_2_RMSE = {  # width -> without, with transfer
    "1/2": ("137.32", "113.61"),
    "1/3": ("140.29", "114.68"),
    "1/4": ("146.40", "114.40"),
    "1/5": ("149.40", "118.78"),
}
SKT_TABLE_2 = PrintedTable(
    title="SKT, Table 2: CSRNet's width on ShanghaiTech A",
    columns=(Column("RMSE", A, "rmse"),),
    rows=(
        row("CSRNet", "1", "105.99", *CSRNET),
        *(
            row(f"{width}-CSRNet{' + SKT' * place}", width, rmse, *recipes)
            for width, both in TABLE_2_RMSE.items()
            for place, (rmse, recipes) in enumerate(
                zip(both, (CSRNET_NONE, CSRNET_SKT), strict=True)
            )
        ),
    ),
    budget=BUDGET,
)

TABLE_3 = (  # in the order of `SKT_3`
    ("without transfer", "89.65 146.40"),
    ("Intra-PT: L2", "76.61 120.56"),
    ("Intra-PT: cosine", "74.99 117.58"),
    ("Inter-RT: sparse FSP", "79.22 133.21"),
    ("Inter-RT: dense FSP", "73.25 120.77"),
    ("L2 + dense FSP", "72.89 117.92"),
    ("cosine + dense FSP", "71.55 114.40"),
)
OTHER_NAMES = {names[0]: names[1:] for names in (CSRNET_NONE, CSRNET_SKT)}
SKT_TABLE_3 = PrintedTable(
    title="SKT, Table 3: what is transferred to 1/4-CSRNet, on ShanghaiTech A",
    columns=errors_on(A),
    rows=tuple(
        row(label, "1/4", cells, name, *OTHER_NAMES.get(name, ()))
        for name, (label, cells) in zip(SKT_3, TABLE_3, strict=True)
    ),
    budget=BUDGET,
)

SKT_TABLE_4 = PrintedTable(
    title="SKT, Table 4: the ground truth of 1/4-CSRNet, on ShanghaiTech A",
    columns=errors_on(A),
    rows=(
        row("hard", "1/4", "72.94 116.68", "skt-4-hard"),
        row("soft", "1/4", "74.89 118.33", "skt-4-soft"),
        row(
            "hard + soft",
            "1/4",
            "71.55 114.40",
            "skt-4-hard-soft",
            *(name for name in CSRNET_SKT if name != "skt-4-hard-soft"),
        ),
    ),
    budget=BUDGET,
)

TABLE_6 = """
SwitchCNN | 90.4 135 21.6 33.4
DecideNet | - - 21.5 31.9
CP-CNN    | 73.6 106.4 20.1 30.1
DNCL      | 73.5 112.3 18.7 26.0
ACSCP     | 75.7 102.7 17.2 27.4
L2R       | 73.6 112.0 13.7 21.4
IG-CNN    | 72.5 118.2 13.6 21.1
IC-CNN    | 68.5 116.2 10.7 16.0
CFF       | 65.2 109.4 7.2 12.2
"""
TABLE_6_OURS = {  # network -> teacher, 1/4 without, 1/4 with SKT
    "sanet": ("75.33 122.2 10.45 17.92", "97.36 155.43 14.79 23.43", "78.02 126.58 11.86 19.83"),
    "csrnet": ("68.43 105.99 7.49 12.33", "89.65 146.40 10.82 16.21", "71.55 114.40 7.48 11.68"),
    "bl": ("61.46 103.17 7.50 12.60", "88.35 145.47 12.25 19.77", "62.73 102.33 7.98 13.13"),
}
TABLE_7 = """
Idrees et al.   | 315 508
MCNN            | 277 426
Encoder-Decoder | 270 478
CMTL            | 252 514
SwitchCNN       | 228 445
Resnet-101      | 190 277
CL              | 132 191
TEDnet          | 113 188
CAN             | 107 183
S-DCNet         | 104.40 176.10
DSSINet         | 99.10 159.20
"""
TABLE_7_OURS = {
    "sanet": ("152.59 246.98", "192.47 293.96", "157.46 257.66"),
    "csrnet": ("145.54 233.32", "186.31 287.65", "144.36 234.64"),
    "bl": ("87.70 158.09", "135.64 224.72", "96.24 156.82"),
}
TABLE_9 = """
Chen et al.  | 2.1 55.9 9.6 11.3 3.4 16.5
Zhang et al. | 9.8 14.1 14.3 22.2 3.7 12.9
MCNN         | 3.4 20.6 12.9 13.0 8.1 11.6
Shang et al. | 7.8 15.4 14.9 11.8 5.8 11.7
IG-CNN       | 2.6 16.1 10.1 20.2 7.6 11.3
ConvLSTM     | 7.1 15.2 15.2 13.9 3.5 10.9
IC-CNN       | 17.0 12.3 9.2 8.1 4.7 10.3
SwitchCNN    | 4.4 15.7 10.0 11.0 5.9 9.4
DecideNet    | 2.00 13.14 8.90 17.40 4.75 9.23
DNCL         | 1.9 12.1 20.7 8.3 2.6 9.1
CP-CNN       | 2.9 14.7 10.5 10.4 5.8 8.86
PGCNet       | 2.5 12.7 8.4 13.7 3.2 8.1
TEDnet       | 2.3 10.1 11.3 13.8 2.6 8.0
"""
TABLE_9_OURS = {
    "sanet": (
        "2.92 15.22 14.86 14.73 4.20 10.39",
        "3.77 19.93 19.33 18.42 6.36 13.56",
        "3.42 16.13 15.82 15.37 4.91 11.13",
    ),
    "csrnet": (
        "1.58 13.55 14.70 7.29 3.28 8.08",
        "1.96 15.70 20.59 8.52 3.70 10.09",
        "1.77 12.32 14.49 7.87 3.10 7.91",
    ),
    "bl": (
        "1.79 10.70 14.12 7.08 3.19 7.37",
        "1.97 18.39 28.95 8.12 3.94 12.27",
        "1.41 10.45 13.10 7.63 4.08 7.34",
    ),
}


def networks_of(table: int, cells: dict[str, tuple[str, str, str]]) -> list[PrintedRow]:
    """Return the rows of the authors' teachers, and of their students without and with SKT."""
    found = []
    for network, (teacher, alone, taught) in cells.items():
        name = NAMES[network]
        found += [
            row(f"{name}*", "1", teacher, *skt_row(table, network, "")),
            row(f"1/4-{name}", "1/4", alone, *skt_row(table, network, "none")),
            row(f"1/4-{name} + SKT", "1/4", taught, *skt_row(table, network, "transfer")),
        ]
    return found


def with_mcnn(rows: list[PrintedRow], table: int) -> list[PrintedRow]:
    """Return quoted rows, of which MCNN's is a network of ours too."""
    return [
        row(each.label, "1", " ".join(each.printed), f"skt-{table}-mcnn")
        if each.label == "MCNN"
        else each
        for each in rows
    ]


SKT_TABLE_6 = PrintedTable(
    title="SKT, Table 6: ShanghaiTech",
    columns=(*errors_on(A, "A"), *errors_on(B, "B")),
    rows=(
        row("MCNN", "1", "110.2 173.2 26.4 41.3", "skt-6-mcnn"),
        *quoted(TABLE_6),
        *networks_of(6, TABLE_6_OURS),
    ),
    budget=BUDGET,
)
SKT_TABLE_7 = PrintedTable(
    title="SKT, Table 7: UCF-QNRF",
    columns=errors_on(QNRF),
    rows=(*with_mcnn(quoted(TABLE_7), 7), *networks_of(7, TABLE_7_OURS)),
    budget=BUDGET,
)
SKT_TABLE_9 = PrintedTable(
    title="SKT, Table 9: MAE on WorldExpo'10, scene by scene",
    columns=(
        *(Column(f"S{number}", test, "mae") for number, test in enumerate(SCENES, start=1)),
        Column("Avg", WORLDEXPO, "mae"),
    ),
    rows=(*with_mcnn(quoted(TABLE_9), 9), *networks_of(9, TABLE_9_OURS)),
    budget=BUDGET,
    notes={("Shang et al.", "Avg"): "the mean of its five scenes is 11.14; printed so"},
)
