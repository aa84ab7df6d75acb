import collections
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import fake_engines
import numpy as np
import pytest

from crowdrt.benchmarks.timing.nvml import GpuSample, GpuWatch
from crowdrt.benchmarks.timing.race import Contender, RaceConfig, race
from crowdrt.benchmarks.timing.records import append_records, read_records
from crowdrt.benchmarks.timing.worker import NEGATIVE, WarmUp, flipped
from crowdrt.errors import BenchmarkError

FAST = RaceConfig(
    num_threads=1,
    budget_s=0.4,
    max_rounds=4,
    visit_s=0.01,
    settle_s=0.0,
    timeout_s=60,
    warm_up=WarmUp(runs=2, seconds=0.0, max_s=1.0),
)


def contender(name: str, opener) -> Contender:
    return Contender(
        name=name,
        network="csrnet",
        width="1/4",
        engine="fake",
        engine_version="1",
        precision="fp32",
        open=opener,
    )


class Steady:
    """A reader of a GPU that another process uses, too."""

    def read(self):
        return GpuSample(
            sm_mhz=1980, memory_mhz=3201, power_w=400.0, temperature_c=50, reasons=0x4, pids=(1,)
        )


def test_an_engine_on_a_gpu_says_where_its_time_went_and_its_gpu_is_watched(
    photograph, monkeypatch, tmp_path
):
    monkeypatch.setattr(
        "crowdrt.benchmarks.timing.race.open_watch", lambda: GpuWatch(Steady(), interval_s=0.001)
    )
    on_gpu = replace(contender("gpu", partial(fake_engines.GpuEngine, 0.01)), engine="tensorrt")
    on_cpu = contender("cpu", partial(fake_engines.GpuEngine, 0.01))
    gpu, cpu = race([on_gpu, on_cpu], photograph, FAST)
    assert len(gpu.compute_ms) == len(gpu.samples_ms) > 0
    assert set(gpu.compute_ms) == {1.5}
    assert (set(gpu.to_device_ms), set(gpu.to_host_ms)) == ({0.25}, {0.125})
    assert gpu.gpu["sm_mhz"]["median"] == 1980
    assert "throttled: software power cap" in gpu.verdict
    assert "shared: 1 other" in gpu.verdict
    assert cpu.gpu is None
    assert "throttled" not in cpu.verdict
    append_records(tmp_path / "rows.jsonl", [gpu])
    assert read_records(tmp_path / "rows.jsonl") == [gpu]


def test_without_nvml_the_row_says_so(photograph, monkeypatch):
    monkeypatch.setattr("crowdrt.benchmarks.timing.race.open_watch", lambda: None)
    on_gpu = replace(contender("gpu", partial(fake_engines.GpuEngine, 0.01)), engine="tensorrt")
    assert "unwatched" in race([on_gpu], photograph, FAST)[0].verdict


def test_every_sample_of_every_contender_is_kept(photograph):
    rows = race(
        [
            contender("slow", partial(fake_engines.FakeEngine, 0.02)),
            contender("fast", partial(fake_engines.FakeEngine, 0.002)),
        ],
        photograph,
        replace(FAST, min_rounds=4),
    )
    slow, fast = rows
    assert [row.name for row in rows] == ["slow", "fast"]
    assert slow.median_ms >= 20 > fast.median_ms >= 2
    assert len(slow.samples_ms) == 4  # one run per visit
    assert len(fast.samples_ms) > 4  # bursts
    assert slow.size == (64, 96)
    assert slow.num_threads == 1
    assert slow.run_id == fast.run_id
    assert slow.peak_mib > 5
    assert slow.machine["num_cores"] == len(os.sched_getaffinity(0))


def order_of(photograph, log: Path, *, seed: int) -> list[str]:
    """The names of 8 rounds of three contenders, one letter per timed run."""
    names = ["a", "b", "c"]
    openers = [partial(fake_engines.FakeEngine, 0.0, str(log), name) for name in names]
    config = replace(FAST, visit_s=0.0, min_rounds=8, max_rounds=8, seed=seed)
    race([contender(n, o) for n, o in zip(names, openers, strict=True)], photograph, config)
    timed = log.read_text().split()[-8 * 3 :]
    return ["".join(timed[i : i + 3]) for i in range(0, len(timed), 3)]


