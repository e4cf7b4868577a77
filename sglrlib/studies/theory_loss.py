"""The propositions, Theorem 2 and Algorithm 1's labels, as printed and as corrected; the rest is in theory.py.

The refined loss of a prediction f is l(f, k) = -(1 - alpha) log f_k + alpha H(f), which is H(q', f) for the label k:
alpha is the weight that the method calls r, not its moving average's.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sglrlib.method.labels import Hard, SelfGuided
from sglrlib.method.methods import Distillation
from sglrlib.studies.theory import (
    Check,
    amended,
    cross_entropy,
    distributions,
    entropy,
    gap,
    kl,
    mix,
    one_hot,
    ours,
    over,
)

CONSTANT = "the loss has no constant sum over the labels, as MAE has"


def proposition_1(p: Tensor, q: Tensor, alpha: Tensor) -> list[Check]:
    """Proposition 1 for predictions p and labels q (n, K) and mixing weights alpha (n,), with its gradients.

    The gradients are on the logits, by central differences; the library's own in SelfGuided, whose guide is detached.
    """
    soft, sharp, rest = mix(alpha, p, q), one_hot(q), 1 - alpha
    loss, ce, rce, rkl = cross_entropy(soft, p), cross_entropy(q, p), cross_entropy(p, q), alpha * kl(p, q)
    sce, swapped = alpha * ce + rest * rce, rest * ce + alpha * rce
    hard, guide = mix(alpha, p, sharp), rest * cross_entropy(sharp, p)
    infinite = guide + alpha * cross_entropy(p, sharp) - alpha * kl(p, sharp)
    exact, signs = gap(loss - swapped + rkl), "minus, and the weights of (A.5) swapped"
    bracketed = -(rest[:, None] * q * p.log() + alpha[:, None] * p * p.log()).sum(1)
    scaled = rest[:, None] * (p - q)
    attached = scaled - alpha[:, None] * p * (p.log() + entropy(p)[:, None])
    slope = differences(lambda z: cross_entropy(soft, z.softmax(1)), p.log())
    slope_attached = differences(lambda z: cross_entropy(mix(alpha, z.softmax(1), q), z.softmax(1)), p.log())
    library = [library_gradient(p, sharp, r) - (1 - r) * (p - sharp) for r in (0.0, 0.3, 0.9, 1.0)]
    return [
        Check("Proposition 1, l_sce - α l_rkl with (A.5)", gap(loss - sce + rkl), exact, "swap the weights of (A.5)"),
        Check("(A.6) middle line", gap(loss - rest * ce + alpha * entropy(p)), gap(loss - bracketed), "brackets"),
        Check("(A.6) last line", gap(loss - rest * ce - alpha * entropy(p))),
        Check("(A.7) lines 1, 2", gap(loss - swapped + rkl)),
        Check("(A.7) line 3, l_sce + α l_rkl with (A.5)", gap(loss - sce - rkl), exact, signs),
        amended("(A.7) line 3, weights swapped, still plus", gap(loss - swapped - rkl), exact, signs),
        ours(
            "(A.7) for one-hot labels", gap(cross_entropy(hard, p) - infinite),
            gap(cross_entropy(hard, p) - guide - alpha * entropy(p)), "two of its terms are infinite; (A.6) serves"
        ),
        ours("Gradient of (A.7), the guide detached", gap(slope - attached), gap(slope - scaled), "(1-α)(p - q)"),
        ours("Gradient, not detached, (1-α)(p-q) - α p (log p + H(p))", gap(slope_attached - attached)),
        ours("SelfGuided(r, alpha=0, lam=0), gradient (1-r)(p - y)", gap(torch.stack(library))),
    ]  # fmt: skip


def proposition_2(p: Tensor, q: Tensor, teacher: Tensor, alpha: Tensor) -> list[Check]:
    """Proposition 2 for predictions p, labels q and a teacher's predictions (n, K) and mixing weights alpha (n,)."""
    soft, rest = mix(alpha, teacher, q), 1 - alpha
    loss, ce = cross_entropy(soft, p), rest * cross_entropy(q, p)
    a11 = ce + alpha * kl(teacher, p)
    slope = differences(lambda z: rest * cross_entropy(q, z.softmax(1)) + alpha * kl(teacher, z.softmax(1)), p.log())
    hot, cold = (kd_gradient(p, q, teacher, 0.6, t) - p + mix(0.6, teacher, one_hot(q)) for t in (2.0, 1.0))
    return [
        Check("(A.8) is a distribution", gap(soft.sum(1) - 1)),
        Check("(A.9)", gap(loss - ce - alpha * cross_entropy(teacher, p))),
        Check("(A.10)", gap(kl(teacher, p) - cross_entropy(teacher, p) + entropy(teacher))),
        Check("(A.11)", gap(loss - a11), gap(loss - a11 - alpha * entropy(teacher)), "+ α H(p_t)"),
        Check("(A.11), gradients only", gap(slope - p + soft)),
        ours("Proposition 2 for KD-AT as published (T = 2), gradients", gap(hot), gap(cold), "at temperature 1 only"),
    ]


