"""Evaluation that nobody can call weak: the cascade against pyautoattack's own, and models that are suspected."""

import dataclasses
import json
import os
import warnings
from importlib.metadata import version

import pytest
import torch
from pyautoattack import AutoAttack
from torch import nn

from sglrlib.checks import UsageError
from sglrlib.judging.evaluate import InvalidExample, correct, outputs, verify, withstood
from sglrlib.judging.report import judge
from sglrlib.judging.sanity import suspect
from sglrlib.method.attacks import PGD, Transfer, chain, named_attack
from sglrlib.method.autoattack import PARTS, Part
from sglrlib.method.fast import Itself, attack_target
from sglrlib.method.models import build_model
from sglrlib.paths import RESULTS
from sglrlib.store.results import pack_shares, unpack_shares
from sglrlib.training import runs
from sglrlib.training.columns import transfer_column, transferred, with_confidence
from sglrlib.training.networks import load_model
from sglrlib.training.runs import Wanted, run
from sglrlib.training.train import run_data

SILENT = dict(say=lambda line: None)
REDUCED = dict(apgd_ce=20, apgd_t=15, fab_t=5, square=100)  # with fewer steps APGD never comes to use its rho
# SGLR_FULL=1: the standard's own iterations, on 500 images; what was found is recorded in data/results/checks.
FULL = bool(os.environ.get("SGLR_FULL"))
ITERATIONS, IMAGES, BATCH = (
    (dict(apgd_ce=100, apgd_t=100, fab_t=100, square=5000), 500, 250) if FULL else (REDUCED, 120, 50)
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two small nets trained adversarially on digits, one with BatchNorm, and some test images."""
    from sglrlib.recipes import recipe

    out = tmp_path_factory.mktemp("runs")
    nets = []
    for changes in (dict(arch="cnn8", epochs=12), dict(arch="wrn10_1", epochs=2, weight_decay=5e-4)):
        config = recipe("digits", noise_rate=0.0, val_size=50, train_eval_size=20, attack_steps=3, **changes)
        runs.train(config, out / config.arch, report=lambda row: None)
        net = runs.run_model(config)
        net.load_state_dict(runs.checkpoint.weights(out / config.arch, "last"))
        nets.append(net.eval())
    test = run_data(config).test
    return nets, test.x(slice(IMAGES)), test.y[:IMAGES]


def reduced(eps, part, **named):
    """In place of Part: a tenth or less of the standard's iterations."""
    return Part(eps, part, REDUCED[part], **named)


def reference(model, x, y, eps, parts):
    """Images and flags of pyautoattack's own cascade of some of its parts, called directly on the plain model."""
    attack = AutoAttack(model, norm="Linf", eps=eps, seed=0, device="cpu", version="standard")
    attack.attacks_to_run = attack.attacks_to_run[parts]
    common = dict(n_restarts=1, eps=eps, norm="Linf", seed=0, device="cpu")
    attack.apgd.__init__(model, n_iter=ITERATIONS["apgd_ce"], **common)  # which derives its schedule from n_iter
    attack.apgd_targeted.__init__(model, n_iter=ITERATIONS["apgd_t"], **common)
    attack.fab.n_iter, attack.square.n_queries = ITERATIONS["fab_t"], ITERATIONS["square"]
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x_adv, _ = attack.run_standard_evaluation(x, y, batch_size=BATCH)
    with torch.no_grad():
        return x_adv, model(x_adv).argmax(1) == y


@pytest.mark.parametrize("eps_255", [20, 30])
@pytest.mark.parametrize("net", [0, 1], ids=["cnn8", "wrn10_1"])
def test_flags_after_each_part_and_images_equal_those_of_pyautoattack(trained, monkeypatch, eps_255, net):
    nets, x, y = trained
    monkeypatch.setattr(Part, "batch_size", BATCH)
    flags, counts, images = correct(nets[net], x, y), [], x.clone()
    natural = int(flags.sum())
    for upto, (part, iterations) in enumerate(ITERATIONS.items(), start=1):
        attack = Part(eps_255 / 255, part, iterations)
        images[flags] = outputs(nets[net], x[flags], y[flags], attack, speed="plain")[0]
        flags = withstood(nets[net], x, y, attack, flags)
        their_images, their_flags = reference(nets[net], x, y, eps_255 / 255, slice(upto))
        assert torch.equal(flags, their_flags) and torch.equal(images, their_images), part
        counts.append(int(flags.sum()))
    assert counts == sorted(counts, reverse=True) and 0 < counts[-1] < natural
    if FULL:
        record(["cnn8", "wrn10_1"][net], eps_255, natural, dict(zip(ITERATIONS, counts, strict=True)))


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("net", [0, 1], ids=["cnn8", "wrn10_1"])
def test_each_part_alone_finds_the_images_of_pyautoattack(trained, monkeypatch, net, part):
    """In the cascade the later parts are left with what hardly breaks."""
    nets, x, y = trained
    monkeypatch.setattr(Part, "batch_size", BATCH)
    right, place = correct(nets[net], x, y), list(PARTS).index(part)
    images, logits = outputs(nets[net], x[right], y[right], Part(30 / 255, part, ITERATIONS[part]), speed="plain")
    their_images, their_flags = reference(nets[net], x, y, 30 / 255, slice(place, place + 1))
    assert torch.equal(images, their_images[right])
    assert torch.equal(logits.argmax(1) == y[right], their_flags[right]) and 0 < their_flags.sum() < right.sum()


def record(net, eps_255, natural, standing):
    """Keep that the flags were equal: how many images stood after each part, for one net and budget."""
    path = RESULTS / "checks" / "autoattack.json"
    found = json.loads(path.read_text()) if path.exists() else []
    found = [row for row in found if (row["net"], row["eps_255"]) != (net, eps_255)]
    row = dict(net=net, eps_255=eps_255, n=IMAGES, batch=BATCH, natural=natural, standing=standing, flags_equal=True)
    versions = dict(torch=torch.__version__, pyautoattack=version("pyautoattack"), device="cpu")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps([*found, row | versions], indent=1) + "\n")


