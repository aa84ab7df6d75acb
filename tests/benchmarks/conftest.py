import sys
from pathlib import Path

import numpy as np
import pytest

# The contenders' processes get our sys.path, and so find fake_engines.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def photograph() -> np.ndarray:
    """(3, 64, 96) uint8, no two regions alike."""
    return np.random.default_rng(0).integers(0, 256, (3, 64, 96), dtype=np.uint8)
