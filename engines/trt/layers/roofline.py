"""How near each layer of a plan comes to what its GPU can move and multiply at most.

Williams, Waterman and Patterson, "Roofline", CACM 2009: a layer takes at least as long as its bytes
take at the memory's rate, and as its operations take at the rate of the unit that does them.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from crowdrt.engines.trt.layers.inspector import Inspection, Layer
from crowdrt.errors import EngineError

OPERATIONS_PER_MAC = 2


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """What one GPU was measured to do at most."""

    gpu: str
    bytes_per_s: float  # read and written, in a copy inside the device
    operations_per_s: Mapping[str, float]  # precision -> operations of dense matrix products

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Read what a machine's record holds.

        Raises:
            EngineError: it is no such record.
        """
        try:
            return cls(
                gpu=str(document["gpu"]),
                bytes_per_s=float(document["bytes_per_s"]),
                operations_per_s={
                    str(name): float(rate) for name, rate in document["operations_per_s"].items()
                },
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise EngineError(
                f"the record of this GPU's peaks cannot be read: {error!r}",
                fix="delete it; python -m crowdrt.pipeline.gpu run measures them again",
            ) from error


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
    least, bound_by = least_time(layer, peaks)
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
        share=spent / total_ms if spent is not None and total_ms else None,
        least_ms=least,
        bound_by=bound_by,
        roofline=least / spent if least is not None and spent else None,
    )


def least_time(layer: Layer, peaks: Peaks | None) -> tuple[float | None, str | None]:
    """Return the least milliseconds that a layer can take, and what keeps it from less."""
    if peaks is None or layer.num_bytes is None or layer.kind == "NoOp":
        return None, None
    moved = layer.num_bytes / peaks.bytes_per_s * 1000
    rate = peaks.operations_per_s.get(layer.precision or "")
    if not layer.macs or not rate:
        return moved, "bytes"
    multiplied = OPERATIONS_PER_MAC * layer.macs / rate * 1000
    return (moved, "bytes") if moved >= multiplied else (multiplied, "operations")
