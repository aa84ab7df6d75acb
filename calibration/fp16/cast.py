"""An FP32 or INT8 network and photographs become a network that works in float16."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx
from onnx import numpy_helper

from crowdrt.calibration.calibrate import COST_SIZE, hash_of, pick, refuse_itself
from crowdrt.calibration.cost import conv_macs, int8_share
from crowdrt.calibration.fp16.graph import prepared, to_fp16
from crowdrt.calibration.fp16.heads import ChannelMeans, Means, heads_of, with_means_kept
from crowdrt.calibration.fp16.measure import (
    Counts,
    Difference,
    Looker,
    difference,
    float16_tensors,
    observe,
)
from crowdrt.calibration.fp16.plan import Fp16Plan, plan_fp16
from crowdrt.calibration.fp16.ranges import Magnitudes
from crowdrt.console import say
from crowdrt.contracts import Artifact, GraphInfo
from crowdrt.errors import CalibrationError, RecipeError
from crowdrt.manifest import fingerprint, reusable, sha256_file, write_manifest, write_whole
from crowdrt.onnx_file import external_files, graph_info, read_onnx, set_info

FORM = 2  # of what is written for the same inputs; a new number makes old files stale

Observe = partial[dict[Path, float]]  # of `observe`, for these photographs


@dataclass(frozen=True, kw_only=True)
class CastConfig:
    """How a network is looked at before and after it is cast to float16."""

    num_images: int = 16
    tolerance: float = 0.01  # of the count, on any photograph
    strict: bool = False  # refuse to leave a node in FP32 because of what photographs showed

    def __post_init__(self) -> None:
        if self.num_images < 1:
            raise RecipeError(
                f"num_images={self.num_images} leaves nothing to check float16 on",
                fix="use at least 2; 16 photographs are a good start",
            )
        if not 0 < self.tolerance <= 1:
            raise RecipeError(
                f"tolerance={self.tolerance} is no share of a count",
                fix="use a value over 0 and up to 1; 0.01 is 1 %",
            )


@dataclass(frozen=True)
class Survey:
    """What was seen of a network before it is cast."""

    magnitudes: Mapping[str, Magnitudes]  # of all that may become float16, in the graph's order
    means: Mapping[str, Means]  # head -> the channel means of what it reads
    counts: Counts


@dataclass(frozen=True)
class Halved:
    """A float16 network, and how far it counts from what it was made from."""

    model: onnx.ModelProto
    moved: Difference
    uncorrected: Difference  # with the last biases as they were

    @property
    def corrected(self) -> bool:
        """Whether the last biases make up for what float16 shifts."""
        return self.moved != self.uncorrected


def cast(
    onnx_path: Path,
    images: Sequence[Path],
    out: Path,
    config: CastConfig,
    keep_float: Sequence[str] = (),
    *,
    num_threads: int = 0,
) -> Artifact:
    """Write the float16 form of a network, or find it already written.

    Args:
        onnx_path: an FP32 or INT8 network that crowdrt exported or calibrated. Of an INT8
            network, what is not INT8 becomes float16.
        images: photographs like those that it will see. Of more than `config.num_images`, that
            many are taken at even distances.
        out: the network to write; its manifest lies beside it.
        config: what is tolerated.
        keep_float: names of convolutions that stay FP32.
        num_threads: 0 uses every core.

    Raises:
        CalibrationError: the network works in float16 already or cannot, its count moves by more
            than is tolerated, `config.strict` and a tensor does not fit, or `keep_float` names no
            convolution of it.
    """
    refuse_itself(out, onnx_path, "fp16")
    model = prepared(read_onnx(onnx_path))
    info = graph_info(model, source=str(onnx_path))
    plan_fp16(model, keep_float=keep_float, source=str(onnx_path))  # refuses before long work
    chosen = pick(images, config.num_images)
    files = [{"name": path.name, "sha256": hash_of(path)} for path in chosen]
    made_from = identity(onnx_path, files, config, keep_float)
    if artifact := reusable(out, made_from=made_from):
        return artifact
    info = info.with_calibration(file["sha256"] for file in files)  # they fitted the last biases
    found = write_cast(model, info, chosen, out, config, keep_float, num_threads)
    seen = {"num": len(files), "sha256": made_from["images"], "files": files}
    facts = {**asdict(config), "images": seen, **found}
    return write_manifest(out, kind="onnx", made_from=made_from, facts=facts)


def write_cast(
    model: onnx.ModelProto,
    info: GraphInfo,
    images: Sequence[Path],
    out: Path,
    config: CastConfig,
    keep_float: Sequence[str],
    num_threads: int,
) -> dict[str, Any]:
    """Look at ranges, cast, compare counts, write; return what was found out."""
    observing = partial(observe, info=info, images=images, num_threads=num_threads)
    fitted = frozenset(images[:-1:2])  # every other one; the rest judges
    plan = plan_fp16(model, keep_float=keep_float)
    seen = survey(model, plan, observing, fitted)
    unfit = misfits(seen.magnitudes, config)
    plan = plan_fp16(model, unfit, keep_float=keep_float)
    half = halve(model, plan, seen, observing, fitted)
    check(half.moved, config)
    write_fp16(half.model, info, out)
    return {
        "judged": len(images) - len(fitted),
        "counts": asdict(half.moved),
        "corrected": half.corrected,
        "uncorrected_counts": asdict(half.uncorrected),
        "unfit": unfit,
        "fp16_nodes": len(plan.cast),
        "fp16_macs": fp16_share(model, info, plan),
        "float": dict(plan.kept),
        "tensors": {name: each.facts() for name, each in seen.magnitudes.items()},
    }


def identity(
    onnx_path: Path,
    files: Sequence[Mapping[str, str]],
    config: CastConfig,
    keep_float: Sequence[str],
) -> dict[str, Any]:
    """Return everything that decides the file, the order of the images too."""
    chosen = {"keep_float": sorted(keep_float)} if keep_float else {}  # older files stay reusable
    return {
        "onnx": sha256_file(onnx_path),
        "onnx_data": [sha256_file(file) for file in external_files(onnx_path)],
        "images": fingerprint({"files": files}),
        "config": asdict(config),
        **chosen,
        "form": f"fp16 {FORM}",
    }


def survey(
    model: onnx.ModelProto, plan: Fp16Plan, observing: Observe, fitted: frozenset[Path]
) -> Survey:
    """Run the network as it is; the means are those of the photographs in `fitted`."""
    seen = {name: Magnitudes() for name in (*plan.tensors, *plan.weights)}
    for value in model.graph.initializer:
        if value.name in seen:
            seen[value.name].added = len(value.dims) < 2
            seen[value.name].add(numpy_helper.to_array(value))
    means = {name: ChannelMeans(fitted) for name in heads_of(model, plan)}
    lookers = watch_heads(model, means)
    for name in plan.tensors:
        lookers.setdefault(name, []).append(seen[name])
    counts = observing(model, doing="looking at ranges", lookers=lookers)
    return Survey(seen, {name: each.means for name, each in means.items()}, counts)


def halve(
    model: onnx.ModelProto,
    plan: Fp16Plan,
    seen: Survey,
    observing: Observe,
    fitted: frozenset[Path],
) -> Halved:
    """Return the float16 network.

    Its last biases are corrected by the photographs in `fitted`, if the counts of the others come
    closer by that; those others are what it is judged by.
    """
    judged = [path for path in seen.counts if path not in fitted]
    plain = to_fp16(model, plan)
    means = {name: ChannelMeans(fitted) for name in seen.means}
    watched: dict[str, list[Looker]] = {name: [] for name in float16_tensors(plain)}
    counts = observing(plain, doing="in float16", lookers=watched | watch_heads(plain, means))
    moved = difference(seen.counts, counts, judged)
    if not fitted:
        return Halved(plain, moved, moved)
    after = {name: each.means for name, each in means.items()}
    corrected = with_means_kept(plain, seen.means, after)
    counts = observing(corrected, doing="corrected", lookers=watched)
    closer = difference(seen.counts, counts, judged)
    if closer.mean < moved.mean:
        return Halved(corrected, closer, moved)
    return Halved(plain, moved, moved)


def watch_heads(
    model: onnx.ModelProto, means: Mapping[str, ChannelMeans]
) -> dict[str, list[Looker]]:
    """Return, by the tensor that a head reads, what takes its means."""
    lookers: dict[str, list[Looker]] = {}
    for node in model.graph.node:
        if node.name in means:
            lookers.setdefault(node.input[0], []).append(means[node.name])
    return lookers


def misfits(seen: Mapping[str, Magnitudes], config: CastConfig) -> dict[str, str]:
    """Return the tensors that float16 cannot hold -> why, in order; name the first."""
    found = {name: each.objection(name) for name, each in seen.items()}
    unfit = {name: why for name, why in found.items() if why is not None}
    if unfit:
        first = next(iter(unfit.values()))
        if config.strict:
            raise CalibrationError(
                f"float16 cannot hold {len(unfit)} of {len(seen)} tensors; the first: {first}",
                fix="leave out --strict, and the nodes around them stay FP32",
            )
        say(f"{len(unfit)} of {len(seen)} tensors stay FP32; the first: {first}")
    return unfit


def check(moved: Difference, config: CastConfig) -> None:
    """Refuse a network that counts differently in float16."""
    if moved.largest <= config.tolerance:
        return
    raise CalibrationError(
        f"float16 moves the count of {moved.where} from {moved.before:.2f} to {moved.after:.2f}, "
        f"by {moved.largest:.2%}; {config.tolerance:.2%} is tolerated",
        fix="use the network that it was made from, or tolerate more, for example: "
        "--tolerance 0.05",
    )


def write_fp16(model: onnx.ModelProto, info: GraphInfo, out: Path) -> None:
    """Check the graph and write it, whole or not at all."""
    mixed = info.precision == "int8"
    set_info(model, replace(info, precision="int8+fp16" if mixed else "fp16"))
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    with write_whole(out) as temporary:
        onnx.save(model, temporary)


def fp16_share(model: onnx.ModelProto, info: GraphInfo, plan: Fp16Plan) -> float | None:
    """Return the share of the convolutions' MACs that run in float16; None where unknown."""
    return int8_share(conv_macs(model, info.fixed_size or COST_SIZE), plan.cast)
