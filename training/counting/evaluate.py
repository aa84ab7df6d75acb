"""Counting errors of a network in PyTorch, on whole photographs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from crowdrt.contracts import Preprocessing, Sample
from crowdrt.data.heads.regions import cell_shares
from crowdrt.data.preprocess import load_feed
from crowdrt.models.network import Normalise
from crowdrt.training.counting.crops import annotated_heads


@dataclass(frozen=True)
class CountErrors:
    """Errors in people over a set of photographs."""

    mae: float
    rmse: float
    bias: float  # predicted minus annotated, mean
    num_images: int


def count_errors(
    model: nn.Module,
    samples: Iterable[Sample],
    preprocessing: Preprocessing,
    *,
    device: torch.device | str = "cpu",
) -> CountErrors:
    """Count every photograph whole and compare with its annotation.

    Args:
        model: it is left in evaluation mode.
        samples: annotated photographs, at least one.
        preprocessing: of the model.
        device: where the model lies.

    Raises:
        TrainingError: a photograph is not annotated.
    """
    differences = []
    model.eval()
    normalise = Normalise(preprocessing).to(device)
    with torch.inference_mode():
        for sample in samples:
            feed = torch.from_numpy(load_feed(sample.image, preprocessing)).to(device)
            image = normalise(feed).contiguous(memory_format=torch.channels_last)
            density = model(image).float().cpu()
            differences.append(people_in(density, sample, image.shape[2:]) - count_of(sample))
    return errors_of(differences)


def people_in(density: Tensor, sample: Sample, size: Sequence[int]) -> float:
    """Return the sum of a map (1, 1, h, w) in the region where people count.

    Args:
        density: of an image of `size` px; SANet's reaches as far over every border.
        sample: the photograph, with its region if it has one.
        size: height and width, padded.
    """
    cells = density[0, 0].double()
    if sample.roi is not None:
        rows, columns = cells.shape
        stride = round(size[0] / rows)
        span = rows * stride, columns * stride
        margin = (span[0] - size[0]) / 2
        shares = cell_shares(sample.roi, (rows, columns), span=span, margin_px=margin)
        cells = cells * torch.from_numpy(shares)
    return cells.sum().item()


def errors_of(differences: Sequence[float]) -> CountErrors:
    """Summarise predicted-minus-annotated differences, one per photograph."""
    array = np.asarray(differences, dtype=np.float64)
    return CountErrors(
        mae=float(np.abs(array).mean()),
        rmse=float(np.sqrt((array**2).mean())),
        bias=float(array.mean()),
        num_images=len(array),
    )


def constant_mean_errors(train: Sequence[Sample], test: Sequence[Sample]) -> CountErrors:
    """Errors of answering every photograph with the training set's mean count."""
    mean = float(np.mean([count_of(sample) for sample in train]))
    return errors_of([mean - count_of(sample) for sample in test])


def count_of(sample: Sample) -> int:
    """Return the published count; a photograph without one is refused, not taken for empty."""
    return len(annotated_heads(sample))
