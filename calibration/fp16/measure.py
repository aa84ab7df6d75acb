"""A network run on photographs piece by piece: what passes through it, and whom it counts.

On x86 CPUs ONNX Runtime 1.31 computes float16 nodes in FP32 and, inside one session, drops the
casts between them: a float16 file counts there as if only its weights had been rounded. Cut
behind every float16 tensor, a graph rounds where a GPU does that accumulates in FP32.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx

from crowdrt.calibration.calibrate import feeds_of
from crowdrt.calibration.layerwise import LayerwiseGraph
from crowdrt.console import track
from crowdrt.contracts import COUNT, DENSITY, GraphInfo
from crowdrt.engines.decode import sigmoid
from crowdrt.errors import CalibrationError
from crowdrt.onnx_graph import element_types

ANSWERS = (COUNT, DENSITY, "scores", "logits")  # people are counted by the first that is there


Counts = Mapping[Path, float]  # photograph -> people


class Looker(Protocol):
    """Takes in one tensor of every photograph."""

    def add(self, values: npt.NDArray[Any], path: Path, /) -> None:
        """Take in one array; `path` is the photograph that it was computed from."""
        ...


@dataclass(frozen=True)
class Difference:
    """How far counts moved, relative to those before, in photographs with people."""

    largest: float
    mean: float
    where: str  # the photograph whose count moved furthest
    before: float  # its count
    after: float


def observe(
    model: onnx.ModelProto,
    info: GraphInfo,
    images: Sequence[Path],
    doing: str,
    lookers: Mapping[str, Sequence[Looker]],
    *,
    num_threads: int = 0,
) -> dict[Path, float]:
    """Run a graph on photographs, cut behind the tensors that have lookers.

    Returns:
        The people on each photograph.
    """
    answer = answer_of(model)
    graph = LayerwiseGraph(model, {*lookers, answer}, num_threads=num_threads)
    counts = {}
    for path in track(images, doing, total=len(images)):
        people = 0.0
        for name, values in chain.from_iterable(map(graph.run, feeds_of(model, info, path))):
            people += people_in(name, values) if name == answer else 0.0
            for looker in lookers.get(name, ()):
                show(looker, name, values, path)
        counts[path] = people
    return counts


def show(looker: Looker, name: str, values: npt.NDArray[Any], path: Path) -> None:
    """Hand one tensor of a photograph to a looker."""
    try:
        looker.add(values, path)
    except FloatingPointError as error:
        raise CalibrationError(
            f"{name} holds {error} on {path}, before anything is cast",
            fix="the network is broken for this image: check its weights with "
            "crowdrt count model.onnx IMAGE, or leave the image out",
        ) from error


def float16_tensors(model: onnx.ModelProto) -> list[str]:
    """Return the tensors that a graph computes in float16."""
    stored = {value.name for value in model.graph.initializer}
    types = element_types(model).items()
    return [name for name, kind in types if kind == onnx.TensorProto.FLOAT16 and name not in stored]


def answer_of(model: onnx.ModelProto) -> str:
    """Return the output by which people are counted."""
    outputs = [value.name for value in model.graph.output]
    found = next((name for name in ANSWERS if name in outputs), None)
    if found is None:
        raise CalibrationError(
            f"the network answers {', '.join(outputs)}, none of which counts people",
            fix=f"cast a network that answers one of {', '.join(ANSWERS)}",
        )
    return found


def people_in(answer: str, values: npt.NDArray[Any]) -> float:
    """Return the people in an answer; of a detector, the sum of its scores."""
    if answer == "logits":
        values = sigmoid(values)
    return float(values.sum(dtype=np.float64))


def difference(before: Counts, after: Counts, photographs: Sequence[Path]) -> Difference:
    """Compare counts; where there is less than one person, one person is the measure."""
    moved = [abs(after[path] - before[path]) / max(abs(before[path]), 1.0) for path in photographs]
    worst = int(np.argmax(moved))  # a NaN, where there is one
    path = photographs[worst]
    return Difference(
        largest=moved[worst],
        mean=float(np.mean(moved)),
        where=path.name,
        before=before[path],
        after=after[path],
    )
