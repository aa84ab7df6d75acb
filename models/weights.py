"""Weights files: safetensors that name their network and width, so that none is loaded wrongly.

Nothing here runs code from a file. Foreign files (old PyTorch checkpoints, the MCNN arrays) are
read by `crowdrt.models.importers`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from crowdrt.contracts import METADATA_KEY, Artifact
from crowdrt.errors import WeightsError
from crowdrt.lazy import require
from crowdrt.manifest import write_manifest, write_whole
from crowdrt.models import build_model
from crowdrt.models.importers import import_checkpoint, import_mcnn
from crowdrt.models.narrowing import narrow, resize
from crowdrt.models.network import Network
from crowdrt.models.tensors import Shapes, check_finite, check_shapes, fill, shapes
from crowdrt.models.weights_info import (
    DAMAGED,
    FORMAT,
    SafetensorsFile,
    WeightsInfo,
    opened,
    read_info,
)

__all__ = [
    "import_checkpoint",
    "import_mcnn",
    "load_into",
    "load_network",
    "load_outline",
    "save_weights",
]


def save_weights(
    model: Network,
    path: Path,
    *,
    network: str,
    width: Fraction,
    facts: Mapping[str, Any] | None = None,
    made_from: Mapping[str, Any] | None = None,
) -> Artifact:
    """Write the model's tensors and the manifest beside them.

    Args:
        model: `network` at `width`, as `build_model` makes it: folded, nothing beside it. A pruned
            one says so itself, and then its file does.
        path: a .safetensors file; it is replaced whole or not at all.
        network: what `load_network` will build.
        width: its width.
        facts: what is known of these weights: data, recipe, seed, errors.
        made_from: what decided the content, for the manifest; network, width and facts if None.

    Raises:
        WeightsError: the tensors are not that network's, or one holds NaN or infinity.
    """
    safetensors = require("safetensors.torch", extra="train")
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    source = f"the model to be saved as {network} at width {width}"
    info = WeightsInfo(network, width, dict(facts or {}), model.pruned)
    outline(info, shapes(model), source=source)
    check_finite(tensors, source=source)
    identity: dict[str, Any] = {"network": network, "width": str(width), "facts": info.facts}
    if info.pruned:
        identity["pruned"] = True
    if model.trained_int8 is not None:
        identity["trained_int8"] = asdict(model.trained_int8)
    # One property for all: safetensors orders several at random, and the hash would change.
    text = json.dumps({"format": FORMAT, **identity}, sort_keys=True, default=str)
    content = safetensors.save(tensors, metadata={METADATA_KEY: text})
    with write_whole(path) as temporary:
        temporary.write_bytes(content)
    return write_manifest(path, kind="weights", made_from=made_from or identity, facts=facts)


def load_network(path: Path) -> tuple[Network, str, Fraction]:
    """Build the network that `path` names and fill it.

    Returns:
        The network in evaluation mode, its name and its width.
    """
    with opened(path) as file:
        info = read_info(file, source=path)
        found = found_shapes(file)
        outline(info, found, source=str(path))
        model = build_model(info.network, info.width)
        fill_from(model, file, info, found, source=path)
    return model.eval(), info.network, info.width


def load_into(model: Network, path: Path, *, network: str, width: Fraction) -> None:
    """Fill `model`, which is `network` at `width`; a pruned file narrows its layers.

    Raises:
        WeightsError: the file is missing, damaged, or of another network or width.
    """
    with opened(path) as file:
        info = read_info(file, source=path)
        if (info.network, info.width) != (network, width):
            raise WeightsError(
                f"{path} holds {info}, not {network} at width {width}",
                fix=f"give weights of {network} at width {width}, or use what this file holds: "
                f"crowdrt export {info.network} --width {info.width} --weights {path} "
                "-o model.onnx",
            )
        found = found_shapes(file)
        outline(info, found, source=str(path))
        fill_from(model, file, info, found, source=path)


def load_outline(path: Path) -> tuple[Network, str, Fraction]:
    """Build what `load_network` does, on the meta device: layers have shapes and no numbers."""
    with opened(path) as file:
        info = read_info(file, source=path)
        return outline(info, found_shapes(file), source=str(path)), info.network, info.width


def outline(info: WeightsInfo, found: Shapes, *, source: str) -> Network:
    """Return the network that tensors of these shapes fill, on the meta device.

    So everything is refused before anything is allocated.

    Raises:
        WeightsError: the shapes are not the network's, or do not fit each other.
    """
    with torch.device("meta"):
        model = build_model(info.network, info.width)
        if info.pruned:
            narrow(model, found, source=source)
    check_shapes(found, shapes(model), source=source)
    return model


def fill_from(
    model: Network, file: SafetensorsFile, info: WeightsInfo, found: Shapes, *, source: Path
) -> None:
    """Copy a file's tensors into a network, narrowed where the file says that it was pruned.

    Their shapes are `info`'s network's: `outline` has proved it.
    """
    tensors = {name: file.get_tensor(name) for name in found}
    if info.pruned:
        check_finite(tensors, source=str(source))  # a refused file leaves the network as it was
        resize(model, found)
    fill(model, tensors, source=str(source))
    note_trained_int8(model, info, source=source)


def note_trained_int8(model: Network, info: WeightsInfo, *, source: Path) -> None:
    """Give a network what its weights say of how they learned to be quantized."""
    if info.trained_int8 is not None:
        convs = {name for name, each in model.named_modules() if isinstance(each, torch.nn.Conv2d)}
        if unknown := sorted(set(info.trained_int8.ranges) - convs):
            named = ", ".join(map(repr, unknown[:3]))
            raise WeightsError(
                f"{source} has trained ranges of {named}, no convolution of {info}", fix=DAMAGED
            )
    model.trained_int8 = info.trained_int8


def found_shapes(file: SafetensorsFile) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a file's tensors, by its header alone."""
    return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
