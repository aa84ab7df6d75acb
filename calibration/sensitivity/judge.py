"""Forms of one network, held against its float form on the photographs that judge them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from crowdrt.calibration.calibrate import feeds_of
from crowdrt.calibration.fp16.measure import answer_of, people_in
from crowdrt.contracts import DENSITY, GraphInfo
from crowdrt.engines.ort import OrtEngine


@dataclass(frozen=True)
class CountError:
    """How far counts moved; relative to those before, or to one person where there was less."""

    change: float  # mean of |change| over the photographs
    bias: float  # mean change, with its sign
    largest: float  # |change| of the photograph that moved furthest
    mae_change: float | None  # relative, against people's own counts; None without them

    @property
    def judged_by(self) -> float:
        """What a tolerance is held against.

        A MAE that falls counts as one that rises: where a network counts too many, INT8 that
        loses people looks better and is not to be relied on.
        """
        return self.change if self.mae_change is None else abs(self.mae_change)


@dataclass(frozen=True)
class Verdict:
    """What one form of a network answered."""

    counts: tuple[float, ...]  # people on each photograph
    signal: float  # sum of squares of the float network's map
    noise: float  # sum of squares of the differences from it

    @property
    def sqnr_db(self) -> float | None:
        """Signal to quantization noise of the map, in decibel; None where nothing differs."""
        if not self.noise:
            return None
        return 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf


def count_error(
    before: Sequence[float], after: Sequence[float], annotated: Sequence[int] | None
) -> CountError:
    """Compare counts, photograph by photograph.

    Args:
        before: those of the float network.
        after: those of another form of it.
        annotated: people's own; None where a photograph has none.
    """
    old, new = np.array(before), np.array(after)
    moved = (new - old) / np.maximum(np.abs(old), 1.0)
    mae_change = None
    if annotated is not None:
        mae, new_mae = (float(np.abs(each - annotated).mean()) for each in (old, new))
        mae_change = (new_mae - mae) / max(mae, SMALLEST_MAE)
    return CountError(
        change=float(np.abs(moved).mean()),
        bias=float(moved.mean()),
        largest=float(np.abs(moved).max()),
        mae_change=mae_change,
    )


SMALLEST_MAE = 0.01  # people; a network that is never wrong has no MAE to compare with


class Judge:
    """Runs networks on photographs, each at its own size, on the CPU engine."""

    def __init__(
        self,
        model: onnx.ModelProto,
        info: GraphInfo,
        photographs: Sequence[Path],
        *,
        num_threads: int = 0,
    ) -> None:
        self.model, self.info, self.photographs = model, info, photographs
        self.num_threads = num_threads
        self.answer = answer_of(model)
        outputs = [value.name for value in model.graph.output]
        self.map = DENSITY if DENSITY in outputs else self.answer

    def verdict(self, model: onnx.ModelProto) -> Verdict:
        """Return what a form of the network answers, and how far its maps differ."""
        counts, signal, noise = [], 0.0, 0.0
        maps = iter(self.float_maps)
        for answers in self.answers(model):
            counts.append(sum(people_in(self.answer, each[self.answer]) for each in answers))
            for each in answers:
                expected = next(maps)
                signal += float(np.square(expected, dtype=np.float64).sum())
                noise += float(np.square(each[self.map] - expected, dtype=np.float64).sum())
        return Verdict(tuple(counts), signal, noise)

    @cached_property
    def float_maps(self) -> list[npt.NDArray[Any]]:
        """The float network's map of each photograph, or of each tile that it is cut into."""
        return [each[self.map] for answers in self.answers(self.model) for each in answers]

    def answers(self, model: onnx.ModelProto) -> Iterator[list[Mapping[str, npt.NDArray[Any]]]]:
        """Yield the outputs for each photograph, tile by tile where it has to be cut."""
        engine = OrtEngine(model.SerializeToString(), num_threads=self.num_threads, lean=True)
        for path in self.photographs:
            yield [engine.run(feeds) for feeds in feeds_of(self.model, self.info, path)]
