"""What a network learns to draw: the density map of a whole photograph, kept on disk.

The width of a head's spread follows one of the papers' rules:

    adaptive     0.1 of the summed distances to the 3 nearest heads: SKT on ShanghaiTech A, MCNN
    fixed:15     15 px: SKT on ShanghaiTech B; DeepCount takes fixed:5; for WorldExpo'10 public
                 code takes fixed:3 or fixed:4
    nearest:30   the distance to the nearest head, at most 30 px: SKT on UCF-QNRF

A map depends on the heads, the size, the rule, the stride, the region and the code that draws it,
and its file is named by a hash of all of them: what changes is drawn again, and nothing is ever
out of date. A file begins with the SHA-256 of what follows; a damaged one is drawn again. Files
appear whole, so several processes may share a folder.
"""

import hashlib
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from crowdrt.contracts import Region, Size
from crowdrt.data.heads import density, regions
from crowdrt.data.heads.density import MIN_SIGMA_PX, FloatArray, adaptive_sigma, density_map
from crowdrt.data.heads.regions import cell_shares
from crowdrt.errors import RecipeError
from crowdrt.lazy import require
from crowdrt.manifest import fingerprint, write_whole

if TYPE_CHECKING:
    import scipy.spatial

RULE = re.compile(r"(fixed|nearest):(\d{1,3}(?:\.\d{1,2})?)", re.ASCII)
ADAPTIVE = "adaptive"
DIGEST_BYTES = 32


def density_target(
    heads: FloatArray,
    size: Size,
    *,
    rule: str,
    stride: int,
    roi: Region | None = None,
    folder: Path | None = None,
) -> npt.NDArray[np.float32]:
    """Return the map of a photograph that is padded to the stride.

    Heads outside the photograph are left out. Those outside the region are spread too, since they
    reach into it; then the map is cut to the region, so that its sum is no whole number.

    Args:
        heads: (N, 2) x, y in pixels from 0, all that are annotated.
        size: height and width of the photograph, before it is padded.
        rule: `adaptive`, `fixed:PX` or `nearest:PX`.
        stride: input pixels per cell.
        roi: where people count.
        folder: keeps the maps; None: the map is drawn anew.

    Returns:
        (ceil(height / stride), ceil(width / stride)) people per cell, owned by the caller.

    Raises:
        RecipeError: there is no such rule.
        CrowdRTError: the folder cannot be written to.
    """
    if folder is None:
        return draw_target(heads, size, rule, stride, roi)
    path = target_path(folder, heads, size, rule, stride, roi)
    if (kept := read_target(path, cells_of(size, stride))) is not None:
        return kept
    drawn = draw_target(heads, size, rule, stride, roi)
    content = drawn.astype("<f4").tobytes()
    with write_whole(path) as temporary:
        temporary.write_bytes(hashlib.sha256(content).digest() + content)
    return drawn


def draw_target(
    heads: FloatArray, size: Size, rule: str, stride: int, roi: Region | None
) -> npt.NDArray[np.float32]:
    """Draw a map."""
    sigma = sigma_by_rule(heads, rule)
    x, y = np.asarray(heads, np.float64).reshape(-1, 2).T
    inside = (x >= 0) & (x < size[1]) & (y >= 0) & (y < size[0])
    rows, columns = cells_of(size, stride)
    drawn = density_map(
        heads[inside],
        height=rows * stride,
        width=columns * stride,
        sigma=sigma[inside],
        stride=stride,
    )
    if roi is not None:
        drawn *= cell_shares(roi, (rows, columns), span=(rows * stride, columns * stride))
    return drawn


def cells_of(size: Size, stride: int) -> Size:
    """Return rows and columns of the map of a photograph that is padded to the stride."""
    return -(-size[0] // stride), -(-size[1] // stride)


def sigma_by_rule(heads: FloatArray, rule: str) -> npt.NDArray[np.float64]:
    """Return (N,) widths in pixels; the rule takes heads outside the photograph into account."""
    check_rule(rule)
    if rule == ADAPTIVE:
        return adaptive_sigma(heads)
    name, _, px = rule.partition(":")
    limit = float(px)
    return nearest_sigma(heads, limit) if name == "nearest" else np.full(len(heads), limit)


def nearest_sigma(heads: FloatArray, limit_px: float) -> npt.NDArray[np.float64]:
    """Return the distance from each head to the nearest one, at most a limit.

    Departure: never under 1 px, since heads annotated twice would get 0. A single head gets the
    limit.

    Args:
        heads: (N, 2) x, y in pixels.
        limit_px: 30 in SKT's code for UCF-QNRF.

    Returns:
        (N,) pixels.
    """
    if len(heads) < 2:
        return np.full(len(heads), limit_px)
    if TYPE_CHECKING:
        spatial = scipy.spatial
    else:
        spatial = require("scipy.spatial", extra="cpu")
    points = np.asarray(heads, np.float64)
    nearest = np.asarray(spatial.cKDTree(points).query(points, k=2)[0])[:, 1]  # 0 is itself
    sigma: npt.NDArray[np.float64] = np.clip(nearest, MIN_SIGMA_PX, limit_px)
    return sigma


def check_rule(rule: str) -> None:
    """Refuse what is no rule."""
    found = RULE.fullmatch(rule)
    if rule != ADAPTIVE and (found is None or float(found[2]) < MIN_SIGMA_PX):
        raise RecipeError(
            f"there is no sigma rule {rule!r}",
            fix="use adaptive, fixed:PX or nearest:PX with 1 px or more, for example fixed:15",
        )


def target_path(
    folder: Path, heads: FloatArray, size: Size, rule: str, stride: int, roi: Region | None
) -> Path:
    """Return where a map is kept."""
    points = np.ascontiguousarray(heads, np.float64)
    made_from: dict[str, Any] = {
        "heads": hashlib.sha256(points.tobytes()).hexdigest(),
        "size": list(size),
        "rule": rule,
        "stride": stride,
        "roi": None
        if roi is None
        else [list(roi.shape), hashlib.sha256(roi.tobytes()).hexdigest()],
        "code": code_hash(),
    }
    name = fingerprint(made_from)
    return (
        folder / name[:2] / f"{name}.density"
    )  # thousands of files in one folder are slow to list


@cache
def code_hash() -> str:
    """Return the hash of the files that decide how a map is drawn."""
    files = [Path(str(module)) for module in (density.__file__, regions.__file__, __file__)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def read_target(path: Path, cells: Size) -> npt.NDArray[np.float32] | None:
    """Return a map that was kept; None where there is none, or it is damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, values = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    if len(values) != 4 * cells[0] * cells[1] or hashlib.sha256(values).digest() != digest:
        return None
    return np.frombuffer(values, "<f4").astype(np.float32).reshape(cells)
