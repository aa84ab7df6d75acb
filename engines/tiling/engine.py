"""An image of any size in bounded memory: tile by tile, with the answer of the whole image.

    engine = open_tiled(Path("student.onnx"), max_memory=2**30)
    count = engine.run({"image": photograph})["count"]

The body of the graph runs on overlapping tiles, of which only those rows and columns are kept that
no cut inside the image can touch; the head then runs on what they give together. How exact that
is, and how the memory is estimated, is in docs/tiling.md.
"""

import contextlib
import ctypes
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from crowdrt.console import say
from crowdrt.contracts import Feeds, GraphInfo, Size, TensorSpec
from crowdrt.engines.base import HEIGHT, Engine, check_feeds
from crowdrt.engines.ort import OrtEngine, for_cpu, read_graph
from crowdrt.engines.tiling.grid import Footprint, Grid, least_bytes, make_grid, steps_within
from crowdrt.engines.tiling.locality import ONNX_DOMAINS
from crowdrt.engines.tiling.memory import peak_bytes
from crowdrt.engines.tiling.receptive import Band, ReceptiveField, receptive_field
from crowdrt.engines.tiling.split import body_of, head_of
from crowdrt.errors import EngineError
from crowdrt.onnx_file import stored_info
from crowdrt.onnx_graph import name_of

Array = npt.NDArray[Any]
Divide = Callable[[Array], Grid]  # an image (N, C, H, W) -> its tiles

MIB = 2**20
SAMPLE_PX = 512  # side of the image on which head and whole are compared
MAX_HEAD = 0.8  # of the whole network's memory; where it takes more, tiles save too little
UNTILED = "count without --max-memory and --tile-rows, on a machine with enough memory"
STATUS = Path("/proc/self/statm")
ASSUMED_RESIDENT = 256 * MIB  # where the system does not tell


class TiledEngine:
    """Runs the body of a network on tiles, and its head on what they give together."""

    def __init__(
        self,
        model: onnx.ModelProto,
        field: ReceptiveField,
        body: Engine,
        divide: Divide,
        *,
        num_threads: int = 0,
    ) -> None:
        """Wrap `body`.

        Args:
            model: the graph, of which `field` says what is local.
            field: see `tileable`.
            body: takes an image of any height and width, and gives at least the field's cuts:
                for most networks that is the density map, so an engine of the whole graph will do.
            divide: chooses the tiles: `ByMemory` or `ByRows`.
            num_threads: of the head; 0 takes every core.

        Raises:
            EngineError: `body` does not give the cuts, or takes images of one size only.
        """
        _check_body(body, field)
        head = head_of(model, field)
        self._field, self._body, self._divide = field, body, divide
        self._head = None if head is None else open_part(head, num_threads)
        self._said: tuple[Size, Size] | None = None
        self.info: GraphInfo | None = stored_info(model, source="the network")
        stored = {value.name for value in model.graph.initializer}
        self.inputs: tuple[TensorSpec, ...] = tuple(
            _spec(value) for value in model.graph.input if value.name not in stored
        )
        self.outputs: tuple[TensorSpec, ...] = tuple(map(_spec, model.graph.output))

    def run(self, feeds: Feeds) -> Feeds:
        """Run the network on one array of images; see `Engine.run`."""
        check_feeds(feeds, self.inputs, self.info)
        image = feeds[self._field.image]
        grid = self._divide(image)
        if (layout := (grid.size, grid.tile)) != self._said:
            self._said = layout
            say(str(grid))
        held = self._run_tiles(image, grid)
        outputs = dict(held)
        if self._head is not None:
            wanted = {spec.name for spec in self._head.inputs}
            cuts = {name: held[name] for name in wanted}
            outputs |= self._head.run(cuts, release=True)
        return {spec.name: outputs[spec.name] for spec in self.outputs}

    def _run_tiles(self, image: Array, grid: Grid) -> dict[str, Array]:
        """Return the cuts of the whole image."""
        held: dict[str, Array] = {}
        tiles = [(rows, columns) for rows in grid.rows for columns in grid.columns]
        for number, (rows, columns) in enumerate(tiles, 1):
            tile = image[:, :, slice(*rows.feed), slice(*columns.feed)]
            feeds = {self._field.image: np.ascontiguousarray(tile)}
            given = self._run_body(feeds, last=number == len(tiles))
            for cut in self._field.cuts:
                self._keep(cut, given[cut], rows, columns, held, image.shape)
        return held

    def _run_body(self, feeds: Feeds, *, last: bool) -> Feeds:
        """Run one tile; after the last one there is the head, or another photograph to read."""
        if last and isinstance(self._body, OrtEngine):
            return self._body.run(feeds, release=True)
        return self._body.run(feeds)

    def _keep(
        self,
        cut: str,
        given: Array,
        rows: Band,
        columns: Band,
        held: dict[str, Array],
        whole: Sequence[int],
    ) -> None:
        """Put the part of a tile's result that is right in its place."""
        if given.shape[HEIGHT:] != (rows.given[cut], columns.given[cut]):
            raise EngineError(
                f"the engine gives {cut} of {given.shape[HEIGHT:]} where the graph says "
                f"{(rows.given[cut], columns.given[cut])}: it runs another network",
                fix="open both from one file: crowdrt.engines.tiling.engine.open_tiled(path)",
            )
        if cut not in held:
            size = [self._field.lengths(axis, whole[HEIGHT + axis])[cut] for axis in (0, 1)]
            held[cut] = np.empty((*given.shape[:HEIGHT], *size), given.dtype)
        there = np.s_[:, :, slice(*rows.keep[cut]), slice(*columns.keep[cut])]
        held[cut][there] = given[:, :, slice(*rows.own[cut]), slice(*columns.own[cut])]


