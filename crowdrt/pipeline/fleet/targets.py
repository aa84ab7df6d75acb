"""`fleet.toml`: for which kinds of machines a network is built, and where the engines go."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crowdrt.engines.store import DEFAULT_ENGINE, check_kind
from crowdrt.engines.trt.building.options import PlanOptions
from crowdrt.errors import CrowdRTError, RecipeError
from crowdrt.pipeline.asked import accepted, check_types, plan_of
from crowdrt.pipeline.scale.stores import check_public, is_url

EXAMPLE = """store = "s3://bucket/engines"
[[target]]
name = "t4"
resource = "T4"
engine = "tensorrt"
shape = "576x864"
"""
WRITE = "write it such as\n" + "".join(f"    {line}\n" for line in EXAMPLE.splitlines()).rstrip()
TOP: Mapping[str, type] = {"store": str, "cluster": str, "target": list}
OF_TARGET: Mapping[str, type] = {"name": str, "resource": str, "engine": str}
DEFAULT_CLUSTER = "auto"
RAYS_OWN = ("CPU", "GPU", "memory", "object_store_memory")  # every node has them


@dataclass(frozen=True, kw_only=True)
class Target:
    """An engine that is wanted, and on which nodes it is built."""

    name: str
    resource: str  # Ray's, that such nodes were started with
    engine: str = DEFAULT_ENGINE
    num_threads: int = 0
    plan: PlanOptions | None = None  # of TensorRT


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """What `fleet.toml` says."""

    store: str  # a folder or a URL
    cluster: str = DEFAULT_CLUSTER  # HOST:PORT of its head
    targets: tuple[Target, ...]


def read_fleet(path: Path) -> Fleet:
    """Read `fleet.toml`.

    Raises:
        CrowdRTError: it is missing or damaged, says what makes no sense, or holds a secret.
    """
    document = read_document(path)
    targets = [
        read_target(table, source=f"{path}: target {place}")
        for place, table in enumerate(document.get("target", []), start=1)
    ]
    store = document.get("store", "").strip()
    cluster = document.get("cluster", DEFAULT_CLUSTER).strip()
    for name, value in {"store": store, "cluster": cluster, "target": targets}.items():
        if not value:
            raise RecipeError(f"{path} names no {name}", fix=WRITE)
    check_names(targets, source=str(path))
    if is_url(store):
        check_public(store)
    return Fleet(store=store, cluster=cluster, targets=tuple(targets))


def read_document(path: Path) -> dict[str, Any]:
    """Return what is in `fleet.toml`, of the right types.

    Raises:
        RecipeError: it is missing or damaged, or has a key that is unknown or of another type.
    """
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}", fix=WRITE) from error
    except ValueError as error:  # of TOML and of UTF-8
        raise RecipeError(f"{path} is no TOML: {error}", fix=WRITE) from error
    check_types(document, TOP, source=str(path))
    return document


def read_target(table: Any, *, source: str) -> Target:
    """Read one table of `[[target]]`.

    Raises:
        CrowdRTError: a key is missing, unknown or of a wrong type, or a value makes no sense.
    """
    if not isinstance(table, dict):
        raise RecipeError(f"{source} is no table", fix=WRITE)
    if isinstance(table.get("name"), str):
        source = f"{source} ({table['name']})"
    for key in ("name", "resource"):
        if not str(table.get(key, "")).strip():
            raise RecipeError(f"{source} has no {key}", fix=WRITE)
    engine = table.get("engine", DEFAULT_ENGINE)
    try:
        check_kind(engine if isinstance(engine, str) else str(engine))
        check_types(table, {**OF_TARGET, **accepted(engine)}, source=engine)
        check_resource(table["resource"])
        return target_of(table, engine)
    except CrowdRTError as error:
        raise type(error)(f"{source}: {error.problem}", fix=error.fix) from error


def target_of(table: Mapping[str, Any], engine: str) -> Target:
    """Return the target that a table of the right types describes."""
    options = {key: value for key, value in table.items() if key not in OF_TARGET}
    common = {"name": table["name"], "resource": table["resource"], "engine": engine}
    if "threads" not in accepted(engine):
        return Target(**common, plan=plan_of(options))
    threads = options.get("threads", 0)
    if threads < 0:
        raise RecipeError(f"threads = {threads}", fix="use 1, 2, 3 ...; 0 takes every core")
    return Target(**common, num_threads=threads)


def check_resource(name: str) -> None:
    """Refuse what is no name of a kind of machines."""
    if name in RAYS_OWN:
        raise RecipeError(
            f"resource = {name!r} is on every node",
            fix="name what only these nodes have, and start them so: "
            "ray start --address HOST:PORT --resources '{\"T4\": 1}'",
        )


def check_names(targets: Sequence[Target], *, source: str) -> None:
    """Refuse two targets of one name."""
    names = [target.name for target in targets]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise RecipeError(f"{source} has two targets {twice!r}", fix="name each differently")
