"""Which task a method of distillation is."""

from fractions import Fraction
from pathlib import Path
from typing import assert_never

from crowdrt.errors import TrainingError
from crowdrt.learning import TrainingConfig
from crowdrt.training.counting.sets import TrainingSet
from crowdrt.training.counting.task import DensityTask
from crowdrt.training.distillation.features import FeatureTask
from crowdrt.training.distillation.mutual import MutualTask
from crowdrt.training.distillation.stages import BoundaryTask, HintTask


def distillation_task(
    network: str,
    width: Fraction,
    config: TrainingConfig,
    data: TrainingSet,
    *,
    teacher: Path | None,
    pretrained: Path | None = None,
) -> DensityTask:
    """Return the task of the method that a recipe names.

    Args:
        network: the student's, and the teacher's.
        width: the student's.
        config: with a `distillation`.
        data: what to learn from, and what to choose the best network by.
        teacher: the teacher's weights; None for the method that has none.
        pretrained: weights that the student begins with, or None.

    Raises:
        TrainingError: the teacher is another network, or two students would begin alike.
    """
    assert config.distillation is not None
    about = (network, width, config, data)
    if config.distillation.method == "dml":
        if pretrained is not None:
            raise TrainingError(
                f"two students that both begin with {pretrained} have nothing to tell each other",
                fix="leave --init out: they learn mutually from two random beginnings",
            )
        return MutualTask(*about)
    assert teacher is not None
    match config.distillation.method:
        case "fitnets":
            return HintTask(*about, teacher=teacher, pretrained=pretrained)
        case "ab":
            return BoundaryTask(*about, teacher=teacher, pretrained=pretrained)
        case "nst" | "at":
            return FeatureTask(*about, teacher=teacher, pretrained=pretrained)
        case unknown:
            assert_never(unknown)
