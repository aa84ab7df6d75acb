"""ONNX files without their large weights come back bit by bit."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from crowdrt.errors import ExportError
from crowdrt.pipeline.gpu.dry import Pool, dry, fill, seed_weights, seeded

SHAPE = (32, 16, 3, 3)


def network(**stored):
    text = '<ir_version: 8, opset_import: ["" : 17]> net (float[1,16,8,8] x) => (float[1,32,6,6] y)'
    model = onnx.parser.parse_model(text + "{ y = Conv (x, w, b) }")
    for name, array in stored.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


@pytest.fixture
def learned():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=SHAPE).astype(np.float32)
    return network(w=weight, b=rng.normal(size=32).astype(np.float32))


def as_half(model, *, flushed=False):
    """The float16 form; small numbers become zero, as a cast of crowdrt leaves them."""
    half = onnx.ModelProto()
    half.CopyFrom(model)
    for stored in half.graph.initializer:
        array = numpy_helper.to_array(stored).astype(np.float16)
        if flushed:
            array[np.abs(array) < 0.01] = 0
        stored.CopyFrom(numpy_helper.from_array(array, stored.name))
    return half


def there_and_back(model, pool, tmp_path, name="a"):
    light = dry(model, pool, prefix=name)
    pool.save(tmp_path)
    return light, fill(light, Pool.load(tmp_path), source=name)


def test_learned_weights_are_stored_once_for_all_files(learned, tmp_path):
    pool = Pool()
    light, back = there_and_back(learned, pool, tmp_path)
    assert back == learned
    assert light.ByteSize() < 1500 < learned.ByteSize()
    for other in (as_half(learned), as_half(learned, flushed=True)):
        assert there_and_back(other, pool, tmp_path, name="b")[1] == other
    whole = [key for key, array in pool.stored.items() if array.size >= 4608]
    assert whole == ["a/w"]


def test_random_weights_are_not_stored_at_all(learned, tmp_path):
    seeds = seed_weights(learned)
    assert set(seeds) == {"w"}  # the bias stays as it is
    pool = Pool(seeds={"net/w": (seeds["w"], SHAPE)})
    light, back = there_and_back(learned, pool, tmp_path)
    assert back == learned
    assert pool.stored == {}
    assert light.ByteSize() < 1500
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1000
    drawn = numpy_helper.to_array(back.graph.initializer[0])
    assert drawn.std() == pytest.approx(np.sqrt(2 / (16 * 9)), rel=0.05)


def test_the_generator_is_the_frozen_one():
    # what NumPy promises of RandomState: these numbers never change
    assert seeded((2, 2), 0).ravel().tolist() == pytest.approx(
        [1.7640524, 0.4001572, 0.978738, 2.2408931]
    )


def test_other_weights_than_those_it_was_dried_with_are_refused(learned):
    pool = Pool()
    light = dry(learned, pool, prefix="a")
    pool.stored["a/w"] = pool.stored["a/w"] + np.float32(1e-3)
    with pytest.raises(ExportError, match="cannot be drawn again"):
        fill(light, pool, source="a.onnx")


def test_minus_zero_is_not_zero(learned, tmp_path):
    weight = np.zeros(SHAPE, np.float32)
    model, twin = network(w=weight), network(w=-weight)
    pool = Pool()
    dry(model, pool, prefix="a")
    _, back = there_and_back(twin, pool, tmp_path, name="b")
    assert np.signbit(numpy_helper.to_array(back.graph.initializer[0])).all()


def test_a_file_that_was_never_dried_is_left_alone(learned):
    assert fill(learned, Pool(), source="a") == learned
    assert learned.graph.initializer[0].data_type == TensorProto.FLOAT
