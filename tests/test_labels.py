"""Targets against numbers worked out by hand, in every reading of the paper."""

import math

import pytest
import torch
import torch.nn.functional as F

from sglrlib.checks import UsageError
from sglrlib.method.labels import LABELS, VARIANTS, Ensemble, Hard, Rectified, SelfGuided, Smooth

Y = torch.tensor([1, 0])  # the sample under test is number 1, with label 0
ONE = torch.tensor([1])

# Three updates of sample 1 (two classes): probabilities on the clean and on the adversarial image.
CLEAN = [(0.5, 0.5), (0.6, 0.4), (0.1, 0.9)]
ADV = [(0.25, 0.75), (0.2, 0.8), (0.1, 0.9)]
# Hence 0.2 * clean + 0.8 * adv = (0.3, 0.7), (0.28, 0.72), (0.1, 0.9).


def started(rule):
    """The rule in an epoch with refinement."""
    rule.start_epoch(2, 1, 3)
    return rule


def targets_of(rule):
    out = []
    for clean, adv in zip(CLEAN, ADV, strict=True):
        logits = [torch.tensor([p]).log() for p in (adv, clean)]
        out.append(started(rule).target(ONE, *logits)[0])
        assert torch.equal(rule.target(ONE, *logits)[0], out[-1])  # asked twice in a step, it is the same
        rule.update()
    return torch.stack(out)


@pytest.mark.parametrize(
    ("variant", "r", "expected"),
    [
        # p: 1 -> .9 + .03 = .93 -> .837 + .028 = .865 -> .7785 + .01 = .7885; the target is p
        ("release", 1.0, [(0.93, 0.07), (0.865, 0.135), (0.7885, 0.2115)]),
        # the same p, mixed half and half with the label
        ("equation_1", 0.5, [(0.965, 0.035), (0.9325, 0.0675), (0.89425, 0.10575)]),
        # p: 0 -> (.03, .07) -> (.055, .135); the target mixes in the p of before, so its mass is below 1
        ("algorithm_1", 0.5, [(0.5, 0.0), (0.515, 0.035), (0.5275, 0.0675)]),
        # p: (.03, .07) -> (.055, .135) -> (.0595, .2115), itself the target
        ("algorithm_1_printed", 1.0, [(0.03, 0.07), (0.055, 0.135), (0.0595, 0.2115)]),
    ],
)
def test_three_updates_by_hand(variant, r, expected):
    chosen = {k: v for k, v in VARIANTS[variant].items() if k in ("initial", "average")}
    rule = SelfGuided(Y, 2, r=r, alpha=0.9, lam=0.2, **chosen)
    assert torch.allclose(targets_of(rule), torch.tensor(expected), atol=1e-6)


def test_release_is_the_default_and_forgets_the_label():
    assert VARIANTS["release"].items() <= dict(r=1.0, initial="one_hot", average="new").items()
    rule = SelfGuided(Y, 2)
    wrong = torch.tensor([[-50.0, 50.0]])
    for _ in range(11):  # refinements up to epoch 100 of the release
        target = started(rule).target(ONE, wrong, wrong)
        rule.update()
    assert target[0, 0].item() == pytest.approx(0.9**11, abs=1e-6)


def test_mass_from_zero_is_one_minus_alpha_to_the_t():
    rule = SelfGuided(Y, 2, initial="zero")
    masses = targets_of(rule).sum(1)
    assert masses.tolist() == pytest.approx([1 - 0.9**t for t in (1, 2, 3)], abs=1e-6)


@pytest.mark.parametrize("r", [0.0, 0.3, 1.0])
def test_guiding_by_the_present_prediction_only_scales_cross_entropy(r):
    """alpha = lam = 0: gradient (1-r)(p - y) on the logits, so none at all at r = 1."""
    torch.manual_seed(0)
    logits = torch.randn(2, 4, requires_grad=True)
    y = torch.tensor([3, 1])
    rule = SelfGuided(y, 4, r=r, alpha=0.0, lam=0.0)
    (2 * started(rule)(logits, logits, torch.zeros(2, 4), torch.arange(2))).backward()
    expected = (1 - r) * (logits.detach().softmax(1) - F.one_hot(y, 4))
    assert torch.allclose(logits.grad, expected, atol=1e-6)


def test_before_refinement_the_target_is_the_label_and_the_table_rests():
    rule = SelfGuided(Y, 2)
    before = rule.p.clone()
    rule.start_epoch(1, 2, 3)
    assert rule.target(ONE, torch.zeros(1, 2), None).tolist() == [[1.0, 0.0]]
    rule.update()
    assert torch.equal(rule.p, before)


def test_only_the_batch_is_updated_and_the_table_is_saved():
    rule = SelfGuided(Y, 2)
    targets_of(rule)
    assert rule.p[0].tolist() == [0.0, 1.0]
    fresh = SelfGuided(Y, 2)
    fresh.load_state_dict(rule.state_dict())
    assert torch.equal(fresh.p, rule.p)


def test_both_forms_of_label_smoothing():
    y = torch.tensor([2])
    others = Smooth(y, 5, smoothing=0.2, form="others").target(torch.tensor([0]), None, None)
    everyone = Smooth(y, 5, smoothing=0.2, form="all").target(torch.tensor([0]), None, None)
    assert torch.allclose(others, torch.tensor([[0.05, 0.05, 0.8, 0.05, 0.05]]))
    assert torch.allclose(everyone, torch.tensor([[0.04, 0.04, 0.84, 0.04, 0.04]]))


