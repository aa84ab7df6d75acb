from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from crowdrt.contracts import IMAGENET, GraphInfo
from crowdrt.engines.torch_eager import TorchEngine, can_compile
from crowdrt.errors import EngineError

INFO = GraphInfo(network="tiny", width="1", preprocessing=IMAGENET, density_stride=8)


class Pooled(nn.Module):
    """People per cell = mean of the pixels in it; dropout shows whether it is in eval mode."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, image):
        density = nn.functional.avg_pool2d(self.dropout(image.float()).mean(1, keepdim=True), 8)
        return density, density.sum(dim=(1, 2, 3))


class Filtered(nn.Module):
    """A convolution, whose weights are folded, and what it sees per cell."""

    def __init__(self):
        super().__init__()
        self.filter = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, image):
        density = nn.functional.avg_pool2d(self.filter(image / 255).relu(), 8).sum(1, keepdim=True)
        return density, density.sum(dim=(1, 2, 3))


def test_runs_in_inference_mode_on_pixels(pixels):
    engine = TorchEngine(Pooled().train(), INFO)
    got = engine.run({"image": pixels})
    expected = pixels.mean(axis=1, keepdims=True).reshape(1, 1, 5, 8, 8, 8).mean(axis=(3, 5))
    assert expected.std() > 1
    np.testing.assert_allclose(got["density"], expected, rtol=1e-5)
    np.testing.assert_allclose(got["count"], expected.sum(axis=(1, 2, 3)), rtol=1e-5)
    assert {name: array.dtype for name, array in got.items()} == {
        "density": np.float32,
        "count": np.float32,
    }


def test_takes_what_the_exported_graph_takes(pixels):
    floats = TorchEngine(Pooled(), replace(INFO, normalised_input=True))
    assert floats.inputs[0].dtype == "float32"
    with pytest.raises(EngineError, match="float32"):
        floats.run({"image": pixels})
    with pytest.raises(EngineError, match="no multiple of 8"):
        TorchEngine(Pooled(), INFO).run({"image": pixels[:, :, :39]})


def test_threads_are_set_and_read_only_images_taken(pixels):
    before = torch.get_num_threads()
    try:
        engine = TorchEngine(Pooled(), INFO, num_threads=1)
        assert torch.get_num_threads() == 1
        pixels.flags.writeable = False
        engine.run({"image": pixels[..., ::-1]})
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not can_compile(), reason="torch.compile needs a C++ compiler")
def test_compiled_it_answers_the_same(pixels):
    torch.manual_seed(0)
    module = Filtered()
    eager, compiled = (TorchEngine(module, INFO, form=each) for each in ("eager", "compiled"))
    before = eager.run({"image": pixels})
    after = compiled.run({"image": pixels})
    assert before["density"].std() > 0.01
    for name, answer in before.items():
        np.testing.assert_allclose(after[name], answer, rtol=1e-4)
    assert type(compiled._module) is not type(eager._module)


def test_channels_last_it_answers_the_same(pixels):
    torch.manual_seed(0)
    module, last = Filtered(), Filtered()
    last.load_state_dict(module.state_dict())
    eager = TorchEngine(module, INFO)
    beside = TorchEngine(last, INFO, form="channels-last")
    for name, answer in eager.run({"image": pixels}).items():
        np.testing.assert_allclose(beside.run({"image": pixels})[name], answer, rtol=1e-4)
    layouts = [
        any(
            w.is_contiguous(memory_format=torch.channels_last)
            for w in net.parameters()
            if w.ndim == 4
        )
        for net in (module, last)
    ]
    assert layouts == [False, True]
