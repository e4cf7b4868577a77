"""The figures: one style, one colour per method everywhere, PNG for the page and PDF for the paper."""

import statistics

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure

from sglrlib import paths
from sglrlib.config import RunConfig
from sglrlib.results import CHECKPOINTS, Result
from sglrlib.tables import column_title, paper_place, paper_value

_PALETTE = sns.color_palette("colorblind")
COLOURS = {
    "PGD-AT": _PALETTE[3],
    "PGD-AT+LS": _PALETTE[1],
    "PGD-AT+TE": _PALETTE[5],
    "PGD-AT+SGLR": _PALETTE[0],
    "AWP": _PALETTE[6],
    "KD-AT": (0.2, 0.2, 0.2),
    "KD-SWA": _PALETTE[9],
    "TRADES": _PALETTE[4],
    "TRADES+SGLR": _PALETTE[2],
}
OTHER = _PALETTE[7]  # grey: a method that is in none of the paper's tables
MARKERS = dict(zip(COLOURS, "osD^vPXp*", strict=True))  # for those who cannot tell the colours apart


def learning_curves(results: dict[str, list[Result]]) -> Figure:
    """Robust and natural accuracy over epochs, train dashed and test solid, one colour per method.

    results: the paper's name of a method -> its runs, one a seed. Several seeds are drawn as their mean with a band
    from lowest to highest. The learning-rate drops and the start of refinement are marked, and the first seed's best
    epoch by a dot.
    """
    sns.set_theme("paper", "ticks", "colorblind")
    figure, axes = plt.subplots(1, 2, figsize=(7.0, 3.1), sharex=True, layout="constrained")
    for axis, kind in zip(axes, ("robust", "natural"), strict=True):
        for label, runs in results.items():
            colour = COLOURS.get(label, OTHER)
            for split, style in (("train", "--"), ("test", "-")):
                epochs = [row["epoch"] for row in runs[0].curve]
                values = [[row[f"{split}_{kind}"] for row in run.curve] for run in runs]
                mean = [sum(column) / len(runs) for column in zip(*values, strict=True)]
                axis.plot(epochs, mean, style, color=colour, lw=1.2, label=f"{label}, {split}")
                if len(runs) > 1:
                    low, high = zip(*((min(c), max(c)) for c in zip(*values, strict=True)), strict=True)
                    axis.fill_between(epochs, low, high, color=colour, alpha=0.15, lw=0)
                if split == "test":
                    epoch = runs[0].best_epoch
                    axis.plot(epoch, mean[epoch - 1], "o", color=colour, mec="white", ms=6, zorder=5)
        mark_phases(axis, list(results.values())[-1][0].config)
        axis.set(xlabel="Epoch", ylabel=f"{kind.capitalize()} accuracy (%)")
        sns.despine(ax=axis)
    handles, labels = axes[0].get_legend_handles_labels()
    handles.append(plt.Line2D([], [], marker="o", ls="", color="0.4", mec="white", ms=6))
    best = "best epoch" if max(map(len, results.values())) == 1 else "best epoch, first seed"
    figure.legend(handles, [*labels, best], loc="outside lower center", ncols=5, frameon=False, fontsize=7)
    figure.suptitle(headline(next(iter(results.values()))), fontsize=8)
    return figure


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
        plt.Line2D([], [], ls="", marker=MARKERS.get(t, "h"), color=COLOURS.get(t, OTHER), ms=6, label=t)
        for t in results
    ]
    keys.append(plt.Line2D([], [], ls="-", marker=">", color="0.4", ms=4, label="best to last epoch"))
    figure.legend(handles=keys, loc="outside lower center", ncols=5, frameon=False, fontsize=7)
    n = f"{first.n(column)} test images under {column_title(column)}, {first.n('natural')} natural"
    seeds = f"mean of {len(runs)} seeds" if len(runs) > 1 else f"seed {config.seed}"
    figure.suptitle(f"{n}; {seeds}; eps = {config.eps_255}/255", fontsize=8)
    return figure