def symmetric(f: Tensor, y: Tensor, alpha: Tensor, eta: Tensor) -> list[Check]:
    """Theorem 2 under symmetric noise, uniform over the K-1 wrong classes.

    f (n, M, N, K): M classifiers on N inputs; y (n, N): clean labels; alpha (n,); eta (n,): rates below 1 - 1/K.
    """
    k, rate = f.shape[3], eta[:, None]
    losses, noise, scale = refined_loss(f, alpha), symmetric_noise(eta, k), rate / (k - 1)
    r, noisy, total = risk(losses, y), risk(losses, y, noise), losses.sum(3).mean(2)
    share, g, worst = 1 - scale * k, entropy(f).mean(2) / (k - 1), scale * entropy(torch.full_like(f[0, 0, 0], 1 / k))
    change, noisy_change, total_change = (at(value, r.argmin(1)) - value for value in (r, noisy, total))
    excess, c = noisy_change - share * change, rate * (1 - 1 / k) * 0.1
    flat_noisy = risk(mae(f), y, noise)
    flat_change = at(flat_noisy, risk(mae(f), y).argmin(1)) - flat_noisy
    edge = torch.cat([rate, 2 - 2 / k - rate])  # on both sides of 1 - 1/K: the two must have the same sign
    return [
        Check("Theorem 2, up to its third line", gap(noisy - (1 - rate) * r - scale * (total - r))),
        Check(
            "Theorem 2, fourth line, ... - η G(f)", gap(noisy - share * r + rate * g),
            gap(noisy - share * r - scale * total), "+ η/(K-1) T(f), T = E Σ_k l(f(x),k)"
        ),
        Check("Theorem 2, C = η (1-1/K) 0.1", gap(c - worst), gap(worst - scale * math.log(k)), "η ln(K)/(K-1)"),
        Check(
            "Theorem 2, R^η* - R^η = (1 - ηK/(K-1)) (R* - R) + C", gap(excess - c), gap(excess - scale * total_change),
            "η/(K-1) (T(f*) - T(f)) for C, and no constant"
        ),
        Check("Theorem 2, symmetric, R^η* <= R^η", over(noisy_change), None, CONSTANT),
        ours("Theorem 2, symmetric, R^η* <= R^η for MAE", over(flat_change)),
        Check("Theorem 2, 1 - ηK/(K-1) > 0 iff η < 1 - 1/K", over((edge * k / (k - 1) - 1) * (1 - 1 / k - edge))),
    ]  # fmt: skip


