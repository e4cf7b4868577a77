"""The figures: one style, one colour per method everywhere, PNG for the page and PDF for the paper."""

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure

from sglrlib import paths
from sglrlib.config import RunConfig
from sglrlib.results import Result

_PALETTE = sns.color_palette("colorblind")
COLOURS = {
    "PGD-AT": _PALETTE[3],
    "PGD-AT+LS": _PALETTE[1],
    "PGD-AT+SGLR": _PALETTE[0],
    "TRADES": _PALETTE[4],
    "TRADES+LS": _PALETTE[5],
    "TRADES+SGLR": _PALETTE[2],
}


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
            colour = COLOURS.get(label, _PALETTE[7])
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


def headline(runs: list[Result]) -> str:
    """What was run, on one line: dataset, network, budget, planted noise, images and seeds."""
    config = runs[0].config
    noise = (
        f"{config.noise_rate:.0%} of the training labels replaced at random"
        if config.noise_rate
        else "no planted noise"
    )
    seeds = f"mean and range of {len(runs)} seeds" if len(runs) > 1 else f"seed {config.seed}"
    return f"{config.dataset}, {config.arch}, eps = {config.eps_255}/255, {noise}; {runs[0].n} test images, {seeds}"


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
