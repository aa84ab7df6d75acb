"""Filters by their L1 norms: which channels to close first.

Li, Kadav, Durdanovic, Samet and Graf, "Pruning Filters for Efficient ConvNets", ICLR 2017,
arXiv:1608.08710: a filter with small weights writes small features. Where several convolutions
write one channel, their filters' norms are added up.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from crowdrt.training.pruning.budget import Kept
from crowdrt.training.pruning.costs import CONVOLUTIONS
from crowdrt.training.pruning.groups import ChannelGroup


@torch.no_grad()
def filter_norms(model: nn.Module, group: ChannelGroup) -> Tensor:
    """Return the sum of the absolute weights of each channel's filters, (C,)."""
    total = torch.zeros(group.channels)
    for layer, places in group.writes.items():
        module = model.get_submodule(layer)
        if isinstance(module, CONVOLUTIONS):
            outputs = 1 if isinstance(module, nn.ConvTranspose2d) else 0
            norms = module.weight.transpose(0, outputs).flatten(1).abs().sum(1)
            total += norms.cpu()[places].sum(1)
    return total


def smallest(norms: Tensor, number: int) -> list[int]:
    """Return the channels of the smallest norms, in their order in the layer."""
    return sorted(torch.argsort(norms, stable=True)[:number].tolist())


def smallest_filters(
    model: nn.Module, groups: Sequence[ChannelGroup], kept: Kept
) -> dict[str, list[int]]:
    """Return the channels that L1Filter closes so that `kept` of each group remain."""
    return {
        group.root: smallest(filter_norms(model, group), group.channels - kept[group.root])
        for group in groups
    }
