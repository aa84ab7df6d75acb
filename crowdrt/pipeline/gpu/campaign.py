"""All heats that fit a time, most valuable first; what is done stays done, what fails says why."""

import json
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from crowdrt.benchmarks.timing.machine import describe_machine
from crowdrt.benchmarks.timing.nvml import open_watch
from crowdrt.benchmarks.timing.records import append_records, read_records
from crowdrt.console import say
from crowdrt.contracts import Size
from crowdrt.errors import BenchmarkError
from crowdrt.manifest import write_json, write_whole
from crowdrt.pipeline.gpu.heats import run_heat
from crowdrt.pipeline.gpu.processes import Pythons, ask_once
from crowdrt.pipeline.gpu.rows import Row, heat_name, heats, rows_of

OPENING_S = 150.0  # of a heat's processes, before the race
BUILD_S = 420.0  # that one plan may take
CLOSING_S = 15.0  # to pack what is brought home
RECORDS, FACTS, PEAKS = "records.jsonl", "facts.json", "peaks.json"


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """What is asked for."""

    folder: Path  # prepared
    work: Path  # stays on the host: engines, records, what is done
    out: Path  # what is brought home
    pythons: Pythons
    budget_s: float = 540.0
    race_s: float = 60.0
    chosen: tuple[str, ...] = ()  # heats; none: all
    torch: bool = True
    timings: Path | None = None  # timings.tar.gz of an earlier call on such a GPU


def run_campaign(asked: Campaign) -> int:
    """Run what fits; return how many rows were measured without failing.

    Raises:
        BenchmarkError: the folder was not prepared.
    """
    ends = time.monotonic() + asked.budget_s
    if not (asked.folder / "prepared.json").is_file():
        raise BenchmarkError(
            f"{asked.folder} was not prepared",
            fix=f"python -m crowdrt.pipeline.gpu prepare {asked.folder}",
        )
    asked.work.mkdir(parents=True, exist_ok=True)
    if asked.timings is not None and not (asked.work / "store/timings").is_dir():
        take_timings(asked.timings, asked.work)
    measured = 0
    with (asked.work / "log.txt").open("ab") as log:
        try:
            machine = examine(asked, log, ends)
            for network, size in heats(asked.chosen):
                if done(asked.work, network, size):
                    say(f"{heat_name(network, size)}: measured before")
                    continue
                if time.monotonic() > ends - OPENING_S - asked.race_s - CLOSING_S:
                    say(f"{heat_name(network, size)}: no time is left, give the command again")
                    break
                measured += one_heat(asked, network, size, machine, log, ends - CLOSING_S)
        finally:
            bring_home(asked)
    return measured