def test_the_standard_settings_are_the_standards():
    standard = AutoAttack(nn.Identity(), norm="Linf", eps=0.1, seed=0, device="cpu", version="standard")
    theirs = dict(apgd_ce=standard.apgd, apgd_t=standard.apgd_targeted, fab_t=standard.fab, square=standard.square)
    settings = dict(norm="Linf", eps=0.1, seed=0, device="cpu", n_restarts=1)
    ignored = {"logger", "predict", "model", "targeted", "loss", "orig_predict"}
    for name, build in PARTS.items():
        ours = build(standard.model, 10, 0, settings)
        for key in vars(theirs[name]).keys() - ignored:
            assert getattr(ours, key) == getattr(theirs[name], key), (name, key)
    assert PARTS["apgd_ce"](None, 10, 0, settings).loss == "ce" and PARTS["fab_t"](None, 10, 0, settings).targeted


def test_attacking_leaves_the_global_random_stream_and_the_model_alone(trained):
    nets, x, y = trained
    model = nets[1]
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    correct(model, x[:20], y[:20], Part(8 / 255, "square", 20))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.eval()


@pytest.mark.parametrize("net", [0, 1], ids=["cnn8", "wrn10_1"])
@pytest.mark.parametrize("attack", [PGD(20 / 255, 5 / 255, 20), PGD(20 / 255, 5 / 255, 5, objective="margin")])
def test_the_folded_copy_gives_the_plain_models_flags(trained, net, attack):
    nets, x, y = trained
    fast, plain = (correct(nets[net], x, y, attack, speed=speed) for speed in ("fast", "plain"))
    assert torch.equal(fast, plain) and 0 < fast.sum() < len(y)


