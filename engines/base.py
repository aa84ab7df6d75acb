"""The engine protocol, the check of what is fed to one, and the door to all of them."""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from crowdrt.contracts import Feeds, GraphInfo, TensorSpec
from crowdrt.errors import EngineError

CHANNELS, HEIGHT, WIDTH = 1, 2, 3  # axes of an image input (N, C, H, W)
PROBE_PX = 64


class Engine(Protocol):
    """A network loaded on one device. Engines run graphs; they never resize, scale or decode."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    info: GraphInfo | None  # None where another tool exported the network

    def run(self, feeds: Feeds) -> Feeds:
        """Map named inputs to named outputs; returned arrays belong to the caller.

        Raises:
            EngineError: a feed has another name, type or shape than the engine takes.
        """
        ...


class GpuTiming(Protocol):
    """Where the time of one run went on a GPU, in milliseconds by its own clock."""

    @property
    def to_device_ms(self) -> float: ...  # noqa: D102
    @property
    def compute_ms(self) -> float: ...  # noqa: D102
    @property
    def to_host_ms(self) -> float: ...  # noqa: D102


@runtime_checkable
class TimedEngine(Engine, Protocol):
    """An engine on a GPU, which knows how long it computed and how long it copied."""

    def timed(self, feeds: Feeds) -> tuple[Feeds, GpuTiming]:
        """Run as `run` does; return where the time went, too."""
        ...


def open_engine(path: Path, *, num_threads: int = 0) -> Engine:
    """Load a built engine folder of the store, or an ONNX file as it is.

    Args:
        path: `<store>/<key>-<engine>/`, or `model.onnx`, which ONNX Runtime runs.
        num_threads: 0 takes what the engine was built for, or every core.

    Raises:
        EngineError: the engine is damaged, or was built elsewhere.
        ExportError: the ONNX file cannot be used.
    """
    if path.is_dir():
        from crowdrt.engines.store import load_built

        return load_built(path, num_threads=num_threads)
    from crowdrt.engines.ort import OrtEngine

    return OrtEngine(path, num_threads=num_threads)


def probe(engine: Engine) -> Feeds:
    """Return noise in the shapes that an engine takes; free axes become small."""
    rng = np.random.default_rng(0)
    stride = 1 if engine.info is None else engine.info.preprocessing.stride
    side = -(-PROBE_PX // stride) * stride
    feeds = {}
    for spec in engine.inputs:
        free = (1, *[side] * (len(spec.shape) - 1))
        shape = [axis if isinstance(axis, int) else free[i] for i, axis in enumerate(spec.shape)]
        feeds[spec.name] = rng.integers(0, 256, shape).astype(spec.dtype)
    return feeds


def check_threads(num_threads: int) -> None:
    """Refuse a thread count that means nothing."""
    if num_threads < 0:
        raise EngineError(
            f"num_threads={num_threads} is negative", fix="use 0 for every core, or 1, 2 ..."
        )


def check_feeds(feeds: Feeds, inputs: tuple[TensorSpec, ...], info: GraphInfo | None) -> None:
    """Compare feeds with what an engine takes, so that its runtime never has to complain.

    Raises:
        EngineError: names the first feed that does not fit, and what would.
    """
    names = [spec.name for spec in inputs]
    if set(feeds) != set(names):
        raise EngineError(
            f"the feeds are named {sorted(feeds)}, the engine takes {names}",
            fix=f"pass a dictionary with the keys {names}",
        )
    for spec in inputs:
        _check_feed(feeds[spec.name], spec)
    if info is not None and "image" in feeds:
        _check_stride(feeds["image"], info.preprocessing.stride)


def _check_feed(array: npt.NDArray[Any], spec: TensorSpec) -> None:
    if not isinstance(array, np.ndarray):
        raise EngineError(
            f"{spec.name} is a {type(array).__name__}, not a numpy array",
            fix=f"pass np.asarray({spec.name}, np.{spec.dtype})",
        )
    if array.dtype != np.dtype(spec.dtype):
        raise EngineError(
            f"{spec.name} is {array.dtype}, the engine takes {spec.dtype}", fix=_dtype_fix(spec)
        )
    if array.ndim != len(spec.shape):
        raise EngineError(
            f"{spec.name} has shape {array.shape}, the engine takes {_shown(spec.shape)}",
            fix=f"pass {len(spec.shape)} axes; one image (C, H, W) becomes a batch as image[None]",
        )
    for axis, (given, taken) in enumerate(zip(array.shape, spec.shape, strict=True)):
        if given < 1 or (isinstance(taken, int) and given != taken):
            raise EngineError(
                f"{spec.name} has shape {array.shape}, the engine takes {_shown(spec.shape)}",
                fix=_axis_fix(axis, spec),
            )


def _check_stride(image: npt.NDArray[Any], stride: int) -> None:
    # a network rounds such sizes its own way, so the cells would no longer lie on the image
    height, width = image.shape[HEIGHT:]
    if height % stride or width % stride:
        raise EngineError(
            f"the image is {height}x{width} px (height x width), no multiple of {stride}",
            fix="pad it first: crowdrt.data.preprocess.pad_to_stride(image, preprocessing)",
        )


def _dtype_fix(spec: TensorSpec) -> str:
    if spec.dtype == "uint8":
        return "feed the decoded pixels (0..255) as uint8; normalisation is inside the graph"
    return f"convert it: {spec.name}.astype(np.{spec.dtype})"


def _axis_fix(axis: int, spec: TensorSpec) -> str:
    taken = spec.shape[axis]
    if len(spec.shape) != 4 or isinstance(taken, str):
        return f"pass shape {_shown(spec.shape)}"
    if axis == CHANNELS:
        return f"read the image with {taken} channel{'s' if taken > 1 else ' (grey)'}"
    if axis in (HEIGHT, WIDTH):
        return (
            "resize or pad it to that size, or export the network for any size: "
            "crowdrt export NETWORK --size dynamic -o model.onnx"
        )
    return f"pass {taken} image(s) at a time"


def _shown(shape: tuple[int | str, ...]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"
