"""What the loop trains: one interface between how a network learns and how a run goes on.

A task knows its network, its photographs and its losses. The loop knows devices, steps, rates,
checkpoints and progress, and nothing of crowds.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from crowdrt.learning import TrainingConfig
from crowdrt.models.network import Network


class Task(ABC):
    """One network to be trained.

    Attributes:
        network: its name.
        width: its width.
        config: the recipe's.
        score: the entry of `validate` that chooses the best network; less is better.
    """

    network: str
    width: Fraction
    config: TrainingConfig
    score: str = "mae"

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

    @abstractmethod
    def losses(
        self, model: nn.Module, batch: Any, *, step: int, device: torch.device
    ) -> Mapping[str, Tensor]:
        """Return the weighted terms whose sum is descended, each a scalar by its name.

        Each is a mean over the batch's members, so that equal parts of a batch average to it.

        Args:
            model: what `build` returned, set up by the loop: call it, or its `forward_train`.
            batch: what `batch` returned.
            step: from 0; some targets change on the way.
            device: where the model lies.
        """

    @abstractmethod
    def shipped(self, state: Mapping[str, Tensor]) -> Network:
        """Return what ships, on the CPU, from the state of what `build` returned."""

    @abstractmethod
    def validate(self, model: Network, device: torch.device) -> Mapping[str, float]:
        """Return the errors of what ships on photographs kept apart from training and test."""

    @abstractmethod
    def made_from(self) -> dict[str, Any]:
        """Return the photographs, the teacher and whatever else decides the weights, as JSON."""

    def parameter_groups(self, model: Network) -> list[dict[str, Any]]:
        """Return the optimiser's groups; a group's `scale` multiplies the learning rate."""
        return [{"params": list(model.parameters()), "scale": 1.0}]