def white_and_black_box(results: dict[str, list[Result]], panels: dict[str, list[str]]) -> Figure:
    """Accuracy of each method, best checkpoint hollow and last filled, under attacks from the strongest to none.

    panels: a panel's title -> the columns along its axis. Several seeds are drawn as their mean.
    """
    sns.set_theme("paper", "ticks", "colorblind")
    figure, axes = plt.subplots(1, len(panels), figsize=(7.0, 3.3), sharey=True, squeeze=False, layout="constrained")
    for axis, (panel, columns) in zip(axes[0], panels.items(), strict=True):
        for i, (title, runs) in enumerate(results.items()):
            colour, marker = COLOURS.get(title, OTHER), MARKERS.get(title, "h")
            for which, face, aside in (("best", "white", -0.05), ("last", colour, 0.05)):
                places = [x + aside + 0.25 * (i - (len(results) - 1) / 2) for x in range(len(columns))]
                heights = [statistics.fmean(run.accuracy(which, column) for run in runs) for column in columns]
                axis.plot(places, heights, marker, color=colour, mfc=face, ms=6, mew=1.2, label=f"{title}, {which}")
        names = [column_title(c) for c in columns]
        names = ["white box" if " from " not in n and n != "Natural" else n.replace(f"{panel} ", "") for n in names]
        axis.set_xticks(range(len(columns)), [name.replace("Natural", "no attack") for name in names], fontsize=8)
        axis.set(title=panel, xlim=(-0.5, len(columns) - 0.5))
        axis.grid(axis="y", lw=0.4)
        sns.despine(ax=axis)
    axes[0, 0].set_ylabel("Accuracy (%)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=7)
    figure.suptitle(headline(next(iter(results.values()))), fontsize=8)
    return figure


def arrow(axis, title: str, best: list[float], last: list[float], *, filled: bool) -> None:
    """A method's two checkpoints, (natural, robust) each: a marker at the best, an arrow to the last."""
    colour = COLOURS.get(title, OTHER)
    face = colour if filled else "white"
    style = dict(arrowstyle="-|>", color=colour, lw=1.1, shrinkA=0, shrinkB=0, mutation_scale=9)
    axis.annotate("", last, best, arrowprops=style, zorder=2)
    axis.plot(*best, MARKERS.get(title, "h"), color=colour, mfc=face, ms=7, mew=1.2, zorder=3)
    axis.plot(*last, ".", color=colour, ms=1)  # so that the axes reach the arrow's tip


def headline(runs: list[Result]) -> str:
    """What was run, on one line: dataset, network, budget, planted noise, images and seeds."""
    config = runs[0].config
    noise = (
        f"{config.noise_rate:.0%} of the training labels replaced at random"
        if config.noise_rate
        else "no planted noise"
    )
    n = runs[0].sizes["test"]
    seeds = f"{len(runs)} seeds" if len(runs) > 1 else f"seed {config.seed}"
    return f"{config.dataset}, {config.arch}, eps = {config.eps_255}/255, {noise}; {n} test images, {seeds}"


def mark_phases(axis, config: RunConfig) -> None:
    """Lines where the learning rate drops, a dotted one where refinement starts."""
    marks = [(epoch, "lr / 10", "-") for epoch in config.drop_epochs]
    if "refine_start" in config.as_dict():
        marks.append((config.first_refined, "refinement", ":"))
    for epoch, text, style in marks:
        axis.axvline(epoch, color="0.5", lw=0.9, ls=style, zorder=0)
        place = dict(xycoords=("data", "axes fraction"), ha="center", va="bottom")
        axis.annotate(text, (epoch, 1), fontsize=7, color="0.3", **place)


def save(figure: Figure, name: str) -> str:
    """Write a figure as PNG and PDF; returns where, relative to the folder that holds figures/."""
    paths.FIGURES.mkdir(parents=True, exist_ok=True)
    figure.savefig(paths.FIGURES / f"{name}.png", dpi=200)
    figure.savefig(paths.FIGURES / f"{name}.pdf", metadata=dict(CreationDate=None))
    return f"figures/{name}.png"
