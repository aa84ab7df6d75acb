"""What calibration keeps of an activation: how large it gets, and its mean.

A histogram's memory is fixed, and what it holds depends only on the values, not on their order
or on how they were split into batches: bins are powers of two wide, so doubling the width when
a larger value arrives merges pairs of bins and loses nothing that was exact before. It serves
every method of finding a range, so one pass over the images is enough for all of them.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

NUM_BINS = 8192  # of which more than half are in use: the largest value is known to 1/4096
LEAST_EXPONENT = -126  # of a bin whose inverse width float32 can hold
CHUNK = 1 << 16  # values at a time: what is made of them stays in the processor's cache


class AbsHistogram:
    """Counts of |x| in bins `[i, i + 1) * width`; zeros, half of what a ReLU emits, lie apart."""

    def __init__(self) -> None:
        self.counts = np.zeros(NUM_BINS, np.int64)
        self.exponent: int | None = None  # width = 2**exponent; None until a value is not zero
        self.num_zeros = 0
        self.largest = 0.0

    @property
    def num_values(self) -> int:
        """How many values were added."""
        return self.num_zeros + int(self.counts.sum())

    @property
    def width(self) -> float:
        """The width of a bin; 0 while every value was zero."""
        return 0.0 if self.exponent is None else 2.0**self.exponent

    def add(self, values: npt.NDArray[np.floating]) -> None:
        """Count every element of an array of any shape.

        Raises:
            FloatingPointError: a value is NaN or infinite; nothing was counted.
        """
        if not values.size:
            return
        most, least = float(values.max()), float(values.min())
        largest = max(most, -least)
        if not np.isfinite(largest):
            raise FloatingPointError("NaN or infinity")
        if largest > 0:
            self._make_room(largest)
        flat = values.reshape(-1)
        for start in range(0, flat.size, CHUNK):
            self._count(flat[start : start + CHUNK], signed=least < 0)

    def percentile(self, q: float) -> float:
        """Return what q % of all |values|, zeros included, do not exceed.

        The upper edge of the bin that holds the percentile, so at most one bin too large.
        """
        rank = int(np.ceil(q / 100 * self.num_values))
        if rank <= self.num_zeros:
            return 0.0
        below = self.num_zeros + np.cumsum(self.counts)
        return min((int(np.searchsorted(below, rank)) + 1) * self.width, self.largest)

    def share_above(self, limit: float) -> float:
        """Return the share of all |values| that exceed `limit`, to within the bin that it cuts."""
        if limit >= self.largest:
            return 0.0
        first = int(limit / self.width) + 1
        return int(self.counts[first:].sum()) / self.num_values

    def _make_room(self, largest: float) -> None:
        self.largest = max(self.largest, largest)
        # frexp: largest < 2**power, and half of that or more
        exponent = int(np.frexp(self.largest)[1]) - NUM_BINS.bit_length() + 1
        if self.exponent is None:
            self.exponent = exponent
        while self.exponent < exponent:
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([pairs, np.zeros_like(pairs)])
            self.exponent += 1

    def _count(self, values: npt.NDArray[np.floating], *, signed: bool) -> None:
        # comparing first is five times as fast as to count what is not zero of floats
        num_zeros = int(np.count_nonzero(values == 0))
        self.num_zeros += num_zeros
        if self.exponent is None:
            return
        if self.exponent < LEAST_EXPONENT:
            values = values.astype(np.float64)
        per_bin = values.dtype.type(2.0**-self.exponent)  # exact: a power of two
        scaled = values * per_bin
        if signed:
            np.abs(scaled, out=scaled)
        self.counts += np.bincount(scaled.astype(np.intp), minlength=NUM_BINS)
        self.counts[0] -= num_zeros


def _zero() -> npt.NDArray[np.float64]:
    return np.zeros(1)


@dataclass
class Statistics:
    """One tensor (N, C, ...), over every image: a histogram, and a sum per channel.

    Sums carry what float64 rounds away of them, so that the order of the images does not show.
    """

    histogram: AbsHistogram = field(default_factory=AbsHistogram)
    sums: npt.NDArray[np.float64] = field(default_factory=_zero)  # (C,)
    rest: npt.NDArray[np.float64] = field(default_factory=_zero)  # (C,); sums + rest is the sum
    num: int = 0  # values per channel

    def add(self, values: npt.NDArray[np.floating]) -> None:
        """Take in one array.

        Raises:
            FloatingPointError: a value is NaN or infinite.
        """
        self.histogram.add(values)
        pixels = tuple(range(2, values.ndim))
        for image in values.sum(axis=pixels, dtype=np.float64):
            self._add_sums(image)
        self.num += values.size // values.shape[1]

    @property
    def means(self) -> npt.NDArray[np.float64]:
        """The mean of each channel, every pixel of every image counting alike; (C,)."""
        return (self.sums + self.rest) / max(self.num, 1)

    def _add_sums(self, more: npt.NDArray[np.float64]) -> None:
        """Add exactly: the error of a float64 addition is a float64 too (Knuth's TwoSum)."""
        total = self.sums + more
        of_more = total - self.sums
        self.rest = self.rest + ((self.sums - (total - of_more)) + (more - of_more))
        self.sums = total
