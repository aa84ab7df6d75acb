"""Where a run takes place, and how a batch is shared there."""

from types import SimpleNamespace

import pytest
import torch

from crowdrt.errors import TrainingError
from crowdrt.learning import TrainingConfig
from crowdrt.training.devices import Devices, launch
from crowdrt.training.run import parts_of


def parts(config, world, rank):
    return parts_of(config, SimpleNamespace(world_size=world, global_rank=rank))


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (1, 4), (2, 1), (2, 2), (4, 2)])
def test_every_member_is_learned_once_and_parts_are_those_of_one_process(world, accumulate):
    config = TrainingConfig(batch_size=8, accumulate=accumulate)
    shares = [parts(config, world, rank) for rank in range(world)]
    assert sorted(m for share in shares for part in share for m in part) == list(range(8))
    alone = parts(config, 1, 0)
    for number in range(accumulate):
        together = sorted(m for share in shares for m in share[number])
        assert together == list(alone[number])


@pytest.mark.parametrize(("world", "accumulate"), [(3, 1), (2, 3), (1, 5)])
def test_a_batch_that_cannot_be_shared_is_refused(world, accumulate):
    with pytest.raises(TrainingError, match="batch of 8 cannot be shared") as caught:
        parts(TrainingConfig(batch_size=8, accumulate=accumulate), world, 0)
    assert f"multiple of {world * accumulate}" in caught.value.fix


@pytest.mark.parametrize("accelerator", ["quantum", "cuda"])
def test_a_device_that_is_not_there_is_refused(accelerator):
    if accelerator == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(TrainingError, match="cannot train on 1") as caught:
        launch(Devices(accelerator=accelerator), "32-true")
    assert "--accelerator cpu" in caught.value.fix
