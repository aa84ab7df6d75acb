"""Structured knowledge transfer: a student learns to count from annotations and from a teacher."""

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
from crowdrt.models.skt import SktOutputs, SktStudent, forward_tapped, tapped_channels, taps_of
from crowdrt.models.weights import load_network
from crowdrt.training.counting.crops import Batch
from crowdrt.training.counting.losses import squared
from crowdrt.training.counting.sets import TrainingSet
from crowdrt.training.counting.task import DensityTask
from crowdrt.training.transfer.distances import inter_distance, intra_distance

PREFIX = "student."  # of the network that ships, beside its adapters


class TransferTask(DensityTask):
    """A student beside its teacher (SKT, equation 8).

    Args:
        network: the student's, and the teacher's.
        width: the student's.
        config: with a `transfer`.
        data: what to learn from, and what to choose the best network by.
        teacher: the teacher's weights; its width is theirs.
        pretrained: weights that the student begins with, or None.

    Raises:
        TrainingError: the teacher is another network.
    """

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
        assert config.transfer is not None
        super().__init__(network, width, config, data, pretrained=pretrained)
        self.transfer, self.teacher_path = config.transfer, teacher
        self.teacher, name, _ = load_network(teacher)
        if name != network:
            raise TrainingError(
                f"{teacher} holds {name}, which cannot teach {network} layer by layer",
                fix=f"name weights of {network}: --teacher {network}.safetensors",
            )
        self.teacher.requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.taps = taps_of(self.teacher, self.transfer.taps)
        # the Bayesian loss knows heads alone; of a teacher's map it would see nothing
        self.soft_loss = squared if config.loss == "bayesian" else self.count_loss

    def build(self) -> Network:
        """Return the student with its adapters."""
        return SktStudent(
            self.counter(),
            taps=self.transfer.taps,
            channels=tapped_channels(self.teacher, self.taps),
            relu=self.transfer.adapter_relu,
        )

    def counting(self, model: nn.Module) -> nn.Module:
        """Return the student without its adapters."""
        assert isinstance(model, SktStudent)
        return model.student

    def losses(
        self, model: nn.Module, batch: Batch, *, device: torch.device
    ) -> Mapping[str, Tensor]:
        """Return the errors of the map and the distances of the features; see `Transfer`."""
        image, target = self.on_device(batch, device)
        answer: SktOutputs = model.forward_train(image)  # type: ignore[operator]
        soft, theirs = self.ask_teacher(image)
        terms: dict[str, Tensor] = {}
        if self.transfer.ground_truth != "soft":
            terms |= self.map_losses(answer.density, target, batch)
        if self.transfer.ground_truth != "hard":
            found = self.map_losses(answer.density, soft, batch, loss=self.soft_loss)
            terms |= {f"soft_{k}": self.transfer.soft_weight * v for k, v in found.items()}
        return terms | self.distances(answer, soft, theirs)

    def ask_teacher(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the teacher's map, in float32, and its features."""
        teacher = self.teacher.to(image.device)
        with torch.no_grad():
            if self.config.precision == "32-true":
                soft, theirs = forward_tapped(teacher, self.taps, image)
            else:
                kind = torch.bfloat16 if self.config.precision == "bf16-mixed" else torch.float16
                with torch.autocast(image.device.type, kind):
                    soft, theirs = forward_tapped(teacher, self.taps, image)
        return soft.float(), theirs

    def distances(
        self, answer: SktOutputs, soft: Tensor, theirs: list[Tensor]
    ) -> dict[str, Tensor]:
        """Return the terms of Intra-PT and Inter-RT, as far as the recipe has them."""
        options, ours = self.transfer, list(answer.features)
        terms = {}
        if options.intra is not None:
            value = intra_distance(ours, theirs, options.intra, mean=options.mean)
            terms["intra"] = options.intra_weight * value
        if options.inter is not None:
            if options.with_density:
                ours, theirs = [*ours, answer.density], [*theirs, soft]
            value = inter_distance(
                *(ours, theirs, options.inter), normalise=options.normalise, mean=options.mean
            )
            terms["inter"] = options.inter_weight * value
        return terms

    def shipped(self, state: Mapping[str, Tensor]) -> Network:
        """Return the student without its adapters."""
        own = {n.removeprefix(PREFIX): t for n, t in state.items() if n.startswith(PREFIX)}
        return super().shipped(own)

    def made_from(self) -> dict[str, Any]:
        """Return the photographs and the teacher."""
        return super().made_from() | {"teacher": sha256_file(self.teacher_path)}
