"""What calibration keeps of an activation: how large it gets, and its mean.

A histogram's memory is fixed, and what it holds depends only on the values, not on their order
or on how they were split into batches: bins are powers of two wide, so doubling the width when
a larger value arrives merges pairs of bins and loses nothing that was exact before.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from crowdrt.contracts import CalibrationConfig

NUM_BINS = 8192  # of which more than half are in use: the largest value is known to 1/4096
LEAST_EXPONENT = -126  # of a bin whose inverse width float32 can hold
CHUNK = 1 << 20  # values at a time, so that the working memory is small whatever the tensor


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
        largest = max(float(values.max()), -float(values.min()))
        if not np.isfinite(largest):
            raise FloatingPointError("NaN or infinity")
        if largest > 0:
            self._make_room(largest)
        flat = values.reshape(-1)
        for start in range(0, flat.size, CHUNK):
            self._count(flat[start : start + CHUNK])

    def percentile(self, q: float) -> float:
        """Return what q % of all |values|, zeros included, do not exceed.

        The upper edge of the bin that holds the percentile, so at most one bin too large.
        """
        rank = int(np.ceil(q / 100 * self.num_values))
        if rank <= self.num_zeros:
            return 0.0
        below = self.num_zeros + np.cumsum(self.counts)
        return min((int(np.searchsorted(below, rank)) + 1) * self.width, self.largest)

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

    def _count(self, values: npt.NDArray[np.floating]) -> None:
        num_zeros = values.size - int(np.count_nonzero(values))
        self.num_zeros += num_zeros
        if self.exponent is None:
            return
        if self.exponent < LEAST_EXPONENT:
            values = values.astype(np.float64)
        per_bin = values.dtype.type(2.0**-self.exponent)  # exact: a power of two
        bins = (np.abs(values) * per_bin).astype(np.intp)
        self.counts += np.bincount(bins, minlength=NUM_BINS)
        self.counts[0] -= num_zeros


@dataclass
class Statistics:
    """One tensor (N, C, ...), over every image: a histogram, and a mean per channel."""

    histogram: AbsHistogram = field(default_factory=AbsHistogram)
    _sums: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))
    _num: int = 0

    def add(self, values: npt.NDArray[np.floating]) -> None:
        """Take in one array.

        Raises:
            FloatingPointError: a value is NaN or infinite.
        """
        self.histogram.add(values)
        others = tuple(axis for axis in range(values.ndim) if axis != 1)
        self._sums = self._sums + values.sum(axis=others, dtype=np.float64)
        self._num += values.size // values.shape[1]

    @property
    def means(self) -> npt.NDArray[np.float64]:
        """The mean of each channel, every pixel of every image counting alike; (C,)."""
        return self._sums / max(self._num, 1)


def range_of(histogram: AbsHistogram, config: CalibrationConfig) -> float:
    """Return the |x| up to which INT8 is to reach; 0 where no value differed from zero."""
    if config.method == "minmax":
        return histogram.largest
    # a map that is nearly everywhere zero has a percentile of zero, which would delete it
    return histogram.percentile(config.percentile) or histogram.largest
