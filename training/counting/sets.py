"""Which photographs a network learns from, and which choose the best one.

The training splits of every published set that a folder holds, and generated crowds: the shipped
student learned from both parts of ShanghaiTech, so that one small network counts a dense square, a
street and a newcomer's first picture. No test photograph takes part, not even the byte-identical
copy of one that the published Part A trains on.
"""

from collections.abc import Sequence
from pathlib import Path

from crowdrt.console import say
from crowdrt.contracts import Sample
from crowdrt.data.heads.datasets import open_samples, without_copies
from crowdrt.data.heads.splits import SetName, held_out_beside, known_sets, open_split
from crowdrt.data.synthetic.photographs import generate
from crowdrt.errors import DataError, TrainingError
from crowdrt.training.counting.crops import SampleGroup, annotated_heads
from crowdrt.training.photographs.sources import (
    SYNTHETIC_SEED,
    SYNTHETIC_SHARE,
    Dataset,
    every_15th,
    joined,
)

SHARES: dict[SetName, float] = {"shanghaitech-a": 0.4}  # of the crops; 1 for every other set


TrainingSet = Dataset[Sample]


def training_set(data: Path | None, *, num_synthetic: int, synthetic: Path) -> TrainingSet:
    """Gather what to learn from.

    Args:
        data: a folder that holds published sets, or any annotated folder; None: generated only.
        num_synthetic: how many crowds to generate beside it.
        synthetic: where to keep the generated ones.

    Raises:
        DataError: nothing annotated was found.
    """
    groups: list[SampleGroup] = []
    if data is not None:
        groups += real_groups(data)
    if num_synthetic:
        made = generate(synthetic, num_images=num_synthetic, seed=SYNTHETIC_SEED)
        groups.append(SampleGroup("synthetic", tuple(made), SYNTHETIC_SHARE if groups else 1.0))
    if not groups:
        raise DataError(
            "there is nothing to learn from: no data folder, and no generated photographs",
            fix="name a data set: crowdrt train csrnet-quarter --data DIR",
        )
    split = joined([every_15th(group) for group in groups])
    if not any(group.samples for group in split.groups):
        raise DataError(
            f"{len(split.validation)} annotated photograph(s) are too few: the first of each "
            "source validates, and nothing is left to learn from",
            fix="annotate more photographs; some dozens are a start",
        )
    return split


def real_groups(data: Path) -> list[SampleGroup]:
    """Return the training splits of the published sets in a folder, else its own photographs."""
    known = known_sets(data) if data.is_dir() else []
    if len(known) > 1:  # UCF_CC_50 has five folds and no split: only alone is it learned from
        known = [each for each in known if each.name != "ucf-cc-50"]
    if not known:
        return [annotated_group(data)]
    return [
        SampleGroup(
            each.name,
            tuple(open_split(each.root, "train", part=each.name)),
            share=SHARES.get(each.name, 1.0),
        )
        for each in known
    ]


def annotated_group(data: Path) -> SampleGroup:
    """Return the annotated photographs of a folder, and say what was left out."""
    samples = without_copies(open_samples(data), held_out_beside(data))
    annotated = tuple(sample for sample in samples if sample.heads is not None)
    if not annotated:
        raise DataError(
            f"none of the {len(samples)} photographs in {data} is annotated",
            fix='write IMAGE.heads.json beside each: {"heads": [[x, y], ...]} in pixels from 0',
        )
    if left_out := len(samples) - len(annotated):
        say(f"{data}: {left_out} of {len(samples)} photographs are not annotated and left out")
    return SampleGroup(data.name, annotated, share=1.0)


def check_validation(samples: Sequence[Sample]) -> None:
    """Refuse what the best network cannot be chosen by."""
    if not samples:
        raise TrainingError(
            "there is no annotated photograph to choose the best network by",
            fix="give TrainingSet at least one for validation",
        )
    for sample in samples:
        annotated_heads(sample)


def annotation_of(sample: Sample) -> bytes:
    """Return the heads and the region of a photograph, byte by byte."""
    heads = b"" if sample.heads is None else sample.heads.tobytes()
    return heads + (b"" if sample.roi is None else sample.roi.tobytes())
