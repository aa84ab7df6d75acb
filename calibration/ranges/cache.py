"""Statistics of a pass over photographs, kept on disk: for the next method, and for going on.

JSON, so that reading it can run nothing, with a SHA-256 of its content. What a file was collected
from is its key; the method is no part of it, because histograms serve every method.
"""

import json
import shlex
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from crowdrt.calibration.ranges.histogram import NUM_BINS, AbsHistogram, Statistics
from crowdrt.console import say
from crowdrt.errors import CalibrationError, CrowdRTError
from crowdrt.manifest import fingerprint, write_whole

FORM = 1  # of the statistics; a new number makes old files stale
MAX_BYTES = 1 << 28  # of a file: more than a thousand tensors
EVERY_S = 5.0  # between two saves of an unfinished pass, at least
MAX_SHARE = 0.02  # of the time that saving may take

Key = Mapping[str, Any]


@dataclass
class Progress:
    """What was seen so far, and of which images (their SHA-256)."""

    seen: dict[str, Statistics]
    done: list[str] = field(default_factory=list)

    def left_of(self, images: Iterable[tuple[Path, str]]) -> list[tuple[Path, str]]:
        """Return those of the images, each with its SHA-256, that were not run yet."""
        before = Counter(self.done)
        left = []
        for path, digest in images:
            if before[digest]:
                before[digest] -= 1  # a copy of an image counts as often as it is there
            else:
                left.append((path, digest))
        return left


def cache_key(
    *, model: Sequence[str], images: Collection[str], preprocessing: Key, tensors: Collection[str]
) -> dict[str, Any]:
    """Return all that decides the statistics.

    Args:
        model: SHA-256 of the network's files.
        images: SHA-256 of every image; their order does not matter.
        preprocessing: how an image becomes the network's input.
        tensors: names of what is watched.
    """
    key = {
        "form": FORM,
        "model": list(model),
        "images": sorted(images),
        "preprocessing": dict(preprocessing),
        "tensors": sorted(tensors),
    }
    return dict(json.loads(json.dumps(key)))  # as it comes back: tuples are lists there


class StatisticsCache:
    """One file of statistics, and the key that it has to have."""

    def __init__(self, path: Path, key: Key, *, strict: bool) -> None:
        """Name the file; nothing is read yet.

        Args:
            path: the file, which need not exist.
            key: what the statistics are to be collected from.
            strict: refuse a file that does not fit, and a disk that takes none. Else the file
                was not asked for: the reason is told, and a pass over the images does without.
        """
        self.path, self.key, self.strict = path, key, strict
        self._saved_at, self._cost_s = time.monotonic(), 0.0

    def load(self) -> Progress:
        """Return what the file holds for this key; nothing seen where there is no file.

        Raises:
            CalibrationError: strict, and the file is damaged or of something else.
        """
        try:
            if self.path.exists():
                return self._read()
        except CalibrationError as error:
            if self.strict:
                raise
            say(f"{error.problem}: the images are run again")
        return Progress({name: Statistics() for name in self.key["tensors"]})

    def save(self, progress: Progress) -> None:
        """Write the file, whole or not at all."""
        start = time.monotonic()
        tensors = {name: as_document(each) for name, each in progress.seen.items()}
        content = {"key": self.key, "done": sorted(progress.done), "tensors": tensors}
        try:
            with write_whole(self.path) as temporary:
                temporary.write_text(
                    json.dumps({"sha256": fingerprint(content), "content": content})
                )
        except CrowdRTError as error:
            if self.strict:
                raise
            say(f"statistics are not kept: {error.problem}")
        self._saved_at = time.monotonic()
        self._cost_s = self._saved_at - start

    def save_now_and_then(self, progress: Progress) -> None:
        """Save, unless that would take more than 2 % of the time."""
        if time.monotonic() - self._saved_at >= max(EVERY_S, self._cost_s / MAX_SHARE):
            self.save(progress)

    def _read(self) -> Progress:
        content = read_content(self.path)
        try:
            found: Key = content["key"]
            done = [str(each) for each in content["done"]]
            reasons = differences(found, self.key)
            if not reasons and Counter(done) - Counter(self.key["images"]):
                raise ValueError("images were run that are not to be run")
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise damaged(self.path, error) from error
        if reasons:
            raise CalibrationError(
                f"{self.path} holds statistics of {', and of '.join(reasons)}",
                fix=f"name another folder: --cache DIR, or collect anew: {removal(self.path)}",
            )
        try:
            tensors = content["tensors"]
            seen = {name: from_document(tensors[name]) for name in self.key["tensors"]}
        except (ValueError, TypeError, LookupError, ArithmeticError) as error:
            raise damaged(self.path, error) from error
        return Progress(seen, done)


