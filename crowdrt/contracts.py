"""The types that cross folders: what one stage hands to another."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import numpy.typing as npt

from crowdrt.errors import DataError, ExportError, RecipeError
from crowdrt.int8 import TrainedInt8
from crowdrt.learning import TrainingConfig

Channels = Literal["rgb", "grey"]
Precision = Literal["fp32", "fp16", "int8", "int8+fp16"]
Size = tuple[int, int]  # height, width in pixels
UInt8Image = npt.NDArray[np.uint8]  # (C, H, W)
Region = npt.NDArray[np.bool_]  # (H, W) of the photograph: True where people are to be counted
Feeds = Mapping[str, npt.NDArray[Any]]

DENSITY, COUNT = "density", "count"  # outputs of a graph
NUM_DETECTIONS = 500  # that a detector lists per image: OneNet's number for CrowdHuman
METADATA_KEY = "crowdrt"  # the ONNX metadata property that holds `GraphInfo` as JSON
PRUNED = "pruned "  # before the width of a network that lost channels
HASH_DIGITS = 16  # of a photograph's SHA-256, where a list of them has to be short


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a photograph becomes a network's input; one definition for every stage.

    Outside the graph an image is decoded to uint8 (C, H, W) and padded at the bottom and the
    right to a multiple of `stride`. Inside it, `(pixel - mean) / std` in grey levels (0..255).
    """

    channels: Channels
    mean: tuple[float, ...]  # grey levels, one per channel
    std: tuple[float, ...]  # grey levels, one per channel
    stride: int  # the network sees sizes that are multiples of this, in pixels

    @property
    def num_channels(self) -> int:
        """3 for RGB, 1 for grey."""
        return 3 if self.channels == "rgb" else 1

    @property
    def pad_value(self) -> tuple[int, ...]:
        """The grey level that normalises to nearly 0, as a convolution's own padding does."""
        return tuple(round(mean) for mean in self.mean)


