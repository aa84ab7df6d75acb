"""Photographs become rows: read ahead, decoded ahead, counted by an engine that is opened once.

This is what every process does, here or on a node of a cluster; it knows of neither.
"""

import hashlib
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from crowdrt.benchmarks.accuracy.counts import (
    Prediction,
    check_finite,
    check_tiles,
    counting_info,
    predict_pixels,
    predict_whole,
)
from crowdrt.contracts import UInt8Image
from crowdrt.data.images import decode_image
from crowdrt.data.tiles import TileMode
from crowdrt.engines.store import KINDS
from crowdrt.errors import CrowdRTError, EngineError, RecipeError
from crowdrt.pipeline.scale.parcel import Identity, MismatchError, identity_of
from crowdrt.pipeline.scale.rows import Photo, Row, strips_of
from crowdrt.pipeline.scale.stores import is_url, read_file, read_url
from crowdrt.pipeline.tiling import NO_LIMITS, Limits, open_counting

A = TypeVar("A")
B = TypeVar("B")

TIMEOUT_S = 600.0
MAX_TIMEOUT_S = 1e8  # the system's timers take little more
NUM_STRIPS = 8  # in which people are counted, from the top of a photograph
NUM_READERS = 4  # a store that is far away answers several requests at once
READ_AHEAD, DECODED_AHEAD = 8, 2  # photographs
WAITING = 4  # batches of decoded photographs that may wait for others of their size

REFUSED = (CrowdRTError, MemoryError)  # what concerns one photograph and not the next


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every process that counts is told."""

    engine: Path
    store: Path | None = None
    tiles: TileMode | None = None
    limits: Limits = NO_LIMITS  # per process
    num_threads: int = 1
    batch: int = 1  # photographs of one size that go through the engine together, at most
    num_strips: int = NUM_STRIPS
    timeout_s: float = TIMEOUT_S  # without one that is read or done, until a process is ended
    identity: Identity | None = None  # of the run; None before it is known

    def __post_init__(self) -> None:
        for name in ("batch", "num_strips"):
            if (value := getattr(self, name)) < 1:
                raise RecipeError(f"{name} {value} is less than one", fix="use 1, 2, 3 ...")
        if not 0 < self.timeout_s < MAX_TIMEOUT_S:
            raise RecipeError(
                f"--timeout {self.timeout_s} is no time to wait",
                fix=f"use seconds, such as {TIMEOUT_S:.0f}",
            )


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A photograph as far as it could be read."""

    photo: Photo
    sha256: str | None = None
    content: bytes | None = None  # encoded; dropped once decoded
    pixels: UInt8Image | None = None
    error: str | None = None


class Counter:
    """An open engine that turns photographs into rows."""

    def __init__(self, settings: Settings) -> None:
        """Open the engine.

        Raises:
            CrowdRTError: as `open_counting`; or the engine does not count, or is not the run's.
        """
        self._settings = settings
        self._engine = open_counting(
            settings.engine,
            settings.store,
            num_threads=settings.num_threads,
            limits=settings.limits,
        )
        self._info = counting_info(self._engine)
        check_tiles(self._info, settings.tiles)
        check_batch(settings, self._engine.inputs[0].shape[0], fixed=self._info.fixed_size)
        self.identity = identity_of(settings.engine, self._engine)
        check_identity(settings.identity, self.identity)
        self._readers = ThreadPoolExecutor(NUM_READERS)
        # one: Python's warnings, which refuse absurd photographs, belong to all threads at once
        self._decoder = ThreadPoolExecutor(1)

    def count(self, photos: Sequence[Photo]) -> list[Row]:
        """Return one row per photograph, in no particular order."""
        return [row for rows in self.counted(photos) for row in rows]

    def counted(self, photos: Sequence[Photo]) -> Iterator[list[Row]]:
        """Yield the rows of photographs as they are done; none for one that waits for others."""
        for group in self._groups(photos):
            yield from self._rows(group)

    def _loaded(self, photos: Iterable[Photo]) -> Iterator[Loaded]:
        # in bounded memory nothing is held beside the photograph that is being counted
        read, decoded = (0, 0) if self._settings.limits else (READ_AHEAD, DECODED_AHEAD)
        contents = ahead(self._readers, load, photos, read)
        return ahead(self._decoder, self._decode, contents, decoded)

    def _decode(self, loaded: Loaded) -> Loaded:
        if loaded.content is None:
            return loaded
        name, channels = loaded.photo.name, self._info.preprocessing.channels
        try:
            pixels = decode_image(loaded.content, channels, source=name)
        except REFUSED as error:
            return Loaded(photo=loaded.photo, sha256=loaded.sha256, error=said(error))
        return Loaded(photo=loaded.photo, sha256=loaded.sha256, pixels=pixels)

    def _groups(self, photos: Sequence[Photo]) -> Iterator[list[Loaded]]:
        """Yield photographs of one size together, as many as go through the engine at once.

        Nothing is yielded for a photograph that is decoded and waits for others of its size.
        """
        waiting: dict[tuple[int, ...], list[Loaded]] = {}
        for loaded in self._loaded(photos):
            size = () if loaded.pixels is None else loaded.pixels.shape
            waiting.setdefault(size, []).append(loaded)
            if len(waiting[size]) == self._settings.batch:
                yield waiting.pop(size)
            elif sum(map(len, waiting.values())) > WAITING * self._settings.batch:
                yield waiting.pop(max(waiting, key=lambda each: len(waiting[each])))
            else:
                yield []
        yield from waiting.values()

    def _rows(self, group: Sequence[Loaded]) -> Iterator[list[Row]]:
        if not group or group[0].pixels is None:
            yield [self._row(loaded, None, loaded.error) for loaded in group]
            return
        try:
            rows = list(map(self._row, group, self._predict(group)))
        except REFUSED as error:
            if len(group) > 1:
                for loaded in group:  # the others still count
                    yield from self._rows([loaded])
                return
            rows = [self._row(group[0], None, said(error))]
        yield rows

    def _predict(self, group: Sequence[Loaded]) -> list[Prediction]:
        """Count decoded photographs of one size."""
        pixels = [loaded.pixels for loaded in group if loaded.pixels is not None]
        name = group[0].photo.name
        if len(group) == 1:
            return [predict_pixels(self._engine, pixels[0], self._settings.tiles, source=name)]
        found = predict_whole(self._engine, self._info, pixels, source=name)
        for loaded, prediction in zip(group, found, strict=True):
            check_finite(prediction, source=loaded.photo.name)
        return found

    def _row(self, loaded: Loaded, found: Prediction | None, error: str | None = None) -> Row:
        photo, pixels = loaded.photo, loaded.pixels
        density = None if found is None else found.density
        return Row(
            image=photo.name,
            stamp=photo.stamp,
            sha256=loaded.sha256,
            count=None if found is None else found.count,
            strips=None if density is None else strips_of(density, self._settings.num_strips),
            height=None if pixels is None else pixels.shape[1],
            width=None if pixels is None else pixels.shape[2],
            engine=self.identity.text,
            error=error,
        )


