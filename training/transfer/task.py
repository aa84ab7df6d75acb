"""Structured knowledge transfer: a student learns to count from annotations and from a teacher."""

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor, nn

from crowdrt.learning import TrainingConfig
from crowdrt.models.network import Network
from crowdrt.models.skt import SktOutputs, SktStudent
from crowdrt.models.taps import tapped_channels
from crowdrt.training.counting.crops import Batch
from crowdrt.training.counting.sets import TrainingSet
from crowdrt.training.transfer.distances import inter_distance, intra_distance
from crowdrt.training.transfer.taught import TaughtTask


class TransferTask(TaughtTask):
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
        super().__init__(
            *(network, width, config, data),
            teacher=teacher,
            taps=config.transfer.taps,
            pretrained=pretrained,
        )
        self.transfer = config.transfer

    def build(self) -> Network:
        """Return the student with its adapters."""
        return SktStudent(
            self.counter(),
            taps=self.transfer.taps,
            channels=tapped_channels(self.teacher, self.taps),
            relu=self.transfer.adapter_relu,
        )

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
