"""Runs a float graph piece by piece, so that one image's live tensors are all that memory holds.

Asking one session for every activation keeps them all alive at once, and a session's memory
arena keeps what it ever needed: calibration on large images runs out of memory either way. Here
the graph is cut behind every watched tensor, each piece is a session without an arena, and a
tensor is dropped after the last piece that reads it.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from crowdrt.contracts import Feeds, Size
from crowdrt.engines.ort import SPINNING, open_session, session_options
from crowdrt.errors import CalibrationError
from crowdrt.lazy import require
from crowdrt.onnx_graph import fill_free_axes, free_sizes, image_size, needed_nodes


@dataclass(frozen=True)
class Piece:
    """Part of a graph, from tensors that exist to the next watched one."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    model: onnx.ModelProto


class LayerwiseGraph:
    """A float graph that hands out its watched tensors one after the other."""

    def __init__(
        self, model: onnx.ModelProto, watched: Collection[str], *, num_threads: int = 0
    ) -> None:
        self.watched = frozenset(watched)
        self.pieces = cut(model, self.watched)
        self._sessions = [open_piece(piece, num_threads) for piece in self.pieces]

    def run(self, feeds: Feeds) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """Yield (name, array) of every watched tensor, in the graph's order.

        An array is released when the caller moves on and no later piece needs it.
        """
        readers = Counter(name for piece in self.pieces for name in piece.inputs)
        live = dict(feeds)
        yield from ((name, live[name]) for name in feeds if name in self.watched)
        for piece, session in zip(self.pieces, self._sessions, strict=True):
            made = run_piece(session, piece, live)
            readers.subtract(piece.inputs)
            for name in piece.inputs:
                if not readers[name]:
                    live.pop(name, None)
            live.update((name, made[name]) for name in made if readers[name])
            for name in [name for name in piece.outputs if name in self.watched]:
                yield name, made.pop(name)


def cut(model: onnx.ModelProto, watched: Collection[str]) -> list[Piece]:
    """Split what the watched tensors depend on into pieces that each end at one of them.

    A network for one size calibrates on images of any.
    """
    model = onnx.shape_inference.infer_shapes(free_sizes(model), data_prop=True)
    extractor = onnx.utils.Extractor(model)
    runs = split(needed_nodes(model.graph, watched), watched)
    made_by = [{name for node in run for name in node.output} for run in runs]
    read_by = [{name for node in run for name in node.input} for run in runs]
    entering = {value.name for value in model.graph.input}
    entering -= {value.name for value in model.graph.initializer}
    made = entering.union(*made_by)
    pieces = []
    for i, run in enumerate(runs):
        inputs = tuple(sorted((read_by[i] & made) - made_by[i]))
        wanted = set(watched).union(*read_by[i + 1 :])
        outputs = tuple(name for node in run for name in node.output if name in wanted)
        pieces.append(Piece(inputs, outputs, extractor.extract_model([*inputs], [*outputs])))
    return pieces


def only_size(model: onnx.ModelProto, wanted: Size) -> Size | None:
    """Return the only (height, width) that a graph takes, or None where it takes `wanted` too.

    A graph that was exported for one size can mostly take others. It cannot where sizes were
    stored inside, as the targets of a resize are.
    """
    own = image_size(model.graph)
    if own in (None, wanted):
        return None
    sized = free_sizes(model)
    fill_free_axes(sized, wanted)
    try:
        onnx.shape_inference.infer_shapes(sized, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return own
    return None


def split(nodes: Sequence[onnx.NodeProto], watched: Collection[str]) -> list[list[onnx.NodeProto]]:
    """Group nodes into runs that each end with the node that makes a watched tensor.

    Constants belong to every piece that reads them, so to no run.
    """
    runs: list[list[onnx.NodeProto]] = [[]]
    for node in nodes:
        if node.op_type == "Constant":
            continue
        runs[-1].append(node)
        if set(node.output) & set(watched):
            runs.append([])
    return [run for run in runs if run]


def open_piece(piece: Piece, num_threads: int) -> Any:
    """Return an ONNX Runtime session that gives memory back after every run."""
    ort = require("onnxruntime", extra="cpu")
    options = session_options(ort, num_threads, SPINNING, optimise=True)
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    where = f"the part of the network that ends at {piece.outputs[-1]}"
    return open_session(ort, piece.model.SerializeToString(), options, source=where)


def run_piece(session: Any, piece: Piece, live: Feeds) -> dict[str, npt.NDArray[Any]]:
    """Run one piece on the tensors that it reads."""
    try:
        arrays = session.run(list(piece.outputs), {name: live[name] for name in piece.inputs})
    except Exception as error:  # ONNX Runtime's exceptions have no base of their own
        shapes = {name: np.shape(live[name]) for name in piece.inputs}
        raise CalibrationError(
            f"the network fails between {shapes} and {piece.outputs[-1]}: {error}",
            fix="a graph with fixed sizes inside cannot take other images; export it for any "
            "size: crowdrt export NETWORK --size dynamic -o model.onnx",
        ) from error
    return dict(zip(piece.outputs, arrays, strict=True))
