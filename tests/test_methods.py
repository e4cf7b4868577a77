import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sglrlib.method.methods import METHODS, PGDAT, TRADES, Distillation, Standard, adversarial_weights, clean_logits
from sglrlib.method.models import build_model
from sglrlib.recipes import recipe
from sglrlib.training.step import clean_pass_mode


class Lookup(nn.Module):
    """Logits that depend on nothing but which of two images is shown: 0 the clean one, 1 the adversarial."""

    def __init__(self, clean, adv):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([clean, adv]))

    def forward(self, x):
        return self.logits[x[:, 0, 0, 0].long()]


CLEAN, ADV = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
MODEL = Lookup([math.log(0.8), math.log(0.2)], [math.log(0.25), math.log(0.75)])


def criterion(logits, adv, clean):
    return F.cross_entropy(logits, torch.tensor([[0.9, 0.1]]))


def test_pgd_at_loss_by_hand():
    expected = -0.9 * math.log(0.25) - 0.1 * math.log(0.75)
    assert PGDAT().loss(MODEL, CLEAN, ADV, criterion, "none", ()).item() == pytest.approx(expected)


def test_algorithm_1_as_printed_takes_the_loss_on_the_clean_image():
    expected = -0.9 * math.log(0.8) - 0.1 * math.log(0.2)
    assert PGDAT(outer="clean").loss(MODEL, CLEAN, ADV, criterion, "none", ()).item() == pytest.approx(expected)


def test_trades_loss_by_hand():
    natural = -0.9 * math.log(0.8) - 0.1 * math.log(0.2)
    kl = 0.8 * math.log(0.8 / 0.25) + 0.2 * math.log(0.2 / 0.75)
    assert TRADES(beta=6.0).loss(MODEL, CLEAN, ADV, criterion, "none", ()).item() == pytest.approx(natural + 6 * kl)


def test_standard_training_sees_only_the_clean_image():
    expected = -0.9 * math.log(0.8) - 0.1 * math.log(0.2)
    assert Standard().loss(MODEL, CLEAN, ADV, criterion, "none", ()).item() == pytest.approx(expected)


def test_distillation_loss_by_hand():
    """T = 2 takes the square root of the probabilities: the student's 1/4, 3/4 become 1 : sqrt(3)."""
    root = math.sqrt(3)
    student = 1 / (1 + root), root / (1 + root)
    teachers = [
        lambda x: torch.tensor([[0.0, 0.0]]),
        lambda x: torch.tensor([[math.log(9.0), 0.0]]),
    ]  # .5, .5; .75, .25
    soft = [-p * math.log(student[0]) - (1 - p) * math.log(student[1]) for p in (0.5, 0.75)]
    hard = -0.9 * math.log(0.25) - 0.1 * math.log(0.75)
    expected = 0.3 * hard + 0.1 * 4 * soft[0] + 0.6 * 4 * soft[1]
    assert Distillation().loss(MODEL, CLEAN, ADV, criterion, "none", teachers).item() == pytest.approx(expected)


def linear(weight, bias):
    layer = nn.Linear(2, 1)
    layer.weight.data, layer.bias.data = torch.tensor([weight]), torch.tensor([bias])
    return layer


def test_adversarial_weights_by_hand():
    """w = (3, 4), gradient of the loss (0, 2): moved by gamma * |w| = 0.1 * 5 along (0, 1); the bias is not."""
    layer = linear([3.0, 4.0], 1.0)
    with adversarial_weights(layer, lambda: 2 * layer(torch.tensor([0.0, 1.0])).sum(), 0.1):
        assert layer.weight.tolist() == [pytest.approx([3.0, 4.5])] and layer.bias.item() == 1.0
        assert layer.weight.grad is None and layer.weight.requires_grad and torch.is_grad_enabled()
        layer.weight.data += 1  # the update
    assert layer.weight.tolist() == [pytest.approx([4.0, 5.0])]


def test_adversarial_weights_leave_batchnorm_alone_and_gamma_0_does_nothing():
    model = build_model("wrn10_1", 3, (3, 8, 8)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.rand(4, 3, 8, 8)
    with adversarial_weights(model, lambda: model(x).square().mean(), 0.01):
        moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name, p in model.named_parameters() if p.dim() > 1}
    model.load_state_dict(before)
    with adversarial_weights(model, pytest.fail, 0.0):
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", METHODS)
def test_the_criterion_is_called_once_and_gradients_reach_every_parameter(name):
    model = build_model("wrn10_1", 3, (3, 8, 8)).train()
    x, calls = torch.rand(4, 3, 8, 8), []

    def criterion(logits, adv, clean):
        calls.append(clean)
        return F.cross_entropy(logits, torch.full((4, 3), 1 / 3))

    teachers = [build_model("cnn4", 3, (3, 8, 8)).eval() for _ in METHODS[name].teachers]
    METHODS[name]().loss(model, x, x + 0.01, criterion, "train", teachers).backward()
    assert len(calls) == 1
    assert calls[0].shape == (4, 3)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(p.grad is None for teacher in teachers for p in teacher.parameters())
    assert model.training


@pytest.mark.parametrize(("mode", "moves"), [("train", True), ("eval", False), ("none", False)])
def test_the_clean_pass_moves_batchnorm_only_in_train_mode(mode, moves):
    model = build_model("wrn10_1", 3, (3, 8, 8)).train()
    before = model.bn.running_mean.clone()
    logits = clean_logits(model, torch.rand(4, 3, 8, 8), mode)
    assert (logits is None) == (mode == "none")
    assert torch.equal(model.bn.running_mean, before) != moves
    assert model.training


@pytest.mark.parametrize(
    ("labels", "clean_pass", "before", "after"),
    [
        ("self_guided", "needed", "none", "train"),
        ("self_guided", "always", "none", "train"),
        ("self_guided", "eval", "none", "eval"),
        ("hard", "needed", "none", "none"),
        ("hard", "always", "none", "train"),  # the control: AT with the release's extra BatchNorm updates
        ("hard", "eval", "none", "none"),
    ],
)
def test_when_the_clean_pass_is_made(labels, clean_pass, before, after):
    config = recipe("digits", labels=labels, clean_pass=clean_pass)
    first = config.first_refined
    assert [clean_pass_mode(config, epoch) for epoch in (first - 1, first)] == [before, after]
