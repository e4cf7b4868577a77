"""Each diagnostic against an exact value; and none of them changes what is trained."""

import copy
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sglrlib.checks import UsageError
from sglrlib.judging.diagnostics import (
    DIAGNOSTICS,
    calibration_error,
    confidence_gap,
    features,
    gradient_norms,
    hessian_trace,
    information_in_weights,
    reliability,
)
from sglrlib.method.data import planted
from sglrlib.method.datasets import DATASETS
from sglrlib.method.labels import LABELS
from sglrlib.method.methods import METHODS, PGDAT
from sglrlib.method.models import build_model
from sglrlib.store import checkpoint
from sglrlib.training.measure import accuracies, look, own_loss
from sglrlib.training.runs import run
from sglrlib.training.train import run_data, run_model, train

X, Y = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 4
CONFIDENCE = torch.tensor([0.0, 0.1, 0.2, 0.25, 0.4, 0.6, 0.61, 0.7, 0.8, 0.9, 1.0, 1.0], dtype=torch.float64)
RIGHT = torch.tensor([0, 0, 1, 1, 0, 1, 0, 1, 1, 1, 1, 0]).bool()
BINS = [(3, 0.1, 1 / 3), (2, 0.325, 1 / 2), (1, 0.6, 1), (3, 2.11 / 3, 2 / 3), (3, 2.9 / 3, 2 / 3)]  # of five, by hand


def net(*layers, seed=0):
    """A network of standard normal weights; by default of 36 of them."""
    model = nn.Sequential(*(layers or (nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4))))
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        nn.init.normal_(parameter, generator=generator)
    return model


def loss_of(model):
    return lambda x, y: F.cross_entropy(model(x), y)


def cut(size):
    return list(zip(X.split(size), Y.split(size), strict=True))


def gradient(model, x, y):
    """Cross-entropy's gradient, one tensor for each of the model's."""
    return torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))


