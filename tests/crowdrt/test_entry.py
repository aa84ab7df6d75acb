"""What the command line promises whatever the verb: streams, exit status, words."""

import errno
import gc
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from crowdrt import console
from crowdrt.entry import Verbs, emit, run_app
from crowdrt.errors import DataError
from crowdrt.lazy import require

COMMAND = [sys.executable, "-c", "from crowdrt.cli import main; main()"]
VERBS = "doctor recipes run synthesize import train export complexity calibrate cast build count profile table report"  # noqa: E501


def ended(call, capsys) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        run_app(call)
    return int(end.value.code or 0), *capsys.readouterr()


def raising(error: BaseException):
    """A command line of two verbs, one of which fails."""
    app = typer.Typer(cls=Verbs, pretty_exceptions_enable=False)

    @app.command()
    def fail() -> None:
        raise error

    @app.command()
    def other() -> None: ...

    return lambda: app(["fail"])


def test_an_error_is_its_problem_and_its_fix_on_stderr(capsys):
    error = DataError("a.jpg is damaged", fix="copy it again")
    assert ended(raising(error), capsys) == (
        1,
        "",
        "error: a.jpg is damaged\n  fix: copy it again\n",
    )


def test_ctrl_c_is_one_line_and_status_1(capsys):
    code, out, err = ended(raising(KeyboardInterrupt()), capsys)
    assert (code, out) == (1, "")
    assert err.startswith("stopped")
    assert err.count("\n") == 1


def test_ctrl_c_while_a_library_loads(tmp_path, monkeypatch, capsys):
    # as pybind11 says it, in whose initialisation Ctrl-C came
    (tmp_path / "interrupted_library.py").write_text(
        "try:\n    raise KeyboardInterrupt\n"
        "except KeyboardInterrupt as stop:\n"
        "    raise ImportError('initialization failed') from stop\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    code, _, err = ended(lambda: require("interrupted_library", extra="cpu"), capsys)
    assert code == 1
    assert err.startswith("stopped")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/a/b"), "/a/b: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (MemoryError("Unable to allocate 3 TiB"), "out of memory: Unable to allocate 3 TiB"),
        (MemoryError(), "out of memory"),
    ],
)
def test_what_the_machine_refuses_has_a_fix_too(error, said, capsys):
    code, out, err = ended(raising(error), capsys)
    assert (code, out) == (1, "")
    assert said in err.splitlines()[0]
    assert err.splitlines()[1].startswith("  fix: ")


def test_our_own_mistakes_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run_app(raising(ZeroDivisionError()))
    with pytest.raises(ImportError):
        run_app(raising(ImportError("cannot import name 'x'", name="crowdrt.data")))


@pytest.mark.parametrize(
    "name", ["[red]x.jpg", "[/]", "[bold]a[/bold]", ":cat:.jpg", "a\\[b].png", "\\"]
)
def test_a_file_name_is_printed_as_it_is(name, capsys):
    _, _, err = ended(raising(DataError(f"{name} is damaged", fix=f"rm {name}")), capsys)
    assert err == f"error: {name} is damaged\n  fix: rm {name}\n"
    console.tell(name)
    console.say(name)
    assert capsys.readouterr() == (f"{name}\n", f"{name}\n")


def test_long_paths_stay_on_one_line(capsys):
    path = "/folder" * 60 + "/with some spaces/a.jpg"
    _, _, err = ended(raising(DataError(f"{path} is damaged", fix=f"rm '{path}'")), capsys)
    assert err.splitlines() == [f"error: {path} is damaged", f"  fix: rm '{path}'"]


def test_a_table_is_as_wide_as_it_is(capsys):
    name = "a" * 300 + " [red]b.jpg"
    table = Table(box=None, padding=0)
    table.add_column("photograph")
    table.add_row(Text(name))
    console.show_table(table)
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == ["photograph", name]


def test_one_document_whatever_is_in_it(capsys, tmp_path):
    emit({"path": tmp_path, "name": "[red]é\udcff"})
    out = capsys.readouterr().out
    assert json.loads(out) == {"path": str(tmp_path), "name": "[red]é\udcff"}


