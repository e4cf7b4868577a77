"""Figures of curves over epochs, which most notebooks draw."""

import statistics
from collections.abc import Iterable

import numpy as np
from matplotlib.figure import Figure

from sglrlib.config import RunConfig
from sglrlib.method.datasets import DATASETS
from sglrlib.show.style import colour_of, entitle, grid, label_ends, marker_of, setting
from sglrlib.show.tables import per_image
from sglrlib.store.results import Result


def learning_curves(results: dict[str, list[Result]], item: str = "") -> Figure:
    """Robust and natural accuracy over epochs, on test and on training images; in panels of their own where there are
    more than two methods. item: what it is in the paper.
    """
    if len(results) > 2:
        panels = {
            f"{kind}, {which} (%)": {f"{which}_{kind.lower()}": "-"}
            for which in ("test", "train")
            for kind in ("Robust", "Natural")
        }
        key = {}
    else:
        panels = {
            f"{k} accuracy (%)": {f"test_{k.lower()}": "-", f"train_{k.lower()}": "--"} for k in ("Robust", "Natural")
        }
        key = dict(solid="test images", dashed="training images")
    how = dict(best="test", message=losses(results), item=item, chance=True)
    return over_epochs(results, panels, key, **how)


def losses(results: dict[str, list[Result]], column: str = "pgd_20") -> str:
    """How much accuracy each method loses after its best epoch, mean over seeds, in one sentence."""
    lost = {
        label: 100 * statistics.fmean(per_image(run, "diff", column).mean().item() for run in runs)
        for label, runs in results.items()
        if all(run.has(column, 1) for run in runs)
    }
    if not lost:
        return "Robust and natural accuracy over the epochs"
    (first, most), *others = lost.items()
    parts = [f"{first} loses {most:.1f} points of robust accuracy after its best epoch"]
    parts += [f"{label} {'gains ' * (points < 0)}{abs(points):.1f}" for label, points in others]
    return ", ".join(parts)


def over_epochs(
    results: dict[str, list[Result]], panels: dict[str, dict[str, str]], key: dict[str, str], *, message: str,
    item: str = "", best: str = "", log: Iterable[str] = (), chance: bool = False,
) -> Figure:  # fmt: skip
    """Panels of curves, two or three to a row: an axis's label -> columns of the curve and their styles.

    key says what a line style stands for, as solid="test images"; methods are named beside the last panel of a row.
    best: on columns whose name starts with it a ring marks each seed's best epoch. message is the headline. log names
    the panels with a logarithmic axis, chance puts a line at the accuracy of a guess where it is near. Drops of the
    learning rate and the start of refinement are marked.
    """
    across = 2 if len(panels) == 4 else min(len(panels), 3)
    rows = -(-len(panels) // across)
    figure, axes = grid(rows, across, 1.0 + 2.2 * rows, sharex=True)
    configs = [runs[0].config for runs in results.values()]
    longest = max(configs, key=lambda config: (len(config.drop_epochs), "refine_start" in config.as_dict()))
    for i, (axis, (title, columns)) in enumerate(zip(axes.flat, panels.items(), strict=False)):
        ends = lines(axis, results, columns, best=best)
        mark_phases(axis, longest)
        if title in log:
            axis.set_yscale("log")
        if chance:
            mark_chance(axis, longest)
        if i % across == across - 1 or i == len(panels) - 1:
            label_ends(axis, ends)
        known = next(iter(results.values()))[0].curve[0]
        axis.set_ylabel(f"{title}, ± s.e." if any(f"{column}_error" in known for column in columns) else title)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis in axes.flat[: len(panels)][-across:]:
        axis.set_xlabel("Epoch")
        axis.tick_params(labelbottom=True)
    key = key | (dict(rings="best epoch of each seed") if best else {})
    words = f" {'; '.join(f'{style}: {text}' for style, text in key.items()).capitalize()}." if key else ""
    small = setting(next(iter(results.values()))) + unequal(results) + words
    return entitle(figure, message, f"{item}: {small}" if item else small)


def lines(axis, results: dict[str, list[Result]], styles: dict[str, str], *, best: str = "") -> dict:
    """Columns of the curve over epochs: one colour and marker a label of results; styles: column -> line style.

    results: label -> its runs, one a seed; several are drawn as their mean with a band from lowest to highest, to which
    a column's standard error is added where the curve has it, as column_error. Returns label -> end and colour of its
    first column, for label_ends().
    """
    ends = {}
    for i, (label, runs) in enumerate(results.items()):
        colour, marker = colour_of(label, results), marker_of(label, results)
        for column, style in styles.items():
            epochs = [row["epoch"] for row in runs[0].curve]
            values = np.array([[value(row, column) for row in run.curve] for run in runs])
            errors = np.array([[row.get(f"{column}_error", 0) for row in run.curve] for run in runs])
            mean, every = values.mean(0), max(1, len(epochs) // 6)
            at = (every // 2 + i * every // max(1, len(results)), every)
            how = dict(color=colour, lw=1.3, marker=marker, ms=4, mec="white", mew=0.5, markevery=at)
            axis.plot(epochs, mean, style, **how)
            ends.setdefault(label, (epochs[-1], mean[-1], colour))
            if len(runs) > 1 or errors.any():
                low, high = (values - errors).min(0), (values + errors).max(0)
                axis.fill_between(epochs, low, high, color=colour, alpha=0.15, lw=0)
            if best and column.startswith(best):
                for run, of_seed in zip(runs, values, strict=True):
                    at = run.best_epoch, of_seed[run.best_epoch - 1]
                    axis.plot(*at, "o", color="white", mec=colour, mew=1.3, ms=5, zorder=5)
    return ends


def value(row: dict, column: str) -> float:
    """A column of an epoch's row; 'a - b' is the difference of two."""
    more, _, less = column.partition(" - ")
    return row[more] - (row[less] if less else 0)


def unequal(results: dict[str, list[Result]]) -> str:
    """How many seeds each label has, where these are not the same."""
    counts = {label: len(runs) for label, runs in results.items()}
    few = len(set(counts.values())) > 1
    return f" Seeds: {', '.join(f'{label} {n}' for label, n in counts.items())}." if few else ""


def mark_chance(axis, config: RunConfig) -> None:
    """A line at the accuracy of a guess, where the axis comes near it."""
    guess = 100 / DATASETS[config.dataset].classes
    low, high = axis.get_ylim()
    if low < 2 * guess:
        axis.set_ylim(min(low, 0.8 * guess), max(high, 2 * guess))
        axis.axhline(guess, color="0.5", lw=0.8, ls=(0, (1, 2)), zorder=0)
        place = dict(xycoords=("axes fraction", "data"), ha="right", va="bottom")
        axis.annotate("chance", (0.99, guess), fontsize=7, color="0.3", **place)


def mark_phases(axis, config: RunConfig) -> None:
    """Lines where the learning rate drops, a dotted one where refinement starts."""
    marks = [(epoch, "lr / 10", "-") for epoch in config.drop_epochs]
    if "refine_start" in config.as_dict():
        marks.append((config.first_refined, "refinement", ":"))
    for epoch, text, style in marks:
        axis.axvline(epoch, color="0.5", lw=0.9, ls=style, zorder=0)
        near = any(0 < abs(drop - epoch) < config.epochs / 4 for drop in config.drop_epochs)
        above = 9 if style == ":" and near else 0  # points, so that no two names run into each other
        place = dict(xycoords=("data", "axes fraction"), xytext=(0, above), textcoords="offset points", ha="center")
        axis.annotate(text, (epoch, 1), fontsize=7, color="0.3", va="bottom", annotation_clip=True, **place)
