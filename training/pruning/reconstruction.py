"""Channel pruning (He, Zhang and Sun, arXiv:1707.06168): front to back through a network.

Each layer that reads a group of channels learns to write, of fewer of them, what it writes in the
whole network: what it reads is the pruned network's, so that errors do not add up (section 3.2).
"""

import copy
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from crowdrt.errors import TrainingError
from crowdrt.models.network import Network
from crowdrt.training.pruning.budget import Kept
from crowdrt.training.pruning.groups import ChannelGroup, mask
from crowdrt.training.pruning.selection import FloatArray, Sums, rebuilt, select


def rebuild_layers(
    model: Network, groups: Sequence[ChannelGroup], kept: Kept, crops: Sequence[Tensor], points: int
) -> dict[str, list[int]]:
    """Choose the channels to close, and rebuild the layers that read the others, in place.

    Args:
        model: closed channels are at zero when this returns, and still there.
        groups: its channels, front to back.
        kept: how many of each group are left.
        crops: normalised training crops, (B, C, H, W) each.
        points: places to sample of every crop.

    Returns:
        The closed channels by their group's root.

    Raises:
        TrainingError: several layers read one channel, so that none can be rebuilt for it alone.
    """
    readers = [reader_of(model, group) for group in groups]
    whole = copy.deepcopy(model).eval()
    model.eval()
    closed: dict[str, list[int]] = {}
    gone: dict[str, list[int]] = {}  # of the inputs of every reader
    for group, reader in zip(groups, readers, strict=True):
        closed[group.root] = []
        if kept[group.root] == group.channels:
            continue
        layer = convolution(model, reader)
        sums = summed(model, whole, reader, crops, points)
        weight, area = matrix(layer), layer.weight[0, 0].numel()
        places = group.reads[reader][:, 0].numpy()
        chosen = select(sums, weight, places, kept[group.root], area=area)
        closed[group.root] = sorted({*range(group.channels)} - {*chosen})
        gone.setdefault(reader, []).extend(places[closed[group.root]].tolist())
        left = np.setdiff1d(np.arange(layer.in_channels), gone[reader])
        put(layer, rebuilt(sums, weight, left, area=area))
        mask(model, [group], closed)
    return closed


def reader_of(model: Network, group: ChannelGroup) -> str:
    """Return the one convolution that reads a group's channels."""
    readers = list(group.reads)
    single = len(readers) == 1 and group.reads[readers[0]].shape[1] == 1
    if not single or not isinstance(model.get_submodule(readers[0]), nn.Conv2d):
        raise TrainingError(
            f"channel pruning rebuilds the one convolution that reads a channel; those of "
            f"{group.root} of {type(model).__name__} are read by {', '.join(readers)}",
            fix="prune by norms instead: pruning.method=l1",
        )
    return readers[0]


def convolution(model: Network, name: str) -> nn.Conv2d:
    """Return a network's convolution by its name."""
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Conv2d)
    return layer


def matrix(layer: nn.Conv2d) -> FloatArray:
    """Return a convolution's weight as (n, d)."""
    weight: FloatArray = layer.weight.detach().cpu().double().flatten(1).numpy()
    return weight


def put(layer: nn.Conv2d, weight: FloatArray) -> None:
    """Give a convolution its new weight, (n, d)."""
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight).view_as(layer.weight))


def summed(
    model: Network, whole: Network, reader: str, crops: Sequence[Tensor], points: int
) -> Sums:
    """Return what a layer reads in one network, and should write as in the other, summed up.

    The places are the same at every call: a pure function of the crop's number.
    """
    layer, original = convolution(model, reader), convolution(whole, reader)
    weight = original.weight.detach().double().flatten(1)
    size = weight.shape[1]
    inputs, wanted = torch.zeros(size, size).double(), torch.zeros(size, len(weight)).double()
    energy = 0.0
    for number, image in enumerate(crops):
        read, should = (input_of(net, reader, image) for net in (model, whole))
        places = sampled_places(read, layer, points, seed=number)
        ours, theirs = (patches(each, layer, places) for each in (read, should))
        target = theirs @ weight.T  # without the bias, which stays as it is
        inputs += ours.T @ ours
        wanted += ours.T @ target
        energy += float(target.square().sum())
    return Sums(inputs.numpy(), wanted.numpy(), energy)


class ReachedError(Exception):
    """A layer's input is there, and the rest of the network need not run."""


def input_of(model: Network, layer: str, image: Tensor) -> Tensor:
    """Return what reaches a layer, (B, C, h, w)."""
    caught: list[Tensor] = []

    def stop(_layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        caught.append(inputs[0])
        raise ReachedError

    hook = model.get_submodule(layer).register_forward_pre_hook(stop)
    try:
        with torch.no_grad(), suppress(ReachedError):
            model(image)
    finally:
        hook.remove()
    return caught[0]


def sampled_places(read: Tensor, layer: nn.Conv2d, points: int, *, seed: int) -> Tensor:
    """Draw places of a layer's output on every image of a batch, (B, points, 2) rows and columns.

    A convolution here keeps the size of what it reads.
    """
    assert layer.stride == (1, 1)
    generator = torch.Generator().manual_seed(seed)
    height, width = read.shape[2:]
    rows = torch.randint(height, (len(read), points), generator=generator)
    columns = torch.randint(width, (len(read), points), generator=generator)
    return torch.stack([rows, columns], dim=-1)


def patches(read: Tensor, layer: nn.Conv2d, places: Tensor) -> Tensor:
    """Return what a layer's kernel sees at places of its output, (B * points, d) in float64."""
    assert not isinstance(layer.padding, str)
    below, right = layer.padding
    padded = functional.pad(read, (right, right, below, below))
    steps = [
        torch.arange(kernel) * dilation
        for kernel, dilation in zip(layer.kernel_size, layer.dilation, strict=True)
    ]
    rows = places[..., 0, None, None] + steps[0][:, None]  # (B, points, k, 1)
    columns = places[..., 1, None, None] + steps[1]  # (B, points, 1, k)
    images = torch.arange(len(read))[:, None, None, None]
    seen = padded.permute(0, 2, 3, 1)[images, rows, columns]  # (B, points, k, k, C)
    return seen.movedim(-1, 2).flatten(2).flatten(0, 1).double()