def asymmetric(f: Tensor, y: Tensor, alpha: Tensor, noise: Tensor) -> list[Check]:
    """Theorem 2 under class-dependent noise (n, K, K): row y has 1 - eta_y at y and eta_{y,k} elsewhere.

    f, y and alpha as for symmetric().
    """
    right = F.one_hot(y, f.shape[3]).double()[:, None]  # (n, 1, N, K): always right, and sure
    rows = noise[torch.arange(len(y))[:, None], y][:, None]
    wrong, stay = 1 - right, (rows * right).sum(3)
    surplus = wrong * (stay[..., None] - rows)

    def bounds(losses):
        total, others, leave = losses.sum(3), (wrong * losses).sum(3), (wrong * rows * losses).sum(3)
        most = total.amax(2, keepdim=True)
        a13, a14, a15 = (stay * sums + leave for sums in ((right * losses).sum(3), total - others, most - others))
        a16 = most * stay - (surplus * losses).sum(3)
        return [risk(losses, y, noise) - a.mean(2) for a in (a13, a14, a15, a16)]

    def a17(losses):
        best, robust = (at(losses, r.argmin(1)) for r in (risk(losses, y), risk(losses, y, noise)))
        printed, mended = robust - (robust * right).sum(3, keepdim=True), best - robust
        return [over((w * d).sum(3).mean(2)) for w, d in ((surplus, printed), (surplus - stay[..., None], mended))]

    def excess(loss):
        sure, others = (risk(loss(g), y, noise) for g in (right, f))
        return over(sure - others.amin(1, keepdim=True))

    a13, a14, a15, a16 = bounds(refined_loss(f, alpha))
    flat15, flat16 = (gap(a) for a in bounds(mae(f))[2:])
    upper = "<= with C = max Σ_k l(f(x),k), equal where the sum is constant (MAE)"
    second = "E Σ (1-η_y-η_yk) (l(f*,k) - l(f*_η,k)) <= E (1-η_y) Σ_k (l(f*,k) - l(f*_η,k)), which is 0 for MAE"
    return [
        Check("(A.12), (A.13)", gap(a13)),
        Check("(A.14)", gap(a14)),
        Check("(A.15)", gap(a15), max(over(a15), flat15), upper),
        Check("(A.16)", gap(a16), max(over(a16), flat16), upper),
        Check("(A.17)", *a17(refined_loss(f, alpha)), second),
        ours("(A.17) for MAE", *a17(mae(f)), second),
        Check("Theorem 2, asymmetric, R* = 0, R^η* <= R^η", excess(lambda g: refined_loss(g, alpha)), None, CONSTANT),
        ours("Theorem 2, asymmetric, R* = 0, R^η* <= R^η for MAE", excess(mae)),
    ]  # fmt: skip


def detached(eta: float, classes: int, r: float) -> list[Check]:
    """Where SelfGuided's gradient vanishes on average over noisy labels, if its guide is the present prediction."""
    label = symmetric_noise(torch.tensor([eta], dtype=torch.float64), classes)[0, :1]
    gradients = library_gradient(label.expand(classes, -1), torch.eye(classes), r)
    return [ours("SelfGuided(r, alpha=0, lam=0), noisy labels, rests at 1-η", gap(label @ gradients))]


def algorithm_1(classes: int, alpha: float, r: float, updates: int) -> list[Check]:
    """The mass of Algorithm 1's labels over so many updates of SelfGuided, started at zero."""
    sample, logits, y, p = torch.tensor([0]), torch.zeros(1, classes), [], []
    rule = SelfGuided(sample, classes, r=r, alpha=alpha, initial="zero", average="old")
    rule.start_epoch(1, 1, updates)
    for _ in range(updates):
        y.append(rule.target(sample, logits, logits).sum())
        rule.update()
        p.append(rule.p.sum())
    y, p, left = torch.stack(y) - 1, torch.stack(p) - 1, alpha ** torch.arange(updates + 1)
    return [
        ours("Algorithm 1, p_t sums to 1", gap(p), gap(p + left[1:]), "to 1 - α^t"),
        ours("Algorithm 1, y sums to 1", gap(y), gap(y + r * left[:-1]), "to 1 - r α^(t-1)"),
    ]


def confidence(alpha: Tensor, eta: float, classes: int) -> Tensor:
    """True-class probability t of the noisy risk's minimiser among (t, (1-t)/(K-1), ...); alpha (A,) below 1.

    By bisection: the root above 1 - eta of the risk's derivative in t, under symmetric noise eta < 1 - 1/K.
    """
    low, high = torch.full_like(alpha, 1 - eta), torch.ones_like(alpha)
    for _ in range(60):
        t = (low + high) / 2
        rises = (1 - alpha) * (eta / (1 - t) - (1 - eta) / t) > alpha * ((classes - 1) * t / (1 - t)).log()
        low, high = torch.where(rises, low, t), torch.where(rises, t, high)
    return low


