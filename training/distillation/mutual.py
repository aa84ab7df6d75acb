"""DML: two students that begin differently and learn from each other; there is no teacher.

Zhang, Xiang, Hospedales and Lu, "Deep Mutual Learning", CVPR 2018, arXiv:1706.00384. The paper adds
the Kullback-Leibler divergence from the peer's class probabilities. A density map is no
distribution over classes: here the peer's map is compared as the annotation's is, by squared errors
in the recipes that follow papers. The paper updates the two in turn, here both take every step.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from crowdrt.models.network import Network
from crowdrt.training.counting.crops import Batch
from crowdrt.training.transfer.taught import StudentTask


class Peers(Network):
    """Two students of one width; the first ships."""

    train_only = ("peer",)

    def __init__(self, student: Network, peer: Network) -> None:
        super().__init__()
        self.student, self.peer = student, peer
        self.preprocessing = student.preprocessing
        self.density_stride = student.density_stride
        self.whole_image = student.whole_image

    def forward(self, image: Tensor) -> Any:
        """Return what the student does."""
        return self.student(image)

    def forward_train(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the densities of both."""
        return self.student(image), self.peer(image)


class MutualTask(StudentTask):
    """Two students of one network and width; the first one is validated and ships."""

    def build(self) -> Network:
        """Return both, drawn one after the other."""
        return Peers(self.counter(), self.counter())

    def before_step(self, model: nn.Module, step: int) -> None:
        """Change both networks as the step asks."""
        super().before_step(model, step)
        self.shaping.before_step(model.get_submodule("peer"), step)

    def losses(
        self, model: nn.Module, batch: Batch, *, device: torch.device
    ) -> Mapping[str, Tensor]:
        """Return both students' errors against the annotation and against each other's map."""
        image, target = self.on_device(batch, device)
        maps = model.forward_train(image)  # type: ignore[operator]
        assert self.config.distillation is not None
        weight, terms = self.config.distillation.soft_weight, dict[str, Tensor]()
        for name, mine, other in zip(("", "peer_"), maps, reversed(maps), strict=True):
            hard = self.map_losses(mine, target, batch)
            soft = self.map_losses(mine, other.detach().float(), batch, loss=self.soft_loss)
            terms |= {f"{name}{k}": v for k, v in hard.items()}
            terms |= {f"{name}soft_{k}": weight * v for k, v in soft.items()}
        return terms
