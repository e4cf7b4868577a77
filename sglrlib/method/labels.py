"""Label rules: what a sample's logits are held against. Each owns its per-sample state, indexed by the sample."""

import copy
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sglrlib.checks import UsageError, one_of, within

Penalty = Callable[[Tensor], Tensor]  # logits (B, K) -> one number a sample (B,)


class Hard(nn.Module):
    """The assigned label as it is, one-hot; the rule that the others refine.

    A rule is built from the training labels y (n,). Its options are the keyword arguments; what must survive a resume
    is a buffer. Options out of range raise UsageError. follow comes before the first step. In each epoch start_epoch
    comes first; in each step, in this order: penalty, the loss itself (once or several times, for it changes nothing),
    update and, after the weights' own, follow.
    """

    title = ""  # what the paper's tables add to the method's name
    starts = False  # whether anything begins at the epoch of refinement's start
    needs_clean = False  # whether the loss needs the logits of the clean images

    def __init__(self, y: Tensor, classes: int):
        super().__init__()
        self.classes = classes
        self.refining = False
        self.register_buffer("y", y, persistent=False)

    def follow(self, model: nn.Module) -> None:
        """Look at the network that is trained: before the first step, and after each."""

    def start_epoch(self, epoch: int, first_refined: int, epochs: int) -> None:
        """Say which epoch of how many begins, counted from 1, and which is the first with refinement."""
        self.refining = self.starts and epoch >= first_refined

    def penalty(self, index: Tensor, predict: Callable[..., Tensor]) -> Penalty | None:
        """A term that the training attack maximises and the loss minimises beside cross-entropy, or None.

        predict() gives the logits (B, K) of the clean images with the network in eval mode, predict(model=other) those
        of another one.
        """
        return None

    def forward(
        self, logits: Tensor, adv: Tensor, clean: Tensor | None, index: Tensor, penalty: Penalty | None = None
    ) -> Tensor:
        """The batch's mean loss of logits (B, K) against the targets of the samples in index (B,), and the penalty.

        adv and clean are what target() wants.
        """
        loss = F.cross_entropy(logits, self.target(index, adv, clean))
        return loss if penalty is None else loss + penalty(logits).mean()

    def target(self, index: Tensor, adv: Tensor, clean: Tensor | None) -> Tensor:
        """Targets (B, K) without gradient; adv and clean: logits (B, K) on adversarial and clean images."""
        return self.hard(index)

    def update(self) -> None:
        """Remember what the step's last target() found."""

    def hard(self, index: Tensor) -> Tensor:
        """One-hot labels (B, K) of the samples in index (B,)."""
        return F.one_hot(self.y[index], self.classes).float()


class Smooth(Hard):
    """Label smoothing: form 'others' gives 1 - s to the label and s/(K-1) to each other class (Pang et al. 2021,
    arXiv 2010.00467; P2333/Bag-of-Tricks-for-AT, train_cifar.py); form 'all' gives 1 - s + s/K and s/K (torch's
    label_smoothing). The paper names neither form nor s.
    """

    title = "+LS"

    def __init__(self, y: Tensor, classes: int, *, smoothing: float = 0.2, form: str = "others"):
        super().__init__(y, classes)
        within("smoothing", smoothing, 0, 1)
        one_of("form", form, ["others", "all"])
        self.smoothing, self.form = smoothing, form

    def target(self, index: Tensor, adv: Tensor, clean: Tensor | None) -> Tensor:
        hard, s, k = self.hard(index), self.smoothing, self.classes
        return hard * (1 - s) + (s / k if self.form == "all" else (1 - hard) * s / (k - 1))


class SelfGuided(Hard):
    """Self-guided label refinement (slides, eq. 1): y = r * p + (1 - r) * y_hard for each sample, where

        p <- alpha * p + (1 - alpha) * (lam * f(x) + (1 - lam) * f(x'))

    is the moving average of the model's predictions. p starts at the one-hot label or at zero (initial); the target
    is built from the p just updated or the one before (average = 'new' or 'old'). Before refinement starts the
    target is the hard label and p rests. From zero, p sums to 1 - alpha^t after t updates: it is not renormalised.
    """

    title = "+SGLR"
    starts = True
    needs_clean = True

    def __init__(
        self, y: Tensor, classes: int, *, r: float = 1.0, alpha: float = 0.9, lam: float = 0.2,
        initial: str = "one_hot", average: str = "new",
    ):  # fmt: skip
        super().__init__(y, classes)
        for name, value in (("r", r), ("alpha", alpha), ("lam", lam)):
            within(name, value, 0, 1)
        one_of("initial", initial, ["one_hot", "zero"])
        one_of("average", average, ["new", "old"])
        self.r, self.alpha, self.lam, self.average = r, alpha, lam, average
        one_hot = F.one_hot(y, classes).float()
        self.register_buffer("p", one_hot if initial == "one_hot" else torch.zeros_like(one_hot))
        self.found = None

    @torch.no_grad()
    def target(self, index: Tensor, adv: Tensor, clean: Tensor | None) -> Tensor:
        if not self.refining:
            return self.hard(index)
        prediction = self.lam * clean.float().softmax(1) + (1 - self.lam) * adv.float().softmax(1)
        old = self.p[index]
        new = self.alpha * old + (1 - self.alpha) * prediction
        self.found = index, new
        return self.r * (new if self.average == "new" else old) + (1 - self.r) * self.hard(index)

    def update(self) -> None:
        if self.found:
            index, new = self.found
            self.p[index], self.found = new, None


