"""Optional libraries, imported where they are used and named with the extra that brings them."""

import importlib
import importlib.util
import os
import sys
from types import ModuleType

from crowdrt.errors import MissingDependencyError

# What models/, training/ and export/ import at the top, so without `require`.
TRAIN = ("torch", "safetensors", "lightning", "fvcore", "onnxsim", "onnxscript", "iopath")

# Read by ONNX Runtime when it loads: its Linux builds hold a reporter to its maker, which also
# leaves a file in the folder for temporary files. Setting it to 0 lets it report.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# OpenVINO reports to its maker whenever it is imported, and keeps an identifier in the user's home,
# unless this package of its own cannot be imported.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def require(module: str, *, extra: str) -> ModuleType:
    """Return `module`, or say which extra installs it."""
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:  # OSError: a shared library of its own is missing
        raise missing(module, extra, error) from error


def check_installed(*modules: str, extra: str) -> None:
    """Say before long work begins that a library is not there; none is loaded for that."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise missing(module, extra, ModuleNotFoundError(f"No module named {module!r}"))


def missing(module: str, extra: str, error: Exception) -> MissingDependencyError:
    """Return the error for a library that is not there, or does not load."""
    return MissingDependencyError(
        f"{module} could not be imported: {error}", fix=f"pip install 'crowdrt[{extra}]'"
    )


def missing_for_training(error: ImportError) -> MissingDependencyError | None:
    """Return the error for a failed import, where the extra `train` brings the library."""
    library = (error.name or "").partition(".")[0]
    return missing(library, "train", error) if library in TRAIN else None