def risk_change(alpha: Tensor, eta: float, classes: int, sure: float = 1 - 1e-6) -> Tensor:
    """R(f*) - R(f) and the same of R^eta (A, 2): f* gives the true class the probability sure, f gives it 1 - eta."""
    t = torch.tensor([[sure], [1 - eta], [1.0]], dtype=torch.float64)
    others = (1 - t) / (classes - 1)
    best, f, clean = torch.cat([t, others.expand(-1, classes - 1)], 1)
    losses = torch.stack([refined_loss(g.expand(len(alpha), -1), alpha) for g in (best, f)])
    return torch.stack([(losses[0] - losses[1]) @ label for label in (clean, f)], 1)


def class_noise(generator: torch.Generator, n: int, classes: int) -> Tensor:
    """Class-dependent noise (n, K, K) with eta_{y,k} < 1 - eta_y, as Theorem 2 asks."""
    wrong = torch.zeros(n, classes, classes).double()
    wrong[:, ~torch.eye(classes, dtype=bool)] = distributions(generator, n, classes, classes - 1).flatten(1)
    rate = (1 - torch.rand(n, classes, 1, generator=generator)).double() / (1 + wrong.amax(2, keepdim=True))
    return rate * wrong + (1 - rate) * torch.eye(classes)


def symmetric_noise(eta: Tensor, classes: int) -> Tensor:
    """Noise (n, K, K) that is uniform over the K-1 wrong classes, at rates eta (n,)."""
    right, eta = torch.eye(classes).double(), eta[:, None, None]
    return (1 - eta) * right + eta / (classes - 1) * (1 - right)


def refined_loss(f: Tensor, alpha: Tensor) -> Tensor:
    """l(f, k) for each label k, shaped as f (n, ..., K); alpha (n,)."""
    return mix(alpha, entropy(f)[..., None], -f.log())


def mae(f: Tensor) -> Tensor:
    """|e_k - f|_1 for each label k: its sum over k is 2K - 2 whatever f."""
    return 2 - 2 * f


def risk(losses: Tensor, y: Tensor, noise: Tensor | None = None) -> Tensor:
    """Mean over inputs (n, M) of losses (n, M, N, K) at labels y (n, N) that noise (n, K, K) turns into others."""
    rows = F.one_hot(y, losses.shape[3]) if noise is None else noise[torch.arange(len(y))[:, None], y]
    return (losses * rows[:, None]).sum(3).mean(2)


def at(values: Tensor, chosen: Tensor) -> Tensor:
    """The chosen (n,) of the values (n, M, ...), as (n, 1, ...)."""
    return values[torch.arange(len(chosen)), chosen][:, None]


def differences(loss: Callable[[Tensor], Tensor], z: Tensor, step: float = 1e-5) -> Tensor:
    """The gradient of loss: (n, K) -> (n,) at z, by central differences."""
    steps = step * torch.eye(z.shape[1], dtype=z.dtype)
    return torch.stack([(loss(z + s) - loss(z - s)) / (2 * step) for s in steps], 1)


def library_gradient(p: Tensor, y: Tensor, r: float) -> Tensor:
    """The gradient that SelfGuided gives the logits of p, one-hot labels y, where p on x' alone is the guide."""
    rule = SelfGuided(y.argmax(1), p.shape[1], r=r, alpha=0.0, lam=0.0)
    rule.start_epoch(1, 1, 1)
    return gradient(lambda z: rule(z, z, torch.zeros_like(z), torch.arange(len(z))), p)


def kd_gradient(p: Tensor, q: Tensor, teacher: Tensor, weight: float, temperature: float) -> Tensor:
    """The gradient that KD-AT gives the logits of p, labels one_hot(q), with an adversarially trained teacher only."""
    method = Distillation(natural_weight=0.0, robust_weight=weight, temperature=temperature)
    rule, every = Hard(q.argmax(1), p.shape[1]), torch.arange(len(p))
    teachers = [torch.zeros_like, lambda x: teacher.log().float()]
    return gradient(lambda z: method.loss(nn.Identity(), z, z, lambda *a: rule(*a, every), "none", teachers), p)


def gradient(loss: Callable[[Tensor], Tensor], p: Tensor) -> Tensor:
    """The gradient of a mean loss on the logits of p, as if of a sum; float32, as the library trains."""
    z = p.log().float().requires_grad_()
    (loss(z) * len(z)).backward()
    return z.grad.double()
