"""The INT8 grid that calibration writes and training simulates, and what training says of it.

A tensor's scale is a 127th of its range. Ranges that a network learned with travel in its weights
file and in its ONNX file, so that `crowdrt calibrate` needs no photographs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, get_args

import numpy as np
import numpy.typing as npt

INT8_MAX = 127
# 7-bit weights reach 64: a pair of u8 x s8 products is then at most 2 * 255 * 64 = 32640, inside
# the 16-bit sums of CPUs without VNNI.
WEIGHT_MAX = {7: 64, 8: 127}
# Two scales are multiplied, and must not vanish from float32.
MIN_SCALE = 2.0**-60
# The bias becomes int32 in steps of input scale times weight scale; half of int32 is left free.
MAX_BIAS_STEPS = 2.0**30

MAX_RANGE = 1e6  # no network that counts has activations like these; a forged one might
MAX_LAYERS = 1000

WeightScales = Literal["channel", "layer"]


def activation_scale(largest: float) -> npt.NDArray[np.float32]:
    """Return the step by which int8 reaches `largest`; any will do for a tensor that is zero."""
    return np.array(max((largest or 1.0) / INT8_MAX, MIN_SCALE), np.float32)


@dataclass(frozen=True, kw_only=True)
class TrainedInt8:
    """How a network that learned in simulated INT8 is quantized.

    Layers are named as in the network in a weights file, and by their node in an ONNX file.
    """

    ranges: Mapping[str, float]  # layer -> |x| up to which INT8 reaches of what it reads
    weight_scales: WeightScales = "channel"  # one for each output channel, or one per layer
    weight_bits: int = 8

    def renamed(self, names: Mapping[str, str]) -> Self:
        """Return the same with its layers under other names."""
        return replace(self, ranges={names[layer]: value for layer, value in self.ranges.items()})

    @classmethod
    def from_document(cls, document: Any) -> Self | None:
        """Read what `asdict` made of one, out of a file that is not trusted; None stays None.

        Raises:
            ValueError: it says something that training never says.
        """
        if document is None:
            return None
        if not isinstance(document, dict) or not isinstance(document.get("ranges"), dict):
            raise ValueError("the trained ranges are no list of layers")
        if document.keys() != {"ranges", "weight_scales", "weight_bits"}:
            raise ValueError(f"the trained ranges say {', '.join(map(repr, document))}")
        ranges, bits = document["ranges"], document["weight_bits"]
        if not 0 < len(ranges) <= MAX_LAYERS:
            raise ValueError(f"{len(ranges)} layers have trained ranges")
        for layer, value in ranges.items():
            check_range(layer, value)
        if type(bits) is not int or bits not in WEIGHT_MAX:
            raise ValueError(f"weight_bits={bits!r} is neither 7 nor 8")
        if document["weight_scales"] not in get_args(WeightScales):
            raise ValueError(f"weight_scales={document['weight_scales']!r} is neither per channel "
                             "nor per layer")  # fmt: skip
        return cls(
            ranges={str(layer): float(value) for layer, value in ranges.items()},
            weight_scales=document["weight_scales"],
            weight_bits=bits,
        )


def check_range(layer: str, value: Any) -> None:
    """Refuse a range that no activations can have.

    Raises:
        ValueError: it is no number in 0..MAX_RANGE; 0 is that of a layer that reads zeros alone.
    """
    if type(value) not in (int, float) or not 0 <= value <= MAX_RANGE:  # a NaN, too
        raise ValueError(
            f"the trained range of {layer!r:.80} is {value!r:.40}, not a number from 0 to "
            f"{MAX_RANGE:g}"
        )