IMAGENET = Preprocessing(
    channels="rgb",
    mean=(0.485 * 255, 0.456 * 255, 0.406 * 255),
    std=(0.229 * 255, 0.224 * 255, 0.225 * 255),
    stride=8,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One photograph and its annotated heads.

    `heads` may hold points outside the image, as the published annotations do: they count, and
    the density map leaves them out. With a region of interest, only people in it count.
    """

    image: Path
    heads: npt.NDArray[np.float32] | None  # (N, 2) x, y in pixels from 0; None where unknown
    roi: Region | None = None  # one array for all frames of a camera; None: everywhere

    @property
    def counted_heads(self) -> npt.NDArray[np.float32] | None:
        """The heads that count, (N, 2): all of them, or those whose pixel is in the region."""
        if self.heads is None or self.roi is None:
            return self.heads
        x, y = np.rint(self.heads).T
        inside = (x >= 0) & (x < self.roi.shape[1]) & (y >= 0) & (y < self.roi.shape[0])
        inside[inside] = self.roi[y[inside].astype(int), x[inside].astype(int)]
        counted: npt.NDArray[np.float32] = self.heads[inside]
        return counted

    @property
    def annotated(self) -> int | None:
        """The published count, or None where there is no annotation."""
        return None if (counted := self.counted_heads) is None else len(counted)


@dataclass(frozen=True, kw_only=True, eq=False)
class Detections:
    """Boxes on one image, best first."""

    boxes: npt.NDArray[np.float32]  # (N, 4) x1, y1, x2, y2 in input pixels
    scores: npt.NDArray[np.float32]  # (N,) in 0..1
    labels: npt.NDArray[np.int64]  # (N,) class indices from 0


@dataclass(frozen=True, kw_only=True, eq=False)
class BoxSample:
    """One photograph and the boxes that people drew on it, which may reach beyond the image."""

    image: Path
    boxes: npt.NDArray[np.float32] | None = None  # (N, 4) x1, y1, x2, y2 in pixels; None: unknown
    ignore: npt.NDArray[np.bool_] = field(  # (N,) True: neither to be found nor a mistake
        default_factory=lambda: np.zeros(0, np.bool_)
    )
    labels: npt.NDArray[np.int64] = field(  # (N,) class indices from 0
        default_factory=lambda: np.zeros(0, np.int64)
    )

    @property
    def annotated(self) -> int | None:
        """How many are to be found, or None where there is no annotation."""
        return None if self.boxes is None else int((~self.ignore).sum())


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """Name, shape and dtype of a graph's input or output; a free axis is a str."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str  # numpy's name: uint8, float32


@dataclass(frozen=True, kw_only=True)
class GraphInfo:
    """What an exported ONNX file says of itself, in its metadata property `crowdrt`."""

    network: str
    width: str  # "1", "1/4", "pruned 1/4"
    preprocessing: Preprocessing
    density_stride: int  # input pixels per density cell
    output: str = DENSITY  # what ships, of what the network offers
    fixed_size: Size | None = None  # the only size that the network takes
    precision: Precision = "fp32"
    weight_bits: int = 32  # 8 or 7 in an INT8 graph
    normalised_input: bool = False  # True: the caller normalises and feeds float32
    calibrated_on: tuple[str, ...] = ()  # photographs that decided scales: starts of their SHA-256
    trained_int8: TrainedInt8 | None = None  # of an FP32 graph: how it learned to be quantized

    def with_calibration(self, sha256: Iterable[str]) -> Self:
        """Note more photographs that the file was made by, so that none of them judges it."""
        known = {digest[:HASH_DIGITS] for digest in sha256}
        return replace(self, calibrated_on=tuple(sorted({*self.calibrated_on, *known})))

    def was_calibrated_on(self, sha256: str) -> bool:
        """Say whether a photograph of this SHA-256 is one of them."""
        return sha256[:HASH_DIGITS] in self.calibrated_on

    def as_dict(self) -> dict[str, Any]:
        """Return what there is to say, as JSON has it."""
        fields = asdict(self)
        if self.trained_int8 is None:  # files of other networks stay what they were
            del fields["trained_int8"]
        return fields

    def to_json(self) -> str:
        """One JSON document, as stored in the ONNX file."""
        return json.dumps(self.as_dict(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str, *, source: str) -> Self:
        """Read what `to_json` wrote; `source` names the file in the error."""
        try:
            fields: dict[str, Any] = json.loads(text)
            pixels = fields.pop("preprocessing")
            mean, std = tuple(pixels.pop("mean")), tuple(pixels.pop("std"))
            if (size := fields.pop("fixed_size", None)) is not None:
                fields["fixed_size"] = (int(size[0]), int(size[1]))
            fields["calibrated_on"] = tuple(map(str, fields.get("calibrated_on", ())))
            fields["trained_int8"] = TrainedInt8.from_document(fields.get("trained_int8"))
            return cls(preprocessing=Preprocessing(mean=mean, std=std, **pixels), **fields)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise ExportError(
                f"{source}: its crowdrt metadata cannot be read: {error}",
                fix="export the network again: crowdrt export NETWORK --weights F -o model.onnx",
            ) from error


RangeMethod = Literal["minmax", "percentile", "entropy", "mse"]
RANGE_METHODS: tuple[RangeMethod, ...] = get_args(RangeMethod)


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """How activation ranges are collected before INT8 quantization."""

    method: RangeMethod = "percentile"
    percentile: float = 99.99  # of |activation|, over every value of every image
    num_images: int = 32
    weight_bits: Literal[7, 8] = 7  # 7 cannot saturate 16-bit sums on CPUs without VNNI

    def __post_init__(self) -> None:
        if self.method not in RANGE_METHODS:
            raise RecipeError(
                f"calibration method {self.method!r} is unknown",
                fix=f"use one of {', '.join(RANGE_METHODS)}",
            )
        if not 50 < self.percentile <= 100:
            raise RecipeError(
                f"percentile={self.percentile} would clip most activations",
                fix="use a value in (50, 100]; 99.99 is a good start, 100 is min-max",
            )
        if self.num_images < 1:
            raise RecipeError(
                f"num_images={self.num_images} leaves nothing to calibrate on",
                fix="use at least 1; 32 photographs are a good start",
            )
        if self.weight_bits not in (7, 8):
            raise RecipeError(f"weight_bits={self.weight_bits} is not supported", fix="use 7 or 8")


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What a precision may lose against FP32 on the same photographs before its row is refused.

    A smaller MAE is no loss; counts that move are, up or down. So MAE is limited on one side and
    the shift of the bias on both, in every bin of photographs (sparse, medium, dense).
    """

    mae_increase: float = 0.01  # of FP32's MAE
    bias_shift: float = 0.02  # of the people on a bin's photographs, ...
    bias_shift_people: float = 1.0  # ... or this many per photograph, where that is more
    psnr_db: float | None = 30.0  # at least, of density maps, in the median; None: any
    ap_drop: float = 0.01  # of detectors, in AP from 0 to 1

    def __post_init__(self) -> None:
        for name in ("mae_increase", "bias_shift", "bias_shift_people", "ap_drop"):
            if not (value := getattr(self, name)) >= 0:  # a NaN, too
                raise RecipeError(
                    f"gate: {name}={value} would refuse what loses nothing", fix="use 0 or more"
                )


def default_gates() -> dict[Precision, Gate]:
    """Return what is tolerated where a recipe does not say otherwise."""
    fp16 = Gate(
        mae_increase=0.001, bias_shift=0.002, bias_shift_people=0.1, psnr_db=40.0, ap_drop=0.001
    )
    return {"fp16": fp16, "int8": Gate(), "int8+fp16": Gate()}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One named way from weights to engines; a variant is `replace(base(), ...)`."""

    name: str
    network: str
    width: Fraction
    sizes: tuple[Size, ...] = ((576, 864),)  # SKT's average of ShanghaiTech A
    about: str = ""  # one line for people
    weights: str | None = None  # a file of weights/ that the project ships
    precisions: tuple[Precision, ...] = ("fp32", "int8")
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    keep_float: tuple[str, ...] = ()  # convolutions that cost too many counts in INT8 or FP16
    gates: Mapping[Precision, Gate] = field(default_factory=default_gates)


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A file that a stage wrote; its manifest lies beside it."""

    path: Path
    kind: str  # weights, onnx, engine, records, report
    sha256: str
    reused: bool = False  # True when the inputs had not changed and nothing was done


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One row of a benchmark: what ran, where, and every raw sample."""

    name: str  # unique in its run
    network: str
    width: str
    engine: str  # onnxruntime, openvino, pytorch
    engine_version: str
    precision: Precision
    size: Size
    num_threads: int
    samples_ms: tuple[float, ...]
    peak_mib: float  # peak resident memory of the contender's own process
    machine: Mapping[str, Any]
    verdict: str  # valid, or unstable with the reason
    run_id: str = ""  # contenders that were interleaved share one
    sha256: str = ""  # of the file that ran
    compute_ms: tuple[float, ...] = ()  # of each sample, by the GPU's own clock
    to_device_ms: tuple[float, ...] = ()
    to_host_ms: tuple[float, ...] = ()
    gpu: Mapping[str, Any] | None = None  # its clocks, power and neighbours meanwhile
    runs_per_visit: int = 0  # neighbouring samples that one disturbance hits; 0: not recorded
    race_sha256: str = ""  # of everything that decided its race, by which that is found again
    budget_s: float = 0.0  # that its race was given; 0: not recorded

    @property
    def median_ms(self) -> float:
        """The figure to quote."""
        return float(np.median(self.samples_ms))

    def percentile_ms(self, q: float) -> float:
        """The q-th percentile of the raw samples, in milliseconds."""
        return float(np.percentile(self.samples_ms, q))


def parse_width(text: str) -> Fraction:
    """Read `1`, `1/4` or `0.25` as a width in (0, 1]."""
    try:
        width = Fraction(text) if WIDTH.fullmatch(text) else Fraction(0)
    except ZeroDivisionError:
        width = Fraction(0)
    if not 0 < width <= 1 or width.denominator > MAX_DENOMINATOR:
        raise RecipeError(
            f"width {text!r} is not a fraction in (0, 1] with a denominator up to "
            f"{MAX_DENOMINATOR}",
            fix="write 1, 1/2, 1/3, 1/4 ...",
        )
    return width


WIDTH = re.compile(r"\d{1,2}/\d{1,2}|\d?\.\d{1,4}|1", re.ASCII)  # Fraction reads far more
MAX_DENOMINATOR = 99  # that a weights file may name


def parse_size(text: str) -> Size:
    """Read `576x864` as (height, width) in pixels."""
    found = SIZE.fullmatch(text)
    if found is None:
        raise RecipeError(
            f"size {text!r} is not HEIGHTxWIDTH in pixels",
            fix="write height first, for example 576x864",
        )
    height, width = int(found[1]), int(found[2])
    if height * width > MAX_PIXELS:
        raise RecipeError(
            f"size {text!r} has more pixels than any photograph that is read here",
            fix=f"use at most {MAX_PIXELS:,} pixels, for example 2032x2912",
        )
    return height, width


SIZE = re.compile(r"([1-9]\d{0,5})[xX]([1-9]\d{0,5})", re.ASCII)
MAX_PIXELS = 2**30 // 4 // 3  # Pillow's limit, above which a file is taken for an attack


def check_image_size(size: Size, *, source: str) -> None:
    """Refuse a photograph in which no head can be seen.

    Raises:
        DataError: a side is under 32 px.
    """
    height, width = size
    if min(height, width) < MIN_SIDE_PX:
        raise DataError(
            f"{source}: {width}x{height} px is too small to hold a crowd",
            fix=f"use photographs of at least {MIN_SIDE_PX} px on each side",
        )


MIN_SIDE_PX = 32
