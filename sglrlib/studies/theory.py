"""The theorem on label noise, Lemma 1 and Theorem 1, as printed and as corrected: what each leaves over, in numbers.

Tensors are float64. The n draws come first, the K classes last; logarithms are natural. (A.1) to (A.17) are equations
of the paper's supplement; what it says of losses is in theory_loss.py.
"""

import math
from functools import partial
from typing import NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

SAME = 1e-5  # the library's float32 is exact to about 1e-6; every slip found is far above
PAPER, AMENDED, OURS = "paper", "amended", "ours"
WHOSE = {
    PAPER: "The paper's statements, as printed in its slides and its supplement",
    AMENDED: "The paper's, with one of our corrections already made",
    OURS: "Ours: special cases, gradients, units, examples, this library's code",
}


class Check(NamedTuple):
    """A statement's largest residual over the draws, as printed and as corrected (None: no correction is known).

    Of an equation that is |left - right|, of an inequality by how much it is violated. why: what the correction is,
    or why there is none. whose: who makes the statement, one of WHOSE.
    """

    item: str
    printed: float
    corrected: float | None = None
    why: str = ""
    whose: str = PAPER

    @property
    def verdict(self) -> str:
        """'holds', 'holds after correction: ...' or 'false: ...'."""
        if self.printed < SAME:
            return "holds"
        mended = self.corrected is not None and self.corrected < SAME
        return f"{'holds after correction' if mended else 'false'}: {self.why}"


amended, ours = (partial(Check, whose=whose) for whose in (AMENDED, OURS))


def table(checks: list[Check]) -> pd.DataFrame:
    """A row for each check: item, whose it is, residual as printed, residual as corrected, whether it holds."""
    columns = ["item", "whose", "as printed", "as corrected", "holds?"]
    rows = [(c.item, c.whose, shown(c.printed), shown(c.corrected), c.verdict.partition(":")[0]) for c in checks]
    return pd.DataFrame(rows, columns=columns)


def status(checks: list[tuple[Check, str]]) -> dict[str, pd.DataFrame]:
    """Every check's verdict and what it was put to, apart by whose statement it is: title with the counts -> rows."""
    found = {}
    for whose, title in WHOSE.items():
        mine = [(c, n) for c, n in checks if c.whose == whose]
        rows = [(c.item, n, c.verdict) for c, n in mine]
        found[f"{title}: {count([c for c, _ in mine])}"] = pd.DataFrame(rows, columns=["item", "put to", "verdict"])
    return found


def count(checks: list[Check]) -> str:
    """How many checks, and how many of each verdict."""
    verdicts = [c.verdict.partition(":")[0] for c in checks]
    kinds = ("holds", "holds after correction", "false")
    return f"{len(checks)} (" + ", ".join(f"{kind}: {verdicts.count(kind)}" for kind in kinds) + ")"


