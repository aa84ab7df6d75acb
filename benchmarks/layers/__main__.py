"""The process in which an engine is profiled, or peaks are measured; see `process`."""

import sys
from pathlib import Path

from crowdrt.benchmarks.layers.worker import answer

if __name__ == "__main__":
    answer(Path(sys.argv[1]))
