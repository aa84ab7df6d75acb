"""Errors of a count regressor on whole photographs: divided into tiles, and the counts added."""

from collections.abc import Iterable

import torch

from crowdrt.contracts import Sample
from crowdrt.data.images import read_image
from crowdrt.data.tiles import tiles_of, tiling_of
from crowdrt.models.network import Network, Normalise
from crowdrt.training.counting.evaluate import CountErrors, count_of, errors_of

TILES_AT_ONCE = 4


def divided_errors(
    model: Network, samples: Iterable[Sample], *, device: torch.device | str = "cpu"
) -> CountErrors:
    """Count every photograph by its stretched tiles and compare with its annotation.

    Args:
        model: takes one size of image and answers counts, (B,); it is left in evaluation mode.
        samples: annotated photographs, at least one.
        device: where the model lies.

    Raises:
        TrainingError: a photograph is not annotated.
    """
    assert model.fixed_size is not None
    model.eval()
    normalise = Normalise(model.preprocessing).to(device)
    differences = []
    with torch.inference_mode():
        for sample in samples:
            photograph = read_image(sample.image, model.preprocessing.channels)
            tiling = tiling_of(photograph.shape[1:], model.fixed_size)
            people = 0.0
            for tiles in tiles_of(photograph, tiling, model.preprocessing, batch=TILES_AT_ONCE):
                pixels = normalise(torch.from_numpy(tiles).to(device))
                counts = model(pixels.contiguous(memory_format=torch.channels_last))
                people += counts.double().sum().item()
            differences.append(people - count_of(sample))
    return errors_of(differences)
