"""A run is loaded, resumed or shared, and nothing that was computed is lost."""

import contextlib
import csv
import itertools
import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch.optim.swa_utils import update_bn

from sglrlib import device
from sglrlib.checks import UsageError
from sglrlib.config import make_config
from sglrlib.judging.evaluate import accuracy
from sglrlib.method.attacks import PGD
from sglrlib.method.fast import layout
from sglrlib.method.labels import LABELS
from sglrlib.method.methods import METHODS, PGDAT, adversarial_weights
from sglrlib.method.models import build_model
from sglrlib.recipes import ROWS
from sglrlib.store import checkpoint, log, results
from sglrlib.store.results import publish, stored
from sglrlib.training import networks, runs
from sglrlib.training.networks import export, load_model
from sglrlib.training.runs import run
from sglrlib.training.step import training_attack
from sglrlib.training.train import Diverged, best_epoch, by_size, first_step, run_data, run_model, train

SILENT = dict(say=lambda line: None)
TOLERANCE = 1e-4


def assert_same_run(one, other):
    """The final weights, momentum, label table and curve are equal bit for bit."""
    best = checkpoint.load(one / "last.pt")["best"]
    for name in ("last.pt", f"best-{best}.pt"):
        assert_same(*(checkpoint.load(folder / name) for folder in (one, other)))
    assert (one / "curve.csv").read_bytes() == (other / "curve.csv").read_bytes()


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


@pytest.mark.parametrize("row", ROWS)
def test_every_row_of_the_tables_resumes_bit_for_bit(small, tmp_path, row):
    """Stopped after its second epoch of three, with everything that a row adds at work from the first epoch on."""
    sizes = dict(epochs=3, train_size=40, batch_size=20, val_size=10, test_size=10, train_eval_size=10)
    changes = sizes | dict(labels="hard", refine_start=0.0, arch="wrn10_1") | ROWS[row]
    config = small(**(changes | (dict(swa_start=0.25) if "swa_start" in changes else {})))
    assert config.title == row
    teachers = [build_model("cnn4", 10, (1, 8, 8), seed=i).eval() for i, _ in enumerate(config.teachers)]
    silent = dict(teachers=teachers, report=lambda row: None)
    train(config, tmp_path / "whole", **silent)

    def interrupt(row):
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "stopped", teachers=teachers, report=interrupt)
    train(config, tmp_path / "stopped", **silent)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("extra", [dict(), dict(precision="bf16", awp=0.01, swa_start=0.5)])
def test_every_method_with_every_rule_trains_and_is_loaded_the_second_time(
    small, store, labels, method, extra, monkeypatch
):
    monkeypatch.setattr(device, "has_bf16", lambda: True)  # else slow, but right
    config = small(labels=labels, method=method, epochs=2, refine_start=0.0, **extra)
    first = run(config, **SILENT)
    stamp = (store / "runs" / config.id / "last.pt").stat().st_mtime_ns
    assert run(config, say=pytest.fail) == first
    assert (store / "runs" / config.id / "last.pt").stat().st_mtime_ns == stamp
    assert (
        len(first.curve) == 2
        and first.n("pgd_20") == 40
        and first.sizes["wrong_labels"] == stored(config).sizes["wrong_labels"]
    )
    assert first.has("natural") and first.has("pgd_20") and not first.has("autoattack")
    assert first.provenance["torch"] == torch.__version__


def test_bf16_is_refused_where_the_processor_only_emulates_it(small, store, monkeypatch):
    for flags, known in (("avx2 fma", False), ("avx512f avx512_bf16", True), ("asimd bf16", True)):
        monkeypatch.setattr(device, "cpuinfo", lambda flags=flags: f"model name\t: A processor\nflags\t\t: {flags}\n")
        assert device.has_bf16() == known and device.cpu_name().startswith("A processor, ")
    monkeypatch.setattr(device, "has_bf16", lambda: False)
    for precision in ("bf16", "amp"):
        with pytest.raises(UsageError, match=f"precision = '{precision}': .* only emulates bfloat16"):
            run(small(precision=precision), **SILENT)
        assert run(small(precision=precision), train_missing=False) is None  # to look is no work
    assert not (store / "runs").exists()


