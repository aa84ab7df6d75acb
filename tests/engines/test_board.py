import subprocess
import sys
from pathlib import Path

import pytest

import crowdrt.engines

FOLDER = Path(crowdrt.engines.__file__).parent
MODULES = sorted(f"crowdrt.engines.{path.stem}" for path in FOLDER.glob("[a-z]*.py"))


@pytest.mark.parametrize("module", MODULES)
def test_runs_on_a_board_without_torch(module):
    heavy = ["torch", "onnxruntime", "openvino", "tensorrt", "onnx_ir", "scipy"]
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_every_engine_is_covered():
    assert {"crowdrt.engines.base", "crowdrt.engines.ort", "crowdrt.engines.store"} <= {*MODULES}
