"""A network that another tool exported with extra heads, cut to the outputs that are to ship.

Needs no PyTorch. The nodes that are left are those of the file, untouched; both graphs then run on
made-up inputs, where that is possible, and have to answer the same.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from crowdrt import __version__
from crowdrt.console import say
from crowdrt.contracts import Artifact, Feeds, Size, TensorSpec
from crowdrt.engines.ort import OrtEngine
from crowdrt.errors import EngineError, ExportError, ParityError
from crowdrt.export.simplify import RTOL, simplify
from crowdrt.manifest import reusable, sha256_file, versions, write_manifest, write_whole
from crowdrt.onnx_file import external_files, read_onnx
from crowdrt.onnx_graph import (
    GraphSize,
    every_node,
    graph_size,
    image_size,
    needed_places,
    reads,
    unneeded,
)

SIDES = (64, 224, 256, 320, 640, 32)  # of a made-up image, the first on which the graph runs
COST_SIZE = (576, 864)  # where MACs are counted for a graph of any size: SKT's first


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What a file had and has no longer."""

    size: Size  # at which MACs were counted
    before: GraphSize
    after: GraphSize  # before it was simplified
    file_nodes: int  # of the file, simplified
    kept: tuple[str, ...]
    outputs: tuple[str, ...]  # removed, like the rest
    nodes: tuple[str, ...]
    initializers: tuple[str, ...]
    inputs: tuple[str, ...]
    max_rel: float | None  # of any output, relative to its largest value; None: could not be run
    unvarying: tuple[str, ...]  # outputs that were the same everywhere: they prove nothing
    not_run: str  # why the two were not compared, or ""

    def to_facts(self) -> dict[str, Any]:
        """The manifest's form."""
        return asdict(self)

    def lines(self) -> list[str]:
        """What there is to say of it."""
        gone = ", ".join((*self.outputs, *self.inputs)) or "what no output needs"
        lines = [f"cut {gone}: {self.before.change(self.after, self.size)}"]
        if self.max_rel is None:
            return [*lines, f"NOT compared with the original by running it: {self.not_run}"]
        constant = f"; {', '.join(self.unvarying)} did not vary" if self.unvarying else ""
        return [
            *lines,
            f"{', '.join(self.kept)} on made-up input: differ from the original by "
            f"{self.max_rel:.1e} of the largest value{constant}",
        ]


def keep_outputs(source: Path, names: Sequence[str], out: Path) -> Artifact:
    """Write what the named outputs of an ONNX file need, and nothing else.

    Inputs, outputs, nodes and metadata that stay keep their names and order.

    Args:
        source: any ONNX file.
        names: outputs of it, at least one.
        out: the ONNX file to write.

    Raises:
        ExportError: the file cannot be used, has no such output, or nothing can be cut.
        ParityError: what is left answers otherwise, or the same whatever goes in.
    """
    refuse_same_file(source, out)
    model = read_onnx(source)
    check_names(model.graph, names, source=source)
    made_from = identity(source, names)
    if (done := reusable(out, made_from=made_from)) is not None:
        return done
    shorter = cut(model, names)
    feeds, reason = runnable_feeds(model)
    final, note = shorter, "not simplified: it cannot be run here"
    if feeds:
        final, note = simplify(shorter, [matching(shorter, each) for each in feeds])
    with write_whole(out) as temporary:
        onnx.save(final, temporary)
        read_onnx(temporary)
        max_rel, unvarying = compare(model, final, feeds, source=source)
    record = replace(
        describe(model, shorter, names),
        file_nodes=len(final.graph.node),
        max_rel=max_rel,
        unvarying=unvarying,
        not_run=reason,
    )
    for line in (f"{out.name}: {note}", *record.lines()):
        say(line)
    facts = {"nodes": len(final.graph.node), "simplification": note, "cut": record.to_facts()}
    return write_manifest(out, kind="onnx", made_from=made_from, facts=facts)


