"""Which layers of the INT8 file would be faster in float on this machine: measured, per layer."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from crowdrt.benchmarks.attempts.attempt import Baseline, Choice, Setting
from crowdrt.benchmarks.labels import significant
from crowdrt.benchmarks.layers.measure import profiles_beside
from crowdrt.benchmarks.layers.records import LayerProfile
from crowdrt.benchmarks.layers.worker import RunConfig
from crowdrt.benchmarks.timing.race import Contender
from crowdrt.benchmarks.timing.verdict import VALID
from crowdrt.engines.layers.layer import INT8, is_product
from crowdrt.engines.store import EngineStore, runtime_version
from crowdrt.onnx_file import graph_info

SECONDS = 5.0  # of profiling each of the two files, beyond six runs
MARGIN = 1.1  # the files are profiled one behind the other, and a machine drifts meanwhile


def faster_in_float(setting: Setting, baseline: Baseline) -> Choice:
    """Profile both files in one runtime and choose the layers that lose time in INT8."""
    runs = RunConfig(seconds=SECONDS)
    with tempfile.TemporaryDirectory(prefix="crowdrt-attempts-") as name:
        store = EngineStore(Path(name))
        engines = []
        for form, path in setting.files.items():
            info = graph_info(path)
            folder = store.build(path, engine=baseline.runtime, num_threads=setting.num_threads)
            about = Contender(
                name=f"{baseline.runtime} {form}",
                network=info.network,
                width=info.width,
                engine=baseline.runtime,
                engine_version=runtime_version(baseline.runtime),
                precision=info.precision,
                open=setting.opener(Baseline(runtime=baseline.runtime, form=form)),
            )
            engines.append((about, folder.path, path))
        profiles = profiles_beside(
            {}, engines, setting.image, num_threads=setting.num_threads, runs=runs
        )
    return choice_of(dict(zip(setting.files, profiles, strict=True)))


def choice_of(profiles: Mapping[str, LayerProfile]) -> Choice:
    """Return the layers whose product of codes took longer, by `MARGIN`, than that of floats.

    Verdicts other than valid do not change the choice: they are told with it.
    """
    in_float = {layer.name: layer.ms for layer in profiles["fp32"].layers if is_product(layer.kind)}
    times = {
        layer.name: {"fp32_ms": in_float[layer.name], "int8_ms": layer.ms}
        for layer in profiles["int8"].layers
        if is_product(layer.kind) and layer.precision == INT8 and layer.name in in_float
    }
    slower = tuple(name for name, ms in times.items() if ms["int8_ms"] > MARGIN * ms["fp32_ms"])
    verdicts = {form: profile.verdict for form, profile in profiles.items()}
    found = {"layers": times, "margin": MARGIN, "verdicts": verdicts}
    doubts = [f"{form} {said}" for form, said in verdicts.items() if said != VALID]
    doubt = f" (profiles in doubt: {'; '.join(doubts)})" if doubts else ""
    if slower:
        return Choice(options={"layers": slower}, found=found, said=", ".join(slower) + doubt)
    said = f"none of its {len(times)} layers of codes is slower than in FP32 by {MARGIN - 1:.0%}"
    if times:
        closest = min(times, key=lambda name: times[name]["fp32_ms"] / times[name]["int8_ms"])
        ms = times[closest]
        codes, floats = significant(ms["int8_ms"]), significant(ms["fp32_ms"])
        said += f"; the closest, {closest}: {codes} ms, {floats} in FP32"
    return Choice(options=None, found=found, said=said + doubt)
