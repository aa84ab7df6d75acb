"""Attempts checked, then raced together with their baselines: one race, one record."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from math import isinf, isnan
from typing import Any

from crowdrt.benchmarks.attempts.attempt import Attempt, Baseline, Form, Opener, Setting
from crowdrt.benchmarks.attempts.check import Entry, answer_to, compared_apart, entry_of
from crowdrt.benchmarks.attempts.records import Outcome, Raced, Trial
from crowdrt.benchmarks.labels import size_label
from crowdrt.benchmarks.layers.measure import peaks_apart
from crowdrt.benchmarks.layers.peaks import PeakConfig
from crowdrt.benchmarks.timing.difference import DRIFT, change_of, interval, ratio_of
from crowdrt.benchmarks.timing.machine import describe_machine
from crowdrt.benchmarks.timing.race import Contender, RaceConfig, race
from crowdrt.benchmarks.timing.verdict import has_failed
from crowdrt.contracts import GraphInfo, Measurement
from crowdrt.engines.machine import num_cores
from crowdrt.engines.store import installed_engines, runtime_version
from crowdrt.errors import BenchmarkError
from crowdrt.manifest import sha256_file
from crowdrt.onnx_file import graph_info, read_onnx
from crowdrt.onnx_graph import graph_size


def try_all(
    setting: Setting,
    attempts: Sequence[Attempt],
    config: RaceConfig,
    peaks: PeakConfig | None = None,
) -> Trial:
    """Check every attempt on the photograph, then race those that agree, with their baselines.

    Args:
        setting: files, photograph, threads.
        attempts: at least one.
        config: of the race; its number of threads is the setting's.
        peaks: how large and how long the products of this machine's peaks are.

    Raises:
        BenchmarkError: a file is not what it should be, the size suits an attempt not, or no
            engine ran.
    """
    infos = check_files(setting)
    check_size(setting, attempts, infos["fp32"])
    setting = replace(setting, num_threads=setting.num_threads or num_cores())
    attempts, missing = installed(attempts)
    baselines = list(dict.fromkeys(attempt.baseline for attempt in attempts))
    answers = {each: answer_to(setting.opener(each)(), setting.image) for each in baselines}
    entries = [
        entry_of(setting, each, answers[each.baseline], compare=compared_apart) for each in attempts
    ]
    found = peaks_apart(setting.num_threads, peaks)
    rows = raced(setting, baselines, entries, infos, config)
    macs = graph_size(read_onnx(setting.files["fp32"]), setting.size).macs
    return Trial(
        size=setting.size,
        num_threads=setting.num_threads,
        when=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        machine=describe_machine(),
        peaks=found,
        baselines=tuple(
            Raced(name=each.name, form=each.form, macs=macs, row=rows[each.name])
            for each in baselines
        ),
        outcomes=tuple(outcome_of(each, rows) for each in [*entries, *missing]),
    )


def raced(
    setting: Setting,
    baselines: Sequence[Baseline],
    entries: Sequence[Entry],
    infos: Mapping[Form, GraphInfo],
    config: RaceConfig,
) -> dict[str, Measurement]:
    """Race baselines and what was not refused; return the rows by name."""
    contenders = [
        contender(each.name, each, setting.opener(each), setting, infos) for each in baselines
    ]
    contenders += [
        contender(each.attempt.name, each.attempt.baseline, each.opener, setting, infos)
        for each in entries
        if each.opener is not None
    ]
    config = replace(config, num_threads=setting.num_threads)
    return {row.name: row for row in race(contenders, setting.image, config)}


def check_files(setting: Setting) -> dict[Form, GraphInfo]:
    """Return what is known of both files; refuse others than an FP32 file and its INT8 form."""
    infos = {form: graph_info(path) for form, path in setting.files.items()}
    kinds = {form: info.precision for form, info in infos.items()}
    if kinds["fp32"] != "fp32" or not kinds["int8"].startswith("int8"):
        raise BenchmarkError(
            f"attempts need an FP32 file and its INT8 form, not {' and '.join(kinds.values())}",
            fix="name them in this order: python -m crowdrt.benchmarks.attempts student.onnx "
            "student.int8.onnx",
        )
    names = {(info.network, info.width) for info in infos.values()}
    if len(names) > 1:
        raise BenchmarkError(
            f"the files hold different networks: {sorted(names)}",
            fix="crowdrt calibrate student.onnx --images DIR -o student.int8.onnx",
        )
    return infos


def check_size(setting: Setting, attempts: Sequence[Attempt], info: GraphInfo) -> None:
    """Refuse a size at which an attempt, or the network itself, has no whole number of cells."""
    stride = info.preprocessing.stride
    for attempt in attempts:
        multiple = stride * attempt.cells
        if any(side % multiple for side in setting.size):
            up = tuple(-(-side // multiple) * multiple for side in setting.size)
            raise BenchmarkError(
                f"{attempt.name} needs both sides to be multiples of {multiple} px, which "
                f"{size_label(setting.size)} is not",
                fix=f"use --size {size_label((up[0], up[1]))}, or other attempts: --only NAME",
            )


def installed(attempts: Sequence[Attempt]) -> tuple[list[Attempt], list[Entry]]:
    """Return the attempts whose runtime is here, and the others as what is not raced."""
    here = installed_engines()
    kept = [each for each in attempts if each.baseline.runtime in here]
    if not kept:
        raise BenchmarkError(
            "no runtime of these attempts is installed",
            fix="pip install 'crowdrt[cpu,openvino]'",
        )
    left = [each for each in attempts if each not in kept]
    return kept, [
        Entry(
            attempt=each,
            opener=None,
            result=f"not raced: {each.baseline.runtime} is not installed",
        )
        for each in left
    ]


def contender(
    name: str,
    baseline: Baseline,
    opener: Opener,
    setting: Setting,
    infos: Mapping[Form, GraphInfo],
) -> Contender:
    """Return the row of a race that a baseline, or an attempt on it, is."""
    info = infos[baseline.form]
    return Contender(
        name=name,
        network=info.network,
        width=info.width,
        engine=baseline.runtime,
        engine_version=runtime_version(baseline.runtime),
        precision=info.precision,
        open=opener,
        sha256=sha256_file(setting.files[baseline.form]),
    )


def outcome_of(entry: Entry, rows: Mapping[str, Measurement]) -> Outcome:
    """Return what became of an attempt, given every row of the race."""
    attempt, row = entry.attempt, rows.get(entry.attempt.name)
    outcome = Outcome(
        name=attempt.name,
        changed=attempt.changed,
        about=attempt.about,
        baseline=attempt.baseline.name,
        prediction=attempt.prediction,
        exact=attempt.exact,
        images_per_run=attempt.images_per_run,
        result=entry.result,
        agreement=entry.agreement,
        written=entry.written,
        found=entry.found,
    )
    if row is None:
        return outcome
    row = per_image(row, attempt.images_per_run)
    if has_failed(row.verdict):
        return replace(outcome, row=row, result=row.verdict)
    return replace(outcome, row=row, **held_against(rows[attempt.baseline.name], row))


def per_image(row: Measurement, images_per_run: int) -> Measurement:
    """Return a row whose times are of one image."""
    return replace(row, samples_ms=tuple(sample / images_per_run for sample in row.samples_ms))


def held_against(baseline: Measurement, changed: Measurement) -> dict[str, Any]:
    """Return the ratio of an attempt to its baseline, both per image, with its interval.

    Two rows of one race share its drift. What their ratio is in another race is known to 5 % at
    best, so that nothing below is called faster or slower.
    """
    ratio = ratio_of(baseline, changed)
    if isnan(ratio):
        return {"result": "failed: its baseline has no time"}
    low, high = interval(baseline, changed)
    known = not isinf(high)
    return {
        "result": change_of(low, high, DRIFT),
        "ratio": ratio,
        "low": low if known else None,
        "high": high if known else None,
    }
