"""The fewest harmful layers kept in float, so that the rest may run in INT8."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from crowdrt.calibration.calibrate import (
    facts_of,
    identity,
    quantize,
    refuse_itself,
    tensor_facts,
    write_int8,
)
from crowdrt.calibration.int8.plan import plan_int8
from crowdrt.calibration.sensitivity.judge import CountError
from crowdrt.calibration.sensitivity.rank import Layer
from crowdrt.calibration.sensitivity.search import Search
from crowdrt.console import say
from crowdrt.contracts import Artifact
from crowdrt.errors import CalibrationError
from crowdrt.manifest import reusable, write_manifest


@dataclass(frozen=True)
class Step:
    """One layer that was tried in float, beside those kept before it."""

    name: str
    macs_share: float  # what it costs
    before: float  # the error that is tolerated or not: see `CountError.judged_by`
    after: float | None  # None: not tried, because too little would stay in INT8
    kept: bool

    @property
    def reason(self) -> str:
        """Why the layer is float in the file."""
        return (
            f"kept float by the sensitivity search: the count error falls from {self.before:.2%} "
            f"to {self.after:.2%}, for {self.macs_share:.2%} of the MACs"
        )


@dataclass(frozen=True)
class Repair:
    """What the greedy search found."""

    steps: tuple[Step, ...]
    int8: tuple[str, ...]  # convolutions that stay in INT8
    int8_macs: float  # their share of the MACs
    unrepaired: CountError  # with everything in INT8
    error: CountError

    @property
    def kept(self) -> dict[str, str]:
        """Layers kept in float -> why."""
        return {step.name: step.reason for step in self.steps if step.kept}

    def facts(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self) | {"kept": self.kept}


def repair(search: Search, layers: Sequence[Layer]) -> Repair:
    """Keep the worst layers in float, one after the other, until the tolerance holds.

    A layer is kept only if that lowers the error: two layers that err in opposite directions can
    be better together than either alone. One that would leave too little in INT8 is passed over.

    Args:
        search: the network, its photographs and what is tolerated.
        layers: the most harmful first.

    Raises:
        CalibrationError: the tolerance cannot be held.
    """
    int8 = list(search.plan.convs)
    unrepaired = error = search.error(int8)
    steps: list[Step] = []
    for layer in layers:
        if error.judged_by <= search.config.tolerance:
            break
        fewer = [name for name in int8 if name != layer.name]
        step = try_without(search, layer, fewer, error)
        steps.append(step)
        say(describe(step))
        if step.kept:
            int8, error = fewer, search.error(fewer)
    found = Repair(tuple(steps), tuple(int8), search.share(int8), unrepaired, error)
    check(found, search)
    return found


def try_without(search: Search, layer: Layer, fewer: Sequence[str], error: CountError) -> Step:
    """Return what keeping one more layer in float does."""
    step = Step(layer.name, layer.macs_share, error.judged_by, None, kept=False)
    if not fewer or search.share(fewer) < search.config.least_int8:
        return step
    after = search.error(fewer).judged_by
    return replace(step, after=after, kept=after < error.judged_by)


def describe(step: Step) -> str:
    """Say in one line what came of a step."""
    cost = f"{step.name} in float ({step.macs_share:.2%} of the MACs)"
    if step.after is None:
        return f"{cost}: not tried, too little would stay in INT8"
    kept = "kept" if step.kept else "does not help"
    return f"{cost}: count error {step.before:.2%} -> {step.after:.2%}, {kept}"


def check(found: Repair, search: Search) -> None:
    """Refuse what does not hold the tolerance."""
    reached, wanted = found.error.judged_by, search.config.tolerance
    if reached <= wanted:
        return
    least = search.config.least_int8
    raise CalibrationError(
        f"the best choice of layers has a count error of {reached:.2%} with "
        f"{found.int8_macs:.1%} of the MACs in INT8; {wanted:.2%} is tolerated, and at least "
        f"{least:.0%} are to stay in INT8",
        fix=f"tolerate more, for example --tolerance {reached * 1.05:.3f}, let more stay float, "
        f"for example --min-int8 {max(0.0, least - 0.2):.1f}, or use float16: crowdrt cast "
        f"{search.onnx_path} --fp16",
    )


def write_repaired(search: Search, found: Repair, out: Path) -> Artifact:
    """Write the mixed INT8 and float network, as `crowdrt calibrate --keep-float` does.

    Its manifest holds the reason of each float layer, and the steps that led there.
    """
    refuse_itself(out, search.onnx_path)
    config, files = search.config.calibration, search.calibration_files()
    steps = {**search.facts(), **found.facts()}
    made_from = identity(search.onnx_path, files, config, [*found.kept])
    if artifact := reusable(out, made_from={**made_from, "repair": steps}):
        return artifact
    plan = plan_int8(search.model, found.kept)
    plan = replace(plan, left={**plan.left, **found.kept})
    mixed = quantize(search.model, plan, search.seen, config)
    told = search.info.with_calibration(file["sha256"] for file in files)
    write_int8(mixed, told, out, weight_bits=config.weight_bits)
    listed = {"num": len(files), "sha256": made_from["images"], "files": files}
    tensors = tensor_facts(plan, search.seen, config)
    facts = facts_of(search.model, plan, search.info, asdict(config), tensors)
    return write_manifest(
        out,
        kind="onnx",
        made_from={**made_from, "repair": steps},
        facts={**facts, "images": listed, "repair": steps},
    )
