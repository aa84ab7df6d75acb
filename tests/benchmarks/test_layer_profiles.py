"""Profiles of layers as records, the roofline of a CPU, and the processes that measure both."""

import importlib
import json
import subprocess
import tempfile
import time
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import pytest
from profiles import PEAKS, a_layer, a_profile, two_files

from crowdrt.benchmarks.layers import peaks, process, worker
from crowdrt.benchmarks.layers.peaks import (
    MIN_COPY,
    PeakConfig,
    codes,
    copy_bytes,
    float_product,
    floats,
    integer_product,
    largest_cache,
    products,
    quantized_product,
)
from crowdrt.benchmarks.layers.process import in_own_process
from crowdrt.benchmarks.layers.records import (
    append_profiles,
    layer_costs,
    profile_line,
    read_profiles,
)
from crowdrt.benchmarks.layers.worker import RunConfig, answer, take_turns
from crowdrt.benchmarks.timing.statistics import uncertainty
from crowdrt.benchmarks.timing.worker import timed_visit
from crowdrt.engines.ort import OrtEngine
from crowdrt.errors import BenchmarkError

SMALL = PeakConfig(sides=(32, 64), seconds=0.0, copy_bytes=2**20)


def test_a_profile_comes_back_from_its_file(tmp_path):
    path = tmp_path / "layers.jsonl"
    append_profiles(path, two_files()[:1])
    append_profiles(path, two_files()[1:])
    assert read_profiles(path) == two_files()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda fields: fields.pop("layers"),
        lambda fields: fields.update(layers=[{"name": "a"}]),
        lambda fields: fields["peaks"].pop("bytes_per_s"),
        lambda fields: fields.update(schema=2),
        lambda fields: fields.update(size=[1]),
        lambda fields: fields["layers"][0].update(samples_ms=[]),
        lambda fields: fields["peaks"].update(bytes_per_s=0),
        lambda fields: fields["peaks"]["operations_per_s"].update(int8=-1e9),
        lambda fields: fields["peaks"].update(how={"fp32": {}}),
        lambda fields: fields["peaks"].update(how=["fp32"]),
        lambda fields: fields["peaks"].update(others="x"),
        lambda fields: fields.update(whole_ms=[]),
        lambda fields: fields.update(verdict=None),
    ],
)
def test_a_damaged_line_is_named_with_its_number(spoil, tmp_path):
    path = tmp_path / "layers.jsonl"
    fields = json.loads(profile_line(two_files()[0]))
    spoil(fields)
    path.write_text(f"{profile_line(two_files()[1])}\n{json.dumps(fields)}\n")
    with pytest.raises(BenchmarkError, match=r"layers\.jsonl, line 2"):
        read_profiles(path)


def test_sums_and_what_they_do_not_explain():
    profile = two_files()[0]
    assert profile.layers_ms == pytest.approx(29.15)
    assert profile.unexplained_ms == pytest.approx(0.85)
    slowed = replace(profile, whole_ms=(20.0,))
    assert slowed.unexplained_ms == pytest.approx(-9.15)
    assert sum(cost.share for cost in layer_costs(profile)) == pytest.approx(1)


def test_each_layer_has_its_bound():
    bound = a_layer("operations", 20.0)  # 1e9 operations at 1e11 take 10 ms, its bytes 1 ms
    moved = a_layer("bytes", 4.0, macs=1000)
    unknown = a_layer("unknown", 4.0, macs=None)
    codes = a_layer("codes", 20.0, precision="int8")  # four times the rate
    odd = a_layer("odd", 4.0, precision="fp16")  # of which no peak was measured
    nothing = a_layer("view", 1.0, num_bytes=None)
    costs = layer_costs(a_profile("fp32", [bound, moved, unknown, codes, odd, nothing]))
    assert [(cost.least_ms, cost.bound_by) for cost in costs] == [
        (pytest.approx(10), "operations"),
        (pytest.approx(1), "bytes"),
        (pytest.approx(1), "bytes"),
        (pytest.approx(2.5), "operations"),
        (None, None),
        (None, None),
    ]
    assert costs[0].roofline == pytest.approx(0.5)
    assert costs[0].macs_per_s == pytest.approx(2.5e10)
    assert costs[2].macs_per_s is None


