"""Methods: which attack a training step makes and what loss it then minimises, for any label rule."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sglrlib.checks import one_of, within

# (logits that are trained, adversarial logits, clean logits or None) -> the batch's mean loss: a label rule
Criterion = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class Method:
    """What a training step attacks and minimises. A subclass is a frozen dataclass whose fields are its options."""

    title: ClassVar[str]  # as in the paper's tables
    selected_by: ClassVar[str] = "robust"  # the accuracy that names the best epoch, or 'natural'
    teachers: ClassVar[tuple[str, ...]] = ()  # methods of the runs that this one learns from
    # The training attack: its objective ('' for no attack), its start, the objective's weight against a penalty.
    objective: ClassVar[str] = "cross_entropy"
    start: ClassVar[str] = "uniform"
    beta: ClassVar[float] = 1.0

    def loss(
        self, model: nn.Module, x: Tensor, x_adv: Tensor, criterion: Criterion, clean_pass: str, teachers: Sequence
    ) -> Tensor:
        """The batch's mean loss, differentiable in the parameters; model is in train mode.

        x, x_adv (B, C, H, W). criterion is called once. clean_pass: 'none', 'train' or 'eval', see clean_logits.
        teachers: a network in eval mode for each name in self.teachers.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Standard(Method):
    """Training on clean images, without any attack."""

    title = "Standard"
    selected_by = "natural"
    objective = ""

    def loss(self, model, x, x_adv, criterion, clean_pass, teachers) -> Tensor:
        logits = model(x)
        return criterion(logits, logits, logits)


@dataclass(frozen=True)
class PGDAT(Method):
    """PGD adversarial training (Madry et al. 2018, arXiv 1706.06083): the criterion on the adversarial images.

    outer='clean' takes the loss on the clean images instead, as Algorithm 1 prints it. locuslab/robust_overfitting
    train_cifar.py attacks in train mode (attack_mode) and normalises its inputs (normalise).
    """

    title = "PGD-AT"
    outer: str = "adversarial"

    def __post_init__(self):
        one_of("outer", self.outer, ["adversarial", "clean"])

    def loss(self, model, x, x_adv, criterion, clean_pass, teachers) -> Tensor:
        adv = model(x_adv)
        clean = clean_logits(model, x, clean_pass)
        return criterion(adv if self.outer == "adversarial" else model(x), adv, clean)


@dataclass(frozen=True)
class TRADES(Method):
    """CE(f(x), target) + beta * KL(f(x) || f(x')), the attack maximising the KL (Zhang et al. 2019, arXiv 1901.08573).

    Follows yaodongyu/TRADES trades.py: gradients flow through both arguments of the KL, which is summed over classes
    and averaged over the batch. The label rule is applied to the natural term. The clean logits come from the
    train-mode pass that the loss needs anyway, whatever clean_pass says. That repository also trains with weight
    decay 2e-4, eps 0.031, steps of 0.007, and stops one epoch after the learning rate's first drop. It also
    passes x in train mode a second time, after x': with BatchNorm, its running statistics see more of the clean images.
    """

    title = "TRADES"
    objective = "kl"
    start: str = "gaussian"
    beta: float = 6.0

    def __post_init__(self):
        one_of("start", self.start, ["gaussian", "uniform"])
        within("beta", self.beta, 0)

    def loss(self, model, x, x_adv, criterion, clean_pass, teachers) -> Tensor:
        clean, adv = model(x), model(x_adv)
        robust = F.kl_div(adv.log_softmax(1), clean.softmax(1), reduction="batchmean")
        return criterion(clean, adv.detach(), clean.detach()) + self.beta * robust


@dataclass(frozen=True)
class Distillation(Method):
    """KD-AT (Chen et al., ICLR 2021): on x', the criterion and, at a temperature T, T^2 times the cross-entropy to a
    naturally and to an adversarially trained teacher; the criterion has the weight that they leave.

    Follows VITA-Group/Alleviate-Robust-Overfitting utils.py: cross-entropy, not KL; the teachers see x' in eval mode
    and are the best checkpoints of their runs (best natural, best robust accuracy). That repository attacks in train
    mode and drops the learning rate at 50 and 150 of 200 epochs; the rows KD-AT and KD-SWA keep eval mode and the drops
    of all other rows (attack_mode, lr_drops). The student's seed is the teachers'.
    """

    title = "KD-AT"
    teachers = ("standard", "pgd_at")
    natural_weight: float = 0.1
    robust_weight: float = 0.6
    temperature: float = 2.0

    def __post_init__(self):
        within("natural_weight", self.natural_weight, 0, 1)
        within("robust_weight", self.robust_weight, 0, 1 - self.natural_weight)
        within("temperature", self.temperature, 1e-3)

    def loss(self, model, x, x_adv, criterion, clean_pass, teachers) -> Tensor:
        adv = model(x_adv)
        weights = self.natural_weight, self.robust_weight
        loss = (1 - sum(weights)) * criterion(adv, adv, clean_logits(model, x, clean_pass))
        for weight, teacher in zip(weights, teachers, strict=True):
            with torch.no_grad():
                taught = (teacher(x_adv) / self.temperature).softmax(1)
            loss = loss + weight * self.temperature**2 * F.cross_entropy(adv / self.temperature, taught)
        return loss


def clean_logits(model: nn.Module, x: Tensor, mode: str) -> Tensor | None:
    """Logits (B, K) of the clean images without gradient, or None for mode 'none'.

    'train' runs in train mode, as the release does: the BatchNorm statistics move a second time in the step, towards
    the clean images. 'eval' leaves them alone. The model's own mode comes back.
    """
    if mode == "none":
        return None
    training = model.training
    model.train(mode == "train")
    with torch.no_grad():
        logits = model(x)
    model.train(training)
    return logits


@contextmanager
def adversarial_weights(model: nn.Module, loss: Callable[[], Tensor], gamma: float) -> Iterator[None]:
    """AWP (Wu et al. 2020, arXiv 2004.05884): within, the weights are moved to where the loss is higher.

    Follows csdongxian/AWP utils_awp.py: one ascent step of the loss gives a direction, which for each weight tensor w
    of two or more dimensions (no bias, no BatchNorm) is scaled to gamma * ||w||, added, and taken off again after
    the update of the weights, which is thus made from the moved ones. The ascent leaves the BatchNorm statistics alone.
    gamma = 0 does nothing.
    """
    if gamma == 0:
        yield
        return
    weights = [p for name, p in model.named_parameters() if p.dim() > 1 and "weight" in name]
    statistics = [(buffer, buffer.clone()) for buffer in model.buffers()]
    gradients = torch.autograd.grad(loss(), weights)
    with torch.no_grad():
        for buffer, before in statistics:
            buffer.copy_(before)
        moves = [gamma * w.norm() / (g.norm() + 1e-20) * g for w, g in zip(weights, gradients, strict=True)]
        for w, move in zip(weights, moves, strict=True):
            w.add_(move)
    yield
    with torch.no_grad():
        for w, move in zip(weights, moves, strict=True):
            w.sub_(move)


METHODS = {"pgd_at": PGDAT, "trades": TRADES, "kd_at": Distillation, "standard": Standard}
