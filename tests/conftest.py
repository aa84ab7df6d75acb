"""What every test shares: where the real images are, and the rules for tests that need more."""

import importlib.util
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# `make test` runs one pytest-xdist worker per core. PyTorch and OpenMP would start a thread per
# core in every one of them, and the workers would wait for each other. Read when torch is first
# imported, so it stands here; processes that tests start inherit it.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


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
    if item.get_closest_marker("cluster") and importlib.util.find_spec("ray") is None:
        pytest.skip("needs crowdrt[cluster]")
    if item.get_closest_marker("slow") and "slow" not in item.config.option.markexpr:
        pytest.skip("takes minutes: pytest -m slow")