def identity(source: Path, names: Sequence[str]) -> dict[str, Any]:
    """Return everything that decides the cut file."""
    return {
        "sha256": [sha256_file(file) for file in (source, *external_files(source))],
        "keep_output": sorted(set(names)),
        "crowdrt": __version__,
        "onnxsim": versions().get("onnxsim"),
    }


def refuse_same_file(source: Path, out: Path) -> None:
    """Refuse to write over the network that is cut."""
    if source.exists() and out.exists() and source.samefile(out):
        raise ExportError(
            f"{out} is the network that is to be cut", fix="write to another file: -o cut.onnx"
        )


def check_names(graph: onnx.GraphProto, names: Sequence[str], *, source: Path) -> None:
    """Refuse outputs that the graph does not have, and a graph from which nothing would go."""
    offered = [value.name for value in graph.output]
    inner = {name for node in graph.node for name in node.output}
    for name in names:
        if name in offered:
            continue
        what = "an inner tensor of" if name in inner else "no output of"
        raise ExportError(
            f"{name!r} is {what} {source}, so it cannot be kept",
            fix=f"choose from its outputs: {', '.join(offered)}",
        )
    if set(offered) == set(names) and not any(unneeded(graph, names).values()):
        raise ExportError(
            f"{source} has nothing to cut: every node, stored tensor and input serves "
            f"{', '.join(offered)}",
            fix="use it as it is, or name fewer outputs",
        )


