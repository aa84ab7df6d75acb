"""The layers of engines on a CPU: `crowdrt profile ENGINE --layers`, and the stage of a run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table
from rich.text import Text

from crowdrt.benchmarks.labels import significant, size_label
from crowdrt.benchmarks.layers.measure import profile_layers
from crowdrt.benchmarks.layers.peaks import PeakConfig
from crowdrt.benchmarks.layers.records import (
    SCHEMA,
    LayerCost,
    LayerProfile,
    append_profiles,
    layer_costs,
    profile_line,
    read_profiles,
)
from crowdrt.benchmarks.layers.worker import RunConfig
from crowdrt.benchmarks.lines import check_appendable
from crowdrt.console import show_table, tell
from crowdrt.contracts import Artifact, Size
from crowdrt.engines.layers.profilers import WITH_PROFILER
from crowdrt.engines.store import MANIFEST, content_sha256
from crowdrt.errors import BenchmarkError
from crowdrt.manifest import read_json, reusable, write_manifest, write_whole
from crowdrt.pipeline.layers import number, short
from crowdrt.pipeline.measuring import engine_contender, info_of, race_photograph
from crowdrt.pipeline.races import race_identity
from crowdrt.pipeline.stages import engine_folder

SIZE = (576, 864)  # of a network that takes any: SKT's first
OVER = "over 100 %: a cache held what it read, or it multiplies less than its definition says"


def profile_one(
    paths: Sequence[Path],
    sizes: Sequence[Size],
    *,
    seconds: float,
    records: Path | None,
    store: Path | None,
    num_threads: int,
    onnx: Path | None = None,
) -> LayerProfile:
    """Profile the layers of one engine at one size; add it to `records` where that is given.

    Args:
        paths: one built engine, or an ONNX file, which is built in passing.
        sizes: one (height, width), or none: the network's own, else 576x864.
        seconds: after which no more runs begin.
        records: a file of profiles.
        store: where engines are kept.
        num_threads: 0 takes every core.
        onnx: the file that a built engine was built from; None: names are the runtime's own.

    Raises:
        BenchmarkError: there is more than one engine or size, or no profiler of layers; `onnx` is
            another file, or `records` holds no profiles.
        CrowdRTError: the engine cannot be opened, takes no such size, or fails.
    """
    path = check_one(paths, sizes)
    check_profiler(path)
    source = origin_of_engine(path, onnx)
    if records is not None:
        check_appendable(records, read_profiles)
    size = sizes[0] if sizes else info_of(path, store).fixed_size or SIZE
    contender = engine_contender(path, store, num_threads, [size])
    (profile,) = profile_layers(
        [(contender, engine_folder(path, store), source)],
        race_photograph(size),
        num_threads=num_threads,
        runs=RunConfig(seconds=seconds),
        peaks=PeakConfig(),
    )
    if records is not None:
        append_profiles(records, [profile])
    return profile


def check_one(paths: Sequence[Path], sizes: Sequence[Size]) -> Path:
    """Return the one engine; layers of several stand in a table each."""
    different = list(dict.fromkeys(paths))
    if len(different) > 1:
        raise BenchmarkError(
            f"--layers tells the layers of one engine, not of {len(different)}",
            fix=f"name one: crowdrt profile {different[0]} --layers; to compare whole engines, "
            "leave out --layers",
        )
    if len(set(sizes)) > 1:
        raise BenchmarkError(
            f"--layers runs at one size, not at {len(set(sizes))}",
            fix=f"name one: crowdrt profile {different[0]} --layers --size {size_label(sizes[0])}",
        )
    return different[0]


def check_profiler(path: Path) -> None:
    """Refuse what has no profiler of layers here: PyTorch, and engines on a GPU."""
    if path.suffix == ".safetensors":
        raise BenchmarkError(
            f"{path} is run by PyTorch, of which no layers are told here",
            fix=f"export it first: crowdrt export NETWORK --weights {path} -o model.onnx; then "
            "crowdrt profile model.onnx --layers",
        )
    identity = (read_json(path / MANIFEST) or {}).get("identity") if path.is_dir() else None
    runtime = identity.get("engine") if isinstance(identity, Mapping) else None
    if runtime is not None and runtime not in WITH_PROFILER:
        raise BenchmarkError(
            f"{path} is an engine of {runtime}, which tells of its layers while it is built",
            fix=f"crowdrt inspect {path}",
        )


def origin_of_engine(path: Path, onnx: Path | None) -> Path | None:
    """Return the ONNX file that an engine was built from, by whose names layers are told.

    Args:
        path: a built engine, or an ONNX file, which is it.
        onnx: what the caller says that the engine was built from; None: it is not at hand.

    Raises:
        BenchmarkError: the engine was built from another file.
    """
    if not path.is_dir():
        if onnx is not None and onnx != path:
            raise BenchmarkError(
                f"{path} is an ONNX file, so its layers are told by itself, not by {onnx}",
                fix=f"crowdrt profile {path} --layers",
            )
        return path
    if onnx is None:
        return None
    identity = (read_json(path / MANIFEST) or {}).get("identity")
    wanted = identity.get("onnx_sha256") if isinstance(identity, Mapping) else None
    found = content_sha256(onnx)
    if found != wanted:
        raise BenchmarkError(
            f"{path} was built from an ONNX file of sha256 {str(wanted)[:16]}, and {onnx} has "
            f"{found[:16]}",
            fix="name that file; or leave out --onnx, and have the runtime's own names",
        )
    return onnx


def profile_stage(
    networks: Sequence[Path], size: Size, out: Path, store: Path | None, num_threads: int
) -> Artifact:
    """Write the layers of a run's engines, unless exactly these were profiled before.

    Args:
        networks: ONNX files, whose engines are in the store.
        size: (height, width) in pixels.
        out: the file of profiles; of what cannot be profiled none is left.
        store: where engines are kept.
        num_threads: 0 takes every core.

    Raises:
        BenchmarkError: an engine, or the process that ran it, failed.
        CrowdRTError: a file could not be written.
    """
    engines = [
        (engine_contender(path, store, num_threads), engine_folder(path, store), path)
        for path in networks
    ]
    made_from = {
        **race_identity([c for c, *_ in engines], [f for _, f, _ in engines], num_threads),
        "size": size,
        "schema": SCHEMA,  # of profiles: that of races is another matter
    }
    done = reusable(out, made_from=made_from)
    if done is None:
        out.unlink(missing_ok=True)
        profiles = profile_layers(
            engines,
            race_photograph(size),
            num_threads=num_threads,
            runs=RunConfig(),
            peaks=PeakConfig(),
        )
        with write_whole(out) as temporary:
            temporary.write_text("".join(profile_line(each) + "\n" for each in profiles))
        done = write_manifest(out, kind="layers", made_from=made_from)
    return done


def as_json(profile: LayerProfile) -> dict[str, Any]:
    """Return a profile as `--json` prints it: each layer with what follows from it."""
    costs = [asdict(cost) for cost in layer_costs(profile)]
    document: dict[str, Any] = json.loads(profile_line(profile))
    return document | {
        "whole_p50_ms": median(profile.whole_ms),
        "layers_p50_ms": profile.layers_ms,
        "unexplained_ms": profile.unexplained_ms,
        "layers": [cost.pop("layer") | cost for cost in costs],
    }


def show_profile(profile: LayerProfile) -> None:
    """Print a line per layer, their sum, and what to know of both."""
    costs = layer_costs(profile)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("layer", "runs in", "ms", "share", "GMAC", "GMAC/s", "least ms", "bound by",
                  "roofline"):  # fmt: skip
        left = title in ("layer", "runs in", "bound by")
        table.add_column(title, justify="left" if left else "right")
    for cost in costs:
        table.add_row(*map(Text, cells(cost)))
    table.add_row(*map(Text, totals(costs)))
    show_table(table)
    for line in notes(profile, costs):
        tell(line)


def cells(cost: LayerCost) -> tuple[str, ...]:
    """Return the table's cells of one layer."""
    layer = cost.layer
    serves = "" if layer.nodes else f" ({layer.kind})"
    return (
        short(layer.name) + (serves if layer.kind != layer.name else ""),
        layer.precision or "?",
        f"{cost.ms:.3f}",
        f"{cost.share:.1%}",
        number(layer.macs, "{:.3f}", 1e9),
        number(cost.macs_per_s, "{:.1f}", 1e9),
        number(cost.least_ms, "{:.3f}"),
        cost.bound_by or ("?" if layer.macs else ""),
        number(cost.roofline, "{:.0%}"),
    )


