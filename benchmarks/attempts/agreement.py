"""Does a changed engine answer what its baseline answers? Asked before it is timed."""

from dataclasses import dataclass

import numpy as np

from crowdrt.benchmarks.attempts.attempt import Form
from crowdrt.contracts import COUNT, DENSITY, Feeds
from crowdrt.errors import BenchmarkError

# Of the largest density: what another order of float sums makes of a value, and one step of a
# number of 7 bits and a sign, by which a code that falls the other way may move what follows.
TOLERANCE: dict[Form, float] = {"fp32": 1e-4, "int8": 1 / 127}


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far an attempt's answer is from its baseline's."""

    largest: float  # density of the baseline, people per cell
    difference: float  # the largest of any cell, as a part of that
    count: float  # of the baseline
    count_difference: float  # the largest, in people
    tolerance: float  # of `difference`


def agreement(baseline: Feeds, changed: Feeds, form: Form) -> Agreement:
    """Compare two answers for the photograph of the race.

    Args:
        baseline: density (1, 1, h, w) and count (1,).
        changed: the same, of one image or of several equal ones.
        form: by which the tolerance is chosen.

    Raises:
        BenchmarkError: an output is missing, or the baseline answers one constant.
    """
    for name in (DENSITY, COUNT):
        if name not in baseline or name not in changed:
            raise BenchmarkError(
                f"the network has no output {name!r}, by which attempts are compared",
                fix="try a counting network: crowdrt export csrnet-quarter -o student.onnx",
            )
    before = baseline[DENSITY].astype(np.float64)
    largest = float(np.abs(before).max())
    if before.min() == before.max() or not np.isfinite(largest):
        raise BenchmarkError(
            f"the baseline answers {before.flat[0]:g} everywhere, with which any form would agree",
            fix="use a trained network: crowdrt export csrnet-quarter -o student.onnx",
        )
    if before.shape[1:] != changed[DENSITY].shape[1:]:
        raise BenchmarkError(
            f"its density map is {changed[DENSITY].shape}, the baseline's {before.shape}",
            fix="use a size whose density map has even sides: --size 576x864",
        )
    return Agreement(
        largest=largest,
        difference=float(np.abs(changed[DENSITY] - before).max()) / largest,
        count=float(baseline[COUNT][0]),
        count_difference=float(np.abs(changed[COUNT] - baseline[COUNT].astype(np.float64)).max()),
        tolerance=TOLERANCE[form],
    )


def objection(found: Agreement) -> str:
    """Return why a form that claims to be exact is not timed; "" where it is."""
    if found.difference <= found.tolerance:  # not so of NaN, either
        return ""
    return (
        f"its density differs by {found.difference:.2g} of the largest value, and "
        f"{found.tolerance:.2g} is what rounding explains: the rewrite is wrong"
    )
