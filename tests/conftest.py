"""What every test shares: where the real images are, and the one rule for GPU tests."""

import importlib.util
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The real images: $CROWDRT_DATA, else ../shared/data beside the checkout."""
    root = Path(os.environ.get("CROWDRT_DATA") or ROOT.parent / "shared" / "data")
    if not (root / "ShanghaiTech").is_dir():
        pytest.skip("needs the real images: set CROWDRT_DATA")
    return root


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and importlib.util.find_spec("tensorrt") is None:
        pytest.skip("needs an NVIDIA GPU and crowdrt[tensorrt]")
