"""The figures of the theory: lines that are computed, not measured."""

import matplotlib.pyplot as plt
import seaborn as sns
import torch
from matplotlib.figure import Figure

from sglrlib.studies.theory import label_noise_bound
from sglrlib.studies.theory_loss import confidence, risk_change

STYLES = ("-", "--", "-.", ":")


def label_noise() -> Figure:
    """The slides' theorem on label noise for f(x) = 1 - x^2 / 2 at x = 0.5, over the budget eps."""
    figure, axis = start(1, width=4.6, height=2.7)
    x, eps = 0.5, torch.linspace(0, 0.5, 200)
    axis.plot(eps, eps * x + eps**2 / 2, label="label noise $p_e$")
    for power, style, name in ((2, "--", "bound, corrected"), (1, "-.", "bound, as printed")):
        axis.plot(eps, label_noise_bound(eps, 1 - x**2 / 2, 1, 1, x + eps, power=power), style, label=name)
    axis.axhline(0, color="0.6", lw=0.7, zorder=0)
    axis.set(xlabel=r"Budget $\epsilon$ (unit of $x$)", ylabel="Label noise (probability)")
    axis.legend(frameon=False)
    return figure


def noise_tolerance(eta: float, classes: int) -> Figure:
    """Theorem 2 over alpha: the prediction of lowest noisy risk, at several rates; the counter-example at eta."""
    figure, (left, right) = start(2, width=7.0, height=3.2)
    alpha = torch.linspace(0, 0.99, 200, dtype=torch.float64)
    rates = [rate for rate in (0.2, 0.4, 0.6, 0.8) if rate < 1 - 1 / classes]
    for rate, style in zip(rates, STYLES, strict=False):
        (line,) = left.plot(alpha, confidence(alpha, rate, classes), style, label=f"{rate:g}")
        left.plot([0, 1], [1 - rate] * 2, color=line.get_color(), lw=0.6, alpha=0.8, zorder=1)
    for digits, style, grey in zip((3, 6, 12), STYLES, ("0.6", "0.4", "0"), strict=False):
        change = risk_change(alpha, eta, classes, 1 - 10**-digits)[:, 1]
        right.plot(alpha, change, style, color=grey, label=f"$1-10^{{-{digits}}}$")
    right.axhline(0, color="0.6", lw=0.7, zorder=0)
    left.set(ylabel="Probability of the true class", ylim=(0, 1.02))
    right.set(ylabel=r"$R^\eta(f^*) - R^\eta(f)$")
    keys = r"noise rate $\eta$ (thin: the guide detached)", rf"$f^*$ gives the true class ($\eta = {eta:g}$)"
    for axis, key in zip((left, right), keys, strict=True):
        axis.set_xlabel(r"Weight $\alpha$ of the prediction in the label")
        axis.legend(title=key, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4, columnspacing=1.2, frameon=False)
    return figure


def start(panels: int, *, width: float, height: float):
    """A figure of so many panels side by side, in the style of all figures."""
    sns.set_theme("paper", "ticks", "colorblind")
    figure, axes = plt.subplots(1, panels, figsize=(width, height), layout="constrained")
    sns.despine(figure)
    return figure, axes
