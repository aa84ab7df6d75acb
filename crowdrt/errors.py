"""Every deliberate error: what went wrong, and one action that mends it."""


class CrowdRTError(Exception):
    """Base class of every deliberate error; `fix` is one action the reader can take now."""

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(problem, fix)  # both stay in args, so the error survives pickling

    @property
    def problem(self) -> str:
        """What went wrong, with the offending value."""
        return str(self.args[0])

    @property
    def fix(self) -> str:
        """One action, a runnable command where there is one."""
        return str(self.args[1])

    def __str__(self) -> str:
        return f"{self.problem}\n  fix: {self.fix}"


class MissingDependencyError(CrowdRTError):
    """An optional library is not installed, or does not load."""


class RecipeError(CrowdRTError):
    """A recipe, or an option that becomes part of one, makes no sense."""


class DataError(CrowdRTError):
    """An image, an annotation or a data-set folder cannot be used."""


class WeightsError(CrowdRTError):
    """A weights file is damaged, unsafe, or belongs to another network or width."""


class TrainingError(CrowdRTError):
    """Training cannot start, or cannot go on."""


class ExportError(CrowdRTError):
    """A network could not become an ONNX file, or a file is no usable ONNX network."""


class ParityError(ExportError):
    """Two forms of one network do not agree."""


class CalibrationError(CrowdRTError):
    """Activation ranges could not be collected, or do not fit the network."""


class EngineError(CrowdRTError):
    """An engine could not be built, loaded or run."""


class BenchmarkError(CrowdRTError):
    """A measurement could not be taken, or a record cannot be read."""
