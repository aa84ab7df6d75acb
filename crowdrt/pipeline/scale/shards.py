"""Rows in Parquet files, each written whole or not at all; a rerun reads them to see what is left.

A file is named by the photographs in it, so who writes it a second time replaces it. There is no
other ledger that could disagree with the files.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crowdrt.errors import DataError, EngineError
from crowdrt.lazy import require
from crowdrt.manifest import fingerprint, write_whole
from crowdrt.pipeline.scale.parquet import open_parquet
from crowdrt.pipeline.scale.rows import Photo, Row, utf8
from crowdrt.pipeline.scale.stores import EXTRA

MAX_ROWS = 256  # per shard, so that a kill loses seconds
MIN_ROWS = 16
SHOWN = 80  # letters of foreign columns
SHARDS_PER_WORKER = 8  # of a short list, so that all end at about the same time


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Photographs whose rows go into one file together."""

    path: Path  # there already, where rows of it are to be replaced
    photos: tuple[Photo, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is left to do."""

    shards: tuple[Shard, ...]
    num_done: int  # photographs that a run before has counted

    @property
    def num_left(self) -> int:
        """Photographs to be counted."""
        return sum(len(shard.photos) for shard in self.shards)


def plan_shards(photos: Sequence[Photo], folder: Path, *, engine: str, num_workers: int) -> Plan:
    """Return the shards that are missing, or whose rows are errors or of files that changed since.

    Args:
        photos: all that are wanted, by different names.
        folder: with the shards of earlier runs; may be missing.
        engine: of the run; `Identity.text`.
        num_workers: who share the work.

    Raises:
        DataError: a shard is damaged or none of ours, or a photograph is in two of them.
        EngineError: a shard was counted by another engine.
    """
    # by name: a photograph that is missing, or the shard that has its row
    places: dict[str, Photo | Path] = {utf8(photo.name): photo for photo in photos}
    again: dict[Path, list[Photo]] = {}
    for path in sorted(folder.glob("*.parquet")):
        for image, stamp, failed in _known(path, engine):
            place = places.get(image)
            if isinstance(place, Path):
                raise counted_twice(image, place, path)
            places[image] = path
            if place is not None and (failed or changed(place.stamp, stamp)):
                again.setdefault(path, []).append(place)
    left = [place for place in places.values() if isinstance(place, Photo)]
    num_done = len(photos) - len(left) - sum(map(len, again.values()))
    size = min(MAX_ROWS, max(MIN_ROWS, -(-len(left) // (num_workers * SHARDS_PER_WORKER))))
    repaired = [Shard(path=path, photos=tuple(found)) for path, found in again.items()]
    new = [shard_of(left[k : k + size], folder) for k in range(0, len(left), size)]
    return Plan(shards=(*repaired, *new), num_done=num_done)


def changed(now: str | None, then: str | None) -> bool:
    """Say whether a file is another than it was; where nobody could look, it is taken as it was."""
    return None not in (now, then) and now != then


def shard_of(photos: Sequence[Photo], folder: Path) -> Shard:
    """Return a new shard of these photographs."""
    key = fingerprint({"images": [utf8(photo.name) for photo in photos]})[:16]
    return Shard(path=folder / f"{key}.parquet", photos=tuple(photos))


def write_shard(shard: Shard, rows: Iterable[Row]) -> None:
    """Write a shard's rows, beside those of its file that stay as they are."""
    arrow = require("pyarrow", extra=EXTRA)
    parquet = require("pyarrow.parquet", extra=EXTRA)
    found = {row["image"]: row for row in map(_values, rows)}
    if shard.path.exists():
        kept = _read(shard.path).to_pylist()
        found = {row["image"]: row for row in kept} | found  # in the place of the old ones
    else:
        found = {name: found[name] for name in (utf8(photo.name) for photo in shard.photos)}
    table = arrow.Table.from_pylist(list(found.values()), schema=schema())
    with write_whole(shard.path) as temporary:
        parquet.write_table(table, temporary, compression="zstd")


def schema() -> Any:
    """Return the columns and their types."""
    arrow = require("pyarrow", extra=EXTRA)
    text = arrow.string()
    columns = {
        "image": text,
        "sha256": text,
        "count": arrow.float64(),
        "strips": arrow.list_(arrow.float64()),
        "height": arrow.int32(),
        "width": arrow.int32(),
        "engine": text,
        "error": text,
        "stamp": text,
    }
    return arrow.schema(list(columns.items()))


def _values(row: Row) -> Mapping[str, Any]:
    values = asdict(row)
    return {
        name: utf8(value) if isinstance(value, str) else value for name, value in values.items()
    }


def counted_twice(image: str, one: Path, other: Path) -> DataError:
    """Return the error for a photograph that every sum over the folder would take twice."""
    return DataError(
        f"{image} has a row in {one} and in {other}",
        fix=f"move away the one that came from elsewhere: mv '{other}' ..",
    )


def _known(path: Path, engine: str) -> Iterator[tuple[str, str | None, bool]]:
    """Yield name, stamp and whether it failed of every photograph in a shard."""
    table = _read(path, ["image", "stamp", "error", "engine"])
    for other in table["engine"].unique().to_pylist():
        if other != engine:
            raise EngineError(
                f"{path} was counted by {other}, this run counts with {engine}",
                fix="choose another folder (-o OUT-2), or count with what made it",
            )
    columns = (table[name].to_pylist() for name in ("image", "stamp", "error"))
    for image, stamp, error in zip(*columns, strict=True):
        yield image, stamp, error is not None


def _read(path: Path, columns: Sequence[str] | None = None) -> Any:
    with open_parquet(
        path,
        source=str(path),
        problem="is damaged",
        fix=f"remove it, and its photographs are counted again: rm '{path}'",
    ) as file:
        if file.schema_arrow.names != schema().names:
            raise DataError(
                f"{path} is no file of counts: it has the columns "
                f"{', '.join(file.schema_arrow.names)[:SHOWN]}",
                fix=f"move it out of the folder: mv '{path}' ..",
            )
        table = file.read(None if columns is None else list(columns))
        table.validate(full=True)  # else bytes that are no UTF-8 are found when they are used
        return table