def test_a_run_killed_before_its_first_line_in_the_log_is_finished(small, store, monkeypatch):
    config = small(epochs=1)
    with monkeypatch.context() as killed:
        killed.setattr(log.Log, "__call__", lambda self, row: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(config, **SILENT)
    (store / "runs" / config.id / "log.jsonl").unlink(missing_ok=True)
    assert len(run(config, **SILENT).curve) == 1


def test_a_missing_run_is_missing(small, store):
    assert run(small(), train_missing=False) is None
    assert not (store / "runs").exists()


def test_what_is_computed_does_not_depend_on_the_speed(small, tmp_path):
    config = small(arch="wrn10_1", epochs=2, batch_size=20)
    curves = {}
    for speed in ("plain", "fast"):
        train(config, tmp_path / speed, speed=speed, report=lambda row: None)
        curves[speed] = checkpoint.load(tmp_path / speed / "last.pt")
    losses = [[row["loss"] for row in curves[speed]["curve"]] for speed in curves]
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)


def test_three_epochs_by_hand(small, tmp_path):
    """SGD written out: full batches, no attack; refinement from epoch 2, the rate divided by 10 in epoch 3."""
    config = small(
        train_size=50, batch_size=50, epochs=3, eps_255=0, arch="cnn4", noise_rate=0.0, refine_start=0.5,
        lr=0.5, lr_drops=[1.0], momentum=0.8, weight_decay=0.01,
    )  # fmt: skip
    train(config, tmp_path, report=lambda row: None)

    data, model = run_data(config).train, run_model(config)
    x, y, p = data.x(), data.y, F.one_hot(data.y, 10).float()
    velocity = [torch.zeros_like(w) for w in model.parameters()]
    for epoch, lr in ((1, 0.5), (2, 0.5), (3, 0.05)):
        logits = model(x)
        if epoch >= 2:
            p = 0.9 * p + 0.1 * logits.detach().softmax(1)
        loss = -((p if epoch >= 2 else F.one_hot(y, 10)) * logits.log_softmax(1)).sum(1).mean()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for w, g, v in zip(model.parameters(), gradients, velocity, strict=True):
                v.mul_(0.8).add_(g + 0.01 * w)
                w.sub_(lr * v)

    saved = checkpoint.load(tmp_path / "last.pt")
    assert torch.allclose(saved["labels"]["p"], p, atol=1e-6)
    for name, weight in model.state_dict().items():
        assert torch.allclose(saved["model"][name], weight, atol=1e-6), name
    assert [row["lr"] for row in saved["curve"]] == pytest.approx([0.5, 0.5, 0.05])


def test_best_is_chosen_on_validation_and_its_weights_are_kept(small, store):
    config = small(epochs=6, noise_rate=0.0, train_size=400)
    result = run(config, **SILENT)
    rows = list(csv.DictReader((store / "runs" / config.id / "curve.csv").read_text().splitlines()))
    robust = [float(row["val_robust"]) for row in rows]
    assert result.best_epoch == robust.index(max(robust)) + 1
    natural = {which: load_accuracy(config, which) for which in ("best", "last")}
    assert natural["best"] == pytest.approx(float(rows[result.best_epoch - 1]["test_natural"]))
    assert natural["last"] == pytest.approx(float(rows[-1]["test_natural"]))
    assert result.accuracy("best", "natural") == natural["best"]
    assert result.drop("natural") == natural["best"] - natural["last"]
    assert best_epoch([dict(epoch=1, test_robust=3.0), dict(epoch=2, test_robust=3.0)], small(select_on="test")) == 1


def load_accuracy(config, which):
    test = run_data(config).test
    return accuracy(load_model(config, which), test.x(), test.y)


