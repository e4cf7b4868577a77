"""Attacks in the l_inf ball on images in [0, 1]: pure functions that leave no trace on the model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sglrlib.checks import one_of, within


@dataclass(frozen=True)
class PGD:
    """Projected gradient ascent in the l_inf ball (Madry et al. 2018, arXiv 1706.06083); the last iterate is returned.

    eps and step are in pixel units of [0, 1], e.g. 8 / 255. objective is a name of OBJECTIVES. start is 'uniform'
    (in the ball, as PGD-AT), 'gaussian' (0.001 * N(0, 1), as TRADES) or 'none'. Raises UsageError for anything else.
    """

    eps: float
    step: float
    steps: int
    objective: str = "cross_entropy"
    start: str = "uniform"

    def __post_init__(self):
        within("eps", self.eps, 0, 1)
        within("step", self.step, 0, 1)
        within("steps", self.steps, 0)
        one_of("objective", self.objective, OBJECTIVES)
        one_of("start", self.start, ["uniform", "gaussian", "none"])

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """Adversarial images for x (N, C, H, W) in [0, 1] and labels y (N,): within eps of x, in [0, 1], detached.

        The model is attacked in eval mode; its modes, flags and gradients come back as they were.
        """
        low, high = (x - self.eps).clamp(0, 1), (x + self.eps).clamp(0, 1)
        objective = OBJECTIVES[self.objective]
        with untouched(model), torch.enable_grad():
            clean = model(x).detach() if self.objective == "kl" else None
            x_adv = self.first(x, generator).clamp(low, high)
            for _ in range(self.steps):
                x_adv.requires_grad_(True)
                gradient = torch.autograd.grad(objective(model(x_adv), y, clean), x_adv)[0]
                x_adv = (x_adv.detach() + self.step * gradient.sign()).clamp(low, high)
        return x_adv.detach()

    def first(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Where the ascent starts, not yet projected."""
        if self.start == "uniform":
            return x + self.eps * (2 * torch.rand(x.shape, generator=generator, device=x.device) - 1)
        if self.start == "gaussian":
            return x + 0.001 * torch.randn(x.shape, generator=generator, device=x.device)
        return x.clone()


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Within: the model in eval mode, parameters frozen. After: every module's mode and every flag as before."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def cross_entropy(logits: Tensor, y: Tensor, clean: Tensor | None) -> Tensor:
    """Cross-entropy against the labels, summed over the batch."""
    return F.cross_entropy(logits, y, reduction="sum")


def margin(logits: Tensor, y: Tensor, clean: Tensor | None) -> Tensor:
    """CW_inf: the best wrong logit minus the right one, max_{j != y} z_j - z_y (Carlini & Wagner 2017), summed."""
    right = F.one_hot(y, logits.shape[1]).bool()
    return (logits.masked_fill(right, -torch.inf).amax(1) - logits[right]).sum()


def kl(logits: Tensor, y: Tensor, clean: Tensor | None) -> Tensor:
    """KL(f(x) || f(x')) of TRADES (Zhang et al. 2019, arXiv 1901.08573), summed; needs no label."""
    return F.kl_div(logits.log_softmax(1), clean.softmax(1), reduction="sum")


OBJECTIVES: dict[str, Callable] = {"cross_entropy": cross_entropy, "margin": margin, "kl": kl}

# What a reported number may be attacked with: the settings beside eps and step, which belong to the threat model.
ATTACKS: dict[str, dict] = {
    "pgd_10": dict(steps=10),
    "pgd_20": dict(steps=20),
    "cw_inf": dict(steps=30, objective="margin"),
}