def totals(costs: Sequence[LayerCost]) -> tuple[str, ...]:
    """Return the table's last line; `?` for what one layer's unknown bound leaves open."""
    spent, macs = sum(cost.ms for cost in costs), sum(cost.layer.macs or 0 for cost in costs)
    least = sum(cost.least_ms or 0.0 for cost in costs)
    rate = macs / spent * 1000 if spent else 0.0
    bounded = all(cost.least_ms is not None for cost in costs if cost.layer.macs)
    return (
        f"{len(costs)} layers", "", f"{spent:.3f}", "100.0%", f"{macs / 1e9:.3f}",
        f"{rate / 1e9:.1f}", f"{least:.3f}" if bounded else "?", "",
        "" if not spent else f"{least / spent:.0%}" if bounded else "?",
    )  # fmt: skip


def notes(profile: LayerProfile, costs: Sequence[LayerCost]) -> list[str]:
    """Return what stands below the table."""
    whole, rest = median(profile.whole_ms), profile.unexplained_ms
    threads = f"{profile.num_threads} thread{'s' if profile.num_threads > 1 else ''}"
    beyond = (
        f"{rest:.2f} ms of it in no layer"
        if rest >= 0
        else f"its layers sum to {-rest:.2f} ms more, slowed by the profiler"
    )
    lines = [
        f"{profile.name} at {size_label(profile.size)}, {threads}: a whole run takes "
        f"{whole:.2f} ms without the profiler, {beyond}",
        f"medians of {len(profile.whole_ms)} runs, and of {len(profile.profiled_ms)} with the "
        f"profiler: {profile.verdict}",
        peaks_note(profile),
    ]
    if any((cost.roofline or 0) > 1 for cost in costs):
        lines.append(OVER)
    return lines


def peaks_note(profile: LayerProfile) -> str:
    """Return what this machine was measured to do at most."""
    limits = profile.limits
    rates = [
        f"{precision.upper()} {significant(limits.operations_per_s[precision] / 1e9)} GOP/s ({by})"
        for precision, by in profile.peaks_by.items()
    ]
    doubt = f", and may be higher: {profile.doubt}" if profile.doubt else ""
    return (
        f"peaks of this machine: {', '.join(rates)}, copy {significant(limits.bytes_per_s / 1e9)} "
        f"GB/s; best of repeated runs{doubt}"
    )
