"""The figure of the main tables: each method's natural and robust accuracy, beside the paper's."""

import statistics

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure

from sglrlib.show.style import colour_of, marker_of
from sglrlib.show.tables import column_title, paper_place, paper_value
from sglrlib.store.results import CHECKPOINTS, Result


def trade_off(results: dict[str, list[Result]], column: str) -> Figure:
    """Robust against natural accuracy of each method: an arrow from its best checkpoint to its last; means over seeds.

    Ours are filled. The paper's are hollow: in the same axes where it reports on our dataset and network, else in axes
    of their own, those of ResNet-18 on CIFAR-10. column is the attack that robust stands for; for one that the paper
    does not report, its AutoAttack is shown.
    """
    sns.set_theme("paper", "ticks", "colorblind")
    first = next(iter(results.values()))[0]
    place, own = paper_place(first)
    reported = paper_value("PGD-AT", column, "best", **place) is not None
    theirs = column if reported else "autoattack"
    figure, axes = plt.subplots(1, 1 if own else 2, figsize=(7.0, 3.6), squeeze=False, layout="constrained")
    ours, paper = axes[0, 0], axes[0, -1]
    for title, runs in results.items():
        both = [[statistics.fmean(r.accuracy(w, c) for r in runs) for c in ("natural", column)] for w in CHECKPOINTS]
        arrow(ours, title, *both, filled=True)
        both = [[paper_value(title, c, which, **place) for c in ("natural", theirs)] for which in ("best", "final")]
        if None not in both[0] + both[1]:
            arrow(paper, title, *both, filled=False)
    config = first.config
    names = dict(cifar10="CIFAR-10", cifar100="CIFAR-100", resnet18="ResNet-18", wrn34_10="WRN-34-10")
    of_paper = f"{names[place['dataset']]}, {names[place['model']]}"
    ours.set_title(f"{config.dataset}, {config.arch}" if not own else f"{of_paper}: ours filled, the paper's hollow")
    if not own:
        paper.set_title(f"the paper: {of_paper}")
    for axis, robust in ((paper, theirs), (ours, column)):
        axis.margins(0.12)
        axis.set(xlabel="Natural accuracy (%)", ylabel=f"{column_title(robust)} accuracy (%)")
        sns.despine(ax=axis)
    keys = [
        plt.Line2D([], [], ls="", marker=marker_of(t, results), color=colour_of(t, results), ms=6, label=t)
        for t in results
    ]
    keys.append(plt.Line2D([], [], ls="-", marker=">", color="0.4", ms=4, label="best to last epoch"))
    figure.legend(handles=keys, loc="outside lower center", ncols=5, frameon=False, fontsize=7)
    n = f"{first.n(column)} test images under {column_title(column)}, {first.n('natural')} natural"
    seeds = f"mean of {len(runs)} seeds" if len(runs) > 1 else f"seed {config.seed}"
    figure.suptitle(f"{n}; {seeds}; eps = {config.eps_255}/255", fontsize=8)
    return figure


def arrow(axis, title: str, best: list[float], last: list[float], *, filled: bool) -> None:
    """A method's two checkpoints, (natural, robust) each: a marker at the best, an arrow to the last."""
    colour = colour_of(title)
    face = colour if filled else "white"
    style = dict(arrowstyle="-|>", color=colour, lw=1.1, shrinkA=0, shrinkB=0, mutation_scale=9)
    axis.annotate("", last, best, arrowprops=style, zorder=2)
    axis.plot(*best, marker_of(title), color=colour, mfc=face, ms=7, mew=1.2, zorder=3)
    axis.plot(*last, ".", color=colour, ms=1)  # so that the axes reach the arrow's tip
