"""Weights that a network begins with: a user's own, taken by name where the shapes agree."""

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor, nn

from crowdrt.console import say
from crowdrt.errors import TrainingError
from crowdrt.manifest import sha256_file
from crowdrt.models.importers import read_state_dict
from crowdrt.models.network import Network
from crowdrt.models.weights import load_into
from crowdrt.models.weights_info import opened

# torchvision's VGG and the front ends here have their layers at the same places
ALIASES = {"features.": "front_end.", "module.": ""}


def load_by_name(model: nn.Module, path: Path) -> int:
    """Copy the tensors of a file whose name and shape a network has, and say how many.

    Args:
        model: a network before anything that training adds.
        path: .safetensors, or a PyTorch checkpoint of tensors, whose code is never run. Names of
            torchvision's VGG are understood.

    Returns:
        How many tensors were copied.

    Raises:
        TrainingError: none fits.
        WeightsError: the file is damaged, or holds code.
    """
    own = model.state_dict()
    found = {own_name(name): tensor for name, tensor in tensors_of(path).items()}
    fitting = {n: t for n, t in found.items() if n in own and own[n].shape == t.shape}
    if not fitting:
        raise TrainingError(
            f"{path}: none of its {len(found)} tensors has the name and the shape of one of "
            f"{type(model).__name__}'s: {examples(found)} against {examples(own)}",
            fix="use weights of this network and width, or begin from scratch: leave out --init",
        )
    with torch.no_grad():
        for name, tensor in fitting.items():
            own[name].copy_(tensor)
    rest = len(own) - len(fitting)
    say(f"{path.name}: {len(fitting)} tensors taken over, {rest} of the network begin from scratch")
    return len(fitting)


def load_all(model: Network, path: Path | None, *, network: str, width: Fraction) -> None:
    """Fill a network with weights of its own, every one of them.

    Raises:
        TrainingError: there are none.
        WeightsError: they are of another network or width.
    """
    if path is None:
        raise TrainingError(
            f"only a trained {network} can be pruned or quantized, and there are no weights",
            fix="name them: --init WEIGHTS.safetensors",
        )
    load_into(model, path, network=network, width=width)


def tensors_of(path: Path) -> Mapping[str, Tensor]:
    """Return the tensors of a weights file by their names there."""
    if path.suffix != ".safetensors":
        return read_state_dict(path)
    with opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def own_name(name: str) -> str:
    """Return a foreign tensor's name as the networks here would have it."""
    for theirs, ours in ALIASES.items():
        if name.startswith(theirs):
            name = ours + name.removeprefix(theirs)
    return name


def examples(tensors: Mapping[str, Tensor]) -> str:
    """Return the first few names with their shapes."""
    return ", ".join(f"{n} {tuple(t.shape)}" for n, t in list(tensors.items())[:3])


def sha256_of(path: Path | None) -> str | None:
    """Return the SHA-256 of a file that was given."""
    return None if path is None else sha256_file(path)
