"""Whether float16 can hold what a network computes: magnitudes, seen on real photographs.

float16 ends at 65504, beyond which is infinity, and under 6.1e-5 it loses one digit after the
other until 6e-8, under which is 0.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from crowdrt.calibration.ranges import CHUNK

LARGEST = float(np.finfo(np.float16).max)
LEAST_NORMAL = float(np.finfo(np.float16).smallest_normal)
HEADROOM = 2.0  # other photographs may reach further than those that were looked at
# A count is a sum, so a tensor is judged by how much of its sum is small, not by how many values.
TINY_SHARE = 0.01


@dataclass
class Magnitudes:
    """How large and how small the values of one tensor are, over every image."""

    largest: float = 0.0
    where: str = ""  # the image on which it was that large; "" for a stored tensor
    total: float = 0.0  # of |x|
    tiny: float = 0.0  # of the |x| under `LEAST_NORMAL`

    def add(self, values: npt.NDArray[np.floating], path: Path | None = None) -> None:
        """Take in one array; `path` is the photograph that it was computed from.

        Raises:
            FloatingPointError: a value is NaN or infinite.
        """
        flat = values.reshape(-1)
        for start in range(0, flat.size, CHUNK):
            self._add(np.abs(flat[start : start + CHUNK]), "" if path is None else path.name)

    def _add(self, sizes: npt.NDArray[np.floating], where: str) -> None:
        largest = float(sizes.max())
        if not np.isfinite(largest):
            raise FloatingPointError("NaN or infinity")
        if largest > self.largest:
            self.largest, self.where = largest, where
        self.total += float(sizes.sum(dtype=np.float64))
        self.tiny += float(sizes[sizes < LEAST_NORMAL].sum(dtype=np.float64))

    @property
    def tiny_share(self) -> float:
        """The share of the sum of |x| that float16 holds with fewer digits; 0..1."""
        return self.tiny / self.total if self.total else 0.0

    def facts(self) -> dict[str, float]:
        """Return what a manifest says of the tensor."""
        return {"largest": self.largest, "tiny_share": self.tiny_share}

    def objection(self, name: str) -> str | None:
        """Say why float16 cannot hold the tensor, if it cannot."""
        if self.largest > LARGEST / HEADROOM:
            place = f" on {self.where}" if self.where else ""
            return (
                f"{name} reaches {self.largest:.4g}{place}; float16 ends at {LARGEST:.0f}, of "
                "which half is left free for other photographs"
            )
        if self.tiny_share > TINY_SHARE:
            return (
                f"{self.tiny_share:.0%} of the sum of |{name}|, which reaches "
                f"{self.largest:.2g}, lies under {LEAST_NORMAL:.1e}, where float16 loses digits"
            )
        return None