def vector(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def test_the_hessian_trace_and_its_error_are_those_of_the_full_hessian():
    model = net()

    def loss(w):
        parts = zip(model.named_parameters(), w.split([p.numel() for p in model.parameters()]), strict=True)
        named = {name: part.view_as(p) for (name, p), part in parts}
        return F.cross_entropy(torch.func.functional_call(model, named, (X,)), Y)

    hessian = torch.autograd.functional.hessian(loss, vector(model.parameters()))
    off_diagonal = hessian - hessian.diag().diag()
    trace, error = hessian_trace(model, partial(loss_of(model), X, Y), probes=2000)
    assert error == pytest.approx((2 * off_diagonal.square().sum() / 2000).sqrt().item(), rel=0.1)
    assert error < 0.1 * hessian.trace() and abs(trace - hessian.trace()) < 4 * error


def test_every_probe_is_exact_where_the_hessian_is_diagonal():
    weights = list(net().parameters())
    trace = hessian_trace(model := net(), lambda: sum((p**3).sum() for p in model.parameters()), probes=2)
    assert trace == pytest.approx((sum(6 * p.sum().item() for p in weights), 0), rel=1e-5, abs=1e-4)


def test_the_same_seed_makes_the_same_probes():
    model = net()
    first, again, other = (hessian_trace(model, partial(loss_of(model), X, Y), seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    with pytest.raises(UsageError, match=r"probes = 1 is out of range.*nearest is 2"):
        hessian_trace(model, pytest.fail, probes=1)


def test_the_papers_information_is_the_quadratic_form_of_the_empirical_fisher():
    model, reference = net(), net(seed=1)
    each = torch.stack([vector(gradient(model, *one)) for one in cut(1)])
    delta = vector(model.parameters()) - vector(reference.parameters())
    paper, _ = information_in_weights(model, reference, loss_of(model), cut(1), samples=12)
    assert paper == pytest.approx((12 * delta @ (each.T @ each / 12) @ delta).item(), rel=1e-4)


@pytest.mark.parametrize("samples", [12, 60])
def test_the_codes_information_sums_before_it_squares_and_leaves_biases_out(samples):
    model, reference = net(), net(seed=1)
    deltas = [(p - q).detach() for p, q in zip(model.parameters(), reference.parameters(), strict=True)]
    moved = [[(d * g).sum().item() for d, g in zip(deltas, gradient(model, *b), strict=True)] for b in cut(4)]
    moved = torch.tensor(moved)  # (3 batches, 4 tensors: weight, bias, weight, bias)
    paper, code = information_in_weights(model, reference, loss_of(model), cut(4), samples)
    assert paper == pytest.approx(samples * moved.sum(1).square().mean().item(), rel=1e-4)
    assert code == pytest.approx((moved.sum(0)[[0, 2]] / (samples / 4)).square().sum().item(), rel=1e-4)


def test_with_one_tensor_the_codes_information_is_at_most_the_papers_over_n():
    one, reference = (net(nn.Linear(3, 4, bias=False), seed=seed) for seed in (0, 1))
    for size in (1, 4, 12):
        paper, code = information_in_weights(one, reference, loss_of(one), cut(size), samples=12)
        assert 12 * code == pytest.approx(paper, rel=1e-4) if size == 12 else 12 * code < 0.999 * paper


def test_the_gradients_norm_is_that_of_one_gradient_over_the_whole_set():
    model = net()
    whole = vector(gradient(model, X, Y)).norm().item()
    for size in (1, 5, 12):  # 5: the last batch is smaller
        each = [vector(gradient(model, *batch)).norm().item() for batch in cut(size)]
        expected = whole, sum(each) / len(each)
        assert gradient_norms(model, loss_of(model), cut(size)) == pytest.approx(expected, rel=1e-5)
        assert expected[1] > 1.1 * whole or size == 12


def test_calibration_by_hand_on_a_dozen_samples_some_of_them_on_an_edge():
    gaps = [(n / 12, abs(mean - accuracy)) for n, mean, accuracy in BINS]
    assert calibration_error(CONFIDENCE, RIGHT, bins=5) == pytest.approx(sum(n * gap for n, gap in gaps))
    root = math.sqrt(sum(n * gap**2 for n, gap in gaps))
    assert calibration_error(CONFIDENCE, RIGHT, bins=5, power=2) == pytest.approx(root)
    for found, by_hand in zip(reliability(CONFIDENCE, RIGHT, bins=5), zip(*BINS, strict=True), strict=True):
        assert found.tolist() == pytest.approx(by_hand)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bins", [5, 10, 15])
def test_what_lies_on_an_edge_is_of_the_bin_below_it_in_any_precision(dtype, bins):
    edges = (torch.arange(1, bins + 1, dtype=torch.float64) / bins).to(dtype)
    assert reliability(edges, edges > 0.5, bins=bins)[0].tolist() == [1] * bins


def test_the_gaps_sign_says_over_or_under_confident():
    for right, gap in ((RIGHT, (6.56 - 7) / 12), (~RIGHT, (6.56 - 5) / 12)):
        assert confidence_gap(CONFIDENCE, right) == pytest.approx(gap)
        assert calibration_error(CONFIDENCE, right, bins=1) == pytest.approx(abs(gap))


def test_an_empty_bin_is_nan_and_weighs_nothing():
    confidence, right = torch.tensor([0.9, 0.3]), torch.tensor([True, False])
    found = [values.nan_to_num(-1).tolist() for values in reliability(confidence, right, bins=4)]
    assert found == [[0, 1, 0, 1], pytest.approx([-1, 0.3, -1, 0.9]), [-1, 0, -1, 1]]
    assert calibration_error(confidence, right, bins=4) == pytest.approx(0.2)


@pytest.mark.parametrize("measure", [calibration_error, confidence_gap, reliability])
@pytest.mark.parametrize(
    ("confidence", "right", "said"),
    [
        (CONFIDENCE, RIGHT[:5], r"confidence \(12,\) and right \(5,\): expected one number a sample"),
        (CONFIDENCE[:, None], RIGHT[:, None], r"\(12, 1\)"),
        (CONFIDENCE[:0], RIGHT[:0], "N > 0"),
        (CONFIDENCE + 0.5, RIGHT, r"confidence = 1.5 is out of range.*nearest is 1"),
        (CONFIDENCE - 0.5, RIGHT, r"confidence = -0.5 is out of range.*nearest is 0"),
        (CONFIDENCE * math.nan, RIGHT, "confidence = nan"),
    ],
)
def test_what_is_no_confidence_is_refused(measure, confidence, right, said):
    with pytest.raises(UsageError, match=said):
        measure(confidence, right)


def test_bins_and_powers_out_of_range_are_refused():
    for settings in (dict(bins=0), dict(power=0.0)):
        with pytest.raises(UsageError, match="is out of range: expected at least"):
            calibration_error(CONFIDENCE, RIGHT, **settings)


def test_features_are_what_the_last_linear_layer_is_given():
    model = net(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(), nn.Linear(5, 4), nn.Softmax(1)).train()
    found = features(model, X, batch_size=5)
    assert model.training and not model[4]._forward_pre_hooks and not found.requires_grad
    assert torch.allclose(found, model.eval()[:4](X))
    with pytest.raises(UsageError, match=r"no nn.Linear.*expected a classifier"):
        features(nn.Conv2d(1, 1, 1), X)


@pytest.mark.parametrize(
    "measure",
    [
        lambda model: gradient_norms(model, loss_of(model), cut(4)),
        lambda model: hessian_trace(model, partial(loss_of(model), X, Y)),
        lambda model: information_in_weights(model, copy.deepcopy(model), loss_of(model), cut(4), 9),
        lambda model: features(model, X),
    ],
    ids=["gradient_norms", "hessian_trace", "information_in_weights", "features"],
)
def test_no_diagnostic_leaves_a_trace(measure):
    model = net(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 4)).train()
    loss_of(model)(X, Y).backward()
    model[1].eval()  # frozen, as in fine-tuning: each module's own mode comes back

    def state():
        flags = [module.training for module in model.modules()] + [p.requires_grad for p in model.parameters()]
        found = [*model.state_dict().values(), *(p.grad for p in model.parameters()), torch.random.get_rng_state()]
        return [torch.tensor(flags), *(tensor.clone() for tensor in found)]

    before = state()
    measure(model)
    assert all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))


