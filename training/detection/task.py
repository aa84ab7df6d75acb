"""Learning to find people without suppression: DSLA, and OneNet without its SLA branch."""

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crowdrt.contracts import BoxSample
from crowdrt.errors import TrainingError
from crowdrt.learning import Assignment, TrainingConfig
from crowdrt.models import build_model
from crowdrt.models.dsla import DSLA
from crowdrt.models.network import Network, Normalise
from crowdrt.training.detection.crops import BoxBatch, BoxCrops
from crowdrt.training.detection.evaluate import detection_errors
from crowdrt.training.detection.losses import People, detection_losses
from crowdrt.training.detection.sets import DetectionSet, annotation_of, check_validation
from crowdrt.training.task import Task


class DetectionTask(Task[BoxSample]):
    """One detector, its photographs and its losses.

    Args:
        network: `dsla`, or `onenet` without Feature Shuffle.
        width: at which width.
        config: its `assignment` says which cells learn whom.
        data: what to learn from, and what to choose the best network by.
        pretrained: weights that it begins with where their names and shapes agree, or None.

    Raises:
        TrainingError: it does not detect, or crops or photographs cannot be trained on.
    """

    score = "missed_ap50"

    def __init__(
        self,
        network: str,
        width: Fraction,
        config: TrainingConfig,
        data: DetectionSet,
        *,
        pretrained: Path | None = None,
    ) -> None:
        super().__init__(network, width, config, data, pretrained=pretrained)
        plain = build_model(network, width)
        self.assignment = check_settings(network, plain, config)
        check_validation(data.validation)
        self.normalise = Normalise(plain.preprocessing)
        self.crops = BoxCrops(data.groups, plain.preprocessing, config)

    def build(self) -> Network:
        """Return the network; heads that no loss reads stay as they are.

        Frozen they need no gradient, for which processes that train together would wait.
        """
        model = self.begun()
        assert isinstance(model, DSLA)
        model.centerness_head.requires_grad_(False)
        model.sla_head.requires_grad_(self.assignment.soft)
        return model

    def parameter_groups(self, model: Network) -> list[dict[str, Any]]:
        """Return all that learns."""
        return [{"params": [each for each in model.parameters() if each.requires_grad], "scale": 1}]

    def batch(self, step: int, members: range) -> BoxBatch:
        """Return some crops of a step's batch."""
        return self.crops.batch(step, members)

    def losses(
        self, model: nn.Module, batch: BoxBatch, *, device: torch.device
    ) -> Mapping[str, Tensor]:
        """Return the terms of both branches; the soft targets fall from step to step."""
        pixels = self.normalise.to(device)(torch.from_numpy(batch.images).to(device))
        outputs = model.forward_train(pixels.contiguous(memory_format=torch.channels_last))  # type: ignore[operator]
        return detection_losses(
            outputs,
            people_of(batch, device),
            self.assignment,
            side_px=self.config.crop_px,
            step=batch.step,
            steps=self.config.steps,
        )

    def shipped(self, state: Mapping[str, Tensor]) -> Network:
        """Return the network as `build_model` makes it; exporting drops the SLA head."""
        model = build_model(self.network, self.width)
        model.load_state_dict(state)
        return model

    def validate(self, model: Network, device: torch.device) -> Mapping[str, float]:
        """Return the errors on whole photographs."""
        return detection_errors(
            model, self.data.validation, short_side_px=self.config.short_side_px, device=device
        )

    def annotation_of(self, sample: BoxSample) -> bytes:
        """Return the boxes of a photograph and which of them are ignored."""
        return annotation_of(sample)


def people_of(batch: BoxBatch, device: torch.device) -> list[People]:
    """Return who is on each crop of a batch, as tensors."""
    boxes = (torch.from_numpy(each).to(device) for each in batch.boxes)
    ignore = (torch.from_numpy(each).to(device) for each in batch.ignore)
    return [People(b[~i], b[i]) for b, i in zip(boxes, ignore, strict=True)]


def check_settings(network: str, model: Network, config: TrainingConfig) -> Assignment:
    """Refuse what a detector cannot learn by, and return its assignment."""
    if not isinstance(model, DSLA) or config.assignment is None:
        raise TrainingError(
            f"{network} with assignment={config.assignment} does not learn from boxes",
            fix="train a detector's recipe: crowdrt recipes",
        )
    if config.batch_norm:
        raise TrainingError(
            f"{network} is normalised as it is; more would ship with it",
            fix="use batch_norm=False",
        )
    stride = model.preprocessing.stride
    if config.crop_px % stride or config.crops == "ratio":
        raise TrainingError(
            f"crops={config.crops!r} with crop_px={config.crop_px}: a detector learns from "
            f'"scaled" or "fixed" crops in multiples of {stride} px',
            fix=f'use crops="scaled" and crop_px={max(1, round(config.crop_px / stride)) * stride}',
        )
    return config.assignment
