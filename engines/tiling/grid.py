"""How a photograph is divided into tiles: by what memory allows, or as one is told."""

import math
from dataclasses import dataclass

import onnx
from onnx import helper

from crowdrt.contracts import Size
from crowdrt.engines.tiling.memory import peak_bytes
from crowdrt.engines.tiling.receptive import Band, ReceptiveField, bands_of, halo
from crowdrt.engines.tiling.split import body_of, cut_values, head_of

MIB = 2**20
# ONNX Runtime took 0.9 to 2.1 times what was estimated, as its arena leaves holes: docs/tiling.md.
MARGIN = 2.2
SAMPLE_PX = 512  # side of the tile whose memory is estimated; that of others goes by the area


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The tiles of one photograph: every row band with every column band."""

    size: Size  # of the photograph
    rows: tuple[Band, ...]
    columns: tuple[Band, ...]
    note: str = ""  # for people, on the memory

    @property
    def tile(self) -> Size:
        """Height and width of the largest tile as it is fed, halo included."""
        height, width = (
            max(band.feed[1] - band.feed[0] for band in bands)
            for bands in (self.rows, self.columns)
        )
        return height, width

    @property
    def work(self) -> float:
        """How many times each pixel is computed, on average."""
        rows, columns = (
            sum(band.feed[1] - band.feed[0] for band in bands)
            for bands in (self.rows, self.columns)
        )
        return rows * columns / math.prod(self.size)

    def __str__(self) -> str:
        height, width = self.size
        down, across = len(self.rows), len(self.columns)
        if down * across == 1:
            return f"{height}x{width} px (height x width) in one piece{self.note}"
        what = f"{down} strips" if across == 1 else f"{down}x{across} tiles"
        tall, wide = self.tile
        return (
            f"{height}x{width} px (height x width) in {what} of {tall}x{wide} px, overlaps "
            f"included: {self.work:.2f} times the work{self.note}"
        )


def make_grid(field: ReceptiveField, size: Size, steps: Size) -> Grid:
    """Return the grid whose tiles begin every so many rows and columns."""
    rows, columns = (bands_of(field, axis, size[axis], steps[axis]) for axis in (0, 1))
    return Grid(size=size, rows=rows, columns=columns)


class Footprint:
    """The bytes that a network's body takes per tile, and its head for the whole image."""

    def __init__(self, model: onnx.ModelProto, field: ReceptiveField) -> None:
        self.field = field
        self._head = head_of(model, field)
        self._whole: dict[Size, tuple[int, int]] = {}
        self._cells = {
            value.name: _cell_bytes(value) for value in cut_values(model, field)
        }  # bytes per cell of each cut
        unit = math.lcm(field.alignment(0), field.alignment(1))
        side = -(-SAMPLE_PX // unit) * unit
        self.per_pixel = peak_bytes(body_of(model, field), {field.image: (side, side)}) / side**2

    def tile(self, tile: Size) -> int:
        """Return what running the body on one tile takes."""
        return math.ceil(MARGIN * self.per_pixel * math.prod(tile))

    def total(self, size: Size, tile: Size) -> int:
        """Return what an image of `size` takes in tiles of at most `tile`, overlaps included."""
        held, head = self.whole(size)
        return max(held + self.tile(tile), head)

    def whole(self, size: Size) -> tuple[int, int]:
        """Return what the cuts of the whole image take, and what the head takes with them."""
        if size not in self._whole:
            sizes = {cut: self.field.size_of(cut, size) for cut in self.field.cuts}
            held = sum(math.prod(sizes[cut]) * each for cut, each in self._cells.items())
            head = 0 if self._head is None else math.ceil(MARGIN * peak_bytes(self._head, sizes))
            self._whole[size] = held, head
        return self._whole[size]


def _cell_bytes(value: onnx.ValueInfoProto) -> int:
    kind = value.type.tensor_type
    itemsize = helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
    return int(itemsize * max(kind.shape.dim[1].dim_value, 1))


def steps_within(footprint: Footprint, size: Size, available: int) -> Size | None:
    """Return the tiles of least work, overlaps included, that fit the memory, if any do.

    Args:
        footprint: of the network.
        size: height and width of the photograph.
        available: bytes for the network's tensors.
    """
    rows, columns = (_choices(footprint.field, axis, size[axis]) for axis in (0, 1))
    fitting = [
        (tall.total * wide.total, tall.step, wide.step)
        for wide in columns
        for tall in rows
        if footprint.total(size, (tall.fed, wide.fed)) <= available
    ]
    if not fitting:
        return None
    _, height, width = min(fitting)
    return height, width


def least_bytes(footprint: Footprint, size: Size) -> int:
    """Return what the smallest tiles take."""
    rows, columns = (_choices(footprint.field, axis, size[axis]) for axis in (0, 1))
    return footprint.total(size, (rows[-1].fed, columns[-1].fed))


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """A way to divide one axis evenly."""

    step: int  # rows that a band answers for
    fed: int  # rows that it is fed at most
    total: int  # rows that all bands are fed


def _choices(field: ReceptiveField, axis: int, side: int) -> list[_Choice]:
    """Return the ways to divide an axis, undivided first.

    Bands that answer for less than their halo on one side are left out: half as much would save
    less than half of the memory, and the work would multiply.
    """
    unit, overlap = field.alignment(axis), sum(halo(field, axis))
    least = max(unit, -(-overlap // 2 // unit) * unit)
    choices = {side: _Choice(step=-(-side // unit) * unit, fed=side, total=side)}
    for number in range(2, (side - overlap) // least + 1):
        step = -(-(side - overlap) // number // unit) * unit
        number = -(-(side - overlap) // step)
        fed = step + overlap
        choices.setdefault(fed, _Choice(step=step, fed=fed, total=number * fed))
    return list(choices.values())
