"""A float ONNX network and photographs become an INT8 ONNX network."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from crowdrt.calibration.cost import conv_macs, int8_share
from crowdrt.calibration.int8.plan import Plan, plan_int8
from crowdrt.calibration.int8.qdq import insert_qdq
from crowdrt.calibration.layerwise import LayerwiseGraph, only_size
from crowdrt.calibration.ranges import Statistics, range_of
from crowdrt.calibration.ranges.cache import StatisticsCache, cache_key
from crowdrt.console import say, track
from crowdrt.contracts import Artifact, CalibrationConfig, Feeds, GraphInfo, Size, UInt8Image
from crowdrt.data.images import check_file, read_image, unreadable
from crowdrt.data.preprocess import pad_to_stride
from crowdrt.data.tiles import TileMode, tiles_of, tiling_of
from crowdrt.errors import CalibrationError
from crowdrt.int8 import activation_scale
from crowdrt.manifest import fingerprint, reusable, sha256_file, write_manifest, write_whole
from crowdrt.onnx_file import external_files, graph_info, read_onnx, set_info

MIN_OPSET = 13  # the first whose Q/DQ takes one scale per channel
COST_SIZE: Size = (576, 864)  # at which shares of MACs are taken; they hardly depend on it
FORM = 3  # of what is written for the same inputs; a new number makes old files stale


def calibrate(
    onnx_path: Path,
    images: Sequence[Path],
    out: Path,
    config: CalibrationConfig,
    keep_float: Sequence[str] = (),
    *,
    num_threads: int = 0,
    cache: Path | None = None,
) -> Artifact:
    """Write the INT8 form of a float network, or find it already written.

    Args:
        onnx_path: a float network that crowdrt exported, for a fixed or any size.
        images: photographs like those that it will see, and none that it will be judged by. Of
            more than `config.num_images`, that many are taken at even distances. Each is run at
            its own size, whatever size the network was exported for; a network that takes one
            size and no other sees its tiles, as when it counts.
        out: the INT8 network; its manifest lies beside it.
        config: how ranges are found.
        keep_float: names of convolutions to leave in float.
        num_threads: 0 uses every core.
        cache: folder of the statistics, from which every method takes its ranges without another
            pass, and a killed pass goes on. Named here, it refuses statistics that do not fit;
            by default they lie beside `out` and are then collected anew.
    """
    refuse_itself(out, onnx_path)
    model = read_onnx(onnx_path)
    chosen = pick(images, config.num_images)
    files = [{"name": path.name, "sha256": hash_of(path)} for path in chosen]
    made_from = identity(onnx_path, files, config, keep_float)
    if artifact := reusable(out, made_from=made_from):
        return artifact
    info = float_info(model, source=str(onnx_path))
    plan = plan_int8(model, keep_float)
    hashes = [file["sha256"] for file in files]
    key = statistics_key(made_from, hashes, info, watched_whatever_stays_float(model, plan))
    kept = statistics_cache(onnx_path, out, cache, key)
    pairs = list(zip(chosen, hashes, strict=True))
    seen = collect_kept(model, info, pairs, kept, num_threads=num_threads)
    told = info.with_calibration(hashes)
    write_int8(quantize(model, plan, seen, config), told, out, weight_bits=config.weight_bits)
    listed = {"num": len(files), "sha256": made_from["images"], "files": files}
    facts = facts_of(model, plan, info, asdict(config), tensor_facts(plan, seen, config))
    facts["images"] = listed
    return write_manifest(out, kind="onnx", made_from=made_from, facts=facts)


def refuse_itself(out: Path, source: Path, form: str = "int8") -> None:
    """Refuse to write a network over the one that it is made from.

    Args:
        out: what will be written.
        source: what is read.
        form: what `out` will be, for the name that is proposed.
    """
    if out.resolve() == source.resolve():
        raise CalibrationError(
            f"{out} is the network itself, of which its {form} form is made",
            fix=f"write elsewhere: -o {source.with_suffix(f'.{form}.onnx')}",
        )


def identity(
    onnx_path: Path,
    files: Sequence[Mapping[str, str]],
    config: CalibrationConfig,
    keep_float: Sequence[str],
) -> dict[str, Any]:
    """Return everything that decides the INT8 file; the order of the images does not."""
    return {
        "onnx": sha256_file(onnx_path),
        "onnx_data": [sha256_file(file) for file in external_files(onnx_path)],
        "images": fingerprint({"files": sorted(files, key=str)}),
        "config": asdict(config),
        "keep_float": sorted(keep_float),
        "form": FORM,
    }


def pick(images: Sequence[Path], num_images: int) -> list[Path]:
    """Return at most `num_images` of the images, at even distances."""
    if not images:
        raise CalibrationError(
            "there are no images to calibrate on",
            fix="name a folder of photographs: crowdrt calibrate model.onnx --images DIR",
        )
    num = min(num_images, len(images))
    return [images[i * len(images) // num] for i in range(num)]


def hash_of(image: Path) -> str:
    """Return the SHA-256 of an image file."""
    check_file(image)
    try:
        return sha256_file(image)
    except OSError as error:
        raise unreadable(image, error) from error


def float_info(model: onnx.ModelProto, *, source: str) -> GraphInfo:
    """Return what a float network says of itself; refuse one that cannot become INT8."""
    info = graph_info(model, source=source)
    if info.precision != "fp32":
        raise CalibrationError(
            f"{source} is a network of precision {info.precision} already",
            fix="calibrate the float network that it was made from",
        )
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if opset < MIN_OPSET:
        raise CalibrationError(
            f"{source} is written for opset {opset}, INT8 needs {MIN_OPSET} or later",
            fix="export it again: crowdrt export NETWORK --opset 17 -o model.onnx",
        )
    return replace(info, trained_int8=None)  # what follows is measured


def collect(
    model: onnx.ModelProto,
    plan: Plan,
    info: GraphInfo,
    images: Collection[Path],
    *,
    num_threads: int = 0,
) -> dict[str, Statistics]:
    """Run the float graph on the images and return what was seen of each watched tensor."""
    seen = {name: Statistics() for name in watched_by(plan)}
    graph = LayerwiseGraph(model, seen, num_threads=num_threads)
    for path in track(images, "calibrating", total=len(images)):
        look_at(path, model, info, graph, seen)
    return seen


def collect_kept(
    model: onnx.ModelProto,
    info: GraphInfo,
    images: Sequence[tuple[Path, str]],
    cache: StatisticsCache,
    *,
    num_threads: int = 0,
) -> dict[str, Statistics]:
    """Return what was seen of the tensors that `cache` names, running only what it lacks.

    An image comes with its SHA-256.
    """
    progress = cache.load()
    left = progress.left_of(images)
    if len(left) < len(images):
        say(f"{cache.path} has seen {len(images) - len(left)} of {len(images)} images")
    if not left:
        return progress.seen
    graph = LayerwiseGraph(model, progress.seen, num_threads=num_threads)
    for path, digest in track(left, "calibrating", total=len(left)):
        look_at(path, model, info, graph, progress.seen)
        progress.done.append(digest)
        cache.save_now_and_then(progress)
    cache.save(progress)
    return progress.seen


def look_at(
    path: Path,
    model: onnx.ModelProto,
    info: GraphInfo,
    graph: LayerwiseGraph,
    seen: Mapping[str, Statistics],
) -> None:
    """Add what one photograph makes of every watched tensor."""
    for name, values in chain.from_iterable(map(graph.run, feeds_of(model, info, path))):
        try:
            seen[name].add(values)
        except FloatingPointError as error:
            raise CalibrationError(
                f"{name} holds {error} on {path}",
                fix="the float network is broken for this image: check its weights with "
                "crowdrt count model.onnx IMAGE, or leave the image out",
            ) from error


def watched_by(plan: Plan) -> list[str]:
    """Return the tensors whose values decide the ranges of a plan."""
    return [name for names in plan.watched.values() for name in names]


def watched_whatever_stays_float(model: onnx.ModelProto, plan: Plan) -> set[str]:
    """Return what a plan watches, and what it would if no layer were kept float on request.

    So one pass mostly serves a search for the layers to keep float.
    """
    return {*watched_by(plan), *watched_by(plan_int8(model))}


def statistics_key(
    made_from: Mapping[str, Any], images: Collection[str], info: GraphInfo, tensors: Collection[str]
) -> dict[str, Any]:
    """Return what decides statistics; of `identity`, neither the method nor what stays float."""
    entering = {"normalised_input": info.normalised_input, "fixed_size": info.fixed_size}
    return cache_key(
        model=[made_from["onnx"], *made_from["onnx_data"]],
        images=images,
        preprocessing=asdict(info.preprocessing) | entering,
        tensors=tensors,
    )


def statistics_cache(
    onnx_path: Path, out: Path, folder: Path | None, key: Mapping[str, Any]
) -> StatisticsCache:
    """Return where the statistics of a network are kept: in `folder`, else beside `out`."""
    if folder is not None and folder.exists() and not folder.is_dir():
        raise CalibrationError(
            f"{folder} is a file, statistics are kept in a folder", fix="name one: --cache DIR"
        )
    path = (folder or out.parent) / f"{onnx_path.stem}.calibration.json"
    return StatisticsCache(path, key, strict=folder is not None)


def feeds_of(model: onnx.ModelProto, info: GraphInfo, path: Path) -> Iterator[Feeds]:
    """Yield one photograph as the network takes it: whole, or tile by tile."""
    stored = {value.name for value in model.graph.initializer}
    name = next(value.name for value in model.graph.input if value.name not in stored)
    for pixels in pixels_of(model, info, path):
        if not info.normalised_input:
            yield {name: pixels}
            continue
        mean, std = (
            np.array(levels, np.float32)[:, None, None]
            for levels in (info.preprocessing.mean, info.preprocessing.std)
        )
        yield {name: (pixels.astype(np.float32) - mean) / std}


def pixels_of(model: onnx.ModelProto, info: GraphInfo, path: Path) -> Iterator[UInt8Image]:
    """Yield (1, C, H, W): the photograph padded to the stride, or each tile that it is cut into."""
    photograph = read_image(path, info.preprocessing.channels)
    whole = pad_to_stride(photograph, info.preprocessing)[np.newaxis]
    only = info.fixed_size or only_size(model, (whole.shape[2], whole.shape[3]))
    if only is None:
        yield whole
        return
    mode: TileMode = "resize" if info.fixed_size else "pad"
    tiling = tiling_of((photograph.shape[1], photograph.shape[2]), only, mode)
    yield from tiles_of(photograph, tiling, info.preprocessing)


def quantize(
    model: onnx.ModelProto, plan: Plan, seen: Mapping[str, Statistics], config: CalibrationConfig
) -> onnx.ModelProto:
    """Return the INT8 form of `model` for what calibration saw."""
    means = {name: statistics.means for name, statistics in seen.items()}
    return insert_qdq(
        model, plan, ranges_of(plan, seen, config), weight_bits=config.weight_bits, means=means
    )


def ranges_of(
    plan: Plan, seen: Mapping[str, Statistics], config: CalibrationConfig
) -> dict[str, float]:
    """Return the range of each group: the widest of its watched tensors."""
    return {
        group: max(range_of(seen[name].histogram, config) for name in names)
        for group, names in plan.watched.items()
    }


def write_int8(model: onnx.ModelProto, info: GraphInfo, out: Path, *, weight_bits: int) -> None:
    """Check the INT8 graph and write it, whole or not at all."""
    set_info(model, replace(info, precision="int8", weight_bits=weight_bits))
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    with write_whole(out) as temporary:
        onnx.save(model, temporary)


def facts_of(
    model: onnx.ModelProto,
    plan: Plan,
    info: GraphInfo,
    found_by: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """Return what the manifest says of the ranges, and of what runs in INT8.

    Args:
        model: the float network.
        plan: what of it runs in INT8.
        info: its own.
        found_by: how ranges were found.
        tensors: facts of each INT8 tensor.
    """
    return {
        **found_by,
        "float": dict(plan.left),
        "int8_macs": int8_share(conv_macs(model, info.fixed_size or COST_SIZE), plan.convs),
        "tensors": tensors,
    }


def tensor_facts(
    plan: Plan, seen: Mapping[str, Statistics], config: CalibrationConfig
) -> dict[str, dict[str, float]]:
    """Return what the manifest says of each INT8 tensor; a range of 0 means it was always 0."""
    ranges = ranges_of(plan, seen, config)
    return {
        name: {
            "range": ranges[group],
            "largest": max(seen[watched].histogram.largest for watched in plan.watched[group]),
            "scale": float(activation_scale(ranges[group])),
        }
        for name, group in plan.group_of.items()
    }
