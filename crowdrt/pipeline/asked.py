"""What a build is asked for, in the words of the command line, which `fleet.toml` shares."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crowdrt.engines.store import KINDS
from crowdrt.engines.trt.building.options import PlanOptions, parse_shape
from crowdrt.errors import RecipeError
from crowdrt.pipeline.tiling import parse_memory

# the options of `crowdrt build`, and what TOML has for them
ON_GPU: Mapping[str, type] = {
    "shape": str,
    "batch": int,
    "workspace": str,
    "level": int,
    "tf32": bool,
    "float-input": bool,
    "any-precision": bool,
    "timing-cache": str,
}
ON_CPU: Mapping[str, type] = {"threads": int}
WORDS = {
    str: "text",
    int: "a whole number",
    bool: "true or false",
    list: "a list of tables: [[target]]",
}


def plan_options(**asked: Any) -> PlanOptions | None:
    """Return what a TensorRT build is asked for; None where nothing was.

    Args:
        asked: fields of `PlanOptions`, shape and workspace as they are written; None is not asked.
    """
    given = {name: value for name, value in asked.items() if value is not None}
    if "shape" in given:
        given["shape"] = parse_shape(given["shape"])
    if "workspace_bytes" in given:
        given["workspace_bytes"] = parse_memory(
            given["workspace_bytes"],
            option="--workspace",
            command="crowdrt build model.onnx --engine tensorrt",
        )
    return PlanOptions(**given) if given else None


def accepted(engine: str) -> Mapping[str, type]:
    """Return which options an engine takes."""
    return ON_GPU if KINDS[engine].on_gpu else ON_CPU


def plan_of(options: Mapping[str, Any]) -> PlanOptions:
    """Return the TensorRT build that options of the right types ask for.

    Raises:
        CrowdRTError: one makes no sense, or its file is missing.
    """
    asked = {name.replace("-", "_"): value for name, value in options.items()}
    if "workspace" in asked:
        asked["workspace_bytes"] = asked.pop("workspace")
    if "timing_cache" in asked:
        asked["timing_cache"] = expanded(asked["timing_cache"])
    plan = plan_options(**asked) or PlanOptions()
    plan.identity()  # refuses a timing cache that is not there
    return plan


def expanded(path: str) -> Path:
    """Return a path as a shell reads it: ~ is the home of whoever gives the command.

    Raises:
        RecipeError: ~ is somebody's who has none here.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise RecipeError(f"{path}: nobody here has that home", fix="name all of it") from error


def check_types(table: Mapping[str, Any], types: Mapping[str, type], *, source: str) -> None:
    """Refuse what a table of TOML has under a wrong name or type.

    Raises:
        RecipeError: names the key, and what is accepted.
    """
    for key, value in table.items():
        if key not in types:
            raise RecipeError(
                f"{source}: {key} is unknown", fix=f"use one of {', '.join(types)}, or leave it out"
            )
        if type(value) is not types[key]:  # not isinstance: true is no number
            raise RecipeError(
                f"{source}: {key} = {value!r} is not {WORDS[types[key]]}",
                fix=f"write it as {WORDS[types[key]]}",
            )
