"""What only a GPU can confirm, on whatever TensorRT is installed there: pytest -m gpu."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnx
import pytest

from crowdrt.engines.base import open_engine
from crowdrt.engines.cuda.device import open_device
from crowdrt.engines.ort import OrtEngine
from crowdrt.engines.store import MANIFEST, EngineStore
from crowdrt.engines.trt.building.options import PlanOptions, parse_shape
from crowdrt.errors import EngineError

pytestmark = pytest.mark.gpu
STATIC = PlanOptions(shape=parse_shape("40x64"), workspace_bytes=256 << 20)
RANGE = replace(STATIC, shape=parse_shape("32x32:40x64:64x96"))
CLOSE = 1e-4  # of the largest value: FP32 sums in another order


@pytest.fixture
def built(tmp_path, tiny_onnx):
    """Builds the small crowd network; returns its engine, and the reference."""

    def make(options=STATIC, path=tiny_onnx):
        store = EngineStore(tmp_path / "engines")
        engine = open_engine(store.build(path, engine="tensorrt", plan=options).path)
        return engine, OrtEngine(path)

    return make


def agree(engine, reference, image, close=CLOSE):
    got, expected = engine.run({"image": image}), reference.run({"image": image})
    assert expected["density"].std() > 0.01
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, atol=close * np.abs(array).max())


@pytest.mark.parametrize("options", [STATIC, RANGE, replace(STATIC, float_input=True)])
def test_it_counts_as_onnx_runtime_does(built, pixels, options):
    engine, reference = built(options)
    for _ in range(4):  # plain, recorded, and twice as a graph
        agree(engine, reference, pixels)


def test_sizes_change_within_a_range(built, pixels):
    engine, reference = built(RANGE)
    for image in (pixels, pixels[..., :32, :32], pixels, pixels, pixels[..., :32, :48]):
        agree(engine, reference, image)


def test_a_graph_is_launched_from_the_second_run_on(built, pixels, capsys):
    engine, _ = built()
    for _ in range(3):
        engine.run({"image": pixels})
    assert "one by one" not in capsys.readouterr().err


def test_threads_run_beside_each_other(built, pixels):
    engine, reference = built(RANGE)
    engines = [engine, engine.beside(), engine.beside()]
    images = [np.roll(pixels, 7 * i, -1) for i in range(3)]

    def work(i):
        for _ in range(20):
            agree(engines[i], reference, images[i])

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))


def test_memory_comes_back(built, pixels):
    engine, _ = built()
    engine.run({"image": pixels})
    device = open_device()
    with device.current():
        before = device.free_bytes()
    for _ in range(20):
        with engine.beside() as other:
            other.run({"image": pixels})
    with device.current():
        assert device.free_bytes() >= before - (8 << 20)


def test_the_gpus_clock_runs(built, pixels):
    engine, _ = built()
    start = time.perf_counter()
    _, timing = engine.timed({"image": pixels})
    wall_ms = (time.perf_counter() - start) * 1e3
    parts = (timing.to_device_ms, timing.compute_ms, timing.to_host_ms)
    assert all(part > 0 for part in parts)
    assert sum(parts) <= wall_ms


def test_a_second_build_is_a_hit_and_timings_are_taken(tmp_path, tiny_onnx):
    store = EngineStore(tmp_path / "engines")
    first = store.build(tiny_onnx, engine="tensorrt", plan=STATIC)
    assert store.build(tiny_onnx, engine="tensorrt", plan=STATIC).reused
    other = store.build(tiny_onnx, engine="tensorrt", plan=replace(STATIC, level=2))
    texts = [(each.path / MANIFEST).read_text() for each in (first, other)]
    assert '"after_sha256"' in texts[0]
    assert '"before_sha256": null' in texts[0]
    assert '"before_sha256": null' not in texts[1]


def test_a_node_that_the_parser_does_not_know_is_named(tmp_path, from_text):
    model = from_text(
        """<ir_version: 8, opset_import: ["" : 17]>
        net (float[1,8,8] image) => (float[1] out) { out = Det(image) }""",
        {},
    )
    onnx.save(model, tmp_path / "det.onnx")
    with pytest.raises(EngineError, match="Det"):
        EngineStore(tmp_path / "engines").build(tmp_path / "det.onnx", engine="tensorrt")


def test_pytorch_uses_the_gpu_in_the_same_process(built, pixels):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs PyTorch with CUDA")
    engine, reference = built()
    agree(engine, reference, pixels)
    a = torch.rand(256, 256, device="cuda")
    product = a @ a
    agree(engine, reference, pixels)
    assert torch.isfinite(product).all()
    engine.close()
    assert torch.isfinite(a @ a).all()
    assert "tensorrt" in sys.modules
