"""Fast is the same: the benchmark's gate, the steps of every speed against each other, and the benchmark itself."""

import json
import os

import pytest
import torch
from fakegpu import fake_gpu

from benchmarks import clocks, reference, report, speed
from benchmarks.task import TOLERANCES
from sglrlib.method.fast import WARM_UP, captured
from sglrlib.method.labels import LABELS, Ensemble
from sglrlib.paths import RESULTS
from sglrlib.training.step import set_learning_rate, training_attack

NETWORKS = {"cnn8": 0, "bn_cnn8": 0, "wrn10_1": 8, "resnet18": 2}  # and images a batch; 0: the recipe's


@pytest.fixture
def task():
    return lambda arch="bn_cnn8", batch_size=0: speed.task(arch, "cpu", batch_size or NETWORKS[arch], images=16)


# The gate


@pytest.mark.parametrize("arch", NETWORKS)
def test_ours_computes_what_the_release_computes(task, arch):
    found = speed.gate(task(arch))
    assert found.keys() == TOLERANCES.keys()


@pytest.mark.parametrize("name", TOLERANCES)
def test_what_differs_is_not_timed(task, monkeypatch, name):
    monkeypatch.setitem(TOLERANCES, name, -1.0)
    with pytest.raises(SystemExit, match="not the same computation"):
        speed.gate(task())


def test_the_gate_sees_another_attack_and_another_update(task, monkeypatch):
    with monkeypatch.context() as other:
        other.setattr("benchmarks.task.training_attack", lambda config: training_attack(config.but(step_255=7.0)))
        with pytest.raises(SystemExit, match=r"'pixels': 0\.[1-9]"):
            speed.gate(task())
    honest = speed.Task.step
    monkeypatch.setattr(speed.Task, "step", lambda self: honest(speed.Task(self.config.but(alpha=0.8), self.data)))
    with pytest.raises(SystemExit, match=r"'pixels': 0\.0, 'loss': 0\.0"):
        speed.gate(task())


def test_the_train_mode_attack_is_that_of_rice_and_others(task):
    """From grey images: both then project onto the same ball, and theirs meets no border of [0, 1]."""
    given = task("bn_cnn8")
    x, y, _ = given.batch
    x = 0.2 + 0.6 * x
    model, attack = given.model().double().train(), given.config.attack(steps=7, mode="train", start="none")
    ours = attack(model, x.double(), y, None)
    theirs = reference.attack_by_backward(model, x.double(), y, torch.zeros_like(x), given.config.but(attack_steps=7))
    assert ((ours - theirs).abs() > 1e-9).double().mean() < 1e-3 and (ours - x).abs().max() > attack.eps / 2


# Every speed and precision against the plain step


def losses(step, batches):
    return [step(*batch).item() for batch in batches]


def test_the_plain_step_is_the_releases_bit_for_bit_in_loss(task):
    given = task("cnn8")
    step, release = given.step(speed="plain"), given.release()
    noise = given.noise
    for _ in range(3):
        step.generator.manual_seed(0)
        x, y, index = given.batch
        assert step(x, y, index).item() == pytest.approx(release.func(x, y, index, noise).item(), rel=1e-6)
    theirs = release.func.model.state_dict()
    assert all(torch.allclose(step.model.state_dict()[name], theirs[name], atol=1e-6) for name in theirs)
    assert torch.allclose(step.labels.p, release.func.soft_labels, atol=1e-6)


@pytest.mark.parametrize("arch", ["cnn8", "bn_cnn8", "wrn10_1"])
@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-3), ("bf16", 2e-2), ("amp", 2e-2)])
def test_a_few_fast_steps_lose_what_the_plain_ones_lose(task, arch, precision, tolerance):
    given = task(arch)
    batches = [given.batch] * 4
    plain, fast = (losses(given.step(*how), batches) for how in (("fp32", "plain"), (precision, "fast")))
    assert fast == pytest.approx(plain, rel=tolerance)
    assert plain[0] != plain[-1]


def test_each_precision_is_what_it_says(task):
    seen = {}
    for precision in ("fp32", "bf16", "amp"):
        step = task("cnn8").step(precision)
        step.model[0].register_forward_hook(lambda m, i, out, p=precision: seen.update({p: out.dtype}))
        step(*task("cnn8").batch)
        seen[precision] = step.target.dtype, seen[precision]
    half = torch.bfloat16
    assert seen == {"fp32": (torch.float32,) * 2, "bf16": (half, torch.float32), "amp": (half, half)}


# A captured step


class Recordable:
    """Stands for a Step: its loss is the batch's sum; called knows each time that it was called from Python."""

    def __init__(self):
        self.mode, self.generator, self.called = ("refining",), torch.Generator("cuda"), []
        self.optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)

    def __call__(self, x, y, index):
        self.called.append((len(x), *self.mode))
        return x.sum()


def test_a_captured_step_warms_up_is_recorded_once_for_each_size_and_mode_and_sees_each_batch():
    with fake_gpu():
        step = Recordable()
        take = captured(step)
        for size, mode in ((4, "refining"), (3, "refining"), (4, "not refining")):
            step.mode = (mode,)
            for value in range(WARM_UP + 3):
                x, index = torch.full((size, 1), float(value), device="cuda"), torch.arange(size, device="cuda")
                assert take(x, index, index).item() == size * value
                assert step.called.count((size, mode)) == min(value, WARM_UP) + 1


