"""Which photographs a network learns from, and which choose the best one.

Both parts of ShanghaiTech's training split and generated crowds, so that one small network
counts a dense square, a street and a newcomer's first picture. No test photograph takes part,
not even the byte-identical copy of one that the published Part A trains on.
"""

from pathlib import Path

from crowdrt.contracts import Sample
from crowdrt.data.datasets import open_samples
from crowdrt.data.shanghaitech import shanghaitech, without_copies
from crowdrt.data.synthetic import generate
from crowdrt.errors import DataError
from crowdrt.training.crops import SampleGroup
from crowdrt.training.loop import TrainingSet

VALIDATE_EVERY = 15  # every 15th training photograph validates instead
SYNTHETIC_SEED = 1_000  # far from the seeds that `crowdrt run` and newcomers use


def training_set(data: Path | None, *, num_synthetic: int, synthetic: Path) -> TrainingSet:
    """Gather what to learn from.

    Args:
        data: a folder that holds ShanghaiTech, or any annotated folder; None: generated only.
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
        groups.append(SampleGroup("synthetic", tuple(made), share=0.5 if groups else 1.0))
    if not groups:
        raise DataError(
            "there is nothing to learn from: no data folder, and no generated photographs",
            fix="name a data set: crowdrt train csrnet-quarter --data DIR",
        )
    learn: list[SampleGroup] = []
    validate: list[Sample] = []
    for group in groups:
        validate += group.samples[::VALIDATE_EVERY]
        rest = tuple(s for i, s in enumerate(group.samples) if i % VALIDATE_EVERY)
        learn.append(SampleGroup(group.name, rest, group.share))
    return TrainingSet(groups=tuple(learn), validation=tuple(validate))


def real_groups(data: Path) -> list[SampleGroup]:
    """Return ShanghaiTech's parts where the folder holds them, else its annotated photographs."""
    if not ((data / "ShanghaiTech").is_dir() or (data / "part_A").is_dir()):
        samples = tuple(s for s in open_samples(data) if s.heads is not None)
        return [SampleGroup(data.name, samples, share=1.0)] if samples else []
    parts: list[SampleGroup] = []
    for part in ("A", "B"):
        learn: list[Sample] = shanghaitech(data, part, "train")
        learn = without_copies(learn, shanghaitech(data, part, "test"))
        parts.append(SampleGroup(f"part {part}", tuple(learn), share=1.0))
    return parts