def trained(config, folder):
    """What a run leaves in last.pt."""
    train(config, folder, report=lambda row: None)
    return checkpoint.load(folder / "last.pt")


@pytest.mark.parametrize("labels", ["self_guided", "ensemble", "rectified"])
@pytest.mark.parametrize("method", ["pgd_at", "trades"])
def test_a_run_ends_bit_for_bit_the_same_with_and_without_diagnostics(small, tmp_path, monkeypatch, labels, method):
    def added(s):
        s.method_loss(*s.batches()[0]).backward()
        nn.init.zeros_(next(s.model.train().parameters()))
        return dict(added=float(s.samples))

    monkeypatch.setitem(DIAGNOSTICS, "added", added)
    config = small(labels=labels, method=method, arch="bn_cnn8", epochs=3, refine_start=0.5, batch_size=20)
    without, recorded = trained(config, tmp_path / "a"), trained(config.but(diagnostics=[*DIAGNOSTICS]), tmp_path / "b")
    for row, longer in zip(without["curve"], recorded["curve"], strict=True):
        assert row.items() <= longer.items() and longer["added"] == 60 and len(longer) > len(row) + 10
    momenta = ({i: s["momentum_buffer"] for i, s in r["optimizer"]["state"].items()} for r in (without, recorded))
    for a, b in [(without[part], recorded[part]) for part in ("model", "labels")] + [tuple(momenta)]:
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_every_column_is_recomputed_from_the_checkpoint(small, tmp_path):
    size = dict(train_size=300, train_eval_size=100, attacked_size=28, batch_size=20, arch="bn_cnn8", epochs=3)
    config = small(labels="hard", noise="symmetric_wrong", noise_rate=0.6, diagnostics=[*DIAGNOSTICS], **size)
    saved, data, model = trained(config, tmp_path), run_data(config), run_model(config)
    model.load_state_dict(saved["model"])
    views, loss, row = look(config, model.eval(), data, "fast"), loss_of(model), saved["curve"][-1]
    expected = accuracies(views) | {name: row[name] for name in ("epoch", "lr", "loss")}
    assert [(len(v.x), len(v.logits), len(v.x_adv), len(v.logits_adv)) for v in views.values()] == [
        (n, n, 28, 28) for n in (100, 30, 40)
    ]
    for kind, logits in (("natural", views["test"].logits), ("robust", views["test"].logits_adv)):
        confidence, predicted = logits.double().softmax(1).max(1)
        right = predicted == data.test.y[: len(logits)]
        expected[f"test_{kind}"] = 100 * right.double().mean().item()
        expected[f"test_{kind}_ece"] = calibration_error(confidence, right)
        expected[f"test_{kind}_gap"] = confidence.mean().item() - right.double().mean().item()
    x_adv, y = views["train"].x_adv, data.train.y[:28]
    expected["hessian_trace"], expected["hessian_trace_error"] = hessian_trace(model, lambda: loss(x_adv, y))
    batches = [(x_adv[:20], y[:20]), (x_adv[20:], y[20:])]
    initial = run_model(config)
    expected["iiw_paper"], expected["iiw_code"] = information_in_weights(model, initial, loss, batches, samples=300)
    for kind in ("hard", "own"):  # the same, with hard labels
        expected[f"gradient_norm_{kind}"] = gradient_norms(model, loss, batches)[0]
        other = copy.deepcopy(model).train()
        expected[f"batch_gradient_norm_{kind}"] = gradient_norms(other, loss_of(other), batches)[1]
    noisy = planted(data.test, DATASETS["digits"], "symmetric_wrong", 0.6, seed=0)
    first = data.train.first(100)
    wrong = first[(first.y != first.y_clean).nonzero()[:, 0]]
    assert len(wrong) > 50  # the memorised ones of those that are wrong
    expected["train_natural_wrong"] = 100 * (model(wrong.x()).argmax(1) == wrong.y).double().mean().item()
    against = dict(
        train_natural_clean=(data.train.first(100), data.train.y_clean[:100]), test_natural_noisy=(noisy, noisy.y)
    )
    for name, (split, y) in against.items():
        expected[name] = 100 * (model(split.x()).argmax(1) == y).double().mean().item()
        assert row[name] != row[name.rsplit("_", 1)[0]]
    assert row == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(diagnostics=["hesian_trace"]), "diagnostics = 'hesian_trace' is not known. Did you mean 'hessian_trace'"),
        (dict(diagnostics="information"), "diagnostics = 'information' is of type str: expected a list"),
        (dict(folds=3, fold=3), r"fold = 3.*nearest is 2"),
        (dict(fold=1), r"fold = 1.*nearest is 0"),
    ],
)
def test_wrong_names_and_folds_are_told_the_nearest(small, changes, said):
    with pytest.raises(UsageError, match=said):
        small(**changes)


