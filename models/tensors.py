"""Filling a network from named tensors that somebody else wrote: everything is checked first."""

from collections.abc import Callable, Mapping
from operator import eq

import torch
from torch import Tensor, nn

from crowdrt.errors import WeightsError

Shapes = Mapping[str, tuple[int, ...]]
Fits = Callable[[tuple[int, ...], tuple[int, ...]], bool]
BATCHES_SEEN = ".num_batches_tracked"  # batch norm counts them in an integer
SHOWN = 3  # offending names in a message; the rest is counted

FITTING = "give the network and the width that the file was made for: --network and --width"


def fill(model: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Copy `tensors` into `model`, or raise and leave it as it was.

    Raises:
        WeightsError: a tensor is missing, left over, of another shape, or not finite.
    """
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    check_shapes(found, shapes(model), source=source)
    check_finite(tensors, source=source)
    model.load_state_dict(dict(tensors))


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor that a weights file of `model` holds."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def check_shapes(found: Shapes, expected: Shapes, *, source: str) -> None:
    """Refuse tensors that are missing, left over or of another shape."""
    if wrong := misfits(found, expected, fits=eq, beside="instead of"):
        raise WeightsError(f"{source} does not fit the network: {wrong}", fix=FITTING)


def misfits(found: Shapes, expected: Shapes, *, fits: Fits, beside: str) -> str:
    """Return which tensors are missing, left over or of a wrong shape, the first few of them.

    Args:
        found: what a file holds.
        expected: what a network has.
        fits: whether a tensor may have the one shape where the network has the other.
        beside: words between the two where it may not.
    """
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is not part of the network" for name in found if name not in expected]
    problems += [
        f"{name} is {found[name]} {beside} {shape}"
        for name, shape in expected.items()
        if name in found and not fits(found[name], shape)
    ]
    more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return "; ".join(problems[:SHOWN]) + more


def check_finite(tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Refuse weights that are not floating point, or hold NaN or infinity."""
    for name, tensor in tensors.items():
        if name.endswith(BATCHES_SEEN):
            continue
        if not tensor.is_floating_point():
            raise WeightsError(
                f"{source}: {name} has dtype {tensor.dtype}, not floating point",
                fix="give the float weights; INT8 is made from them by crowdrt calibrate",
            )
        if not torch.isfinite(tensor).all():
            raise WeightsError(
                f"{source}: {name} holds NaN or infinity",
                fix="training diverged or the file was altered: use an earlier checkpoint, "
                "or train again with a lower learning rate",
            )
