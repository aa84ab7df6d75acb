"""Structured knowledge transfer: a student learns to count from annotations and from a teacher."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from crowdrt.learning import Transfer
from crowdrt.models.network import Network
from crowdrt.models.skt import SktStudent
from crowdrt.models.taps import StudentOutputs, tapped_channels
from crowdrt.training.counting.crops import Batch
from crowdrt.training.transfer.distances import inter_distance, intra_distance
from crowdrt.training.transfer.taught import TaughtTask


class TransferTask(TaughtTask):
    """A student beside its teacher (SKT, equation 8)."""

    @property
    def transfer(self) -> Transfer:
        """What is transferred."""
        assert self.config.transfer is not None
        return self.config.transfer

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
        answer: StudentOutputs = model.forward_train(image)  # type: ignore[operator]
        assert answer.density is not None
        soft, theirs = self.ask_teacher(image)
        terms: dict[str, Tensor] = {}
        if self.transfer.ground_truth != "soft":
            terms |= self.map_losses(answer.density, target, batch)
        if self.transfer.ground_truth != "hard":
            found = self.map_losses(answer.density, soft, batch, loss=self.soft_loss)
            terms |= {f"soft_{k}": self.transfer.soft_weight * v for k, v in found.items()}
        return terms | self.distances(answer, soft, theirs)

    def distances(
        self, answer: StudentOutputs, soft: Tensor, theirs: list[Tensor]
    ) -> dict[str, Tensor]:
        """Return the terms of Intra-PT and Inter-RT, as far as the recipe has them."""
        assert answer.density is not None
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
