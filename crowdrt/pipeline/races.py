"""Races as they are kept, found again where exactly the same engines would race today.

One rule for every verb. The newest race of exactly this is taken in which all ran; where there is
none, the newest in which an engine failed, since some fail whenever they are asked. That it is
reused is said each time, with what failed in it and how to repeat it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from crowdrt import __version__
from crowdrt.benchmarks.timing.race import Contender, RaceConfig, race
from crowdrt.benchmarks.timing.records import SCHEMA, append_records, read_records
from crowdrt.benchmarks.timing.verdict import VALID, has_failed
from crowdrt.console import say
from crowdrt.contracts import Measurement, UInt8Image
from crowdrt.engines.machine import machine_identity, num_cores
from crowdrt.manifest import fingerprint


def race_identity(
    contenders: Sequence[Contender], engines: Sequence[Path], num_threads: int
) -> dict[str, Any]:
    """Return everything that decides a race but its sizes and how long it may take.

    Args:
        contenders: all of them.
        engines: folders of the store, whose names tell of what an engine was built from and how:
            the same file is built otherwise by another version of ONNX Runtime, or of ours.
        num_threads: 0 is every core.
    """
    return {
        "contenders": [f"{c.name} {c.engine_version} {c.sha256}" for c in contenders],
        "engines": [folder.name for folder in engines],
        "num_threads": num_threads or num_cores(),
        "machine": machine_identity(),
        "crowdrt": __version__,
        "schema": SCHEMA,
    }


def race_once(
    contenders: Sequence[Contender],
    engines: Sequence[Path],
    image: UInt8Image,
    records: Path,
    config: RaceConfig,
    *,
    fresh: bool,
) -> list[Measurement]:
    """Race, or return the race of exactly this that `records` holds, and say which.

    Args:
        contenders: see `race`.
        engines: their folders of the store; see `race_identity`.
        image: see `race`; its size is part of what a race is of.
        records: the file of all races, to which a new one is added.
        config: how long; a shorter race is reused only where every row of it is valid.
        fresh: race, whatever is kept.
    """
    height, width = image.shape[1:]
    size = height, width
    identity = race_identity(contenders, engines, config.num_threads) | {"size": size}
    kept = [] if fresh else recorded(records, identity, config.budget_s)
    what = f"{', '.join(dict.fromkeys(c.network for c in contenders))} at {height}x{width}"
    if kept:
        say(f"{what}: reusing run {kept[0].run_id}{failures_in(kept)}; --fresh repeats it")
        return kept
    say(f"{what}: racing {len(contenders)} engines for {config.budget_s:g} s")
    return keep_race(records, race(contenders, image, config), identity, config.budget_s)


def recorded(records: Path, identity: Mapping[str, Any], budget_s: float) -> list[Measurement]:
    """Return the newest race of exactly this, before others one in which all ran.

    Args:
        records: the file of all races.
        identity: of `race_identity`, with the size.
        budget_s: how long a race may take today.
    """
    if not records.is_file():
        return []
    wanted = fingerprint(identity)
    runs: dict[str, list[Measurement]] = {}
    for row in read_records(records):
        if row.race_sha256 == wanted:
            runs.setdefault(row.run_id, []).append(row)
    enough = [run for run in runs.values() if is_long_enough(run, budget_s)]
    whole = [run for run in enough if not any(has_failed(row.verdict) for row in run)]
    return (whole or enough or [[]])[-1]


def is_long_enough(run: Sequence[Measurement], budget_s: float) -> bool:
    """Say whether a race took as long as is asked for, or knows every median anyway."""
    return run[0].budget_s >= budget_s or all(row.verdict == VALID for row in run)


def failures_in(run: Sequence[Measurement]) -> str:
    """Return `, in which NAME failed: REASON`; "" where all ran."""
    said = [f"{row.name} {row.verdict}" for row in run if has_failed(row.verdict)]
    return f", in which {'; '.join(said)}" if said else ""


def keep_race(
    records: Path, rows: Sequence[Measurement], identity: Mapping[str, Any], budget_s: float
) -> list[Measurement]:
    """Add a race to the others, every row with what it was a race of; return it as it is kept."""
    known = fingerprint(identity)
    kept = [replace(row, race_sha256=known, budget_s=budget_s) for row in rows]
    append_records(records, kept)
    return kept
