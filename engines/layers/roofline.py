"""How near a layer comes to what its device can move and multiply at most.

Williams, Waterman and Patterson, "Roofline", CACM 2009: a layer takes at least as long as its bytes
take at the memory's rate, and as its operations take at the rate of the unit that does them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self

from crowdrt.errors import EngineError

OPERATIONS_PER_MAC = 2
DEVICES = ("gpu", "cpu")  # under one of these a record names what was measured
AGAIN = "delete it; python -m crowdrt.pipeline.gpu run measures them again"


class Cost(Protocol):
    """What has to be known of a layer to say what it takes at least."""

    @property
    def precision(self) -> str | None: ...  # noqa: D102
    @property
    def macs(self) -> int | None: ...  # noqa: D102
    @property
    def num_bytes(self) -> int | None: ...  # noqa: D102


class Standing(NamedTuple):
    """How a layer's time stands to that of all, and to the least that it could take."""

    share: float | None  # of the whole time
    least_ms: float | None
    bound_by: str | None  # bytes, operations
    roofline: float | None  # least_ms / spent: 1 is perfect


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """What one GPU, or some threads of a CPU, were measured to do at most."""

    device: str
    bytes_per_s: float  # read and written, in a copy
    operations_per_s: Mapping[str, float]  # precision -> operations of dense matrix products

    @classmethod
    def from_json(cls, document: Mapping[str, Any], *, fix: str = AGAIN) -> Self:
        """Read what a machine's record holds.

        Raises:
            EngineError: it is no such record.
        """
        try:
            device = next(key for key in DEVICES if key in document)
            found = cls(
                device=str(document[device]),
                bytes_per_s=float(document["bytes_per_s"]),
                operations_per_s={
                    str(name): float(rate) for name, rate in document["operations_per_s"].items()
                },
            )
            if not all(rate > 0 for rate in (found.bytes_per_s, *found.operations_per_s.values())):
                raise ValueError("a rate is not above 0")
        except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
            raise EngineError(
                f"the record of this machine's peaks cannot be read: {error!r}", fix=fix
            ) from error
        return found


def standing(layer: Cost, spent_ms: float | None, total_ms: float, peaks: Peaks | None) -> Standing:
    """Return what follows from a layer's time; what that needs and nobody knows makes it None."""
    least, bound_by = least_time(layer, peaks)
    return Standing(
        share=spent_ms / total_ms if spent_ms is not None and total_ms else None,
        least_ms=least,
        bound_by=bound_by,
        roofline=least / spent_ms if least is not None and spent_ms else None,
    )


def least_time(layer: Cost, peaks: Peaks | None) -> tuple[float | None, str | None]:
    """Return the least milliseconds that a layer can take, and what keeps it from less.

    A layer of which no multiplications are known has the bound of its bytes alone; of one that
    multiplies in a precision without a peak nothing is known. The memory's rate is that of a copy
    larger than all caches, so that a layer whose tensors lie in one may take less.
    """
    if peaks is None or layer.num_bytes is None:
        return None, None
    moved = layer.num_bytes / peaks.bytes_per_s * 1000
    rate = peaks.operations_per_s.get(layer.precision or "")
    if not layer.macs:
        return moved, "bytes"
    if not rate:
        return None, None
    multiplied = OPERATIONS_PER_MAC * layer.macs / rate * 1000
    return (moved, "bytes") if moved >= multiplied else (multiplied, "operations")