def test_a_layer_beyond_its_roof_is_not_clipped():
    (cost,) = layer_costs(a_profile("fp32", [a_layer("cached", 4.0)]))
    assert cost.roofline == pytest.approx(2.5)


def test_peaks_of_a_busy_machine_are_doubted():
    profile = two_files()[0]
    assert profile.doubt == ""
    assert replace(profile, peaks=PEAKS | {"others": None}).doubt == ""
    assert "60 %" in replace(profile, peaks=PEAKS | {"others": 0.6}).doubt


def test_the_products_that_are_timed_are_products():
    side = 48
    for model, feeds in (
        (float_product(side), floats(side)),
        (integer_product(side), codes(side)),
    ):
        stored = onnx.numpy_helper.to_array(model.graph.initializer[0])
        found = OrtEngine(model.SerializeToString()).run(feeds)["c"]
        expected = feeds["a"].astype(np.float64) @ stored.astype(np.float64)
        assert expected.std() > 1
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_the_quantized_product_uses_its_codes():
    side = 64
    found = OrtEngine(quantized_product(side).SerializeToString()).run(codes(side))["c"]
    assert found.dtype == np.uint8
    assert len(np.unique(found)) > 20
    assert (found == 255).mean() < 0.2


def test_peaks_are_measured_in_a_process_of_their_own():
    order = {"num_threads": 1, "config": asdict(SMALL)}
    found = in_own_process(order, None)
    assert set(found["operations_per_s"]) == {"fp32", "int8"}
    assert all(rate > 1e6 for rate in (*found["operations_per_s"].values(), found["bytes_per_s"]))
    assert found["how"]["copy"]["bytes"] == 2**20
    assert found["how"]["fp32"]["side"] in SMALL.sides
    assert found["num_threads"] == 1


