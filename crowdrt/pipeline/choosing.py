"""`crowdrt build --engine auto`: of this machine's runtimes, the fastest that counts rightly."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from crowdrt.benchmarks.accuracy.counts import predict_sample
from crowdrt.benchmarks.accuracy.gates import Verdict, judge
from crowdrt.benchmarks.labels import ABSENT, fixed
from crowdrt.benchmarks.timing.race import RaceConfig, race
from crowdrt.benchmarks.timing.verdict import VALID, has_failed
from crowdrt.calibration.calibrate import pick
from crowdrt.console import say, show_table, tell
from crowdrt.contracts import DENSITY, GraphInfo, Measurement, Size, default_gates
from crowdrt.engines.base import open_engine
from crowdrt.engines.store import (
    DEFAULT_ENGINE,
    BuiltEngine,
    EngineStore,
    engine_identity,
    installed_engines,
)
from crowdrt.errors import CrowdRTError, EngineError
from crowdrt.manifest import fingerprint, read_json, sha256_file, write_json
from crowdrt.onnx_file import graph_info
from crowdrt.pipeline.measuring import check_race_sizes, engine_contender, race_photograph
from crowdrt.pipeline.photographs import samples_or_crowds
from crowdrt.pipeline.precision.comparing import compare, comparison_of

CHOICES = "choices"  # a folder of the store
SIZE: Size = (576, 864)


@dataclass(frozen=True, kw_only=True)
class ChoiceOptions:
    """How a runtime is chosen."""

    size: Size | None = None  # None: the network's own, else 576x864
    seconds: float = 20.0  # of the race
    images: Path | None = None  # to count; None: generated crowds
    num_images: int = 4  # of them
    against: Path | None = None  # the FP32 file that an INT8 file was made from
    num_threads: int = 0
    fresh: bool = False


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One runtime: what its gate and its time say, or why it is out."""

    engine: str
    reason: str = ""  # why it is out; empty where it is not
    median_ms: float | None = None
    peak_mib: float | None = None
    timing: str = ""  # the race's verdict


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The runtime that was taken, and all that were looked at."""

    built: BuiltEngine
    engine: str
    candidates: Sequence[Candidate]
    reused: bool  # chosen by an earlier call


def choose_engine(model: Path, store: Path, options: ChoiceOptions) -> Choice:
    """Build a network for every runtime here, and take the fastest that counts rightly.

    Each counts the same photographs as ONNX Runtime does with `options.against`, or with the model
    itself; the gate of the model's precision judges, FP16's where that is FP32. Those that hold it
    race. The choice is kept in the store until a runtime, the machine or the file is another.

    Args:
        model: an ONNX file of a counting network.
        store: where engines and choices are kept.
        options: photographs, size, time.

    Raises:
        EngineError: no runtime can be used, or the network draws boxes.
        RecipeError: the network never sees this size.
    """
    info = graph_info(model)
    options = replace(options, size=options.size or info.fixed_size or SIZE)
    assert options.size is not None
    check_race_sizes([options.size], info)
    names, engines = installed_engines(), EngineStore(store)
    path = store / CHOICES / f"{fingerprint(identity(model, names, options))[:16]}.json"
    known = [] if options.fresh else kept_in(path)
    candidates = known or looked_at(model, info, names, engines, options)
    best = fastest(candidates, model)
    built = engines.build(model, engine=best, num_threads=options.num_threads)
    if not known:
        write_json(path, {"candidates": [asdict(each) for each in candidates]})
    return Choice(built=built, engine=best, candidates=candidates, reused=bool(known))


def kept_in(path: Path) -> list[Candidate]:
    """Return what an earlier call looked at; nothing where there was none, or it is damaged."""
    try:
        return [Candidate(**each) for each in (read_json(path) or {})["candidates"]]
    except (KeyError, TypeError):
        return []


def looked_at(
    model: Path,
    info: GraphInfo,
    names: Sequence[str],
    engines: EngineStore,
    options: ChoiceOptions,
) -> list[Candidate]:
    """Build for every runtime, judge its counts and time it; the fastest first, those out last."""
    ready: dict[str, BuiltEngine] = {}
    out = []
    for name in names:
        try:
            ready[name] = engines.build(model, engine=name, num_threads=options.num_threads)
        except CrowdRTError as error:
            out.append(Candidate(engine=name, reason=error.problem))
    for name, verdict in judged(model, info, ready, engines, options).items():
        if not verdict.held:
            out.append(Candidate(engine=name, reason=f"gate: {verdict.reason}"))
            del ready[name]
    raced = timed(ready, options) if ready else []
    return sorted(raced, key=lambda each: each.median_ms or inf) + out


def fastest(candidates: Sequence[Candidate], model: Path) -> str:
    """Return the runtime that was fastest.

    Raises:
        EngineError: none is left.
    """
    able = [each for each in candidates if each.median_ms is not None]
    if not able:
        raise EngineError(
            f"no runtime on this machine can be taken for {model}: "
            + "; ".join(f"{each.engine}: {each.reason}" for each in candidates),
            fix="see what is installed: crowdrt doctor; or name one: --engine onnxruntime",
        )
    return able[0].engine


def identity(model: Path, names: Sequence[str], options: ChoiceOptions) -> dict[str, Any]:
    """Return everything that decides a choice."""
    asked = replace(options, images=None, against=None, fresh=False, seconds=0.0)
    return {
        "engines": [engine_identity(model, name, options.num_threads) for name in names],
        "options": asdict(asked),
        "images": None if options.images is None else str(options.images.resolve()),
        "against": None if options.against is None else sha256_file(options.against),
    }


def judged(
    model: Path,
    info: GraphInfo,
    ready: Mapping[str, BuiltEngine],
    engines: EngineStore,
    options: ChoiceOptions,
) -> dict[str, Verdict]:
    """Return what the gate says of each runtime's counts.

    Raises:
        EngineError: the network counts without a density map.
    """
    gates, threads = default_gates(), options.num_threads
    gate = gates.get(info.precision, gates["fp16"])
    source = engines.build(options.against or model, engine=DEFAULT_ENGINE, num_threads=threads)
    reference = open_engine(source.path, num_threads=threads)
    if DENSITY not in {output.name for output in reference.outputs}:
        raise EngineError(
            f"{model} answers no density map, by which its runtimes could be compared",
            fix="name the runtime: --engine onnxruntime; and compare with crowdrt profile",
        )
    found = {}
    with samples_or_crowds(options.images, options.num_images) as every:
        by_path = {sample.image: sample for sample in every}
        samples = [by_path[path] for path in pick([*by_path], options.num_images)]
        for name, built in ready.items():
            say(f"counting {len(samples)} photographs with {name}")
            engine = open_engine(built.path, num_threads=threads)
            predictions = [predict_sample(engine, sample) for sample in samples]
            rows = compare(samples, predictions, partial(predict_sample, reference))
            comparison = comparison_of(rows)
            assert comparison is not None
            found[name] = judge(gate, comparison)
    return found


def timed(ready: Mapping[str, BuiltEngine], options: ChoiceOptions) -> list[Candidate]:
    """Race the runtimes that count rightly."""
    contenders = [
        replace(engine_contender(built.path, None, options.num_threads), name=name)
        for name, built in ready.items()
    ]
    say(f"racing {', '.join(ready)} for {options.seconds:g} s")
    assert options.size is not None
    config = RaceConfig(num_threads=options.num_threads, budget_s=options.seconds)
    return [candidate(row) for row in race(contenders, race_photograph(options.size), config)]


def candidate(row: Measurement) -> Candidate:
    """Return a runtime's place in the race."""
    if not row.samples_ms or has_failed(row.verdict):
        return Candidate(engine=row.engine, reason=row.verdict)
    return Candidate(
        engine=row.engine,
        median_ms=row.median_ms,
        peak_mib=row.peak_mib,
        timing=row.verdict,
    )


def as_json(choice: Choice) -> dict[str, Any]:
    """Return the choice as `--json` prints it."""
    built = choice.built
    return {
        "path": str(built.path),
        "key": built.key,
        "reused": built.reused,
        "seconds": built.seconds,
        "engine": choice.engine,
        "chosen_before": choice.reused,
        "candidates": [asdict(each) for each in choice.candidates],
    }


def show_choice(choice: Choice) -> None:
    """Print the engine's folder, and what it was chosen from."""
    before = ", chosen before: --fresh chooses again" if choice.reused else ""
    tell(f"{choice.built.path} ({choice.engine}{before})")
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("runtime", "p50 ms", "peak MiB", ""):
        table.add_column(title, justify="left" if title in ("runtime", "") else "right")
    for each in choice.candidates:
        doubt = "" if each.timing == VALID else each.timing
        peak = ABSENT if each.peak_mib is None else fixed(each.peak_mib, 0)
        table.add_row(each.engine, fixed(each.median_ms, 1), peak, Text(each.reason or doubt))
    show_table(table)
