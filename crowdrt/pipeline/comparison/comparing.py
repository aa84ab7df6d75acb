"""A sweep's networks and their teacher, exported, counted, and timed in one interleaved race."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

from crowdrt.benchmarks.tables.compression import plot, render
from crowdrt.benchmarks.tables.compression.judgement import Judged, judge
from crowdrt.benchmarks.tables.compression.printed import TEACHER
from crowdrt.benchmarks.tables.compression.rows import CompressionRow, ordered, row_line
from crowdrt.benchmarks.timing.race import Contender, RaceConfig
from crowdrt.benchmarks.timing.records import read_records
from crowdrt.benchmarks.timing.verdict import has_failed
from crowdrt.console import say
from crowdrt.contracts import Measurement, Size, default_gates
from crowdrt.errors import BenchmarkError
from crowdrt.export.complexity import Complexity, complexity_of_weights
from crowdrt.manifest import cannot_write, write_json, write_whole
from crowdrt.pipeline.comparison.entrants import Entrant, entrants_of, origin_of, teacher_of
from crowdrt.pipeline.comparison.forms import (
    EAGER,
    FP32,
    Form,
    forms_of,
    lost_seeds,
    photographs_of,
)
from crowdrt.pipeline.comparison.protocol import SWEEP, protocol_of
from crowdrt.pipeline.comparison.rows import read_object
from crowdrt.pipeline.measuring import eager_contender, engine_contender, race_photograph
from crowdrt.pipeline.races import race_once
from crowdrt.pipeline.stages import engine_folder

ROWS, RACES = "compression.jsonl", "race.jsonl"


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """What the command line says beside the sweep."""

    data: Path
    size: Size = (576, 864)
    teacher: Path | None = None  # weights; None: those that the project ships for the recipes'
    test: str | None = None
    seconds: float = 120.0  # of the race
    num_threads: int = 0
    store: Path | None = None
    gpu_records: Sequence[Path] = ()
    fresh: bool = False  # time again


def compare_stage(sweep: Path, out: Path, options: CompareOptions) -> list[Judged]:
    """Compare a sweep's rows and write the table, its records and its plot; returns the rows.

    Args:
        sweep: the folder that `crowdrt sweep` wrote.
        out: keeps networks, counts, races and the results; a second call does what is missing.
        options: photographs, size, teacher, threads.

    Raises:
        BenchmarkError: there is no sweep, nothing in it, or other photographs.
        RecipeError: the named teacher has not taught it.
    """
    entrants, test = entrants_of(sweep, options.test)
    check_folder(out)
    check_photographs(sweep, options.data)
    photos = photographs_of(options.data, test)
    teacher = teacher_of(sweep, options.teacher)
    everyone = [*([teacher] if teacher else []), *entrants]
    if teacher is None:
        say("no row names a teacher whose weights are here: none is compared")
    kept = {"store": options.store, "num_threads": options.num_threads}
    forms = [
        form
        for entrant in everyone
        for form in forms_of(entrant, photos, out / "networks", **kept)  # type: ignore[arg-type]
    ]
    measured = time_forms(forms, teacher, out / RACES, options)
    gpu = [row for path in options.gpu_records for row in read_records(path)]
    rows = [row_of(form, test, len(photos.test), options.size) for form in forms]
    rows += [
        replace(row, form=EAGER, file_bytes=None)  # it counts as the file that was proven by it
        for row in rows
        if (row.method, row.form) == (TEACHER, FP32)
    ]
    judged = judge(ordered([timed(row, measured.get(row.label), gpu) for row in rows]))
    write_results(judged, out)
    return judged


def check_folder(out: Path) -> None:
    """Refuse a folder that cannot be written to before minutes of work, not after them."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(out, error) from error


def check_photographs(sweep: Path, data: Path) -> None:
    """Refuse photographs that the sweep was not done with.

    Raises:
        BenchmarkError: they are others.
    """
    known = read_object(sweep / SWEEP)
    if protocol_of(data, steps=None, teacher=None).data != known.get("data"):
        raise BenchmarkError(
            f"{data} holds other photographs than {sweep} was done with",
            fix="name the folder that crowdrt sweep was given: --data DIR",
        )


def time_forms(
    forms: Sequence[Form], teacher: Entrant | None, records: Path, options: CompareOptions
) -> Mapping[str, Measurement]:
    """Race every form's file, and the teacher in eager PyTorch, or find exactly that recorded."""
    folders: list[Path] = []
    contenders: list[Contender] = []
    threads = options.num_threads
    for form in forms:
        if (file := form.timed_file) is not None:
            found = engine_contender(file.path, options.store, threads, [options.size])
            contenders.append(replace(found, name=form.label))
            folders.append(engine_folder(file.path, options.store))
    if teacher is not None:
        eager = eager_contender(origin_of(teacher.networks[0]), threads)
        contenders.append(replace(eager, name=f"{TEACHER} {EAGER}"))
    if not contenders:
        return {}
    config = RaceConfig(num_threads=threads, budget_s=options.seconds)
    image = race_photograph(options.size)
    measured = race_once(contenders, folders, image, records, config, fresh=options.fresh)
    return {row.name: row for row in measured}


