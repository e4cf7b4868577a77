"""Attacks in the l_inf ball on images in [0, 1]: pure functions that leave no trace on the model."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sglrlib.checks import one_of, within
from sglrlib.method.autoattack import Part, Square


@dataclass(frozen=True)
class PGD:
    """Projected gradient ascent in the l_inf ball (Madry et al. 2018, arXiv 1706.06083); the last iterate is returned.

    eps and step are in pixel units of [0, 1], e.g. 8 / 255. objective is a name of OBJECTIVES, weight its weight
    against a penalty. start is 'uniform' (in the ball, as PGD-AT), 'gaussian' (0.001 * N(0, 1), as TRADES) or 'none'.
    The start is clamped to [0, 1], which trades.py and memorization-AT leave out. mode 'train' attacks the model in
    train mode, as some repositories do in training, and so moves its BatchNorm statistics: the one trace that an attack
    can leave. They are moved once a step; locuslab/robust_overfitting moves them once more, with the result.
    Some repositories keep an image as it is once it is misclassified, which leaves up to 0.6 points less accuracy.
    Raises UsageError for anything else.
    """

    eps: float
    step: float
    steps: int
    objective: str = "cross_entropy"
    start: str = "uniform"
    mode: str = "eval"
    weight: float = 1.0

    def __post_init__(self):
        within("eps", self.eps, 0, 1)
        within("step", self.step, 0, 1)
        within("steps", self.steps, 0)
        one_of("objective", self.objective, OBJECTIVES)
        one_of("start", self.start, ["uniform", "gaussian", "none"])
        one_of("mode", self.mode, ["eval", "train"])

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator, penalty: Callable | None = None
    ) -> Tensor:
        """Adversarial images for x (N, C, H, W) in [0, 1] and labels y (N,): within eps of x, in [0, 1], detached.

        penalty (logits -> a number a sample) is maximised beside the objective. The model's modes, flags and gradients
        come back as they were.
        """
        low, high = (x - self.eps).clamp(0, 1), (x + self.eps).clamp(0, 1)
        objective = OBJECTIVES[self.objective]
        with untouched(model, self.mode), torch.enable_grad():
            clean = model(x).detach() if self.objective == "kl" else None
            x_adv = self.first(x, generator).clamp(low, high)
            for _ in range(self.steps):
                x_adv.requires_grad_(True)
                logits = model(x_adv)
                value = self.weight * objective(logits, y, clean)
                gradient = torch.autograd.grad(value + penalty(logits).sum() if penalty else value, x_adv)[0]
                x_adv = (x_adv.detach() + self.step * gradient.sign()).clamp(low, high)
        return x_adv.detach()

    def first(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Where the ascent starts, not yet projected."""
        if self.start == "uniform":
            return x + self.eps * (2 * torch.rand(x.shape, generator=generator, device=x.device) - 1)
        if self.start == "gaussian":
            return x + 0.001 * torch.randn(x.shape, generator=generator, device=x.device)
        return x.clone()


@dataclass(frozen=True)
class Transfer:
    """A black-box attack: the adversarial images of an attack on another network, the source, in eval mode."""

    attack: Callable
    source: nn.Module

    @property
    def eps(self) -> float:
        return self.attack.eps

    @property
    def batch_size(self) -> int:
        return getattr(self.attack, "batch_size", 0)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """As the attack, on the source instead of model; the source is moved to where the images are."""
        return self.attack(self.source.to(x.device), x, y, generator)


@dataclass(frozen=True)
class Own:
    """A registered function attack(model, x, y, eps, step, generator) with its budget and step size, in [0, 1]."""

    function: Callable
    eps: float
    step: float

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """What the function returns, detached; the model is in eval mode, its weights frozen, gradients on."""
        how = dict(model=model, x=x, y=y, eps=self.eps, step=self.step, generator=generator)
        with untouched(model), torch.enable_grad():
            return self.function(**how).detach()


@contextmanager
def untouched(model: nn.Module, mode: str = "eval") -> Iterator[None]:
    """Within: the model in a mode, parameters frozen. After: every module's mode and every flag as before."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.train(mode == "train").requires_grad_(False)
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
    right = y[:, None]
    return (logits.scatter(1, right, -torch.inf).amax(1) - logits.gather(1, right)[:, 0]).sum()


def kl(logits: Tensor, y: Tensor, clean: Tensor | None) -> Tensor:
    """KL(f(x) || f(x')) of TRADES (Zhang et al. 2019, arXiv 1901.08573), summed; needs no label."""
    return F.kl_div(logits.log_softmax(1), clean.softmax(1), reduction="sum")


OBJECTIVES: dict[str, Callable] = {"cross_entropy": cross_entropy, "margin": margin, "kl": kl}

# What a number can be reported under: a pattern of names, and the attack it stands for with a budget and a step size
# in [0, 1]. 'pgd_20_step_0.765' is the 0.003 of the released pgd_attack.py, in 1/255.
ATTACKS: dict[str, Callable] = {
    r"pgd_(\d{1,4})": lambda eps, step, steps: PGD(eps, step, int(steps)),
    r"pgd_(\d{1,4})_step_(\d+\.?\d*)": lambda eps, _, steps, step: PGD(eps, float(step) / 255, int(steps)),
    "cw_inf": lambda eps, step: PGD(eps, step, 30, objective="margin"),
    "square": lambda eps, _: Square(eps),
    r"square_(\d{1,5})": lambda eps, _, queries: Square(eps, iterations=int(queries)),
    "apgd_ce": lambda eps, _: Part(eps, "apgd_ce"),
    "apgd_t": lambda eps, _: Part(eps, "apgd_t", cascade="apgd_t"),
    "fab_t": lambda eps, _: Part(eps, "fab_t", cascade="fab_t"),
    "autoattack": lambda eps, _: Part(eps, "square", cascade="autoattack"),
}
# AutoAttack standard is a cascade: each part is given the images that withstood the one before.
AFTER = {"apgd_t": "apgd_ce", "fab_t": "apgd_t", "autoattack": "fab_t"}
EXAMPLES = ["pgd_10", "pgd_20", "pgd_20_step_0.765", "square_500", *(name for name in ATTACKS if name.isidentifier())]


def named_attack(name: str, eps: float, step: float) -> Callable:
    """The attack of a name such as 'pgd_20' or 'autoattack' (then its last part), for a budget and step in [0, 1].

    Raises UsageError for an unknown name.
    """
    for pattern, build in ATTACKS.items():
        if match := re.fullmatch(pattern, name):
            return build(eps, step, *match.groups())
    one_of("attack", name, EXAMPLES)


def chain(name: str) -> list[str]:
    """The flags that an attack's are computed from, in order, itself last: 'natural' first, then what comes before."""
    if name == "natural":
        return [name]
    named_attack(name, 0, 0)
    return [*chain(AFTER.get(name, "natural")), name]
