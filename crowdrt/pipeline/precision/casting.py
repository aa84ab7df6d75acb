"""`crowdrt cast`: a network in float16, and what that changed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crowdrt.calibration.fp16.cast import CastConfig, cast
from crowdrt.contracts import Artifact
from crowdrt.manifest import read_manifest
from crowdrt.pipeline.photographs import samples_or_crowds
from crowdrt.pipeline.stages import as_json

__all__ = ["CastConfig", "cast_as_json", "cast_stage", "describe_cast"]

REPORTED = (
    "judged",
    "counts",
    "corrected",
    "uncorrected_counts",
    "unfit",
    "fp16_nodes",
    "fp16_macs",
)


def cast_stage(
    onnx_path: Path,
    images: Path | None,
    out: Path,
    config: CastConfig,
    keep_float: Sequence[str] = (),
    *,
    num_threads: int = 0,
) -> Artifact:
    """Cast to float16, looking at the photographs of a folder, or at generated ones."""
    with samples_or_crowds(images, config.num_images) as samples:
        paths = [sample.image for sample in samples]
        return cast(onnx_path, paths, out, config, keep_float, num_threads=num_threads)


def cast_as_json(artifact: Artifact) -> dict[str, Any]:
    """Return the artifact and what its manifest says of counts and ranges."""
    found = facts(artifact)
    return as_json(artifact) | {name: found[name] for name in REPORTED}


def describe_cast(artifact: Artifact) -> str:
    """Return in one line how far counts moved, and how much works in float16."""
    found = facts(artifact)
    counts, num = found["counts"], found["judged"]
    share = found["fp16_macs"]
    work = "" if share is None else f"; {share:.1%} of the convolutions' MACs in float16"
    moved = "the count of 1 photograph moves" if num == 1 else f"counts of {num} photographs move"
    return (
        f"{moved} by {counts['mean']:.3%} on average, by "
        f"{counts['largest']:.3%} at most ({counts['where']}: {counts['before']:.2f} -> "
        f"{counts['after']:.2f}){work}"
    )


def facts(artifact: Artifact) -> dict[str, Any]:
    """Return what the manifest of a cast network says."""
    document = read_manifest(artifact.path)
    assert document is not None
    found: dict[str, Any] = document["facts"]
    return found
