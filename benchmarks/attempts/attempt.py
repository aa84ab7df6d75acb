"""One thing that was tried: what it changes, against what it is held, and what was expected."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import onnx

from crowdrt.benchmarks.labels import engine_label
from crowdrt.contracts import Size, UInt8Image
from crowdrt.engines.base import Engine
from crowdrt.engines.ort import OrtEngine
from crowdrt.engines.ov import OpenVinoEngine

Runtime = Literal["onnxruntime", "openvino"]
Form = Literal["fp32", "int8"]
Opener = Callable[[], Engine]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What an attempt was expected to do; written before it was measured, never edited after."""

    low: float  # of its time over the baseline's: 0.75 is a quarter faster
    high: float
    reason: str
    earlier: str = ""  # what had been measured elsewhere or by hand, and was known when it was made


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """One of the two files as crowdrt opens it with one of the two runtimes."""

    runtime: Runtime
    form: Form

    @property
    def name(self) -> str:
        """Return `ONNX Runtime FP32`."""
        return f"{engine_label(self.runtime)} {self.form.upper()}"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The files, the photograph and the threads of a race of attempts."""

    files: Mapping[Form, Path]
    image: UInt8Image  # (3, H, W)
    num_threads: int

    @property
    def size(self) -> Size:
        """(height, width) in pixels."""
        height, width = self.image.shape[1:]
        return height, width

    def opener(self, baseline: Baseline) -> Opener:
        """Return what opens a baseline, in whatever process."""
        opens = {"onnxruntime": OrtEngine, "openvino": OpenVinoEngine}[baseline.runtime]
        return partial(opens, self.files[baseline.form], num_threads=self.num_threads)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What an attempt found out on this machine before its engine is opened."""

    options: Mapping[str, Any] | None  # for its `open`; None: there is nothing to race
    found: Mapping[str, Any]  # the numbers behind it
    said: str  # in words


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A changed engine, held against the baseline that runs the same file in the same runtime."""

    name: str
    changed: str  # one sentence
    baseline: Baseline
    prediction: Prediction | None  # None: none was made
    open: Callable[..., Engine]  # (path, num_threads=...), picklable
    choose: Callable[[Setting, Baseline], Choice] | None = None
    images_per_run: int = 1  # that one run counts; its time is told per image
    exact: bool = True  # False: another number format, whose difference is only stated
    cells: int = 1  # both sides of the density map have to be multiples of this
    about: str = ""  # what a reader of the row must know
    # (path) -> the changed graph, where the runtime rounds the changed form otherwise than the
    # baseline: a code that falls the other way moves all behind it, so graphs are compared instead
    written: Callable[..., onnx.ModelProto] | None = None

    def opener(self, setting: Setting, options: Mapping[str, Any] | None = None) -> Opener:
        """Return what opens its engine, in whatever process."""
        path = setting.files[self.baseline.form]
        return partial(self.open, path, num_threads=setting.num_threads, **(options or {}))