def label_noise(hessian: Tensor, x: Tensor, eps: Tensor) -> list[Check]:
    """The slides' theorem on label noise where the assigned label's probability is quadratic in the image.

    hessian (n, d, d): positive definite; x (n, d): the image, seen from the extremum, and no further from it than the
    attack's budget eps (n,) reaches.
    """
    up = torch.einsum("nij,nj->ni", hessian, x)
    slope, height = up.norm(dim=1), (x * up).sum(1) / 2
    curvature = torch.einsum("ni,nij,nj->n", up, hessian, up) / slope**2
    low, high = torch.linalg.eigvalsh(hessian)[:, [0, -1]].T
    lipschitz = slope + eps * high
    moved = x - (eps / slope)[:, None] * up
    gain = height - torch.einsum("ni,nij,nj->n", moved, hessian, moved) / 2
    bowl, bowl_gain = 0.25 + height, height  # the extremum is a minimum of 1/4: no attack gains more
    peak, peak_gain = 1 - height, eps * slope + eps**2 * curvature / 2  # it is a maximum of 1

    def bound(q, c=1, power=2):  # c: the unit of x is 1/c
        return label_noise_bound(c * eps, q, low / c**2, high / c**2, lipschitz / c, power=power)

    def printed(q, c=1):
        return bound(q, c, power=1)

    unit, unit_kept = gap(printed(peak) - printed(peak, 10)), gap(bound(peak) - bound(peak, 10))
    taylor = [over(eps * slope - power * high / 2 - gain) for power in (eps, eps**2)]
    step, step_peak = (over((1 - q) * low / lipschitz - slope) for q in (bowl, peak))
    whole, whole_peak = over(bound(bowl) - bowl_gain), over(bound(peak) - peak_gain)
    literal, literal_peak = over(printed(bowl) - bowl_gain), over(printed(peak) - peak_gain)
    certain, peaked = torch.ones_like(eps), "for a maximum of 1 near x, so a negative definite one"
    silent = over(-printed(certain)), over(-bound(certain)), "it is negative, with ε as with ε², and says nothing"
    return [
        Check("Label noise, the bound, Hessian positive definite", literal, whole_peak, f"{peaked}; ε²/4 for any unit"),
        amended("Label noise, the bound near a maximum of 1, Hessian negative definite", literal_peak),
        amended("Label noise, the bound with ε²/4, Hessian positive definite", whole, whole_peak, peaked),
        ours("Label noise, attack's gain >= ε|∇f| - (ε/2) σ_max", *taylor, "ε²/2"),
        ours("Label noise, the bound is the same in any unit of x", unit, unit_kept, "ε²/4 for ε/4"),
        ours("Label noise, |∇f| >= (1-q) σ_min/L, Hessian positive definite", step, step_peak, peaked),
        ours("Label noise, the bound is below (1-q)/2", over(bound(peak) - (1 - peak) / 2)),
        ours("Label noise, a positive bound for certain labels, q = 1", *silent),
    ]  # fmt: skip


def bowl_attacked(levels: float) -> tuple[float, float, float]:
    """What the probability f(z) = z^2 / 400 loses at z = 10 of 255 grey levels when attacked by 8 of them.

    And the least that Taylor's bound makes it lose with epsilon, as in the slides, and with epsilon squared, where
    lengths are counted in units of so many grey levels.
    """
    z, eps, curvature = 10 / levels, 8 / levels, levels**2 / 200
    loss = curvature * (z**2 - (z - eps) ** 2) / 2
    return loss, *(eps * z * curvature - power * curvature / 2 for power in (eps, eps**2))


def label_noise_bound(eps, q, low, high, lipschitz, *, power=2, samples=math.inf, delta=0.05):
    """The slides' lower bound on the label noise of adversarial examples; power 1 as printed, 2 as corrected.

    q: mean probability of the assigned labels; low, high: sigma_min, sigma_max; samples: N.
    """
    return eps / 2 * (1 - q) * low / lipschitz - eps**power / 4 * high - math.sqrt(math.log(2 / delta) / (2 * samples))


def lemma_1(joint: Tensor, learner: Tensor, f: Tensor) -> list[Check]:
    """The slides' Lemma, enumerated: samples S of two labelled inputs, weights w drawn given S.

    joint (n, X, K): p(x, y); learner (n, XK, XK, W): Q(w|S); f (n, X, K, W): f(y|x, w).
    """
    one = joint.flatten(1)
    laws = [torch.einsum(f"na,nb,nabw->n{which}w", one, one, learner) for which in "ab"]
    law = torch.stack(laws, 1).unflatten(2, joint.shape[1:])  # (n, 2, X, K, W): p(x_i, y_i, w)
    y_x = (joint / joint.sum(2, keepdim=True))[:, None, ..., None]
    y_xw, f = law / law.sum(3, keepdim=True), f[:, None]

    def mean(values, law=law):
        return (law * values).sum((2, 3, 4))  # (n, 2): of each of the two

    loss, entropy_y, information = mean(-f.log()), mean(-y_x.log()), mean((y_xw / y_x).log())
    printed = entropy_y + mean((y_x / f).log(), law.sum(3, keepdim=True) * y_x) - information
    exact = entropy_y + mean((y_xw / f).log()) - information
    blind = gap(loss.mean(1) - printed.mean(1))
    return [
        Check(
            "Lemma 1 (PAC-Bayes), the sum over the sample S", gap(loss.sum(1) - printed.mean(1)),
            gap(loss.sum(1) - exact.sum(1)), "m times the right-hand side, with KL[p(y|x,w) || f]"
        ),
        amended("Lemma 1, the mean over S", blind, gap(loss - exact), "KL[p(y|x,w) || f]: the weights know the labels"),
        ours("Lemma 1, I(w;y|x) >= 0", over(-information)),
    ]  # fmt: skip


