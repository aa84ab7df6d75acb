import os
import subprocess
import sys
import textwrap

import pytest

from crowdrt.benchmarks.timing import pinning
from crowdrt.benchmarks.timing.pinning import cores_for, pin


@pytest.fixture
def topology(tmp_path, monkeypatch):
    """Four hardware threads of two cores: 0 and 1 are one core, 2 and 3 the other."""
    for core, siblings in enumerate(("0-1", "0-1", "2-3", "2-3")):
        folder = tmp_path / f"cpu{core}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("num_threads", "cores"),
    [(1, (0,)), (2, (0, 2)), (3, (0, 1, 2)), (4, ()), (5, ())],
)
def test_threads_share_a_core_only_where_there_is_no_other(topology, num_threads, cores):
    assert cores_for(num_threads, topology) == cores


def test_only_cores_that_this_process_may_use(topology, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 3}, raising=False)
    assert cores_for(1, topology) == (1,)
    assert cores_for(2, topology) == ()  # nothing to choose


def test_where_nothing_is_known_of_cores_each_is_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert cores_for(1, tmp_path) == (0,)


def test_a_system_without_affinity_pins_nothing(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert cores_for(1) == ()
    pin(())


@pytest.mark.skipif(
    not pinning.TASKS.is_dir() or len(os.sched_getaffinity(0)) < 2, reason="needs Linux, two cores"
)
def test_threads_that_are_there_already_are_pinned_too():
    script = textwrap.dedent("""
        import os, threading
        from crowdrt.benchmarks.timing.pinning import cores_for, pin
        seen, ready, done = [], threading.Event(), threading.Event()
        def work():
            ready.set()
            done.wait()
            seen.append(os.sched_getaffinity(0))
        thread = threading.Thread(target=work)
        thread.start()
        ready.wait()
        cores = cores_for(1)
        pin(cores)
        done.set()
        thread.join()
        assert seen == [set(cores)] and len(cores) == 1, seen
    """)
    subprocess.run([sys.executable, "-c", script], check=True)
