"""Weights files: safetensors that name their network and width, so that none is loaded wrongly.

Nothing here runs code from a file. Foreign files (old PyTorch checkpoints, the MCNN arrays) are
read by `crowdrt.models.importers`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from crowdrt.contracts import METADATA_KEY, Artifact
from crowdrt.errors import WeightsError
from crowdrt.lazy import require
from crowdrt.manifest import write_manifest, write_whole
from crowdrt.models import NETWORKS, TRAINING_FORMS, build_model
from crowdrt.models.importers import import_checkpoint, import_mcnn
from crowdrt.models.network import Network
from crowdrt.models.tensors import check_finite, check_shapes, fill, shapes

__all__ = ["import_checkpoint", "import_mcnn", "load_into", "load_network", "save_weights"]

FORMAT = 1
WIDTH = re.compile(r"1|[1-9]\d?/[1-9]\d?")  # Fraction("1e999999999") would never return
NOT_OURS = (
    "give a file that crowdrt train or save_weights wrote; a PyTorch checkpoint is read by "
    "crowdrt.models.weights.import_checkpoint"
)


@dataclass(frozen=True)
class WeightsInfo:
    """What a weights file says of itself."""

    network: str
    width: Fraction
    facts: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.network} at width {self.width}"


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


def describe_weights(path: Path) -> WeightsInfo:
    """Return which network and width `path` belongs to, without loading its tensors."""
    with opened(path) as file:
        return read_info(file, source=path)


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


class SafetensorsFile(Protocol):
    """What is used of safetensors' open file, which has no type annotations."""

    def metadata(self) -> Mapping[str, str] | None: ...
    def keys(self) -> list[str]: ...
    def get_slice(self, name: str) -> Any: ...
    def get_tensor(self, name: str) -> Tensor: ...


@contextmanager
def opened(path: Path) -> Iterator["SafetensorsFile"]:
    """Yield the open safetensors file; whatever is wrong with it becomes a WeightsError."""
    safetensors = require("safetensors", extra="train")
    if not path.is_file():
        raise WeightsError(
            f"{path} does not exist or is no file", fix="check --weights; look with: ls weights"
        )
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            yield file
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise WeightsError(
            f"{path} is damaged or no safetensors file: {error}",
            fix=f"copy or download it again; if that does not help, {NOT_OURS}",
        ) from error


def read_info(file: "SafetensorsFile", *, source: Path) -> WeightsInfo:
    """Read and check what the file says of itself."""
    try:
        document = json.loads((file.metadata() or {})[METADATA_KEY])
        version, network, width = (document[key] for key in ("format", "network", "width"))
        facts = dict(document["facts"])
        known = network in (*NETWORKS, *TRAINING_FORMS) and WIDTH.fullmatch(width) is not None
        info = WeightsInfo(network, Fraction(width), facts) if known else None
    except (KeyError, TypeError, ValueError, ZeroDivisionError, RecursionError) as error:
        raise WeightsError(
            f"{source} does not say which network it belongs to", fix=NOT_OURS
        ) from error
    if version != FORMAT:
        raise WeightsError(
            f"{source} has weights format {version!r}; this crowdrt reads format {FORMAT}",
            fix="pip install --upgrade crowdrt",
        )
    if info is None or not 0 < info.width <= 1:
        raise WeightsError(
            f"{source} names network {network!r} at width {width!r}, which this crowdrt cannot "
            "build",
            fix=f"use a network of {', '.join(NETWORKS)} at a width such as 1 or 1/4",
        )
    return info


def read_tensors(file: "SafetensorsFile", model: nn.Module, *, source: Path) -> dict[str, Tensor]:
    """Read the tensors that `model` needs, after the header has proved that they fit."""
    found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    check_shapes(found, shapes(model), source=str(source))
    return {name: file.get_tensor(name) for name in found}
