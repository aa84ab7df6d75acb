"""Layers' times by TensorRT's profiler, on the stand-in with the recorded surface."""

import numpy as np
import pytest
from stand_in_tensorrt import installed

from crowdrt.engines.store import EngineStore
from crowdrt.engines.trt.building.options import PlanOptions
from crowdrt.engines.trt.layers.inspector import layer_times
from crowdrt.engines.trt.layers.layer_profile import entries_of, profile_layers
from crowdrt.manifest import write_json


@pytest.mark.parametrize("generation", ["8.6", "10.16", "11.4"])
def test_every_layer_has_a_time_that_the_reader_reads(generation, monkeypatch, tiny_onnx, tmp_path):
    _, device = installed(monkeypatch, generation)
    plan = PlanOptions(shape=((64, 96),) * 3)
    built = EngineStore(tmp_path / "store").build(tiny_onnx, engine="tensorrt", plan=plan)
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 64, 96)).astype(np.uint8)
    content = (built.path / "engine.plan").read_bytes()
    entries = profile_layers(content, {"image": image}, num_runs=4)
    write_json(tmp_path / "profile.json", entries)
    times = layer_times((tmp_path / "profile.json").read_text())
    assert {"first", "second"} <= times.keys()
    assert set(times.values()) == {0.5}
    assert entries[0] == {"count": 4}
    assert not device.streams  # all is given back


def test_a_layer_that_runs_twice_in_a_run_counts_twice():
    (_, entry) = entries_of({"a": [1.0, 1.0, 1.0, 5.0]}, num_runs=2)
    assert entry == {"name": "a", "timeMs": 8.0, "averageMs": 4.0, "medianMs": 2.0}
