"""The complexity cells of DeepCount's tables, digit by digit.

Chen, Cheng, Yuan, Liao, Li and Lv, "Deep Density-aware Count Regressor", ECAI 2020,
arXiv:1908.03314: Tables 3, 6 and 7, at 384x512 px. What the paper calls FLOPs are multiply-
accumulates by its equation 10, in millions, without the ten VGG layers in front. Its errors and
frames per second are no complexity and are left out.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class PrintedLayer:
    """One row of Table 3."""

    name: str  # as printed: kind and stride
    kernel: str  # height x width x channels in x channels out
    output: str  # height x width x channels
    flops_m: str


def _layers(text: str) -> tuple[PrintedLayer, ...]:
    return tuple(PrintedLayer(*line.split()) for line in text.strip().splitlines())


CSRNET_BACK_END = _layers("""
Conv-s1 3x3x512x512 48x64x512 7248
Conv-s1 3x3x512x512 48x64x512 7248
Conv-s1 3x3x512x512 48x64x512 7248
Conv-s1 3x3x512x256 48x64x256 3624
Conv-s1 3x3x256x128 48x64x128 906
Conv-s1 3x3x128x64  48x64x64  226
Conv-s1 1x1x64x1    48x64x1   0.2
""")
BRANCH_1 = _layers("""
Conv-tr-s1 3x4x1024x256 3x4x256   37
Conv-tr-s2 4x4x512x256  6x8x256   101
Conv-tr-s2 4x4x512x256  12x16x256 403
Conv-tr-s2 4x4x512x256  24x32x256 1611
Conv-tr-s2 4x4x512x256  48x64x256 6442
Conv-s1-p0 1x1x512x1    48x64x1   2
""")
DEEPCOUNT_BACK_END = _layers("""
Conv-s1        3x3x512x256  48x64x256 3624
Conv-s2        3x3x256x512  24x32x512 906
Conv-s1        3x3x512x256  24x32x256 906
Conv-s2        3x3x256x512  12x16x512 226
Conv-s1        3x3x512x256  12x16x256 226
Conv-s2        3x3x256x512  6x8x512   57
Conv-s1        3x3x512x256  6x8x256   57
Conv-s2        3x3x256x512  3x4x512   14
Conv-s1        3x3x512x256  3x4x256   14
Conv-s1-p0     3x4x256x1024 1x1x1024  3
Conv-s1-p0(Fc) 1x1x1024x1   1x1x1     0.001
""")  # the paper writes the last output as 1

# Table 3's three columns, each with its last row.
TABLE_3 = {
    "CSRNet, back end": (CSRNET_BACK_END, "26500"),
    "DeepCount, branch 1": (BRANCH_1, "8596"),
    "DeepCount, back end": (DEEPCOUNT_BACK_END, "6034"),
}

# Table 6, parameters in millions.
CSRNET_PARAMS_M = "16.3"
DEEPCOUNT_PARAMS_M = "21.4"
DEEPCOUNT_TRAINING_PARAMS_M = "58.1"

# Table 7: branch -> size of its map, FLOPs in millions.
TABLE_7 = {
    1: ("48x64", "6034"),
    2: ("24x32", "2152"),
    3: ("12x16", "541"),
    4: ("6x8", "138"),
    5: ("3x4", "38"),
}
