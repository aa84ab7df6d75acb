"""A Triton model repository: models with their versions, configurations and a client.

Everything is made in a folder beside the repository and then moved into it: a new repository
appears at once, a model or a version in an existing one too. If a move fails, those before it are
taken back.
"""

import errno
import glob
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from crowdrt.console import say, show_table
from crowdrt.contracts import COUNT, DENSITY
from crowdrt.errors import CrowdRTError
from crowdrt.lazy import check_installed
from crowdrt.manifest import (
    folder_beside,
    sha256_file,
    sweep,
    write_manifest,
    write_whole,
)
from crowdrt.pipeline.serving import client
from crowdrt.pipeline.serving.config import (
    CONFIG,
    EXTRA,
    ServingOptions,
    keeps_contract,
    model_config,
    read_config,
    write_config,
)
from crowdrt.pipeline.serving.served import Served, read_served

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # it is part of every request's address
VERSION = re.compile(r"[1-9][0-9]*")
DENSITY_MODEL = "-density"  # behind the name of the model that counts
CLIENT = "client.py"
STALE_S = 3600.0  # what lies beside a repository for so long belongs to a call that was killed


@dataclass(frozen=True, kw_only=True)
class Model:
    """One folder of the repository, as it is to be."""

    name: str
    served: Served
    config: Any  # ModelConfig

    @property
    def outputs(self) -> list[str]:
        """What clients may ask for."""
        return [output.name for output in self.config.output]


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A model and where it goes."""

    model: Model
    version: int
    state: Literal["new", "new version", "kept"]
    config: Any  # that of the repository, where there was one

    @property
    def moved(self) -> Path:
        """What is moved into the repository: the folder of the model, or of its version."""
        name = Path(self.model.name)
        return name if self.state == "new" else name / str(self.version)

    def as_json(self) -> dict[str, Any]:
        """Return it as `--json` prints it."""
        return {
            "name": self.model.name,
            "version": self.version,
            "state": self.state,
            "backend": self.config.backend,
            "max_batch_size": self.config.max_batch_size,
            "outputs": self.model.outputs,
            "sha256": self.model.served.sha256,
            "source": self.model.served.origin["source"],
            "facts": self.model.served.facts,
        }


def write_repository(
    paths: Sequence[Path],
    out: Path,
    *,
    options: ServingOptions,
    name: str | None = None,
    only: str | None = None,
    onnx: Sequence[Path] = (),
    new_version: bool = False,
) -> list[Placed]:
    """Write models for Triton, all of them or none.

    Args:
        paths: ONNX files and folders of the engine store.
        out: the repository; models of others in it are left alone.
        options: how they are served.
        name: of the model, where one engine is given; its file's otherwise.
        only: the model that counts, or the one with the density map; both otherwise.
        onnx: where the ONNX files of engines for a CPU lie.
        new_version: a network that has changed becomes the next version of its model.

    Raises:
        CrowdRTError: there is nothing to serve, two models have one name, one is there already
            with another content, or the repository cannot be written.
    """
    check_request(paths, name, only)
    found = [read_served(path, onnx) for path in paths]
    models = [m for each in found for m in models_of(each, name or each.name, only, options)]
    check_names(models)
    placed = [place(model, out, new_version=new_version) for model in models]
    write_placed(placed, out)
    return placed


def check_request(paths: Sequence[Path], name: str | None, only: str | None) -> None:
    """Refuse what cannot be meant, before anything is read."""
    check_installed("tritonclient", "grpc", extra=EXTRA)
    if not paths:
        raise CrowdRTError(
            "there is nothing to serve", fix="name ONNX files or engines: crowdrt triton m.onnx"
        )
    if name is not None and len(paths) > 1:
        raise CrowdRTError(
            f"--name {name} is one name for {len(paths)} engines",
            fix="leave it out, or call crowdrt triton once for each",
        )
    if only not in (None, COUNT, DENSITY):
        raise CrowdRTError(f"--only {only!r} is unknown", fix=f"use {COUNT} or {DENSITY}")


def models_of(served: Served, name: str, only: str | None, options: ServingOptions) -> list[Model]:
    """Return the models of one network: the count alone, and the density map beside it.

    A network that has no such pair of outputs is one model with all that it answers.
    """
    offered = [spec.name for spec in served.outputs]
    choices = {name: offered}
    if {COUNT, DENSITY} <= set(offered):
        pair = {COUNT: (name, [COUNT]), DENSITY: (name + DENSITY_MODEL, [COUNT, DENSITY])}
        choices = dict(each for kind, each in pair.items() if only in (None, kind))
    elif only is not None and offered != [only]:
        raise CrowdRTError(
            f"{served.origin['source']} answers {', '.join(offered)}, so --only {only} chooses "
            "nothing",
            fix="leave out --only",
        )
    return [
        Model(name=each, served=served, config=model_config(served, each, kept, options))
        for each, kept in choices.items()
    ]


def check_names(models: Sequence[Model]) -> None:
    """Refuse names that Triton's addresses cannot hold, and two models with one name."""
    for model in models:
        if not NAME.fullmatch(model.name):
            raise CrowdRTError(
                f"{model.name!r} cannot be a model's name: letters, digits and . _ - may be in it",
                fix="give it another: --name student",
            )
    for name, number in Counter(model.name for model in models).items():
        if number > 1:
            sources = [m.served.origin["source"] for m in models if m.name == name]
            raise CrowdRTError(
                f"{number} engines would be the model {name!r}: {', '.join(map(str, sources))}",
                fix="serve them one by one under names of their own: crowdrt triton ENGINE "
                f"--name {name}-2 -o repo/",
            )


