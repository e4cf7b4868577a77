"""Table B.3: accuracy under attacks made on other networks."""

import statistics
import textwrap
from collections.abc import Iterable

from matplotlib.figure import Figure

from sglrlib.show.style import colour_of, entitle, grid, label_ends, marker_of, named, setting
from sglrlib.show.tables import CHECKPOINTS, column_title, interval, paper_value
from sglrlib.show.verdicts import Claim
from sglrlib.store.results import Result
from sglrlib.studies import published, refinement

# Networks that the attacks are made on, at each scale: the paper's, and what stands for them.
SOURCES = dict(mini="cnn24, cnn32", small="preact_resnet18_16, preact_resnet10_32", paper="resnet34, resnet50")
PAPER_PLACE = dict(dataset="cifar10", model="resnet18")
PAPER_SOURCES = SOURCES["paper"].split(", ")


def transferred(dataset: str, scale: str) -> dict[str, list[Result]]:
    """PGD-AT and PGD-AT+SGLR as they are committed at a scale, if attacks from other networks are among the columns."""
    rows = ("PGD-AT", "PGD-AT+SGLR")
    row = published.rows_at(dataset, scale)
    return {name: [run for run in row(name) if made(run)] for name in rows}


def made(run: Result) -> list[str]:
    """A run's columns of attacks made on other networks."""
    return [column for column in run.evaluations["best"] if " from " in column and run.has(column, 1)]


def stand_ins(archs: Iterable[str]) -> dict[str, str]:
    """Network that attacks are made on -> that of the paper's which it is or stands for; itself beyond the second."""
    archs = list(dict.fromkeys(archs))
    free = [name for name in PAPER_SOURCES if name not in archs]
    return {arch: free.pop(0) if free and arch not in PAPER_SOURCES else arch for arch in archs}


def beside(columns: Iterable[str]) -> dict[str, str]:
    """Our columns of attacks made on other networks -> the paper's columns to compare them with."""
    parts = {column: column.split(" ")[:3:2] for column in columns}  # attack and network
    theirs = stand_ins(arch for _, arch in parts.values())
    return {column: f"{attack} from {theirs[arch]}" for column, (attack, arch) in parts.items()}


def white_and_black_box(results: dict[str, list[Result]], columns: dict[str, str], item: str) -> Figure:
    """Accuracy of each method under its own attack, under those made on other networks, and under none: best checkpoint
    hollow, last filled. Above ours, with 95 % intervals, below the paper's. columns: as of beside().
    """
    attacks = list(dict.fromkeys(column.split(" ")[0] for column in columns))
    figure, axes = grid(2, len(attacks), 5.2, sharey="row")
    for attack, (above, below) in zip(attacks, axes.T, strict=True):
        borrowed = [column for column in columns if column.startswith(f"{attack} ")]
        ours, theirs = [attack, *borrowed, "natural"], ["", *(columns[column] for column in borrowed), "natural"]
        ends: dict = {above: {}, below: {}}
        for i, (title, runs) in enumerate(results.items()):
            how = dict(fmt=marker_of(title, results), color=colour_of(title, results), ms=5.5, mew=1.1, lw=1)
            for which, face, aside in (("best", "white", -0.07), ("final", how["color"], 0.07)):
                at = [x + aside + 0.3 * (i - (len(results) - 1) / 2) for x in range(len(ours))]
                mean = [statistics.fmean(run.accuracy(CHECKPOINTS[which], column) for run in runs) for column in ours]
                bounds = [interval(runs, which, column) for column in ours]
                bars = zip(*((y - low, high - y) for y, (low, high) in zip(mean, bounds, strict=True)), strict=True)
                above.errorbar(at, mean, yerr=list(bars), mfc=face, **how)
                paper = [paper_value(title, column, which, **PAPER_PLACE) for column in theirs]
                known = [(x, y) for x, y in zip(at, paper, strict=True) if y is not None]
                below.errorbar(*zip(*known, strict=True), mfc=face, **how)
                ends[above][title] = len(ours) - 0.6, mean[-1], how["color"]
                ends[below][title] = len(ours) - 0.6, known[-1][1], how["color"]
        for axis, those, first in ((above, ours, "itself"), (below, theirs, "itself:\nnot printed")):
            names = [textwrap.fill(named(column.split(" ")[2]), 12) for column in those[1:-1]]
            axis.set_xticks(range(len(those)), [first, *names, "no attack"], fontsize=8)
            axis.set_xlim(-0.5, len(those) - 0.5)
            axis.grid(axis="y", lw=0.4)
            if attack == attacks[-1]:
                label_ends(axis, ends[axis])
        above.set_title(f"{column_title(attack).replace('_inf', '∞')} made on", fontsize=9)
    axes[0, 0].set_ylabel("Here: accuracy (%)")
    axes[1, 0].set_ylabel("The paper: accuracy (%)")
    first = next(iter(results.values()))
    small = setting(first, refinement.bars(first))
    small += " Below: Table B.3 on CIFAR-10, attacks on ResNet-18, and its accuracy without attack in Table B.4."
    return entitle(figure, message(results, columns), f"{item}: {small} Hollow: best epoch; filled: last.")


def message(results: dict[str, list[Result]], columns: Iterable[str]) -> str:
    """How much more accuracy attacks made on other networks leave at the end than a method's own."""
    parts = []
    for title, runs in results.items():
        gained = [[run.accuracy("last", c) - run.accuracy("last", c.split(" ")[0]) for run in runs] for c in columns]
        more = [statistics.fmean(values) for values in gained]
        parts.append(f"{title} {min(more):.0f} to {max(more):.0f} points")
    return (
        f"At the last epoch attacks made on other networks leave more accuracy than a network's own: {', '.join(parts)}"
    )


def claims(results: dict[str, list[Result]], columns: Iterable[str]) -> list[Claim]:
    """That the refined network does not hide its gradients, and has the smaller gap between best and last."""
    hard, refined = results.values()
    return refinement.masking_claims(refined, columns) + refinement.gap_claims(hard, refined, columns)
