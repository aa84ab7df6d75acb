"""Photographs to learn from, and what is known of them."""

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crowdrt.contracts import Sample
from crowdrt.data.synthetic.photographs import generate
from crowdrt.models import build_model
from crowdrt.models.weights import save_weights
from crowdrt.training.counting.crops import SampleGroup
from crowdrt.training.counting.sets import TrainingSet


@pytest.fixture(scope="session")
def crowds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sample, ...]:
    """Four small generated crowds of 30 to 46 people."""
    folder = tmp_path_factory.mktemp("crowds")
    return tuple(generate(folder, num_images=4, seed=1, size=(96, 96), people=(30, 46)))


@pytest.fixture(autouse=True)
def _no_curves() -> Iterator[None]:
    """A picture at every validation takes longer than what these runs learn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("crowdrt.training.loop.draw_curves", lambda *_, **__: None)
        yield


@pytest.fixture
def plain_photo(tmp_path: Path) -> Callable[..., Sample]:
    """Writes a photograph of one grey level, with heads where they are given."""

    def write(name: str, *, level: int = 128, size=(48, 48), heads: Sequence | None = ()) -> Sample:
        path = tmp_path / name
        Image.new("RGB", size, (level,) * 3).save(path)
        points = None if heads is None else np.array(heads, np.float32).reshape(-1, 2)
        return Sample(image=path, heads=points)

    return write


@pytest.fixture
def data(crowds: tuple[Sample, ...]) -> TrainingSet:
    """Three crowds to learn from, and one to validate by."""
    return TrainingSet((SampleGroup("crowds", crowds[1:], 1.0),), crowds[:1])


@pytest.fixture
def teacher(tmp_path: Path) -> Callable[..., Path]:
    """Writes weights of a network that has learned nothing."""

    def write(network: str = "csrnet", width: Fraction = Fraction(1, 8)) -> Path:
        torch.manual_seed(7)
        path = tmp_path / f"{network}-{width.denominator}.safetensors"
        save_weights(build_model(network, width), path, network=network, width=width)
        return path

    return write
