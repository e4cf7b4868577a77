import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sglrlib.checks import UsageError
from sglrlib.method.attacks import ATTACKS, EXAMPLES, OBJECTIVES, PGD, Transfer, chain, margin, named_attack
from sglrlib.method.models import build_model


@pytest.fixture
def model():
    net = build_model("wrn10_1", 10, (3, 16, 16)).train()
    net.blocks[0].eval()  # a mode of its own
    net.fc.bias.requires_grad_(False)
    net.fc.weight.grad = torch.ones_like(net.fc.weight)
    return net


X = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
Y = torch.arange(6)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("start", ["uniform", "gaussian", "none"])
def test_stays_in_the_ball_and_leaves_no_trace(model, generator, objective, start):
    state = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    x = X.clone()

    x_adv = PGD(8 / 255, 3 / 255, 4, objective, start)(model, x, Y, generator)

    assert (x_adv - X).abs().max() <= 8 / 255 + 1e-6
    assert 0 <= x_adv.min() and x_adv.max() <= 1
    assert not x_adv.requires_grad
    assert torch.equal(x, X)
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert torch.equal(model.fc.weight.grad, torch.ones_like(model.fc.weight))
    assert all(p.grad is None for name, p in model.named_parameters() if name != "fc.weight")
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_traces_are_removed_after_an_error_too(model, generator):
    with pytest.raises(RuntimeError):
        PGD(0.1, 0.1, 1)(model, X[:, :2], Y, generator)
    assert model.training
    assert model.fc.weight.requires_grad


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_raises_its_objective(model, generator, objective):
    model.eval()
    clean = model(X).detach()
    rises = []
    for steps in (0, 10):
        x_adv = PGD(8 / 255, 2 / 255, steps, objective)(model, X, Y, generator.manual_seed(0))
        rises.append(OBJECTIVES[objective](model(x_adv), Y, clean) - OBJECTIVES[objective](clean, Y, clean))
    assert rises[1] > 3 * abs(rises[0])


def test_one_step_from_the_image_is_the_sign_of_the_gradient(generator):
    weights = torch.tensor([[1.0, -2.0, 0.5, 3.0], [0.0, 0.0, 0.0, 0.0]])
    linear = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    linear[1].weight.data = weights
    x = torch.full((1, 1, 2, 2), 0.5)
    moved = PGD(0.3, 0.1, 1, start="none")(linear, x, torch.tensor([0]), generator)
    assert torch.allclose(moved.flatten(), torch.tensor([0.4, 0.6, 0.4, 0.4]))
    far = PGD(0.3, 0.1, 9, start="none")(linear, x, torch.tensor([0]), generator)
    assert torch.allclose(far.flatten(), torch.tensor([0.2, 0.8, 0.2, 0.2]))


def test_objectives_by_hand():
    logits, y = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]]), torch.tensor([0, 2])
    assert margin(logits, y, None).item() == pytest.approx((1 - 2) + (3 - 1))
    adv, clean = torch.log(torch.tensor([[0.25, 0.75]])), torch.log(torch.tensor([[0.5, 0.5]]))
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)  # KL(clean || adv)
    assert OBJECTIVES["kl"](adv, None, clean).item() == pytest.approx(expected)


def test_random_start_comes_from_the_generator_alone(model):
    def attacked(seed, disturbance):
        torch.manual_seed(disturbance)
        return PGD(8 / 255, 2 / 255, 2)(model, X, Y, torch.Generator().manual_seed(seed))

    assert torch.equal(attacked(0, 1), attacked(0, 2))
    assert not torch.equal(attacked(0, 1), attacked(1, 1))


@pytest.mark.parametrize(
    "wrong", [dict(eps=2), dict(steps=-1), dict(objective="ce"), dict(start="random"), dict(step=float("nan"))]
)
def test_refuses_what_cannot_be_right(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        PGD(**(dict(eps=0.1, step=0.1, steps=1) | wrong))


def test_named_attacks():
    assert named_attack("pgd_20", 0.1, 0.02) == PGD(0.1, 0.02, 20)
    assert named_attack("pgd_7", 0.1, 0.02).steps == 7
    assert named_attack("pgd_20_step_0.765", 0.1, 0.02).step == pytest.approx(0.003)
    assert named_attack("cw_inf", 0.1, 0.02) == PGD(0.1, 0.02, 30, objective="margin")
    assert named_attack("autoattack", 0.1, 0.02).part == "square"
    assert len(EXAMPLES) >= len(ATTACKS) and all(named_attack(name, 0.1, 0.02).eps == 0.1 for name in EXAMPLES)


@pytest.mark.parametrize(("wrong", "right"), [("pgd20", "pgd_20"), ("autoatack", "autoattack"), ("cw", "cw_inf")])
def test_an_unknown_attack_suggests_the_nearest(wrong, right):
    with pytest.raises(UsageError, match=f"attack = '{wrong}' is not known. Did you mean '{right}'"):
        chain(wrong)


def test_autoattack_is_a_cascade_and_the_others_are_not():
    assert chain("autoattack") == ["natural", "apgd_ce", "apgd_t", "fab_t", "autoattack"]
    assert chain("square") == ["natural", "square"]
    assert chain("natural") == ["natural"]


def test_the_penalty_is_maximised_beside_the_objective(model, generator):
    """A penalty of -10 times the objective turns the ascent around; its weight is against the objective's."""
    x_adv = {}
    for weight in (1, 100):
        attack = PGD(8 / 255, 2 / 255, 5, start="none", weight=weight)
        x_adv[weight] = attack(model, X, Y, generator, lambda z: -10 * F.cross_entropy(z, Y, reduction="none"))
    loss = {name: F.cross_entropy(model.eval()(x), Y).item() for name, x in (x_adv | dict(clean=X)).items()}
    assert loss[1] < loss["clean"] < loss[100]


def test_train_mode_moves_the_statistics_and_eval_mode_does_not(model, generator):
    model.train()
    before = model.bn.running_mean.clone()
    PGD(8 / 255, 2 / 255, 1)(model, X, Y, generator)
    assert torch.equal(model.bn.running_mean, before)
    PGD(8 / 255, 2 / 255, 1, mode="train")(model, X, Y, generator)
    assert not torch.equal(model.bn.running_mean, before)


def test_a_transfer_attack_sees_only_its_source(model, generator):
    source = build_model("cnn4", 10, (3, 16, 16), seed=3)
    attack = PGD(8 / 255, 2 / 255, 3)
    moved = Transfer(attack, source)(model, X, Y, generator.manual_seed(0))
    assert torch.equal(moved, attack(source, X, Y, generator.manual_seed(0)))
    assert Transfer(attack, source).eps == attack.eps
