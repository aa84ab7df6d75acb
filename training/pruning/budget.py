"""How many channels of each group a budget of multiply-accumulates leaves."""

import math
from collections.abc import Mapping, Sequence

from crowdrt.errors import RecipeError
from crowdrt.models.network import Network
from crowdrt.training.pruning.costs import ConvolutionCost, convolution_costs
from crowdrt.training.pruning.groups import ChannelGroup

HALVINGS = 50  # of the interval in which the share that fits is sought
DEEP_STRIDE = 8  # from here on features are deep: VGG-16's fourth stage
Kept = Mapping[str, int]  # by a group's root: how many of its channels are left


def macs_left(
    costs: Mapping[str, ConvolutionCost], groups: Sequence[ChannelGroup], kept: Kept
) -> int:
    """Return the multiply-accumulates of a network that keeps so many channels of each group."""
    inputs = {name: cost.inputs for name, cost in costs.items()}
    outputs = {name: cost.outputs for name, cost in costs.items()}
    for group in groups:
        gone = group.channels - kept[group.root]
        for ends, left in ((group.reads, inputs), (group.writes, outputs)):
            for layer, places in ends.items():
                if layer in left:
                    left[layer] -= gone * places.shape[1]
    return sum(
        cost.macs * inputs[name] * outputs[name] // (cost.inputs * cost.outputs)
        for name, cost in costs.items()
    )


def rounded(channels: int, share: float, multiple: int) -> int:
    """Return the multiple that is nearest to a share of the channels; at least one, at most all.

    All of them stay as they are, whether they are a multiple or not.
    """
    if share >= 1:
        return channels
    step = min(multiple, channels)
    return min(channels, step * max(1, math.floor(channels * share / step + 0.5)))


def fitting(
    model: Network,
    groups: Sequence[ChannelGroup],
    share: float,
    deep: float = 1,
    multiple: int = 1,
) -> Kept:
    """Return how many channels of each group to keep, as many as the budget allows.

    Every group keeps the same share of its channels, at least one multiple.

    Args:
        model: what is pruned.
        groups: its channels.
        share: of its multiply-accumulates may remain, at most.
        deep: how much larger a share deep groups keep, up to all of them.
        multiple: of which the kept channels of a group are one, unless they are all it has.

    Raises:
        RecipeError: the fewest channels that each group can keep are more than that.
    """
    costs = convolution_costs(model)
    factors = {g.root: deep if costs[g.root].stride >= DEEP_STRIDE else 1.0 for g in groups}
    limit = share * sum(cost.macs for cost in costs.values()) * (1 + 1e-9)

    def at(ratio: float) -> dict[str, int]:
        return {g.root: rounded(g.channels, ratio * factors[g.root], multiple) for g in groups}

    low, high = 0.0, 1.0
    if macs_left(costs, groups, at(high)) <= limit:
        return at(high)
    if macs_left(costs, groups, at(low)) > limit:
        raise RecipeError(
            f"pruning.macs={share}: {type(model).__name__} with the fewest channels per layer, "
            f"{multiple}, has more",
            fix="use a larger share of its multiply-accumulates, such as pruning.macs=1/4, or "
            "smaller steps: pruning.multiple=1",
        )
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if macs_left(costs, groups, at(middle)) <= limit:
            low = middle
        else:
            high = middle
    return at(low)