def differences(found: Key, wanted: Key) -> list[str]:
    """Say in which parts a file's key is another than the one that is wanted.

    More tensors than are wanted are welcome.
    """
    if found["form"] != wanted["form"]:
        return ["another version of crowdrt"]
    reasons = []
    if found["model"] != wanted["model"]:
        reasons.append("another network")
    if found["images"] != wanted["images"]:
        shared = (Counter(found["images"]) & Counter(wanted["images"])).total()
        num, num_wanted = len(found["images"]), len(wanted["images"])
        reasons.append(
            f"other images: {num}, of which {shared} are among the {num_wanted} to calibrate on"
        )
    if found["preprocessing"] != wanted["preprocessing"]:
        before, now = found["preprocessing"], wanted["preprocessing"]
        names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
        reasons.append(f"other preprocessing ({', '.join(names)})")
    if missing := sorted(set(wanted["tensors"]) - set(found["tensors"])):
        reasons.append(f"other tensors, without {', '.join(missing)}")
    return reasons


def read_content(path: Path) -> dict[str, Any]:
    """Return what a file of statistics holds, once its SHA-256 is that of its content."""
    try:
        if not path.is_file():  # reading a pipe would wait for ever
            raise ValueError("no ordinary file")
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES >> 20} MiB")
        document = json.loads(path.read_bytes())
        content = document["content"]
        if document["sha256"] != fingerprint(content):
            raise ValueError("its content is not that of its SHA-256")
        if not isinstance(content, dict):
            raise ValueError("no statistics")
    except (OSError, ValueError, TypeError, LookupError, RecursionError, MemoryError) as error:
        raise damaged(path, error) from error
    return content


def damaged(path: Path, error: BaseException) -> CalibrationError:
    """Return the error for a file that cannot be what was written."""
    return CalibrationError(
        f"{path} holds no statistics that can be trusted: {error or type(error).__name__}",
        fix=f"remove it, and the images are run again: {removal(path)}",
    )


def removal(path: Path) -> str:
    """Return the command that removes a file."""
    return f"rm {shlex.quote(str(path))}"


def as_document(statistics: Statistics) -> dict[str, Any]:
    """Return what JSON stores of a tensor; a float64 comes back exactly."""
    histogram = statistics.histogram
    return {
        "exponent": histogram.exponent,
        "zeros": histogram.num_zeros,
        "largest": histogram.largest,
        "counts": histogram.counts.tolist(),
        "sums": statistics.sums.tolist(),
        "rest": statistics.rest.tolist(),
        "num": statistics.num,
    }


def from_document(document: Mapping[str, Any]) -> Statistics:
    """Return a tensor's statistics, once they can be those of numbers.

    Raises:
        ValueError: they cannot.
    """
    histogram = AbsHistogram()
    histogram.counts = np.array([whole(each) for each in document["counts"]], np.int64)
    histogram.num_zeros = whole(document["zeros"])
    histogram.largest = float(document["largest"])
    if document["exponent"] is not None:
        histogram.exponent = int(document["exponent"])
    sums, rest = (np.array(document[name], np.float64) for name in ("sums", "rest"))
    statistics = Statistics(histogram, sums, rest, whole(document["num"]))
    if not plausible(statistics):
        raise ValueError("no numbers have these statistics")
    return statistics


def whole(number: object) -> int:
    """Return a count; refuse what is none."""
    if type(number) is not int or not 0 <= number < 2**53:
        raise ValueError(f"{number!r} is no count")
    return number


def plausible(statistics: Statistics) -> bool:
    """Say whether some numbers have these statistics."""
    histogram = statistics.histogram
    if histogram.counts.shape != (NUM_BINS,) or not -200 < (histogram.exponent or 0) < 1000:
        return False
    used = np.flatnonzero(histogram.counts)
    if histogram.exponent is None:
        fits = not used.size and histogram.largest == 0
    else:
        top = int(histogram.largest / histogram.width) if histogram.largest < np.inf else -1
        fits = bool(used.size) and int(used[-1]) == top and histogram.largest > 0
    sums, rest = statistics.sums, statistics.rest
    return (
        fits
        and sums.ndim == 1
        and sums.shape == rest.shape
        and bool(np.isfinite(sums).all() and np.isfinite(rest).all())
        and histogram.num_values == statistics.num * len(sums)
    )
