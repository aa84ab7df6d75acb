"""A sweep: recipes by seeds, trained and tested; resumed, and shared between processes."""

import contextlib
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from crowdrt.console import say
from crowdrt.contracts import Recipe
from crowdrt.entry import explained, stopped
from crowdrt.errors import MissingDependencyError, RecipeError, TrainingError
from crowdrt.manifest import read_manifest, sha256_file, write_json
from crowdrt.pipeline.comparison.gathering import gather
from crowdrt.pipeline.comparison.protocol import Protocol, keep_to, protocol_of
from crowdrt.pipeline.comparison.rows import (
    DONE,
    FAILED,
    WEIGHTS,
    Row,
    read_row,
    recipe_folder,
    settings_of,
)
from crowdrt.pipeline.comparison.searching import FOUND, SCORE, SEARCHED, Search, searched
from crowdrt.pipeline.learning import (
    TrainOptions,
    start_of,
    teacher_of,
    train_stage,
    with_options,
)
from crowdrt.pipeline.locks import lock
from crowdrt.pipeline.networks import shipped_weights
from crowdrt.pipeline.trained import record_stage
from crowdrt.recipes import recipe_named

POLL_S = 2.0  # between looks at rows that other processes train


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """What the command line says beside the recipes."""

    data: Path
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int | None = None
    settings: tuple[str, ...] = ()  # FIELD=VALUE, of every recipe
    teacher: Path | None = None
    search: Search | None = None

    @property
    def training(self) -> TrainOptions:
        """What every training is given."""
        return TrainOptions(steps=self.steps, settings=self.settings, teacher=self.teacher)


@dataclass(frozen=True, kw_only=True)
class Swept:
    """What a sweep left."""

    folder: Path
    rows: Sequence[Row]
    records: Sequence[dict[str, Any]]  # of all rows that the folder knows

    @property
    def failed(self) -> list[Row]:
        """The rows that could not be finished, or whose finished one is not what was asked for."""
        return [row for row in self.rows if row.failure or not row.finished]

    def check(self) -> None:
        """Raise TrainingError where a row failed, naming each."""
        if not (failed := self.failed):
            return
        why = "; ".join(f"{row.label}: {row.failure.get('problem', 'unknown')}" for row in failed)
        raise TrainingError(
            f"{len(failed)} of {len(self.rows)} rows failed: {why}",
            fix=f"mend what {failed[0].folder / FAILED} names, then give the same command again: "
            "finished rows are kept",
        )


def planned(recipes: Sequence[Recipe], folder: Path, options: SweepOptions) -> list[Row]:
    """Return every recipe with the first seed, then with the second: a table is early whole.

    Raises:
        RecipeError: there is none, or one that draws boxes.
    """
    if not recipes or not options.seeds:
        raise RecipeError(
            "there is nothing to sweep over",
            fix="name recipes: crowdrt sweep skt-3-none-cpu skt-3-cosine-dense-fsp-cpu "
            "--data DIR -o DIR",
        )
    for recipe in recipes:
        if recipe.training.assignment is not None:
            raise RecipeError(
                f"{recipe.name} learns to draw boxes; a sweep compares counts",
                fix="leave it out; see what counts: crowdrt recipes",
            )
    rows = [
        Row(recipe=with_options(recipe, replace(options.training, seed=seed)), sweep=folder)
        for seed in options.seeds
        for recipe in recipes
    ]
    return list({row.folder: row for row in rows}.values())


def sweep_stage(recipes: Sequence[Recipe], folder: Path, options: SweepOptions) -> Swept:
    """Train and test every recipe with every seed in `folder/RECIPE/SEED`.

    Finished rows are kept. A row that fails leaves `error.json`, and the others go on; the next
    call tries it again. Several processes share a folder, and each row is one's alone.

    Raises:
        RecipeError: the recipes make no sweep.
        TrainingError: the folder is of another protocol.
        BenchmarkError: a record that was merged into it is damaged.
    """
    rows = planned(recipes, folder, options)
    protocol = protocol_of(options.data, steps=options.steps, teacher=options.teacher)
    keep_to(protocol, folder)
    gather(folder)  # what is damaged is found before hours of training
    Sweep(rows, folder, options, protocol).run()
    return Swept(folder=folder, rows=rows, records=gather(folder))