def count_in_time(counter: Counter, photos: Sequence[Photo], timeout_s: float) -> list[Row]:
    """Return one row per photograph; when none is read or done in time, this process ends.

    The system ends it by SIGALRM, whatever it is doing: a read that hangs, in a thread or in a
    library that does not let Python run, cannot be stopped from inside.
    """
    rows: list[Row] = []
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which a shell may have had ignored
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        for done in counter.counted(photos):
            rows += done
            signal.setitimer(signal.ITIMER_REAL, timeout_s)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return rows


def too_slow(timeout_s: float) -> str:
    """Return why `count_in_time` ended a process."""
    return f"no photograph was done within {timeout_s:g} s, see --timeout"


def load(photo: Photo) -> Loaded:
    """Read a photograph's bytes; what is hashed is what will be counted."""
    try:
        content = read_url(photo.name) if is_url(photo.name) else read_file(Path(photo.name))
    except REFUSED as error:
        return Loaded(photo=photo, error=said(error))
    return Loaded(photo=photo, sha256=hashlib.sha256(content).hexdigest(), content=content)


def said(error: BaseException) -> str:
    """Return an error in one line for a row."""
    return error.problem if isinstance(error, CrowdRTError) else f"out of memory: {error}"


def ahead(
    threads: ThreadPoolExecutor, function: Callable[[A], B], items: Iterable[A], depth: int
) -> Iterator[B]:
    """Yield what `function` makes of the items, in order; `depth` more are made meanwhile."""
    under_way: deque[Future[B]] = deque()
    for item in items:
        under_way.append(threads.submit(function, item))
        if len(under_way) > depth:
            yield under_way.popleft().result()
    yield from (each.result() for each in under_way)


def check_batch(settings: Settings, taken: int | str, *, fixed: object) -> None:
    """Refuse batches for an engine that takes none, or divides photographs itself."""
    if settings.batch > 1 and (isinstance(taken, int) or fixed is not None or settings.limits):
        what = "divides photographs into tiles" if fixed or settings.limits else "takes one image"
        raise EngineError(
            f"--batch {settings.batch}: this engine {what} at a time", fix="leave out --batch"
        )


def check_identity(wanted: Identity | None, here: Identity) -> None:
    """Refuse to count with another engine than the run's, such as a node's other version.

    Raises:
        MismatchError: they differ.
    """
    if wanted is not None and here != wanted:
        raise MismatchError(
            f"the run counts with {wanted.text}, this machine has {here.text}",
            fix=f"install the same everywhere: pip install {wanted.engine}=={wanted.version}",
        )


def on_gpu(settings: Settings) -> bool:
    """Say whether the run's engine takes a GPU for itself."""
    kind = KINDS.get(settings.identity.engine) if settings.identity else None
    return kind is not None and kind.on_gpu
