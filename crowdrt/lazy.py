"""Optional libraries, imported where they are used and named with the extra that brings them."""

import importlib
from types import ModuleType

from crowdrt.errors import MissingDependencyError


def require(module: str, *, extra: str) -> ModuleType:
    """Return `module`, or say which extra installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"{module} could not be imported: {error}", fix=f"pip install 'crowdrt[{extra}]'"
        ) from error
