import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))  # for small_graphs


@pytest.fixture
def photographs(tmp_path) -> list[Path]:
    """Five RGB pictures of different sizes and contents."""
    rng = np.random.default_rng(7)
    folder = tmp_path / "photographs"
    folder.mkdir()
    paths = []
    for i in range(5):
        height, width = 40 + 8 * i, 64 - 4 * i
        pixels = rng.normal(60 + 40 * i, 20 + 10 * i, (height, width, 3)).clip(0, 255)
        paths.append(folder / f"IMG_{i}.png")
        Image.fromarray(pixels.astype(np.uint8)).save(paths[-1])
    return paths
