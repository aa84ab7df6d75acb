"""The training and the test split of the published sets, whichever of them a folder holds."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from crowdrt.contracts import Sample
from crowdrt.data.heads import mall, shanghaitech, ucf_cc_50, ucf_qnrf, worldexpo
from crowdrt.data.heads.datasets import without_copies
from crowdrt.data.heads.shanghaitech import Part, Split, truth_folder
from crowdrt.data.images import opening
from crowdrt.errors import DataError

SetName = Literal[
    "shanghaitech-a", "shanghaitech-b", "ucf-qnrf", "worldexpo10", "mall", "ucf-cc-50"
]
SET_NAMES: tuple[SetName, ...] = get_args(SetName)
PARTS: dict[Part, SetName] = {"A": "shanghaitech-a", "B": "shanghaitech-b"}
MAX_DEPTH = 2  # below the folder that a user names
LEVELS = 2  # that a scene, or an images folder, lies below its set


@dataclass(frozen=True, kw_only=True)
class KnownSet:
    """A published set that was found on disk; `root` is `part_A` where it is Part A alone."""

    name: SetName
    root: Path


def known_sets(data: Path) -> list[KnownSet]:
    """Return the published sets that a folder is or holds, at most two folders down.

    A set counts as found when both its splits are there, the annotations included.

    Raises:
        DataError: the folder is missing or cannot be read.
    """
    with opening(data):
        if not data.is_dir():
            raise DataError(f"{data} is no folder", fix="name the folder that holds the data sets")
        return list(_below(data if data.name else data.resolve(), MAX_DEPTH))


def _below(folder: Path, depth: int) -> Iterator[KnownSet]:
    here = list(sets_of(folder))
    yield from here
    roots = {each.root for each in here}
    if depth == 0 or folder in roots:
        return
    for child in sorted(p for p in folder.iterdir() if p.is_dir() and p.name[0] != "."):
        if child not in roots:
            yield from _below(child, depth - 1)


def sets_of(root: Path) -> Iterator[KnownSet]:
    """Yield the sets whose folder this is; a part of ShanghaiTech may be named itself."""
    for part in PARTS:
        names = (f"part_{part}", f"part_{part}_final")
        folders = [root] if root.name in names else [root / name for name in names]
        if found := next(filter(has_both_splits, folders), None):
            yield KnownSet(name=PARTS[part], root=found)
    if ucf_qnrf.is_ucf_qnrf(root):
        yield KnownSet(name="ucf-qnrf", root=root)
    if all(worldexpo.is_split(root, split) for split in get_args(Split)):
        yield KnownSet(name="worldexpo10", root=root)
    if mall.is_mall(root):
        yield KnownSet(name="mall", root=root)
    if ucf_cc_50.is_ucf_cc_50(root):
        yield KnownSet(name="ucf-cc-50", root=root)


def has_both_splits(part: Path) -> bool:
    """Say whether a folder is a part of ShanghaiTech with both its splits."""
    return all(truth_folder(part / f"{split}_data") for split in get_args(Split))


def open_split(
    data: Path, split: Split, *, part: SetName | None = None, fold: int = 1
) -> list[Sample]:
    """Read the training or the test split of a published set, in natural order.

    Of the training split, photographs whose file is byte-identical with one of the test split are
    left out.

    Args:
        data: the set's folder, or one up to two folders above it.
        split: `train` or `test`; UCF_CC_50 has five folds instead of one split.
        part: which set; None: the only one there.
        fold: 1 to 5, of UCF_CC_50; other sets have none.

    Raises:
        DataError: no such set is there, or several and none was named; or it is damaged.
    """
    chosen = choose(known_sets(data), data, part)
    samples = read_split(chosen, split, fold)
    return samples if split == "test" else without_copies(samples, read_split(chosen, "test", fold))


def held_out_beside(path: Path) -> list[Sample]:
    """Return the test split of the set that a path is a part of, which training on it must not see.

    Empty where the path is in no published set, in its test split, or in UCF_CC_50, whose folds
    all test once.
    """
    path = path.resolve()
    for folder in (path, *itertools.islice(path.parents, LEVELS)):
        for known in sets_of(folder):
            if path.is_relative_to(known.root) and known.name != "ucf-cc-50":
                inside = path.relative_to(known.root).parts
                is_test = any(name.lower().startswith("test") for name in inside)
                return [] if is_test else read_split(known, "test", fold=1)
    return []


def choose(found: list[KnownSet], data: Path, part: SetName | None) -> KnownSet:
    """Return the one set that is meant."""
    if part is not None and part not in SET_NAMES:
        raise DataError(f"no set is called {part!r}", fix=f"use one of {', '.join(SET_NAMES)}")
    wanted = [each for each in found if part in (None, each.name)]
    if len(wanted) == 1:
        return wanted[0]
    if not wanted:
        others = ", ".join(each.name for each in found)
        raise DataError(
            f"{data} holds no {part or 'published data set'}"
            + (f"; what was found there: {others}" if others else ""),
            fix="name the folder that holds it in its published layout; docs/data.md draws them",
        )
    names = ", ".join(each.name for each in wanted)
    raise DataError(
        f"{data} holds several data sets: {names}",
        fix=f"name the folder of one: {', '.join(str(each.root) for each in wanted)}",
    )


def read_split(known: KnownSet, split: Split, fold: int) -> list[Sample]:
    """Read one split as it was published, copies included."""
    match known.name:
        case "shanghaitech-a" | "shanghaitech-b":
            return shanghaitech.read_split(known.root / f"{split}_data")
        case "ucf-qnrf":
            return ucf_qnrf.ucf_qnrf(known.root, split)
        case "worldexpo10":
            return worldexpo.worldexpo(known.root, split)
        case "mall":
            return mall.mall(known.root, split)
        case "ucf-cc-50":
            return ucf_cc_50.ucf_cc_50_fold(known.root, fold, split)
