"""FitNets and AB: first the teacher's features, then the task.

Both papers train twice, each time with an optimiser of its own; here the two stages share a run's
steps, its schedule and its moments, so that every method takes the steps of the others.
"""

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from crowdrt.errors import TrainingError
from crowdrt.models.skt import adapter
from crowdrt.models.taps import StudentOutputs, TapList, forward_before_relu
from crowdrt.training.counting.crops import Batch
from crowdrt.training.distillation.distances import boundary_distance, hint_distance
from crowdrt.training.distillation.features import DistillationTask
from crowdrt.training.transfer.distances import Features


class StagedTask(DistillationTask):
    """A student that learns the teacher's features alone, and behind them the task.

    In the first stage the layers behind the last tapped one keep their values, and in the second
    the adapters do.
    """

    partial = True

    @property
    def first_steps(self) -> int:
        """How many steps the first stage takes; each stage has one at least."""
        steps = self.config.steps
        return max(1, min(steps - 1, round(steps * self.options.first_stage)))

    def losses(
        self, model: nn.Module, batch: Batch, *, device: torch.device
    ) -> Mapping[str, Tensor]:
        """Return the distance of the features, or the terms of the second stage."""
        image, target = self.on_device(batch, device)
        if batch.step >= self.first_steps:
            return self.second_stage(model, image, target, batch)
        answer: StudentOutputs = model.forward_train(image, answer=False)  # type: ignore[operator]
        _, theirs = self.ask_teacher(image)
        distance = self.distance(answer.features, theirs)
        return {self.options.method: self.options.weight * distance}

    @abstractmethod
    def distance(self, ours: Features, theirs: Features) -> Tensor:
        """Return what the first stage descends."""

    @abstractmethod
    def second_stage(
        self, model: nn.Module, image: Tensor, target: Tensor, batch: Batch
    ) -> dict[str, Tensor]:
        """Return the terms of the second stage."""


class HintTask(StagedTask):
    """FitNets: a hint for the layers up to the guided one, then annotation and teacher's map.

    The regressor ends in the nonlinearity of the hint. The second stage is the paper's knowledge
    distillation, for a map: what it softens by a temperature, the teacher's answer, is a map here.

    Raises:
        TrainingError: there are fewer taps than the number of the hint.
    """

    def compared(self, taps: TapList) -> TapList:
        """Return where the hint is taken."""
        hint = self.options.hint
        if not 0 <= hint < len(taps):
            raise TrainingError(
                f"hint={hint}: {self.network} has the taps 0 to {len(taps) - 1}",
                fix=f"choose one of them: --set distillation.hint={len(taps) // 2}",
            )
        return taps[hint : hint + 1]

    def adapter(self, narrow: int, wide: int) -> nn.Module:
        """Return the regressor from the guided layer to the hint."""
        return adapter(narrow, wide, relu=True)

    def distance(self, ours: Features, theirs: Features) -> Tensor:
        """Return the distance to the hint."""
        return hint_distance(ours, theirs, mean=self.options.mean)

    def second_stage(
        self, model: nn.Module, image: Tensor, target: Tensor, batch: Batch
    ) -> dict[str, Tensor]:
        """Return the errors against the annotation and against the teacher's map."""
        density = model(image)
        soft, _ = self.ask_teacher(image)
        hard = self.map_losses(density, target, batch)
        found = self.map_losses(density, soft, batch, loss=self.soft_loss)
        weight = self.soft_weight(batch.step)
        return hard | {f"soft_{k}": weight * v for k, v in found.items()}

    def soft_weight(self, step: int) -> float:
        """Return the weight of the teacher's map, linear over the second stage."""
        begin, end = self.options.soft_weight, self.options.soft_last
        if end is None:
            return begin
        last = self.config.steps - 1
        done = (step - self.first_steps) / max(1, last - self.first_steps)
        return begin + done * (end - begin)


class BoundaryTask(StagedTask):
    """AB: which neurons are active where, then the task's loss alone."""

    forward_tapped = staticmethod(forward_before_relu)

    def adapter(self, narrow: int, wide: int) -> nn.Module:
        """Return the connector, which has no ReLU: it ends where the boundary is."""
        conv = nn.Conv2d(narrow, wide, kernel_size=1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(wide))

    def distance(self, ours: Features, theirs: Features) -> Tensor:
        """Return the distance of the boundaries."""
        return boundary_distance(ours, theirs, margin=self.options.margin, mean=self.options.mean)

    def second_stage(
        self, model: nn.Module, image: Tensor, target: Tensor, batch: Batch
    ) -> dict[str, Tensor]:
        """Return the error against the annotation."""
        return self.map_losses(model(image), target, batch)
