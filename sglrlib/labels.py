"""Label rules: which target a sample is trained on. Each owns its per-sample state, indexed by the sample."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sglrlib.checks import one_of, within


class Hard(nn.Module):
    """The assigned label as it is, one-hot; the rule that the others refine.

    A rule is built from the training labels y (n,) and called once a step. Its options are the keyword arguments;
    what must survive a resume is a buffer. Options out of range raise UsageError.
    """

    title = ""  # what the paper's tables add to the method's name
    needs_clean = False  # whether a call needs the logits of the clean images

    def __init__(self, y: Tensor, classes: int):
        super().__init__()
        self.classes = classes
        self.register_buffer("y", y, persistent=False)

    def hard(self, index: Tensor) -> Tensor:
        """One-hot labels (B, K) of the samples in index (B,)."""
        return F.one_hot(self.y[index], self.classes).float()

    def forward(self, index: Tensor, adv: Tensor, clean: Tensor | None, refining: bool) -> Tensor:
        """Targets (B, K) for the samples in index (B,), without gradient.

        adv and clean are the model's logits (B, K) on adversarial and clean images; refining says whether the epoch
        of refinement's start has been reached.
        """
        return self.hard(index)


class Smooth(Hard):
    """Label smoothing: form 'others' gives 1 - s to the label and s/(K-1) to each other class (Pang et al. 2021,
    arXiv 2010.00467); form 'all' gives 1 - s + s/K and s/K (torch's label_smoothing). The paper names neither.
    """

    title = "+LS"

    def __init__(self, y: Tensor, classes: int, *, smoothing: float = 0.2, form: str = "others"):
        super().__init__(y, classes)
        within("smoothing", smoothing, 0, 1)
        one_of("form", form, ["others", "all"])
        self.smoothing, self.form = smoothing, form

    def forward(self, index: Tensor, adv: Tensor, clean: Tensor | None, refining: bool) -> Tensor:
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

    @torch.no_grad()
    def forward(self, index: Tensor, adv: Tensor, clean: Tensor | None, refining: bool) -> Tensor:
        if not refining:
            return self.hard(index)
        prediction = self.lam * clean.float().softmax(1) + (1 - self.lam) * adv.float().softmax(1)
        old = self.p[index]
        new = self.alpha * old + (1 - self.alpha) * prediction
        self.p[index] = new
        return self.r * (new if self.average == "new" else old) + (1 - self.r) * self.hard(index)


LABELS: dict[str, type[Hard]] = {"hard": Hard, "smooth": Smooth, "self_guided": SelfGuided}

# The paper and the released code differ; each reading is a set of options (refine_start is a fraction of the epochs).
# r is nowhere given: 0.8 is our choice. Algorithm 1 as printed trains on clean images against the average alone, so
# the hard label never reaches the loss; 'algorithm_1' reads its unused y as the target it was evidently meant to be.
VARIANTS: dict[str, dict] = {
    "release": dict(r=1.0, initial="one_hot", average="new"),
    "equation_1": dict(r=0.8, initial="one_hot", average="new"),
    "algorithm_1": dict(r=0.8, initial="zero", average="old", refine_start=0.0),
    "algorithm_1_printed": dict(r=1.0, initial="zero", average="new", refine_start=0.0, outer="clean"),
}
