"""The figures: one style, one colour per method everywhere, PNG for the page and PDF for the paper."""

import statistics
from collections.abc import Iterable

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from sglrlib import paths
from sglrlib.config import RunConfig
from sglrlib.judging.diagnostics import reliability
from sglrlib.method.data import HUMAN
from sglrlib.show.tables import column_title, paper_place, paper_value
from sglrlib.store.results import CHECKPOINTS, Result

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
    "Standard": _PALETTE[7],  # grey
}
OTHER = _PALETTE[7]  # a method that is in none of the paper's tables
MARKERS = dict(zip(COLOURS, "osD^vPXp*h", strict=True))  # for those who cannot tell the colours apart


def grid(rows: int, columns: int, height: float = 2.9, **how: object) -> tuple[Figure, np.ndarray]:
    """A figure of a page's width and its axes (rows, columns); how is passed to plt.subplots()."""
    sns.set_theme("paper", "ticks", "colorblind")
    size = (7.0, height)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **how)
    for axis in axes.flat:
        sns.despine(ax=axis)
    return figure, axes


def lines(axis, results: dict[str, list[Result]], styles: dict[str, str], *, best: str = "") -> None:
    """Columns of the curve over epochs: one colour a label of results, styles: column -> matplotlib's line style.

    results: label -> its runs, one a seed; several are drawn as their mean with a band from lowest to highest, to which
    a column's standard error is added where the curve has it, as column_error. On columns whose name starts with best a
    dot marks the first seed's best epoch.
    """
    for label, runs in results.items():
        colour = colour_of(label, results)
        for column, style in styles.items():
            epochs = [row["epoch"] for row in runs[0].curve]
            values = np.array([[value(row, column) for row in run.curve] for run in runs])
            errors = np.array([[row.get(f"{column}_error", 0) for row in run.curve] for run in runs])
            mean = values.mean(0)
            axis.plot(epochs, mean, style, color=colour, lw=1.2)
            if len(runs) > 1 or errors.any():
                low, high = (values - errors).min(0), (values + errors).max(0)
                axis.fill_between(epochs, low, high, color=colour, alpha=0.15, lw=0)
            if best and column.startswith(best):
                epoch = runs[0].best_epoch
                axis.plot(epoch, mean[epoch - 1], "o", color=colour, mec="white", ms=6, zorder=5)


def value(row: dict, column: str) -> float:
    """A column of an epoch's row; 'a - b' is the difference of two."""
    more, _, less = column.partition(" - ")
    return row[more] - (row[less] if less else 0)


def colour_of(label: str, among: Iterable[str] = ()) -> tuple:
    """The colour of a method; shades of it for several of one method, such as 'PGD-AT, cosine'; a scale for values of
    one thing, such as 'eps = 2/255'; else what the methods leave.
    """
    if label in COLOURS:
        return COLOURS[label]
    among, method = list(among), label.split(",")[0]
    if method in COLOURS:
        shades = [other for other in among if other.startswith(f"{method},")] or [label]
        shades = [method, *shades] if method in among else shades
        return sns.blend_palette([COLOURS[method], "black"], len(shades) + 1)[shades.index(label)]
    others = [other for other in among if other.split(",")[0] not in COLOURS] or [label]
    if all(" = " in other for other in others) and len({other.split(" = ")[0] for other in others}) == 1:
        return sns.color_palette("viridis", len(others) + 1)[others.index(label)]  # without its pale end
    taken = [COLOURS.get(other) for other in among]
    free = [colour for colour in [*_PALETTE[2:], *_PALETTE[:2], (0, 0, 0)] if colour not in taken]  # green comes first
    return free[others.index(label) % len(free)]


