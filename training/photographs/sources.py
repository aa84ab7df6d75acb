"""Photographs by source: how often each is drawn from, and which of them are kept decoded."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from crowdrt.data.images import opening
from crowdrt.errors import TrainingError
from crowdrt.manifest import fingerprint, sha256_file

VALIDATE_EVERY = 15  # every 15th photograph of a source validates instead
SYNTHETIC_SEED = 1_000  # far from the seeds that `crowdrt run` and newcomers use
SYNTHETIC_SHARE = 0.3  # of generated photographs beside real ones
HELD_BYTES = 4 * 2**30  # decoded photographs; those beyond are decoded whenever they are drawn


class Annotated(Protocol):
    """What every kind of annotated photograph has."""

    @property
    def image(self) -> Path:
        """The file."""

    @property
    def annotated(self) -> int | None:
        """How many people are annotated."""


S = TypeVar("S", bound=Annotated)
T = TypeVar("T")


@dataclass(frozen=True)
class Group(Generic[S]):
    """Photographs of one source and how often a crop is taken from them."""

    name: str
    samples: tuple[S, ...]
    share: float = 1.0  # relative to the other groups' shares, whatever the groups' sizes


@dataclass(frozen=True)
class Dataset(Generic[S]):
    """Photographs to learn from, by source, and photographs to choose the best network by."""

    groups: tuple[Group[S], ...]
    validation: tuple[S, ...]


class Sources(Generic[S]):
    """The groups that hold anything, and by which chance each is drawn from.

    Args:
        groups: empty ones are passed over.
        check: refuses a photograph that cannot be learned from; now, not after an hour.

    Raises:
        TrainingError: there is no photograph, or `check` refused one.
    """

    def __init__(self, groups: Sequence[Group[S]], check: Callable[[S], object]) -> None:
        self.groups = [group for group in groups if group.samples]
        if not self.groups:
            raise TrainingError(
                "there is no annotated photograph to learn from",
                fix="name a data set with --data DIR, or generate one: crowdrt synthesize -o DIR",
            )
        for sample in (sample for group in self.groups for sample in group.samples):
            check(sample)
        shares = np.array([group.share for group in self.groups])
        self._shares = shares / shares.sum()

    def pick_group(self, rng: np.random.Generator) -> int:
        """Draw a group by its share, and return its number."""
        return int(rng.choice(len(self.groups), p=self._shares))

    def pick(self, rng: np.random.Generator) -> S:
        """Draw a group by its share, and of it a photograph."""
        samples = self.groups[self.pick_group(rng)].samples
        return samples[int(rng.integers(len(samples)))]


class Held(Generic[T]):
    """Keeps what was made of photographs, up to a limit of memory; several threads may ask."""

    def __init__(self) -> None:
        self._held: dict[Hashable, T] = {}
        self._room, self._lock = HELD_BYTES, Lock()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: Hashable, make: Callable[[], T], num_bytes: Callable[[T], int]) -> T:
        """Return what is kept under the key, else make it, and keep it where there is room."""
        if (found := self._held.get(key)) is not None:
            return found
        made = make()
        with self._lock:
            if key not in self._held and num_bytes(made) <= self._room:
                self._room -= num_bytes(made)
                self._held[key] = made
        return made


def every_15th(group: Group[S]) -> Dataset[S]:
    """Take the first and then every 15th photograph for validation."""
    rest = tuple(sample for i, sample in enumerate(group.samples) if i % VALIDATE_EVERY)
    learn = Group(group.name, rest, group.share)
    return Dataset(groups=(learn,), validation=group.samples[::VALIDATE_EVERY])


def joined(parts: Sequence[Dataset[S]]) -> Dataset[S]:
    """Return the photographs of all parts, in order."""
    return Dataset(
        groups=tuple(group for part in parts for group in part.groups),
        validation=tuple(sample for part in parts for sample in part.validation),
    )


def images_of(data: Dataset[S], annotation: Callable[[S], bytes]) -> dict[str, Any]:
    """Name the photographs and what is in them: another set is never taken for this one.

    Args:
        data: whose photographs.
        annotation: of a photograph, byte by byte.
    """

    def label(sample: S) -> str:
        """Name, people and content, with nothing of the machine's paths."""
        with opening(sample.image):
            image = sha256_file(sample.image)
        content = fingerprint({"image": image, "annotation": annotation(sample).hex()})
        return f"{sample.image.name}:{sample.annotated}:{content[:16]}"

    return {
        "groups": {
            f"{group.name} x{group.share:g}": [label(sample) for sample in group.samples]
            for group in data.groups
        },
        "validation": [label(sample) for sample in data.validation],
    }
