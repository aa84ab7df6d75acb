"""ONNX files read with distrust, and what crowdrt wrote about itself in them."""

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import helper
from onnx.external_data_helper import load_external_data_for_model, uses_external_data

from crowdrt.contracts import METADATA_KEY, GraphInfo, TensorSpec
from crowdrt.errors import ExportError
from crowdrt.onnx_graph import stored_names

EXPORT = "crowdrt export NETWORK --weights F -o model.onnx"


def read_onnx(path: Path) -> onnx.ModelProto:
    """Return the checked network in `path`, with any external data loaded into it.

    Raises:
        ExportError: the file is missing, damaged, no ONNX, or its external data is missing or
            lies outside its folder.
    """
    model = _parse(path)
    _load_external_data(model, path)
    _check(model, path)
    return model


def _parse(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise ExportError(f"{path} does not exist, or is no file", fix=f"create it: {EXPORT}")
    try:
        return onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise ExportError(
            f"{path} is no ONNX file, or is damaged or cut short: {error}",
            fix=f"copy it again, or write it again: {EXPORT}",
        ) from error
    except OSError as error:
        raise ExportError(
            f"{path} cannot be read: {error.strerror}", fix=f"check its permissions: ls -l {path}"
        ) from error


def _load_external_data(model: onnx.ModelProto, path: Path) -> None:
    # onnx refuses paths that leave the folder, symbolic and hard links
    try:
        load_external_data_for_model(model, str(path.parent))
    except (onnx.checker.ValidationError, ValueError, OSError) as error:
        raise ExportError(
            f"{path} keeps its weights in another file, which is missing or not safe to read: "
            f"{_first_line(error)}",
            fix="put the weights file beside it under its own name, or export to one file",
        ) from error


def _check(model: onnx.ModelProto, path: Path) -> None:
    if not model.graph.node:
        raise ExportError(
            f"{path} holds no ONNX graph; it may be empty, cut short or another kind of file",
            fix=f"copy it again, or write it again: {EXPORT}",
        )
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ExportError(
            f"{path} is not a valid ONNX network: {_first_line(error)}",
            fix=f"copy it again, or write it again: {EXPORT}",
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def stored_info(model: onnx.ModelProto, *, source: str) -> GraphInfo | None:
    """Return what crowdrt wrote into `model`, or None when another tool exported it."""
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            return GraphInfo.from_json(entry.value, source=source)
    return None


def graph_info(model: onnx.ModelProto | Path, *, source: str = "the network") -> GraphInfo:
    """Return what crowdrt wrote into `model`; a network of another tool is refused.

    Raises:
        ExportError: the file cannot be used, or carries no crowdrt metadata.
    """
    if isinstance(model, Path):
        model, source = read_onnx(model), str(model)
    info = stored_info(model, source=source)
    if info is None:
        raise ExportError(
            f"{source} was not exported by crowdrt: it does not say how images enter it",
            fix=f"export it with crowdrt: {EXPORT}",
        )
    return info


def set_info(model: onnx.ModelProto, info: GraphInfo) -> None:
    """Write `info` into `model`, in place of what it said of itself before."""
    kept = [entry for entry in model.metadata_props if entry.key != METADATA_KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    model.metadata_props.add(key=METADATA_KEY, value=info.to_json())


def fed(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs that a caller feeds."""
    stored = set(stored_names(model.graph))
    return [value for value in model.graph.input if value.name not in stored]


def spec_of(value: onnx.ValueInfoProto) -> TensorSpec:
    """Turn ONNX's description of an input or output into ours.

    An axis of 0 or less is free: no engine is fed nothing, and some exporters write it for that.
    """
    tensor = value.type.tensor_type
    axes = [
        axis.dim_value if axis.dim_value > 0 else axis.dim_param or f"axis{i}"
        for i, axis in enumerate(tensor.shape.dim)
    ]
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return TensorSpec(name=value.name, shape=tuple(axes), dtype=str(dtype))


def external_files(path: Path) -> list[Path]:
    """Return the files beside `path` that hold some of its weights; nearly always none."""
    model = _parse(path)
    tensors = [*model.graph.initializer]
    tensors += [
        each.t for node in model.graph.node for each in node.attribute if each.HasField("t")
    ]
    external = [tensor for tensor in tensors if uses_external_data(tensor)]
    names = {e.value for tensor in external for e in tensor.external_data if e.key == "location"}
    if names:
        _load_external_data(model, path)  # only to refuse what is missing or not safe to open
    return [path.parent / name for name in sorted(names)]