def legend(
    figure: Figure, results: Iterable[str], styles: dict[str, str], *, best: str = "", ncols: int = 5, names=None
) -> None:
    """One legend below all axes: a colour for each label of results, a line for each style, the dot of the best epoch.

    styles: what a line style stands for -> the style. names: what a label is called here, where not by itself.
    """
    labels, names = list(results), names or {}
    handles = [
        plt.Line2D([], [], color=colour_of(label, labels), lw=2, label=names.get(label, label)) for label in labels
    ]
    handles += [plt.Line2D([], [], color="0.3", ls=style, lw=1.2, label=text) for text, style in styles.items()]
    if best:
        handles.append(plt.Line2D([], [], marker="o", ls="", color="0.4", mec="white", ms=6, label=best))
    ncols = max(2, 110 // (8 + max(len(handle.get_label()) for handle in handles)))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(ncols, 6), frameon=False, fontsize=7)


def over_epochs(
    results: dict[str, list[Result]], panels: dict[str, dict[str, str]], styles: dict[str, str], *, best: str = "",
    log: Iterable[str] = (),
) -> Figure:  # fmt: skip
    """Panels of curves, two or three to a row: an axis's label -> columns of the curve and their styles.

    styles says what a line style stands for in the legend; log names the panels with a logarithmic axis. The
    learning-rate drops and the start of refinement are marked.
    """
    across = 2 if len(panels) == 4 else min(len(panels), 3)
    rows = -(-len(panels) // across)
    figure, axes = grid(rows, across, 0.8 + 2.2 * rows, sharex=True)
    for axis, (title, columns) in zip(axes.flat, panels.items(), strict=False):
        lines(axis, results, columns, best=best)
        for_phases = [runs[0].config for runs in results.values()]
        mark_phases(
            axis, max(for_phases, key=lambda config: (len(config.drop_epochs), "refine_start" in config.as_dict()))
        )
        known = next(iter(results.values()))[0].curve[0]
        axis.set_ylabel(f"{title}, ± s.e." if any(f"{column}_error" in known for column in columns) else title)
        if title in log:
            axis.set_yscale("log")
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis in axes.flat[: len(panels)][-axes.shape[1] :]:
        axis.set_xlabel("Epoch")
        axis.tick_params(labelbottom=True)
    marked = "best epoch" if max(map(len, results.values())) == 1 else "best epoch, first seed"
    legend(figure, results, styles, best=marked if best else "")
    counts = {label: len(runs) for label, runs in results.items()}
    unequal = len(set(counts.values())) > 1
    some = f"\nseeds: {', '.join(f'{label} {n}' for label, n in counts.items())}" if unequal else ""
    figure.suptitle(headline(next(iter(results.values()))) + some, fontsize=8)
    return figure


def learning_curves(results: dict[str, list[Result]]) -> Figure:
    """Robust and natural accuracy over epochs, train dashed and test solid, one colour per method."""
    panels = {
        f"{kind.capitalize()} accuracy (%)": {f"train_{kind}": "--", f"test_{kind}": "-"}
        for kind in ("robust", "natural")
    }
    return over_epochs(results, panels, dict(train="--", test="-"), best="test")


def calibration(results: dict[str, list[Result]], attacks: Iterable[str], which: str = "last") -> Figure:
    """Above, reliability diagrams of a checkpoint under each attack; below, the density of the labelled class's
    probability. One colour a method, the first seed's.
    """
    attacks = list(attacks)
    figure, axes = grid(2, len(attacks), 4.2, sharex=True)
    for (top, bottom), attack in zip(axes.T, attacks, strict=True):
        top.plot([0, 1], [0, 1], color="0.6", lw=0.9, zorder=0)
        for label, runs in results.items():
            highest, labelled, right = runs[0].confidence(which, attack)
            count, confidence, accuracy = reliability(highest, right)
            colour, marker = colour_of(label, results), MARKERS.get(label, "h")
            top.plot(confidence[count > 0], accuracy[count > 0], f"-{marker}", color=colour, ms=3.5, lw=1)
            bottom.hist(labelled, 20, range=(0, 1), density=True, histtype="step", color=colour, lw=1.3)
        title = "no attack" if attack == "natural" else column_title(attack)
        top.set(title=f"{title}, n = {len(right)}", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        bottom.set_yscale("log")
        top.set_xlabel("Confidence")
        top.tick_params(labelbottom=True)
        bottom.set_xlabel("Probability of the label")
    axes[0, 0].set_ylabel("Accuracy")
    axes[1, 0].set_ylabel("Density")
    legend(figure, results, {"perfectly calibrated": "-"})
    figure.suptitle(f"{headline(next(iter(results.values())))}; {which} checkpoint", fontsize=8)
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
    how = "given by people" if config.noise in HUMAN else "drawn anew"
    noise = f"{config.noise_rate:.0%} of the training labels {how}" if config.noise_rate else "no planted noise"
    n, attacked = runs[0].sizes["test"], config.attacked_size
    n = f"{n} test images" + (f", {attacked} attacked over epochs" if 0 < attacked < n else "")
    seeds = f"{len(runs)} seeds" if len(runs) > 1 else f"seed {config.seed}"
    return f"{config.dataset}, {config.arch}, eps = {config.eps_255}/255, {noise}; {n}, {seeds}"


def mark_phases(axis, config: RunConfig) -> None:
    """Lines where the learning rate drops, a dotted one where refinement starts."""
    marks = [(epoch, "lr / 10", "-") for epoch in config.drop_epochs]
    if "refine_start" in config.as_dict():
        marks.append((config.first_refined, "refinement", ":"))
    for epoch, text, style in marks:
        axis.axvline(epoch, color="0.5", lw=0.9, ls=style, zorder=0)
        near = [other for other, *_ in marks if 0 < abs(other - epoch) < config.epochs / 5]
        side = "center" if not near else "right" if near[0] > epoch else "left"
        place = dict(xycoords=("data", "axes fraction"), ha=side, va="bottom")
        axis.annotate(text, (epoch, 1), fontsize=7, color="0.3", **place)


def save(figure: Figure, name: str, publish: bool = False) -> str:
    """Write a figure as PNG and PDF, below runs/figures/ or, to be kept, figures/; returns where the PNG is."""
    folder = paths.FIGURES if publish else paths.RUNS / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", dpi=200)
    figure.savefig(folder / f"{name}.pdf", metadata=dict(CreationDate=None))
    return (folder / f"{name}.png").relative_to(paths.OUT).as_posix()
