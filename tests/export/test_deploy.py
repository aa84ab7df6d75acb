import numpy as np
import pytest
import torch

from crowdrt.contracts import Preprocessing
from crowdrt.errors import ParityError
from crowdrt.export.deploy import ShippedNetwork, deploy
from crowdrt.models.network import Network


def test_deploy_drops_training_parts_and_folds(tiny):
    image = torch.randn(2, 3, 32, 48)
    expected = tiny(image)
    shipped = deploy(tiny.train(), image)
    assert not hasattr(shipped, "auxiliary")
    assert type(shipped.block) is torch.nn.Conv2d
    assert not shipped.training
    assert expected.std() > 1e-2
    torch.testing.assert_close(shipped(image), expected, rtol=1e-4, atol=1e-5)


def test_the_trained_network_is_left_alone(tiny):
    before = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    deploy(tiny, torch.randn(1, 3, 32, 48))
    after = tiny.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert tiny.auxiliary is not None


def test_a_wrong_fold_is_caught(tiny, monkeypatch):
    monkeypatch.setattr(type(tiny.block), "fold", lambda block: block.conv)  # without its scale
    with pytest.raises(ParityError, match=r"Tiny's density moved by \d") as caught:
        deploy(tiny, torch.randn(1, 3, 32, 48))
    assert "fold()" in caught.value.fix


@pytest.mark.parametrize("spoil", [0.0, float("nan")])
def test_a_constant_network_proves_nothing(tiny, spoil):
    tiny.last.weight.data.fill_(spoil)
    with pytest.raises(ParityError, match="the same everywhere"):
        deploy(tiny, torch.randn(1, 3, 32, 48))


def test_shipped_network_normalises_and_sums(tiny, pictures):
    shipped = ShippedNetwork(tiny, tiny.preprocessing)
    pixels = pictures[0]
    mean = np.array(tiny.preprocessing.mean).reshape(1, 3, 1, 1)
    std = np.array(tiny.preprocessing.std).reshape(1, 3, 1, 1)
    normal = torch.from_numpy(((pixels - mean) / std).astype(np.float32))
    density, count = shipped(torch.from_numpy(pixels))
    expected = tiny(normal)
    torch.testing.assert_close(density, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(count, expected.sum((1, 2, 3)), rtol=1e-4, atol=1e-4)
    same, _ = ShippedNetwork(tiny, tiny.preprocessing, normalised_input=True)(normal)
    torch.testing.assert_close(same, expected)


class Echo(Network):
    """Answers with its input."""

    def forward(self, image):
        return image


def test_grey_networks_have_one_mean():
    grey = Preprocessing(channels="grey", mean=(127.5,), std=(128.0,), stride=4)
    shipped = ShippedNetwork(Echo(), grey)
    density, count = shipped(torch.full((2, 1, 4, 4), 255, dtype=torch.uint8))
    assert density.shape == (2, 1, 4, 4)
    assert count.tolist() == pytest.approx([16 * 127.5 / 128] * 2)
