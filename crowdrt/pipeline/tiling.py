"""Counting in bounded memory: what the command line asks for, and the engine that keeps to it."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from crowdrt.engines.base import Engine
from crowdrt.engines.tiling.engine import open_tiled
from crowdrt.errors import EngineError, RecipeError
from crowdrt.onnx_file import graph_info
from crowdrt.pipeline.stages import open_any

UNITS = {"": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30}
MEMORY = re.compile(r"(\d{1,15}(?:\.\d{1,6})?) ?([kmg]ib|)", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the user allows; None leaves the photograph whole."""

    max_memory: int | None = None  # bytes
    tile_rows: int | None = None  # pixels

    @classmethod
    def parse(cls, *, max_memory: str | None, tile_rows: int | None) -> Self:
        """Read the options as they are written.

        Raises:
            RecipeError: a memory that is none, or both options at once.
        """
        if max_memory is not None and tile_rows is not None:
            raise RecipeError(
                f"--max-memory {max_memory} and --tile-rows {tile_rows} exclude each other",
                fix="leave out --tile-rows: --max-memory chooses the tiles by itself",
            )
        memory = None if max_memory is None else parse_memory(max_memory)
        return cls(max_memory=memory, tile_rows=tile_rows)

    def __bool__(self) -> bool:
        return self.max_memory is not None or self.tile_rows is not None


NO_LIMITS = Limits()


def parse_memory(
    text: str, *, option: str = "--max-memory", command: str = "crowdrt count model.onnx PHOTOS"
) -> int:
    """Read `1GiB`, `512 MiB`, `1.5GiB`, `800000KiB` or a number of bytes."""
    found = MEMORY.fullmatch(text.strip())
    memory = 0 if found is None else int(float(found[1]) * UNITS[found[2].lower()])
    if memory < 1:
        raise RecipeError(
            f"{option} {text!r} is no memory",
            fix="write 1GiB, 512MiB, 800000KiB or a number of bytes, for example: "
            f"{command} {option} 1GiB",
        )
    return memory


def open_counting(path: Path, store: Path | None, *, num_threads: int, limits: Limits) -> Engine:
    """Open what counts: within the limits from its ONNX file, without any as `open_any` does.

    Raises:
        EngineError: a file that does not say which operators there are, or a network that needs
            the whole photograph.
    """
    if not limits:
        return open_any(path, store, num_threads=num_threads)
    if path.is_dir() or path.suffix == ".safetensors":
        what = "a built engine" if path.is_dir() else "a weights file"
        raise EngineError(
            f"{path} is {what}: which pixels decide a cell can only be read from the ONNX file",
            fix="name the ONNX file: crowdrt count model.onnx PHOTOS --max-memory 1GiB",
        )
    graph_info(path)
    return open_tiled(
        path,
        max_memory=limits.max_memory,
        tile_rows=limits.tile_rows,
        num_threads=num_threads,
    )
