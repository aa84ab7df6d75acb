"""One row of a sweep: a recipe and a seed, its folder, and what it was when it was finished."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args, get_type_hints

from crowdrt.benchmarks.tables.trained.definition import ERRORS
from crowdrt.benchmarks.tables.trained.records import record_of
from crowdrt.contracts import Recipe
from crowdrt.errors import TrainingError
from crowdrt.learning import TrainingConfig
from crowdrt.manifest import read_json, sha256_file

DONE, FAILED, WEIGHTS = "row.json", "error.json", "weights.safetensors"
KEYS: Mapping[str, type | tuple[type, ...]] = {  # of row.json
    "recipe": str,
    "seed": int,
    "settings": dict,
    "weights_sha256": str,
    "seconds": (int, float),
    "records": list,
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A recipe, with the seed and the steps that it is trained with, below the sweep's folder."""

    recipe: Recipe
    sweep: Path

    @property
    def seed(self) -> int:
        """The seed."""
        return self.recipe.training.seed

    @property
    def label(self) -> str:
        """Return `skt-3-none-cpu seed 0`."""
        return f"{self.recipe.name} seed {self.seed}"

    @cached_property
    def folder(self) -> Path:
        """Where its weights and its records lie."""
        return recipe_folder(self.sweep, self.recipe) / str(self.seed)

    @property
    def failure(self) -> Mapping[str, Any]:
        """What `error.json` says of the row's last failure; empty where there is none."""
        return read_object(self.folder / FAILED)

    @property
    def lock_path(self) -> Path:
        """Whose lock whoever trains it holds; beside the rows, so that a row can be removed."""
        return self.sweep / ".locks" / f"{self.folder.parent.name}.{self.seed}"

    @property
    def finished(self) -> Mapping[str, Any] | None:
        """What `row.json` says of the finished row; None where it is not, or is damaged."""
        return finished_in(self.folder)

    def check_settings(self, found: Mapping[str, Any]) -> None:
        """Refuse a finished row of other settings, which must be neither kept nor lost.

        Raises:
            TrainingError: it is one.
        """
        if other := list(differences(found.get("settings"), settings_of(self.recipe))):
            raise TrainingError(
                f"{self.folder} holds a finished row of other settings: {'; '.join(other)}",
                fix=f"take another folder for this sweep: -o DIR; or drop the row: "
                f"rm -r '{self.folder}'",
            )

    def check_origins(self, found: Mapping[str, Any], now: Mapping[str, str]) -> None:
        """Refuse a finished row that other weights have taught, or that went on with others.

        Args:
            found: the finished row.
            now: the SHA-256 of the files of today, by their names in a record.

        Raises:
            TrainingError: it is one.
        """
        before = found["records"][0]
        other = [
            f"{name} {before[name]}, now {sha256}"
            for name, sha256 in now.items()
            if before.get(name) not in (None, sha256)
        ]
        if other:
            raise TrainingError(
                f"{self.folder} holds a finished row of other weights: {'; '.join(other)}",
                fix=f"put those back; or drop the row, to train it with these: "
                f"rm -r '{self.folder}'",
            )


def finished_in(folder: Path) -> dict[str, Any] | None:
    """Return what a folder's finished row was; None where it is unfinished, or damaged."""
    found, weights = read_row(folder), folder / WEIGHTS
    if not found or not weights.is_file():
        return None
    return found if sha256_file(weights) == found.get("weights_sha256") else None


def read_row(folder: Path) -> dict[str, Any]:
    """Return what `row.json` says, whatever became of the weights; an empty one if it lacks any."""
    found = read_object(folder / DONE)
    whole = all(isinstance(found.get(name), kind) for name, kind in KEYS.items())
    records = found["records"] if whole else []
    return found if records and all(map(is_counted, records)) else {}


def is_counted(record: object) -> bool:
    """Say whether something is the whole record of a network that counts."""
    if not isinstance(record, dict):
        return False
    try:
        return set(ERRORS) <= set(record_of(record).metrics)
    except ValueError:
        return False


def recipe_folder(sweep: Path, recipe: Recipe) -> Path:
    """Return the folder of a recipe's seeds; names of changed recipes hold blanks and slashes."""
    return sweep / re.sub(r"[^\w.=,-]+", "_", recipe.name)


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """Return what decides a row, as JSON has it: the network, its width, everything of training."""
    training = json.loads(json.dumps(asdict(recipe.training)))
    return {"network": recipe.network, "width": str(recipe.width), **training}


def differences(before: object, now: object, name: str = "") -> Iterator[str]:
    """Yield the settings that differ: `learning_rate 0.001, now 0.0003`.

    A setting that the project did not have yet when the row was trained is no difference as long
    as it has its default: a sweep outlives an update.
    """
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys((*before, *now)):
            inner = f"{name}.{key}" if name else key
            yield from differences(before.get(key, MISSING), now.get(key, MISSING), inner)
    elif before is MISSING:
        if now != DEFAULTS.get(name, MISSING):
            yield f"{name} now {now}"
    elif now is MISSING:
        yield f"{name} {before}, no setting any more"
    elif before != now:
        yield f"{name} {before}, now {now}"


def defaults() -> dict[str, Any]:
    """Return what every setting is that nothing was said of; of parts by both names."""
    found = asdict(TrainingConfig())
    for name, hint in get_type_hints(TrainingConfig).items():
        for part in filter(is_dataclass, (hint, *get_args(hint))):
            found |= {f"{name}.{each.name}": each.default for each in fields(part)}
    said = {name: value for name, value in found.items() if value is not MISSING}
    whole: dict[str, Any] = json.loads(json.dumps(said))
    return whole


DEFAULTS: Mapping[str, Any] = defaults()


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one where there is none that can be read."""
    return read_json(path) or {}
