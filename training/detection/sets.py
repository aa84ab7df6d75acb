"""Which photographs a detector learns from, and which choose the best one.

Of MOT, whole scenes validate: neighbouring frames of one scene are nearly the same picture. No
published validation or test photograph takes part, since the tables are of those.
"""

from collections.abc import Sequence
from pathlib import Path

from crowdrt.console import say
from crowdrt.contracts import BoxSample
from crowdrt.data.boxes.datasets import BoxOptions, open_box_samples
from crowdrt.data.boxes.mot import SEQINFO
from crowdrt.data.synthetic.pedestrians import generate_pedestrians
from crowdrt.errors import DataError, TrainingError
from crowdrt.training.detection.crops import BoxGroup, annotated_boxes
from crowdrt.training.photographs.sources import (
    SYNTHETIC_SEED,
    SYNTHETIC_SHARE,
    Dataset,
    every_15th,
    joined,
)

SCENES_PER_VALIDATION = 4  # and every fourth scene
MIN_VISIBILITY = 0.25  # of MOT's people; who is seen less is ignored
TRAINING_FILES = ("annotation_train.odgt", "annotations/instances_train2017.json")


DetectionSet = Dataset[BoxSample]


def detection_set(data: Path | None, *, num_synthetic: int, synthetic: Path) -> DetectionSet:
    """Gather what to learn from.

    Args:
        data: CrowdHuman's or COCO's folder or annotation file, a MOT sequence or a folder of
            such; None: generated only.
        num_synthetic: how many photographs of pedestrians to generate beside it.
        synthetic: where to keep the generated ones.

    Raises:
        DataError: nothing annotated was found, or too little to validate.
    """
    parts = real_parts(data) if data is not None else []
    if num_synthetic:
        made = generate_pedestrians(synthetic, num_images=num_synthetic, seed=SYNTHETIC_SEED)
        share = SYNTHETIC_SHARE if parts else 1.0
        parts.append(every_15th(BoxGroup("synthetic", tuple(made), share)))
    found = joined(parts)
    num_learned = sum(len(group.samples) for group in found.groups)
    if not num_learned or not any(sample.annotated for sample in found.validation):
        raise DataError(
            f"{num_learned} annotated photographs are there to learn from and "
            f"{len(found.validation)} to choose the best detector by",
            fix="name more of CrowdHuman, COCO or MOT with --data DIR; of MOT at least two scenes",
        )
    return found


def real_parts(data: Path) -> list[DetectionSet]:
    """Return the photographs of a path, divided: by scenes where it holds MOT sequences."""
    if scenes := sorted(each.parent for each in data.glob(f"*/{SEQINFO}")):
        return [by_scene(scenes)]
    known = [data / name for name in TRAINING_FILES if (data / name).is_file()]
    source = known[0] if known else data
    samples = annotated_of(source)
    return [every_15th(BoxGroup(source.name, tuple(samples)))]


def by_scene(scenes: Sequence[Path]) -> DetectionSet:
    """Divide MOT sequences: the first and then every fourth scene validates.

    MOT17 holds each scene three times, once for each of its public detectors; one is taken. All
    scenes are learned from as often, however long; together they weigh as much as one source.
    """
    distinct = {scene_of(path): path for path in reversed(scenes)}
    names = sorted(distinct)
    held_out = names[::SCENES_PER_VALIDATION]
    validation = [sample for name in held_out for sample in annotated_of(distinct[name])]
    share = 1 / max(1, len(names) - len(held_out))
    groups = tuple(
        BoxGroup(name, tuple(annotated_of(distinct[name])), share)
        for name in names
        if name not in held_out
    )
    return DetectionSet(groups=groups, validation=tuple(validation))


def scene_of(folder: Path) -> str:
    """Return MOT17-02 for `MOT17-02-FRCNN`."""
    return "-".join(folder.name.split("-")[:2])


def annotated_of(path: Path) -> list[BoxSample]:
    """Return the annotated photographs of a path, and say what was left out."""
    samples = open_box_samples(path, BoxOptions(min_visibility=MIN_VISIBILITY))
    annotated = [sample for sample in samples if sample.boxes is not None]
    if left_out := len(samples) - len(annotated):
        say(f"{path}: {left_out} of {len(samples)} photographs are not annotated and left out")
    return annotated


def check_validation(samples: Sequence[BoxSample]) -> None:
    """Refuse what the best detector cannot be chosen by."""
    for sample in samples:
        annotated_boxes(sample)
    if not any(sample.annotated for sample in samples):
        raise TrainingError(
            f"the {len(samples)} photographs to choose the best detector by show nobody who is "
            "to be found",
            fix="give DetectionSet at least one annotated photograph with people for validation",
        )


def annotation_of(sample: BoxSample) -> bytes:
    """Return the boxes of a photograph and which of them are ignored, byte by byte."""
    return annotated_boxes(sample).tobytes() + sample.ignore.tobytes()