class ByMemory:
    """Chooses the tiles of least work with which this process stays within a memory."""

    def __init__(self, footprint: Footprint, max_memory: int) -> None:
        self._footprint, self._max_memory = footprint, max_memory

    def __call__(self, image: Array) -> Grid:
        """Return the tiles of an image that is in memory.

        Raises:
            EngineError: the smallest tiles do not fit; names a memory that would do.
        """
        size = image.shape[HEIGHT], image.shape[HEIGHT + 1]
        give_back()
        taken = resident_bytes()
        available = (self._max_memory - taken) // len(image)
        steps = steps_within(self._footprint, size, available)
        if steps is None:
            least = taken + least_bytes(self._footprint, size) * len(image)
            raise too_little(self._max_memory, taken, least, size)
        grid = make_grid(self._footprint.field, size, steps)
        total = taken + self._footprint.total(size, grid.tile) * len(image)
        return replace(grid, note=f"; at most {total / MIB:.0f} MiB in all")


def too_little(given: int, taken: int, least: int, size: tuple[int, int]) -> EngineError:
    """Return the error for a memory that not even the smallest tiles fit."""
    enough = -(-(least + 8 * MIB) // (16 * MIB)) * 16  # a process takes a little more each time
    return EngineError(
        f"{given / MIB:.0f} MiB is too little for {size[0]}x{size[1]} px (height x width): the "
        f"process with the image takes {taken / MIB:.0f} MiB, and in the smallest tiles the "
        f"network takes {(least - taken) / MIB:.0f} MiB",
        fix=f"use --max-memory {enough}MiB or more",
    )


def give_back() -> None:
    """Give freed memory back to the system: glibc keeps a part, which would count as taken."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes() -> int:
    """Return the memory that this process takes now."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        import resource  # not on Windows

        return int(STATUS.read_text().split()[1]) * resource.getpagesize()
    return ASSUMED_RESIDENT


class ByRows:
    """Divides into strips, or tiles, of a height that one is told."""

    def __init__(self, field: ReceptiveField, rows: int, columns: int | None = None) -> None:
        """Check what can be checked without an image.

        Args:
            field: of the network.
            rows: pixels that a tile answers for; it is fed more.
            columns: the same; None is the whole width.

        Raises:
            EngineError: no multiple of what the network's strides need.
        """
        for axis, step in enumerate((rows, columns)):
            unit = field.alignment(axis)
            if step is not None and (step < 1 or step % unit):
                raise EngineError(
                    f"tiles of {step} px cannot be used: the network's strides need a multiple "
                    f"of {unit}",
                    fix=f"use --tile-rows {max(unit, step // unit * unit)}",
                )
        self._field, self._steps = field, (rows, columns)

    def __call__(self, image: Array) -> Grid:
        """Return the tiles of an image.

        Raises:
            EngineError: a tile is larger than the image.
        """
        size = image.shape[HEIGHT], image.shape[HEIGHT + 1]
        for step, side in zip(self._steps, size, strict=True):
            if step is not None and step > side:
                raise EngineError(
                    f"tiles of {step} px are larger than the image, {size[0]}x{size[1]} px "
                    "(height x width)",
                    fix=f"use --tile-rows {side} or less, or leave it out",
                )
        unit = self._field.alignment(1)
        whole_width = -(-size[1] // unit) * unit
        return make_grid(self._field, size, (self._steps[0], self._steps[1] or whole_width))


def open_tiled(
    path: Path,
    *,
    max_memory: int | None = None,
    tile_rows: int | None = None,
    num_threads: int = 0,
) -> TiledEngine:
    """Open an ONNX file for images of any size, with ONNX Runtime.

    Args:
        path: the file; a network of fixed size takes that size still, in tiles.
        max_memory: bytes that this process may take, with the image and all that it holds.
        tile_rows: rows per strip instead, as many as one likes.
        num_threads: 0 takes every core.

    Raises:
        ExportError: the file cannot be used.
        EngineError: the network needs the whole image, and which operator does.
    """
    model = _as_run(path)
    field = tileable(model, source=str(path))
    footprint = Footprint(model, field)
    body = open_part(body_of(model, field), num_threads)
    if tile_rows is not None:
        return TiledEngine(model, field, body, ByRows(field, tile_rows), num_threads=num_threads)
    divide = ByMemory(footprint, 2**62 if max_memory is None else max_memory)
    return TiledEngine(model, field, body, divide, num_threads=num_threads)


def _as_run(path: Path) -> onnx.ModelProto:
    """Return the graph as ONNX Runtime is given it: cut later, INT8 is the same on both sides."""
    graph = read_graph(path)
    content = for_cpu(path, graph)
    return onnx.load_from_string(content) if isinstance(content, bytes) else graph


def open_part(part: onnx.ModelProto, num_threads: int) -> OrtEngine:
    """Open a part of a network so that it takes no more memory than it needs."""
    return OrtEngine(part.SerializeToString(), num_threads=num_threads, lean=True)


def tileable(model: onnx.ModelProto, *, source: str) -> ReceptiveField:
    """Return what is local in a network, if tiles of it save memory.

    Raises:
        EngineError: the network takes one size, or needs the whole image too early; names the
            operator that does.
    """
    _check_kind(model, source)
    field = receptive_field(model)
    reason = str(field.obstacles[0]) if field.obstacles else "it has no output that is a map"
    if not field.cuts or field.image in field.cuts:
        raise EngineError(f"{source} needs the whole image: {reason}", fix=UNTILED)
    share = head_share(model, field)
    if share > MAX_HEAD:
        raise EngineError(
            f"{source} needs the whole image: {reason}, and from there on it takes {share:.0%} of "
            "its memory",
            fix=UNTILED,
        )
    return field


def _check_kind(model: onnx.ModelProto, source: str) -> None:
    info = stored_info(model, source=source)
    if info is not None and info.fixed_size is not None:
        height, width = info.fixed_size
        raise EngineError(
            f"{source}: {info.network} takes {height}x{width} px and no other size, so its memory "
            "does not grow with the photograph",
            fix="leave out --max-memory and --tile-rows; see: crowdrt count --help for --tiles",
        )
    for node in model.graph.node:
        if node.domain not in ONNX_DOMAINS:
            raise EngineError(
                f"{source} holds operators of {node.domain}, which say nothing of what they read: "
                f"{node.op_type} ({name_of(node)})",
                fix="name the file that was exported, before a runtime optimised it",
            )


def head_share(model: onnx.ModelProto, field: ReceptiveField) -> float:
    """Return how much of a network's memory its head takes, of a small image."""
    head = head_of(model, field)
    if head is None:
        return 0.0
    side = -(-SAMPLE_PX // (unit := field.alignment(0))) * unit
    cuts = {cut: field.size_of(cut, (side, side)) for cut in field.cuts}
    return min(1.0, peak_bytes(head, cuts) / peak_bytes(model, {field.image: (side, side)}))


def _check_body(body: Engine, field: ReceptiveField) -> None:
    if missing := set(field.cuts) - {spec.name for spec in body.outputs}:
        raise EngineError(
            f"the engine does not give {sorted(missing)}, with which the rest goes on",
            fix="open the parts from the file: crowdrt.engines.tiling.engine.open_tiled(path)",
        )
    sides = next(spec.shape[HEIGHT:] for spec in body.inputs if spec.name == field.image)
    if any(isinstance(side, int) for side in sides):
        raise EngineError(
            f"the engine takes images of {sides} px only, tiles need any size",
            fix="open the parts from the file: crowdrt.engines.tiling.engine.open_tiled(path)",
        )


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    shape = tuple(
        axis.dim_value or axis.dim_param or f"axis{i}" for i, axis in enumerate(kind.shape.dim)
    )
    dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    return TensorSpec(name=value.name, shape=shape, dtype=dtype)
