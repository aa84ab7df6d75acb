"""Which part of a photograph decides a part of the answer, read from the ONNX graph itself.

`receptive_field` walks a graph from its image on and splits it. The body is all that is local: a
row of its tensors depends on a window of the photograph's rows, so it gives the same rows when it
sees only a tile that holds the window. The head is the rest, from the first operators that need
the whole image. Where the two meet lie the cuts: the density map of most networks, whose sum is
the head; the small map in front of a resize with align_corners, or of pooling to a fixed size.

A tile must satisfy two things, along each axis:

- It begins at a multiple of `alignment`, so that every stride inside falls on the same rows as in
  the whole image. Then row r of a tensor in the tile is row r + begin * scale of the whole.
- It holds every row that the wanted rows are made of, `needed` of them. Operators pad at the edge
  of what they see: at the edge of the photograph, as they do without tiles; at a cut inside it,
  only rows that nobody wants are touched, so no padding, normalised or not, enters the answer.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import onnx

from crowdrt.contracts import Size
from crowdrt.engines.tiling.locality import (
    Constants,
    NotLocalError,
    check_operands,
    steps_of,
    stored_arrays,
)
from crowdrt.engines.tiling.shapes import shapes_of
from crowdrt.engines.tiling.windows import Span, Steps
from crowdrt.errors import EngineError
from crowdrt.onnx_graph import name_of


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A node of the body: which tensors it reads, and how."""

    operator: str
    sources: tuple[str, ...]
    results: tuple[str, ...]
    steps: Steps


@dataclass(frozen=True, kw_only=True)
class Obstacle:
    """A node that needs the whole image."""

    operator: str
    node: str
    why: str

    def __str__(self) -> str:
        return f"{self.operator} ({self.node}) {self.why}"


@dataclass(frozen=True, kw_only=True)
class ReceptiveField:
    """The local part of a graph, and what of the photograph decides what in it."""

    image: str
    readings: tuple[Reading, ...]  # in the graph's order, those that lead to a cut
    cuts: tuple[str, ...]  # tensors of the body that the head reads, or that are outputs
    obstacles: tuple[Obstacle, ...]  # where the head begins

    def scales(self, axis: int) -> dict[str, Fraction]:
        """Return the rows (axis 0) or columns (1) of each tensor per row of the photograph."""
        scales = {self.image: Fraction(1)}
        for reading in self.readings:
            scale = scales[reading.sources[0]] * reading.steps[axis].scale
            scales |= dict.fromkeys(reading.results, scale)
        return scales

    def alignment(self, axis: int) -> int:
        """Return of what a tile's first row must be a multiple."""
        return math.lcm(*(scale.denominator for scale in self.scales(axis).values()))

    def lengths(self, axis: int, side: int) -> dict[str, int]:
        """Return how many rows each tensor has for a photograph of `side` rows."""
        lengths = {self.image: side}
        for reading in self.readings:
            length = reading.steps[axis].length(lengths[reading.sources[0]])
            lengths |= dict.fromkeys(reading.results, length)
        return lengths

    def size_of(self, tensor: str, size: Size) -> Size:
        """Return height and width of a tensor for a photograph of this height and width."""
        return self.lengths(0, size[0])[tensor], self.lengths(1, size[1])[tensor]

    def needed(self, axis: int, side: int, wanted: Mapping[str, Span]) -> dict[str, Span]:
        """Return the rows of each tensor that decide the wanted rows.

        Args:
            axis: 0 for rows, 1 for columns.
            side: rows of the whole photograph.
            wanted: rows of some tensors of the body, in the whole image.

        Returns:
            The rows that exist, in the whole image; tensors that play no part are left out. Where
            a window reaches past an edge, the row at this edge is among them.
        """
        lengths = self.lengths(axis, side)
        needed = dict(wanted)
        for reading in reversed(self.readings):
            spans = [needed[name] for name in reading.results if name in needed]
            if not spans:
                continue
            read = inside(reading.steps[axis].reads(hull(spans)), lengths[reading.sources[0]])
            for source in reading.sources:
                needed[source] = hull([read, needed.get(source, read)])
        return needed


def hull(spans: Sequence[Span]) -> Span:
    """Return the smallest span that holds all of them."""
    return min(span[0] for span in spans), max(span[1] for span in spans)


