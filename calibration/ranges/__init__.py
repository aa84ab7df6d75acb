"""How far INT8 is to reach: streaming histograms, the methods, and the statistics kept on disk."""

from crowdrt.calibration.ranges.histogram import CHUNK, NUM_BINS, AbsHistogram, Statistics
from crowdrt.calibration.ranges.methods import range_of

__all__ = ["CHUNK", "NUM_BINS", "AbsHistogram", "Statistics", "range_of"]
