"""How good a detector is while it learns: AP, recall and duplicates on whole photographs."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from crowdrt.contracts import BoxSample, Detections, Preprocessing, UInt8Image
from crowdrt.data.boxes.matching import SURE, average_precision, duplicates_per_person, recall
from crowdrt.data.images import read_image
from crowdrt.data.preprocess import pad_to_stride, resize_short_side
from crowdrt.models.network import Network, Normalise
from crowdrt.training.detection.crops import annotated_boxes

LONGEST = 1.75  # of a photograph's long side, in short sides: the papers' 1400 of 800 px

Pair = tuple[Detections, BoxSample]


def detection_errors(
    model: Network,
    samples: Sequence[BoxSample],
    *,
    short_side_px: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Return what a detector gets wrong, and right, at IoU 0.5.

    Returns:
        "missed_ap50", 1 - AP, of which less is better; "ap50" and "recall", as fractions;
        "duplicates", detections of score 0.3 or more of a person who was found already, per
        found person, 0 where nobody is found so surely; "num_images".
    """
    pairs = detect(model, samples, short_side_px=short_side_px, device=device)
    precision = average_precision(pairs)
    return {
        "missed_ap50": 1 - precision,
        "ap50": precision,
        "recall": recall(pairs),
        "duplicates": float(np.nan_to_num(duplicates_per_person(pairs, SURE))),
        "num_images": len(pairs),
    }


def detect(
    model: Network,
    samples: Iterable[BoxSample],
    *,
    short_side_px: int = 0,
    device: torch.device | str = "cpu",
) -> list[Pair]:
    """Return what a detector finds on whole photographs, beside what is there.

    Args:
        model: it answers boxes, scores and labels; it is left in evaluation mode.
        samples: annotated photographs.
        short_side_px: to which photographs are resized, and their boxes with them; 0: not.
        device: where the model lies.
    """
    model.eval()
    normalise = Normalise(model.preprocessing).to(device)
    pairs = []
    with torch.inference_mode():
        for sample in samples:
            image, truth = read(sample, model.preprocessing, short_side_px)
            pairs.append((found_on(model, normalise, image, device=device), truth))
    return pairs


def read(
    sample: BoxSample, preprocessing: Preprocessing, short_side_px: int
) -> tuple[UInt8Image, BoxSample]:
    """Return a photograph, (C, H, W), and its annotation in its pixels, after resizing."""
    image = read_image(sample.image, preprocessing.channels)
    if not short_side_px:
        return image, sample
    longest = round(LONGEST * short_side_px)
    resized = resize_short_side(image, short_side_px, long_side_px=longest)
    ratio = np.array([resized.shape[2] / image.shape[2], resized.shape[1] / image.shape[1]] * 2)
    boxes = (annotated_boxes(sample) * ratio).astype(np.float32)
    return resized, replace(sample, boxes=boxes)


def found_on(
    model: Network, normalise: nn.Module, image: UInt8Image, *, device: torch.device | str
) -> Detections:
    """Return the detections on a photograph, clipped to it."""
    padded = pad_to_stride(image, model.preprocessing)[np.newaxis]
    pixels = normalise(torch.from_numpy(padded).to(device))
    answers = model(pixels.contiguous(memory_format=torch.channels_last))
    boxes, scores, labels = (each[0].float().cpu().numpy() for each in answers)
    height, width = image.shape[1:]
    clipped = np.clip(boxes, 0, np.array([width, height] * 2, np.float32))
    kept = (scores > 0) & (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    return Detections(
        boxes=clipped[kept], scores=scores[kept], labels=labels[kept].astype(np.int64)
    )