def log_sum(a: Tensor, b: Tensor) -> list[Check]:
    """The supplement's log-sum Lemma for nonnegative a and b (n, K)."""

    def surplus(a):
        return kl(a, b) - kl(a.sum(1, keepdim=True), b.sum(1, keepdim=True))

    equal = gap(surplus(3 * b))
    return [Check("Log-sum Lemma", over(-surplus(a))), Check("Log-sum Lemma, equality for equal a_i/b_i", equal)]


def theorem_1(p: Tensor, f: Tensor, weights: Tensor, lam: Tensor) -> list[Check]:
    """Theorem 1 at one input x': p(y|x', w) and f(y|x', w) (n, W, K), p(w|x') (n, W), lambda (n,)."""
    uniform = torch.full_like(p[:, :1], 1 / p.shape[2])
    soft, guided = mix(lam, p, uniform), mix(lam, p, f)

    def mean(values):
        return (weights * values).sum(1)

    def marginal(p):
        return (weights[..., None] * p).sum(1)

    h_u, h, h_soft = math.log(p.shape[2]), entropy(marginal(p)), entropy(marginal(soft))
    e, e_soft, e_u = (mean(kl(target, f)) for target in (p, soft, uniform))
    loss, loss_soft, loss_u = (mean(cross_entropy(target, f)) for target in (p, soft, uniform))
    i, i_soft, i_guided, i_f = (information(law, weights) for law in (p, soft, guided, f))
    change, rest = loss_soft - loss, 1 - lam
    js, js_w = jensen_shannon(lam, marginal(p), uniform[:, 0]), mean(jensen_shannon(lam, p, uniform))
    mixed, sides = lam * h + rest * h_u, rest * (h_u - h) + i - i_soft + e_soft - e
    # Labels that do not depend on w: no information, so Q is zero; the proof's own equation is solved for it.
    a, b, g = p[:, 0], soft[:, 0], f[:, 0]
    q = cross_entropy(b, g) - cross_entropy(a, g) - rest * (h_u - entropy(a)) - kl(b, g) + kl(a, g)
    q_kept, more = q - jensen_shannon(lam, a, uniform[:, 0]), "such a learner has I = H(y|x'), and y* has more entropy"
    one = F.one_hot(torch.tensor(0), p.shape[2]).to(p)
    i_vector = h_soft - entropy(mix(lam, one.expand_as(a), uniform[:, 0]))  # w gives y away: p(y|x',w) is one-hot
    apart = information(mix(lam, p[:, :1], f), weights)
    tells = "I(y;w|x') = 0, but y* tells of f_w, and so of w, for every λ < 1"
    brackets = "brackets: (1-λ) [H(u,f) - H(p,f)]"
    return [
        Check("(A.1) I(y*;w|x') <= I(y;w|x'), the same w", over(i_soft - i)),
        ours("(A.1) for self-guided labels (f_w for u), p independent of w", over(apart), None, tells),
        ours("I(y*;w|x') <= λ I(y;w|x') + (1-λ) I(ŷ;w|x') for them, ŷ ~ f_w", over(i_guided - lam * i - rest * i_f)),
        ours("(A.1) for a w that remembers smoothed label vectors", over(i_vector - h)),
        ours("(A.1) for a w that remembers labels drawn from y*", over(h_soft - h), None, more),
        Check("(A.2)", gap(mix(lam, p, p) - p)),
        Check("(A.3) line 1", gap(loss_soft - h_soft + i_soft - e_soft)),
        Check("(A.3) lines 2, 3", gap(h_soft - mixed), gap(h_soft - mixed - js), "+ JS_λ(p, u), Jensen-Shannon"),
        Check("(A.4)", gap(loss - (h - i + e))),
        Check("KL(p*||f) <= λ KL(p||f) + (1-λ) KL(u||f)", over(e_soft - lam * e - rest * e_u)),
        Check("E* - E <= (1-λ) [KL(u||f) - KL(p||f)]", over(e_soft - e - rest * (e_u - e))),
        Check(
            "H(p*,f) - H(p,f) = (1-λ)(H(p_2) - H(p)) + Q + E* - E", gap(change - sides), gap(change - sides - js),
            "+ JS_λ(p, u)"
        ),
        Check("H(p*,f) - H(p,f) <= (1-λ)(H* + R) + Q", over(change - rest * (h_u - h + e_u - e) - i + i_soft)),
        Check("H* = H(u) - H(p) >= 0", over(h - h_u)),
        Check(
            "H(p*,f) - H(p,f) = (1-λ) H(u,f) - H(p,f)", gap(change - rest * loss_u + loss),
            gap(change - rest * (loss_u - loss)), brackets
        ),
        Check("Q = I(w;p) - I(w;p*) >= 0", over(i_soft - i)),
        ours("Q = (1-λ) I(w;p) + E_w JS_λ(p_w, u) - JS_λ(p, u)", gap(i - i_soft - rest * i - js_w + js)),
        ours("Q of the proof is 0 where p does not depend on w", gap(q), gap(q_kept), "JS_λ kept on both sides"),
    ]  # fmt: skip