def test_what_an_epoch_changes_is_a_tensor_that_a_graph_sees():
    with fake_gpu():
        step = Recordable()
        captured(step)
        rate = step.optimizer.param_groups[0]["lr"]
        set_learning_rate(step.optimizer, 0.25)
        assert rate.is_cuda and rate.item() == 0.25 and step.optimizer.param_groups[0]["lr"] is rate
    rule = Ensemble(torch.zeros(3, dtype=torch.long), 2)
    weight = rule.weight
    for epoch in (90, 120):
        rule.start_epoch(epoch, 90, 200)
        assert rule.weight is weight and weight > 0


@pytest.mark.parametrize("name", LABELS)
def test_what_a_step_depends_on_beside_tensors_is_its_mode(small, task, name):
    given = task("cnn8")
    step = speed.Task(given.config.but(labels=name, refine_start=0.5, awp=0.01, awp_start=0.3), given.data).step()
    modes = []
    for epoch in range(1, step.config.epochs + 1):
        step.start_epoch(epoch)
        modes.append(step.mode)
    assert len(set(modes)) == (3 if LABELS[name].starts else 2)  # AWP starts, refinement starts


# The benchmark


def test_ratios_are_taken_round_by_round():
    found = clocks.ratio([2.0, 4.0, 9.0], [1.0, 4.0, 3.0])
    assert found == dict(median=2.0, min=1.0, max=3.0, rounds=3)


def test_all_calls_are_timed_in_turn_and_short_ones_several_times(monkeypatch):
    calls, now = [], [0.0]
    costs = dict(slow=1.0, short=0.05)

    def call(name):
        calls.append(name)
        now[0] += costs[name]

    monkeypatch.setattr("time.process_time", lambda: now[0])
    seconds = clocks.in_turn({name: lambda name=name: call(name) for name in costs}, "cpu", 1, rounds=2)
    assert seconds == {"slow": [1.0, 1.0], "short": pytest.approx([0.05, 0.05])}
    assert calls == ["slow", "short"] * 2 + (["slow"] + ["short"] * 4) * 2


def test_a_child_sees_the_variables_given_and_no_others(monkeypatch):
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1")
    assert clocks.in_child(os.getenv, "OMP_WAIT_POLICY", OMP_WAIT_POLICY="PASSIVE") == "PASSIVE"
    assert clocks.in_child(os.getenv, "MALLOC_TOP_PAD_") is None
    assert os.environ["MALLOC_TOP_PAD_"] == "1"


def test_the_benchmark_runs_to_its_end_and_its_bars_are_judged(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.argv", f"speed.py --device cpu --network wrn10_1 --batch 2 --rounds 1 --out {tmp_path}".split()
    )
    monkeypatch.setattr(speed, "AUTOATTACK", dict(apgd_ce=50, apgd_t=50, fab_t=50, square=100))
    monkeypatch.setattr(speed, "environments", lambda *arguments: [])
    monkeypatch.setattr(speed, "peaks", lambda *arguments: [])
    cascades, timed = speed.cascades, clocks.clock("cpu", 1)

    def smaller(task, images, share, epochs, *how):  # few epochs leave no doubt about few images
        return cascades(task, min(images, 40), share, min(epochs, 2), *how)

    monkeypatch.setattr(speed, "cascades", smaller)
    monkeypatch.setattr(
        speed, "in_turn", lambda calls, *how, **more: {name: [timed(call)] for name, call in calls.items()}
    )
    with pytest.MonkeyPatch.context() as threads:
        threads.setattr(torch, "set_num_threads", lambda n: None)
        speed.main()
    (path,) = tmp_path.glob("*.json")
    found = json.loads(path.read_text())
    assert {r["threads"] for r in found["training"]["rows"]} == {1, 2}
    rows = [*found["training"]["rows"], *found["evaluation"]["rows"]]
    assert len(rows) == 16 and all(r["met"] == (r["median"] >= r["bar"]) for r in rows if r["bar"])
    assert report.tables(found) in capsys.readouterr().out


def test_a_part_is_measured_again_and_the_others_are_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.set_num_threads", lambda n: None)
    monkeypatch.setattr(speed, "peaks", lambda *arguments: [dict(step="release", mib=1.0, met=True)])
    command = f"speed.py --device cpu --network wrn10_1 --batch 2 --out {tmp_path} --only memory".split()
    monkeypatch.setattr("sys.argv", command)
    speed.main()
    (path,) = tmp_path.glob("*.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(kept=1)))
    speed.main()
    found = json.loads(path.read_text())
    assert found["kept"] == 1 and found["memory"]["rows"][0]["mib"] == 1 and "training" not in found
    assert "not run" in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong, said",
    [("--network resnet81", "resnet18"), ("--only memry", "memory"), ("--rounds 0", "rounds"), ("--device gpu", "cpu"),
     ("--out /proc/nowhere", "nowhere")],
)  # fmt: skip
def test_wrong_options_are_named_before_anything_is_timed(tmp_path, monkeypatch, capsys, wrong, said):
    monkeypatch.setattr("sys.argv", f"speed.py --device cpu --out {tmp_path} {wrong}".split())
    with pytest.raises(SystemExit) as stop:
        speed.main()
    assert stop.value.code == 2 and said in capsys.readouterr().err


SAVED = sorted((RESULTS / "speed").glob("*.json"))


@pytest.mark.parametrize("path", SAVED, ids=lambda path: path.stem)
def test_a_saved_benchmark_is_shown_as_it_is(path):
    found = json.loads(path.read_text())
    assert report.tables(found) in (RESULTS / "speed" / "README.md").read_text()
    rows = [*found["training"]["rows"], *found["training"]["ladder"], *found["evaluation"]["rows"]]
    assert all(r["rounds"] >= 7 for r in rows)
    for network in ("resnet18", "cnn16"):
        assert all(found["gate"][network][name] <= TOLERANCES[name] for name in TOLERANCES)


def test_there_is_a_saved_benchmark():
    assert SAVED