def test_contenders_alternate_in_a_new_order_every_round(photograph, tmp_path):
    rounds = order_of(photograph, tmp_path / "first", seed=0)
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) > 2
    assert order_of(photograph, tmp_path / "again", seed=0) == rounds


def test_few_rounds_when_the_budget_is_small(photograph):
    slow = contender("slow", partial(fake_engines.FakeEngine, 0.05))
    (row,) = race([slow], photograph, replace(FAST, budget_s=0.01, min_rounds=3))
    assert len(row.samples_ms) == 3


def test_no_more_rounds_once_the_medians_are_known(photograph):
    steady = contender("steady", partial(fake_engines.FakeEngine, 0.02))
    config = replace(FAST, budget_s=60, max_rounds=200, visit_s=0.0, confident=0.5)
    (row,) = race([steady], photograph, replace(config, confident_rounds=8))
    assert len(row.samples_ms) == 8
    (row,) = race([steady], photograph, replace(config, confident=0.0, max_rounds=7))
    assert len(row.samples_ms) == 7


def test_the_budget_ends_a_race_that_does_not_settle(photograph):
    noisy = contender("noisy", partial(fake_engines.FakeEngine, 0.05))
    config = replace(FAST, budget_s=0.6, max_rounds=1000, confident=0.0, visit_s=0.0)
    (row,) = race([noisy], photograph, config)
    assert 3 <= len(row.samples_ms) <= 12


def test_a_contender_keeps_to_its_cores(photograph):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core leaves no choice")
    engine = contender("pinned", fake_engines.CoresEngine)
    (row,) = race([engine], photograph, FAST)
    assert not row.verdict.startswith("failed")
    assert len(row.machine["affinity"]) == row.num_threads == 1


def test_the_runs_of_a_visit_are_kept_with_the_samples(photograph, tmp_path):
    rows = race([contender("a", partial(fake_engines.FakeEngine, 0.002))], photograph, FAST)
    assert rows[0].runs_per_visit > 1
    assert len(rows[0].samples_ms) % rows[0].runs_per_visit == 0
    append_records(tmp_path / "rows.jsonl", rows)
    assert read_records(tmp_path / "rows.jsonl") == rows


FAULTS = {
    "NanEngine": "not finite",
    "DriftingEngine": "for the same image",
    "RaisingEngine": "RuntimeError: the kernel is not implemented",
    "DyingEngine": "SIGKILL, perhaps for lack of memory",
}


def test_a_broken_engine_fails_its_own_row_only(photograph):
    config = replace(FAST, min_rounds=6, max_rounds=6, visit_s=0.0)
    broken = [contender(name, getattr(fake_engines, name)) for name in FAULTS]
    good, *rows = race([contender("good", fake_engines.FakeEngine), *broken], photograph, config)
    assert not good.verdict.startswith("failed")
    assert len(good.samples_ms) == 6
    for row in rows:
        assert row.verdict.startswith("failed: ")
        assert FAULTS[row.name] in row.verdict


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        (fake_engines.DeafEngine, "a photograph and its negative with the very same numbers"),
        (partial(fake_engines.AsynchronousEngine, 0.05), "changed after it had been returned"),
        (fake_engines.LateEngine, "for the same image"),
        (partial(fake_engines.CachingEngine, 0.05), "for photographs that it has not seen"),
    ],
)
def test_an_engine_whose_times_mean_nothing_fails(photograph, engine, reason):
    honest = contender("honest", fake_engines.FakeEngine)
    good, bad = race([honest, contender("planted", engine)], photograph, FAST)
    assert good.samples_ms
    assert not good.verdict.startswith("failed")
    assert bad.verdict.startswith("failed: ")
    assert reason in bad.verdict
    assert bad.samples_ms == ()


def test_an_engine_that_hangs_is_given_up(photograph):
    config = replace(FAST, timeout_s=1.5)
    with pytest.raises(BenchmarkError, match=r"no answer within 1\.5 s"):
        race([contender("hanging", fake_engines.HangingEngine)], photograph, config)


