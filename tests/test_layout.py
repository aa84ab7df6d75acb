"""The house stands as DESIGN draws it: who may import whom, the links, the package list."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

MAY_IMPORT: dict[str, set[str]] = {  # stages hand each other files, so few import another
    "data": set(),
    "models": set(),
    "engines": set(),
    "training": {"models", "data"},
    "export": {"models", "engines"},  # engines: to prove that the file still counts the same
    "calibration": {"engines", "data"},  # to run the float graph on images
    "benchmarks": {"engines", "data"},
}
WITHOUT_TORCH = ("data", "calibration", "benchmarks")
HEAVY = ("torch", "onnxruntime", "onnx_ir", "tensorrt", "scipy", "matplotlib", "lightning")


def imported(source: Path) -> set[str]:
    """Every module that a file imports, at any depth, except for type checkers only."""
    names: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(source.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "require":
            names |= {str(a.value) for a in node.args if isinstance(a, ast.Constant)}
    return names


def folders_imported(source: Path) -> set[str]:
    parts = {tuple(name.split(".")) for name in imported(source)}
    return {p[1] for p in parts if len(p) > 1 and p[0] == "crowdrt" and p[1] in MAY_IMPORT}


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_follow_the_table(folder):
    for source in (ROOT / folder).rglob("*.py"):
        wrong = folders_imported(source) - MAY_IMPORT[folder] - {folder}
        assert not wrong, f"{source.name} imports {wrong}; {folder}/ may use {MAY_IMPORT[folder]}"


@pytest.mark.parametrize("folder", WITHOUT_TORCH)
def test_torch_stays_out(folder):
    for source in (ROOT / folder).rglob("*.py"):
        wrong = [name for name in imported(source) if name.split(".")[0] == "torch"]
        assert not wrong, f"{folder}/{source.name} imports {wrong}"


def test_stages_meet_in_the_pipeline_and_the_command_line():
    for source in (ROOT / "crowdrt").glob("*.py"):
        if source.name != "cli.py":
            assert not folders_imported(source), f"crowdrt/{source.name} imports a stage"


def test_the_check_sees_a_forbidden_import(tmp_path):
    (tmp_path / "a.py").write_text("def f():\n    from crowdrt.models import build_model\n")
    assert folders_imported(tmp_path / "a.py") == {"models"}


def test_every_package_on_disk_is_shipped_and_linked():
    packages = set(PYPROJECT["tool"]["setuptools"]["packages"])
    folders = [p.parent for p in ROOT.glob("*/__init__.py") if p.parent.name != "crowdrt"]
    places = {"crowdrt": ROOT / "crowdrt"} | {f"crowdrt.{p.name}": p for p in folders}
    for name, top in list(places.items()):
        for init in top.glob("*/**/__init__.py"):
            inside = init.parent.relative_to(top).parts
            if not (name == "crowdrt" and inside[0] in {p.name for p in folders}):
                places[".".join((name, *inside))] = init.parent
    assert set(places) == packages
    shipped = PYPROJECT["tool"]["setuptools"]["package-dir"]
    assert {name: ROOT / path for name, path in shipped.items()} == places
    for folder in folders:
        link = ROOT / "crowdrt" / folder.name
        assert link.is_symlink(), f"crowdrt/{folder.name} should link to ../{folder.name}"
        assert link.resolve() == folder


def test_test_names_are_unique():
    names = [p.name for p in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "module",
    ["crowdrt.recipes", "crowdrt.cli", "crowdrt.engines.base", "crowdrt.engines.ort",
     "crowdrt.data.heads.datasets", "crowdrt.calibration.calibrate",
     "crowdrt.benchmarks.timing.race"],
)  # fmt: skip
def test_runs_on_a_board_without_the_heavy_libraries(module):
    code = f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
