"""What a safetensors file of ours says of itself, read without PyTorch."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

from crowdrt.contracts import METADATA_KEY, parse_width
from crowdrt.errors import RecipeError, WeightsError
from crowdrt.int8 import TrainedInt8
from crowdrt.lazy import require
from crowdrt.models import BUILDABLE, NETWORKS

FORMAT = 1
NOT_OURS = (
    "give a file that crowdrt train or save_weights wrote; a PyTorch checkpoint is read by "
    "crowdrt import"
)

DAMAGED = "copy the file again, or train it again: crowdrt train never writes this"


@dataclass(frozen=True)
class WeightsInfo:
    """What a weights file says of itself."""

    network: str
    width: Fraction
    facts: Mapping[str, Any]
    pruned: bool = False  # channels were removed: its tensors' shapes say how many are left
    trained_int8: TrainedInt8 | None = None  # how they learned to be quantized

    def __str__(self) -> str:
        return f"{self.network} at width {self.width}" + ", pruned" * self.pruned


def describe_weights(path: Path) -> WeightsInfo:
    """Return which network and width `path` belongs to, without its tensors or PyTorch."""
    with opened(path, framework="numpy") as file:
        return read_info(file, source=path)


class SafetensorsFile(Protocol):
    """What is used of safetensors' open file, which has no type annotations."""

    def metadata(self) -> Mapping[str, str] | None:
        """Return what the file says of itself."""
        ...

    def keys(self) -> list[str]:
        """Return the tensors' names."""
        ...

    def get_slice(self, name: str) -> Any:
        """Return a tensor of which only the shape is read."""
        ...

    def get_tensor(self, name: str) -> Any:
        """Return a tensor."""
        ...


@contextmanager
def opened(path: Path, *, framework: str = "pt") -> Iterator[SafetensorsFile]:
    """Yield the open safetensors file; whatever is wrong with it becomes a WeightsError."""
    safetensors = require("safetensors", extra="train")
    if not path.is_file():
        raise WeightsError(
            f"{path} does not exist or is no file", fix="check --weights; look with: ls weights"
        )
    try:
        with safetensors.safe_open(path, framework=framework) as file:
            yield file
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise WeightsError(
            f"{path} is damaged or no safetensors file: {error}",
            fix=f"copy or download it again; if that does not help, {NOT_OURS}",
        ) from error


def read_info(file: SafetensorsFile, *, source: Path) -> WeightsInfo:
    """Read and check what the file says of itself."""
    try:
        document = json.loads((file.metadata() or {})[METADATA_KEY])
        version, network, width = (document[key] for key in ("format", "network", "width"))
        facts, pruned = dict(document["facts"]), document.get("pruned", False)
        if not isinstance(pruned, bool):
            raise ValueError(f"pruned is {pruned!r}")
        info = WeightsInfo(network, parse_width(width), facts, pruned)
    except RecipeError:
        info = None
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise WeightsError(
            f"{source} does not say which network it belongs to", fix=NOT_OURS
        ) from error
    if version != FORMAT:
        raise WeightsError(
            f"{source} has weights format {version!r}; this crowdrt reads format {FORMAT}",
            fix="pip install --upgrade crowdrt",
        )
    if info is None or network not in BUILDABLE:
        raise WeightsError(
            f"{source} names network {network!r} at width {width!r}, which this crowdrt cannot "
            "build",
            fix=f"use a network of {', '.join(NETWORKS)} at a width such as 1 or 1/4",
        )
    return replace(info, trained_int8=read_trained_int8(document, source=source))


def read_trained_int8(document: Mapping[str, Any], *, source: Path) -> TrainedInt8 | None:
    """Read how the weights learned to be quantized; None where they did not."""
    try:
        return TrainedInt8.from_document(document.get("trained_int8"))
    except ValueError as error:
        raise WeightsError(f"{source}: {error}", fix=DAMAGED) from error
