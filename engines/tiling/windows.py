"""How one output row reads input rows, along one axis of an image.

What is said of rows holds for columns too: every operator here treats the two axes apart.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

Span = tuple[int, int]  # rows, from the first up to and without the last


class Step(Protocol):
    """One operator along one axis."""

    @property
    def scale(self) -> Fraction:
        """Rows of output per row of input, borders aside."""
        ...

    def length(self, rows: int) -> int:
        """How many rows come out where `rows` go in."""
        ...

    def reads(self, span: Span) -> Span:
        """The input rows that some output rows are made of; it may lie partly in the padding."""
        ...


@dataclass(frozen=True, kw_only=True)
class Sliding:
    """A window that moves by `stride`: convolutions, pools; 1 wide for all that acts per pixel."""

    extent: int = 1  # rows from the window's first to its last, dilation included
    stride: int = 1
    before: int = 0  # padding
    after: int = 0
    round_up: bool = False  # ceil_mode of pools

    @property
    def scale(self) -> Fraction:
        """See `Step`."""
        return Fraction(1, self.stride)

    def length(self, rows: int) -> int:
        """See `Step`."""
        room = rows + self.before + self.after - self.extent
        if not self.round_up:
            return room // self.stride + 1
        steps = -(-room // self.stride)
        # a window that begins in the padding behind the last row is left out
        return steps if steps * self.stride >= rows + self.before else steps + 1

    def reads(self, span: Span) -> Span:
        """See `Step`."""
        first = span[0] * self.stride - self.before
        return first, (span[1] - 1) * self.stride - self.before + self.extent


@dataclass(frozen=True, kw_only=True)
class Spreading:
    """A transposed convolution: each input row adds to `extent` output rows."""

    extent: int
    stride: int
    before: int  # rows cropped from the output
    after: int
    extra: int  # output_padding: rows added behind

    @property
    def scale(self) -> Fraction:
        """See `Step`."""
        return Fraction(self.stride)

    def length(self, rows: int) -> int:
        """See `Step`."""
        return (rows - 1) * self.stride + self.extent - self.before - self.after + self.extra

    def reads(self, span: Span) -> Span:
        """See `Step`."""
        first = -((self.extent - 1 - span[0] - self.before) // self.stride)
        return first, (span[1] - 1 + self.before) // self.stride + 1


@dataclass(frozen=True, kw_only=True)
class Interpolating:
    """A resize by a power of two: output row r lies at input row r / scale + shift."""

    scale: Fraction
    shift: Fraction
    mode: str  # nearest, linear, cubic
    rounding: str = ""  # of nearest

    def length(self, rows: int) -> int:
        """See `Step`."""
        return math.floor(rows * self.scale)

    def reads(self, span: Span) -> Span:
        """See `Step`."""
        first, last = (row / self.scale + self.shift for row in (span[0], span[1] - 1))
        if self.mode == "nearest":
            return self._nearest(first), self._nearest(last) + 1
        wider = 1 if self.mode == "cubic" else 0
        return math.floor(first) - wider, math.ceil(last) + wider + 1

    def _nearest(self, row: Fraction) -> int:
        half = Fraction(1, 2)
        match self.rounding:
            case "floor":
                return math.floor(row)
            case "ceil":
                return math.ceil(row)
            case "round_prefer_ceil":
                return math.floor(row + half)
            case _:
                return math.ceil(row - half)


Steps = tuple[Step, Step]  # rows, columns
HERE: Steps = (Sliding(), Sliding())
