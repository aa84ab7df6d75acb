"""What a TensorRT build is asked for."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crowdrt.contracts import Size, parse_size
from crowdrt.errors import EngineError, RecipeError
from crowdrt.manifest import sha256_file

Shape = tuple[Size, Size, Size]  # the smallest, the best and the largest image, in pixels
LEVELS = range(6)  # of TensorRT's optimisation; 3 is its own default
MIB = 2**20
MIN_WORKSPACE = 16 * MIB  # under it hardly a convolution finds a kernel


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """How a plan is built; all but the folder for timings decides what comes out.

    `timings` is where builds of one GPU share what they measured. It grows with every build, so it
    is no part of a plan's identity; `timing_cache`, which stays as it is, is one.
    """

    shape: Shape | None = None  # None: the one size that the file takes
    batch: int = 1  # images at a time
    workspace_bytes: int = 4096 * MIB  # that a single layer may take at most
    level: int = 3  # 0 builds fastest, 5 tries most
    tf32: bool = False  # lets FP32 layers round their inputs to 10 bits
    float_input: bool = False  # feed the pixels as float32 where they could be uint8
    any_precision: bool = False  # keep a plan whose layers run in more digits than the file asks
    timing_cache: Path | None = None  # measured before, read and never written
    timings: Path | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise EngineError(
                f"optimisation level {self.level} is unknown",
                fix=f"use {LEVELS[0]} (builds fastest) to {LEVELS[-1]} (tries most); 3 is usual",
            )
        if self.batch < 1:
            raise EngineError(f"batch={self.batch} holds no image", fix="use 1 or more")
        if self.workspace_bytes < MIN_WORKSPACE:
            raise EngineError(
                f"a workspace of {self.workspace_bytes:,} bytes is too small for a convolution",
                fix="use at least 16MiB; 4GiB is usual: --workspace 4GiB",
            )

    def identity(self) -> dict[str, Any]:
        """Return what decides the plan, as JSON holds it.

        Raises:
            EngineError: the timing cache named is not there.
        """
        pinned = self.timing_cache
        if pinned is not None and not pinned.is_file():
            raise EngineError(
                f"the timing cache {pinned} does not exist, or is no file",
                fix="name one that a build left in the store's folder `timings`, or leave it out",
            )
        return {
            "shape": None if self.shape is None else [list(size) for size in self.shape],
            "batch": self.batch,
            "workspace_bytes": self.workspace_bytes,
            "level": self.level,
            "tf32": self.tf32,
            "float_input": self.float_input,
            "any_precision": self.any_precision,
            "timing_cache_sha256": None if pinned is None else sha256_file(pinned),
        }


def parse_shape(text: str) -> Shape:
    """Read `576x864`, or `320x320:576x864:2032x2912` as smallest, best and largest size."""
    sizes = [parse_size(part) for part in text.split(":")]
    if len(sizes) not in (1, 3):
        raise RecipeError(
            f"shape {text!r} names {len(sizes)} sizes",
            fix="write one, 576x864, or MIN:OPT:MAX, 320x320:576x864:2032x2912",
        )
    low, best, high = sizes * 3 if len(sizes) == 1 else sizes
    if not all(low[i] <= best[i] <= high[i] for i in range(2)):
        raise RecipeError(
            f"shape {text!r} does not grow from MIN over OPT to MAX",
            fix="order both heights and widths: 320x320:576x864:2032x2912",
        )
    return low, best, high


def shown(shape: Shape) -> str:
    """Return a shape as the command line takes it."""
    texts = [f"{height}x{width}" for height, width in shape]
    return texts[0] if len(set(texts)) == 1 else ":".join(texts)
