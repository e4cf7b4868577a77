"""Checks that suspect a model: an attack that fails may have been fooled instead of withstood."""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sglrlib.device import exact_fp32
from sglrlib.judging.evaluate import are_probabilities, correct
from sglrlib.method.attacks import PGD, untouched
from sglrlib.method.autoattack import Square


@dataclass(frozen=True)
class Check:
    """One check: what should hold, whether it does, and what was measured."""

    name: str
    holds: bool
    measured: str

    @property
    def verdict(self) -> str:
        return "ok" if self.holds else "SUSPICIOUS"

    def __str__(self):
        return f"{self.verdict:10}  {self.name}: {self.measured}"


def suspect(model: nn.Module, x: Tensor, y: Tensor, eps: float, *, queries: int = 500) -> list[Check]:
    """Five checks of a model on images x (N, C, H, W) in [0, 1] with labels y (N,), for a budget eps in [0, 1].

    After Carlini et al. 2019 (arXiv 1902.06705) and the flags of fra31/auto-attack. White box is PGD-20 on the model as
    it is, black box Square with that many queries. A few hundred images are enough. Where the first check fails,
    the others, which need logits, are left out.
    """
    with untouched(model), exact_fp32(), torch.no_grad():
        outputs = [model(x), model(x)]
    raw = not are_probabilities(outputs[0])
    checks = [Check("the outputs are raw logits", raw, f"from {outputs[0].min():.3g} to {outputs[0].max():.3g}")]
    if not raw:
        return checks
    return [
        *checks,
        deterministic(*outputs),
        gradients(model, x, y),
        black_box(model, x, y, eps, queries),
        growing_budget(model, x, y, eps),
    ]


def deterministic(first: Tensor, second: Tensor) -> Check:
    """Two passes over the same images give the same logits."""
    difference = (first - second).abs().max().item()
    return Check("the model is deterministic", difference == 0, f"two passes differ by at most {difference:.3g}")


def gradients(model: nn.Module, x: Tensor, y: Tensor) -> Check:
    """The gradient of the loss at the image is there for nearly all images: at most 5 % vanish in fp32."""
    with untouched(model), exact_fp32(), torch.enable_grad():
        images = x.clone().requires_grad_(True)
        loss = F.cross_entropy(model(images), y, reduction="sum")
        gradient = torch.autograd.grad(loss, images)[0] if loss.requires_grad else torch.zeros_like(x)
    share = (gradient.flatten(1).abs().amax(1) == 0).double().mean().item()
    return Check("gradients do not vanish", share <= 0.05, f"they are zero for {share:.1%} of {len(x)} images")


def black_box(model: nn.Module, x: Tensor, y: Tensor, eps: float, queries: int) -> Check:
    """Square, which sees no gradient, breaks no more images than PGD-20 does (beyond two standard errors)."""
    natural = correct(model, x, y, speed="plain")
    white = natural & correct(model, x, y, PGD(eps, eps / 4, 20), speed="plain")
    black = natural & correct(model, x, y, Square(eps, iterations=queries), speed="plain")
    gained = white.double() - black.double()  # 1: broken by the black box only
    holds = gained.sum().item() <= 2 * gained.square().sum().sqrt().item()
    measured = f"{white.double().mean():.1%} withstand PGD-20, {black.double().mean():.1%} Square"
    return Check("no black-box attack beats the white-box one", holds, measured)


def growing_budget(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Check:
    """Robust accuracy falls with the budget, to at most 2 % where every image can become any other (eps = 1)."""
    budgets = [eps, (2 * eps + 1) / 3, 1.0]
    left = [correct(model, x, y, PGD(b, b / 10, 40), speed="plain").double().mean().item() for b in budgets]
    falls = all(later <= earlier + 0.02 for earlier, later in pairwise(left))
    measured = ", ".join(f"{share:.1%} at {255 * b:.0f}/255" for b, share in zip(budgets, left, strict=True))
    return Check("accuracy falls to about zero as the budget grows", falls and left[-1] <= 0.02, measured)
