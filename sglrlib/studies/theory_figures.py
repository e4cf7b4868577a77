"""The figures of the theory: lines that are computed, not measured."""

import altair as alt
import torch
from matplotlib.figure import Figure

from sglrlib.show.style import entitle, grid, label_ends
from sglrlib.studies.theory import label_noise_bound
from sglrlib.studies.theory_loss import confidence, refined_loss, risk_change

TRUE, CORRECTED, PRINTED = "#222222", "#0F4C8A", "#D1491B"
SHADES = ("#9FC5E8", "#5B9BD5", "#2E6FB0", "#0B3C6F")  # from little noise to much
NOISY, CLEAN = "noisy labels", "clean labels"


def label_noise() -> Figure:
    """The slides' theorem on label noise for f(x) = 1 - x^2 / 2 at x = 0.5, over the budget eps."""
    figure, ((axis,),) = grid(1, 1, 2.9)
    x, eps = 0.5, torch.linspace(0, 0.5, 200)
    true = eps * x + eps**2 / 2
    corrected, printed = (label_noise_bound(eps, 1 - x**2 / 2, 1, 1, x + eps, power=power) for power in (2, 1))
    named = {"label noise $p_e$": (true, TRUE, "-"), "bound, corrected": (corrected, CORRECTED, "--")}
    named["bound, as printed"] = (printed, PRINTED, "-.")
    for line, colour, style in named.values():
        axis.plot(eps, line, style, color=colour)
    axis.axhline(0, color="0.6", lw=0.7, zorder=0)
    axis.set(xlabel=r"Budget $\epsilon$ (unit of $x$)", ylabel="Label noise (probability)")
    label_ends(axis, {name: (0.5, line[-1].item(), colour) for name, (line, colour, _) in named.items()})
    place, below = corrected.argmax(), (printed[1:] < 0).all()
    message = f"The corrected bound is at most {corrected[place]:.3f}, where the truth is {true[place]:.3f}"
    message += "; the printed one is always below zero" * below.item()
    return entitle(figure, message, "Theorem on label noise (slides): computed for $f(x) = 1 - x^2/2$ at $x = 0.5$.")


def noise_tolerance(eta: float, classes: int) -> Figure:
    """Theorem 2 over alpha: the prediction of lowest noisy risk, at several rates; the counter-example at eta."""
    figure, ((left, right),) = grid(1, 2, 3.2)
    alpha = torch.linspace(0, 0.99, 200, dtype=torch.float64)
    rates = [rate for rate in (0.2, 0.4, 0.6, 0.8) if rate < 1 - 1 / classes]
    for rate, colour in zip(rates, SHADES, strict=False):
        left.plot(alpha, confidence(alpha, rate, classes), color=colour)
        left.plot([0, 1], [1 - rate] * 2, ":", color=colour, lw=1)
    ends = {}
    label_ends(left, {rf"$\eta$ = {rate:g}": (1.0, 1 - rate, SHADES[-1]) for rate in rates})
    for digits, style, colour in zip((3, 6, 12), ("-", "--", "-."), SHADES[1:], strict=True):
        change = risk_change(alpha, eta, classes, 1 - 10**-digits)[:, 1]
        right.plot(alpha, change, style, color=colour)
        ends[f"$1-10^{{-{digits}}}$"] = (0.0, change[0].item(), colour)
    for name, (x, y, _) in ends.items():
        right.annotate(name, (x, y), xytext=(4, 2), textcoords="offset points", fontsize=7.5, va="bottom")
    right.axhline(0, color="0.6", lw=0.7, zorder=0)
    left.set(ylabel="Probability of the true class\nat the lowest noisy risk", ylim=(0, 1.03))
    right.set(ylabel=r"$R^\eta(f^*) - R^\eta(f)$")
    for axis in (left, right):
        axis.set_xlabel(r"Weight $\alpha$ of the prediction in the label")
    sure = confidence(torch.tensor([0.0, 0.9], dtype=torch.float64), eta, classes)
    message = (
        f"At noise rate {eta:g} the lowest risk is not at 1: at {sure[0]:.2f} for α = 0, {sure[1]:.3f} for α = 0.9"
    )
    small = (
        f"Theorem 2: computed for {classes} classes. Left, dotted: the guide detached. Right, η = {eta:g}: above "
        "zero the sure classifier f* has the higher noisy risk; beside each line its probability of the true class."
    )
    return entitle(figure, message, small)


