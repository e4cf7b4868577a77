"""How long a run will take: what is counted against what is done, what is measured by a clock of our own, and words."""

import dataclasses
import re
import shlex
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sglrlib import register
from sglrlib.__main__ import main
from sglrlib.checks import UsageError
from sglrlib.judging import evaluate
from sglrlib.method.attacks import named_attack
from sglrlib.method.models import build_model
from sglrlib.paths import ROOT
from sglrlib.recipes import recipe, row_recipe
from sglrlib.show import notebook, plan, settings
from sglrlib.store import log
from sglrlib.training import cost, flops, jobs, runs, status
from sglrlib.training.train import run_data, run_model, train

TABLES = ROOT / "notebooks" / "02_main_tables.ipynb"
SMALL = dict(epochs=3, train_size=60, val_size=40, test_size=40, attacks="pgd_2, apgd_ce", attack_images=10)
ARGUMENTS = [str(TABLES), *(word for name, value in SMALL.items() for word in ("-p", name, str(value)))]
RATE = cost.Rate(1e9, 2e9)  # FLOP a second in training, and in what is judged


@pytest.fixture
def rates(monkeypatch):
    """Whose rate is asked for; it is RATE, and nothing is measured."""
    asked = []
    monkeypatch.setattr(cost, "rate", lambda config, device, speed: asked.append(config.title) or RATE)
    return asked


# Counting


def test_an_epoch_of_resnet18_on_cifar10():
    config = recipe("cifar10", "paper", labels="self_guided")
    assert flops.sizes(config) == (49_000, 1000, 10_000)
    for refined, expected in ((False, 1.25e15), (True, 1.31e15)):
        assert 49_000 * flops.step_flop(config, refined) == pytest.approx(expected, rel=0.02)
    mean = (89 * 1.2517e15 + 111 * 1.3062e15) / 200  # refined from epoch 90 on
    assert flops.counted(config).training / 200 == pytest.approx(mean, rel=1e-3)


@pytest.mark.parametrize("arch", ["cnn4", "wrn10_1"])
def test_a_pass_costs_what_torchs_counter_says(arch):
    assert flops.passes(arch, "digits")[0] == runs.flops(build_model(arch, 10, (1, 8, 8)), (1, 8, 8))


@pytest.mark.parametrize("row", ["PGD-AT+SGLR", "PGD-AT+TE", "AWP", "KD-SWA", "TRADES-AWP", "Standard"])
def test_what_is_counted_is_what_a_run_does(tmp_path, monkeypatch, row):
    """The training loop itself, whose every operation is counted; but for the first look whether a model can be judged,
    and for the gradient norm of a loss that is not cross-entropy.
    """
    monkeypatch.setattr(evaluate, "refuse", lambda *_: None)
    diagnostics = ("gradient_norm",) if row == "AWP" else ("hessian_trace", "information", "noisy_labels")
    config = row_recipe(
        row, arch="wrn10_1", epochs=4, train_size=80, val_size=40, test_size=60, train_eval_size=50, batch_size=16,
        attacked_size=30, attack_steps=3, eval_steps=4, refine_start=0.5, folds=4, diagnostics=diagnostics,
    )  # fmt: skip
    assert flops.sizes(config) == tuple(map(len, vars(run_data(config)).values()))
    with flops.Flop() as done:
        train(config, tmp_path, teachers=[run_model(t).eval() for t in config.teachers], report=lambda row: None)
    assert flops.counted(config).total == pytest.approx(done.total, rel=0.005)


class Sure(nn.Module):
    """Predicts class 0, whatever the image, after all the work of a network."""

    def __init__(self):
        super().__init__()
        self.net = build_model("cnn4", 10, (1, 8, 8))

    def forward(self, x):
        return 0 * self.net(x) + torch.tensor([1.0] + 9 * [0.0])


@pytest.mark.parametrize("name", ["pgd_3", "cw_inf", "apgd_ce", "apgd_t", "fab_t", "square_300"])
def test_what_an_attack_costs(monkeypatch, name):
    """On a network that is never wrong, so that AutoAttack's parts, here of thirty iterations, cost all they can."""
    attack = named_attack(name, 0.1, 0.1)
    attack = dataclasses.replace(attack, iterations=30) if name in ("apgd_ce", "apgd_t", "fab_t") else attack
    monkeypatch.setattr(flops, "named_attack", lambda *_: attack)
    model, (x, y, _) = Sure().eval().requires_grad_(False), flops.made_up("digits")
    done = flops.count(lambda: attack(model, x, y, torch.Generator()))
    assert flops.attack_flop.__wrapped__(name, "cnn4", "digits") == pytest.approx(done, rel=0.05)