def distributions(generator: torch.Generator, *shape: int) -> Tensor:
    """Distributions over the last axis, drawn uniformly from the simplex."""
    raw = -(1 - torch.rand(*shape, generator=generator, dtype=torch.float64)).log()
    return raw / raw.sum(-1, keepdim=True)


def mix(weight: Tensor | float, a: Tensor, b: Tensor) -> Tensor:
    """weight * a + (1 - weight) * b; a weight tensor (n,) goes with the draws."""
    if isinstance(weight, Tensor):
        weight = weight.reshape(-1, *[1] * (a.dim() - 1))
    return weight * a + (1 - weight) * b


def cross_entropy(a: Tensor, b: Tensor) -> Tensor:
    """H(a, b) = - sum a log b over the last axis, 0 log 0 being 0."""
    return -torch.xlogy(a, b).sum(-1)


def entropy(a: Tensor) -> Tensor:
    return cross_entropy(a, a)


def kl(a: Tensor, b: Tensor) -> Tensor:
    return cross_entropy(a, b) - entropy(a)


def jensen_shannon(weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """weight KL(a||m) + (1 - weight) KL(b||m), m being the mixture: what mixing adds to the entropy."""
    m, weight = mix(weight, a, b), weight.reshape(-1, *[1] * (a.dim() - 2))
    return weight * kl(a, m) + (1 - weight) * kl(b, m)


def information(law: Tensor, weights: Tensor) -> Tensor:
    """I(y;w) (n,) of labels with the law p(y|w) (n, W, K) and of weights with the probabilities p(w) (n, W)."""
    return entropy((weights[..., None] * law).sum(1)) - (weights * entropy(law)).sum(1)


def one_hot(q: Tensor) -> Tensor:
    return F.one_hot(q.argmax(-1), q.shape[-1]).double()


def gap(difference: Tensor) -> float:
    return difference.abs().max().item()


def over(difference: Tensor) -> float:
    """By how much 'difference <= 0' is violated."""
    return difference.max().clamp(min=0).item()  # NaN stays NaN


def shown(residual: float | None) -> str:
    """Two digits, or a bound where more would only show how a processor rounds."""
    if residual is None or math.isnan(residual):
        return "–" if residual is None else "inf - inf"
    return next((f"< {bound:.0e}" for bound in (1e-12, SAME) if residual < bound), f"{residual:.2g}")


def hessians(generator: torch.Generator, eps: Tensor, dimensions: int) -> Tensor:
    """Positive definite matrices (n, d, d) so small that quadratics stay probabilities within twice the budget eps."""
    raw = torch.randn(len(eps), dimensions, dimensions, generator=generator, dtype=torch.float64)
    raw = raw @ raw.mT + dimensions * torch.eye(dimensions)
    return raw / (4 * eps**2 * torch.linalg.eigvalsh(raw)[:, -1])[:, None, None]
