"""Notebook 12: what each part of the method is worth at the end of training."""

import statistics
from collections.abc import Callable, Iterable

from matplotlib.figure import Figure

from sglrlib.show.style import colour_of, entitle, grid, ink, marker_of, named, setting
from sglrlib.show.tables import column_title, interval
from sglrlib.show.verdicts import SEEDS, Claim, at_chance, judged
from sglrlib.store.results import Result, paired
from sglrlib.studies.refinement import bars, gain

PARTS = (("r", 0.5), ("alpha", 0.0), ("lam", 0.0), ("lam", 1.0), ("refine_start", 0.65))  # one changed at a time
NORMED = dict(arch="bn_cnn16", epochs=30)  # the control's network on digits, where the recipe's has no BatchNorm
PLAIN, PASSED, WHOLE = "PGD-AT", "PGD-AT with the pass", "the whole method"
Make = Callable[..., list]  # a row's name and changes -> its configurations or results, one a seed


def cases(row: Make, parts: Iterable[tuple[str, float]] = PARTS) -> dict[str, list]:
    """PGD-AT, the whole method, and the method with each of the parts changed."""
    changed = {label(name, value): row("PGD-AT+SGLR", **{name: value}) for name, value in parts}
    return {PLAIN: row("PGD-AT"), WHOLE: row("PGD-AT+SGLR"), **changed}


def controls(row: Make) -> dict[str, list]:
    """PGD-AT and the whole method, with and without a pass on clean images in train mode."""
    return {
        PLAIN: row("PGD-AT"),
        PASSED: row("PGD-AT", clean_pass="always"),
        WHOLE: row("PGD-AT+SGLR"),
        f"{WHOLE} (pass in eval mode)": row("PGD-AT+SGLR", clean_pass="eval"),
    }


def claims(cases: dict[str, list[Result]], controls: dict[str, list[Result]]) -> list[Claim]:
    """That the whole method ends above each change of a part, and above PGD-AT with the pass; natural and PGD-20."""
    text = f"{WHOLE} ends above the same with one part changed"
    rivals = [("parts", text, cases, name) for name in cases if name not in (WHOLE, PLAIN)]
    found = []
    for id, text, runs, name in [*rivals, ("control", f"{WHOLE} ends above PGD-AT with the pass", controls, PASSED)]:
        one, other = runs.get(WHOLE, []), runs.get(name, [])
        for column in ("natural", "pgd_20") if paired(one, other) else ():
            of = f"{name}: {column_title(column)}, last epoch"
            found.append(judged(id, text, of, gain(one, other, column), reason=at_chance(one, other)))
    return found


def label(name: str, value: float) -> str:
    """A changed part in the paper's words: 'λ = 1', 'start at 65% of the epochs'."""
    return f"start at {value:.0%} of the epochs" if name == "refine_start" else f"{named(name)} = {value:g}"


def forest(results: dict[str, list[Result]], against: str, item: str, column: str = "pgd_20") -> Figure:
    """Robust accuracy of each label of results at its last epoch, the highest on top, and by how much it differs from
    that of one of them, robust and natural: dots with 95 % intervals, and a small dot for each seed. As in claims(),
    the difference is positive where the whole method is ahead.
    """
    means = {name: statistics.fmean(run.accuracy("last", column) for run in runs) for name, runs in results.items()}
    order, base, differences = sorted(means, key=means.get), results[against], {}
    sign, what = (-1, "whole − this row") if against == WHOLE else (1, f"this row − {against}")
    figure, (axes,) = grid(1, 3, 1.5 + 0.27 * len(order), sharey=True, width_ratios=[1.2, 1, 1])
    colours = [colour_of(results[name][0].config.title) for name in order]
    for y, (name, colour) in enumerate(zip(order, colours, strict=True)):
        runs = results[name]
        how = dict(fmt=marker_of(runs[0].config.title), color=colour, ms=6.5, mec="white", mew=0.6, lw=1.4)
        low, high = interval(runs, "final", column)
        axes[0].errorbar(means[name], y, xerr=[[means[name] - low], [high - means[name]]], **how)
        axes[0].plot([run.accuracy("last", column) for run in runs], [y + 0.3] * len(runs), ".", color=colour, ms=4)
        if name != against and paired(runs, base):
            found = [judged("", "", "", gain(runs, base, c)) for c in (column, "natural")]
            differences[name] = found[0]
            for axis, one in zip(axes[1:], found, strict=True):
                low, high = sorted((sign * one.low, sign * one.high))
                axis.errorbar(sign * one.effect, y, xerr=[[sign * one.effect - low], [high - sign * one.effect]], **how)
    for axis, title in zip(axes[1:], (column_title(column), "Natural"), strict=True):
        axis.axvline(0, color="0.4", lw=0.9, zorder=0)
        axis.set_xlabel(f"{title} (points):\n{what}")
    axes[0].set_xlabel(f"{column_title(column)},\naccuracy (%)")
    axes[0].set(yticks=range(len(order)), yticklabels=order, ylim=(-0.5, len(order) - 0.3))
    for text, colour in zip(axes[0].get_yticklabels(), colours, strict=True):
        text.set(color=ink(colour), weight="bold" if text.get_text() == against else "normal")
    small = setting(base, bars(base))
    small += " Last epoch. Small dots: single seeds. Differences image by image."
    said = message(differences, against) if differences else f"only {against} is there"
    return entitle(figure, f"Under {column_title(column)}: {said}", f"{item}: {small}")


def message(differences: dict[str, Claim], against: str) -> str:
    """Which labels end above, which below that of comparison, and which cannot be told from it."""
    kinds = {
        "below": [name for name, found in differences.items() if found.high < 0],
        "above": [name for name, found in differences.items() if found.low > 0],
    }
    told = {where: names for where, names in kinds.items() if names}
    parts = [f"{listed(names)} end{'s' * (len(names) == 1)} {where} {against}" for where, names in told.items()]
    alike = [name for name in differences if all(name not in names for names in kinds.values())]
    if alike:
        parts.append(f"{listed(alike)} cannot be told from {'it' if parts else against}")
    few = any(found.seeds < SEEDS for found in differences.values())
    return "; ".join(parts) + " in these runs" * few


def listed(names: list[str]) -> str:
    """'a, b and c'."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
