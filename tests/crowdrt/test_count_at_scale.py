"""`crowdrt count -o`: the counts of `crowdrt count`, whatever dies meanwhile, and never twice."""

import errno
import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter as Tally
from importlib import metadata
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import pytest
from PIL import Image

from crowdrt.engines.base import open_engine
from crowdrt.engines.ort import OrtEngine
from crowdrt.engines.store import content_sha256
from crowdrt.errors import EngineError
from crowdrt.pipeline.locks import lock
from crowdrt.pipeline.scale import run as runs
from crowdrt.pipeline.scale import shards
from crowdrt.pipeline.scale.counting import Counter, Settings, count_in_time
from crowdrt.pipeline.scale.listing import list_photographs
from crowdrt.pipeline.scale.parcel import identity_of
from crowdrt.pipeline.scale.processes import ended_by
from crowdrt.pipeline.scale.rows import Photo
from crowdrt.pipeline.scale.run import count_at_scale
from crowdrt.pipeline.tiling import Limits

WAIT_S = 120.0
NUM_NAMES = 12
NUM_MANY = 200  # so many that a run that is killed after its first shard has more


@pytest.fixture
def photos(tiny, tmp_path):
    """The tiny photographs under twelve names, of two sizes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for k in range(NUM_NAMES):
        source = tiny.photos / f"crowd_000{k % 4}.jpg"
        if k % 3:
            shutil.copy(source, folder / f"p{k}.jpg")
        else:
            with Image.open(source) as image:
                image.crop((0, 0, 128, 96)).save(folder / f"p{k}.png")
    return folder


@pytest.fixture
def settings(tiny):
    return Settings(engine=tiny.onnx, store=tiny.store)


def rows_in(out):
    rows = [row for path in out.glob("counts/*.parquet") for row in pq.read_table(path).to_pylist()]
    assert max(Tally(row["image"] for row in rows).values(), default=1) == 1
    return {Path(row["image"]).name: row for row in rows}


def alone(settings, photos):
    """What one process counts."""
    rows = Counter(settings).count(list_photographs([str(photos)]))
    return {Path(row.image).name: row.count for row in rows}


def counts(out):
    return {name: row["count"] for name, row in rows_in(out).items()}


def test_the_command_counts_as_without_a_folder_and_tries_only_errors_again(
    tiny, photos, tmp_path, crowdrt
):
    wanted = crowdrt("count", tiny.onnx, photos, "--json", "--threads", 1).json()
    (photos / "sub").mkdir()
    (photos / "sub" / "bad.jpg").write_bytes(b"no image")
    (tmp_path / "list.txt").write_text(f"{photos}/gone.jpg\n{photos}/p1.jpg\n")
    command = ("count", tiny.onnx, photos, tmp_path / "list.txt", "-o", tmp_path / "out", "--json")
    first = crowdrt(*command, "--workers", 1, "--strips", 3)
    assert first.code == 1
    assert json.loads(first.out)["num_counted"] == NUM_NAMES
    assert "2 of 14 photographs could not be counted" in first.err
    assert "bad.jpg is not an image" in first.err
    assert "gone.jpg does not exist" in first.err

    rows = rows_in(tmp_path / "out")
    assert {n: r["count"] for n, r in rows.items() if r["error"] is None} == {
        Path(each["image"]).name: each["count"] for each in wanted
    }
    assert len({each["count"] for each in wanted}) > NUM_NAMES / 2
    for row in rows.values():
        assert row["engine"].startswith("onnxruntime ")
        if row["error"] is None:
            assert sum(row["strips"]) == pytest.approx(row["count"], rel=1e-5)
            assert len(row["strips"]) == 3
    assert (rows["p0.png"]["height"], rows["p0.png"]["width"]) == (96, 128)
    assert rows["bad.jpg"]["sha256"]
    assert rows["gone.jpg"]["sha256"] is rows["gone.jpg"]["strips"] is None

    shutil.copy(photos / "p1.jpg", photos / "gone.jpg")
    (photos / "sub" / "bad.jpg").unlink()
    again = crowdrt(*command, "--workers", 1, "--strips", 3).json()
    assert (again["num_before"], again["num_counted"], again["num_errors"]) == (NUM_NAMES, 1, 0)
    assert counts(tmp_path / "out")["gone.jpg"] == rows["p1.jpg"]["count"]


def test_a_killed_worker_is_replaced(settings, photos, tmp_path, monkeypatch, capsys):
    write, killed = runs.write_shard, []

    def write_and_kill(*args):
        write(*args)
        if not killed:
            killed.append(multiprocessing.active_children()[0].pid)
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(runs, "write_shard", write_and_kill)
    monkeypatch.setattr(shards, "MAX_ROWS", 3)
    tally = count_at_scale([str(photos)], tmp_path / "out", settings, workers=1)
    assert (tally.num_counted, tally.num_errors) == (NUM_NAMES, 0)
    assert counts(tmp_path / "out") == alone(settings, photos)
    assert "it was ended by SIGKILL, perhaps for lack of memory" in capsys.readouterr().err


def test_ctrl_c_keeps_what_was_finished(tiny, photos, tmp_path, crowdrt, monkeypatch):
    write, written = runs.write_shard, []
    monkeypatch.setattr("crowdrt.pipeline.scale.shards.MIN_ROWS", 2)

    def write_and_interrupt(*args):
        write(*args)
        written.append(None)
        if len(written) == 2:
            signal.raise_signal(signal.SIGINT)

    command = ("count", tiny.onnx, photos, "-o", tmp_path / "out", "--workers", 1)
    with monkeypatch.context() as patch:
        patch.setattr(runs, "write_shard", write_and_interrupt)
        answer = crowdrt(*command)
    assert (answer.code, answer.out) == (1, "")
    assert answer.err.splitlines()[-1].startswith("stopped")
    assert not multiprocessing.active_children()
    assert len(rows_in(tmp_path / "out")) == 4
    assert crowdrt(*command, "--json").json()["num_before"] == 4
    assert len(rows_in(tmp_path / "out")) == NUM_NAMES


def processes_of(parent):
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True)
    pairs = [map(int, line.split()) for line in listed.stdout.splitlines()]
    return [pid for pid, ppid in pairs if ppid == parent]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux")
def test_a_killed_run_leaves_no_process_and_no_lock(settings, tiny, photos, tmp_path):
    for k in range(NUM_MANY):
        (photos / f"many{k}.jpg").symlink_to("p1.jpg")
    command = ["count", tiny.onnx, photos, "-o", tmp_path / "out", "--workers", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "crowdrt", *command, "--store", tiny.store],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + WAIT_S
    while not any((tmp_path / "out").glob("counts/*.parquet")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    workers = processes_of(process.pid)
    assert workers
    process.kill()
    process.wait()
    before = len(rows_in(tmp_path / "out"))
    while any(Path(f"/proc/{pid}/exe").exists() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    half = tmp_path / "out" / "counts" / ".0123.parquet.tmp-x"
    half.write_bytes(b"half")
    tally = count_at_scale([str(photos)], tmp_path / "out", settings, workers=1)
    assert not half.exists()
    assert 0 < tally.num_before == before < NUM_NAMES + NUM_MANY
    assert tally.num_before + tally.num_counted == NUM_NAMES + NUM_MANY
    assert counts(tmp_path / "out") == alone(settings, photos)


@pytest.mark.skipif(not Path("/proc/self/exe").exists(), reason="needs Linux")
def test_a_busy_process_ends_with_its_parent():
    program = Path(__file__).with_name("orphans.py")
    parent = subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True)
    child = Path("/proc") / parent.stdout.readline().strip() / "exe"
    assert child.exists()
    time.sleep(1)  # it begins its work
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + WAIT_S
    while child.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_runs_into_one_folder_are_refused(settings, photos, tmp_path, tiny, crowdrt):
    with lock(tmp_path / "out" / ".lock"):
        answer = crowdrt("count", tiny.onnx, photos, "-o", tmp_path / "out")
    assert answer.code == 1
    assert "another process is counting into" in answer.err
    assert "-o OUT-2" in answer.err
    assert rows_in(tmp_path / "out") == {}


def test_a_folder_that_another_holds_is_said_before_anything_is_listed(tiny, tmp_path, crowdrt):
    with lock(tmp_path / "out" / ".lock"):
        answer = crowdrt("count", tiny.onnx, tmp_path / "nowhere", "-o", tmp_path / "out")
    assert "another process is counting into" in answer.err


def test_another_engine_or_other_settings_are_refused(settings, tiny, photos, tmp_path, crowdrt):
    count_at_scale([str(photos / "p1.jpg")], tmp_path / "out", settings, workers=1)
    before = rows_in(tmp_path / "out")
    for other, problem in {
        ("count", tiny.int8, photos, "-o", tmp_path / "out"): "precision fp32 there, int8 here",
        ("count", tiny.onnx, photos, "-o", tmp_path / "out", "--strips", 2): "strips 8 there, 2",
        ("count", tiny.onnx, photos, "-o", tmp_path / "out", "--tile-rows", 64): "tile_rows None",
        ("count", tiny.onnx, photos, "-o", tmp_path / "out", "--max-memory", "9GiB"): "max_memory",
    }.items():
        answer = crowdrt(*other)
        assert answer.code == 1
        assert problem in answer.err
        assert "-o OUT-2" in answer.err
    assert rows_in(tmp_path / "out") == before


def test_counts_of_which_nobody_knows_the_engine_are_kept_as_they_are(settings, photos, tmp_path):
    out, one = tmp_path / "out", [str(photos / "p1.jpg")]
    count_at_scale(one, out, settings, workers=1)
    bound = (out / "run.json").read_text()
    for damaged in (None, "", "[]", '{"engine": "x"}', '{"engine": {}}'):
        (out / "run.json").unlink()
        if damaged is not None:
            (out / "run.json").write_text(damaged)
        with pytest.raises(EngineError, match="says how they were made, is missing or damaged"):
            count_at_scale(one, out, settings, workers=1)
        (out / "run.json").write_text(bound)
    for other in ({"batch": 2}, {"crowdrt": "0.0.1"}):
        document = json.loads(bound)
        document["settings"] |= other
        (out / "run.json").write_text(json.dumps(document))
        with pytest.raises(EngineError, match=f"{next(iter(other))} .* there, .* here"):
            count_at_scale(one, out, settings, workers=1)
    for shard in (out / "counts").iterdir():
        shard.unlink()
    assert count_at_scale(one, out, settings, workers=1).num_counted == 1


def test_the_version_of_a_runtime_is_found_whatever_brought_it(tiny, monkeypatch):
    def unknown(name):
        raise metadata.PackageNotFoundError(name)  # as with onnxruntime-gpu

    before = Counter(Settings(engine=tiny.onnx, store=tiny.store)).identity
    opened = open_engine(tiny.onnx)
    monkeypatch.setattr(metadata, "version", unknown)
    found = identity_of(tiny.onnx, opened)
    assert found == before
    assert found.version == onnxruntime.__version__
    assert found.sha256 == content_sha256(tiny.onnx)


class Slow:
    """Counts a photograph in a while, or never."""

    def counted(self, photos):
        for photo in photos:
            time.sleep(float(photo.name))
            yield [photo.name]


def slowly(names):
    signal.signal(signal.SIGALRM, signal.SIG_IGN)  # as some shells have it
    rows = count_in_time(Slow(), [Photo(name=name) for name in names], 1.0)
    time.sleep(1.5)  # the time is over, and nobody minds
    sys.exit(10 + len(rows))


def test_a_photograph_that_does_not_end_ends_its_process_and_slow_ones_do_not():
    context = multiprocessing.get_context("fork")  # it has imported everything
    ends = []
    for names in (["0.5", "0.5", "0.5"], ["0", "60"]):
        process = context.Process(target=slowly, args=(names,))
        process.start()
        ends.append(process)
    for process in ends:
        process.join(WAIT_S)
    steady, stuck = (process.exitcode for process in ends)
    assert steady == 13
    assert ended_by(stuck, 1.0) == "no photograph was done within 1 s, see --timeout"
    assert ended_by(3, 1.0) == "it ended with exit code 3"
    assert ended_by(-40, 1.0) == "it was ended by signal 40"


@pytest.mark.parametrize("fails", [False, True])
def test_photographs_that_wait_for_others_have_their_time_each(
    settings, photos, monkeypatch, fails
):
    happened, run = [], OrtEngine.run
    predict, decode = Counter._predict, Counter._decode

    def failing(self, feeds, **options):
        if fails and len(feeds["image"]) > 1:
            raise EngineError("memory ran out", fix="use a smaller one")
        return run(self, feeds, **options)

    def noting(what, function):
        def noted(self, *args):
            happened.append(what)
            return function(self, *args)

        return noted

    def reset(_, seconds):
        happened.append("reset" if seconds else "end")

    monkeypatch.setattr(OrtEngine, "run", failing)
    monkeypatch.setattr(Counter, "_predict", noting("count", predict))
    monkeypatch.setattr(Counter, "_decode", noting("decode", decode))
    monkeypatch.setattr(signal, "setitimer", reset)
    monkeypatch.setattr("crowdrt.pipeline.scale.counting.DECODED_AHEAD", 0)
    rows = count_in_time(Counter(batched(settings, batch=4)), list_photographs([str(photos)]), 60.0)
    assert len(rows) == NUM_NAMES
    assert all(row.error is None for row in rows)
    assert happened[-1] == "end"
    between = "".join(each[0] for each in happened[:-1]).split("r")
    # a batch that failed is followed by the first that is tried alone
    assert max(between.count("d") + between.count("c") for between in between) <= 2 + fails


def test_a_photograph_for_which_there_is_no_time_becomes_a_row(settings, photos, tmp_path):
    hasty = batched(settings, timeout_s=1e-4)
    tally = count_at_scale([str(photos / "p1.jpg")], tmp_path / "out", hasty, workers=1)
    assert (tally.num_counted, tally.num_errors) == (0, 1)
    assert "lost 3 times: no photograph was done within 0.0001 s" in tally.reasons[0]
    tally = count_at_scale([str(photos / "p1.jpg")], tmp_path / "out", settings, workers=1)
    assert (tally.num_counted, tally.num_errors) == (1, 0)


def test_times_that_are_none_are_refused(tiny, photos, tmp_path, crowdrt):
    for seconds in (0, -1, "nan", 1e12):
        answer = crowdrt("count", tiny.onnx, photos, "-o", tmp_path / "out", "--timeout", seconds)
        assert answer.code == 1
        assert "is no time to wait" in answer.err
    answer = crowdrt("count", tiny.onnx, photos, "--timeout", 5)
    assert "--timeout is for counting into a folder" in answer.err


def test_a_drive_without_locks_is_refused_with_a_way_out(
    photos, tiny, tmp_path, crowdrt, monkeypatch
):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    answer = crowdrt("count", tiny.onnx, photos, "-o", tmp_path / "out")
    assert answer.code == 1
    assert "cannot be locked: No locks available" in answer.err
    assert "fix: choose a folder on a disk that has locks" in answer.err


def test_a_folder_that_cannot_be_written_ends_it_before_anything(tiny, photos, tmp_path, crowdrt):
    (tmp_path / "file").write_text("")
    answer = crowdrt("count", tiny.onnx, photos, "-o", tmp_path / "file" / "out")
    assert (answer.code, answer.out) == (1, "")
    assert "could not be written" in answer.err
    answer = crowdrt("count", tiny.onnx, photos, "-o", "s3://bucket/out")
    assert "no folder of this machine" in answer.err


def test_options_that_do_not_go_together_are_refused(tiny, photos, tmp_path, crowdrt):
    for options, fix in {
        ("-o", tmp_path / "out", "--overlay", tmp_path): "or --overlay",
        ("-o", tmp_path / "out", "--against", tiny.onnx): "or --against",
        ("--cluster", "auto"): "-o OUT",
        ("--workers", 2): "-o OUT",
        ("-o", tmp_path / "out", "--batch", 2, "--tile-rows", 64): "leave out --batch",
        ("-o", tmp_path / "out", "--tiles", "pad"): "leave out --tiles",
        ("-o", tmp_path / "out", "--tiles", "pad", "--batch", 2): "leave out --tiles",
        ("-o", tmp_path / "out", "--tiles", ""): "use --tiles resize or --tiles pad",
    }.items():
        answer = crowdrt("count", tiny.onnx, photos, *options)
        assert answer.code == 1
        assert fix in answer.err
    assert rows_in(tmp_path / "out") == {}


def test_an_engine_of_another_machine_is_not_the_runs(settings):
    identity = Counter(settings).identity
    other = Settings(
        engine=settings.engine,
        store=settings.store,
        identity=type(identity)(**identity.as_dict() | {"version": "1.0"}),
    )
    with pytest.raises(EngineError, match=r"onnxruntime 1\.0 ") as refused:
        Counter(other)
    assert "onnxruntime==1.0" in refused.value.fix


def batched(settings, **more):
    return Settings(engine=settings.engine, store=settings.store, **more)


def test_photographs_of_one_size_go_together(settings, photos, monkeypatch):
    (photos / "bad.jpg").write_bytes(b"no image")
    seen, run = [], OrtEngine.run

    def watched(self, feeds, **options):
        seen.append(feeds["image"].shape)
        return run(self, feeds, **options)

    wanted = alone(settings, photos)
    monkeypatch.setattr(OrtEngine, "run", watched)
    together = alone(batched(settings, batch=4), photos)
    assert sorted(seen) == [(4, 3, 96, 128), (4, 3, 112, 136), (4, 3, 112, 136)]
    assert together.pop("bad.jpg") is wanted.pop("bad.jpg") is None
    assert together == pytest.approx(wanted, rel=1e-4)
    assert np.std(list(wanted.values())) > 0


def test_a_batch_that_fails_costs_only_the_photograph_that_fails_alone(
    settings, photos, monkeypatch
):
    run = OrtEngine.run
    pixels = np.asarray(Image.open(photos / "p2.jpg").convert("RGB")).transpose(2, 0, 1)

    def failing(self, feeds, **options):
        if any(np.array_equal(image, pixels) for image in feeds["image"]):
            raise EngineError("memory ran out", fix="use a smaller one")
        return run(self, feeds, **options)

    wanted = alone(settings, photos)
    monkeypatch.setattr(OrtEngine, "run", failing)
    found = alone(batched(settings, batch=4), photos)
    failed = {name for name, count in found.items() if count is None}
    assert failed == {"p2.jpg", "p10.jpg"}  # two names of one photograph
    del found["p2.jpg"], found["p10.jpg"]
    assert found == pytest.approx({name: wanted[name] for name in found}, rel=1e-4)


def test_tiles_in_bounded_memory_count_the_same(settings, photos):
    tiled = alone(batched(settings, limits=Limits(tile_rows=64)), photos)
    assert tiled == pytest.approx(alone(settings, photos), rel=1e-4)