def test_a_progress_note_is_no_markup():
    # the notes of a race hold the names of files
    bar = console.progress_bar()
    bar.add_task("[red]racing", total=2, note="[red]x.onnx")
    cells = [column(bar.tasks[0]) for column in bar.columns]
    assert "[red]racing" in str(cells[0])
    assert "[red]x.onnx" in str(cells[-1])


def test_nothing_follows_the_last_message(monkeypatch, capsys):
    screen = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(console, "err", screen)
    monkeypatch.setattr("crowdrt.entry.err", screen)
    app = typer.Typer(cls=Verbs, pretty_exceptions_enable=False)

    @app.command()
    def fail() -> None:
        for _ in console.track(range(3), "counting", total=3):
            raise DataError("a.jpg is damaged", fix="copy it again")

    @app.command()
    def other() -> None: ...

    code, _, _ = ended(lambda: app(["fail"]), capsys)
    assert code == 1
    gc.collect()
    said = screen.file.getvalue()
    assert "counting" in said
    assert said.endswith("error: a.jpg is damaged\n  fix: copy it again\n")


def test_a_pipe_gets_no_bar(capsys):
    assert list(console.track(range(3), "counting", total=3)) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_no_arguments_show_the_help(crowdrt):
    answer = crowdrt()
    assert answer.code in (0, 2)
    said = answer.out + answer.err
    assert all(verb in said for verb in VERBS.split())


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help(crowdrt, option):
    answer = crowdrt(option)
    assert answer.code == 0
    assert answer.err == ""
    assert all(verb in answer.out for verb in VERBS.split())


@pytest.mark.parametrize("verb", VERBS.split())
def test_every_verb_has_help_and_json(crowdrt, verb, monkeypatch):
    monkeypatch.setenv("TERMINAL_WIDTH", "200")
    answer = crowdrt(verb, "-h")
    assert answer.code == 0
    assert "--json" in answer.out


def test_version(crowdrt):
    from crowdrt import __version__

    answer = crowdrt("--version")
    assert (answer.code, answer.out, answer.err) == (0, f"crowdrt {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cuont"], "count"),  # did you mean
        (["count"], "Missing argument"),
        (["recipes", "--jsn"], "--jsn"),
        (["train", "csrnet-quarter", "-o", "x", "--steps", "0"], "--steps"),
        (["run", "csrnet-quarter", "--images", "many"], "--images"),
        (["run", "csrnet-quarter", "--threads", "-1"], "--threads"),
    ],
)
def test_wrong_usage_is_status_2(crowdrt, arguments, said):
    answer = crowdrt(*arguments)
    assert (answer.code, answer.out) == (2, "")
    assert said in answer.err


def test_help_comes_quickly_and_loads_nothing_heavy(tmp_path):
    code = (
        "import sys, time\n"
        "sys.argv = ['crowdrt', '--help']\n"
        "from crowdrt.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = 'torch onnx onnxruntime onnx_ir scipy matplotlib lightning PIL jinja2'.split()\n"
        "print([m for m in heavy if m in sys.modules], time.process_time(), file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded, seconds = ended.stderr.rsplit(" ", 1)
    assert loaded == "[]"
    assert float(seconds) < 1.5  # about 0.4 on a quiet machine; CPU time, not a stop-watch's


def test_a_reader_that_leaves_is_no_error(tmp_path):
    pipe = subprocess.Popen(
        [*COMMAND, "recipes", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert pipe.stdout is not None
    pipe.stdout.close()
    _, err = pipe.communicate(timeout=60)
    assert err == b""
    assert pipe.returncode == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_stdout_on_a_full_disk_is_said(tmp_path):
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            [*COMMAND, "recipes", "--json"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ")
    assert "No space left on device" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_signal_while_a_verb_works(capsys):
    app = typer.Typer(cls=Verbs)

    @app.command()
    def wait() -> None:
        signal.raise_signal(signal.SIGINT)
        time.sleep(10)

    @app.command()
    def other() -> None: ...

    code, _, err = ended(lambda: app(["wait"]), capsys)
    assert code == 1
    assert err.startswith("stopped")
