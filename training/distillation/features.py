"""AT and NST: one stage, and a distance between features that needs no adapter."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from crowdrt.learning import Distillation
from crowdrt.models.layers import initialise
from crowdrt.models.network import Network
from crowdrt.models.taps import StudentOutputs, TappedStudent, tapped_channels
from crowdrt.training.counting.crops import Batch
from crowdrt.training.distillation.distances import attention_distance, selectivity_distance
from crowdrt.training.transfer.taught import TaughtTask


class DistillationTask(TaughtTask):
    """A student beside a teacher whose features it is compared with."""

    @property
    def options(self) -> Distillation:
        """How."""
        assert self.config.distillation is not None
        return self.config.distillation

    def build(self) -> Network:
        """Return the student, tapped, with what adapts its features."""
        student = self.counter()
        narrow = tapped_channels(student, self.taps)
        wide = tapped_channels(self.teacher, self.taps)
        adapters = nn.ModuleList(self.adapter(*pair) for pair in zip(narrow, wide, strict=True))
        initialise(adapters)
        return TappedStudent(student, self.taps, adapters, self.forward_tapped)

    def adapter(self, narrow: int, wide: int) -> nn.Module:  # noqa: ARG002
        """Return what turns a feature of the student into as many channels as the teacher's.

        Nothing does by default: not every method needs it.
        """
        return nn.Identity()


class FeatureTask(DistillationTask):
    """The error of the map, and AT's or NST's distance of the features."""

    def losses(
        self, model: nn.Module, batch: Batch, *, device: torch.device
    ) -> Mapping[str, Tensor]:
        """Return the terms of the method."""
        image, target = self.on_device(batch, device)
        answer: StudentOutputs = model.forward_train(image)  # type: ignore[operator]
        assert answer.density is not None
        _, theirs = self.ask_teacher(image)
        terms = self.map_losses(answer.density, target, batch)
        return terms | {self.options.method: self.distance(answer.features, theirs)}

    def distance(self, ours: tuple[Tensor, ...], theirs: list[Tensor]) -> Tensor:
        """Return the method's distance, weighted."""
        if self.options.method == "nst":
            return self.options.weight * selectivity_distance(ours, theirs)
        return self.options.weight * attention_distance(ours, theirs, mean=self.options.mean)
