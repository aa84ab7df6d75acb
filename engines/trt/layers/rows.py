"""A row per layer of a plan: what it is, what it took, and how far that is from the least."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from crowdrt.engines.layers.roofline import Peaks, standing
from crowdrt.engines.trt.layers.inspector import Inspection, Layer


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """One layer: what it is, what it cost, and how far that is from the least it could."""

    name: str
    kind: str
    precision: str | None
    reads: str  # precisions of its inputs
    writes: str
    tactic: str | None
    nodes: tuple[str, ...]
    macs: int | None
    num_bytes: int | None
    ms: float | None
    share: float | None  # of the whole time
    least_ms: float | None  # by the roofline
    bound_by: str | None  # bytes, operations
    roofline: float | None  # least_ms / ms: 1 is perfect

    def to_json(self) -> dict[str, Any]:
        """Return it as `--json` prints it."""
        return asdict(self)


def layer_rows(
    inspection: Inspection, times_ms: Mapping[str, float] | None = None, peaks: Peaks | None = None
) -> list[LayerRow]:
    """Return a row per layer; without times or peaks, the columns that need them are None."""
    total = sum(times_ms.values()) if times_ms else 0.0
    return [layer_row(layer, times_ms or {}, total, peaks) for layer in inspection.layers]


def layer_row(
    layer: Layer, times_ms: Mapping[str, float], total_ms: float, peaks: Peaks | None
) -> LayerRow:
    """Return one row of `layer_rows`."""
    spent = times_ms.get(layer.name)
    stands = standing(layer, spent, total_ms, None if layer.kind == "NoOp" else peaks)
    return LayerRow(
        name=layer.name,
        kind=layer.kind,
        precision=layer.precision,
        reads="+".join(dict.fromkeys(t.precision or "?" for t in layer.inputs)),
        writes="+".join(dict.fromkeys(t.precision or "?" for t in layer.outputs)),
        tactic=layer.tactic,
        nodes=layer.nodes,
        macs=layer.macs,
        num_bytes=layer.num_bytes,
        ms=spent,
        **stands._asdict(),
    )
