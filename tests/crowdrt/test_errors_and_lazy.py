import pickle
import subprocess
import sys

import pytest

from crowdrt import errors
from crowdrt.errors import CrowdRTError, MissingDependencyError, ParityError
from crowdrt.lazy import missing_for_training, require

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_survives_another_process(kind):
    error = pickle.loads(pickle.dumps(kind("it broke", "mend it")))
    assert type(error) is kind
    assert issubclass(kind, CrowdRTError)
    assert (error.problem, error.fix) == ("it broke", "mend it")
    assert str(error) == "it broke\n  fix: mend it"


def test_a_fix_is_required():
    with pytest.raises(TypeError):
        ParityError("it broke")


def test_a_library_that_is_there_is_returned():
    assert require("json", extra="cpu").loads("3") == 3


def test_a_library_that_is_not_there_comes_with_its_extra():
    with pytest.raises(MissingDependencyError, match="no_such_library") as caught:
        require("no_such_library", extra="report")
    assert caught.value.fix == "pip install 'crowdrt[report]'"


def test_a_library_that_does_not_load_is_missing_too(tmp_path, monkeypatch):
    (tmp_path / "broken_library.py").write_text("raise OSError('libmissing.so: cannot open')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MissingDependencyError, match=r"broken_library .*: libmissing\.so"):
        require("broken_library", extra="cpu")


def test_onnx_runtime_reports_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    code = "from crowdrt.lazy import require; require('onnxruntime', extra='cpu')"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert list(tmp_path.iterdir()) == []  # its reporter keeps a session file there


def test_a_run_without_its_report_is_not_begun(tmp_path):
    code = (
        "import sys; sys.modules['jinja2'] = None\n"
        "sys.argv = ['crowdrt', 'run', 'csrnet-quarter', '--out', 'x']\n"
        "from crowdrt.cli import main; main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert ended.returncode == 1
    assert "jinja2 could not be imported" in ended.stderr
    assert "fix: pip install 'crowdrt[report]'" in ended.stderr
    assert not list(tmp_path.iterdir())


def test_only_libraries_of_the_extra_are_explained():
    torch = missing_for_training(ImportError("No module named 'torch'", name="torch._C"))
    assert torch is not None
    assert torch.fix == "pip install 'crowdrt[train]'"
    assert missing_for_training(ImportError("broken", name="crowdrt.export")) is None
    assert missing_for_training(ImportError("broken")) is None


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "csrnet", "--random", "-o", "x.onnx"],
        ["complexity", "csrnet"],
        ["train", "csrnet-quarter", "-o", "x"],
        ["import", "x.npz", "-o", "x.safetensors"],
        ["run", "csrnet-quarter", "--out", "x"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_board_without_torch_is_told_what_to_install(arguments, tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        f"sys.argv = ['crowdrt', *{arguments!r}]\n"
        "from crowdrt.cli import main; main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: torch could not be imported")
    assert "fix: pip install 'crowdrt[train]'" in ended.stderr
    assert ended.stdout == ""
    assert not list(tmp_path.iterdir())
