"""The FP32 convolutions that make the answer, given back the mean that float16 took from them.

A count sums the map over thousands of cells, most of them nearly empty: noise cancels there, and
a shift of every cell by 1e-5 does not. Rounded biases make such shifts. On a trained MCNN they
moved the counts of 10 photographs by -0.4 %, all of them alike, and rounded weights by 0.03 %; a
last bias that makes up for the mean shift of what it reads leaves 0.02 %. As in Nagel et al.,
"Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019,
arXiv:1906.04721, with means that were measured, and at the end alone, where biases are FP32.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from crowdrt.calibration.fp16.graph import free, taken
from crowdrt.calibration.fp16.plan import ANSWERS, Fp16Plan
from crowdrt.calibration.int8.bias import mean_shift
from crowdrt.engines.rewrites.normalisation import drop_unread
from crowdrt.onnx_graph import CONVS, name_of

Means = npt.NDArray[np.float64]  # (C,)


@dataclass
class ChannelMeans:
    """The mean of each channel of a tensor (N, C, ...), over some photographs."""

    photographs: frozenset[Path]
    _sums: Means = field(default_factory=lambda: np.zeros(1))
    _num: int = 0

    def add(self, values: npt.NDArray[np.floating], path: Path) -> None:
        """Take in one array, unless it was computed from another photograph."""
        if path not in self.photographs:
            return
        others = tuple(axis for axis in range(values.ndim) if axis != 1)
        self._sums = self._sums + values.sum(axis=others, dtype=np.float64)
        self._num += values.size // values.shape[1]

    @property
    def means(self) -> Means:
        """Every pixel of every photograph counts alike."""
        return self._sums / max(self._num, 1)


def heads_of(model: onnx.ModelProto, plan: Fp16Plan) -> dict[str, onnx.NodeProto]:
    """Return name -> convolution that makes the answer from what the network computes."""
    stored = {value.name for value in model.graph.initializer}
    return {
        name_of(node): node
        for node in model.graph.node
        if plan.kept.get(name_of(node)) == ANSWERS
        and node.op_type in CONVS
        and stored.issuperset(node.input[1:])
        and node.input[0] not in stored
    }


def with_means_kept(
    half: onnx.ModelProto, before: Mapping[str, Means], after: Mapping[str, Means]
) -> onnx.ModelProto:
    """Return a copy whose last biases answer the mean that the FP32 network answers.

    Args:
        half: the float16 network.
        before: head -> the channel means of what it reads, in the FP32 network.
        after: the same in `half`.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(half)
    names = taken(copy.graph)
    stored = {value.name: numpy_helper.to_array(value) for value in copy.graph.initializer}
    for node in copy.graph.node:
        if (name := name_of(node)) in before:
            shift = mean_shift(node, stored[node.input[1]], after[name] - before[name])
            bias = stored[node.input[2]] if len(node.input) > 2 else np.zeros_like(shift)
            corrected = free(f"{node.input[1]}_bias", names)
            array = (bias - shift).astype(np.float32)
            copy.graph.initializer.append(numpy_helper.from_array(array, corrected))
            node.input[2:] = [corrected]
    drop_unread(copy.graph)
    return copy