class Sweep:
    """A sweep as one process does its part of it."""

    def __init__(
        self, rows: Sequence[Row], folder: Path, options: SweepOptions, protocol: Protocol
    ) -> None:
        self.rows, self.folder, self.options, self.protocol = rows, folder, options, protocol
        self.settled: set[Path] = set()
        self.elsewhere: set[Path] = set()  # rows that other processes had at the last look
        self.old_failures = {row.folder: row.failure for row in rows}  # are tried again

    def run(self) -> None:
        """Go through the rows until all are finished or failed, here or elsewhere."""
        waited = False
        while waiting := [row for row in self.rows if row.folder not in self.settled]:
            settled = [self.attempt(row) for row in waiting]
            if not any(settled):
                if not waited:
                    say(f"waiting for other processes: {', '.join(row.label for row in waiting)}")
                waited = True
                time.sleep(POLL_S)

    def attempt(self, row: Row) -> bool:
        """Settle a row; False where another process is at it, or at its recipe's search."""
        with lock(row.lock_path) as mine:
            done = mine and (self.failed_elsewhere(row) or self.settle(row))
        (self.settled if done else self.elsewhere).add(row.folder)
        self.elsewhere -= self.settled
        return done

    def failed_elsewhere(self, row: Row) -> bool:
        """Say whether another process has tried the row since this one began."""
        return bool(row.failure) and row.failure != self.old_failures[row.folder]

    def settle(self, row: Row) -> bool:
        """Finish a row or leave why it failed; False where its recipe is searched elsewhere."""
        try:
            if not self.finish(row):
                return False
        except Exception as error:
            if stopped(error) or isinstance(error, ImportError | MissingDependencyError):
                raise  # what is not installed is no row's failure
            about = {
                "recipe": row.recipe.name,
                "seed": row.seed,
                "settings": settings_of(row.recipe),
            }
            write_json(row.folder / FAILED, about | described(error))
            say(f"{row.label} failed: {row.failure['problem']}")
            return True
        (row.folder / FAILED).unlink(missing_ok=True)
        return True

    def finish(self, row: Row) -> bool:
        """Search, train and test a row as far as that is to be done; False where it cannot yet."""
        first = replace(row, recipe=with_seed(row.recipe, self.options.seeds[0]))
        if self.starts_later(row) or (self.is_searched(row) and self.starts_later(first)):
            return False
        with self.search_lock(row) as free:
            if not free:
                return False
            options = self.training(first)
            recipe, search = searched(
                first, self.options.search, data=self.options.data, options=options
            )
        chosen = replace(row, recipe=with_seed(recipe, row.seed))
        if found := chosen.finished:
            chosen.check_settings(found)
            chosen.check_origins(found, origins(chosen.recipe, self.training(chosen)))
        else:
            say(f"row {self.place(row)}: {row.label}; {self.outlook()}")
            self.train(chosen, search)
        return True

    def start_of(self, row: Row) -> Row | None:
        """Return the row of this sweep whose weights a row goes on with: of its own seed.

        None where a recipe begins anew, or with weights that the project ships. `--set` is meant
        for who goes on, and the start may not even have such a setting.
        """
        name = row.recipe.training.start
        if name is None or shipped_weights(recipe_named(name)) is not None:
            return None
        options = replace(self.options.training, seed=row.seed, settings=())
        return replace(row, recipe=with_options(recipe_named(name), options))

    def starts_later(self, row: Row) -> bool:
        """Say whether the row that it goes on with is still to be trained, here or elsewhere.

        Raises:
            TrainingError: it never will be, and the row is not finished either.
        """
        start = self.start_of(row)
        if start is None or start.finished:
            return False
        planned_too = start.folder in {each.folder for each in self.rows}
        if planned_too and start.folder not in self.settled:
            return True
        with lock(start.lock_path) as free:
            if not free:
                return True  # by another process, which may have been given other recipes
            if start.finished or row.finished:
                return False
        why = "failed" if planned_too else "is no row of this sweep"
        raise TrainingError(
            f"{row.label} goes on with {start.label}, which {why}",
            fix=f"finish that one first: crowdrt sweep {start.recipe.name} --seeds {start.seed} "
            f"--data DIR -o {self.folder}",
        )

    def training(self, row: Row) -> TrainOptions:
        """Return what a row's training is given: the teacher, and the weights it goes on with."""
        start = self.start_of(row)
        weights = start.folder / WEIGHTS if start and start.finished else None
        return replace(self.options.training, pretrained=weights)

    def is_searched(self, row: Row) -> bool:
        """Say whether a row's recipe is still to be searched."""
        found = recipe_folder(self.folder, row.recipe) / FOUND
        return self.options.search is not None and not found.is_file()

    def search_lock(self, row: Row) -> contextlib.AbstractContextManager[bool]:
        """Lock a recipe's search where there is one to be done."""
        if not self.is_searched(row):
            return contextlib.nullcontext(True)
        return lock(self.folder / ".locks" / f"{row.folder.parent.name}.search")

    def train(self, row: Row, search: Mapping[str, Any] | None) -> None:
        """Train and test a row; `row.json` says that both are done."""
        data, options = self.options.data, self.training(row)
        artifact = train_stage(row.recipe, data=data, out=row.folder, options=options)
        assert artifact is not None  # one device: nobody else leads
        began = time.monotonic()
        records = record_stage(row.recipe, artifact, data=data, teacher=options.teacher)
        manifest = read_manifest(artifact.path) or {}
        more = {
            "protocol": self.protocol.identity,
            SCORE: manifest.get("facts", {}).get(SCORE),
            "start_sha256": manifest.get("made_from", {}).get("pretrained"),
            "search": None if search is None else {n: search[n] for n in SEARCHED},
        }
        document = {
            "recipe": row.recipe.name,
            "seed": row.seed,
            "settings": settings_of(row.recipe),
            "weights_sha256": artifact.sha256,
            # all processes that a resumed training took, not the last one alone
            "seconds": round(records[0]["wall_s"] + time.monotonic() - began, 1),
            "records": [record | more for record in records],
        }
        write_json(row.folder / DONE, document)
        gather(self.folder)

    def place(self, row: Row) -> str:
        """Return `4 of 12`."""
        return f"{self.rows.index(row) + 1} of {len(self.rows)}"

    def outlook(self) -> str:
        """Return how many rows are done, and how long the others will take at that pace."""
        done = [found for row in self.rows if (found := read_row(row.folder))]
        failed = sum(bool(row.failure) for row in self.rows if row.folder in self.settled)
        said = f"{len(done)} done, {failed} failed, {len(self.elsewhere)} elsewhere"
        if not done:
            return f"{said}; time left is known after the first"
        of_recipe: dict[str, list[float]] = {}
        for found in done:
            of_recipe.setdefault(found["recipe"], []).append(float(found["seconds"]))
        mean = fmean(seconds for each in of_recipe.values() for seconds in each)
        names = {(found["recipe"], found["seed"]) for found in done}
        open_rows = [
            row
            for row in self.rows
            if (row.recipe.name, row.seed) not in names and row.folder not in self.settled
        ]
        seconds = sum(fmean(of_recipe.get(row.recipe.name, [mean])) for row in open_rows)
        return f"{said}; about {duration(seconds / (1 + len(self.elsewhere)))} left"


