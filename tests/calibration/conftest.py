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


@pytest.fixture(scope="session")
def smallest():
    """Return the samples with the fewest pixels, so that tests on real photographs stay quick."""

    def chosen(samples, number):
        def num_pixels(sample):
            with Image.open(sample.image) as image:
                return image.width * image.height

        return sorted(samples, key=num_pixels)[:number]

    return chosen


@pytest.fixture(scope="session")
def mcnn(data_root, tmp_path_factory) -> Path:
    """The trained MCNN of ShanghaiTech A as an ONNX file for any size."""
    from crowdrt.contracts import GraphInfo
    from crowdrt.export.onnx_export import export_onnx
    from crowdrt.models.importers import import_mcnn

    model = import_mcnn(data_root / "mcnn" / "mcnn_tf_A.npz").eval()
    info = GraphInfo(
        network="mcnn",
        width="1",
        preprocessing=model.preprocessing,
        density_stride=model.density_stride,
    )
    path = tmp_path_factory.mktemp("mcnn") / "mcnn.onnx"
    export_onnx(model, info, path, size=None)
    return path