class Ensemble(Hard):
    """Temporal ensembling (Dong et al. 2022, arXiv 2106.01606; dongyp13/memorization-AT, loss.py and train_te.py).

    The target is the hard label; from refinement's start on, the loss and the attack also have weight * ramp times
    the mean square, over the classes, of softmax(logits) - p, where p <- alpha * p + (1 - alpha) * f(x) is the
    average of the clean eval-mode predictions, from zero, divided by its sum. ramp is exp(-5 (1 - u)^2), u rising
    from 0 at the start to 1 at the fraction ramp_end of the epochs.
    """

    title = "+TE"
    starts = True

    def __init__(
        self, y: Tensor, classes: int, *, te_weight: float = 300.0, alpha: float = 0.9, ramp_end: float = 0.75
    ):
        super().__init__(y, classes)
        within("te_weight", te_weight, 0)
        within("alpha", alpha, 0, 1)
        if alpha == 1:
            raise UsageError("alpha = 1.0 keeps the average at zero for ever: expected below 1; the nearest is 0.999.")
        within("ramp_end", ramp_end, 0, 1)
        self.te_weight, self.alpha, self.ramp_end = te_weight, alpha, ramp_end
        self.register_buffer("p", torch.zeros(len(y), classes))
        self.register_buffer("weight", torch.tensor(0.0), persistent=False)  # a tensor, so that a graph can capture it

    def start_epoch(self, epoch: int, first_refined: int, epochs: int) -> None:
        super().start_epoch(epoch, first_refined, epochs)
        last = max(first_refined, round(self.ramp_end * epochs))
        left = max(0, last - epoch) / max(1, last - first_refined)  # 1 - u
        self.weight.fill_(self.te_weight * math.exp(-5 * left**2))

    def penalty(self, index: Tensor, predict: Callable[..., Tensor]) -> Penalty | None:
        if not self.refining:
            return None
        with torch.no_grad():
            self.p[index] = self.alpha * self.p[index] + (1 - self.alpha) * predict().float().softmax(1)
        guide = self.p[index] / self.p[index].sum(1, keepdim=True)
        return lambda logits: self.weight * (logits.softmax(1) - guide).square().mean(1)


class Rectified(Hard):
    """Annealing self-distillation rectification (ADR; Wu et al. 2024, arXiv 2305.12118; yuyuwu5/ADR, src/adr.py):

        y = w * q + (1 - w) * y_hard,  q = softmax(teacher(x) / tau),  w = clip(mix - (max q - q[label]), 0, 1)

    on the clean images. The teacher is the moving average of the network's weights and statistics, taken after every
    step, from the first one on. Along half a cosine tau goes from tau_first to tau_last and mix from mix_first to
    mix_last; once an epoch here, once a step there. The values are theirs for CIFAR-10; CIFAR-100's recipe has theirs
    for it. Attack and loss are against y: the penalty is what its cross-entropy differs from the hard label's. Under
    TRADES, whose attack knows no label there, that penalty is in the attack here.
    """

    title = "+ADR"

    def __init__(
        self, y: Tensor, classes: int, *, ema_decay: float = 0.995, tau_first: float = 2.5, tau_last: float = 2.0,
        mix_first: float = 0.7, mix_last: float = 0.95,
    ):  # fmt: skip
        super().__init__(y, classes)
        for name, value in (("ema_decay", ema_decay), ("mix_first", mix_first), ("mix_last", mix_last)):
            within(name, value, 0, 1)
        for name, value in (("tau_first", tau_first), ("tau_last", tau_last)):
            within(name, value, 1e-3)
        self.ema_decay, self.tau, self.mix = ema_decay, (tau_first, tau_last), (mix_first, mix_last)
        self.register_buffer("now", torch.zeros(2), persistent=False)  # tau and mix: a tensor, for a graph to see
        self.teacher = None

    @torch.no_grad()
    def follow(self, model: nn.Module) -> None:
        if self.teacher is None:
            self.teacher = copy.deepcopy(model).eval().requires_grad_(False)
        present = model.state_dict()
        for name, mean in self.teacher.state_dict().items():
            if mean.is_floating_point():
                mean.lerp_(present[name], 1 - self.ema_decay)

    def start_epoch(self, epoch: int, first_refined: int, epochs: int) -> None:
        share = (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2
        for place, (first, last) in enumerate((self.tau, self.mix)):
            self.now[place].fill_(last + share * (first - last))

    def penalty(self, index: Tensor, predict: Callable[..., Tensor]) -> Penalty:
        tau, mix = self.now
        hard = self.hard(index)
        with torch.no_grad():
            q = (predict(model=self.teacher).float() / tau).softmax(1)
            w = (mix - (q.amax(1, keepdim=True) - (q * hard).sum(1, keepdim=True))).clamp(0, 1)
            moved = w * (q - hard)
        return lambda logits: -(moved * logits.log_softmax(1)).sum(1)


LABELS: dict[str, type[Hard]] = {
    "hard": Hard, "smooth": Smooth, "self_guided": SelfGuided, "ensemble": Ensemble, "rectified": Rectified,
}  # fmt: skip

# The paper and the released code differ; each reading is a set of options (refine_start is a fraction of the epochs).
# r is nowhere given: 0.8 is our choice. Algorithm 1 as printed trains on clean images against the average alone, so
# the hard label never reaches the loss; 'algorithm_1' reads its unused y as the target it was evidently meant to be.
VARIANTS: dict[str, dict] = {
    "release": dict(r=1.0, initial="one_hot", average="new"),
    "equation_1": dict(r=0.8, initial="one_hot", average="new"),
    "algorithm_1": dict(r=0.8, initial="zero", average="old", refine_start=0.0),
    "algorithm_1_printed": dict(r=1.0, initial="zero", average="new", refine_start=0.0, outer="clean"),
}
