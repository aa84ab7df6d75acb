"""Races as they are kept, found again where exactly the same engines would race today."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crowdrt import __version__
from crowdrt.benchmarks.timing.race import Contender
from crowdrt.benchmarks.timing.records import SCHEMA, append_records, read_records
from crowdrt.contracts import Measurement
from crowdrt.engines.machine import machine_identity, num_cores
from crowdrt.manifest import fingerprint, manifest_path, read_json, write_json


def race_identity(
    contenders: Sequence[Contender], engines: Sequence[Path], num_threads: int
) -> dict[str, Any]:
    """Return everything that decides a race but its sizes.

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


def recorded(records: Path, identity: Mapping[str, Any]) -> list[Measurement]:
    """Return the newest race of exactly this, if there was one in which all ran.

    Args:
        records: the file of all races.
        identity: of `race_identity`, with the size.
    """
    if not records.is_file():
        return []
    known, wanted = identities(records), fingerprint(identity)
    runs: dict[str, list[Measurement]] = {}
    for row in read_records(records):
        if known.get(row.run_id) == wanted:
            runs.setdefault(row.run_id, []).append(row)
    whole = [run for run in runs.values() if all(row.samples_ms for row in run)]
    return whole[-1] if whole else []


def keep_race(records: Path, rows: Sequence[Measurement], identity: Mapping[str, Any]) -> None:
    """Add a race to the others, and beside them what it was a race of."""
    append_records(records, rows)
    known = identities(records) | {row.run_id: fingerprint(identity) for row in rows}
    write_json(manifest_path(records), {"kind": "races", "races": known})


def identities(records: Path) -> dict[str, str]:
    """Return the fingerprint of what raced, by the race's id; {} where nothing is kept of it."""
    found = (read_json(manifest_path(records)) or {}).get("races")
    return dict(found) if isinstance(found, Mapping) else {}
