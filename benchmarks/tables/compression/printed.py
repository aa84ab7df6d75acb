"""SKT's Table 5 digit by digit: ten ways to compress CSRNet, on ShanghaiTech A.

Liu et al., "Efficient Crowd Counting via Structured Knowledge Transfer", ACM MM 2020,
arXiv:2003.10120. It prints errors alone, of networks of several sizes: quantized ones are full
CSRNet in 8 bits, CP has 6.89 M parameters, all others 1.02 M, those of 1/4-CSRNet.
"""

from collections.abc import Mapping
from typing import NamedTuple

TEST = "ShanghaiTech part_A test"
TEACHER, NAIVE = "teacher", "naive student"


class PrintedErrors(NamedTuple):
    """A row of the table, as text."""

    name: str  # the paper's
    mae: str
    rmse: str


SKT_TABLE_5: Mapping[str, PrintedErrors] = {  # by our names of the methods
    TEACHER: PrintedErrors("CSRNet", "68.43", "105.99"),
    NAIVE: PrintedErrors("1/4-CSRNet", "89.65", "146.40"),
    "DoReFa": PrintedErrors("DoReFa", "80.02", "124.1"),
    "QAT": PrintedErrors("QAT", "75.50", "128.09"),
    "L1Filter": PrintedErrors("L1Filter", "85.18", "135.82"),
    "CP": PrintedErrors("CP", "82.05", "130.65"),
    "AGP": PrintedErrors("AGP", "78.51", "125.83"),
    "FitNets": PrintedErrors("FitNets", "87.32", "140.34"),
    "DML": PrintedErrors("DML", "85.23", "138.10"),
    "NST": PrintedErrors("NST", "76.26", "116.57"),
    "AT": PrintedErrors("AT", "74.65", "127.06"),
    "AB": PrintedErrors("AB", "75.73", "123.28"),
    "SKT": PrintedErrors("SKT", "71.55", "114.40"),
}