def test_a_failure_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    order = {"engine": "/nowhere", "onnx": None, "num_threads": 1, "config": asdict(RunConfig())}
    image = np.zeros((3, 8, 8), np.uint8)
    with pytest.raises(BenchmarkError, match="/nowhere is no engine folder"):
        in_own_process(order, image)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (subprocess.TimeoutExpired("python", 1), "no answer within"),
        (subprocess.CompletedProcess("python", -9), "exit code -9"),
        (FileNotFoundError("no python"), "could be started: no python"),
        (BlockingIOError("too many processes"), "could be started: too many"),
    ],
)
def test_a_process_that_dies_or_hangs_is_told(end, reason, tmp_path, monkeypatch):
    def run(*_args, **_options):
        assert len(list(tmp_path.iterdir())) == 1
        if isinstance(end, Exception):
            raise end
        return end

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(process.subprocess, "run", run)
    with pytest.raises(BenchmarkError, match=reason):
        in_own_process({"num_threads": 1}, None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("killed", [False, True])
def test_an_orphan_tidies_up(killed, tmp_path, monkeypatch):
    folder = tmp_path / "order"
    folder.mkdir()
    order = {"num_threads": 1, "config": {"sides": []}, "parent": 100}
    (folder / "order.json").write_text(json.dumps(order))
    monkeypatch.setattr(worker.os, "getppid", lambda: 1 if killed else 100)
    monkeypatch.setattr(worker, "measure_peaks", lambda *_: {"cpu": "A"})
    answer(folder)
    assert folder.exists() is not killed
    if not killed:
        assert json.loads((folder / "answer.json").read_text()) == {"cpu": "A"}


def test_runs_with_and_without_the_profiler_take_turns():
    ran = []

    class Plain:
        def run(self, _feeds):
            ran.append("plain")

    class Watched:
        def run(self, _feeds):
            ran.append("watched")

    config = RunConfig(num_warmup=2, min_runs=3, max_runs=9, seconds=0.0, visit_s=0.0)
    visits, profiled_ms = take_turns(Plain(), Watched(), {}, config)
    assert ran == ["plain", "watched"] * 5
    assert len(visits) == len(profiled_ms) == 3


def test_an_engine_of_milliseconds_runs_often_enough_for_the_systems_ticks():
    class Engine:
        def run(self, _feeds):
            time.sleep(0.004)

    config = RunConfig(num_warmup=3, min_runs=2, seconds=0.0, visit_s=0.2)
    visits, profiled_ms = take_turns(Engine(), Engine(), {}, config)
    assert (len(visits), len(profiled_ms)) == (2, 2)
    for visit in visits:
        assert len(visit.samples_ms) > 5
        assert 0.04 < visit.wall_s / 2 < sum(visit.samples_ms) / 1000 <= visit.wall_s


def test_a_burst_begins_with_a_run_that_is_not_timed():
    """The profiler's run has meanwhile emptied the caches: here it is slower by 20 ms."""
    cold = [True]

    class Plain:
        def run(self, _feeds):
            time.sleep(0.02 if cold[0] else 0.001)
            cold[0] = False

    class Watched:
        def run(self, _feeds):
            cold[0] = True

    engine = Plain()
    burst = timed_visit(lambda: worker.timed_run(engine, {}), 5)
    assert max(burst.samples_ms) < 15
    Watched().run({})
    (sample,) = timed_visit(lambda: worker.timed_run(engine, {}), 1).samples_ms
    assert sample > 15
    config = RunConfig(num_warmup=3, min_runs=2, max_runs=2, visit_s=0.1)
    visits, _ = take_turns(engine, Watched(), {}, config)
    assert all(len(visit.samples_ms) > 1 for visit in visits)
    assert max(sample for visit in visits for sample in visit.samples_ms) < 15


def test_the_slowest_engine_makes_enough_visits_for_an_interval():
    class Engine:
        def run(self, _feeds):
            time.sleep(0.001)

    visits, _ = take_turns(Engine(), Engine(), {}, RunConfig(seconds=0.0, visit_s=0.0))
    assert uncertainty([visit.samples_ms[0] for visit in visits], 1) is not None


def test_a_process_of_its_own_imports_nothing_from_where_we_are(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    order = {"engine": "/nowhere", "onnx": None, "num_threads": 1, "config": asdict(RunConfig())}
    image = np.zeros((3, 8, 8), np.uint8)
    with pytest.raises(BenchmarkError, match="/nowhere is no engine folder"):
        in_own_process(order, image)


def test_a_runtime_under_another_distributions_name_has_its_version(monkeypatch):
    def unknown(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", unknown)
    said = {runtime for _, runtime, _ in products(1)}
    assert said
    for runtime in said:
        name, version = runtime.split(" ", 1)
        assert version == importlib.import_module(name).__version__


@pytest.mark.parametrize(
    ("cache", "memory_mib", "copied"),
    [
        (105 * 2**20, 64 * 1024, 420 * 2**20),
        (105 * 2**20, 4 * 1024, 256 * 2**20),  # a sixteenth of the memory
        (2**20, 64 * 1024, MIN_COPY),
        (105 * 2**20, None, MIN_COPY),
    ],
)
def test_four_times_the_largest_cache_is_copied_within_the_memory(
    cache, memory_mib, copied, monkeypatch
):
    monkeypatch.setattr(peaks, "largest_cache", lambda: cache)
    monkeypatch.setattr(peaks, "memory_mib", lambda: memory_mib)
    assert copy_bytes() == copied


def test_the_largest_cache_is_found(tmp_path):
    for index, size in enumerate(("48K", "2048K", "105M", "none")):
        folder: Path = tmp_path / f"index{index}"
        folder.mkdir()
        (folder / "size").write_text(f"{size}\n")
    assert largest_cache(tmp_path) == 105 * 2**20
    assert largest_cache(tmp_path / "nothing") == 0
