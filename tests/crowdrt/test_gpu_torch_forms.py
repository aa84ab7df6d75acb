"""PyTorch's forms in a campaign, as far as a CPU goes: what they compute, and that they compile."""

from fractions import Fraction

import pytest
import torch

from crowdrt.errors import EngineError
from crowdrt.export.deploy import ShippedNetwork
from crowdrt.pipeline.gpu.rows import Row
from crowdrt.pipeline.gpu.torch_forms import draw_weights, half_form, open_torch, set_tf32
from crowdrt.pipeline.networks import Origin

ORIGIN = Origin(network="csrnet", width=Fraction(1, 16), weights=None)
ROW = Row(network="csrnet", width="1/16", engine="pytorch", precision="eager fp32", size=(64, 96))


@pytest.fixture
def shipped():
    torch.manual_seed(0)
    model = ORIGIN.build()
    draw_weights(torch, model)
    return ShippedNetwork(model, model.preprocessing)


def image():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8, generator=generator)


def test_the_half_form_works_in_float16_and_answers_nearly_the_same(shipped):
    with torch.inference_mode():
        density, count = shipped(image())
        half_form(torch, shipped)
        rounded, total = shipped(image())
    assert density.std() > 1e-3
    assert {p.dtype for p in shipped.network.parameters()} == {torch.float16}
    assert rounded.dtype == total.dtype == torch.float32
    assert not torch.equal(rounded, density)
    torch.testing.assert_close(rounded, density, rtol=0.02, atol=0.02 * float(density.abs().max()))
    assert total.item() == pytest.approx(count.item(), rel=0.05)


def test_the_half_form_compiles_without_a_break(shipped):
    half_form(torch, shipped)
    compiled = torch.compile(shipped, backend="eager", fullgraph=True)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(image()), shipped(image()))


def test_tf32_is_what_the_form_says():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    benchmark = torch.backends.cudnn.benchmark
    try:
        for allowed in (True, False):
            set_tf32(torch, allowed=allowed)
            assert torch.backends.cudnn.allow_tf32 is allowed
            assert torch.backends.cuda.matmul.allow_tf32 is allowed
    finally:
        set_tf32(torch, allowed=before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
        torch.backends.cudnn.benchmark = benchmark


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_without_a_device_or_with_another_form_it_says_so():
    with pytest.raises(EngineError, match="no CUDA device"):
        open_torch(ROW, ORIGIN)
    other = Row(**{**ROW.__dict__, "precision": "int4"})
    with pytest.raises(EngineError, match="'int4' is unknown"):
        open_torch(other, ORIGIN)
