"""Parameters of every kind, and a store of ten thousand runs."""

import json
import math
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from papermill.iorw import load_notebook_node
from torch import nn

from sglrlib.__main__ import main
from sglrlib.checks import UsageError
from sglrlib.config import DEFAULTS
from sglrlib.method.files import DataError
from sglrlib.paths import ROOT
from sglrlib.recipes import ROWS
from sglrlib.show import plan
from sglrlib.store import log
from sglrlib.training import runs
from sglrlib.training.train import first_step, run_data

TABLES = ROOT / "notebooks" / "02_main_tables.ipynb"

HOSTILE = [
    "../../etc", "/etc/passwd", "$(touch hacked)", "; touch hacked", "`touch hacked`", "a\nb", "..", "\\", "'", '"',
    "%s{}", "~",
]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["dataset", "scale", "arch", "rows", "attacks", "variant", "augment", "device", "speed"]
)
def test_no_parameter_leads_out_of_the_store(store, tmp_path, monkeypatch, capsys, fault, name):
    monkeypatch.chdir(tmp_path)
    for text in HOSTILE:
        for command in (["list"], ["run", "--workers", "1"]):
            assert main([*command, str(TABLES), "-p", name, text]) == 2, text
            assert "Error: " in capsys.readouterr().err
        fault(lost=bool([*tmp_path.iterdir()]))


def counted(function, name: str, counts: Counter):
    def call(*arguments, **named):
        counts[name] += 1
        return function(*arguments, **named)

    return call


def test_ten_thousand_runs_are_listed_by_a_glance_at_each(store, capsys, monkeypatch):
    """Which takes about a second: of each run its names, and of its log the last lines; a result is never read."""
    line = "\n".join(json.dumps(dict(epoch=epoch, seconds=1.0, device="cpu", speed="fast")) for epoch in range(1, 61))
    for number in range(10_000):
        folder = runs.RUNS / f"digits-pgd_at-hard-s{number}-{number:010x}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / log.LOG).write_text(line + '\n{"failed": "Diverged"}' * (number % 3 == 2))
        (folder / ("result.json" if number % 3 == 0 else "last.pt")).touch()
    for arguments in (["list"], ["list", "--no-measure", str(TABLES), "-p", "rows", "all", "-p", "seeds", "5"]):
        with monkeypatch.context() as counting:
            glances = Counter()
            for owner, name in ((Path, "open"), (os, "listdir"), (json, "loads")):
                counting.setattr(owner, name, counted(getattr(owner, name), name, glances))
            assert main(arguments) == 0
        shown = capsys.readouterr().out.splitlines()[-1]
        if arguments == ["list"]:
            assert "3334 done, 3333 partial, 3333 failed" in shown
            assert glances["listdir"] == 10_000 <= glances["open"] < 17_000 and glances["loads"] <= 20_000, glances
        else:
            assert "50 missing" in shown and sum(glances.values()) < 2000, glances


TEXTS = st.sampled_from(["", "digits", "cifar1", "PGD-AT, AWP+SGLR", "all", "autoattack", "pgd_20", *HOSTILE])
ODD = st.one_of(TEXTS, st.none(), st.booleans(), st.floats(), st.integers(), st.lists(st.floats(0, 2), max_size=3))
CHOICES = dict(
    rows=st.sampled_from([*ROWS, "all", "PGD-AT, TRADES+SGLR", "PGD-AT+SLGR"]),
    attacks=st.sampled_from(["pgd_3", "cw_inf, square", "pgd_0", "pgd_2_step_0.5", "pgd", "", "autoattack"]),
    arch=st.sampled_from(["cnn4", "cnn16", "wrn10_1", "resnet8", "cnn0", "wrn11_1", "preact_resnet18"]),
    augment=st.sampled_from(["none", "crop_flip", "crop_flip_rotate", "flip"]),
    schedule=st.sampled_from(["piecewise", "cosine", "linear"]), select_on=st.sampled_from(["val", "test", "train"]),
    clean_pass=st.sampled_from(["needed", "always", "eval"]), attack_mode=st.sampled_from(["eval", "train"]),
    form=st.sampled_from(["others", "all"]), variant=st.sampled_from(["release", "algorithm_1_printed", "algorithm"]),
    lr_drops=st.lists(st.floats(0, 1.1), max_size=3), dataset=st.just("digits"), device=st.sampled_from(["", "cpu"]),
    scale=st.sampled_from(["", "mini", "paper"]), speed=st.sampled_from(["plain", "fast", "compile"]),
    train=st.just(True), publish=st.booleans(),
)  # fmt: skip
CELL = next(c.source for c in load_notebook_node(str(TABLES)).cells if "parameters" in c.metadata.get("tags", []))
NAMES = [line.split(":")[0] for line in CELL.splitlines() if not line.startswith("#")]


def value_of(name: str):
    """Values for a parameter of 02, most of its own kind and around its range, some of none."""
    kind = type(DEFAULTS.get(name, ""))
    if name in CHOICES:
        usual = CHOICES[name]
    elif kind is int:
        usual = st.one_of(st.integers(0, 60), st.integers(0, 60), st.sampled_from([-1, 500, 798, 10**6, 2**31]))
    elif kind is float:
        usual = st.one_of(st.floats(0, 1), st.floats(0, 1), st.sampled_from([-0.1, 1e9, 5, math.nan, math.inf]))
    else:
        usual = TEXTS
    return st.integers(0, 19).flatmap(lambda one_in_twenty: usual if one_in_twenty else ODD)


@given(st.lists(st.sampled_from(NAMES), max_size=5, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: value_of(name) for name in names})
))  # fmt: skip
@settings(
    max_examples=200, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
def check(started, refused, parameters):
    """Through the notebook's own cells, as `python -m sglrlib list` takes them, and then one training step.

    What is refused is refused before a network is built.
    """
    try:
        with pytest.MonkeyPatch.context() as none_yet:
            none_yet.setattr(nn.Conv2d, "__init__", lambda *how, **more: pytest.fail("a network is built"))
            task = plan.tasks(TABLES, dict(epochs=2) | parameters)[-1]
            train = run_data(task.config).train
    except (UsageError, DataError) as error:
        assert str(error)
        refused.append(parameters)
        return
    teachers = [runs.run_model(teacher).eval() for teacher in task.config.teachers]
    step = first_step(task.config, train.y, teachers=teachers)
    step.start_epoch(1)
    x, y, index = next(train.batches(task.config.batch_size, step.generator, task.config.augment))
    step(x[:8], y[:8], index[:8])
    started.append(parameters)


def test_random_parameter_sets_start_or_end_in_a_clear_error(store, request):
    """So many that each parameter is drawn about ten times, of its own kind and of another."""
    started, refused = [], []
    check(started, refused)
    assert len(started) > 40 and len(refused) > 40
    request.node.user_properties.append(
        ("parameters", f"{len(started)} parameter sets started, {len(refused)} refused")
    )
