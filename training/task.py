"""What the loop trains: one interface between how a network learns and how a run goes on.

A task knows its network, its photographs and its losses. The loop knows devices, steps, rates,
checkpoints and progress, and nothing of crowds.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor, nn

from crowdrt.learning import TrainingConfig
from crowdrt.models import build_model
from crowdrt.models.network import Network
from crowdrt.training.initial import initialise
from crowdrt.training.photographs.sources import Dataset, S, images_of
from crowdrt.training.pretrained import load_all, load_by_name, sha256_of


class Task(ABC, Generic[S]):
    """One network to be trained.

    Args:
        network: what to build.
        width: at which width.
        config: the recipe's: crops, losses, optimiser, steps.
        data: what to learn from, and what to choose the best network by.
        pretrained: weights that it begins with where their names and shapes agree, or None.

    Attributes:
        score: the entry of `validate` that chooses the best network; less is better.
        partial: whether the losses of some step leave parameters out. Those keep their values, and
            several devices have to look for them at every step.
    """

    score: str = "mae"
    partial: bool = False

    def __init__(
        self,
        network: str,
        width: Fraction,
        config: TrainingConfig,
        data: Dataset[S],
        *,
        pretrained: Path | None = None,
    ) -> None:
        self.network, self.width, self.config, self.data = network, width, config, data
        self.pretrained = pretrained

    def begun(self) -> Network:
        """Return the network as it begins, with nothing yet that only training needs."""
        model = build_model(self.network, self.width)
        initialise(model, self.config.initial)
        if self.config.pruning is not None or self.config.quantization is not None:
            load_all(model, self.pretrained, network=self.network, width=self.width)
        elif self.pretrained is not None:
            load_by_name(model, self.pretrained)
        return model

    @abstractmethod
    def build(self) -> Network:
        """Return the network to be trained, with everything that only training needs.

        The loop has seeded PyTorch's generator; equal seeds give equal weights.
        """

    @abstractmethod
    def batch(self, step: int, members: range) -> Any:
        """Return some members of a step's batch, as NumPy arrays; called in a thread.

        A pure function of the seed, the step and a member's number in 0..batch_size-1. So devices
        share a batch, and a killed run goes on, with what one undisturbed process would see.
        """

    def before_step(self, model: nn.Module, step: int) -> None:
        """Change what `build` returned as a step, from 0, asks; nothing is changed by default.

        A function of the step and of the model's state, which a checkpoint holds.
        """

    @abstractmethod
    def losses(self, model: nn.Module, batch: Any, *, device: torch.device) -> Mapping[str, Tensor]:
        """Return the weighted terms whose sum is descended, each a scalar by its name.

        Each is a mean over the batch's members, so that equal parts of a batch average to it.

        Args:
            model: what `build` returned, set up by the loop: call it, or its `forward_train`.
            batch: what `batch` returned.
            device: where the model lies.
        """

    @abstractmethod
    def shipped(self, state: Mapping[str, Tensor]) -> Network:
        """Return what ships, on the CPU, from the state of what `build` returned."""

    @abstractmethod
    def validate(self, model: Network, device: torch.device) -> Mapping[str, float]:
        """Return the errors of what ships on photographs kept apart from training and test."""

    @abstractmethod
    def annotation_of(self, sample: S) -> bytes:
        """Return what is annotated on a photograph, byte by byte."""

    def made_from(self) -> dict[str, Any]:
        """Return the photographs and whatever else decides the weights, as JSON."""
        return {
            "images": images_of(self.data, self.annotation_of),
            "pretrained": sha256_of(self.pretrained),
        }

    def parameter_groups(self, model: Network) -> list[dict[str, Any]]:
        """Return the optimiser's groups; a group's `scale` multiplies the learning rate."""
        return [{"params": list(model.parameters()), "scale": 1.0}]
