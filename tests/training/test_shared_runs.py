"""Two processes that share every batch learn what one process learns, within float order."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from crowdrt.training.metrics import read_lines

PROGRAM = Path(__file__).with_name("shared_runs.py")
PYTHON = [sys.executable]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of one process, of two under torchrun and of two that the loop starts."""
    folder = tmp_path_factory.mktemp("shared")
    start(PYTHON, folder / "one")
    start(TORCHRUN, folder / "torchrun")
    start(PYTHON, folder / "devices", "2")
    return folder


def start(command, out, *more):
    """Train in `out`."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [*command, PROGRAM, out, *more],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("step 6: validation") == 1


@pytest.mark.parametrize("name", ["torchrun", "devices"])
def test_two_processes_train_to_the_losses_of_one(runs, name):
    one, two = (read_lines(runs / each / "losses.jsonl") for each in ("one", name))
    assert [line["step"] for line in two] == [1, 2, 3, 4, 5, 6]
    losses = [line["loss"] for line in one]
    assert max(losses) > 1.1 * min(losses)
    assert [line["loss"] for line in two] == pytest.approx(losses, rel=2e-4)


@pytest.mark.parametrize("name", ["torchrun", "devices"])
def test_two_processes_end_with_the_weights_of_one(runs, name):
    one, two = (load_file(runs / each / "weights.safetensors") for each in ("one", name))
    for key, tensor in one.items():
        torch.testing.assert_close(two[key], tensor, rtol=5e-3, atol=5e-4)


def test_two_processes_leave_the_files_of_one(runs):
    one, two = (sorted(p.name for p in (runs / each).iterdir()) for each in ("one", "torchrun"))
    assert one == two
