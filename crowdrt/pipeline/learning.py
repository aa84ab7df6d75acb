"""Training by recipe: which task it is, with which photographs and which teacher."""

from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crowdrt.contracts import Artifact, Recipe
from crowdrt.errors import RecipeError
from crowdrt.pipeline.networks import shipped_weights
from crowdrt.recipes import recipe_named
from crowdrt.recipes.settings import with_settings

if TYPE_CHECKING:
    from crowdrt.training.task import Task


VALIDATIONS = 5  # at least, of a short run


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What the command line says beside the recipe."""

    steps: int | None = None
    seed: int | None = None
    width: Fraction | None = None
    settings: tuple[str, ...] = ()  # FIELD=VALUE of the recipe's training
    devices: int = 1
    accelerator: str = "auto"
    teacher: Path | None = None  # weights; None: those that the project ships for the recipe's
    pretrained: Path | None = None  # weights to begin with, by name


def with_options(recipe: Recipe, options: TrainOptions) -> Recipe:
    """Return the recipe with what the command line changes, which identifies it too."""
    recipe = with_settings(recipe, options.settings)
    named = {"steps": options.steps, "seed": options.seed}
    changes = {name: value for name, value in named.items() if value is not None}
    training = replace(recipe.training, **changes)  # type: ignore[arg-type]
    return replace(recipe, width=options.width or recipe.width, training=training)


def train_stage(
    recipe: Recipe, *, data: Path | None, out: Path, options: TrainOptions = TrainOptions()
) -> Artifact | None:
    """Train a recipe's network; the best one becomes `out/weights.safetensors`."""
    from crowdrt.training.devices import Devices
    from crowdrt.training.loop import train

    task = task_of(recipe, data=data, out=out, options=options)
    devices = Devices(number=options.devices, accelerator=options.accelerator)
    often = min(1000, max(1, task.config.steps // VALIDATIONS))
    return train(task, out, devices=devices, validate_every=often)


def task_of(recipe: Recipe, *, data: Path | None, out: Path, options: TrainOptions) -> "Task[Any]":
    """Return what a recipe trains: by density maps, others' ones, fused gradients, or boxes."""
    from crowdrt.training.counting.sets import training_set
    from crowdrt.training.counting.task import DensityTask
    from crowdrt.training.detection.sets import detection_set
    from crowdrt.training.detection.task import DetectionTask
    from crowdrt.training.distillation.task import distillation_task
    from crowdrt.training.divided.task import DeepCountTask
    from crowdrt.training.transfer.task import TransferTask

    config, pretrained = recipe.training, start_of(recipe, options.pretrained)
    number, synthetic = config.num_synthetic, out / "photographs"
    if config.assignment is not None:
        boxed = detection_set(data, num_synthetic=number, synthetic=synthetic)
        return DetectionTask(*(recipe.network, recipe.width, config, boxed), pretrained=pretrained)
    photographs = training_set(data, num_synthetic=number, synthetic=synthetic)
    about = (recipe.network, recipe.width, config, photographs)
    if config.fusion is not None:
        return DeepCountTask(*about, pretrained=pretrained)
    teacher = teacher_of(recipe, options.teacher)
    if config.distillation is not None:
        return distillation_task(*about, teacher=teacher, pretrained=pretrained)
    if teacher is None:
        return DensityTask(*about, pretrained=pretrained)
    return TransferTask(*about, teacher=teacher, pretrained=pretrained)


def start_of(recipe: Recipe, path: Path | None) -> Path | None:
    """Return the weights to begin with: those that were named, or that the project ships.

    Raises:
        RecipeError: the recipe goes on with trained weights, and there are none.
    """
    named = recipe.training.start
    if path is not None or named is None:
        return path
    found = shipped_weights(recipe_named(named))
    if found is None:
        raise RecipeError(
            f"recipe {recipe.name!r} goes on with {named!r}, whose weights are not shipped",
            fix=f"train it, then name it: crowdrt train {named} --data DIR -o START; "
            f"crowdrt train {recipe.name} --init START/weights.safetensors --data DIR -o OUT",
        )
    return found


def teacher_of(recipe: Recipe, path: Path | None) -> Path | None:
    """Return the weights that teach: those that were named, or that the project ships.

    Returns:
        None for a recipe without a teacher.

    Raises:
        RecipeError: neither is there.
    """
    named = recipe.training.teacher
    if named is None:
        return None
    found = path or shipped_weights(recipe_named(named))
    if found is None:
        raise RecipeError(
            f"recipe {recipe.name!r} learns from {named!r}, whose weights are not shipped",
            fix=f"train it, then name it: crowdrt train {named} --data DIR -o TEACHER; "
            f"crowdrt train {recipe.name} --teacher TEACHER/weights.safetensors --data DIR -o OUT",
        )
    return found
