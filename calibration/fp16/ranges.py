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
# Of the sum of |x|, since counts are sums. Of a larger number float16 loses 0.0005 at most.
LOST_SHARE = 0.001


@dataclass
class Magnitudes:
    """How large and how small the values of one tensor are, over every image.

    Of a stored vector, small values do not matter: it is added to a tensor that is looked at
    itself.
    """

    added: bool = False  # a bias
    largest: float = 0.0
    where: str = ""  # the image on which it was that large; "" for a stored tensor
    total: float = 0.0  # of |x|
    lost: float = 0.0  # by rounding the |x| under `LEAST_NORMAL` to float16

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
        tiny = sizes[sizes < LEAST_NORMAL]
        self.lost += float(np.abs(tiny - tiny.astype(np.float16)).sum(dtype=np.float64))

    @property
    def lost_share(self) -> float:
        """The share of the sum of |x| that float16 loses of numbers that are too small for it."""
        return self.lost / self.total if self.total else 0.0

    def facts(self) -> dict[str, float]:
        """Return what a manifest says of the tensor."""
        return {"largest": self.largest, "lost_share": self.lost_share}

    def objection(self, name: str) -> str | None:
        """Say why float16 cannot hold the tensor, if it cannot."""
        place = f" on {self.where}" if self.where else ""
        if self.largest > LARGEST / HEADROOM:
            return (
                f"{name} reaches {self.largest:.4g}{place}; float16 ends at {LARGEST:.0f}, of "
                "which half is left free for other photographs"
            )
        if self.lost_share > LOST_SHARE and not self.added:
            return (
                f"{name}, which reaches {self.largest:.2g}{place}, loses {self.lost_share:.1%} of "
                f"its sum: under {LEAST_NORMAL:.1e} float16 has fewer digits"
            )
        return None
