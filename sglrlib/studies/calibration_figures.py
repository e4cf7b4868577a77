"""Figures B.2 and B.3: calibration over the epochs, how probable the label is, and where over-confidence sits."""

import statistics
from collections.abc import Callable, Iterable

import altair as alt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from sglrlib.judging.diagnostics import reliability
from sglrlib.method.datasets import DATASETS
from sglrlib.show.plots import lines, mark_phases, unequal
from sglrlib.show.style import colour_of, entitle, grid, label_ends, marker_of, setting
from sglrlib.show.tables import column_title, paper_value
from sglrlib.store.results import Result
from sglrlib.studies.calibration import gap, images, in_curve

LEAST = 0.01  # of the images that a bin of a reliability diagram needs


def over_epochs(results: dict[str, list[Result]], item: str = "Figure B.2") -> Figure:
    """ECE above, confidence minus accuracy below; on the left of clean images, on the right under the curve's PGD, with
    Table B.1's ECE as diamonds, and without standard training, which is sure of nearly every image and wrong.
    """
    trained = {label: runs for label, runs in results.items() if label != "Standard"}
    config = max((runs[0].config for runs in results.values()), key=lambda c: "refine_start" in c.as_dict())
    attack, n = f"PGD-{config.eval_steps}", next(iter(results.values()))[0].sizes["test"]
    figure, axes = grid(2, 2, 5.0, sharex=True, sharey="row")
    drawn = 0
    for row, measure in zip(axes, ("ece", "gap"), strict=True):
        ends = []
        for axis, kind, those in zip(row, ("natural", "robust"), (results, trained), strict=True):
            ends.append(lines(axis, those, {f"test_{kind}_{measure}": "-"}, best="test_robust_ece"))
            if measure == "ece":
                drawn += diamonds(axis, those, "pgd_10") if attack == "PGD-10" and kind == "robust" else 0
                axis.set_title("no attack" if kind == "natural" else f"under {attack}", pad=20)
                mark_phases(axis, config)
            else:
                axis.axhline(0, color="0.5", lw=0.8, zorder=0)
                axis.set_xlabel("Epoch")
        if measure == "ece":
            row[0].set_ylim(bottom=0)
        for axis, names in zip(row, ends, strict=True):  # once both have set their common scale
            label_ends(axis, names)
    axes[0, 0].set_ylabel("ECE")
    axes[1, 0].set_ylabel("Confidence − accuracy\n(above 0: over-confident)")
    told = [
        f"{label} from {over_seeds(in_curve, runs, 'best', 'test_robust_ece'):.2f} "
        f"to {over_seeds(in_curve, runs, 'last', 'test_robust_ece'):.2f}"
        for label, runs in trained.items()
    ]
    few = f"{n:,} test images, under {attack} the first {config.attacked_size or n:,}"
    small = f"{item}: {setting(most(results), images=few)}{unequal(results)} Rings: best epoch of each seed."
    small += " Diamonds: the paper's Table B.1 (ResNet-18), drawn at our best and last epochs." * bool(drawn)
    if "Standard" in results:
        end = over_seeds(in_curve, results["Standard"], "last", "test_robust_ece")
        small += f" Standard training under {attack} is not drawn: its ECE ends at {end:.2f}."
    message = f"From the best to the last epoch the ECE under {attack} goes, for {', for '.join(told)}"
    return entitle(figure, message, small)


def diamonds(axis, results: dict[str, list[Result]], attack: str) -> int:
    """The paper's ECE for our dataset, at the best and the last epoch of our runs; returns how many there are."""
    values = []
    for label, runs in results.items():
        config = runs[0].config
        at = dict(best=statistics.fmean(run.best_epoch for run in runs), final=config.epochs)
        printed = {c: paper_value(config.title, f"ece {attack}", c, dataset=config.dataset) for c in at}
        values += [(at[c], value, colour_of(label, results)) for c, value in printed.items() if value is not None]
    for epoch, value, colour in values:
        axis.plot(epoch, value, "D", mec=colour, mfc="white", mew=1.3, ms=6, zorder=6, clip_on=False)
    return len(values)


def over_seeds(measure: Callable[..., Tensor], runs: list[Result], *of: str) -> float:
    """The mean over seeds and images of what measure(run, *of) gives."""
    return statistics.fmean(measure(run, *of).mean().item() for run in runs)


