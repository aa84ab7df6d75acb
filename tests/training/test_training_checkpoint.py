"""A run's state on disk: it comes back exactly, or is refused, and holds no code."""

import json
import resource
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from crowdrt.errors import CrowdRTError, TrainingError
from crowdrt.training.checkpoint import load_checkpoint, save_checkpoint

FACTS = {"step": 3, "best": 12.25, "key": "abc"}


class State:
    """A small network with buffers, its optimizer, and a copy of it as a second module."""

    def __init__(self, seed: int, *, channels: int = 6) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels))
        self.model.to(memory_format=torch.channels_last)
        self.average = nn.Conv2d(2, 2, 1)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)

    @property
    def modules(self):
        return {"model": self.model, "average": self.average}

    def learn(self, steps: int = 1) -> None:
        for step in range(steps):
            image = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))
            self.optimizer.zero_grad()
            self.model(image).square().mean().backward()
            self.optimizer.step()

    def tensors(self):
        found = {f"{k}/{n}": t for k, m in self.modules.items() for n, t in m.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            found |= {f"{index}/{name}": value for name, value in moments.items()}
        return {name: tensor.clone() for name, tensor in found.items()}


def same(one, other) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def saved(tmp_path):
    """A state that has learned, and its file."""
    state = State(0)
    state.learn(3)
    path = tmp_path / "run" / "checkpoint.safetensors"
    save_checkpoint(path, state.modules, state.optimizer, FACTS)
    return state, path


def test_everything_comes_back_exactly(saved):
    state, path = saved
    other = State(1)
    other.learn()
    assert not same(state.tensors(), other.tensors())
    assert load_checkpoint(path, other.modules, other.optimizer, key="abc") == FACTS
    assert same(state.tensors(), other.tensors())
    assert any(name.endswith("exp_avg_sq") for name in state.tensors())


def test_the_next_steps_are_the_same(saved):
    state, path = saved
    other = State(1)
    load_checkpoint(path, other.modules, other.optimizer, key="abc")
    for each in (state, other):
        each.learn(2)
    assert same(state.tensors(), other.tensors())


def test_a_run_that_has_no_best_yet_comes_back(saved):
    state, path = saved
    facts = FACTS | {"best": float("inf")}
    save_checkpoint(path, state.modules, state.optimizer, facts)
    assert load_checkpoint(path, state.modules, state.optimizer, key="abc") == facts


def test_another_runs_state_is_left_alone(saved):
    _, path = saved
    other = State(1)
    before = other.tensors()
    assert load_checkpoint(path, other.modules, other.optimizer, key="xyz") is None
    assert same(before, other.tensors())


def test_the_file_holds_tensors_and_json_and_nothing_else(saved):
    """The header names every byte that follows it, and no type but numbers exists there."""
    content = saved[1].read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    assert json.loads(header.pop("__metadata__")["facts"]) == FACTS
    spans = sorted(tuple(entry["data_offsets"]) for entry in header.values())
    assert {entry["dtype"] for entry in header.values()} <= {"F32", "I64"}
    starts, ends = zip(*spans, strict=True)
    assert starts == (0, *ends[:-1])
    assert 8 + length + ends[-1] == len(content)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_truncated_file_is_refused(saved, keep):
    _, path = saved
    path.write_bytes(path.read_bytes()[:keep])
    assert_refused(path)


@pytest.mark.parametrize("content", [b"no tensors", b"\x80\x04N.", b"\xff" * 64])
def test_a_foreign_file_is_refused(saved, content):
    saved[1].write_bytes(content)
    assert_refused(saved[1])


@pytest.mark.parametrize(
    "facts",
    [None, "", "[]", "3", '{"key": "abc"}', '{"key": "abc", "step": "x", "best": 1}'],
    ids=["none", "empty", "list", "number", "few", "no number"],
)
def test_a_file_without_facts_is_refused(saved, facts):
    _, path = saved
    save_file(load_file(path), path, metadata=None if facts is None else {"facts": facts})
    assert_refused(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("model/0.weight"),
        lambda tensors: tensors.update({"model/0.weight": torch.zeros(1)}),
        lambda tensors: [
            tensors.pop(f"optimizer/1/{n}") for n in ("step", "exp_avg", "exp_avg_sq")
        ],
        lambda tensors: tensors.update({"optimizer/9/exp_avg": torch.zeros(1)}),
        lambda tensors: tensors.update({"optimizer/x/exp_avg": torch.zeros(1)}),
    ],
    ids=["missing", "shape", "moments", "other", "no index"],
)
def test_a_file_with_other_tensors_is_refused(saved, change):
    _, path = saved
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"facts": json.dumps(FACTS)})
    assert_refused(path)


def assert_refused(path):
    state = State(1)
    with pytest.raises(TrainingError, match="cannot be resumed") as caught:
        load_checkpoint(path, state.modules, state.optimizer, key="abc")
    assert f"rm '{path}'" in caught.value.fix


def test_a_full_disk_leaves_the_last_state(saved):
    state, path = saved
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(CrowdRTError, match="could not be written") as caught:
            save_checkpoint(path, state.modules, state.optimizer, FACTS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "space" in caught.value.fix
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]
