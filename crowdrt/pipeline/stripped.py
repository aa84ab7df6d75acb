"""What an export says was stripped from a network: for people, as Markdown, and in the report."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from crowdrt.benchmarks.labels import ABSENT, size_label
from crowdrt.benchmarks.report.sections import StrippedNetwork
from crowdrt.benchmarks.tables.formats import markdown_row
from crowdrt.contracts import Size
from crowdrt.errors import ExportError
from crowdrt.manifest import read_manifest
from crowdrt.onnx_file import external_files, read_onnx, stored_info
from crowdrt.onnx_graph import GraphSize

FP32_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Stripped:
    """What a manifest says was stripped from a network, or cut from a file."""

    size: Size  # at which MACs were counted
    before: GraphSize
    after: GraphSize
    file_nodes: int
    removed: str
    max_rel: float | None
    compared: str = ""  # what of the training network was held against the file
    parameters: tuple[str, ...] = ()  # that were removed, by name
    nodes: tuple[str, ...] = ()
    alike: tuple[str, ...] = ()  # removed tensors that their numbers cannot tell

    @classmethod
    def of(cls, facts: Any) -> Self | None:
        """Read it from a manifest's facts; None where there is none, or another version's."""
        try:
            record = facts.get("stripped") or facts["cut"]
            if branches := record.get("branches"):
                removed = f"{', '.join(branches)} ({record['branch_params']:,} parameters)"
            else:
                removed = ", ".join((*record.get("outputs", ()), *record.get("inputs", ())))
            return cls(
                size=tuple(record["size"]),
                before=GraphSize(**record["before"]),
                after=GraphSize(**record["after"]),
                file_nodes=record["file_nodes"],
                removed=removed,
                max_rel=record["max_rel"],
                compared=record.get("compared", ""),
                **{name: tuple(record.get(name, ())) for name in ("parameters", "nodes", "alike")},
            )
        except (AttributeError, LookupError, TypeError, ValueError):
            return None

    def lines(self) -> Iterator[str]:
        """Yield what there is to say of it."""
        yield self.before.change(self.after, self.size)
        yield f"removed: {self.removed or 'nothing, it has nothing for training alone'}"
        if self.max_rel is not None:
            yield f"answers differ by {self.max_rel:.1e} of the largest value"


def stripping_table(paths: Sequence[Path]) -> str:
    """Return the Markdown table of what exports say was stripped, a row per file.

    Raises:
        ExportError: a file's manifest has no such record.
    """
    heads = ("network", "nodes: training, deployed, file", "parameters", "G MACs", "removed")
    rows = [heads, ("---",) * len(heads), *map(stripping_row, paths)]
    return "\n".join(map(markdown_row, rows))


def stripping_row(path: Path) -> tuple[str, ...]:
    """Return one row of `stripping_table`."""
    info = stored_info(read_onnx(path), source=str(path))
    record = Stripped.of((read_manifest(path) or {}).get("facts"))
    if record is None:
        raise ExportError(
            f"{path} has no record of stripping beside it",
            fix="export it again: crowdrt export NETWORK --weights F -o model.onnx",
        )
    was, now = record.before, record.after
    return (
        path.name if info is None else f"{info.network} {info.width}, {info.output}",
        f"{was.nodes} → {now.nodes} → {record.file_nodes}",
        f"{was.params:,} → {now.params:,}",
        f"{giga(was.macs)} → {giga(now.macs)} at {size_label(record.size)}",
        record.removed or "nothing",
    )


def giga(macs: int | None) -> str:
    """Return multiply-accumulates in G; `?` where a layer's shape is not known."""
    return "?" if macs is None else f"{macs / 1e9:.2f}"


def stripping_section(path: Path, sha256: str) -> StrippedNetwork | None:
    """Return what the report shows of an exported file.

    Args:
        path: the file; its manifest lies beside it.
        sha256: of the file that the run made; None is returned where the manifest speaks of
            another one, or of none that was stripped.
    """
    manifest = read_manifest(path) or {}
    facts = manifest.get("facts") or {}
    record = Stripped.of(facts) if "stripped" in facts else None
    if record is None or manifest.get("sha256") != sha256 or not path.is_file():
        return None
    return StrippedNetwork(
        file=path.name,
        sizes=sizes_of(record, path) if record.removed else (),
        removed=(("branches", (record.removed,)), ("parameters", record.parameters),
                 ("nodes", record.nodes)) if record.removed else (),
        proof=tuple(proof_of(record, facts)),
    )  # fmt: skip


def sizes_of(record: Stripped, path: Path) -> tuple[tuple[str, str, str, str], ...]:
    """Return the rows of the section: what, in training, deployed, and in the file."""
    was, now = record.before, record.after
    file_bytes = sum(part.stat().st_size for part in (path, *external_files(path)))
    return (
        ("Nodes", f"{was.nodes:,}", f"{now.nodes:,}", f"{record.file_nodes:,}"),
        ("Parameters", f"{was.params:,}", f"{now.params:,}", ABSENT),
        (f"G MACs at {size_label(record.size)}", giga(was.macs), giga(now.macs), ABSENT),
        ("Bytes", in_fp32(was), in_fp32(now), f"{file_bytes:,}"),
    )


def in_fp32(side: GraphSize) -> str:
    """Return the bytes that the parameters of a network take in float32."""
    return f"{FP32_BYTES * side.params:,}"


def proof_of(record: Stripped, facts: Any) -> Iterator[str]:
    """Yield what was looked for in the file, and what was found; one sentence if nothing went."""
    if not record.removed:
        yield (
            f"Nothing: it has nothing for training alone. Every one of its {record.file_nodes} "
            f"nodes serves an output, and its {record.after.params:,} parameters all ship."
        )
        return
    yield "The walk: from the outputs backwards, every node and every stored tensor is reached."
    yield "The names: no node and no tensor bears the name of a removed part."
    unclear = f", but for {', '.join(record.alike)}, which cannot be told by theirs"
    yield (
        "The numbers: no stored tensor holds those of a removed one, in any order"
        f"{unclear if record.alike else ''}."
    )
    if record.max_rel is not None:
        yield (
            f"The answer: {record.compared} of the whole training network and the file differ by "
            f"{record.max_rel:.1e} of the largest value, on generated photographs."
        )
    if parity := facts.get("parity"):
        yield (
            "The export: the deployed network in PyTorch and the file differ by "
            f"{parity['max_rel']:.1e} of the largest value."
        )
