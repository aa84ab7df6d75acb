"""How a network's width becomes channel numbers."""

from fractions import Fraction


def scaled(channels: int, width: Fraction) -> int:
    """Return `width * channels` rounded to the nearest integer, halves up, at least 1.

    Exact in integers, so that 12 channels at width 1/8 are 2 on every machine; Python's `round`
    takes halves to even. Rounding, not truncation, reproduces the parameters and FLOPs of the
    1/3- and 1/5-CSRNet in SKT's Table 2 (Liu et al., ACM MM 2020, arXiv:2003.10120).
    """
    numerator, denominator = width.numerator, width.denominator
    return max(1, (2 * channels * numerator + denominator) // (2 * denominator))