def risks(eta: float, classes: int, alpha: float = 0.5) -> Figure:
    """What sliders() shows first."""
    figure, ((axis,),) = grid(1, 1, 2.9)
    t = torch.linspace(0.005, 0.9995, 400, dtype=torch.float64)
    law = torch.cat([t[:, None], ((1 - t) / (classes - 1))[:, None].expand(-1, classes - 1)], 1)
    losses = refined_loss(law, torch.full_like(t, alpha))
    ends = {}
    for name, rate, colour, style in ((NOISY, eta, PRINTED, "-"), (CLEAN, 0, CORRECTED, "--")):
        risk = (1 - rate) * losses[:, 0] + rate * losses[:, 1:].mean(1)
        axis.plot(t, risk, style, color=colour)
        axis.plot(t[risk.argmin()], risk.min(), "o", color=colour)
        ends[name] = (1.0, risk[-1].item(), colour)
    axis.set(xlabel="Probability $t$ of the true class", ylabel="Risk", ylim=(0, 4))
    label_ends(axis, ends)
    small = f"Theorem 2: computed for {classes} classes. In JupyterLab and on the site sliders move this."
    return entitle(figure, f"The risks at α = {alpha:g} and η = {eta:g}", small)


def sliders(eta: float, classes: int) -> alt.Chart:
    """Theorem 2: the risks over the probability t of the true class, the rest shared equally, by sliders for alpha and
    eta; a dot at the lowest.
    """
    weights = alt.binding_range(min=0, max=1, step=0.01, name="α, weight of the prediction ")
    rates = alt.binding_range(min=0, max=round(0.99 - 1 / classes, 2), step=0.01, name="η, noise rate ")
    alpha, noise = alt.param(name="alpha", value=0.5, bind=weights), alt.param(name="eta", value=eta, bind=rates)
    wrong = f"log((1 - datum.t) / {classes - 1})"
    curves = (
        alt.Chart(alt.sequence(0.005, 0.9996, 0.0025, as_="t"))
        .transform_calculate(entropy=f"-datum.t * log(datum.t) - (1 - datum.t) * {wrong}")
        .transform_calculate(
            noisy=f"(1 - alpha) * (-(1 - eta) * log(datum.t) - eta * {wrong}) + alpha * datum.entropy",
            clean="-(1 - alpha) * log(datum.t) + alpha * datum.entropy",
        )
        .transform_calculate(**{NOISY: "datum.noisy", CLEAN: "datum.clean"})
        .transform_fold([NOISY, CLEAN], as_=["labels", "risk"])
    )
    x = alt.X("t:Q", title="Probability t of the true class", scale=alt.Scale(domain=[0, 1]))
    y = alt.Y("risk:Q", title="Risk", scale=alt.Scale(domain=[0, 4], clamp=True))
    scale = alt.Scale(domain=[NOISY, CLEAN], range=[PRINTED, CORRECTED])
    colour = alt.Color("labels:N", scale=scale, title="risk with")
    lines = curves.mark_line(strokeWidth=2).encode(x, y, colour, alt.StrokeDash("labels:N", legend=None))
    lowest = (
        curves.transform_joinaggregate(least="min(risk)", groupby=["labels"])
        .transform_filter("datum.risk == datum.least")
        .mark_point(size=80, filled=True)
        .encode(x, y, colour, tooltip=[alt.Tooltip("t:Q", format=".3f")])
    )
    return (lines + lowest).add_params(alpha, noise).properties(width=420, height=240)
