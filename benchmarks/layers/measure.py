"""The layers of one engine and the peaks of this machine, each in a process of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from crowdrt.benchmarks.layers.peaks import PeakConfig
from crowdrt.benchmarks.layers.process import in_own_process
from crowdrt.benchmarks.layers.records import LayerProfile
from crowdrt.benchmarks.layers.worker import RunConfig
from crowdrt.benchmarks.timing.machine import describe_machine
from crowdrt.benchmarks.timing.pinning import cores_for
from crowdrt.benchmarks.timing.race import Contender
from crowdrt.console import track
from crowdrt.contracts import UInt8Image
from crowdrt.engines.layers.layer import EngineLayer
from crowdrt.engines.machine import num_cores

Profiled = tuple[Contender, Path, Path | None]  # what it is, its folder, its ONNX file


def profile_layers(
    engines: Sequence[Profiled],
    image: UInt8Image,
    *,
    num_threads: int = 0,
    runs: RunConfig | None = None,
    peaks: PeakConfig | None = None,
) -> list[LayerProfile]:
    """Return the layers of engines, one engine after the other, with this machine's peaks.

    Args:
        engines: each with its folder of the store, and, where it is at hand, the ONNX file that it
            was built from, by whose names and shapes layers are told.
        image: (C, H, W), a photograph or like one; its size is the size that is profiled.
        num_threads: 0 takes every core; the peaks have as many.
        runs: how often.
        peaks: how large and how long the peaks' products are.

    Raises:
        BenchmarkError: an engine, or the process that ran it, failed.
    """
    threads = num_threads or num_cores()
    found = peaks_apart(threads, peaks)
    return profiles_beside(found, engines, image, num_threads=threads, runs=runs)


def peaks_apart(num_threads: int, config: PeakConfig | None = None) -> dict[str, Any]:
    """Return this machine's peaks, measured in a process of its own.

    Args:
        num_threads: at least 1.
        config: how large and how long the peaks' products are.

    Raises:
        BenchmarkError: the process failed.
    """
    order = {"num_threads": num_threads, "config": asdict(config or PeakConfig())}
    return in_own_process(order, None)


def profiles_beside(
    peaks: Mapping[str, Any],
    engines: Sequence[Profiled],
    image: UInt8Image,
    *,
    num_threads: int,
    runs: RunConfig | None = None,
) -> list[LayerProfile]:
    """Return what `profile_layers` does, beside peaks that are there already.

    Args:
        peaks: of `peaks_apart`; empty where only times are asked for.
        engines: as there.
        image: as there.
        num_threads: at least 1.
        runs: how often.
    """
    machine = {**describe_machine(), "affinity": list(cores_for(num_threads))}
    profiles = []
    for contender, folder, source in track(engines, "profiling layers", total=len(engines)):
        order = {
            "engine": str(folder.resolve()),
            "onnx": None if source is None else str(source.resolve()),
            "num_threads": num_threads,
            "config": asdict(runs or RunConfig()),
        }
        seen = in_own_process(order, image)
        height, width = image.shape[1:]
        profiles.append(
            LayerProfile(
                **contender.about(),
                size=(height, width),
                num_threads=num_threads,
                when=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
                machine=machine,
                peaks=peaks,
                whole_ms=tuple(seen["whole_ms"]),
                profiled_ms=tuple(seen["profiled_ms"]),
                verdict=seen["verdict"],
                layers=tuple(map(EngineLayer.from_json, seen["layers"])),
            )
        )
    return profiles
