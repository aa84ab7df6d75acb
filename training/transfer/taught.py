"""A student that learns beside others: what is shipped of it, and a teacher that is asked."""

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crowdrt.errors import TrainingError
from crowdrt.learning import TrainingConfig
from crowdrt.manifest import sha256_file
from crowdrt.models.network import Network
from crowdrt.models.taps import TapList, forward_tapped, taps_of
from crowdrt.models.weights import load_network
from crowdrt.training.counting.losses import squared
from crowdrt.training.counting.sets import TrainingSet
from crowdrt.training.counting.task import DensityTask
from crowdrt.training.counting.truth import CountingLoss

PREFIX = "student."  # of the network that ships, beside what only training needs


class StudentTask(DensityTask):
    """One whose `build` returns the network that ships as `student`, and others beside it."""

    @property
    def soft_loss(self) -> CountingLoss:
        """The loss between an answer and another network's map.

        The Bayesian loss knows heads alone; of a map it would see nothing.
        """
        return squared if self.config.loss == "bayesian" else self.count_loss

    def counting(self, model: nn.Module) -> nn.Module:
        """Return the student without what only training needs."""
        return model.get_submodule(PREFIX.removesuffix("."))

    def shipped(self, state: Mapping[str, Tensor]) -> Network:
        """Return the student without what only training needs."""
        own = {n.removeprefix(PREFIX): t for n, t in state.items() if n.startswith(PREFIX)}
        return super().shipped(own)


class TaughtTask(StudentTask):
    """A student beside its teacher.

    Args:
        network: the student's, and the teacher's.
        width: the student's.
        config: with a `transfer` or a `distillation`, whose `taps` say where features are taken.
        data: what to learn from, and what to choose the best network by.
        teacher: the teacher's weights; its width is theirs.
        pretrained: weights that the student begins with, or None.

    Raises:
        TrainingError: the teacher is another network.

    Attributes:
        forward_tapped: runs a network and returns its answer and the features at the taps.
    """

    forward_tapped = staticmethod(forward_tapped)

    def __init__(
        self,
        network: str,
        width: Fraction,
        config: TrainingConfig,
        data: TrainingSet,
        *,
        teacher: Path,
        pretrained: Path | None = None,
    ) -> None:
        super().__init__(network, width, config, data, pretrained=pretrained)
        self.teacher_path = teacher
        self.teacher, name, _ = load_network(teacher)
        if name != network:
            raise TrainingError(
                f"{teacher} holds {name}, which cannot teach {network} layer by layer",
                fix=f"name weights of {network}: --teacher {network}.safetensors",
            )
        self.teacher.requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.taps = self.compared(taps_of(self.teacher, config.taps))

    def compared(self, taps: TapList) -> TapList:
        """Return at which of the taps the two are compared: at all of them by default."""
        return taps

    def ask_teacher(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the teacher's map, in float32, and its features."""
        teacher = self.teacher.to(image.device)
        with torch.no_grad():
            if self.config.precision == "32-true":
                soft, theirs = self.forward_tapped(teacher, self.taps, image)
            else:
                kind = torch.bfloat16 if self.config.precision == "bf16-mixed" else torch.float16
                with torch.autocast(image.device.type, kind):
                    soft, theirs = self.forward_tapped(teacher, self.taps, image)
        return soft.float(), theirs

    def made_from(self) -> dict[str, Any]:
        """Return the photographs and the teacher."""
        return super().made_from() | {"teacher": sha256_file(self.teacher_path)}
