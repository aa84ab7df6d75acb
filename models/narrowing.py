"""Networks that lost channels: layers as narrow as a file's tensors are, checked before they exist.

Pruning leaves every layer, and in each layer some of its channels. So the network's definition and
the shapes of its tensors describe it, and nothing else has to be stored.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from crowdrt.errors import WeightsError
from crowdrt.models.network import Network
from crowdrt.models.tensors import Shapes, misfits, shapes

SIDE_PX = 64  # of the image that proves on the meta device that layers fit each other
PRUNE_AGAIN = (
    "copy the file again, or prune again: crowdrt train skt-5-l1filter-cpu --data DIR -o OUT"
)
BROADCASTING = ("add", "sub", "mul", "div", "maximum", "minimum")  # would hide what does not fit


def narrow(model: Network, found: Shapes, *, source: str) -> None:
    """Give a network's layers the channels of a file's tensors, in place, once they are proved.

    Args:
        model: as `build_model` makes it, on the meta device: nothing is allocated.
        found: the shapes that the file's header names.
        source: names the file in errors.

    Raises:
        WeightsError: they are not what removing channels leaves, or do not fit each other.
    """
    if model.fixed_size is not None:
        raise WeightsError(f"{source}: {type(model).__name__} is not pruned here", fix=PRUNE_AGAIN)
    check_left(found, shapes(model), source=source)
    whole = answer_shape(model)
    resize(model, found)
    try:
        left = answer_shape(model)
    except (RuntimeError, ValueError) as error:
        raise WeightsError(
            f"{source}: its layers do not fit each other: {error}", fix=PRUNE_AGAIN
        ) from error
    if left != whole:
        raise WeightsError(
            f"{source}: it would answer {left} where the whole network answers {whole}",
            fix=PRUNE_AGAIN,
        )


def check_left(found: Shapes, whole: Shapes, *, source: str) -> None:
    """Refuse tensors that no removal of channels leaves: others, larger ones, other kernels."""
    if wrong := misfits(found, whole, fits=is_left, beside="where the whole network has"):
        raise WeightsError(f"{source} is no pruned network: {wrong}", fix=PRUNE_AGAIN)


def is_left(found: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Say whether removing channels, the first two axes, can leave this of a tensor."""
    same_kernel = len(found) == len(whole) and found[2:] == whole[2:]
    return same_kernel and all(1 <= a <= b for a, b in zip(found, whole, strict=True))


def resize(model: Network, found: Shapes) -> None:
    """Give every layer tensors of these shapes, in place; their numbers are yet to be filled in."""
    for prefix, layer in model.named_modules():
        for tensors in (layer._parameters, layer._buffers):
            for name, tensor in tensors.items():
                wanted = found.get(f"{prefix}.{name}")
                if tensor is None or wanted in (None, tuple(tensor.shape)):
                    continue
                empty = tensor.detach().new_empty(wanted)
                setattr(layer, name, empty if name in layer._buffers else nn.Parameter(empty))
        note_channels(layer)
    model.pruned = True


def note_channels(layer: nn.Module) -> None:
    """Make a layer's own numbers those of its weight; kernels are not grouped here."""
    if isinstance(layer, nn.Conv2d):
        layer.out_channels, layer.in_channels = layer.weight.shape[:2]
    elif isinstance(layer, nn.ConvTranspose2d):
        layer.in_channels, layer.out_channels = layer.weight.shape[:2]
    elif isinstance(layer, nn.BatchNorm2d | nn.InstanceNorm2d) and layer.weight is not None:
        layer.num_features = layer.weight.shape[0]


def answer_shape(model: Network) -> tuple[int, ...]:
    """Return the shape of a network's answer, and prove on the way that its layers fit.

    Raises:
        RuntimeError: a layer is given other channels than it has weights for.
    """
    planes = model.preprocessing.num_channels
    image = torch.empty(1, planes, SIDE_PX, SIDE_PX, device="meta")
    hooks = [layer.register_forward_pre_hook(check_channels) for layer in model.modules()]
    try:
        with torch.no_grad(), EqualChannels():
            return tuple(model.eval()(image).shape)
    finally:
        for hook in hooks:
            hook.remove()


def check_channels(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Refuse what the meta device lets pass: biases and statistics of other channels."""
    if isinstance(layer, nn.BatchNorm2d | nn.InstanceNorm2d):
        channels = inputs[0].shape[1]
    elif isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        channels = layer.out_channels
    else:
        return
    vectors = {tuple(each.shape) for each in layer.state_dict().values() if each.ndim == 1}
    if not vectors <= {(channels,)}:
        raise RuntimeError(f"{type(layer).__name__} of {channels} channels holds {sorted(vectors)}")


class EqualChannels(TorchFunctionMode):
    """Refuses arithmetic between features of different numbers of channels.

    PyTorch would repeat a single channel for all of the other's.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "").strip("_") in BROADCASTING:
            channels = {
                each.shape[1] for each in args if isinstance(each, Tensor) and each.ndim == 4
            }
            if len(channels) > 1:
                raise RuntimeError(f"features of {sorted(channels)} channels meet")
        return func(*args, **(kwargs or {}))