def row_of(form: Form, test: str, num_images: int, size: Size) -> CompressionRow:
    """Return everything that is known of one form but its time."""
    entrant, file = form.entrant, form.timed_file
    errors = errors_of(form)
    first = entrant.networks[0].record if entrant.networks else {}
    minutes = [n.record["wall_s"] / 60 for n in entrant.networks if "wall_s" in n.record]
    cost = cost_of(form, size)
    return CompressionRow(
        method=entrant.method,
        kind=entrant.kind,
        form=form.name,
        recipe=entrant.recipe,
        start=entrant.start,
        network=str(first.get("network", "")),
        width=str(first.get("width", "")),
        test=test,
        num_images=num_images,
        seeds=tuple(errors),
        mae=tuple(mae for mae, _ in errors.values()),
        rmse=tuple(rmse for _, rmse in errors.values()),
        lost_seeds=lost_seeds(form),
        steps=first.get("steps"),
        crops=first.get("crops"),
        minutes=fmean(minutes) if minutes else None,
        search=search_of(first),
        params=cost.params if cost else None,
        macs=cost.macs if cost else None,
        file_bytes=file.path.stat().st_size if file else None,
        size=size,
        failure=failure_of(form, errors),
    )


def errors_of(form: Form) -> dict[int, tuple[float, float]]:
    """Return MAE and RMSE by seed: as the engine counted, else as PyTorch did after training.

    An FP32 file is proven to count as PyTorch does, and is not counted once more; where the proof
    failed, the seed is lost.
    """
    if form.counts or form.name != FP32:
        return {seed: (found.mae, found.rmse) for seed, found in form.counts.items()}
    return {
        network.seed: (network.record["mae"], network.record["rmse"])
        for network in form.entrant.networks
        if "mae" in network.record and network.seed not in form.lost
    }


def failure_of(form: Form, errors: Mapping[int, tuple[float, float]]) -> str:
    """Return why a form is not to be used: nothing came of it, or it counts as it never learned."""
    if not form.files:
        reasons = list(lost_seeds(form).values())
        return reasons[0] if reasons else "its weights lie on another machine"
    if not errors:
        return next(iter(form.lost.values()))
    if not form.entrant.quantized:
        return ""
    simulated = {n.seed: n.record["mae"] for n in form.entrant.networks}
    gate = default_gates()["int8"].mae_increase
    worst = max(abs(mae - simulated[seed]) / simulated[seed] for seed, (mae, _) in errors.items())
    if worst <= gate:
        return ""
    return f"the engine's MAE is {worst:.1%} off what training simulated ({gate:.0%} is tolerated)"


def search_of(record: Mapping[str, Any]) -> str:
    """Return what was searched, and what the search cost."""
    search = record.get("search")
    if not search:
        return ""
    values = ", ".join(search["values"])
    return (
        f"{search['setting']} of {values} by {search['steps']:,} steps each, "
        f"{search['seconds'] / 60:.1f} min in all, took {search['winner']}"
    )


def cost_of(form: Form, size: Size) -> Complexity | None:
    """Return parameters and MACs of the network that is timed."""
    network = form.timed or next(iter(form.entrant.here), None)
    return complexity_of_weights(network.weights, size) if network and network.weights else None


def timed(
    row: CompressionRow, found: Measurement | None, gpu: Sequence[Measurement]
) -> CompressionRow:
    """Return the row with its time on this CPU, and on a GPU where a record is of its file."""
    if found is None:
        return row
    own = [each for each in gpu if each.sha256 == found.sha256 and each.compute_ms]
    run = bool(found.samples_ms) and not has_failed(found.verdict)
    return replace(
        row,
        engine=found.engine,
        engine_version=found.engine_version,
        num_threads=found.num_threads,
        median_ms=found.median_ms if run else None,
        p90_ms=found.percentile_ms(90) if run else None,
        num_samples=len(found.samples_ms),
        gpu=str(own[-1].machine.get("gpu", "")) if own else "",
        gpu_ms=median(own[-1].compute_ms) if own else None,
        peak_mib=found.peak_mib if run else None,
        timing=found.verdict,
        run_id=found.run_id,
        machine=str(found.machine.get("cpu", "")),
        sha256=found.sha256,
    )


def write_results(judged: Sequence[Judged], out: Path) -> None:
    """Write the rows, the table in three formats, and the plot."""
    document = render.as_document(judged)
    contents: dict[str, bytes | None] = {
        ROWS: "".join(row_line(each.row) + "\n" for each in judged).encode(),
        "compare.md": render.markdown(judged).encode(),
        "compare.csv": render.as_csv(judged).encode(),
        "compare.png": plot.compression_plot(judged),
    }
    for name, content in contents.items():
        if content is not None:
            with write_whole(out / name) as temporary:
                temporary.write_bytes(content)
    write_json(out / "compare.json", document)