def test_a_loss_that_is_nan_stops_the_run_and_names_the_last_good_checkpoint(small, store, monkeypatch):
    config = small(epochs=3)
    calls = []

    def poisoned(self, *step):
        calls.append(1)
        loss = original(self, *step)
        return loss * float("nan") if len(calls) == 4 else loss  # in the second epoch of 2 batches

    original = PGDAT.loss
    monkeypatch.setattr(PGDAT, "loss", poisoned)
    with pytest.raises(Diverged, match=r"epoch 2 is nan; the last good checkpoint is that of epoch 1 in .*runs"):
        run(config, **SILENT)
    assert len(checkpoint.load(store / "runs" / config.id / "last.pt")["curve"]) == 1


def test_averaged_weights_are_the_mean_and_are_what_is_judged(small, tmp_path):
    """Four epochs, averaged from the second on: the mean of epochs 2 to 4, each trained as if nothing was averaged."""
    config = small(arch="wrn10_1", labels="hard", swa_start=0.5)
    weights = []
    plain = config.but(swa_start=1.0)
    for epochs in (2, 3, 4):  # lr_drops are fractions: the same schedule only without any
        train(plain.but(epochs=epochs, lr_drops=[]), tmp_path / str(epochs), report=lambda row: None)
        weights.append(checkpoint.weights(tmp_path / str(epochs), "last"))
    train(config.but(lr_drops=[]), tmp_path / "swa", report=lambda row: None)
    averaged = checkpoint.weights(tmp_path / "swa", "last")
    mean = sum(w["fc.weight"] for w in weights) / 3
    assert torch.allclose(averaged["fc.weight"], mean, atol=1e-6)
    assert torch.equal(checkpoint.load(tmp_path / "swa/last.pt")["model"]["fc.weight"], weights[-1]["fc.weight"])

    # BatchNorm's statistics are those of the averaged network on all clean training images: batches of 50 and 10.
    net, x = run_model(config), run_data(config).train.x()
    net.load_state_dict(averaged)
    stem = net.stem(x).mean((0, 2, 3))
    assert torch.allclose(net.blocks[0].bn1.running_mean, stem, atol=1e-5 * stem.abs().max().item())
    row = checkpoint.load(tmp_path / "swa/last.pt")["curve"][-1]
    test = run_data(config).test
    assert row["test_natural"] == accuracy(net.eval(), test.x(), test.y)
    assert best_epoch([dict(epoch=1, val_robust=9.0), dict(epoch=2, val_robust=3.0)], config) == 2


def test_a_smaller_last_batch_counts_by_its_size():
    """Each BatchNorm's statistics: the means of its inputs' over the batches, weighted by how many images they have."""
    model, batches = build_model("bn_cnn4", 10, (1, 8, 8)).eval(), torch.rand(50, 1, 8, 8).split(20)
    norms = {module: [] for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)}
    for norm, given in norms.items():
        norm.register_forward_pre_hook(lambda norm, inputs, given=given: given.append(inputs[0]))
    update_bn(by_size([(x, None) for x in batches], model), model)
    share = torch.tensor([[20.0], [20.0], [10.0]]) / 50
    for norm, given in norms.items():
        assert torch.allclose(norm.running_mean, (share * torch.stack([x.mean((0, 2, 3)) for x in given])).sum(0))
        assert torch.allclose(norm.running_var, (share * torch.stack([x.var((0, 2, 3)) for x in given])).sum(0))
        assert norm.momentum == 0.1 and not norm.training


def test_the_training_attack_is_the_methods_and_the_configurations(small):
    def attack(**changes):
        return training_attack(small(attack_steps=3, **changes))

    budget = (26 / 255, 6.5 / 255, 3)
    assert attack() == PGD(*budget, "cross_entropy", "uniform", "eval", 1.0)
    assert attack(method="trades", beta=4.0) == PGD(*budget, "kl", "gaussian", "eval", 4.0)
    assert attack(method="kd_at", attack_mode="train") == PGD(*budget, "cross_entropy", "uniform", "train", 1.0)
    x = torch.rand(2, 1, 8, 8)
    assert attack(method="standard")(None, x, None, None, None) is x


