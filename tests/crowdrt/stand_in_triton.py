"""A stand-in for tritonserver: KServe v2 over HTTP with Triton's binary tensors, on ONNX Runtime.

It loads a repository as Triton's ONNX Runtime backend does: the newest version of each model, held
against its configuration by the rules that were read in that backend's source. It shows that the
files, the configuration and the client fit together, and nothing of what Triton itself does.
"""

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig
from tritonclient.utils import np_to_triton_dtype, triton_to_np_dtype

ORT_TYPES = {"tensor(uint8)": "UINT8", "tensor(float)": "FP32", "tensor(int64)": "INT64"}
LENGTH = "Inference-Header-Content-Length"


class RefusedError(Exception):
    """What Triton answers with a status of 400."""


class Model:
    """One model, loaded and checked."""

    def __init__(self, folder: Path) -> None:
        self.config = text_format.Parse((folder / "config.pbtxt").read_text(), ModelConfig())
        assert self.config.name == folder.name
        version = max(int(each.name) for each in folder.iterdir() if each.name.isdecimal())
        self.session = onnxruntime.InferenceSession(str(folder / str(version) / "model.onnx"))
        self.batched = self.config.max_batch_size > 0
        assert self.config.instance_group[0].kind == self.config.instance_group[0].KIND_CPU
        given = {each.name: each for each in self.session.get_inputs()}
        assert set(given) == {each.name for each in self.config.input}
        for tensor in self.config.input:
            self.check(tensor, given[tensor.name])
        given = {each.name: each for each in self.session.get_outputs()}
        for tensor in self.config.output:  # some of the file's, which Triton allows
            self.check(tensor, given[tensor.name])

    def check(self, tensor: Any, arg: Any) -> None:
        dims = list(tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims)
        assert tensor.dims, f"{tensor.name}: Triton allows no empty shape"
        own = [axis if isinstance(axis, int) else -1 for axis in arg.shape]
        assert [-1] * self.batched + dims == own, tensor.name
        assert DataType.Name(tensor.data_type) == f"TYPE_{ORT_TYPES[arg.type]}"

    def infer(self, feeds: Mapping[str, np.ndarray], wanted: list[str]) -> dict[str, np.ndarray]:
        for tensor in self.config.input:
            self.check_feed(tensor, feeds[tensor.name])
        offered = {tensor.name: tensor for tensor in self.config.output}
        if unknown := set(wanted) - set(offered):
            raise RefusedError(f"unexpected inference output {unknown}")
        found = dict(zip(wanted, self.session.run(wanted, dict(feeds)), strict=True))
        for name, array in found.items():
            if offered[name].HasField("reshape"):
                found[name] = array.reshape(len(array), *offered[name].dims)
        return found

    def check_feed(self, tensor: Any, array: np.ndarray) -> None:
        shape = list(array.shape[self.batched :])
        fits = len(shape) == len(tensor.dims) and all(
            dim in (-1, side) for dim, side in zip(tensor.dims, shape, strict=True)
        )
        if not fits or (self.batched and len(array) > self.config.max_batch_size):
            raise RefusedError(f"unexpected shape {array.shape} for {tensor.name}")
        if f"TYPE_{np_to_triton_dtype(array.dtype)}" != DataType.Name(tensor.data_type):
            raise RefusedError(f"unexpected type {array.dtype} for {tensor.name}")


class Handler(BaseHTTPRequestHandler):
    """Two of Triton's addresses: a model's configuration, and an inference."""

    protocol_version = "HTTP/1.1"
    models: Mapping[str, Model]

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        _, _, _, name, what = self.path.split("/")
        if what != "config" or name not in self.models:
            return self.refuse(f"no model {name!r}")
        said = json_format.MessageToDict(self.models[name].config, preserving_proto_field_name=True)
        return self.answer(200, json.dumps(said).encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        _, _, _, name, what = self.path.split("/")
        assert what == "infer"
        try:
            head = int(self.headers[LENGTH])
            self.answer_tensors(name, self.models[name], json.loads(body[:head]), body[head:])
        except RefusedError as error:
            self.refuse(str(error))

    def answer_tensors(
        self, name: str, model: Model, request: dict[str, Any], binary: bytes
    ) -> None:
        feeds, start = {}, 0
        for each in request["inputs"]:
            size = each["parameters"]["binary_data_size"]
            raw = np.frombuffer(binary[start : start + size], triton_to_np_dtype(each["datatype"]))
            feeds[each["name"]], start = raw.reshape(each["shape"]), start + size
        found = model.infer(feeds, [each["name"] for each in request["outputs"]])
        outputs = [
            {
                "name": key,
                "datatype": np_to_triton_dtype(array.dtype),
                "shape": list(array.shape),
                "parameters": {"binary_data_size": array.nbytes},
            }
            for key, array in found.items()
        ]
        head = json.dumps({"model_name": name, "outputs": outputs}).encode()
        content = head + b"".join(array.tobytes() for array in found.values())
        self.answer(200, content, {LENGTH: str(len(head))})

    def refuse(self, reason: str) -> None:
        self.answer(400, json.dumps({"error": reason}).encode())

    def answer(self, status: int, content: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content)


@contextlib.contextmanager
def serving(repository: Path) -> Iterator[str]:
    """Serve every model of a repository; yields HOST:PORT."""
    models = {each.name: Model(each) for each in repository.iterdir() if each.is_dir()}
    handler = type("OwnHandler", (Handler,), {"models": models})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