def inside(span: Span, length: int) -> Span:
    """Return the part of a span that exists; the row at the edge where none of it does."""
    first = min(max(span[0], 0), length - 1)
    return first, max(min(span[1], length), first + 1)


def receptive_field(model: onnx.ModelProto) -> ReceptiveField:
    """Return what is local in a network that reads one image.

    Raises:
        EngineError: nothing in it is, or it does not read one image (N, C, H, W).
    """
    graph, image = model.graph, image_input(model)
    walk = _Walk(image, stored_arrays(graph), shapes_of(model))
    for node in graph.node:
        walk.visit(node)
    cuts = walk.cuts([value.name for value in graph.output])
    readings = _leading_to(cuts, walk.readings)
    return ReceptiveField(
        image=image, readings=readings, cuts=cuts, obstacles=tuple(walk.obstacles)
    )


def image_input(model: onnx.ModelProto) -> str:
    """Return the name of a graph's one input, an image."""
    stored = {value.name for value in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    if len(inputs) != 1 or len(inputs[0].type.tensor_type.shape.dim) != 4:
        raise EngineError(
            f"the network's inputs are {[value.name for value in inputs]}, not one image "
            "(N, C, H, W)",
            fix="count without --max-memory or --tile-rows",
        )
    return str(inputs[0].name)


class _Walk:
    """The graph as seen from its image: what is local so far, and what is not."""

    def __init__(
        self, image: str, constants: Constants, shapes: Mapping[str, Sequence[int]]
    ) -> None:
        self.constants, self.shapes = constants, shapes
        self.scales: dict[str, Scales] = {image: (Fraction(1), Fraction(1))}  # of the body
        self.readings: list[Reading] = []
        self.obstacles: list[Obstacle] = []
        self.whole: set[str] = set()  # tensors of the head
        self.sized: set[str] = set()  # those that follow from the size of a tensor alone
        self.held: dict[str, None] = {}  # tensors of the body that the head reads, in order

    def visit(self, node: onnx.NodeProto) -> None:
        """Add a node to the body where it is local and all it reads is, else to the head."""
        sources = [name for name in node.input if name in self.scales]
        if not self.whole.isdisjoint(node.input):
            self._leave(node, sources)
        elif node.op_type == "Shape" or (not sources and not self.sized.isdisjoint(node.input)):
            self.sized |= set(node.output)
            self.held |= dict.fromkeys(sources)
        elif sources:
            try:
                self._add(node, sources)
            except NotLocalError as why:
                self.obstacles.append(
                    Obstacle(operator=node.op_type, node=name_of(node), why=str(why))
                )
                self._leave(node, sources)

    def _leave(self, node: onnx.NodeProto, sources: Sequence[str]) -> None:
        self.whole |= {name for name in node.output if name}
        self.held |= dict.fromkeys(sources)

    def _add(self, node: onnx.NodeProto, sources: Sequence[str]) -> None:
        steps = steps_of(node, self.constants)
        if not self.sized.isdisjoint(node.input):
            raise NotLocalError("goes by the size of the whole image")
        check_operands(node, sources, self.shapes)
        scales = {self.scales[name] for name in sources}
        if len(scales) > 1:
            raise NotLocalError("joins maps of different strides")
        rows, columns = scales.pop()
        results = tuple(name for name in node.output if name)
        self.readings.append(
            Reading(operator=node.op_type, sources=tuple(sources), results=results, steps=steps)
        )
        for name in results:
            self.scales[name] = rows * steps[0].scale, columns * steps[1].scale

    def cuts(self, outputs: Sequence[str]) -> tuple[str, ...]:
        """Return the body's tensors that are outputs, or that the head reads.

        Of an INT8 tensor the codes are handed over: a runtime fuses DequantizeLinear with what
        reads it, and would round otherwise without it.
        """
        codes = {
            reading.results[0]: reading.sources[0]
            for reading in self.readings
            if reading.operator == "DequantizeLinear"
        }
        own = [name for name in outputs if name in self.scales]
        read = [codes.get(name, name) for name in self.held]
        return tuple(dict.fromkeys(own + read))


Scales = tuple[Fraction, Fraction]  # rows, columns


def _leading_to(cuts: Sequence[str], readings: Sequence[Reading]) -> tuple[Reading, ...]:
    """Return the readings that a cut depends on."""
    wanted, kept = set(cuts), []
    for reading in reversed(readings):
        if not wanted.isdisjoint(reading.results):
            kept.append(reading)
            wanted |= set(reading.sources)
    return tuple(reversed(kept))


@dataclass(frozen=True, kw_only=True)
class Band:
    """A stretch of the photograph along one axis, and what of the cuts it gives."""

    feed: Span  # of the photograph, the halo included
    keep: Mapping[str, Span]  # of each cut, in the whole image
    own: Mapping[str, Span]  # the same rows, in what the band alone gives
    given: Mapping[str, int]  # rows that the band gives of each cut, wrong ones near cuts included


def bands_of(field: ReceptiveField, axis: int, side: int, step: int) -> tuple[Band, ...]:
    """Divide one axis of a photograph; together the bands give each row of a cut once.

    All are fed alike, as far as the photograph's length allows: a runtime finds the memory of
    the last tile just right for the next. So the first and the last, which have a halo on one side
    only, answer for more rows than those between.

    Args:
        field: says what decides what.
        axis: 0 for rows, 1 for columns.
        side: rows of the photograph.
        step: rows that a band between two others answers for, a multiple of the alignment.
    """
    assert step % field.alignment(axis) == 0, (step, field.alignment(axis))
    before, after = halo(field, axis)
    fed = before + step + after
    if fed >= side:
        parts = [(0, side)]
    else:
        starts = [0, *range(before + step, side - after, step)]
        parts = list(zip(starts, [*starts[1:], side], strict=True))
    bands = [band_of(field, axis, side, part, fed=fed) for part in parts]
    return tuple(band for band in bands if band is not None)


def halo(field: ReceptiveField, axis: int) -> tuple[int, int]:
    """Return how many rows a band is fed before and after those it answers for."""
    unit = field.alignment(axis)
    middle = 2**20 * unit  # far from every border
    band = band_of(field, axis, 2 * middle, (middle, middle + unit))
    assert band is not None
    return middle - band.feed[0], band.feed[1] - middle - unit


def band_of(
    field: ReceptiveField, axis: int, side: int, part: Span, *, fed: int = 0
) -> Band | None:
    """Return what a part of the photograph gives; a map that shrank has nothing for the last.

    Args:
        field: says what decides what.
        axis: 0 for rows, 1 for columns.
        side: rows of the photograph.
        part: the rows that the band answers for; they begin at a multiple of the alignment.
        fed: how many it is to see at least, as far as there are so many.
    """
    scales, lengths = field.scales(axis), field.lengths(axis, side)
    keep = {cut: _share(part, side, scales[cut], lengths[cut]) for cut in field.cuts}
    wanted = {cut: span for cut, span in keep.items() if span[0] < span[1]}
    if not wanted:
        return None
    first, last = _feed(field, axis, side, field.needed(axis, side, wanted))
    last = min(max(last, first + fed), side)
    first = min(first, max(0, last - fed) // field.alignment(axis) * field.alignment(axis))
    begins = {cut: int(first * scales[cut]) for cut in field.cuts}
    return Band(
        feed=(first, last),
        keep=keep,
        own={cut: (span[0] - begins[cut], span[1] - begins[cut]) for cut, span in keep.items()},
        given=field.lengths(axis, last - first),
    )


def _feed(field: ReceptiveField, axis: int, side: int, needed: Mapping[str, Span]) -> Span:
    """Return the rows of the smallest aligned tile in which the needed rows come out.

    They may all be there and yet not come out: a transposed convolution crops rows at its edges,
    a resize drops half a row.
    """
    unit, scales = field.alignment(axis), field.scales(axis)
    first, last = needed[field.image]
    first, last = first // unit * unit, min(-(-last // unit) * unit, side)
    while True:
        lengths = field.lengths(axis, last - first)
        begins = {name: int(first * scales[name]) for name in needed}
        early = first > 0 and any(span[0] < begins[name] for name, span in needed.items())
        late = last < side and any(
            span[1] > begins[name] + lengths[name] for name, span in needed.items()
        )
        if not early and not late:
            return first, last
        first, last = first - unit * early, min(last + unit * late, side)


def _share(part: Span, side: int, scale: Fraction, length: int) -> Span:
    """Return the rows of a tensor that belong to a part of the photograph; the last takes all."""
    first, last = (min(int(row * scale), length) for row in part)
    return first, length if part[1] == side else last
