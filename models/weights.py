"""Weights files: safetensors that name their network and width, so that none is loaded wrongly.

Nothing here runs code from a file. Foreign files (old PyTorch checkpoints, the MCNN arrays) are
read by `crowdrt.models.importers`.
"""

import json
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crowdrt.contracts import METADATA_KEY, Artifact
from crowdrt.errors import WeightsError
from crowdrt.lazy import require
from crowdrt.manifest import write_manifest, write_whole
from crowdrt.models import build_model
from crowdrt.models.importers import import_checkpoint, import_mcnn
from crowdrt.models.network import Network
from crowdrt.models.tensors import check_finite, check_shapes, fill, shapes
from crowdrt.models.weights_info import FORMAT, SafetensorsFile, opened, read_info

__all__ = ["import_checkpoint", "import_mcnn", "load_into", "load_network", "save_weights"]


def save_weights(
    model: nn.Module,
    path: Path,
    *,
    network: str,
    width: Fraction,
    facts: Mapping[str, Any] | None = None,
    made_from: Mapping[str, Any] | None = None,
) -> Artifact:
    """Write the model's tensors and the manifest beside them.

    Args:
        model: `network` at `width`, as `build_model` makes it: folded, nothing beside it.
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
    with torch.device("meta"):
        check_shapes(shapes(model), shapes(build_model(network, width)), source=source)
    check_finite(tensors, source=source)
    identity = {"network": network, "width": str(width), "facts": dict(facts or {})}
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
        model = build_model(info.network, info.width)
        fill(model, read_tensors(file, model, source=path), source=str(path))
    return model.eval(), info.network, info.width


def load_into(model: nn.Module, path: Path, *, network: str, width: Fraction) -> None:
    """Fill `model`, which is `network` at `width`.

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
        fill(model, read_tensors(file, model, source=path), source=str(path))


def read_tensors(file: SafetensorsFile, model: nn.Module, *, source: Path) -> dict[str, Tensor]:
    """Read the tensors that `model` needs, after the header has proved that they fit."""
    found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    check_shapes(found, shapes(model), source=str(source))
    return {name: file.get_tensor(name) for name in found}