def cut(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return a copy of `model` with what the named outputs need; needs: they exist.

    Ensures: whatever is left leads to one of them, and is as it was.
    """
    shorter = onnx.ModelProto()
    shorter.CopyFrom(model)
    graph = shorter.graph
    places = set(needed_places(graph, names))
    needed = set(names).union(*(reads(graph.node[i]) for i in places))
    made = {name for i in places for name in graph.node[i].output}
    retain(graph.node, lambda i, _: i in places)
    retain(graph.initializer, lambda _, stored: stored.name in needed)
    retain(graph.sparse_initializer, lambda _, stored: stored.values.name in needed)
    retain(graph.input, lambda _, value: value.name in needed)
    retain(graph.output, lambda _, value: value.name in names)
    retain(graph.value_info, lambda _, value: value.name in needed | made)
    retain(graph.quantization_annotation, lambda _, each: each.tensor_name in needed | made)
    drop_functions(shorter)
    return shorter


def retain(field: Any, wanted: Callable[[int, Any], bool]) -> None:
    """Delete the entries of a repeated field that are not wanted."""
    for i in reversed(range(len(field))):
        if not wanted(i, field[i]):
            del field[i]


def drop_functions(model: onnx.ModelProto) -> None:
    """Delete the model's own operators that no node calls any more."""
    waiting = list(every_node(model.graph))
    called = set()
    while waiting:
        node = waiting.pop()
        for function in model.functions:
            key = (function.domain, function.name)
            if key == (node.domain, node.op_type) and key not in called:
                called.add(key)
                waiting += function.node
    retain(model.functions, lambda _, each: (each.domain, each.name) in called)


def matching(model: onnx.ModelProto, feeds: Feeds) -> Feeds:
    """Return the feeds of the inputs that `model` has."""
    names = {value.name for value in model.graph.input}
    return {name: array for name, array in feeds.items() if name in names}


def runnable_feeds(model: onnx.ModelProto) -> tuple[list[Feeds], str]:
    """Return two different inputs on which the graph runs, or none and the reason."""
    try:
        engine = OrtEngine(model.SerializeToString(), optimise=False)
    except EngineError as error:
        return [], first_line(error)
    reason = ""
    for side in SIDES:
        feeds: list[Feeds] = [made_up(engine.inputs, side, seed) for seed in (0, 1)]
        try:
            for each in feeds:
                engine.run(each)
            return feeds, ""
        except EngineError as error:
            reason = reason or first_line(error)
    return [], reason


def first_line(error: EngineError) -> str:
    """Return the beginning of what a runtime has to say."""
    return error.problem.splitlines()[0]


def made_up(inputs: Sequence[TensorSpec], side: int, seed: int) -> dict[str, npt.NDArray[Any]]:
    """Return noise for every input; of the free axes the first is 1 and others are `side`."""
    rng = np.random.default_rng(seed)
    feeds = {}
    for spec in inputs:
        lengths = (1, *[side] * (len(spec.shape) - 1))
        shape = [axis if isinstance(axis, int) else lengths[i] for i, axis in enumerate(spec.shape)]
        dtype = np.dtype(spec.dtype)
        if dtype == np.uint8:
            feeds[spec.name] = rng.integers(0, 256, shape, dtype)
        elif dtype.kind == "f":
            feeds[spec.name] = rng.normal(size=shape).astype(dtype)
        else:
            alternating = (np.arange(np.prod(shape, dtype=int)) + seed) % 2
            feeds[spec.name] = alternating.reshape(shape).astype(dtype)
    return feeds


def compare(
    before: onnx.ModelProto, after: onnx.ModelProto, feeds: Sequence[Feeds], *, source: Path
) -> tuple[float | None, tuple[str, ...]]:
    """Run both graphs and compare what is left.

    Returns:
        The largest difference, relative to an output's largest value, and the outputs that were
        the same everywhere; None where there is nothing to run them on.
    """
    if not feeds:
        return None, ()
    old, new = (OrtEngine(each.SerializeToString(), optimise=False) for each in (before, after))
    was = [old.run(each) for each in feeds]
    now = [new.run(matching(after, each)) for each in feeds]
    names = [spec.name for spec in new.outputs]
    off = {name: max(map(difference, column(was, name), column(now, name))) for name in names}
    if wrong := [name for name in names if not off[name] <= RTOL]:
        raise ParityError(
            f"{wrong[0]} differs from what {source} answers by {off[wrong[0]]:.2%}",
            fix="export it without random operators, which answer differently every time",
        )
    unvarying = tuple(name for name in names if not varies(column(was, name)))
    if len(unvarying) == len(names):
        raise ParityError(
            f"{source} answers the same on whatever goes in, so agreeing with it proves nothing",
            fix="give the network its trained weights before it is exported",
        )
    return max(off.values()), unvarying


def column(answers: Sequence[Mapping[str, npt.NDArray[Any]]], name: str) -> list[npt.NDArray[Any]]:
    """Return one output of every run."""
    return [each[name] for each in answers]


def difference(was: npt.NDArray[Any], now: npt.NDArray[Any]) -> float:
    """Return the largest difference, relative to the largest value; infinite for another shape."""
    if was.shape != now.shape or was.dtype != now.dtype:
        return np.inf
    if was.dtype.kind != "f":
        return 0.0 if np.array_equal(was, now) else np.inf
    if np.array_equal(was, now, equal_nan=True):
        return 0.0
    wide = was.astype(np.float64)
    return float(np.abs(now - wide).max() / max(np.abs(wide).max(), 1e-12))


def varies(answers: Sequence[npt.NDArray[Any]]) -> bool:
    """Say whether an output has different values, in one answer or from one to the next."""
    flat = [each.ravel() for each in answers]
    within = any(
        each.size and not np.array_equal(each, np.full_like(each, each[0])) for each in flat
    )
    return within or not all(np.array_equal(flat[0], each) for each in flat)


def describe(before: onnx.ModelProto, after: onnx.ModelProto, names: Sequence[str]) -> Cut:
    """Return the record of a cut that nothing has been compared for."""
    gone = unneeded(before.graph, names)
    offered = [value.name for value in before.graph.output]
    size = image_size(before.graph) or COST_SIZE
    return Cut(
        size=size,
        before=graph_size(before, size),
        after=graph_size(after, size),
        file_nodes=len(after.graph.node),
        kept=tuple(name for name in offered if name in names),
        outputs=tuple(name for name in offered if name not in names),
        nodes=tuple(gone["nodes"]),
        initializers=tuple(gone["initializers"]),
        inputs=tuple(gone["inputs"]),
        max_rel=None,
        unvarying=(),
        not_run="",
    )
