"""A repository in a real Triton server; docs/serving.md says how to come by one.

`$CROWDRT_TRITON` names its folder, which is /opt/tritonserver in NVIDIA's containers. Where it has
no ONNX Runtime backend, its Python backend runs ONNX Runtime on the same files: then configuration,
batches and protocol are Triton's, and the backend is not. `$CROWDRT_TRITON_PYTHON` is a virtual
environment with the onnxruntime and the NumPy 1 that the Python backend needs.
"""

import os
import shutil
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton_http
from google.protobuf import text_format
from tritonclient.utils import InferenceServerException

from crowdrt.pipeline.serving import client
from crowdrt.pipeline.serving.config import read_config

HOME = Path(os.environ.get("CROWDRT_TRITON", "/opt/tritonserver"))
PYTHON = Path(os.environ.get("CROWDRT_TRITON_PYTHON", "/usr"))
PATIENCE_S = 60.0
BACKEND = """
import json, os
import numpy as np
import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.batched = config["max_batch_size"] > 0
        self.names = [each["name"] for each in config["output"]]
        folder = os.path.join(args["model_repository"], args["model_version"])
        self.session = onnxruntime.InferenceSession(os.path.join(folder, "model.onnx"))

    def execute(self, requests):
        images = [triton.get_input_tensor_by_name(each, "image").as_numpy() for each in requests]
        if not self.batched:
            return [self.answer(self.run(image), slice(None)) for image in images]
        found, ends = self.run(np.concatenate(images)), np.cumsum([len(each) for each in images])
        return [self.answer(found, slice(b - len(i), b)) for b, i in zip(ends, images)]

    def run(self, image):
        return self.session.run(self.names, {"image": image})

    def answer(self, found, rows):
        parts = [triton.Tensor(name, each[rows]) for name, each in zip(self.names, found)]
        return triton.InferenceResponse(parts)
"""


def with_python_backend(repository):
    for path in repository.glob("*/config.pbtxt"):
        config = read_config(path)
        config.backend, config.platform = "python", ""
        path.write_text(text_format.MessageToString(config))
        (path.parent / "1" / "model.py").write_text(BACKEND)


@pytest.fixture
def serve(tmp_path):
    """Start a server on a repository; its HOST:PORT."""
    running = []

    def start(repository):
        if not (HOME / "backends" / "onnxruntime").is_dir():
            with_python_backend(repository)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = {
            "model-repository": repository,
            "backend-directory": HOME / "backends",
            "http-port": port,
            "allow-grpc": "false",
            "allow-metrics": "false",
            "exit-timeout-secs": 1,
        }
        command = [HOME / "bin" / "tritonserver", *(f"--{k}={v}" for k, v in options.items())]
        path = f"{PYTHON / 'bin'}:{os.environ['PATH']}"  # where Triton's Python finds itself
        with (tmp_path / "server.log").open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env=os.environ | {"PATH": path}
            )
        running.append(process)
        url = f"127.0.0.1:{port}"
        wait_for(url, process, tmp_path / "server.log")
        return url

    yield start
    for process in running:
        process.terminate()
        process.wait()


def wait_for(url, process, log):
    """Wait until every model is ready; a server that ends is shown with its last words."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end and process.poll() is None:
        try:
            if triton_http.InferenceServerClient(url).is_server_ready():
                return
        except OSError:
            pass
        time.sleep(0.5)
    raise AssertionError(f"the server is not ready:\n{log.read_text()[-4000:]}")


@pytest.mark.skipif(
    not (HOME / "bin" / "tritonserver").is_file(), reason="needs a Triton server: $CROWDRT_TRITON"
)
def test_a_real_server_counts_whom_crowdrt_counts(crowdrt, tiny, tmp_path, serve):
    size = "128x160"
    fixed = tmp_path / "fixed.onnx"
    crowdrt("export", "csrnet", "--width", "1/16", "--weights", tiny.weights, "--size", size, "-o",
            fixed, "--json").json()  # fmt: skip
    files = {"tiny": tiny.onnx, "tiny.int8": tiny.int8, "fixed": fixed}
    crowdrt("triton", *files.values(), "-o", tmp_path / "repo", "--json").json()
    url = serve(shutil.copytree(tmp_path / "repo", tmp_path / "served"))
    for name, file in files.items():
        rows = crowdrt("count", file, tiny.photos, "--json").json()
        expected = {row["image"]: row["count"] for row in rows}
        assert max(expected.values()) - min(expected.values()) > 0.02
        models = [f"{name}-density"] if name == "fixed" else [name, f"{name}-density"]
        for model in models:
            counter = client.Counter(url, model)
            found = {image: counter.count(image) for image in expected}
            assert found == pytest.approx(expected, abs=2e-3)
    with pytest.raises(InferenceServerException, match="unexpected inference output 'density'"):
        ask_for(url, "tiny", "density")
    many = [next(iter(expected))] * 8  # of one size, so that some are put together

    def count(image):
        return client.Counter(url, "tiny").count(image)

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(count, many))
    assert together == pytest.approx([count(many[0])] * 8, abs=2e-3)
    (said,) = triton_http.InferenceServerClient(url).get_inference_statistics("tiny")["model_stats"]
    assert int(said["execution_count"]) < int(said["inference_count"])


def ask_for(url, model, output):
    image = triton_http.InferInput("image", [1, 3, 64, 64], "UINT8")
    image.set_data_from_numpy(np.zeros((1, 3, 64, 64), np.uint8))
    wanted = [triton_http.InferRequestedOutput(output)]
    return triton_http.InferenceServerClient(url).infer(model, [image], outputs=wanted)
