"""The figure of Table B.3: accuracy under attacks made on other networks."""

import statistics

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure

from sglrlib.show.style import colour_of, entitle, marker_of, setting
from sglrlib.show.tables import column_title
from sglrlib.store.results import Result


def white_and_black_box(results: dict[str, list[Result]], panels: dict[str, list[str]]) -> Figure:
    """Accuracy of each method, best checkpoint hollow and last filled, under attacks from the strongest to none.

    panels: a panel's title -> the columns along its axis. Several seeds are drawn as their mean.
    """
    sns.set_theme("paper", "ticks", "colorblind")
    figure, axes = plt.subplots(1, len(panels), figsize=(7.0, 3.3), sharey=True, squeeze=False, layout="constrained")
    for axis, (panel, columns) in zip(axes[0], panels.items(), strict=True):
        for i, (title, runs) in enumerate(results.items()):
            colour, marker = colour_of(title, results), marker_of(title, results)
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
    return entitle(figure, "Accuracy under attacks made on other networks", setting(next(iter(results.values()))))
