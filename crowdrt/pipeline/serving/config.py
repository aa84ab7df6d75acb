"""Triton's model configuration, made and read by Triton's own schema.

The schema is the protobuf that tritonclient ships (`model_config.proto`). A configuration is only
ever filled in field by field, and what was written is read back. What the fields mean is said in
Triton's `docs/user_guide/model_configuration.md`.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crowdrt.contracts import TensorSpec
from crowdrt.errors import CrowdRTError
from crowdrt.lazy import require
from crowdrt.pipeline.serving.served import Served

EXTRA = "serve"
CONFIG = "config.pbtxt"
CLIENT_KEY = "crowdrt"  # the parameter in which the client finds how a photograph enters
MAX_BATCH = 4  # what Triton itself takes where nobody says otherwise
PLATFORMS = {"onnxruntime": "onnxruntime_onnx", "tensorrt": "tensorrt_plan"}


@dataclass(frozen=True, kw_only=True)
class ServingOptions:
    """How models are served; a configuration that exists keeps its own."""

    max_batch: int = MAX_BATCH  # images that Triton may put together, where the network takes any
    instances: int = 1  # of a model at the same time: on the CPU, or on each GPU
    num_threads: int = 0  # of one instance on the CPU; 0: as the engine was built, or every core

    def __post_init__(self) -> None:
        for name in ("max_batch", "instances"):
            if (value := getattr(self, name)) < 1:
                raise CrowdRTError(
                    f"--{name.replace('_', '-')} {value} serves nothing", fix="use 1 or more"
                )


def model_config(served: Served, name: str, kept: Sequence[str], options: ServingOptions) -> Any:
    """Return the `ModelConfig` of a network under a name.

    Args:
        served: the network.
        name: that of the model's folder.
        kept: the outputs that clients may ask for, at least one; others are computed if these need
            them, and stay inside.
        options: instances, batches and threads.
    """
    config = require("tritonclient.grpc.model_config_pb2", extra=EXTRA).ModelConfig()
    config.name, config.backend = name, served.backend
    config.platform = PLATFORMS[served.backend]
    batched = takes_batches(served)
    config.max_batch_size = 0 if not batched else served.max_batch or options.max_batch
    for spec in served.inputs:
        fill_tensor(config.input.add(), spec, batched=batched)
    for spec in served.outputs:
        if spec.name in kept:
            fill_tensor(config.output.add(), spec, batched=batched)
    if config.max_batch_size > 1:
        config.dynamic_batching.SetInParent()  # what is waiting goes together; nobody waits for it
    group = config.instance_group.add(count=options.instances)
    group.kind = group.KIND_CPU if served.backend == "onnxruntime" else group.KIND_GPU
    num_threads = options.num_threads or served.num_threads
    if num_threads and served.backend == "onnxruntime":
        config.parameters["intra_op_thread_count"].string_value = str(num_threads)
    config.parameters[CLIENT_KEY].string_value = client_facts(served)
    return config


def takes_batches(served: Served) -> bool:
    """Say whether the first axis of every tensor is a free batch; Triton asks for all of them."""
    return all(isinstance(spec.shape[0], str) for spec in (*served.inputs, *served.outputs))


def fill_tensor(tensor: Any, spec: TensorSpec, *, batched: bool) -> None:
    """Fill in one input or output: free axes are -1, the batch that Triton adds is left out."""
    known = require("tritonclient.utils", extra=EXTRA)
    kind = known.np_to_triton_dtype(np.dtype(spec.dtype))
    tensor.name = spec.name
    tensor.data_type = require("tritonclient.grpc.model_config_pb2", extra=EXTRA).DataType.Value(
        f"TYPE_{kind}"
    )
    dims = [axis if isinstance(axis, int) else -1 for axis in spec.shape[batched:]]
    tensor.dims.extend(dims or [1])
    if not dims:  # (N,): Triton's tensors have an axis beside the batch, so it becomes (N, 1)
        tensor.reshape.SetInParent()


def client_facts(served: Served) -> str:
    """Return what a client must know to feed a photograph, as JSON."""
    pixels = served.info.preprocessing
    facts = {
        **asdict(pixels),
        "pad_value": pixels.pad_value,
        "density_stride": served.info.density_stride,
        "fixed_size": served.info.fixed_size,
        "normalised_input": served.info.normalised_input,
    }
    return json.dumps(facts, sort_keys=True)


def write_config(config: Any, path: Path) -> None:
    """Write a configuration, and read it back."""
    text_format = require("google.protobuf.text_format", extra=EXTRA)
    path.write_text(text_format.MessageToString(config))
    assert read_config(path) == config, "what was written reads otherwise"


def read_config(path: Path) -> Any:
    """Read a `config.pbtxt` by Triton's schema.

    Raises:
        CrowdRTError: there is none, or it has a field that Triton does not know.
    """
    text_format = require("google.protobuf.text_format", extra=EXTRA)
    config = require("tritonclient.grpc.model_config_pb2", extra=EXTRA).ModelConfig()
    try:
        return text_format.Parse(path.read_text(), config)
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise CrowdRTError(
            f"{path} is no configuration that Triton reads: {error}",
            fix="mend that line, or move the model's folder away and give the command again",
        ) from error


def keeps_contract(there: Any, here: Any) -> bool:
    """Say whether clients of one configuration can rest on another.

    How many instances and batches there are is the operator's; and a newer crowdrt may say more of
    a network than an older one did.
    """
    if _tensors(there) != _tensors(here):
        return False
    old, new = _facts(there), _facts(here)
    return (
        old is not None
        and new is not None
        and all(old[key] == new[key] for key in old.keys() & new.keys())
    )


def _tensors(config: Any) -> Any:
    kept = type(config)(name=config.name, backend=config.backend, platform=config.platform)
    kept.input.extend(config.input)
    kept.output.extend(config.output)
    return kept


def _facts(config: Any) -> dict[str, Any] | None:
    """Return what `client_facts` wrote; None where nobody did."""
    if CLIENT_KEY not in config.parameters:
        return None
    try:
        facts = json.loads(config.parameters[CLIENT_KEY].string_value)
    except ValueError:
        return None
    return facts if isinstance(facts, dict) else None
