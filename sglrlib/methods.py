"""Methods: which attack a training step makes and what loss it then minimises, for any label rule."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sglrlib.checks import one_of, within

Targets = Callable[[Tensor, Tensor | None], Tensor]  # (adversarial logits, clean logits or None) -> targets (B, K)


@dataclass(frozen=True)
class PGDAT:
    """PGD adversarial training (Madry et al. 2018): cross-entropy of the adversarial images against the targets.

    outer='clean' takes the loss on the clean images instead, as Algorithm 1 prints it.
    """

    title: ClassVar[str] = "PGD-AT"
    objective: ClassVar[str] = "cross_entropy"
    start: ClassVar[str] = "uniform"
    outer: str = "adversarial"

    def __post_init__(self):
        one_of("outer", self.outer, ["adversarial", "clean"])

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, targets: Targets, clean_pass: str) -> Tensor:
        """The batch's mean loss, differentiable in the parameters; model is in train mode.

        x, x_adv (B, C, H, W). targets is called once. clean_pass: 'none', 'train' or 'eval', see clean_logits.
        """
        adv = model(x_adv)
        clean = clean_logits(model, x, clean_pass)
        target = targets(adv, clean)
        return F.cross_entropy(adv if self.outer == "adversarial" else model(x), target)


@dataclass(frozen=True)
class TRADES:
    """CE(f(x), target) + beta * KL(f(x) || f(x')), the attack maximising the KL (Zhang et al. 2019, arXiv 1901.08573).

    Follows yaodongyu/TRADES trades.py: gradients flow through both arguments of the KL, which is summed over classes
    and averaged over the batch. The label rule refines the target of the natural term. The clean logits come from
    the train-mode pass that the loss needs anyway, whatever clean_pass says.
    """

    title: ClassVar[str] = "TRADES"
    objective: ClassVar[str] = "kl"
    start: str = "gaussian"
    beta: float = 6.0

    def __post_init__(self):
        one_of("start", self.start, ["gaussian", "uniform"])
        within("beta", self.beta, 0)

    def loss(self, model: nn.Module, x: Tensor, x_adv: Tensor, targets: Targets, clean_pass: str) -> Tensor:
        """As PGDAT.loss."""
        clean, adv = model(x), model(x_adv)
        natural = F.cross_entropy(clean, targets(adv.detach(), clean.detach()))
        robust = F.kl_div(adv.log_softmax(1), clean.softmax(1), reduction="batchmean")
        return natural + self.beta * robust


def clean_logits(model: nn.Module, x: Tensor, mode: str) -> Tensor | None:
    """Logits (B, K) of the clean images without gradient, or None for mode 'none'.

    'train' runs in train mode, as the release does: the BatchNorm statistics move a second time in the step, towards
    the clean images. 'eval' leaves them alone. The model is in train mode before and after.
    """
    if mode == "none":
        return None
    model.train(mode == "train")
    with torch.no_grad():
        logits = model(x)
    model.train()
    return logits


METHODS = {"pgd_at": PGDAT, "trades": TRADES}
