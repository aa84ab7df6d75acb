"""What enters a comparison: the networks of a sweep, and their teacher, in the forms that ship."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from crowdrt.benchmarks.tables.compression.printed import TEACHER
from crowdrt.console import say
from crowdrt.contracts import Recipe
from crowdrt.errors import BenchmarkError, RecipeError
from crowdrt.manifest import sha256_file
from crowdrt.pipeline.comparison.gathering import RECORDS
from crowdrt.pipeline.comparison.methods import method_of
from crowdrt.pipeline.comparison.protocol import SWEEP
from crowdrt.pipeline.comparison.rows import (
    DONE,
    FAILED,
    WEIGHTS,
    finished_in,
    read_object,
    settings_of,
)
from crowdrt.pipeline.networks import Origin, shipped_weights
from crowdrt.recipes import RECIPES, recipe_named
from crowdrt.training.metrics import read_objects

Record = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Network:
    """One trained network of an entrant, with what was recorded of it."""

    seed: int
    weights: Path | None  # None: a merged record whose weights lie on another machine
    record: Record


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A recipe's networks, one per seed, or the teacher."""

    recipe: str
    method: str
    kind: str
    networks: Sequence[Network]
    start: str = ""  # the recipe whose weights were gone on with
    lost: Mapping[str, str] = field(default_factory=dict)  # seed -> why it failed

    @property
    def here(self) -> list[Network]:
        """The networks whose weights lie here."""
        return [each for each in self.networks if each.weights is not None]

    @property
    def quantized(self) -> bool:
        """Whether it learned in simulated INT8, and ships in nothing else."""
        return "quantization" in self.kind.split(" + ")

    @property
    def declared(self) -> Recipe | None:
        """The project's recipe of its name."""
        return recipe_of(self.recipe)


def recipe_of(name: str) -> Recipe | None:
    """Return the project's recipe of a name, without settings of the command line behind it."""
    first = name.partition(" with ")[0]
    return next((recipe for recipe in RECIPES if recipe.name == first), None)


def origin_of(network: Network) -> Origin:
    """Return a network with its weights."""
    record = network.record
    return Origin(
        network=record["network"], width=Fraction(record["width"]), weights=network.weights
    )


def entrants_of(sweep: Path, test: str | None) -> tuple[list[Entrant], str]:
    """Return a sweep's entrants and the test set that they are compared on.

    Raises:
        BenchmarkError: there is no sweep, nothing in it, or no record of that test.
    """
    if not (sweep / SWEEP).is_file():
        raise BenchmarkError(
            f"{sweep} is no sweep: there is no {SWEEP}",
            fix=f"make one: crowdrt sweep RECIPE... --data DIR -o {shlex.quote(str(sweep))}",
        )
    records = read_objects(sweep / RECORDS)
    chosen = test_of(records, test, sweep)
    names = dict.fromkeys(record["recipe"] for record in records)
    failed = failures(sweep)
    found = [entrant(sweep, name, records, chosen, failed.pop(name, ())) for name in names]
    found += [entrant(sweep, name, records, chosen, rows) for name, rows in failed.items()]
    return disambiguated(found), chosen


def test_of(records: Sequence[Record], test: str | None, sweep: Path) -> str:
    """Return the test set to compare on: the one that was asked for, or the only one."""
    tests: list[str] = sorted({record["test"] for record in records})
    if not tests:
        raise BenchmarkError(
            f"no row of {sweep} is finished, so there is nothing to compare",
            fix=f"finish some: crowdrt sweep RECIPE... --data DIR -o {shlex.quote(str(sweep))}",
        )
    if test is None and len(tests) == 1:
        return tests[0]
    if test is None or test not in tests:
        asked = "several test sets" if test is None else f"no record of {test!r}"
        raise BenchmarkError(
            f"{sweep} has {asked}: {', '.join(tests)}", fix=f"choose one: --test {tests[0]!r}"
        )
    return test


