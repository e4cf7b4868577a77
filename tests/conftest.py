import pytest
import torch

from sglrlib.recipes import recipe
from sglrlib.show import tables
from sglrlib.store import results
from sglrlib.training import jobs, runs

torch.set_num_threads(1)  # small tensors: more threads only wait for each other
SMALL = dict(train_size=60, val_size=30, test_size=40, train_eval_size=20, epochs=4, eval_steps=2, attack_steps=2)


@pytest.fixture
def small():
    """A configuration that trains in about a second; keyword arguments change it."""
    return lambda **changes: recipe("digits", **(SMALL | dict(labels="self_guided") | changes))


@pytest.fixture
def store(tmp_path, monkeypatch):
    """An empty store of runs and committed results, below a temporary folder."""
    for module in (results, runs, tables, jobs):
        monkeypatch.setattr(module, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    return tmp_path


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def fault(request):
    """Called after each fault provoked, with whether anything computed was lost; the suite's summary counts both."""

    def count(lost: bool) -> None:
        request.node.user_properties.append(("fault", bool(lost)))
        assert not lost

    return count


def pytest_terminal_summary(terminalreporter):
    reports = [report for those in terminalreporter.stats.values() for report in those]
    properties = [p for report in reports if getattr(report, "when", "") == "call" for p in report.user_properties]
    faults = [lost for name, lost in properties if name == "fault"]
    if faults:
        terminalreporter.write_line(f"{len(faults)} faults provoked; something computed was lost in {sum(faults)}")
    for line in [value for name, value in properties if name == "parameters"]:
        terminalreporter.write_line(line)