def origins(recipe: Recipe, options: TrainOptions) -> dict[str, str]:
    """Return the SHA-256 of what would teach a recipe, and of what it would go on with, today.

    By their names in a record; what is not there (any more) is left out.
    """
    found = {}
    for name, asked, path in (
        ("teacher_sha256", teacher_of, options.teacher),
        ("start_sha256", start_of, options.pretrained),
    ):
        with contextlib.suppress(RecipeError):
            if (weights := asked(recipe, path)) is not None and weights.is_file():
                found[name] = sha256_file(weights)
    return found


def with_seed(recipe: Recipe, seed: int) -> Recipe:
    """Return the recipe with another seed."""
    return replace(recipe, training=replace(recipe.training, seed=seed))


def described(error: Exception) -> dict[str, Any]:
    """Return a failure as `error.json` holds it; a mistake of our own with its traceback."""
    if why := explained(error):
        return {"problem": why.problem, "fix": why.fix, "time": time.time()}
    lines = traceback.format_exception(error)
    return {
        "problem": f"{type(error).__name__}: {error}",
        "fix": "this is a mistake of crowdrt: report it with the traceback in this file",
        "time": time.time(),
        "traceback": "".join(lines),
    }


def duration(seconds: float) -> str:
    """Return `2 h 10 min`."""
    minutes = max(1, round(seconds / 60))
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