def test_each_step_moves_the_weights_and_attacks_the_penalty_when_it_is_time(small, tmp_path, monkeypatch):
    """Four epochs of two steps: AWP from the second epoch on, temporal ensembling from the third."""
    gammas, penalties, modes = [], [], []

    def moved(model, loss, gamma):
        gammas.append(gamma)
        modes.append(model.training)
        return adversarial_weights(model, loss, gamma)

    def attack(model, x, y, generator, penalty):
        penalties.append(penalty is not None)
        return x

    monkeypatch.setattr("sglrlib.training.step.adversarial_weights", moved)
    monkeypatch.setattr("sglrlib.training.step.training_attack", lambda config: attack)
    config = small(labels="ensemble", refine_start=0.75, awp=0.01, awp_start=0.5, arch="wrn10_1", te_weight=1.0)
    train(config, tmp_path, report=lambda row: None)
    assert gammas == [0.0] * 2 + [0.01] * 6
    assert penalties == [False] * 4 + [True] * 4
    assert all(modes)


def test_teachers_are_runs_of_their_own(small, store):
    config = small(method="kd_at", epochs=2, noise_rate=0.3)
    run(config, **SILENT)
    standard, robust = config.teachers
    assert (standard.method, robust.method) == ("standard", "pgd_at")
    assert standard.labels == robust.labels == "hard" and standard.noise_rate == 0.3
    for teacher in config.teachers:
        assert len(run(teacher, (), say=pytest.fail).curve) == 2
    assert standard.selected_by == "val_natural" and robust.selected_by == "val_robust"
    attacked = [row["val_robust"] for row in run(standard, (), say=pytest.fail).curve]
    assert len(attacked) == 2


def test_any_run_is_one_line_away_from_other_tools(small, store):
    config = small(arch="wrn10_1", epochs=2)
    run(config, **SILENT)
    for which in ("best", "last"):
        model = load_model(config, which)
        x = torch.rand(3, 1, 8, 8)
        assert not model.training and not any(module.training for module in model.modules())
        program = torch.export.export(model, (x,)).module()
        assert torch.allclose(program(x), model(x), atol=1e-5)
        path = export(config, which)
        with safe_open(path, "pt") as file:
            header, state = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
        assert header["which"] == which
        info = json.loads(path.with_suffix(".json").read_text())
        assert (info["architecture"], info["eps"], info["normalisation"]) == ("wrn10_1", "26/255", None)
        assert info["clean_acc"] == f"{stored(config).accuracy(which, 'natural'):.2f}" and info["reported"] is None
        assert info["images"] == dict(clean_acc=stored(config).sizes["test"])
        rebuilt = run_model(make_config(**json.loads(header["config"]))).eval()
        rebuilt.load_state_dict(state)
        assert torch.equal(rebuilt(x), model(x))


def test_committed_weights_are_taken_where_the_run_was_never_made(small, store, monkeypatch):
    config, x = small(arch="bn_cnn8"), torch.rand(3, 1, 8, 8)
    run(config, **SILENT)
    networks.keep_weights(config)
    expected = [load_model(config, which)(x) for which in ("best", "last")]
    monkeypatch.setattr(networks, "RUNS", store / "elsewhere")
    assert networks.holds(config) and not networks.holds(small())
    for which, logits in zip(("best", "last"), expected, strict=True):
        assert torch.equal(load_model(config, which)(x), logits)
    assert not torch.equal(*expected)
    assert sorted(path.name for path in (store / "weights").iterdir()) == [
        f"{config.id}-{which}.safetensors" for which in ("best", "last")
    ]


def test_published_results_are_found_without_runs(small, store, monkeypatch):
    result = run(small(), **SILENT)
    publish(result)
    for module in (results, runs, networks):
        monkeypatch.setattr(module, "RUNS", store / "elsewhere")
    assert run(small(), train_missing=False) == result
    assert stored(small()) is None
    assert run(small(), **SILENT).evaluations.keys() == result.evaluations.keys()
    assert stored(small()) is not None  # what is to be computed here is computed here
    (store / "elsewhere" / small().id / "last.pt").unlink()
    with pytest.raises(UsageError, match="has no checkpoint"):
        load_model(small())


