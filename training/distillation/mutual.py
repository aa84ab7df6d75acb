"""DML: two students that begin differently and learn from each other; there is no teacher.

Zhang, Xiang, Hospedales and Lu, "Deep Mutual Learning", CVPR 2018, arXiv:1706.00384. The paper adds
the Kullback-Leibler divergence from the peer's class probabilities. A density map is no
distribution over classes: here the peer's map is compared as the annotation's is, by squared errors
in the recipes that follow papers. The paper updates the two in turn, here both take every step.
"""

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor, nn

from crowdrt.errors import TrainingError
from crowdrt.learning import TrainingConfig
from crowdrt.models.network import Network
from crowdrt.training.counting.crops import Batch
from crowdrt.training.counting.sets import TrainingSet
from crowdrt.training.distillation.student import Peers
from crowdrt.training.transfer.taught import StudentTask


class MutualTask(StudentTask):
    """Two students; the first one is validated and ships.

    Args:
        network: of both.
        width: of both.
        config: with a `distillation`.
        data: what to learn from, and what to choose the best network by.
        pretrained: must be None.

    Raises:
        TrainingError: both would begin with the same weights, and answer alike for ever.
    """

    def __init__(
        self,
        network: str,
        width: Fraction,
        config: TrainingConfig,
        data: TrainingSet,
        *,
        pretrained: Path | None = None,
    ) -> None:
        assert config.distillation is not None
        if pretrained is not None:
            raise TrainingError(
                f"two students that both begin with {pretrained} have nothing to tell each other",
                fix="leave --init out: they learn mutually from two random beginnings",
            )
        super().__init__(network, width, config, data)
        self.options = config.distillation

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
        terms: dict[str, Tensor] = {}
        for name, mine, other in zip(("", "peer_"), maps, reversed(maps), strict=True):
            hard = self.map_losses(mine, target, batch)
            soft = self.map_losses(mine, other.detach().float(), batch, loss=self.soft_loss)
            terms |= {f"{name}{k}": v for k, v in hard.items()}
            terms |= {f"{name}soft_{k}": self.options.soft_weight * v for k, v in soft.items()}
        return terms
