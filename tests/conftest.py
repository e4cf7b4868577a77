import os
import signal
import time
from contextlib import suppress

import joblib
import matplotlib.pyplot as plt
import psutil
import pytest
import torch
from joblib.externals.loky import get_reusable_executor

from sglrlib import __main__, doors, paths
from sglrlib.config import DEFAULTS
from sglrlib.method.attacks import EXAMPLES
from sglrlib.recipes import METHOD_ROWS, RECIPES, recipe
from sglrlib.show import tables
from sglrlib.source import CODE
from sglrlib.store import results
from sglrlib.studies import registry
from sglrlib.training import jobs, networks, runs, status

torch.set_num_threads(1)  # small tensors: more threads only wait for each other
SMALL = dict(
    train_size=60, val_size=30, test_size=40, train_eval_size=20, epochs=4, eval_steps=2, attack_steps=2, diagnostics=()
)  # fmt: skip


@pytest.fixture
def small():
    """A configuration that trains in about a second; keyword arguments change it."""
    return lambda **changes: recipe("digits", **(SMALL | dict(labels="self_guided") | changes))


@pytest.fixture
def store(tmp_path, monkeypatch):
    """An empty store of runs, figures and committed results, below a temporary folder; for child processes too."""
    for module in (results, runs, networks, tables, jobs, status, __main__, paths):
        monkeypatch.setattr(module, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(paths, "OUT", tmp_path)
    monkeypatch.setattr(paths, "FIGURES", tmp_path / "figures")
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(networks, "WEIGHTS", tmp_path / "weights")
    monkeypatch.setattr(registry, "VERDICTS", tmp_path / "results" / "claims.csv")
    monkeypatch.setenv("SGLR_OUT", str(tmp_path))
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")  # runs in this process, not beside it
    return tmp_path


@pytest.fixture(autouse=True)
def tidy():
    """Whatever a test registers is forgotten after it, and its figures are closed."""
    registries = [*doors.KNOWN.values(), doors.ENTRIES, CODE, DEFAULTS, METHOD_ROWS, RECIPES]
    before, examples = [dict(entries) for entries in registries], list(EXAMPLES)
    yield
    for entries, kept in zip(registries, before, strict=True):
        entries.clear()
        entries.update(kept)
    EXAMPLES[:] = examples
    plt.close("all")


@pytest.fixture(autouse=True)
def an_end():
    """End a test that hangs: one that computes for ten minutes, its children included, or for ten minutes not at all.
    On a busy machine a test may take longer than that.
    """
    started = last = computed()

    def look(*_):
        nonlocal last
        now = computed()
        if now - started > 600 or abs(now - last) < 1:
            raise TimeoutError(
                f"this test hangs: {now - started:.0f} s of computing, {now - last:.0f} of them just now"
            )
        last = now
        signal.alarm(600)

    before = signal.signal(signal.SIGALRM, look)
    signal.alarm(600)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def computed() -> float:
    """Seconds of processor time that this process and its children have had."""
    seconds = sum(os.times()[:4])  # children that have ended count in it
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            seconds += sum(child.cpu_times()[:2])
    return seconds


@pytest.fixture(scope="session")
def wait_for():
    """Wait until something is so; what it waits for may not be the end of a process, if one is given."""

    def wait(condition, process=None):
        while not condition():
            assert process is None or process.poll() is None, f"{process.args} ended with {process.returncode}"
            time.sleep(0.01)

    return wait


@pytest.fixture
def two_workers(monkeypatch):
    """joblib has two processes, and they end with the test: to another one they would bring this one's store."""
    monkeypatch.setattr(joblib, "cpu_count", lambda: 2)
    yield
    get_reusable_executor().shutdown(kill_workers=True)


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
    faults = {}
    for report in reports:
        if found := [lost for name, lost in getattr(report, "user_properties", ()) if name == "fault"]:
            if report.when == "call":
                faults.setdefault(report.head_line.split("[")[0], []).extend(found)
    for test, lost in faults.items():
        terminalreporter.write_line(f"{len(lost):5}  {test.removeprefix('test_').replace('_', ' ')}")
    if faults:
        every = [lost for found in faults.values() for lost in found]
        terminalreporter.write_line(f"{len(every):5}  faults provoked; something computed was lost in {sum(every)}")
    for line in [value for name, value in properties if name == "parameters"]:
        terminalreporter.write_line(line)
