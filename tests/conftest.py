import pytest
import torch

from sglrlib import results, runs
from sglrlib.recipes import recipe

torch.set_num_threads(1)  # small tensors: more threads only wait for each other
SMALL = dict(train_size=60, val_size=30, test_size=40, train_eval_size=20, epochs=4, eval_steps=2, attack_steps=2)


@pytest.fixture
def small():
    """A configuration that trains in about a second; keyword arguments change it."""
    return lambda **changes: recipe("digits", **(SMALL | dict(labels="self_guided") | changes))


@pytest.fixture
def store(tmp_path, monkeypatch):
    """An empty store of runs and committed results, below a temporary folder."""
    for module in (results, runs):
        monkeypatch.setattr(module, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    return tmp_path


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
