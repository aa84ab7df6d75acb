"""Which engines race which, and the papers' tables filled from their records."""

import functools
from collections.abc import Sequence
from dataclasses import asdict, replace
from fractions import Fraction
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from crowdrt.benchmarks.lines import check_appendable
from crowdrt.benchmarks.tables.printed import SIZES
from crowdrt.benchmarks.tables.table import Complexity, Operations, TableRow, newest, table_rows
from crowdrt.benchmarks.timing.race import Contender, RaceConfig, race
from crowdrt.benchmarks.timing.records import append_records, read_records
from crowdrt.benchmarks.timing.statistics import (
    TAILS,
    is_estimate,
    median_interval,
    tail,
    uncertainty,
    variation,
)
from crowdrt.console import say, show_table
from crowdrt.contracts import (
    PRUNED,
    GraphInfo,
    Measurement,
    Recipe,
    Size,
    UInt8Image,
)
from crowdrt.data.synthetic.photographs import PX_PER_PERSON, crowd_photograph, generate
from crowdrt.engines.base import open_engine
from crowdrt.engines.store import DEFAULT_ENGINE, installed_engines, read_built
from crowdrt.engines.torch_eager import Form, can_compile
from crowdrt.errors import BenchmarkError, RecipeError
from crowdrt.manifest import sha256_file
from crowdrt.onnx_file import graph_info
from crowdrt.pipeline.counting import distinct
from crowdrt.pipeline.networks import Origin, eager_opener, shipped_weights
from crowdrt.pipeline.races import race_once
from crowdrt.pipeline.stages import (
    calibrate_stage,
    engine_folder,
    export_stage,
    int8_settings,
    open_any,
)
from crowdrt.recipes import RECIPES

TABLE_NETWORKS = ("csrnet", "bl", "sanet")
STUDENT = Fraction(1, 4)
RACE_PEOPLE = (100, 400)
CALIBRATION_SEED = 21
FULL = Fraction(1)


def race_photograph(size: Size) -> UInt8Image:
    """Return the generated crowd that every contender counts, (3, H, W).

    What is in it hardly matters to the time; a small photograph has room for fewer people.
    """
    room = size[0] * size[1] // PX_PER_PERSON
    fewest, most = (min(people, room) for people in RACE_PEOPLE)
    image, _ = crowd_photograph(3, size=size, people_range=(fewest, most))
    return image


def eager_contender(origin: Origin, num_threads: int) -> Contender:
    """Return the network in eager PyTorch FP32, as the papers timed it."""
    return Contender(
        name=f"{origin.network} {origin.width} pytorch fp32",
        network=origin.network,
        width=str(origin.width),
        engine="pytorch",
        engine_version=metadata.version("torch"),
        precision="fp32",
        open=eager_opener(origin, num_threads),
        sha256=sha256_file(origin.weights) if origin.weights else "",
    )


def formed_contender(origin: Origin, num_threads: int, form: Form) -> Contender:
    """Return the network in a form of PyTorch FP32 that is faster than the papers'."""
    engine = f"pytorch-{form}"
    return replace(
        eager_contender(origin, num_threads),
        name=f"{origin.network} {origin.width} {engine} fp32",
        engine=engine,
        open=eager_opener(origin, num_threads, form),
    )


def engine_contender(
    path: Path,
    store: Path | None,
    num_threads: int,
    sizes: Sequence[Size] = (),
    engine: str = DEFAULT_ENGINE,
) -> Contender:
    """Return a built engine, or an ONNX file that becomes one, that takes all of `sizes`."""
    info = info_of(path, store)
    check_race_sizes(sizes, info)  # before anything is built
    folder = engine_folder(path, store, engine)
    built = read_built(folder)
    return Contender(
        name=f"{info.network} {info.width} {built.engine} {info.precision}",
        network=info.network,
        width=info.width,
        engine=built.engine,
        engine_version=built.engine_version,
        precision=info.precision,
        open=functools.partial(open_engine, folder, num_threads=num_threads),
        sha256=built.sha256 if path.is_dir() else sha256_file(path),
    )


def info_of(path: Path, store: Path | None) -> GraphInfo:
    """Return what is known of a built engine's network, or of an ONNX file's."""
    info = open_any(path, store).info if path.is_dir() else graph_info(path)
    assert info is not None  # an engine of a foreign network is refused when it is opened
    return info


