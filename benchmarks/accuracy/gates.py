"""A gate judges what a precision lost: held, or every limit that was passed, with both numbers."""

from dataclasses import asdict, dataclass
from typing import Any

from crowdrt.benchmarks.accuracy.comparison import Comparison, CrowdBin
from crowdrt.benchmarks.accuracy.detection import DetectionQuality
from crowdrt.contracts import Gate


@dataclass(frozen=True, kw_only=True)
class Breach:
    """A limit that was passed."""

    limit: str  # the gate's field
    seen: float
    tolerated: float  # in the unit of `seen`
    text: str  # both, as people read them


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a gate says of one row."""

    breaches: tuple[Breach, ...] = ()
    unjudged: tuple[str, ...] = ()  # which limits could not be judged, and why
    refused: str = ""  # why the row was not even counted

    @property
    def held(self) -> bool:
        """Whether the row may go on."""
        return not self.breaches and not self.refused

    @property
    def reason(self) -> str:
        """Why it may not, in one line."""
        return self.refused or "; ".join(breach.text for breach in self.breaches)

    def as_dict(self) -> dict[str, Any]:
        """Return the verdict as `--json` prints it."""
        return {"held": self.held, "reason": self.reason, **asdict(self)}


def judge(gate: Gate, found: Comparison) -> Verdict:
    """Hold a counting engine's comparison with FP32 against what is tolerated."""
    limits = [mae_breach(gate, found), psnr_breach(gate, found)]
    limits += [bias_breach(gate, each) for each in (found.total, *found.bins)]
    unjudged = []
    if not found.annotated:
        unjudged.append("MAE: no photograph is annotated")
    if found.psnr_db is None and gate.psnr_db is not None:
        unjudged.append("PSNR: there are no two density maps to compare")
    return Verdict(breaches=tuple(filter(None, limits)), unjudged=tuple(unjudged))


def judge_detections(
    gate: Gate, found: DetectionQuality | None, reference: DetectionQuality | None
) -> Verdict:
    """Hold a detector's AP (IoU 0.5) against FP32's."""
    if found is None or reference is None:
        return Verdict(unjudged=("AP: no photograph is annotated",))
    least = reference.ap50 - gate.ap_drop
    if found.ap50 >= least:
        return Verdict()
    text = f"AP {found.ap50:.2%}, at least {least:.2%} is tolerated (FP32 {reference.ap50:.2%})"
    breach = Breach(limit="ap_drop", seen=found.ap50, tolerated=least, text=text)
    return Verdict(breaches=(breach,))


def mae_breach(gate: Gate, found: Comparison) -> Breach | None:
    """Return by how much the mean absolute error is too large, in people."""
    after, before = found.total.engine, found.total.reference
    if after is None or before is None:
        return None
    most = before.mae * (1 + gate.mae_increase)
    if after.mae <= most:
        return None
    text = (
        f"MAE {after.mae:.2f}, at most {most:.2f} is tolerated "
        f"(FP32 {before.mae:.2f}, {gate.mae_increase:+.1%})"
    )
    return Breach(limit="mae_increase", seen=after.mae, tolerated=most, text=text)


def bias_breach(gate: Gate, found: CrowdBin) -> Breach | None:
    """Return by how many people per photograph counts moved too far, up or down."""
    most = tolerated_shift(gate, found)
    if abs(found.shift) <= most:
        return None
    text = (
        f"bias moves by {found.shift:+.2f} people on {found.name} photographs ({found.fewest:.0f} "
        f"to {found.most:.0f} people), at most {most:.2f} is tolerated"
    )
    return Breach(limit="bias_shift", seen=found.shift, tolerated=most, text=text)


def tolerated_shift(gate: Gate, found: CrowdBin) -> float:
    """Return by how many people per photograph the bias of a bin may move."""
    return max(gate.bias_shift_people, gate.bias_shift * abs(found.people))


def psnr_breach(gate: Gate, found: Comparison) -> Breach | None:
    """Return by how much density maps are too noisy, in decibels."""
    if gate.psnr_db is None or found.psnr_db is None or found.psnr_db.median >= gate.psnr_db:
        return None
    seen = found.psnr_db.median
    text = (
        f"density maps at {seen:.1f} dB PSNR in the median, at least {gate.psnr_db:.1f} is "
        "tolerated"
    )
    return Breach(limit="psnr_db", seen=seen, tolerated=gate.psnr_db, text=text)
