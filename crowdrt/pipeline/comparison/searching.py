"""One setting searched per recipe: short runs of one seed, judged on validation alone."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from crowdrt.console import say
from crowdrt.contracts import Recipe
from crowdrt.entry import stopped
from crowdrt.errors import RecipeError, TrainingError
from crowdrt.manifest import read_manifest, write_json
from crowdrt.pipeline.comparison.rows import (
    Row,
    differences,
    read_object,
    recipe_folder,
    settings_of,
)
from crowdrt.pipeline.learning import TrainOptions, train_stage
from crowdrt.recipes.settings import number, with_settings

FOUND = "search.json"
SCORE = "validation_mae"  # of the weights' manifest
SEARCHED = ("setting", "values", "winner", "seed", "steps", "crops", "seconds")  # in a record


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is tried: the values of one setting, each for a share of the steps."""

    setting: str
    values: tuple[str, ...]
    share: float = 0.25

    def __post_init__(self) -> None:
        if self.setting in ("steps", "seed"):
            raise RecipeError(
                f"--search {self.setting} would change the protocol itself",
                fix="search a setting of the method: --search learning_rate=1e-4,3e-4,1e-3",
            )
        if not 0 < self.share <= 1:
            raise RecipeError(
                f"--search-share {self.share:g} is no share of the steps", fix="use one in (0, 1]"
            )


def parse_search(text: str, share: float) -> Search:
    """Read `learning_rate=1e-4,3e-4,1e-3`.

    Raises:
        RecipeError: it is no setting with several values.
    """
    setting, _, values = text.replace(" ", "").partition("=")
    tried = tuple(dict.fromkeys(value for value in values.split(",") if value))
    if len(tried) < 2:
        raise RecipeError(
            f"--search {text!r} leaves nothing to choose from",
            fix="write FIELD=VALUE,VALUE: --search learning_rate=1e-4,3e-4,1e-3",
        )
    return Search(setting=setting, values=tried, share=share)


def with_value(recipe: Recipe, setting: str, value: str) -> Recipe:
    """Return the recipe with a searched value, under its name: its record says what was tried."""
    return replace(with_settings(recipe, [f"{setting}={value}"]), name=recipe.name)


def searched(
    row: Row, search: Search | None, *, data: Path, options: TrainOptions
) -> tuple[Recipe, dict[str, Any] | None]:
    """Return the recipe with the best value, and what was tried; whoever calls holds its lock.

    A search that the sweep's folder knows is not done again, and without `search` it is used.

    Args:
        row: of the recipe, with the seed that is searched by.
        search: what to try; None: what was found before, if anything was.
        data: the photographs.
        options: the teacher.

    Raises:
        TrainingError: another search was done here, or no value could be trained.
    """
    folder = recipe_folder(row.sweep, row.recipe)
    found = search_in(folder)
    if search is None and not found:
        return row.recipe, None
    if not found:
        assert search is not None
        found = try_all(row, search, folder, data=data, options=options)
        write_json(folder / FOUND, found)
    elif search is not None:
        check_same(found, description(row.recipe, search), folder)
    return with_value(row.recipe, found["setting"], found["winner"]), found


def search_in(folder: Path) -> dict[str, Any]:
    """Return what the search in a recipe's folder found; an empty one where none was done.

    Raises:
        TrainingError: its file is damaged.
    """
    found = read_object(path := folder / FOUND)
    if path.is_file() and not found.keys() >= {*SEARCHED}:
        raise TrainingError(
            f"{path} is damaged: it does not say what was searched and found",
            fix=f"drop it and search again: rm '{path}'",
        )
    return found


def description(recipe: Recipe, search: Search) -> dict[str, Any]:
    """Return what decides a search's outcome; the recipe's seed is the one it was done with."""
    own = settings_of(recipe)
    del own["seed"]
    return {"setting": search.setting, "values": list(search.values), "share": search.share} | {
        "recipe": own
    }


def check_same(found: dict[str, Any], wanted: dict[str, Any], folder: Path) -> None:
    """Refuse to take one search for another."""
    before = {name: found.get(name) for name in wanted}
    if other := list(differences(before, wanted)):
        raise TrainingError(
            f"{folder / FOUND} is of another search: {'; '.join(other)}",
            fix="leave --search out to use what it found, or take another folder: -o DIR",
        )


def try_all(
    row: Row, search: Search, folder: Path, *, data: Path, options: TrainOptions
) -> dict[str, Any]:
    """Train each value for its share of the steps and return what came out, the best one named."""
    steps = max(1, round(search.share * row.recipe.training.steps))
    tried = list(trials(row, search, steps, folder, data=data, options=options))
    trained = [each for each in tried if each.get(SCORE) is not None]
    if not trained:
        raise TrainingError(
            f"no value of {search.setting} could be trained: {tried[0]['problem']}",
            fix=str(tried[0]["fix"]),
        )
    best = min(trained, key=lambda each: float(each[SCORE]))
    place = edge(best["value"], search)
    say(f"{row.recipe.name}: {search.setting}={best['value']} validates best{place}")
    return description(row.recipe, search) | {
        "winner": best["value"],
        "seed": row.seed,
        "steps": steps,
        "crops": sum(each["crops"] for each in trained),
        "seconds": round(sum(each.get("seconds", 0.0) for each in tried), 1),
        "tried": tried,
    }


def trials(
    row: Row, search: Search, steps: int, folder: Path, *, data: Path, options: TrainOptions
) -> Iterator[dict[str, Any]]:
    """Yield each value with its validation error and its cost, or with why it failed.

    What is no failure of the value, a full disk or a missing library, ends the search.
    """
    changed = {value: with_value(row.recipe, search.setting, value) for value in search.values}
    for value, each in changed.items():  # a misspelt one was refused before the first is trained
        recipe = replace(each, training=replace(each.training, steps=steps))
        out = folder / "search" / f"{search.setting}={value}".replace("/", "-")
        say(f"{row.recipe.name}: trying {search.setting}={value} for {steps} steps")
        try:
            artifact = train_stage(recipe, data=data, out=out, options=options)
        except (TrainingError, RecipeError) as error:
            if stopped(error):
                raise
            yield {"value": value, "problem": error.problem, "fix": error.fix}
            continue
        assert artifact is not None
        facts = (read_manifest(artifact.path) or {}).get("facts", {})
        yield {
            "value": value,
            SCORE: facts.get(SCORE),
            "seconds": round(float(facts.get("seconds", 0.0)), 1),
            "crops": steps * recipe.training.batch_size,
        }


def edge(winner: str, search: Search) -> str:
    """Return what to say of a winner beyond which nothing was tried; nothing of others."""
    try:
        tried = {value: number(value, float, search.setting) for value in search.values}
    except RecipeError:  # values that are no numbers have no order
        return ""
    if tried[winner] == max(tried.values()):
        return ", the largest value tried: a larger one may do better"
    if tried[winner] == min(tried.values()):
        return ", the smallest value tried: a smaller one may do better"
    return ""
