"""A recipe's training changed on the command line: `learning_rate=3e-4`, `transfer.intra=l2`."""

import math
import types
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from fractions import Fraction
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from crowdrt.contracts import Recipe
from crowdrt.errors import RecipeError

C = TypeVar("C")
OWN_OPTIONS = ("steps", "seed")  # which leave a recipe its name: records tell them apart


def with_settings(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """Return the recipe with some fields of its training changed; its name says which.

    Args:
        recipe: what is changed.
        settings: "FIELD=VALUE" each. A field of a part of the configuration is named by both:
            "transfer.soft_weight=0.5". "none" stands for None, and commas divide several values.

    Raises:
        RecipeError: there is no such field, or the value is none of its values.
    """
    training = recipe.training
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise RecipeError(
                f"--set {setting!r} sets nothing",
                fix="write FIELD=VALUE: --set learning_rate=3e-4",
            )
        if name.strip() in OWN_OPTIONS:
            raise RecipeError(
                f"--set {setting!r}: {name.strip()} has an option of its own",
                fix=f"write --{name.strip()} {text.strip()}",
            )
        training = changed(training, name.strip(), text.strip())
    if training == recipe.training:
        return recipe
    name = f"{recipe.name} with {' '.join(each.replace(' ', '') for each in settings)}"
    return replace(recipe, name=name, training=training)


def changed(config: C, path: str, text: str) -> C:
    """Return a dataclass with one field changed, of itself or, behind a dot, of one of its own."""
    name, _, rest = path.partition(".")
    known = [field.name for field in fields(config)]  # type: ignore[arg-type]
    if name not in known:
        raise RecipeError(
            f"there is no setting {name!r}", fix=f"use one of {', '.join(sorted(known))}"
        )
    now = getattr(config, name)
    if rest and now is None:
        raise RecipeError(
            f"this recipe has no {name}, so {path} cannot be set",
            fix="choose a recipe that has one: crowdrt recipes",
        )
    if bool(rest) != is_dataclass(now):
        inner = ", ".join(each.name for each in fields(now)) if is_dataclass(now) else ""
        raise RecipeError(
            f"{path!r} is no single setting",
            fix=f"name one of its own: {name}.FIELD with {inner}" if inner else f"use {name}",
        )
    hint = get_type_hints(type(config))[name]
    value = changed(now, rest, text) if rest else parsed(text, hint, path)
    return replace(config, **{name: value})  # type: ignore[type-var]


def parsed(text: str, hint: Any, path: str) -> Any:
    """Return the value that a text stands for.

    Raises:
        RecipeError: it is none of the type that the field has.
    """
    choices = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        if text == "none":
            return None
        [hint] = [each for each in choices if each is not type(None)]
        return parsed(text, hint, path)
    if get_origin(hint) is tuple:
        parts = text.split(",")
        if choices[-1] is not Ellipsis and len(parts) != len(choices):
            raise unfit(path, text, f"{len(choices)} values with commas between")
        return tuple(parsed(part, choices[0], path) for part in parts)
    if get_origin(hint) is Literal:
        if text not in choices:
            raise unfit(path, text, " or ".join(choices))
        return text
    if hint is bool:
        if text not in ("true", "false"):
            raise unfit(path, text, "true or false")
        return text == "true"
    if is_dataclass(hint):
        raise unfit(path, text, f"a recipe that has a {path} of its own: crowdrt recipes")
    return number(text, hint, path) if hint in (int, float) else text


def number(text: str, kind: type[int] | type[float], path: str) -> float:
    """Return a whole or a finite number; 2/3 is one too."""
    try:
        value = int(text) if kind is int else float(Fraction(text) if "/" in text else text)
        fits = math.isfinite(value)  # asked of a whole number, it may overflow too
    except (ValueError, ZeroDivisionError, OverflowError):
        fits = False
    if not fits:
        raise unfit(path, text, "a whole number" if kind is int else "a number")
    return value


def unfit(path: str, text: str, wanted: str) -> RecipeError:
    """Return the error for a value that a field cannot have."""
    return RecipeError(f"{path}={text} cannot be set", fix=f"use {wanted}")