@pytest.mark.parametrize("name", LABELS)
def test_every_rule_gives_a_float_target_a_sample(name):
    rule = started(LABELS[name](torch.arange(6) % 3, 3))
    target = rule.target(torch.tensor([4, 0]), torch.randn(2, 3), torch.randn(2, 3))
    assert target.shape == (2, 3)
    assert target.dtype == torch.float32
    assert torch.allclose(target.sum(1), torch.ones(2))
    assert issubclass(LABELS[name], Hard)


@pytest.mark.parametrize(
    ("rule", "wrong", "said"),
    [
        (SelfGuided, dict(r=1.5), "r = 1.5 is out of range: expected from 0 to 1; the nearest is 1"),
        (SelfGuided, dict(initial="onehot"), "Did you mean 'one_hot'"),
        (Smooth, dict(smoothing=-0.1), "the nearest is 0"),
        (Smooth, dict(form="other"), "Did you mean 'others'"),
        (Ensemble, dict(alpha=1.0), "alpha = 1.0 keeps the average at zero"),
        (Ensemble, dict(te_weight=-1), "te_weight = -1 is out of range"),
        (Rectified, dict(tau_last=0), "tau_last = 0 is out of range"),
    ],
)
def test_options_out_of_range(rule, wrong, said):
    with pytest.raises(UsageError, match=said):
        rule(Y, 2, **wrong)


def test_temporal_ensembling_by_hand():
    rule = Ensemble(Y, 2, te_weight=300.0, alpha=0.9, ramp_end=0.75)
    rule.start_epoch(89, 90, 200)
    assert rule.penalty(ONE, pytest.fail) is None
    weights = []
    for epoch in (90, 120, 150, 200):  # u = 0, 1/2, 1, 1
        rule.start_epoch(epoch, 90, 200)
        weights.append(rule.weight.item())
    assert weights == pytest.approx([300 * math.exp(-5), 300 * math.exp(-1.25), 300, 300])

    # p: 0 -> (.05, .05), divided by its sum (.5, .5); then (.045 + .08, .045 + .02), divided (.658, .342)
    logits = torch.tensor([[0.9, 0.1]]).log()
    for clean, guide in (((0.5, 0.5), 0.5), ((0.8, 0.2), 0.125 / 0.19)):
        penalty = rule.penalty(ONE, lambda p=clean: torch.tensor([p]).log())
        expected = 300 * ((0.9 - guide) ** 2 + (0.1 - (1 - guide)) ** 2) / 2
        assert penalty(logits).tolist() == pytest.approx([expected], rel=1e-5)
        loss = rule(logits, None, None, ONE, penalty)
        assert loss.item() == pytest.approx(expected - math.log(0.9), rel=1e-5)
    assert rule.p[0].tolist() == [0.0, 0.0]  # the other sample


def test_annealing_self_distillation_by_hand():
    """Two samples with label 0, one that the teacher gets right and one that it gets wrong."""
    rule = Rectified(torch.zeros(2, dtype=torch.long), 2)
    for epoch, tau, mix in ((1, 2.5, 0.7), (21, 2.25, 0.825), (40, 2.000771, 0.949615)):  # cos(39/40 pi) = -0.996917
        rule.start_epoch(epoch, 36, 40)
        assert rule.now.tolist() == pytest.approx([tau, mix], abs=1e-6)
    # At tau 2.25, mix .825: q = (.6, .4) gives w = .825, y = .825 q + .175 (1, 0) = (.67, .33);
    # q = (.3, .7) gives w = .825 - .4 = .425, y = (.7025, .2975): the label keeps the most
    rule.start_epoch(21, 36, 40)
    taught = 2.25 * torch.tensor([[0.6, 0.4], [0.3, 0.7]]).log()
    logits = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log()
    penalty = rule.penalty(torch.arange(2), lambda model: taught)
    expected = [-0.67 * math.log(0.9) - 0.33 * math.log(0.1), -0.7025 * math.log(0.2) - 0.2975 * math.log(0.8)]
    hard = -logits[:, 0]
    assert (hard + penalty(logits)).tolist() == pytest.approx(expected, rel=1e-5)
    assert rule(logits, None, None, torch.arange(2), penalty).item() == pytest.approx(sum(expected) / 2, rel=1e-5)


def test_the_teacher_is_the_moving_average_of_weights_and_statistics():
    model = torch.nn.BatchNorm1d(1)
    rule = Rectified(Y, 2, ema_decay=0.9)
    rule.follow(model)
    torch.nn.init.constant_(model.weight, 2.0)
    model.running_mean.fill_(10.0)
    for _ in range(2):
        rule.follow(model)
    assert rule.teacher.weight.item() == pytest.approx(0.81 * 1 + 0.19 * 2)
    assert rule.teacher.running_mean.item() == pytest.approx(1.9)
    assert not rule.teacher.training and not any(p.requires_grad for p in rule.teacher.parameters())
    assert "teacher.running_mean" in rule.state_dict()  # so it survives a resume
