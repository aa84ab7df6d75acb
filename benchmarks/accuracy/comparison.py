"""An engine held against a reference on the same photographs, in people: in total and per crowd.

A total hides what deployments meet: an engine that counts too many where few people are and too few
where many are has no bias at all on average. So the photographs are put into three bins of about
equal size by how many people are annotated on them; terciles, since fixed borders would leave bins
of another data set empty. Where nothing is annotated, the reference's counts take that place, and
only differences from the reference are known.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crowdrt.benchmarks.accuracy.counts import Accuracy, CountRow, accuracy
from crowdrt.benchmarks.accuracy.maps import MapQuality
from crowdrt.errors import BenchmarkError

BINS = ("sparse", "medium", "dense")
TOTAL = "all"


@dataclass(frozen=True, kw_only=True)
class ComparedRow(CountRow):
    """One photograph as an engine counts it, beside what the reference counts."""

    reference: float  # people
    psnr_db: float | None = None  # of the density map against the reference's; None: undefined
    ssim: float | None = None

    @property
    def error(self) -> float:
        """The sum-of-density error: by how many people the engine counts more."""
        return self.count - self.reference

    @property
    def people(self) -> float:
        """By what a photograph is put into a bin: its annotated people, else the reference's."""
        return self.reference if self.annotated is None else self.annotated


@dataclass(frozen=True, kw_only=True)
class CrowdBin:
    """The errors on photographs with about as many people."""

    name: str  # sparse, medium, dense; all
    num_images: int
    fewest: float  # people on the emptiest of them
    most: float
    people: float  # on average
    engine: Accuracy | None  # None: nothing is annotated
    reference: Accuracy | None
    shift: float  # mean of counted - reference's count: the engine's bias minus the reference's


@dataclass(frozen=True, kw_only=True)
class SumErrors:
    """By how many people the counts of one photograph differ from the reference's."""

    mean: float  # of the absolute differences
    largest: float  # of them, with its sign
    where: str  # the photograph of the largest
    count: float  # the engine's there
    reference: float  # the reference's there


@dataclass(frozen=True, kw_only=True)
class Spread:
    """One measure over the photographs on which it is defined."""

    num_images: int
    median: float
    lowest: float
    where: str  # the photograph of the lowest


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """An engine against its reference."""

    annotated: bool  # False: bins and people are of the reference's counts
    total: CrowdBin
    bins: tuple[CrowdBin, ...]  # those that hold photographs, from few people to many
    sums: SumErrors
    psnr_db: Spread | None  # None: no photograph has two maps to compare
    ssim: Spread | None


def compared(
    rows: Sequence[CountRow],
    references: Sequence[CountRow],
    maps: Sequence[MapQuality] | None = None,
) -> list[ComparedRow]:
    """Return the rows of two engines as pairs, in the first one's order.

    Args:
        rows: what the engine counts.
        references: what the reference counts on the same photographs, in the same order.
        maps: how alike their density maps are, in that order, where there are any.

    Raises:
        BenchmarkError: the photographs differ.
    """
    if [row.image for row in rows] != [row.image for row in references]:
        raise BenchmarkError(
            f"the counts of {len(rows)} and {len(references)} photographs are not of the same ones",
            fix="count the same photographs with both: crowdrt count ENGINE PHOTOS --against MODEL",
        )
    qualities = maps or [MapQuality()] * len(rows)
    return [
        ComparedRow(
            image=row.image,
            count=row.count,
            annotated=row.annotated,
            reference=reference.count,
            psnr_db=quality.psnr_db,
            ssim=quality.ssim,
        )
        for row, reference, quality in zip(rows, references, qualities, strict=True)
    ]


def comparison(rows: Sequence[ComparedRow]) -> Comparison:
    """Return how an engine differs from its reference.

    Where some of the photographs are annotated, bins and errors are of these alone.

    Raises:
        BenchmarkError: there is no photograph.
    """
    if not rows:
        raise BenchmarkError(
            "there is no photograph to compare two engines on",
            fix="name some: crowdrt count ENGINE PHOTOS --against MODEL",
        )
    annotated = [row for row in rows if row.annotated is not None]
    judged = annotated or list(rows)
    return Comparison(
        annotated=bool(annotated),
        total=crowd_bin(TOTAL, judged),
        bins=tuple(crowd_bins(judged)),
        sums=sum_errors(rows),
        psnr_db=spread([(row.psnr_db, row.image) for row in rows]),
        ssim=spread([(row.ssim, row.image) for row in rows]),
    )


def crowd_bins(rows: Sequence[ComparedRow]) -> list[CrowdBin]:
    """Return the errors per bin; with fewer than three photographs some bins are left out."""
    borders = terciles([row.people for row in rows])
    filled = [[row for row in rows if bin_of(row.people, borders) == k] for k in range(len(BINS))]
    return [crowd_bin(name, found) for name, found in zip(BINS, filled, strict=True) if found]


def terciles(people: Sequence[float]) -> tuple[float, float]:
    """Return up to how many people a photograph is sparse, and up to how many medium.

    Both are numbers of people of photographs that are there: those at a third and two thirds of
    the sorted list, rounded up. Equal numbers share a bin, so bins may be of unequal size.
    """
    ranked = sorted(people)
    first, second = (-(-k * len(ranked) // 3) - 1 for k in (1, 2))
    return ranked[first], ranked[second]


def bin_of(people: float, borders: tuple[float, float]) -> int:
    """Return 0 for sparse, 1 for medium, 2 for dense."""
    return int(people > borders[0]) + int(people > borders[1])


def crowd_bin(name: str, rows: Sequence[ComparedRow]) -> CrowdBin:
    """Return the errors of both engines on some photographs, of which there is at least one."""
    people = [row.people for row in rows]
    references = [CountRow(image=r.image, count=r.reference, annotated=r.annotated) for r in rows]
    return CrowdBin(
        name=name,
        num_images=len(rows),
        fewest=min(people),
        most=max(people),
        people=float(np.mean(people)),
        engine=accuracy(rows),
        reference=accuracy(references),
        shift=float(np.mean([row.error for row in rows])),
    )


def sum_errors(rows: Sequence[ComparedRow]) -> SumErrors:
    """Return how far counts of single photographs moved."""
    worst = max(rows, key=lambda row: abs(row.error))
    return SumErrors(
        mean=float(np.mean([abs(row.error) for row in rows])),
        largest=worst.error,
        where=worst.image,
        count=worst.count,
        reference=worst.reference,
    )


def spread(values: Sequence[tuple[float | None, str]]) -> Spread | None:
    """Return the median and the lowest of (value, photograph), where any value is defined."""
    known = [(value, image) for value, image in values if value is not None]
    if not known:
        return None
    lowest, where = min(known)
    median = float(np.median([value for value, _ in known]))
    return Spread(num_images=len(known), median=median, lowest=lowest, where=where)