def examine(asked: Campaign, log: IO[bytes], ends: float) -> dict[str, Any]:
    """Return what records say of this machine; measure its peaks where that was not done."""
    smi = nvidia_smi("-q")
    (asked.work / "nvidia-smi.txt").write_text(smi)
    engines = {
        name: version_in(asked.pythons.of(name), module)
        for name, module in (("tensorrt", "tensorrt"), ("pytorch", "torch"))
    }
    peaks = asked.work / PEAKS
    if asked.torch and not peaks.is_file():
        answer = ask_once(asked.pythons.torch, {"do": "peaks"}, log, min(120, ends))
        if "peaks" in answer:
            write_json(peaks, answer["peaks"])
        else:
            say(f"peaks: {answer['failed']}")
    gpu = nvidia_smi("--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    return {**describe_machine(), "gpu": gpu.strip(), "engines": engines}


def one_heat(
    asked: Campaign,
    network: str,
    size: Size,
    machine: Mapping[str, Any],
    log: IO[bytes],
    ends: float,
) -> int:
    """Build and race one network at one size; return how many rows did not fail."""
    rows = [row for row in rows_of(network, size) if asked.torch or row.engine == "tensorrt"]
    say(f"{heat_name(network, size)}: {len(rows)} rows, {ends - time.monotonic():.0f} s left")
    built = build_all(asked, rows, log, ends - OPENING_S - asked.race_s)
    image = next((asked.folder / "images").glob(f"{size[0]}x{size[1]}-*.png"))
    measured = run_heat(
        rows, built, image=image, pythons=asked.pythons, watch=open_watch(), machine=machine,
        log=log, race_s=asked.race_s, ends=ends,
    )  # fmt: skip
    append_records(asked.work / RECORDS, measured)
    for row in measured:
        spent = f"{row.median_ms:.3f} ms" if row.samples_ms else "-"
        compute = (
            f"{sorted(row.compute_ms)[len(row.compute_ms) // 2]:.3f}" if row.compute_ms else "-"
        )
        say(f"  {row.name}: {spent} end to end, {compute} ms compute; {row.verdict}")
    return sum(not row.verdict.startswith("failed") for row in measured)


def build_all(
    asked: Campaign, rows: Sequence[Row], log: IO[bytes], ends: float
) -> dict[str, dict[str, Any]]:
    """Build every plan that the rows need, one after the other; return ONNX file -> facts."""
    facts = json.loads((asked.work / FACTS).read_text()) if (asked.work / FACTS).is_file() else {}
    built: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row.engine != "tensorrt" or row.file in built:
            continue
        if ends - time.monotonic() < 1:
            built[row.file] = {"failed": "its plan was not built: no time was left"}
            continue
        order = {
            "do": "build",
            "row": row.to_json(),
            "folder": str(asked.folder.resolve()),
            "work": str(asked.work.resolve()),
        }
        left = min(BUILD_S, ends - time.monotonic())
        answer = ask_once(asked.pythons.tensorrt, order, log, left)
        built[row.file] = answer.get("built", answer)
        facts[row.plan] = built[row.file]
        write_json(asked.work / FACTS, facts)
        share_peaks(asked.work, built[row.file])
        say(f"  {row.file}: {told(built[row.file])}")
    return built


def told(facts: Mapping[str, Any]) -> str:
    """Return a line on what building a plan gave."""
    if "failed" in facts:
        return f"failed: {facts['failed']}"
    precision, counts = facts["precision"], facts["counts"]
    return (
        f"built in {facts['seconds']} s, {facts['plan_bytes'] / 2**20:.1f} MiB, "
        f"obeyed {precision['obeyed']}, {len(precision['errors'])} layers disobey, "
        f"counts off by {counts['worst']:.2%} (agrees: {counts['agrees']}), "
        f"layers {facts['layers']}"
    )


def share_peaks(work: Path, facts: Mapping[str, Any]) -> None:
    """Put the GPU's peaks beside a plan, for `crowdrt inspect`."""
    if (work / PEAKS).is_file() and "folder" in facts:
        shutil.copy(work / PEAKS, Path(facts["folder"]) / PEAKS)


def done(work: Path, network: str, size: Size) -> bool:
    """Say whether a heat was run before, and TensorRT was measured in it."""
    if not (work / RECORDS).is_file():
        return False
    return any(
        (row.network, row.size, row.engine) == (network, size, "tensorrt") and row.samples_ms
        for row in read_records(work / RECORDS)
    )


def bring_home(asked: Campaign) -> None:
    """Copy all but plans and ONNX files to `out`, in few files."""
    asked.out.mkdir(parents=True, exist_ok=True)
    for name in (RECORDS, FACTS, PEAKS, "log.txt", "nvidia-smi.txt"):
        if (asked.work / name).is_file():
            shutil.copy(asked.work / name, asked.out / name)
    for name in ("sidecars", "store/timings"):
        if (asked.work / name).is_dir():
            with (
                write_whole(asked.out / f"{Path(name).name}.tar.gz") as path,
                tarfile.open(path, "w:gz") as tar,
            ):
                tar.add(asked.work / name, arcname=name)


def take_timings(archive: Path, work: Path) -> None:
    """Unpack an earlier call's timing caches; the builder itself refuses those of another GPU.

    Raises:
        BenchmarkError: the archive cannot be read.
    """
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(work, filter="data")
    except (OSError, tarfile.TarError) as error:
        raise BenchmarkError(
            f"{archive} cannot be unpacked: {error}", fix="leave out --timings"
        ) from error


def nvidia_smi(*arguments: str) -> str:
    """Return what nvidia-smi says; it only reads."""
    try:
        answer = subprocess.run(
            ["nvidia-smi", *arguments], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"nvidia-smi does not answer: {error}"
    return answer.stdout


def version_in(python: str, module: str) -> str | None:
    """Return a library's version in another interpreter."""
    command = [python, "-c", f"import {module}; print({module}.__version__)"]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=120, check=True, env=dict(os.environ)
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