def density(
    results: dict[str, list[Result]], attacks: Iterable[str], which: str = "last", item: str = "Figure B.3"
) -> Figure:
    """How many images get which probability of their label from a checkpoint under each attack: the mean over seeds,
    bands from lowest to highest. Standard training is left out, as it is in the paper.
    """
    attacks = list(attacks)
    results = {label: runs for label, runs in results.items() if label != "Standard"}
    first = next(iter(results.values()))
    edges, guess = np.linspace(0, 1, 21), 1 / DATASETS[first[0].config.dataset].classes
    figure, axes = grid(1, len(attacks), 2.9, sharey=True)
    for axis, attack in zip(axes[0], attacks, strict=True):
        for label, runs in results.items():
            each = (run.confidence(which, attack)[1] for run in runs)
            shares = np.array([100 * np.histogram(labelled, edges)[0] / len(labelled) for labelled in each])
            colour, style = colour_of(label, results), "-" if runs[0].config.labels == "hard" else (0, (4, 1))
            axis.stairs(shares.mean(0), edges, color=colour, lw=1.4, ls=style, label=label)
            low, high = (np.append(bound, bound[-1]) for bound in (shares.min(0), shares.max(0)))
            axis.fill_between(edges, low, high, step="post", color=colour, alpha=0.2, lw=0)
        axis.axvline(guess, color="0.5", lw=0.9, ls=":", zorder=0)
        axis.set(title=under(attack), xlim=(0, 1), xlabel="Probability of the label")
    axes[0, 0].set_ylim(bottom=0)
    axes[0, 0].set_ylabel("Images (%)")
    axes[0, 0].legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(0.1, 1))

    def probable(run: Result) -> Tensor:
        return (run.confidence(which, attacks[0])[1] > 0.9).double()

    told = ", ".join(f"{label} on {100 * over_seeds(probable, runs):.0f}%" for label, runs in results.items())
    message = f"Probability of the label above 0.9, {under(attacks[0])}: {told} of the images"
    small = f"{item}, {which} epoch: {setting_of(results, attacks)} Dotted: the probability of a guess."
    return entitle(figure, message, small)


def diagrams(results: dict[str, list[Result]], attacks: Iterable[str], which: str = "last") -> Figure:
    """Reliability diagrams of a checkpoint under each attack, the seeds' images together: how often predictions of a
    given confidence are right, each marker's area by how many they are.
    """
    attacks = list(attacks)
    figure, axes = grid(1, len(attacks), 3.1, sharey=True)
    for axis, attack in zip(axes[0], attacks, strict=True):
        axis.plot([0, 1], [0, 1], color="0.6", lw=0.9, zorder=0)
        for label, runs in results.items():
            highest, _, right = map(torch.cat, zip(*(run.confidence(which, attack) for run in runs), strict=True))
            count, confidence, accuracy = reliability(highest, right)
            some = count >= LEAST * len(right)
            colour, marker = colour_of(label, results), marker_of(label, results)
            axis.plot(confidence[some], accuracy[some], "-", color=colour, lw=0.8, alpha=0.6, zorder=1)
            how = dict(color=colour, marker=marker, ec="white", lw=0.5, clip_on=False)
            axis.scatter(confidence[some], accuracy[some], 6 + 300 * count[some] / len(right), **how)
            axis.plot([], [], marker, color=colour, ms=5, label=label)
        axis.set(title=under(attack), xlim=(0, 1), ylim=(-0.02, 1.02), xticks=[0, 0.5, 1], xlabel="Confidence")
    axes[0, 0].set_ylabel("Accuracy")
    axes[0, -1].legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5))
    shown = attacks[min(1, len(attacks) - 1)]
    told = [
        f"{label} {over_seeds(gap, runs, which, shown):+.2f}".replace("-0", "−0") for label, runs in results.items()
    ]
    message = f"Confidence minus accuracy {under(shown)}: {', '.join(told)}"
    setting = setting_of(results, attacks).replace("bands from lowest to highest", "their images together")
    small = f"Reliability, {which} epoch: {setting} Area of a marker: how many images; bins with "
    small += f"less than {LEAST:.0%} of them are left out. Above the diagonal under-confident, below over-confident."
    return entitle(figure, message, small)