def test_columns(small):
    """Attacks are on so many images, those that are right before; with confidence on all; natural is of all."""
    config = small()
    forward, gradient = flops.passes(config.arch, "digits")
    columns = {"natural": 10, "pgd_3": 10, "confidence natural": 10, "confidence pgd_3": 10, "autoattack": 0}
    assert flops.counted(config, columns).columns == pytest.approx({
        "natural": 2 * 40 * forward, "pgd_3": 2 * 8.5 * (3 * gradient + forward),
        "confidence natural": 2 * 10 * forward, "confidence pgd_3": 2 * 10 * (3 * gradient + forward),
        "autoattack": 2 * 22 * 5001 * forward,
    })  # fmt: skip


def test_an_attack_of_ones_own_is_counted_by_trying_it(small):
    def twice(model, x, y, eps, step, generator):
        return model(x).sum() * 0 + model(x).sum() * 0 + x

    register("attack", "twice", twice)
    forward, _ = flops.passes("cnn16", "digits")
    assert flops.counted(small(), {"twice": 0}).columns["twice"] == pytest.approx(2 * 34 * 3 * forward)


# Measuring, by a clock of our own


def test_as_many_images_as_fit(monkeypatch):
    """A clock that goes 0.1 s an image: fifteen images fit into a step."""
    now, calls = [0.0], []
    monkeypatch.setattr(cost.time, "perf_counter", lambda: now[0])

    def work(n, each=0.1):
        calls.append(n)
        now[0] += each * n
        return torch.zeros(1)

    assert cost.images_a_second(work, 2, 128) == pytest.approx(10)
    assert calls == [2, 2, 15, 15, 15]
    assert cost.images_a_second(partial(work, each=0.2), 2, 128) == pytest.approx(5)
    calls.clear()
    assert cost.images_a_second(partial(work, each=10), 2, 128, warm_up=3) == pytest.approx(0.1)
    assert calls == [2, 2, *[2] * 3, 2, 2]  # not less than two steps of two images
    calls.clear()
    assert cost.images_a_second(partial(work, each=1e-4), 2, 50) == pytest.approx(1e4)
    assert max(calls) == 50 and len(calls) == 3 + 20


@pytest.mark.parametrize("speed", ["plain", "fast"])
def test_the_rate_is_that_of_what_was_counted(monkeypatch, speed):
    """A clock that goes a second a GFLOP of all that is done."""
    flops.passes("cnn8", "digits"), flops.step_flop(flops.plain(arch="cnn8"))  # counted outside of the clock
    with flops.Flop() as done:
        monkeypatch.setattr(cost.time, "perf_counter", lambda: done.total / 1e9)
        found = cost.measured.__wrapped__("cnn8", "digits", "fp32", 20, "cpu", speed)
    assert found == pytest.approx((1e9, 1e9), rel=1e-3)


def test_a_network_is_measured_once(monkeypatch):
    asked = []
    monkeypatch.setattr(cost, "images_a_second", lambda *_: asked.append(1) or 1.0)
    cost.measured.cache_clear()
    rows = [row_recipe(row, arch="cnn8", seed=seed) for row in ("PGD-AT", "TRADES+SGLR") for seed in (0, 1)]
    assert len({cost.rate(config, "cpu", "fast") for config in rows}) == 1 and len(asked) == 2
    cost.rate(rows[0], "cpu", "plain")
    cost.rate(rows[0].but(batch_size=10), "cpu", "compile")
    assert len(asked) == 6
    cost.measured.cache_clear()


def test_seconds_are_flop_by_rate(small, rates):
    work, left = flops.counted(small(), {"pgd_2": 5}), cost.estimate(small(), {"pgd_2": 5}, "cpu", "fast")
    assert left.training == pytest.approx(work.training / 1e9)
    assert left.total == pytest.approx((work.training + work.measuring) / 1e9 + work.columns["pgd_2"] / 2e9)


