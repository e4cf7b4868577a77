import math

import pytest
import torch
from torch import nn

from sglrlib.config import recipe
from sglrlib.methods import METHODS, PGDAT, TRADES, clean_logits
from sglrlib.models import build_model
from sglrlib.train import clean_pass_mode


class Lookup(nn.Module):
    """Logits that depend on nothing but which of two images is shown: 0 the clean one, 1 the adversarial."""

    def __init__(self, clean, adv):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([clean, adv]))

    def forward(self, x):
        return self.logits[x[:, 0, 0, 0].long()]


CLEAN, ADV = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
MODEL = Lookup([math.log(0.8), math.log(0.2)], [math.log(0.25), math.log(0.75)])


def target(adv, clean):
    return torch.tensor([[0.9, 0.1]])


def test_pgd_at_loss_by_hand():
    expected = -0.9 * math.log(0.25) - 0.1 * math.log(0.75)
    assert PGDAT().loss(MODEL, CLEAN, ADV, target, "none").item() == pytest.approx(expected)


def test_algorithm_1_as_printed_takes_the_loss_on_the_clean_image():
    expected = -0.9 * math.log(0.8) - 0.1 * math.log(0.2)
    assert PGDAT(outer="clean").loss(MODEL, CLEAN, ADV, target, "none").item() == pytest.approx(expected)


def test_trades_loss_by_hand():
    natural = -0.9 * math.log(0.8) - 0.1 * math.log(0.2)
    kl = 0.8 * math.log(0.8 / 0.25) + 0.2 * math.log(0.2 / 0.75)
    assert TRADES(beta=6.0).loss(MODEL, CLEAN, ADV, target, "none").item() == pytest.approx(natural + 6 * kl)


@pytest.mark.parametrize("name", METHODS)
def test_targets_are_asked_once_and_gradients_reach_every_parameter(name):
    model = build_model("wrn10_1", 3, (3, 8, 8)).train()
    x, calls = torch.rand(4, 3, 8, 8), []

    def targets(adv, clean):
        calls.append(clean)
        return torch.full((4, 3), 1 / 3)

    METHODS[name]().loss(model, x, x + 0.01, targets, "train").backward()
    assert len(calls) == 1
    assert calls[0].shape == (4, 3) and not calls[0].requires_grad
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
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
    assert [clean_pass_mode(config, refining) for refining in (False, True)] == [before, after]
