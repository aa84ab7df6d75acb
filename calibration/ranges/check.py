"""Whether photographs leave an INT8 network's ranges, as whole ones may those of crops."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crowdrt.calibration.calibrate import collect, float_info
from crowdrt.calibration.int8.plan import plan_int8
from crowdrt.errors import CalibrationError
from crowdrt.manifest import read_manifest
from crowdrt.onnx_file import read_onnx

# Photographs that were not calibrated on reach a little further on some tensor nearly always.
FURTHER = 1.25


@dataclass(frozen=True)
class Exceeded:
    """A tensor that reaches further than in calibration, by a quarter or more."""

    tensor: str
    calibrated: float  # largest |x| that calibration saw
    range: float  # |x| up to which INT8 reaches
    largest: float  # |x| on the photographs that check
    clipped: float  # share of their values that lie beyond the range

    def __str__(self) -> str:
        return (
            f"{self.tensor} reaches {self.largest:.4g}, in calibration it was "
            f"{self.calibrated:.4g}; INT8 ends at {self.range:.4g} and clips {self.clipped:.3%}"
        )


def exceeded_ranges(
    onnx_path: Path, int8_path: Path, images: Sequence[Path], *, num_threads: int = 0
) -> list[Exceeded]:
    """Run the float network on photographs; return what they exceed, most clipped first.

    Args:
        onnx_path: the float network.
        int8_path: what calibration made of it, with its manifest beside it.
        images: photographs as they will be counted.
        num_threads: 0 uses every core.
    """
    tensors, keep_float = calibrated(int8_path)
    model = read_onnx(onnx_path)
    plan = plan_int8(model, keep_float)
    info = float_info(model, source=str(onnx_path))
    found = []
    for name, statistics in collect(model, plan, info, images, num_threads=num_threads).items():
        histogram, known = statistics.histogram, tensors[name]
        if histogram.largest > FURTHER * known["largest"]:
            found.append(
                Exceeded(
                    tensor=name,
                    calibrated=known["largest"],
                    range=known["range"],
                    largest=histogram.largest,
                    clipped=histogram.share_above(known["range"]),
                )
            )
    return sorted(found, key=lambda each: -each.clipped)


def calibrated(int8_path: Path) -> tuple[Mapping[str, Mapping[str, float]], Sequence[str]]:
    """Return the ranges in the manifest of an INT8 network, and what it keeps float on request."""
    document: Mapping[str, Any] = read_manifest(int8_path) or {}
    try:
        return document["facts"]["tensors"], document["made_from"]["keep_float"]
    except (LookupError, TypeError) as error:
        raise CalibrationError(
            f"{int8_path} has no manifest of its calibration beside it",
            fix=f"calibrate again: crowdrt calibrate model.onnx --images DIR -o {int8_path}",
        ) from error