@pytest.mark.parametrize(("seconds", "said"), [
    (42, "42 s"), (61, "1 min"), (3600, "1.0 h"), (11_000, "3.1 h"), (100_000, "28 h"), (300_000, "3.5 days"),
    (8e6, "93 days"),
])  # fmt: skip
def test_no_more_digits_than_an_estimate_has(seconds, said):
    assert cost.spoken(seconds) == said


# What is said


def test_list_marks_what_is_an_estimate(store, rates, capsys):
    assert main(["list", *ARGUMENTS]) == 0
    said = capsys.readouterr().out
    assert re.search(r"PGD-AT +digits-pgd_at-hard-s0-\w+  missing +~\d+ s left\n", said)
    assert re.search(
        r"2 missing; ~\d+ s of work left\n~ is an estimate: [\d.]+ GFLOP counted; measured here: cnn16", said
    )
    assert rates == ["PGD-AT", "PGD-AT+SGLR"]
    assert main(["list", *ARGUMENTS, "--no-measure"]) == 0
    said = capsys.readouterr().out
    assert "missing                 ? left" in said and "at least 0:00:00 of work left" in said and "~" not in said
    assert len(rates) == 2


def test_what_a_run_has_taken_is_not_estimated(store, rates, capsys):
    """One epoch of one run tells of the other's epochs; of columns nothing is known until one is there."""
    partial_, missing = plan.tasks(TABLES, SMALL)
    folder = runs.RUNS / partial_.config.id
    folder.mkdir(parents=True)
    log.note(folder, epoch=1, seconds=1000.0)
    (folder / "last.pt").touch()
    asked = {column: wanted.images for wanted in partial_.wanted for column in wanted.columns}
    columns = sum(flops.counted(partial_.config, asked).columns.values()) / RATE.judging
    found = status.states([partial_, missing], cost.Forecast())
    assert [state.guessed for state in found] == [True, True]
    assert [state.left for state in found] == [pytest.approx(2000 + columns), pytest.approx(3000 + columns)]
    (folder / "last.pt").unlink()
    assert partial_() == ""
    rates.clear()
    assert status.states([missing], cost.Forecast())[0].guessed and rates
    rates.clear()
    done, known = status.states([partial_, missing], cost.Forecast())
    assert done == status.State("done", 3, 0.0) and not known.guessed and rates == []
    assert main(["list", *ARGUMENTS]) == 0 and "~" not in capsys.readouterr().out


def test_a_card_that_is_not_here(store, rates, capsys):
    """Its times are those of its rate alone, whatever is known of this machine."""
    for task in plan.tasks(TABLES, SMALL)[:1]:
        folder = runs.RUNS / task.config.id
        folder.mkdir(parents=True)
        log.note(folder, epoch=1, seconds=1000.0)
    assert main(["list", *ARGUMENTS, "--card", "NVIDIA T4"]) == 0
    said = capsys.readouterr().out
    assert "~0 s left" in said and "assumed: NVIDIA T4 4.05 TFLOP/s in training, 4.05 TFLOP/s in evaluation" in said
    assert rates == []
    assert main(["list", *ARGUMENTS, "--card", "NVIDIA T40"]) == 2
    assert "card = 'NVIDIA T40' is not known. Did you mean 'NVIDIA T4'?" in capsys.readouterr().err


def test_tf32_counts_only_where_it_is_faster_and_never_in_evaluation():
    assert cost.assumed("NVIDIA H100") == pytest.approx((0.25 * 494.5e12, 0.5 * 67e12))
    assert cost.assumed("NVIDIA RTX 4090") == pytest.approx((0.5 * 82.6e12, 0.5 * 82.6e12))
    with pytest.raises(UsageError, match="Did you mean 'NVIDIA H100'"):
        cost.assumed("H100")


class Watched(list):
    """What a notebook's line is: it is printed to, and updated."""

    __call__ = update = list.append


