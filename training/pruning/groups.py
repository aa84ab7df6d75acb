"""Which channels of a network live and die together, and their removal.

A channel is written by one convolution and read by the next; where features are added or held side
by side, by several. `torch_pruning` finds out which, by its dependency graph (Fang et al.,
"DepGraph: Towards Any Structural Pruning", CVPR 2023, arXiv:2301.12900).
"""

import copy
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from crowdrt.errors import TrainingError
from crowdrt.lazy import require
from crowdrt.models.network import Network
from crowdrt.training.pruning.costs import CONVOLUTIONS, convolution_costs

OUTPUT = "density_head"  # of every network with a map; its one channel is the answer
TRACED_PX = 64
MAX_CHANGE = 1e-9  # of the answers' spread; float64's own was 1e-13, one exchanged channel's 1e-6
Closed = Mapping[str, Sequence[int]]  # by a group's root: the channels that are removed


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are removed one by one, each from every layer that it passes.

    C channels; a layer can hold each of them m times.
    """

    root: str  # the first convolution that writes them
    channels: int
    writes: Mapping[str, Tensor]  # by layer, (C, m) which of its outputs each channel is
    reads: Mapping[str, Tensor]  # by layer, (C, m) which of its inputs


def groups_of(model: Network) -> list[ChannelGroup]:
    """Return every group of channels, front to back, but for the image and the answer.

    Raises:
        TrainingError: the network's graph cannot be followed.
    """
    pruning = require("torch_pruning", extra="train")
    outline = traceable(model)
    planes = model.preprocessing.num_channels
    image = torch.empty(2, planes, TRACED_PX, TRACED_PX, device="meta")
    order = list(convolution_costs(model))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            graph = pruning.DependencyGraph().build_dependency(outline, example_inputs=image)
            found = list(graph.get_all_groups(root_module_types=list(CONVOLUTIONS)))
    except (TypeError, ValueError, RuntimeError, AssertionError, LookupError) as error:
        raise TrainingError(
            f"{type(model).__name__} cannot be pruned: torch_pruning cannot follow its graph "
            f"({error})",
            fix="prune a csrnet, bl, mcnn, can or sanet",
        ) from error
    names = {module: name for name, module in outline.named_modules()}
    groups = [as_group(group, names, order) for group in found]
    kept = [group for group in groups if not any(is_output(name) for name in group.writes)]
    return sorted(kept, key=lambda group: order.index(group.root))


def is_output(layer: str) -> bool:
    """Say whether a layer writes the answer."""
    return layer.split(".")[0] == OUTPUT


def traceable(model: Network) -> Network:
    """Return a copy on the meta device that torch_pruning can follow.

    It follows gradients, which a ReLU in place rewrites, and which instance normalisation computes
    on a view of another shape. In their places stand modules that pass the same channels on.
    """
    outline = copy.deepcopy(model).to("meta").requires_grad_(True)
    for parent in list(outline.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.InstanceNorm2d):
                setattr(parent, name, nn.BatchNorm2d(child.num_features, device="meta"))
            elif isinstance(child, nn.ReLU):
                setattr(parent, name, nn.Identity())
    return outline.eval()


def as_group(found: Any, names: Mapping[nn.Module, str], order: Sequence[str]) -> ChannelGroup:
    """Return torch_pruning's group by names and indices of layers.

    Args:
        found: items of a layer, its indices, and to which of the first layer's each belongs.
        names: of layers.
        order: in which convolutions run.
    """
    channels = len(found[0].idxs)
    ends: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for item in found:
        layer = names.get(item.dep.target.module)
        if layer is None or not list(item.dep.target.module.parameters(recurse=False)):
            continue
        places: list[list[int]] = [[] for _ in range(channels)]
        for index, root in zip(item.idxs, item.root_idxs, strict=True):
            places[root].append(index)
        is_read = item.dep.handler.__name__ == "prune_in_channels"
        norm = not isinstance(item.dep.target.module, CONVOLUTIONS)
        ends[is_read and not norm][layer] = torch.tensor(places)
    writes, reads = ends
    root = min((name for name in writes if name in order), key=order.index)
    return ChannelGroup(root, channels, writes, reads)


@torch.no_grad()
def mask(model: nn.Module, groups: Iterable[ChannelGroup], closed: Closed) -> None:
    """Make every closed channel zero wherever it is written, in place."""
    for group in groups:
        gone = torch.tensor(closed.get(group.root, ()), dtype=torch.long)
        for layer, places in group.writes.items():
            module = model.get_submodule(layer)
            axis = 1 if isinstance(module, nn.ConvTranspose2d) else 0
            for name, parameter in module.named_parameters(recurse=False):
                rows = places[gone].flatten().to(parameter.device)
                parameter.index_fill_(axis if name == "weight" else 0, rows, 0.0)


def remove(model: Network, groups: Iterable[ChannelGroup], closed: Closed) -> None:
    """Remove every closed channel from every layer that it passes, in place.

    Raises:
        TrainingError: such a network then answers another thing than with these channels at zero;
            this one is as it was.
    """
    groups = list(groups)
    prove(model, groups, closed)
    cut(model, groups, closed)


def cut(model: Network, groups: Sequence[ChannelGroup], closed: Closed) -> None:
    """Remove closed channels, in place."""
    pruning = require("torch_pruning", extra="train")
    for is_read in (False, True):
        for layer, places in gone_from(groups, closed, is_read=is_read).items():
            module = model.get_submodule(layer)
            pruner(pruning, module, is_read=is_read)(module, places)
            model.pruned = True


def gone_from(
    groups: Iterable[ChannelGroup], closed: Closed, *, is_read: bool
) -> dict[str, list[int]]:
    """Return which inputs, or outputs, of every layer are removed."""
    gone: dict[str, set[int]] = {}
    for group in groups:
        channels = list(closed.get(group.root, ()))
        if not channels:
            continue
        for layer, places in (group.reads if is_read else group.writes).items():
            gone.setdefault(layer, set()).update(places[channels].flatten().tolist())
    return {layer: sorted(places) for layer, places in gone.items()}


def pruner(pruning: Any, layer: nn.Module, *, is_read: bool) -> Any:
    """Return torch_pruning's function that removes inputs or outputs of such a layer."""
    if isinstance(layer, CONVOLUTIONS):
        return pruning.prune_conv_in_channels if is_read else pruning.prune_conv_out_channels
    if isinstance(layer, nn.InstanceNorm2d):
        return pruning.prune_instancenorm_out_channels
    return pruning.prune_batchnorm_out_channels


@torch.no_grad()
def prove(model: Network, groups: Sequence[ChannelGroup], closed: Closed) -> None:
    """Refuse a removal that changes what a network of this form answers.

    Its own weights could not tell: one of closed channels often answers the same everywhere. So
    others are drawn, positive ones, whose answers hang on every channel and cancel nowhere.
    """
    masked = copy.deepcopy(model).double().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in masked.parameters():
        parameter.uniform_(0.5, 1.5, generator=generator).div_(parameter[0].numel())
    removed = copy.deepcopy(masked)
    mask(masked, groups, closed)
    cut(removed, groups, closed)
    planes = model.preprocessing.num_channels
    size = (1, planes, TRACED_PX, TRACED_PX)
    image = torch.rand(size, generator=generator, dtype=torch.float64)
    before, after = masked(image), removed(image)
    spread = before.std()
    tells = spread > MAX_CHANGE * before.abs().max()  # what never varies proves nothing
    same = before.shape == after.shape and (before - after).abs().max() <= MAX_CHANGE * spread
    if not (tells and same):
        raise TrainingError(
            f"{type(model).__name__} without some channels does not answer what it does with "
            "them at zero",
            fix="prune a csrnet, bl, mcnn, can or sanet",
        )
