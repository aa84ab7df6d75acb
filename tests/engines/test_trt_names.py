"""Every TensorRT name in the source exists in every generation that the source speaks to."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from trt_names import ALL, NAMES, Reader, read_source, sources

ROOT = Path(__file__).resolve().parents[2]
TRT = ROOT / "engines" / "trt"

# Scopes that speak to some generations only; everything else has to suit all of them.
CLAIMS = {
    "Route8": ("8.6",),
    "Route10": ("10.16", "11.4"),  # what 11 does not say anew it inherits
    "Route11": ("11.4",),
    "monitor_for": ("10.16", "11.4"),
}


def test_every_name_exists_where_it_is_used():
    seen = set()
    for source in sources(TRT):
        reader = read_source(source.read_text(), CLAIMS)
        assert not reader.wrong, f"{source.relative_to(ROOT)}: {reader.wrong}"
        seen |= reader.seen
    owners = {owner for owner, _ in seen}
    # the reader does find them: a wrong convention would pass everything
    assert owners >= {"", "Builder", "IBuilderConfig", "INetworkDefinition", "ILayer", "ITensor"}
    assert owners >= {"OnnxParser", "ParserError", "Runtime", "ICudaEngine", "IExecutionContext"}
    assert owners >= {"EngineInspector", "ITimingCache", "IOptimizationProfile", "BuilderFlag"}
    assert ("IBuilderConfig", "set_timing_cache") in seen
    assert ("IExecutionContext", "execute_async_v3") in seen
    assert len(seen) > 60


def test_what_11_removed_is_said_in_the_route_of_8_6_alone():
    removed = {
        (owner, name)
        for owner, names in NAMES["8.6"].items()
        for name in names
        if name not in NAMES["11.4"].get(owner, set())
    }
    text = (TRT / "building/routes.py").read_text()
    anywhere = {source: read_source(source.read_text(), CLAIMS).seen for source in sources(TRT)}
    users = {source.name for source, seen in anywhere.items() if seen & removed}
    assert users == {"routes.py"}
    old = Reader(CLAIMS)
    for node in ast.parse(text).body:
        if not (isinstance(node, ast.ClassDef) and node.name == "Route8"):
            old.read(node)
    assert not old.seen & removed


WRONG = {
    "a wrong member": "def f(trt, config):\n    config.set_workspace(1)",
    "one of another generation": "def f(trt, config):\n    config.set_flag(trt.BuilderFlag.FP16)",
    "a class that is gone": "def f(trt):\n    return trt.IInt8Calibrator",
    "a method that 10 removed": "def f(self, trt):\n    self._context.execute_async_v2()",
    "on the result of a call": "def f(network):\n    return network.get_layer(0).precision",
    "another name for an object": "def f(trt, logger):\n    maker = trt.Builder(logger)",
    "through an alias": "def f(trt):\n    kinds = trt.LayerType\n    return kinds.RNN_V2",
    "in a class": "class Session:\n    def f(self):\n        self.trt, self.engine.num_bindings",
}


@pytest.mark.parametrize("case", WRONG)
def test_the_reader_sees(case):
    assert read_source(WRONG[case], CLAIMS).wrong


def test_the_reader_lets_8_6_use_its_own_names():
    text = (
        "class Route8:\n    def f(self, trt, config):\n        config.flags = trt.BuilderFlag.FP16"
    )
    assert not read_source(text, CLAIMS).wrong
    assert read_source(text.replace("Route8", "Route11"), CLAIMS).wrong


def test_the_lists_are_those_of_three_generations():
    assert ALL == ("8.6", "10.16", "11.4")
    assert "FP16" in NAMES["8.6"]["BuilderFlag"]
    assert "FP16" not in NAMES["11.4"]["BuilderFlag"]
    assert "STRONGLY_TYPED" not in NAMES["8.6"]["NetworkDefinitionCreationFlag"]


def test_engines_are_imported_without_a_gpu_library():
    heavy = ("tensorrt", "pycuda", "cuda", "torch", "cryptography", "onnxruntime")
    code = (
        "import sys, crowdrt.engines, crowdrt.engines.store, crowdrt.engines.trt.building.build\n"
        "import crowdrt.engines.trt.run, crowdrt.engines.cuda.device\n"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
