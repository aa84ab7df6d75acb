"""What the report shows of an export, of the ways to quantize, and of a comparison of networks."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class StrippedNetwork:
    """What only training needs, and the proof that it is gone."""

    file: str  # that ships, by name
    sizes: Sequence[tuple[str, str, str, str]]  # what, in training, deployed, in the file
    removed: Sequence[tuple[str, Sequence[str]]]  # kind, and names
    proof: Sequence[str]  # sentences


@dataclass(frozen=True, kw_only=True)
class MethodLine:
    """One way to find ranges, or FP32 beside them; None is what was not worked out."""

    name: str  # minmax, repaired, FP32
    mae: float | None  # people
    bias: float | None
    moved: float | None  # people counted more than in FP32, per photograph
    psnr_db: float | None  # of density maps against FP32's, in the median
    megabytes: float | None  # 10^6 bytes
    int8_macs: float | None  # share
    chip: str  # held, failed; "" for FP32
    reason: str  # why its gate failed, or why there is no file


@dataclass(frozen=True, kw_only=True)
class MethodsTable:
    """The ways to find ranges, side by side."""

    source: str  # how many photographs were counted, and how many made the ranges
    lines: Sequence[MethodLine]


@dataclass(frozen=True, kw_only=True)
class ComparedNetwork:
    """One row of `crowdrt compare`."""

    method: str
    form: str  # int8 PTQ
    mae: str  # with its spread over seeds
    latency: str  # ms
    on_front: bool
    verdict: str


@dataclass(frozen=True, kw_only=True)
class ComparedNetworks:
    """A comparison of networks: a plot of accuracy against latency, and its rows."""

    plot: bytes | None  # PNG; None where no row has both
    lines: Sequence[ComparedNetwork]
    notes: Sequence[str]
