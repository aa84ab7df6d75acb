"""A profile of layers as a line of JSON, and what follows from it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from crowdrt.benchmarks.lines import append_lines, check_schema, parsed_lines
from crowdrt.benchmarks.timing.verdict import said_of_others
from crowdrt.contracts import Size
from crowdrt.engines.layers.layer import EngineLayer
from crowdrt.engines.layers.roofline import Peaks, standing
from crowdrt.errors import BenchmarkError, EngineError

SCHEMA = 1  # raise it when a field changes its meaning or goes
FIX = "write profiles with crowdrt profile ENGINE --layers -o FILE, or name another file"


@dataclass(frozen=True, kw_only=True)
class LayerProfile:
    """One engine's layers at one size, with the peaks that this machine had just then."""

    name: str
    network: str
    width: str
    engine: str
    engine_version: str
    precision: str  # of the file: int8 where some of its layers are
    size: Size
    num_threads: int
    sha256: str
    when: str  # UTC
    machine: Mapping[str, Any]
    peaks: Mapping[str, Any]
    whole_ms: tuple[float, ...]  # runs without the profiler, from the photograph to the count
    profiled_ms: tuple[float, ...]  # runs with it
    verdict: str  # on the runs without
    layers: tuple[EngineLayer, ...]  # in the order in which they ran

    @property
    def layers_ms(self) -> float:
        """The sum of the layers' medians."""
        return sum(layer.ms for layer in self.layers)

    @property
    def unexplained_ms(self) -> float:
        """What a whole run takes beyond its layers; below 0 where the profiler slowed these."""
        return median(self.whole_ms) - self.layers_ms

    @property
    def doubt(self) -> str:
        """Why the peaks may be higher than measured; "" where nothing is known against them."""
        others = self.peaks.get("others")
        return "" if others is None else said_of_others(others)

    @property
    def limits(self) -> Peaks:
        """The peaks, as the roofline takes them."""
        return Peaks.from_json(self.peaks, fix="profile again: crowdrt profile ENGINE --layers")

    @property
    def copied_bytes(self) -> int | None:
        """How much was copied to find the memory's rate; None where the record does not say."""
        found = self.peaks.get("how", {}).get("copy", {}).get("bytes")
        return None if found is None else int(found)

    @property
    def peaks_by(self) -> dict[str, str]:
        """Precision -> the runtime whose products were the fastest."""
        how = self.peaks.get("how", {})
        return {
            precision: str(how[precision]["runtime"])
            for precision in self.limits.operations_per_s
            if precision in how
        }


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """One layer: what it cost, and how far that is from the least that it could."""

    layer: EngineLayer
    ms: float
    share: float  # of all layers' time
    macs_per_s: float | None
    least_ms: float | None  # by the roofline
    bound_by: str | None  # bytes, operations
    roofline: float | None  # least_ms / ms: 1 is perfect, more is a cache or fewer operations


def layer_costs(profile: LayerProfile) -> list[LayerCost]:
    """Return a row per layer, in the order in which they ran."""
    peaks, total = profile.limits, profile.layers_ms
    return [layer_cost(layer, total, peaks) for layer in profile.layers]


def layer_cost(layer: EngineLayer, total_ms: float, peaks: Peaks) -> LayerCost:
    """Return one row of `layer_costs`."""
    spent = layer.ms
    stands = standing(layer, spent, total_ms, peaks)
    return LayerCost(
        layer=layer,
        ms=spent,
        share=stands.share or 0.0,
        macs_per_s=layer.macs / spent * 1000 if layer.macs and spent else None,
        least_ms=stands.least_ms,
        bound_by=stands.bound_by,
        roofline=stands.roofline,
    )


def append_profiles(path: Path, profiles: Sequence[LayerProfile]) -> None:
    """Add profiles at the end of `path`, all of them or none."""
    append_lines(path, map(profile_line, profiles))


def read_profiles(path: Path) -> list[LayerProfile]:
    """Return every profile of `path`, oldest first.

    Raises:
        BenchmarkError: it cannot be read, or a line is none; with its number.
    """
    return parsed_lines(path, parse_profile, fix=FIX)


def profile_line(profile: LayerProfile) -> str:
    """Return a profile as one line of JSON."""
    return json.dumps({"schema": SCHEMA, **asdict(profile)}, sort_keys=True)


def parse_profile(line: str, source: str) -> LayerProfile:
    """Read what `profile_line` wrote; `source` names the file and line in the error."""
    try:
        fields: dict[str, Any] = json.loads(line)
        again = "profile again into another file"
        check_schema(fields.pop("schema"), SCHEMA, source=source, again=again)
        height, width = fields.pop("size")
        layers = tuple(map(EngineLayer.from_json, fields.pop("layers")))
        fields |= {key: tuple(map(float, fields[key])) for key in ("whole_ms", "profiled_ms")}
        profile = LayerProfile(size=(int(height), int(width)), layers=layers, **fields)
        check_profile(profile)
    except (ValueError, TypeError, KeyError, AttributeError, EngineError) as error:
        raise BenchmarkError(
            f"{source}: not a whole profile of layers ({type(error).__name__}: {error})",
            fix="delete that line, and profile again: crowdrt profile ENGINE --layers",
        ) from error
    return profile


def check_profile(profile: LayerProfile) -> None:
    """Work out everything that tables and pages show of a profile, so that it fails here.

    Raises:
        EngineError: its peaks are none.
        ValueError, TypeError, KeyError, AttributeError: something else is not what it should be.
    """
    names = (profile.name, profile.engine, profile.precision, profile.verdict)
    if not all(isinstance(name, str) for name in names):
        raise TypeError("name, engine, precision and verdict are texts")
    _ = layer_costs(profile), profile.unexplained_ms, profile.doubt, profile.peaks_by
    _ = profile.copied_bytes