def place(model: Model, out: Path, *, new_version: bool) -> Placed:
    """Say where a model goes, and what is there already.

    Raises:
        CrowdRTError: a model of that name is there that clients would find changed.
    """
    folder = out / model.name
    if not folder.exists():
        return Placed(model=model, version=1, state="new", config=model.config)
    there = read_config(folder / CONFIG)
    if not keeps_contract(there, model.config):
        raise CrowdRTError(
            f"{folder} serves another network: its inputs, outputs or preparation differ",
            fix="give this one another name, --name NAME, or another repository, -o OTHER/",
        )
    versions = [int(each.name) for each in folder.iterdir() if VERSION.fullmatch(each.name)]
    latest = max(versions, default=0)
    file = folder / str(latest) / model.served.file
    if file.is_file() and sha256_file(file) == model.served.sha256:
        if there != model.config:
            say(f"{folder / CONFIG} is kept as it is, and differs from what this call would write")
        return Placed(model=model, version=latest, state="kept", config=there)
    if not new_version:
        raise CrowdRTError(
            f"{folder} serves other weights, as version {latest}",
            fix=f"add these as version {latest + 1}, which Triton then serves: --new-version; or "
            "give them another name: --name NAME",
        )
    return Placed(model=model, version=latest + 1, state="new version", config=there)


def write_placed(placed: Sequence[Placed], out: Path) -> None:
    """Make what is new beside the repository, and move it there."""
    if out.exists() and not out.is_dir():
        raise CrowdRTError(f"{out} is a file, not a folder", fix="name a folder: -o repo/")
    new = [each for each in placed if each.state != "kept"]
    wanted = own_client(out)
    # `repo/.` and `..` have no name of their own, and beside a link is perhaps another disk
    out = Path(os.path.realpath(out))
    sweep(out.parent, f".{glob.escape(out.name)}.tmp-*", STALE_S)
    if not new and wanted is None:
        return
    with folder_beside(out) as stage:
        for each in new:
            fill(stage, each)
        if wanted is not None:
            put(stage / CLIENT, wanted)
        stage.chmod(0o755)  # temporary folders are private, and Triton is another user
        client_too = [] if wanted is None else [Path(CLIENT)]
        try:
            move([*(each.moved for each in new), *client_too], stage, out)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            raise CrowdRTError(
                f"{out} is on another disk than the folder that holds it, so nothing can be moved "
                "into it at once",
                fix=f"name a folder in it: -o '{out / 'repo'}'",
            ) from error


def fill(folder: Path, placed: Placed) -> None:
    """Write the folder of a model or of its new version."""
    model = placed.model
    version = folder / model.name / str(placed.version)
    version.mkdir(parents=True)
    if placed.state == "new":
        with write_whole(version.parent / CONFIG) as temporary:
            write_config(model.config, temporary)
    file = version / model.served.file
    put(file, model.served.content)
    write_manifest(file, kind="engine", made_from=model.served.origin, facts=model.served.facts)


def put(path: Path, content: bytes) -> None:
    """Write a file whole."""
    with write_whole(path) as temporary:
        temporary.write_bytes(content)


def own_client(out: Path) -> bytes | None:
    """Return the client that is to be written; None where one lies there, which may be changed."""
    content = Path(client.__file__).read_bytes()
    there = out / CLIENT
    if not there.exists():
        return content
    if there.read_bytes() != content:
        say(f"{there} is kept as it is, and is not the client of this crowdrt")
    return None


def move(paths: Sequence[Path], stage: Path, out: Path) -> None:
    """Move what was made into the repository; when that fails, nothing has moved."""
    if not out.exists():
        try:
            stage.rename(out)
            return
        except OSError:
            if not out.is_dir():  # else another process was quicker, perhaps with other models
                raise
    moved: list[Path] = []
    try:
        for path in paths:
            if (out / path).exists():  # another process was quicker
                raise CrowdRTError(
                    f"{out / path} has appeared meanwhile", fix="give the same command again"
                )
            (stage / path).rename(out / path)
            moved.append(path)
    except BaseException:
        for path in reversed(moved):
            (out / path).rename(stage / path)
        raise


def show_placed(placed: Sequence[Placed]) -> None:
    """Print the models for people, and what their plans need."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("model", "version", "", "backend", "batch", "outputs"):
        table.add_column(title)
    for each in placed:
        batch = each.config.max_batch_size
        cells = (each.model.name, str(each.version), each.state, each.config.backend)
        many = f"up to {batch}" if batch else "as the file has it"
        table.add_row(*map(Text, (*cells, many, ", ".join(each.model.outputs))))
    show_table(table)
    for needs in {str(n): n for e in placed if (n := e.model.served.facts.get("needs"))}.values():
        say("needs " + ", ".join(f"{key} {value}" for key, value in needs.items()))