def test_an_error_with_a_fix_keeps_it(photograph):
    broken = contender("broken", partial(fake_engines.refuse_to_open, "no such file"))
    with pytest.raises(BenchmarkError, match=r"no such file \(fix: build it\)"):
        race([broken], photograph, FAST)


def test_an_engine_that_slows_down_is_unstable(photograph):
    config = replace(FAST, min_rounds=12, max_rounds=12, visit_s=0.0)
    (row,) = race([contender("slower", fake_engines.SlowerEngine)], photograph, config)
    assert row.verdict.startswith("unstable: ")
    assert "median went from" in row.verdict


def test_threads_are_fixed_before_anything_is_imported(photograph, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    threads = contender("threads", partial(fake_engines.expect_threads, "3"))
    (row,) = race([threads], photograph, replace(FAST, num_threads=3))
    assert not row.verdict.startswith("failed")
    assert row.num_threads == 3
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_what_an_engine_prints_stays_off_stdout(photograph, capfd):
    race([contender("noisy", fake_engines.PrintingEngine)], photograph, FAST)
    out, err = capfd.readouterr()
    assert out == ""
    assert "noise of a library" in err


REFUSED = {
    "nothing": ([], "nothing to race"),
    "unpicklable": ([contender("lambda", lambda: fake_engines.FakeEngine())], "partial"),
    "same name": ([contender("a", fake_engines.FakeEngine)] * 2, "share a name"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_race_that_means_nothing_is_refused(photograph, case):
    contenders, words = REFUSED[case]
    with pytest.raises(BenchmarkError, match=words):
        race(contenders, photograph, FAST)


@pytest.mark.parametrize(
    "image", [np.zeros((3, 64, 96), np.uint8), np.ones((3, 64, 96), np.float32)], ids=str
)
def test_an_input_that_is_no_photograph_is_refused(image):
    with pytest.raises(BenchmarkError, match="no photograph"):
        race([contender("a", fake_engines.FakeEngine)], image, FAST)


def test_ctrl_c_leaves_no_process_behind(tmp_path):
    script = tmp_path / "endless.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import numpy as np
        from functools import partial
        import fake_engines
        from test_race import FAST, contender, race, replace

        if __name__ == "__main__":
            image = np.arange(3 * 64 * 96).astype(np.uint8).reshape(3, 64, 96)
            names = [str(i) for i in range(2)]
            engine = partial(fake_engines.FakeEngine, 0.01, sys.argv[1])
            race([contender(n, partial(engine, name=n)) for n in names], image,
                 replace(FAST, min_rounds=100000, max_rounds=100000))
        """)
    )
    log = tmp_path / "log"
    process = subprocess.Popen(
        [sys.executable, str(script), str(log)], stderr=subprocess.PIPE, start_new_session=True
    )
    wait_for(lambda: log.exists() and len(collections.Counter(log.read_text().split())) == 2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    _, err = process.communicate(timeout=20)

    assert b"KeyboardInterrupt" in err
    assert err.count(b"Traceback") == 1  # the workers end in silence
    wait_for(lambda: not group_is_alive(process.pid))


def wait_for(condition, timeout_s: float = 20.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def group_is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_busy_neighbour_is_noticed(photograph):
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        engine = contender("a", partial(fake_engines.FakeEngine, 0.05))
        (row,) = race([engine], photograph, replace(FAST, min_rounds=4))
    finally:
        neighbour.kill()
        neighbour.wait()
    assert "shared: others used" in row.verdict


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float16])
def test_an_input_is_changed_in_place_and_put_back(dtype):
    array = np.arange(-3, 9).reshape(1, 3, 2, 2).astype(dtype)
    before = array.copy()
    with flipped({"image": array}, NEGATIVE):
        np.testing.assert_array_equal(array, 255 - before if dtype == np.uint8 else -before)
    with flipped({"image": array}, 1):
        assert (array != before).all()
        np.testing.assert_allclose(array.astype(float), before.astype(float), atol=1.01)
    np.testing.assert_array_equal(array, before)
