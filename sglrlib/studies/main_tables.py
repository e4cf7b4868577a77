"""The main tables: natural and robust accuracy of each method beside the paper's, and what PGD-20 hides."""

import statistics
from collections.abc import Iterable

import pandas as pd
from matplotlib.figure import Figure

from sglrlib.recipes import PAPER_ROWS
from sglrlib.show.style import colour_of, entitle, grid, label_points, marker_of, named, setting
from sglrlib.show.tables import column_title, interval, mean_and_spread, paper_gaps, paper_place, paper_value, per_image
from sglrlib.show.verdicts import Claim
from sglrlib.store.results import CHECKPOINTS, Result
from sglrlib.studies import published, refinement

PAIR = ("PGD-AT", "PGD-AT+SGLR")  # what the paper's claim is on


def some_rows(dataset: str, scale: str) -> dict[str, list[Result]]:
    """Those of the paper's rows that are committed at a scale with PGD-20, if more than one is."""
    row = published.rows_at(dataset, scale)
    found = {name: row(name, "pgd_20") for name in PAPER_ROWS}
    found = {name: runs for name, runs in found.items() if runs}
    return found if len(found) > 1 else {}


def trade_off(results: dict[str, list[Result]], column: str, item: str) -> Figure:
    """Robust against natural accuracy of each method, ours and the paper's: from a small hollow marker, its best
    checkpoint, to a large one, its last, whose bars are 95 % intervals; the widest at the best are in the small print.
    column: the attack that robust stands for; for one that the paper does not report, its AutoAttack is shown.
    """
    first = next(iter(results.values()))[0]
    place, own = paper_place(first)
    theirs = column if paper_value("PGD-AT", column, "best", **place) is not None else "autoattack"
    height = 4.4 if len(results) < 5 else 5.2
    figure, ((ours, paper),) = grid(1, 2, height, sharex=own, sharey=own and theirs == column)
    ends: dict = {ours: {}, paper: {}}
    for title, runs in results.items():
        both = [[statistics.fmean(r.accuracy(w, c) for r in runs) for c in ("natural", column)] for w in CHECKPOINTS]
        arrow(ours, title, *both)
        ends[ours][title] = both[1], colour_of(title)
        natural, robust = both[1]
        if len(results) < 5 or title in PAIR:
            bars = dict(color=colour_of(title), lw=0.8, alpha=0.5, zorder=1)
            ours.plot(interval(runs, "final", "natural"), [robust, robust], **bars)
            ours.plot([natural, natural], interval(runs, "final", column), **bars)
        both = [[paper_value(title, c, which, **place) for c in ("natural", theirs)] for which in ("best", "final")]
        if None not in both[0] + both[1]:
            arrow(paper, title, *both)
            ends[paper][title] = both[1], colour_of(title)
    for axis, robust, title in (
        (ours, column, f"Here: {named(first.config.dataset)}"),
        (paper, theirs, f"The paper: {named(place['dataset'])}, {named(place['model'])}"),
    ):
        axis.margins(0.15)
        axis.set(xlabel="Natural accuracy (%)", ylabel=f"{column_title(robust)} accuracy (%)")
        axis.set_title(title, loc="left", fontsize=9)
    small = setting(next(iter(results.values())), "95 % intervals over seeds and images")
    small += " Arrows: from the best epoch (hollow) to the last, whose bars are drawn."
    small += " Methods without bars have as wide ones." * (len(results) > 4)
    widest = {c: max(half_width(runs, "best", c) for runs in results.values()) for c in ("natural", column)}
    shown = ", ".join(f"± {width:.1f} points ({column_title(c)})" for c, width in widest.items())
    small += f" At the best epochs intervals of up to {shown}."
    if first.n(column) < first.n("natural"):
        small += f" {column_title(column)} on {first.n(column):,} of the test images."
    entitle(figure, message(results, column), f"{item}: {small}")
    for axis, points in ends.items():
        label_points(axis, points)
    return figure


def arrow(axis, title: str, best: list[float], last: list[float]) -> None:
    """A method's two checkpoints, (natural, robust) each: small and hollow the best, an arrow to the last."""
    colour, (x, y) = colour_of(title), zip(best, last, strict=True)
    style = dict(arrowstyle="-|>", color=colour, lw=1.1, shrinkA=2.5, shrinkB=3.5, mutation_scale=8)
    axis.annotate("", last, best, arrowprops=style, zorder=2)
    axis.plot(x, y, color=colour, lw=1.1, zorder=1)
    axis.plot(*best, marker_of(title), color=colour, mfc="white", ms=4, mew=1, zorder=3)
    axis.plot(*last, marker_of(title), color=colour, mec="white", mew=0.6, ms=7.5, zorder=4)


def half_width(runs: list[Result], which: str, column: str) -> float:
    """Half the width of the 95 % interval of an accuracy, in points."""
    low, high = interval(runs, which, column)
    return (high - low) / 2


def message(results: dict[str, list[Result]], column: str) -> str:
    """How far refined labels end above hard ones, and how many of the other methods end within their interval."""
    last = {title: statistics.fmean(run.accuracy("last", column) for run in runs) for title, runs in results.items()}
    name = column_title(column)
    if not set(PAIR) <= last.keys():
        return f"Natural accuracy and accuracy under {name}"
    gained = last[PAIR[1]] - last[PAIR[0]]
    text = f"Under {name}, {PAIR[1]} ends {abs(gained):.1f} points {'above' if gained >= 0 else 'below'} {PAIR[0]}"
    others = [value for title, value in last.items() if title not in PAIR]
    if not others:
        return text
    low, high = interval(results[PAIR[1]], "final", column)
    within = sum(low <= value <= high for value in others)
    how_many = "all" if within == len(others) else f"{within} of the"
    return f"{text}; {how_many} {len(others)} other methods end within its interval"


def gaps(results: dict[str, list[Result]]) -> pd.DataFrame:
    """PGD-20 minus AutoAttack in points, best and final: the paper's rows, and ours on the images that AutoAttack had,
    mean ± std over seeds.
    """
    table: dict[tuple[str, str], dict[str, str]] = {}
    for row in paper_gaps().itertuples():
        for when in ("best", "final"):
            at = f"the paper: {named(row.dataset)}, {named(row.model)}", when.capitalize()
            table.setdefault(at, {})[row.row] = f"{getattr(row, when):.1f}"
    for title, runs in results.items():
        n = runs[0].n("autoattack")
        for when in ("best", "final"):
            more = [per_image(run, when, f"pgd_20 on {n}") - per_image(run, when, "autoattack") for run in runs]
            at = f"ours: {named(runs[0].config.dataset)}, {n} images", when.capitalize()
            table.setdefault(at, {})[title] = mean_and_spread([100 * each.mean().item() for each in more])
    return pd.DataFrame(table, index=pd.Index(PAPER_ROWS, name="method")).fillna("–")


def claims(runs: dict[str, list[Result]], columns: Iterable[str]) -> list[Claim]:
    """The claims wherever a row with hard labels and the same with refined ones are both there."""
    found = []
    for row in [row for row in runs if f"{row}+SGLR" in runs]:
        both = runs[row], runs[f"{row}+SGLR"]
        found += refinement.claims(*both, [c for c in columns if all(run.has(c, 1) for run in [*both[0], *both[1]])])
    return found