def failures(sweep: Path) -> dict[str, list[dict[str, Any]]]:
    """Return what is known of rows that failed, by recipe; those finished later did not."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(sweep.glob(f"*/*/{FAILED}")):
        if not (path.parent / DONE).is_file() and "recipe" in (why := read_object(path)):
            found.setdefault(why["recipe"], []).append(why)
    return found


def entrant(
    sweep: Path,
    recipe: str,
    records: Sequence[Record],
    test: str,
    failed: Sequence[Mapping[str, Any]],
) -> Entrant:
    """Return a recipe's networks: of a seed that two machines trained, the one that lies here."""
    finished = {
        found["weights_sha256"]: (path.parent / WEIGHTS, found)
        for path in sorted(sweep.glob(f"*/*/{DONE}"))
        if (found := finished_in(path.parent)) and found["recipe"] == recipe
    }
    by_seed: dict[int, Network] = {}
    for record in records:
        if (record["recipe"], record["test"]) == (recipe, test):
            path, _ = finished.get(record["weights_sha256"], (None, None))
            if path is not None or record["seed"] not in by_seed:
                network = Network(seed=record["seed"], weights=path, record=record)
                by_seed[record["seed"]] = network
    rows = [*(row for _, row in finished.values()), *failed]
    settings = next((row["settings"] for row in rows if "settings" in row), None)
    if settings is None and (known := recipe_of(recipe)):
        settings = settings_of(known)
    method, kind = (recipe, "unknown") if settings is None else method_of(settings)
    lost = {str(why["seed"]): str(why["problem"]) for why in failed}
    networks = [by_seed[seed] for seed in sorted(by_seed)]
    return Entrant(
        recipe=recipe,
        method=method,
        kind=kind,
        networks=networks,
        start=next(starts_in(settings or {}), ""),
        lost=lost,
    )


def disambiguated(entrants: Sequence[Entrant]) -> list[Entrant]:
    """Return the entrants; where two have one method, each with its recipe behind it."""
    methods = [each.method for each in entrants]
    return [
        replace(each, method=f"{each.method} ({each.recipe})")
        if methods.count(each.method) > 1
        else each
        for each in entrants
    ]


def teacher_of(sweep: Path, path: Path | None) -> Entrant | None:
    """Return the teacher of a sweep's rows: the weights that taught, or that were gone on with.

    Args:
        sweep: its folder.
        path: the weights; None: those that the project ships for the recipe that rows name.

    Raises:
        RecipeError: the weights are not those that taught.
    """
    rows = [read_object(done) for done in sorted(sweep.glob(f"*/*/{DONE}"))]
    taught = {
        sha256
        for row in rows
        for record in row.get("records", [])
        if (sha256 := record.get("teacher_sha256"))
    }
    names = [name for row in rows for name in teachers_in(row.get("settings", {}))]
    shipped = (found for name in names if (found := shipped_weights(recipe_named(name))))
    weights = path or next(shipped, None)
    if weights is None:
        return None
    if not taught or sha256_file(weights) in taught:
        return named_teacher(weights, names)
    if path is None:
        say(f"{weights.name} has not taught the rows of {sweep}; name who did: --teacher FILE")
        return None
    raise RecipeError(
        f"{weights} has not taught the rows of {sweep}",
        fix="name the weights that were given to crowdrt sweep --teacher",
    )


def teachers_in(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield the recipes whose weights taught a row, or that it went on with."""
    for part in ("transfer", "distillation"):
        if found := (settings.get(part) or {}).get("teacher"):
            yield found
    yield from starts_in(settings)


def starts_in(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield the recipes whose weights a row went on with."""
    for part in ("pruning", "quantization"):
        if found := (settings.get(part) or {}).get("start"):
            yield found


def named_teacher(weights: Path, names: Sequence[str]) -> Entrant:
    """Return the teacher, of whose training nothing is recorded here."""
    from crowdrt.models.weights_info import describe_weights

    info = describe_weights(weights)
    like = ((name, recipe_named(name)) for name in names)  # whose INT8 settings it has
    recipe = next(
        (name for name, own in like if (own.network, own.width) == (info.network, info.width)),
        weights.name,
    )
    record = {"network": info.network, "width": str(info.width), "seed": 0}
    network = Network(seed=0, weights=weights, record=record)
    return Entrant(recipe=recipe, method=TEACHER, kind=TEACHER, networks=[network])
