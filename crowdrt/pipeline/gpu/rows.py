"""What is built and timed on the GPU, most valuable first."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from crowdrt.contracts import Precision, Size

SMALL, LARGE = (576, 864), (2032, 2912)  # SKT, Table 8: its first and its last size
# the ratios that the papers print: BL at the largest size, CSRNet at the smallest
HEATS: tuple[tuple[str, Size], ...] = (
    ("csrnet", LARGE),
    ("csrnet", SMALL),
    ("bl", LARGE),
    ("sanet", LARGE),
    ("bl", SMALL),
    ("sanet", SMALL),
)
WIDTHS = ("1", "1/4")
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
TORCH_FORMS = ("eager fp32", "eager tf32", "fp16 channels-last", "compiled fp16")
Form = Literal["eager fp32", "eager tf32", "fp16 channels-last", "compiled fp16"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One contender of a heat."""

    network: str
    width: str
    engine: str  # tensorrt, pytorch
    precision: str  # fp32, fp16, int8; of PyTorch one of TORCH_FORMS
    size: Size
    graphs: bool = False  # CUDA graphs

    @property
    def name(self) -> str:
        """Unique among the rows of a campaign."""
        return (
            f"{self.network} {self.width} {self.engine} {self.precision}"
            f"{' graph' if self.graphs else ''} {self.size[0]}x{self.size[1]}"
        )

    @property
    def file(self) -> str:
        """The ONNX file that it is built from, without its folder."""
        return f"{stem(self.network, self.width)}.{self.precision}.onnx"

    @property
    def plan(self) -> str:
        """What its plan is called; rows with and without CUDA graphs share one."""
        return f"{self.file.removesuffix('.onnx')}@{self.size[0]}x{self.size[1]}"

    def to_json(self) -> dict[str, Any]:
        """Return it as a worker reads it."""
        return asdict(self)


def stem(network: str, width: str) -> str:
    """Return what a network's files are called."""
    return f"{network}-{width}".replace("/", "-")


def row_from(document: dict[str, Any]) -> Row:
    """Read what `to_json` returned."""
    height, width = document["size"]
    return Row(**{**document, "size": (int(height), int(width))})


def rows_of(network: str, size: Size) -> list[Row]:
    """Return all contenders of one heat: students first, for they are what ships."""
    common = {"network": network, "size": size}
    rows = [
        Row(width=width, engine="tensorrt", precision=precision, graphs=graphs, **common)  # type: ignore[arg-type]
        for width in reversed(WIDTHS)
        for precision in PRECISIONS
        for graphs in (True, False)
    ]
    rows += [
        Row(width=width, engine="pytorch", precision=form, **common)  # type: ignore[arg-type]
        for width in WIDTHS
        for form in TORCH_FORMS
    ]
    return rows


def heats(chosen: Sequence[str] = ()) -> Iterator[tuple[str, Size]]:
    """Yield the heats, all or those named `csrnet@576x864`."""
    for network, size in HEATS:
        if not chosen or heat_name(network, size) in chosen:
            yield network, size


def heat_name(network: str, size: Size) -> str:
    """Return how a heat is called on the command line and in file names."""
    return f"{network}@{size[0]}x{size[1]}"