def test_guided_by_its_current_prediction_the_gradient_is_the_hard_one_times_one_minus_r(small, tmp_path):
    """alpha = lam = 0: the target is r * f(x') + (1 - r) * y, held fixed; before refinement starts it is y."""
    config = small(arch="cnn8", alpha=0.0, lam=0.0, r=0.75, refine_start=0.75, diagnostics=["gradient_norm"])
    for row, share in zip(trained(config, tmp_path)["curve"], (1, 1, 0.25, 0.25), strict=True):
        for kind in ("gradient_norm", "batch_gradient_norm"):
            assert row[f"{kind}_own"] == pytest.approx(share * row[f"{kind}_hard"], rel=1e-3)


@pytest.mark.parametrize("labels", LABELS)
def test_without_batchnorm_one_batch_has_one_gradient_in_both_modes(small, tmp_path, labels):
    config = small(labels=labels, arch="cnn8", refine_start=0.5, diagnostics=["gradient_norm"])  # 20 images, batch 50
    for row in trained(config, tmp_path)["curve"]:
        assert row["batch_gradient_norm_own"] == pytest.approx(row["gradient_norm_own"], rel=1e-4)


@pytest.mark.parametrize("method", [*(build() for build in METHODS.values()), PGDAT(outer="clean")], ids=str)
@pytest.mark.parametrize("labels", LABELS)
def test_in_eval_mode_the_own_loss_moves_no_statistics(method, labels):
    model, *teachers = (build_model("bn_cnn4", 4, (1, 8, 8), seed=seed).eval() for seed in range(3))
    before, rule, x = copy.deepcopy(model.state_dict()), LABELS[labels](Y, 4), torch.rand(12, 1, 8, 8)
    rule.follow(model)
    rule.start_epoch(2, 1, 4)
    own_loss(method, rule, "train", teachers[: len(method.teachers)], model, x, x.flip(3), torch.arange(12))
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_result_keeps_the_small_numbers_of_a_curve(small, store):
    config = small(epochs=1, diagnostics=["information"])
    kept = run(config, (), say=lambda line: None).curve[0]
    saved = checkpoint.load(store / "runs" / config.id / "last.pt")["curve"][0]
    assert 0 < saved["iiw_code"] < 1e-6 and kept["iiw_code"] == pytest.approx(saved["iiw_code"], rel=1e-3, abs=0)