def check_race_sizes(sizes: Sequence[Size], info: GraphInfo) -> None:
    """Refuse a size that the network never sees: it has its own, or photographs are padded."""
    stride = info.preprocessing.stride
    for size in sizes:
        if info.fixed_size not in (None, size):
            raise RecipeError(
                f"{info.network} takes one size and no other, not {shown([size])}",
                fix=f"use --size {shown([info.fixed_size])}",
            )
        if any(side % stride for side in size):
            up = shown([(-(-size[0] // stride) * stride, -(-size[1] // stride) * stride)])
            raise RecipeError(
                f"size {shown([size])} is no multiple of {stride}, to which {info.network} pads "
                "photographs",
                fix=f"use --size {up}",
            )


def profile_engines(
    paths: Sequence[Path],
    sizes: Sequence[Size],
    *,
    seconds: float,
    records: Path | None,
    store: Path | None,
    num_threads: int,
) -> list[Measurement]:
    """Race engines at every size; append the raw samples to `records` where it is given."""
    if records is not None:
        check_appendable(records, read_records)
    different = list(dict.fromkeys(paths))  # an engine named twice is measured once
    contenders = [engine_contender(path, store, num_threads, sizes) for path in different]
    # the file's name alone: records are published, and say nothing of this machine's folders
    names = [f"{p.name}: {c.name}" for p, c in zip(different, contenders, strict=True)]
    named = [replace(c, name=n) for c, n in zip(contenders, distinct(names), strict=True)]
    config = RaceConfig(num_threads=num_threads, budget_s=seconds)
    rows: list[Measurement] = []
    for size in sizes:
        measured = race(named, race_photograph(size), config)
        rows += measured
        if records is not None:
            append_records(records, measured)
    return rows


def as_row(row: Measurement) -> dict[str, Any]:
    """Return a measurement as `--json` prints it, its figures beside the raw samples."""
    samples = row.samples_ms
    interval = median_interval(samples, row.runs_per_visit)
    return asdict(row) | {
        "p50_ms": row.median_ms if samples else None,
        "p50_interval_ms": interval and list(interval),
        **{f"p{q}_ms": tail(samples, q) for q in TAILS},
        "estimates": [f"p{q}_ms" for q in TAILS if is_estimate(len(samples), q)],
        "variation": variation(samples) if samples else None,
    }


def show_measurements(rows: Sequence[Measurement]) -> None:
    """Print the figures to quote, and how far to trust them."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    tails = [f"p{q} ms" for q in TAILS]
    for title in ("engine", "size", "p50 ms", "+-", *tails, "CV", "runs", "peak MiB", "verdict"):
        table.add_column(title, justify="left" if title in ("engine", "verdict") else "right")
    for row in rows:
        table.add_row(
            Text(row.name),
            f"{row.size[0]}x{row.size[1]}",
            *(figures(row) if row.samples_ms else ["-"] * (3 + len(TAILS))),
            str(len(row.samples_ms)),
            f"{row.peak_mib:.0f}",
            Text(row.verdict),
        )
    show_table(table)
    if any(is_estimate(len(row.samples_ms), q) for row in rows for q in TAILS):
        say("~ is an estimate: fewer than ten runs took longer; - where none can be expected to")


def figures(row: Measurement) -> list[str]:
    """Return the median, how far it is known, the tails and the variation, as text."""
    samples = row.samples_ms
    about = uncertainty(samples, row.runs_per_visit)
    tails = {q: tail(samples, q) for q in TAILS}
    return [
        f"{row.median_ms:.1f}",
        "-" if about is None else f"{about:.1%}",
        *(
            "-" if ms is None else f"{'~' * is_estimate(len(samples), q)}{ms:.1f}"
            for q, ms in tails.items()
        ),
        f"{variation(samples):.0%}",
    ]


def paper_table(
    name: str,
    sizes: Sequence[Size],
    *,
    networks: Sequence[str] | None,
    records: Path | None,
    folder: Path,
    seconds: float,
    fresh: bool,
    store: Path | None,
    num_threads: int,
) -> list[TableRow]:
    """Return the rows of a paper's table, measured here or read from `records`.

    Args:
        name: skt-8.
        sizes: which of the table's sizes.
        networks: which networks; None: all that have a full and a 1/4 row.
        records: read these instead of measuring.
        folder: keeps the exported networks and `records.jsonl`, which a second call reuses.
        seconds: measuring time per network and size.
        fresh: measure again even where `folder` holds a record.
        store: where engines are kept.
        num_threads: 0 takes every core.
    """
    wanted = check_table(name, sizes, networks)
    if records is not None:
        return table_of(records, wanted)
    path = folder / "records.jsonl"
    config = RaceConfig(num_threads=num_threads, budget_s=seconds)
    rows: list[Measurement] = []
    for network, size in wanted:
        contenders, folders = family(network, folder, store, num_threads)
        image = race_photograph(size)
        rows += race_once(contenders, folders, image, path, config, fresh=fresh)
    return table_rows(rows, operations_of(rows))


def table_of(records: Path, wanted: Sequence[tuple[str, Size]]) -> list[TableRow]:
    """Return the rows of the (network, size) pairs asked for, as far as `records` holds them."""
    found = [row for row in read_records(records) if (row.network, row.size) in wanted]
    if not found:
        asked = ", ".join(f"{network} at {shown([size])}" for network, size in wanted)
        raise BenchmarkError(
            f"{records} holds no row of {asked}",
            fix=f"measure them: leave out --records, or name one of {shown(SIZES)}",
        )
    return table_rows(newest(found), operations_of(found))


def check_table(
    name: str, sizes: Sequence[Size], networks: Sequence[str] | None
) -> list[tuple[str, Size]]:
    """Return the (network, size) pairs asked for, if the table has them."""
    if name != "skt-8":
        raise RecipeError(f"table {name!r} is unknown", fix="use skt-8: crowdrt table skt-8")
    for network in networks or ():
        if network not in TABLE_NETWORKS:
            raise RecipeError(
                f"{network!r} is not in table {name}", fix=f"use {', '.join(TABLE_NETWORKS)}"
            )
    for size in sizes:
        if size not in SIZES:
            raise RecipeError(
                f"table {name} has no size {shown([size])}",
                fix=f"use {shown(SIZES)}; for others: crowdrt profile ENGINE --size HxW",
            )
    pairs = ((network, size) for size in sizes for network in networks or TABLE_NETWORKS)
    return list(dict.fromkeys(pairs))  # what is asked for twice is raced once


def shown(sizes: Sequence[Size]) -> str:
    """Return sizes as the command line takes them."""
    return ", ".join(f"{height}x{width}" for height, width in sizes)


def family(
    network: str, folder: Path, store: Path | None, num_threads: int
) -> tuple[list[Contender], list[Path]]:
    """Return a network's full form and its 1/4 student, in PyTorch and as engines.

    With the folders of the engines in the store.
    """
    full = Origin(network=network, width=FULL, weights=None)
    student = student_origin(network)
    files = student_files(student, folder)
    contenders = [eager_contender(full, num_threads), eager_contender(student, num_threads)]
    contenders.append(formed_contender(full, num_threads, "channels-last"))
    if can_compile():
        contenders += [formed_contender(each, num_threads, "compiled") for each in (full, student)]
    engines = [(path, engine) for engine in installed_engines() for path in files]
    contenders += [
        engine_contender(path, store, num_threads, engine=engine) for path, engine in engines
    ]
    return contenders, [engine_folder(path, store, engine) for path, engine in engines]


def student_origin(network: str) -> Origin:
    """Return the 1/4 student: the shipped one, else a random one, which is timed the same."""
    recipe = student_recipe(network)
    weights = None if recipe is None else shipped_weights(recipe)
    return Origin(network=network, width=STUDENT, weights=weights)


def student_recipe(network: str) -> Recipe | None:
    """Return the first recipe of a 1/4 student that ships, None where there is none."""
    own = (each for each in RECIPES if (each.network, each.width) == (network, STUDENT))
    return next((each for each in own if shipped_weights(each) is not None), None)


def student_files(student: Origin, folder: Path) -> tuple[Path, Path]:
    """Return the student's FP32 and INT8 ONNX files, made where they are not there.

    A student that ships keeps the layers in float that its recipe names.
    """
    stem = f"{student.network}-{student.width}".replace("/", "-")
    float_path, int8_path = folder / f"{stem}.onnx", folder / f"{stem}.int8.onnx"
    export_stage(student, float_path)
    made = generate(folder / "photographs", num_images=2, seed=CALIBRATION_SEED)
    recipe = student_recipe(student.network)
    config, keep_float = int8_settings(recipe)
    calibrate_stage(float_path, made, int8_path, replace(config, num_images=2), keep_float)
    return float_path, int8_path


def operations_of(rows: Sequence[Measurement]) -> Complexity:
    """Work out what each row costs; needs torch, which only this machine's setup may lack."""
    try:
        from crowdrt.export.complexity import complexity
    except ImportError:
        say("without torch the cost columns stay empty: pip install 'crowdrt[train]'")
        return {}
    found: dict[tuple[str, str, Size], Operations] = {}
    for row in rows:
        key = (row.network, row.width, row.size)
        if key not in found and not row.width.startswith(PRUNED):  # whose cost its file knows
            cost = complexity(row.network, Fraction(row.width), row.size)
            found[key] = Operations(cost.params, cost.macs, cost.paper_flops)
    return found
