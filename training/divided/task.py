"""Learning a count with density maps as teachers: DeepCount's gradient fusion as a task."""

from collections.abc import Mapping
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crowdrt.contracts import Sample
from crowdrt.errors import TrainingError
from crowdrt.learning import GradientFusion, TrainingConfig
from crowdrt.models import build_model
from crowdrt.models.deepcount import BRANCHES, DeepCount
from crowdrt.models.network import Network, Normalise, fold_blocks
from crowdrt.training.batch_norm import AddedNorm, add_batch_norm
from crowdrt.training.counting.sets import TrainingSet, annotation_of, check_validation
from crowdrt.training.divided.evaluate import divided_errors
from crowdrt.training.divided.losses import fusion_losses
from crowdrt.training.divided.tiles import TileBatch, TileSource
from crowdrt.training.task import Task


class DeepCountTask(Task[Sample]):
    """DeepCount or its ablation, photographs, and the loss of the count and the maps.

    A branch that the recipe leaves out (Table 9) is neither computed nor trained, and answers
    nobody anywhere in what ships: a map of it cannot be exported unnoticed.

    Args:
        network: `deepcount` or `deepcount-relu`.
        width: at which width.
        config: `fusion` says which branches take part and how their errors are weighed.
        data: what to learn from, and what to choose the best network by.
        pretrained: weights that it begins with where their names and shapes agree, or None.

    Raises:
        TrainingError: another network, or photographs that cannot be trained on.
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
        super().__init__(network, width, config, data, pretrained=pretrained)
        self.fusion = config.fusion or GradientFusion()
        with torch.device("meta"):
            plain = build_model(network, width)
        if not isinstance(plain, DeepCount):
            raise TrainingError(
                f"{network} counts without branches, so there are no gradients to fuse",
                fix="leave out `fusion` in its recipe, or train deepcount",
            )
        check_validation(data.validation)
        self.normalise = Normalise(plain.preprocessing)
        self.source = TileSource(
            data.groups,
            plain.fixed_size,
            plain.density_stride,
            plain.preprocessing,
            config,
            self.fusion,
        )

    @property
    def left_out(self) -> list[str]:
        """The attributes of the branches that take no part."""
        return [name for cells, name in BRANCHES.items() if cells not in self.fusion.branches]

    def build(self) -> Network:
        """Return the network, normalised as the recipe says; a branch left out does not learn."""
        model = self.begun()
        for name in self.left_out:
            getattr(model, name).requires_grad_(False)
        return self.normed(model)

    def normed(self, model: Network) -> Network:
        """Add what the recipe normalises by, in place.

        Not before the summary's activation: it is a single cell, whose statistics over a batch
        are those of a handful of numbers.
        """
        if self.config.batch_norm:
            assert isinstance(model, DeepCount)
            for part in (model.front_end, model.first, model.halvings):
                add_batch_norm(part)
        return model

    def parameter_groups(self, model: Network) -> list[dict[str, Any]]:
        """Return the front end at its own rate (half in the paper), and kernels alone decaying.

        Equation 6 has the L2 norm of all parameters; the published code takes kernels', as here.
        """
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                place = name.startswith("front_end."), parameter.ndim > 1
                groups.setdefault(place, []).append(parameter)
        return [
            {
                "params": parameters,
                "scale": self.config.backbone_rate if in_front else 1.0,
                "weight_decay": self.config.weight_decay if kernels else 0.0,
            }
            for (in_front, kernels), parameters in groups.items()
        ]

    def batch(self, step: int, members: range) -> TileBatch:
        """Return some tiles and crops of a step's batch."""
        return self.source.batch(step, members)

    def losses(
        self, model: nn.Module, batch: TileBatch, *, device: torch.device
    ) -> Mapping[str, Tensor]:
        """Return the errors of the count and of the maps."""
        pixels = self.normalise.to(device)(torch.from_numpy(batch.images).to(device))
        image = pixels.contiguous(memory_format=torch.channels_last)
        outputs = model.forward_train(image, self.fusion.branches)  # type: ignore[operator]
        return fusion_losses(outputs, torch.from_numpy(batch.density).to(device), self.fusion)

    def shipped(self, state: Mapping[str, Tensor]) -> Network:
        """Return the network as `build_model` makes it; a branch that never learned answers 0."""
        model = self.normed(build_model(self.network, self.width))
        model.load_state_dict(state)
        with torch.no_grad():
            for name in self.left_out:
                for parameter in getattr(model, name).density_head.parameters():
                    parameter.zero_()
        return fold_blocks(model, only=AddedNorm)  # type: ignore[return-value]

    def validate(self, model: Network, device: torch.device) -> Mapping[str, float]:
        """Return the errors of the count on whole photographs, by divide and merge."""
        return asdict(divided_errors(model, self.data.validation, device=device))

    def annotation_of(self, sample: Sample) -> bytes:
        """Return the heads and the region of a photograph."""
        return annotation_of(sample)