def test_a_notebook_announces_what_takes_longer_than_a_minute(small, store, rates, monkeypatch):
    begins = "PGD-AT+SGLR seed {}: 4 epochs on cpu"
    runs.run(small(), (), device="cpu", say=(said := Watched()))
    assert said[0] == begins.format(0) and "about" not in " ".join(said) and rates == []  # digits: nothing measured
    monkeypatch.setattr(cost, "WORTH_MEASURING", 0)
    monkeypatch.setattr(cost, "rate", lambda *_: cost.Rate(1e6, 1e6))
    runs.run(small(seed=1), (), device="cpu", say=(said := Watched()))
    assert said[0] == begins.format(1)
    assert re.fullmatch(re.escape(begins.format(1)) + r", about \d+ min \([\d.]+ GFLOP, counted\)", said[1])
    runs.run(small(seed=2), (), device="cpu", say=(said := []).append)  # nobody looks on
    assert begins.format(2) in said and "about" not in " ".join(said)
    monkeypatch.setattr(cost, "rate", lambda *_: 1 / 0)
    runs.run(small(seed=3), (), device="cpu", say=(said := Watched()))  # an estimate that fails stops no run
    assert said[0] == begins.format(3) and "about" not in " ".join(said)


def test_the_papers_protocol_is_announced(monkeypatch):
    monkeypatch.setattr(cost, "rate", lambda config, device, speed: cost.assumed("NVIDIA H100"))
    config = recipe("cifar10", "paper", labels="self_guided")
    assert cost.announced([config], "cuda", "fast") == ", about 39 min (292 PFLOP, counted)"


def test_the_line_says_how_long_all_runs_take(monkeypatch, capsys):
    """From a minute on, and at most every ten seconds it is looked up."""
    now, left, looks = [0.0], [None, 9000.0], []
    monkeypatch.setattr(jobs.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(status, "states", lambda those: looks.append(1) or [SimpleNamespace(left=s) for s in left])
    line = notebook.Line()
    line.more = status.time_left(["one", "another"], at_once=2)
    for now[0], left[0] in ((59, 3000.0), (61, None), (69, 3000.0), (72, 3000.0), (80, 0.0)):
        line.update(f"{now[0]} s")
    assert capsys.readouterr().out.splitlines() == [
        "59 s",
        "61 s",
        "69 s",
        *[f"{n} s; about 1:40 left in all" for n in (72, 80)],
    ]
    assert len(looks) == 2
    now[0] = 1000.0
    assert status.time_left(["one"])() == ""


@pytest.fixture
def left(monkeypatch):
    """How many tasks, and how many at once, the line was told of; what is left is LEFT."""
    asked = []
    monkeypatch.setattr(status, "time_left", lambda those, n=1: asked.append((len(those), n)) or (lambda: "; LEFT"))
    return asked


def test_gather_shows_what_is_left_of_runs_one_after_another(small, store, left, capsys):
    notebook.gather({"both": [small(seed=0), small(seed=1)]}, SimpleNamespace(**settings.COMMON))
    assert "PGD-AT+SGLR seed 1: 4 epochs on cpu; LEFT\n" in capsys.readouterr().out and left == [(2, 1)]


def test_gather_announces_runs_side_by_side(small, store, left, monkeypatch, two_workers, capsys):
    monkeypatch.setattr(cost, "WORTH_MEASURING", 0)
    monkeypatch.setattr(cost, "rate", lambda *_: cost.Rate(1e6, 1e6))
    notebook.gather({"both": [small(seed=0), small(seed=1)]}, SimpleNamespace(**settings.COMMON))
    said = capsys.readouterr().out
    assert re.match(r"2 runs, 2 at a time, about \d+ min \([\d.]+ GFLOP, counted\)\n", said) and "; LEFT\n" in said
    assert left[0] == (2, 2)


def test_the_times_in_the_documentation_are_those_of_the_command(store, capsys):
    text = (ROOT / "docs" / "gpu.md").read_text()
    command = re.search(r"^    python -m sglrlib (list .+) --card (.+)\n", text, re.MULTILINE)
    columns = []
    for card in cost.CARDS:
        words = [word.replace("notebooks/", f"{ROOT}/notebooks/") for word in shlex.split(command[1])]
        assert main([*words, "--card", card]) == 0
        said = capsys.readouterr().out
        runs = re.findall(r"^(\S+) +cifar10-\S+ +missing +(~.+) left$", said, re.MULTILINE)
        columns.append(dict(runs) | {"all ten": re.search(r"(~.+) of work left", said)[1]})
    names = [card.removeprefix("NVIDIA ") for card in cost.CARDS]
    lines = [f"| run | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    lines += [f"| {row} | {' | '.join(column[row] for column in columns)} |" for row in columns[0]]
    assert "\n".join(lines) in text, "\n".join(lines)