@pytest.mark.parametrize(
    ("settings", "said"),
    [(dict(device="cuda:9"), "torch finds no CUDA"), (dict(speed="fats"), "fast")],
)
def test_bad_settings_fail_before_any_work(small, store, settings, said):
    if torch.cuda.is_available() and "cuda:9" in settings.values():
        pytest.skip("this machine has CUDA")
    with pytest.raises(UsageError, match=said):
        run(small(), **settings)
    assert not (store / "runs").exists()


@pytest.mark.filterwarnings("default")  # torch.compile's own
@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(["plain", "fast", "compile"], 2)))
def test_a_run_resumed_at_another_speed_goes_on_as_if_it_had_always_had_it(small, tmp_path, first, second):
    """To the rounding in which the speeds differ anyway; momentum read in the wrong layout is off by far more."""
    if "compile" in (first, second) and not shutil.which("g++"):
        pytest.skip("torch.compile needs a C++ compiler")
    config = small(arch="bn_cnn4", labels="hard", epochs=4, batch_size=20)
    ends = {}
    for name, speeds in (("whole", [second]), ("resumed", [first, second])):
        for speed in speeds:

            def interrupt(row, stop=name == "resumed" and speed == first):
                if stop and row["epoch"] == 2:
                    raise KeyboardInterrupt

            with contextlib.suppress(KeyboardInterrupt):
                train(config, tmp_path / name, speed=speed, report=interrupt)
        ends[name] = checkpoint.load(tmp_path / name / "last.pt")
    groups = [ends[name]["optimizer"]["param_groups"][0]["fused"] for name in ends]
    assert groups == [second != "plain"] * 2
    losses = [[row["loss"] for row in ends[name]["curve"]] for name in ends]
    assert losses[0] == pytest.approx(losses[1], abs=TOLERANCE)


@pytest.mark.parametrize("speed", ["fast", "compile"])
def test_a_layout_in_which_onednn_overruns_its_memory_is_not_taken(small, speed):
    """The gradient of a strided 1x1 convolution's weights; the process may die of it, or its results be wrong."""
    y = torch.zeros(4, dtype=torch.int64)
    for arch, safe in (("preact_resnet10_8", False), ("preact_resnet10_16", True), ("wrn10_1", True), ("cnn8", True)):
        model = first_step(small(arch=arch), y, speed=speed).model
        weight = next(m.weight for m in model.modules() if isinstance(m, torch.nn.Conv2d) and m.weight.shape[1] > 1)
        assert weight.is_contiguous(memory_format=torch.channels_last) == safe, arch
    assert layout(model.append(torch.nn.Conv2d(8, 8, 1, 2)), speed, torch.device("cuda")) == torch.channels_last


def test_restored_momentum_has_the_layout_of_the_weights(small):
    config = small(arch="wrn10_1")
    y = torch.zeros(4, dtype=torch.long)
    one, other = (first_step(config, y, speed=speed) for speed in ("fast", "plain"))
    for step in (one, other):
        sum(weight.square().sum() for weight in step.model.parameters()).backward()
        step.optimizer.step()
    state = one.optimizer.state_dict()
    state["param_groups"][0]["lr"] = torch.tensor(0.5)  # as a captured step leaves it
    other.optimizer.load_state_dict(state)
    for mine, theirs in zip(other.model.parameters(), one.model.parameters(), strict=True):
        momentum = other.optimizer.state[mine]["momentum_buffer"]
        assert momentum.stride() == mine.stride()
        assert torch.equal(momentum, one.optimizer.state[theirs]["momentum_buffer"])
    group = other.optimizer.param_groups[0]
    assert group["fused"] is False and group["lr"] == 0.5 and isinstance(group["lr"], float)