def test_a_killed_cascade_resumes_and_ends_with_the_same_flags(small, store, monkeypatch):
    config = small(noise_rate=0.0, epochs=8, train_size=300)
    monkeypatch.setattr("sglrlib.method.attacks.Part", reduced)
    whole = run(config, ["autoattack"], **SILENT)
    path = store / "runs" / config.id / "result.json"
    path.unlink()

    done = []

    def interrupted(model, x, y, attack, before, **how):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(attack.part)
        return withstood(model, x, y, attack, before, **how)

    with monkeypatch.context() as killed:
        killed.setattr(runs, "withstood", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(config, ["autoattack"], **SILENT)
    assert done == ["apgd_ce", "apgd_t"]

    done = []
    given = []

    def noting(model, x, y, attack, before, **how):
        done.append(attack.part)
        given.append(int(before.sum()))
        return withstood(model, x, y, attack, before, **how)

    monkeypatch.setattr(runs, "withstood", noting)
    resumed = run(config, ["autoattack"], **SILENT)
    assert done == ["fab_t", "square", "apgd_ce", "apgd_t", "fab_t", "square"]  # the rest of best, then last
    columns = [("best", c) for c in chain("autoattack")[2:4]] + [("last", c) for c in chain("autoattack")[:4]]
    assert given == [int(resumed.flags(which, column).sum()) for which, column in columns]
    assert given[2] > given[-1] > 0  # some fell on the way, so that it matters who is attacked
    for which in ("best", "last"):
        for column in chain("autoattack"):
            assert torch.equal(resumed.flags(which, column), whole.flags(which, column))
    assert run(config, ["autoattack"], say=pytest.fail) == resumed


def test_more_images_or_another_attack_are_added_to_what_is_there(small, store):
    config = small()
    few = run(config, ["pgd_3"], images=10, **SILENT)
    assert few.n("pgd_3") == 10 and few.n("natural") == 40
    more = run(config, ["pgd_3", "pgd_2_step_1"], **SILENT)
    assert more.n("pgd_3") == more.n("pgd_2_step_1") == 40
    assert torch.equal(more.flags("best", "pgd_3")[:10], few.flags("best", "pgd_3"))
    assert not (more.flags("best", "pgd_3") & ~more.flags("best", "natural")).any()
    assert not few.has("pgd_3") and few.has("pgd_3", 10) and not few.has("pgd_3", 11) and few.has("natural", 10)


def test_a_small_network_takes_one_thread_and_gives_the_others_back(small, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    for config, device, expected in (
        (small(), "cpu", [1, 4]),
        (small(), "cuda", [4]),
        (small(arch="wrn10_1", batch_size=128), "cpu", [4]),
    ):
        asked.clear()
        with pytest.raises(ZeroDivisionError), runs.few_threads(config, device):
            _ = 1 / 0
        assert asked == expected


def test_transfer_attacks_come_from_the_other_run(small, store):
    target = small(epochs=8, noise_rate=0.0, train_size=300)
    source = target.but(labels="hard", arch="cnn8", seed=1)
    result = runs.obtain(Wanted(target, transferred(target, source, ["pgd_5"])), **SILENT)
    column = transfer_column("pgd_5", source)
    test = run_data(target).test
    x, y = test.x(), test.y
    attack = Transfer(PGD(target.eps_255 / 255, target.step_255 / 255, 5), load_model(source))
    natural = result.flags("last", "natural")
    assert torch.equal(result.flags("last", column), withstood(load_model(target, "last"), x, y, attack, natural))
    white = run(target, ["pgd_5"], **SILENT)
    assert white.accuracy("last", "pgd_5") < result.accuracy("last", column) < result.accuracy("last", "natural")
    with pytest.raises(UsageError, match="'autoattack' is a cascade: expected a single attack"):
        transferred(target, source, ["autoattack"])
    with pytest.raises(UsageError, match="the source is trained on 'cifar10': expected 'digits'"):
        transferred(target, source.but(dataset="cifar10"))


# What cannot be judged is refused, before the attack makes a step.


class Wrapped(nn.Module):
    """A net whose output goes through a function."""

    def __init__(self, change):
        super().__init__()
        self.net, self.change = build_model("cnn4", 10, (1, 8, 8)), change

    def forward(self, x):
        return self.change(self.net(x))


X, Y = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8)


@pytest.mark.parametrize(
    ("change", "x", "said"),
    [
        (lambda z: z.softmax(1), X, "returns probabilities (from 0.0"),
        (lambda z: z * float("nan"), X, "returns values from nan to nan: expected finite logits"),
        (lambda z: z[:, :7], X, r"returns (8, 7) for 8 images: expected (8, 10)"),
        (lambda z: z, X * 255, "images range from "),
        (lambda z: z, X - 0.5, "expected [0, 1]; normalise inside the model"),
        (
            lambda z: z,
            X.expand(8, 3, 8, 8),
            "cannot take images of shape (3, 8, 8) and float32: was it trained on another dataset?",
        ),
        (lambda z: z, X[:0], "expected images (N, C, H, W) and labels (N,), N > 0"),
    ],
)
def test_what_cannot_be_judged_is_refused_before_the_first_step(change, x, said):
    def attack(*step):
        pytest.fail("an attack step was made")

    with pytest.raises(UsageError) as error:
        correct(Wrapped(change), x, Y, attack, classes=10)
    assert said in str(error.value)


def test_labels_that_the_model_does_not_know_are_refused():
    with pytest.raises(UsageError, match=r"for labels from 0 to 99. Was it trained on another dataset"):
        correct(Wrapped(lambda z: z), X, Y * 14 + 1 - 1 + (Y == 7), classes=100)


def test_training_a_model_that_cannot_be_traced_is_told_the_way():
    with pytest.raises(UsageError, match="use speed = 'plain'"):
        attack_target(Wrapped(lambda z: z if z.sum() > 0 else -z), "fast")


def test_autoattack_needs_four_classes():
    with pytest.raises(UsageError, match="at least 4 classes; this model has 3"):
        correct(build_model("cnn4", 3, (1, 8, 8)), X, Y % 3, Part(0.1, "apgd_t"))


@pytest.mark.parametrize("wrong", [0.11, float("nan"), -0.3])
def test_an_attack_that_leaves_the_ball_is_not_counted(wrong):
    class Cheat:
        eps = 0.1

        def __call__(self, model, x, y, generator):
            return x + wrong

    with pytest.raises(InvalidExample, match=r"eps = 0.1"):
        correct(Wrapped(lambda z: z), X.clamp(0.3, 0.7), Y, Cheat())
    verify(X, (X + 0.1).clamp(0, 1), 0.1)


def test_a_copy_that_computes_something_else_is_not_attacked(monkeypatch):
    """And the model itself judges, in exact fp32."""
    precisions = []

    def noting(logits):
        precisions.append(torch.backends.cudnn.conv.fp32_precision)
        return logits

    model, other = Wrapped(noting), build_model("cnn4", 10, (1, 8, 8), seed=7)
    monkeypatch.setattr("sglrlib.judging.evaluate.attack_target", lambda model, speed: Itself(other))
    with pytest.warns(UserWarning, match="computes something else .*, so the model itself is attacked"):
        found, _ = outputs(model, X, Y, PGD(0.1, 0.05, 2))
    assert torch.equal(found, outputs(model, X, Y, PGD(0.1, 0.05, 2), speed="plain")[0])
    assert set(precisions) == {"ieee"}


# The evaluator suspects the model.


def verdicts(model, x, y):
    return [check.holds for check in suspect(model, x, y, 20 / 255, queries=300)]


def test_an_honest_model_is_not_suspected(trained):
    nets, x, y = trained
    assert verdicts(nets[0], x, y) == [True] * 5
    assert str(suspect(nets[0], x[:20], y[:20], 0.0, queries=1)[0]).startswith("ok ")


class Masked(nn.Module):
    """A net behind a staircase: its gradients are zero everywhere, and it is not a bit more robust for it."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net((x * 16).round() / 16)


class Randomised(Masked):
    def forward(self, x):
        return self.net(x) + 0.1 * torch.randn(len(x), 10)


def test_masked_gradients_are_found_out(trained):
    nets, x, y = trained
    assert verdicts(Masked(nets[0]), x, y) == [True, True, False, False, False]


def test_a_randomised_model_is_found_out(trained):
    nets, x, y = trained
    assert verdicts(Randomised(nets[0]), x, y)[1] is False


def test_probabilities_end_the_checks(trained):
    nets, x, y = trained
    (check,) = suspect(nn.Sequential(nets[0], nn.Softmax(1)), x, y, 20 / 255)
    assert not check.holds and str(check).startswith("SUSPICIOUS")


# What a network is confident of.


def test_confidences_are_the_networks_probabilities_on_all_images_and_are_kept(small, store):
    config = small(epochs=8, noise_rate=0.0, train_size=300)
    wanted = Wanted(config, with_confidence(config, ["natural", "pgd_5"]))
    result = runs.obtain(wanted, **SILENT)
    test = run_data(config).test
    attacks = dict(natural=None, pgd_5=PGD(config.eps_255 / 255, config.step_255 / 255, 5))
    for which in ("best", "last"):
        for name, attack in attacks.items():
            highest, labelled, right = result.confidence(which, name)
            probabilities = outputs(load_model(config, which), test.x(), test.y, attack)[1].double().softmax(1)
            assert (highest - probabilities.max(1).values).abs().max() <= 1 / 131_070 + 1e-12
            assert (labelled - probabilities[torch.arange(40), test.y]).abs().max() <= 1 / 131_070 + 1e-12
            assert torch.equal(right, probabilities.argmax(1) == test.y) and 0 < right.sum() < 40
        natural, attacked = (result.confidence(which, name)[1] for name in attacks)
        assert (attacked < natural - 1e-3).double().mean() > 0.9
        assert (attacked < natural - 1e-3)[~result.flags(which, "natural")].any()  # the misclassified, too
    assert runs.obtain(wanted, say=pytest.fail) == result
    other = Wanted(config, with_confidence(config, ["pgd_6"]), train_missing=False)
    assert runs.obtain(other) == result and not result.has("confidence pgd_6")
    assert runs.obtain(dataclasses.replace(other, config=config.but(seed=1))) is None


def test_confidences_under_what_is_no_single_attack_are_refused_before_any_work(small, store):
    for attack, said in (("pgd10", "Did you mean 'pgd_10'"), ("autoattack", "'autoattack' is a cascade")):
        with pytest.raises(UsageError, match=said):
            with_confidence(small(epochs=1), [attack])
    assert not (store / "runs").exists()


def test_shares_are_kept_to_sixteen_bits():
    values = torch.linspace(0, 1, 10_000, dtype=torch.float64)
    kept = unpack_shares(pack_shares(values))
    assert (kept - values).abs().max() <= 1 / 131_070 + 1e-12 and (kept[0], kept[-1]) == (0, 1)
    assert len(unpack_shares(pack_shares(values[:0]))) == 0


def test_any_model_is_judged_by_the_whole_cascade_and_the_checks(trained, monkeypatch):
    nets, x, y = trained
    monkeypatch.setattr("sglrlib.method.attacks.Part", reduced)
    report = judge(nets[0], x[:40], y[:40], 20, attacks=["pgd_5", "autoattack"])
    assert list(report.flags) == ["natural", "pgd_5", "apgd_ce", "apgd_t", "fab_t", "autoattack"]
    flags = correct(nets[0], x[:40], y[:40])
    for part, iterations in REDUCED.items():
        flags = withstood(nets[0], x[:40], y[:40], Part(20 / 255, part, iterations), flags)
    assert torch.equal(report.flags["autoattack"], flags)
    assert 0 < report.accuracy("autoattack") < report.accuracy("natural")
    low, high = report.interval("autoattack")
    assert low < report.accuracy("autoattack") < high
    assert len(report.checks) == 5 and report.suspected == [c.name for c in report.checks if not c.holds]
    assert "autoattack" in str(report) and "eps = 20/255, 40 images" in str(report)


@pytest.mark.parametrize("name", ["apgd_t", "fab_t", "autoattack"])
def test_the_last_part_of_a_cascade_is_no_measure_of_a_model(trained, name):
    nets, x, y = trained
    with pytest.raises(UsageError, match=f"'{name}' is a cascade"):
        correct(nets[0], x, y, named_attack(name, 0.1, 0.02))


def test_judging_by_an_unknown_attack_is_refused_before_any_work(trained):
    with pytest.raises(UsageError, match="Did you mean 'autoattack'"):
        judge(None, None, None, 8, attacks=["autoatack"])
