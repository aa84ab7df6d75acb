"""Pruned networks as the loop trains them: channels close before the first step, or step by step.

L1Filter (Li et al., arXiv:1608.08710) and channel pruning (He et al., arXiv:1707.06168) remove
channels once and then learn on. AGP closes them while the network learns (Zhu and Gupta, "To Prune,
or Not to Prune", arXiv:1710.01878, equation 1); its paper closes single weights, here it is whole
filters, so that something can be removed.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from crowdrt.learning import Pruning, TrainingConfig
from crowdrt.models.narrowing import resize
from crowdrt.models.network import Network
from crowdrt.models.tensors import shapes
from crowdrt.training.pruning.budget import Kept, fitting
from crowdrt.training.pruning.groups import ChannelGroup, groups_of, mask, remove
from crowdrt.training.pruning.norms import filter_norms, smallest, smallest_filters
from crowdrt.training.pruning.reconstruction import rebuild_layers
from crowdrt.training.shaping import Crops, Shaping

GATE = "gate"  # a buffer beside a group's first weights: 1 while a channel is open


class OnceShaping(Shaping):
    """Channels are removed before the first step (L1Filter, CP).

    Args:
        config: with a `pruning`.
        crops: training crops to rebuild layers by.
    """

    def __init__(self, config: TrainingConfig, crops: Crops) -> None:
        super().__init__(config)
        self.pruning, self.crops = pruning_of(config), crops

    def begin(self, model: Network) -> Network:
        """Remove channels from a trained network, and prove that nothing else has changed."""
        groups = groups_of(model)
        kept = fit(model, groups, self.pruning)
        if self.pruning.method == "cp":
            crops = self.crops(self.pruning.crops)
            closed = rebuild_layers(model, groups, kept, crops, self.pruning.points)
        else:
            closed = smallest_filters(model, groups, kept)
        remove(model, groups, closed)
        return model

    def ship(self, model: Network, state: Mapping[str, Tensor]) -> Network:
        """Return the network, as narrow as its state is."""
        return filled(model, state)


class GradualShaping(Shaping):
    """Channels close while the network learns, those of the smallest filters first (AGP).

    What ships has the budget at any step: what is not closed yet is closed for it.

    Args:
        config: with a `pruning`.
    """

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__(config)
        self.pruning = pruning_of(config)
        self._plan: tuple[list[ChannelGroup], Kept] | None = None

    def begin(self, model: Network) -> Network:
        """Put an open gate before every channel."""
        groups, _ = self.plan(model)
        for group in groups:
            model.get_submodule(group.root).register_buffer(GATE, torch.ones(group.channels))
        return model

    def plan(self, model: nn.Module) -> tuple[list[ChannelGroup], Kept]:
        """Return the groups of the network that learns, and how many of each are left in the end.

        Its form does not change, so this is found out once.
        """
        if self._plan is None:
            assert isinstance(model, Network)
            groups = groups_of(model)
            self._plan = groups, fit(model, groups, self.pruning)
        return self._plan

    def before_step(self, model: nn.Module, step: int) -> None:
        """Close as many channels as the step asks, and keep the closed ones at zero."""
        groups, kept = self.plan(model)
        done = self.done(step)
        gates = {group.root: gate_of(model, group) for group in groups}
        for group in groups:
            gate = gates[group.root]
            number = round((group.channels - kept[group.root]) * done)
            if number > len(closed_by(gate)):
                gate[closest(model, group, gate, number)] = 0
        mask(model, groups, {root: closed_by(gate) for root, gate in gates.items()})

    def done(self, step: int) -> float:
        """Return s_t / s_f, the share of what will be closed: 1 - (1 - t / T)^3, as s_i is 0."""
        last = self.pruning.over * (self.config.steps - 1)
        at = min(step // self.pruning.every * self.pruning.every, last)
        return 1.0 if step >= last else 1 - (1 - at / last) ** 3

    def ship(self, model: Network, state: Mapping[str, Tensor]) -> Network:
        """Return the network without the closed channels and their gates."""
        own = {name: each for name, each in state.items() if not name.endswith(f".{GATE}")}
        filled(model, own)
        groups, kept = self.plan(model)
        closed = {
            group.root: closest(
                model, group, state[f"{group.root}.{GATE}"], group.channels - kept[group.root]
            )
            for group in groups
        }
        remove(model, groups, closed)
        return model


def fit(model: Network, groups: list[ChannelGroup], pruning: Pruning) -> Kept:
    """Return how many channels of each group a recipe keeps."""
    deep = pruning.deep if pruning.method == "cp" else 1
    return fitting(model, groups, pruning.macs, deep, pruning.multiple)


def pruning_of(config: TrainingConfig) -> Pruning:
    """Return a recipe's pruning, which is there."""
    assert config.pruning is not None
    return config.pruning


def gate_of(model: nn.Module, group: ChannelGroup) -> Tensor:
    """Return the gate of a group, (C,)."""
    gate: Tensor = model.get_submodule(group.root).get_buffer(GATE)
    return gate


def closed_by(gate: Tensor) -> list[int]:
    """Return the closed channels; in a moving average a gate falls from 1 and never returns."""
    return torch.nonzero(gate < 1).flatten().tolist()


def closest(model: nn.Module, group: ChannelGroup, gate: Tensor, number: int) -> list[int]:
    """Return the channels to close: those that are closed, and then those of the least norms."""
    norms = filter_norms(model, group)
    norms[closed_by(gate)] = -1
    return smallest(norms, number)


def filled(model: Network, state: Mapping[str, Tensor]) -> Network:
    """Fill a network, as narrow as the state is, and return it in evaluation mode."""
    found = {name: tuple(each.shape) for name, each in state.items()}
    if found != shapes(model):
        resize(model, found)
    model.load_state_dict(state)
    return model.eval()


def pruned_shaping(config: TrainingConfig, crops: Crops) -> Shaping:
    """Return how a recipe prunes its network."""
    if pruning_of(config).method == "agp":
        return GradualShaping(config)
    return OnceShaping(config, crops)