def sliders(results: dict[str, list[Result]]) -> alt.TopLevelMixin:
    """Confidence and accuracy of each method on test images, clean and attacked, up to the epoch that a slider sets."""
    rows, methods = [], list(results)
    for label, runs in results.items():
        for kind in ("natural", "robust"):
            title = "no attack" if kind == "natural" else f"under PGD-{runs[0].config.eval_steps}"
            for of_epoch in zip(*(run.curve for run in runs), strict=True):
                accuracy = statistics.fmean(row[f"test_{kind}"] / 100 for row in of_epoch)
                gap = statistics.fmean(row[f"test_{kind}_gap"] for row in of_epoch)
                point = dict(
                    epoch=of_epoch[0]["epoch"], confidence=round(accuracy + gap, 4), accuracy=round(accuracy, 4)
                )
                rows.append(point | dict(method=label, kind=title))
    last = rows[-1]["epoch"]
    range_of = alt.binding_range(min=1, max=last, step=1, name="epoch ")
    epoch = alt.param(name="until", value=last, bind=range_of)
    axis = alt.Scale(domain=[0, 1])
    x, y = alt.X("confidence:Q", scale=axis, title="Mean confidence"), alt.Y("accuracy:Q", scale=axis, title="Accuracy")
    colours = alt.Scale(domain=methods, range=[colour_of(label) for label in methods])
    colour = alt.Color("method:N", scale=colours)
    forms = [{"o": "circle", "^": "triangle-up"}.get(marker_of(label), "square") for label in methods]
    form = alt.Shape("method:N", scale=alt.Scale(domain=methods, range=forms))  # one legend, as the domain is the same
    base = alt.Chart().transform_filter("datum.epoch <= until")
    trail = base.mark_line(strokeWidth=1, opacity=0.6).encode(x, y, colour, order="epoch:Q")
    now = base.transform_filter("datum.epoch == until").mark_point(size=110, filled=True)
    now = now.encode(x, y, colour, form, tooltip=["method", "epoch", "confidence", "accuracy"])
    ends = dict(x=alt.datum(0), y=alt.datum(0), x2=alt.datum(1), y2=alt.datum(1))
    layers = alt.layer(alt.Chart().mark_rule(color="#999").encode(**ends), trail, now, data=pd.DataFrame(rows))
    layers = layers.properties(width=230, height=230)
    return layers.facet(column=alt.Column("kind:N", title=None)).add_params(epoch)


def at_the_end(results: dict[str, list[Result]]) -> Figure:
    """What sliders() shows first."""
    figure, axes = grid(1, 2, 3.2, sharey=True)
    for axis, kind in zip(axes[0], ("natural", "robust"), strict=True):
        for label, runs in results.items():
            curves = [[(row[f"test_{kind}"] / 100, row[f"test_{kind}_gap"]) for row in run.curve] for run in runs]
            accuracy, gap = np.array(curves).mean(0).T
            colour, marker = colour_of(label, results), marker_of(label, results)
            axis.plot(accuracy + gap, accuracy, color=colour, lw=0.8, alpha=0.6)
            axis.plot(accuracy[-1] + gap[-1], accuracy[-1], marker, color=colour, ms=7, label=label)
        axis.plot([0, 1], [0, 1], color="0.6", lw=0.9, zorder=0)
        axis.set(
            xlim=(0, 1), ylim=(0, 1), xlabel="Mean confidence", title="no attack" if kind == "natural" else "attacked"
        )
    axes[0, 0].set_ylabel("Accuracy")
    axes[0, 0].legend(frameon=False, fontsize=7)
    small = f"{setting(most(results))} In JupyterLab and on the site a slider moves the epoch."
    return entitle(figure, "Confidence and accuracy, from the first epoch to the last", small)


def under(attack: str) -> str:
    return "no attack" if attack == "natural" else f"under {column_title(attack)}"


def setting_of(results: dict[str, list[Result]], attacks: list[str]) -> str:
    """What was run, with the images that have probabilities."""
    runs = most(results)
    n = min(images(runs[0], attack) for attack in attacks)
    return setting(runs, images=f"{n:,} test images in each panel") + unequal(results)


def most(results: dict[str, list[Result]]) -> list[Result]:
    """The runs of the method that has most seeds, of several the last, which is attacked in training."""
    return max(reversed(results.values()), key=len)
