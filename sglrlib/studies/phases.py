"""Figure B.7 and its claims: the stationary and the growth stage of training, by a rule on the gradient norm."""

import itertools
import math
import statistics

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sglrlib.show.plots import mark_chance, unequal
from sglrlib.show.style import colour_of, entitle, grid, ink, label_ends, setting
from sglrlib.show.tables import per_image
from sglrlib.show.verdicts import Claim, at_chance, judged
from sglrlib.store.results import Result, paired

NORM = "batch_gradient_norm_hard"
PANELS = {  # of Figure B.7, and what sets its stages
    "lr": "Learning rate", "test_robust": "Robust test accuracy (%)", NORM: "Gradient norm",
    "hessian_trace": "Trace of the Hessian",
}  # fmt: skip
FACTORS = 1.25, 1.5, 2  # of growth, the second that of RULE
RULE = (
    "growth starts in the first epoch from which on the mini-batch gradient norm of hard-label cross-entropy (running "
    "median over 5 epochs) stays above 1.5 times its lowest value after the first tenth of the epochs"
)


def over_epochs(results: dict[str, list[Result]], item: str = "") -> Figure:
    """PANELS over epochs under one schedule or both: piecewise is solid and has lines where its rate drops, cosine is
    dashed. A triangle marks where a run's growth starts, on its rate and its gradient norm.
    """
    figure, axes = grid(2, 2, 5.2, sharex=True)
    for axis, (column, title) in zip(axes.flat, PANELS.items(), strict=True):
        axis.set(ylabel=title, yscale="log" if column == "lr" else "linear")
        ends = {runs[0].config.schedule: curve(axis, runs, column) for runs in results.values()}
        if column == "test_robust":
            mark_chance(axis, next(iter(results.values()))[0].config)
        label_ends(axis, ends)
    for axis in axes[1]:
        axis.set_xlabel("Epoch")
    text = setting(next(iter(results.values()))) + unequal(results)
    key = f"Triangles: where growth starts, one a seed: {RULE.removeprefix('growth starts in ')}."
    return entitle(figure, starts_in_words(results), (f"{item}: " if item else "") + f"{text}\n{key}")


def curve(axis, runs: list[Result], column: str) -> tuple:
    """The mean of one column of the runs' curves, a band from lowest to highest (the trace: with its standard error), a
    line at each drop of the rate and, on rate and gradient norm, a triangle at each growth's start. Returns what
    label_ends() wants.
    """
    config, epochs = runs[0].config, [row["epoch"] for row in runs[0].curve]
    piecewise = config.schedule == "piecewise"
    colour = colour_of(config.title) if piecewise else "black"
    values = np.array([[row[column] for row in run.curve] for run in runs])
    errors = np.array([[row.get(f"{column}_error", 0) for row in run.curve] for run in runs])
    marks = dict(marker="o" if piecewise else "s", ms=4, mec="white", mew=0.5, markevery=max(1, len(epochs) // 6))
    axis.plot(epochs, values.mean(0), "-" if piecewise else "--", color=colour, lw=1.3, **marks)
    axis.fill_between(epochs, (values - errors).min(0), (values + errors).max(0), color=colour, alpha=0.15, lw=0)
    for run, of_seed in zip(runs, values, strict=True):
        start = growth_start_of(run)
        if start <= len(epochs) and column in ("lr", NORM):
            axis.plot(start, of_seed[start - 1], "v", color=colour, mec="white", mew=0.7, ms=8, zorder=5)
    for drop in config.drop_epochs:
        axis.axvline(drop, color=colour, lw=0.8, ls=":", zorder=0)
        place = dict(xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=7)
        axis.annotate("lr / 10", (drop, 1), color=ink(colour), **place)
    return epochs[-1], values[:, -1].mean(), colour


def starts_in_words(results: dict[str, list[Result]]) -> str:
    """Where the growth stage starts by RULE, beside the first drop of the learning rate, in a sentence."""
    said = []
    for runs in results.values():
        found = sorted({start for run in runs if (start := growth_start_of(run)) <= len(run.curve)})
        *others, last = found or ["none"]
        listed = f"{', '.join(map(str, others))} and {last}" if others else last
        where = f"in epoch{'s' * (len(found) > 1)} {listed}" if found else "in no epoch"
        config = runs[0].config
        drop = f", the rate first drops in epoch {config.drop_epochs[0]}" if config.drop_epochs else ""
        said.append(f"{config.schedule.capitalize()} learning rate: growth starts {where}{drop}")
    return ". ".join(said)


def growth_start(values: list[float], *, factor: float = 1.5, window: int = 5) -> int | None:
    """The epoch, counted from 1, in which the growth stage of a curve starts by RULE; None where there is none."""
    half = window // 2
    smooth = [statistics.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]
    warm = min(math.ceil(len(values) / 10), len(values) - 1)
    above = [value > factor * min(smooth[warm:]) for value in smooth]
    start = max((epoch for epoch, grown in enumerate(above, 1) if not grown), default=0) + 1
    return start if start <= len(values) else None


def stages(run: Result) -> tuple[int, int]:
    """How many epochs the stationary stage, after the first tenth, and the growth stage of a run last."""
    start, epochs = growth_start_of(run), len(run.curve)
    return start - 1 - math.ceil(epochs / 10), epochs + 1 - start


def roughness(run: Result, column: str = "test_robust") -> list[float]:
    """How far a column of the curve moves from each epoch to the next, in the second half of training."""
    values = [row[column] for row in run.curve][len(run.curve) // 2 :]
    return [abs(b - a) for a, b in itertools.pairwise(values)]


def table(runs: dict[str, list[Result]]) -> pd.DataFrame:
    """Of each run the first drop of the rate, its best epoch, where growth starts by RULE and by two other factors, how
    long the two stages are, and gradient norm and Hessian's trace ± its standard error, from the growth's start to the
    end.
    """
    rows = []
    for label, those in runs.items():
        for run in those:
            stationary, growth = stages(run)
            ends = [run.curve[-growth], run.curve[-1]] if growth else [run.curve[-1]]
            norms = [epoch[NORM] for epoch in run.curve]
            starts = [growth_start(norms, factor=factor) or "–" for factor in FACTORS]
            row = dict(run=label, seed=run.config.seed, drop=next(iter(run.config.drop_epochs), "–"))
            row["best epoch"] = run.best_epoch
            row[f"growth starts, x {' / '.join(f'{factor:g}' for factor in FACTORS)}"] = " / ".join(map(str, starts))
            row["stages (epochs)"] = f"{stationary} + {growth}"
            row["norm"] = " -> ".join(f"{epoch[NORM]:.2f}" for epoch in ends)
            row["trace"] = " -> ".join(
                "{hessian_trace:.0f} ± {hessian_trace_error:.0f}".format(**epoch) for epoch in ends
            )
            rows.append(row)
    return pd.DataFrame(rows)


def claims(piecewise: list[Result], cosine: list[Result]) -> list[Claim]:
    """What the slides and the supplement (B.5) say of the two stages and of the two schedules."""
    why, pairs = at_chance(piecewise, cosine), paired(piecewise, cosine)
    near = [math.ceil(len(run.curve) / 10) - abs(growth_start_of(run) - run.config.drop_epochs[0]) for run in piecewise]
    rises = [trace_rise(run) for run in piecewise]
    rough = [[roughness(run) for run in pair] for pair in pairs]
    spreads = [math.hypot(*(statistics.stdev(moves) / math.sqrt(len(moves)) for moves in pair)) for pair in rough]
    found = [
        judged(
            "two_stages", "the gradient norm starts to grow within a tenth of the epochs of the learning rate's first "
            "drop", "gradient norm, epochs to spare", near, unit="epochs", reason=why,
        ),
        judged(
            "sharpness", "the trace of the Hessian rises from the growth's start to the end", "trace, last - start",
            [rise for rise, _ in rises], unit="", errors=[error for _, error in rises], reason=why,
        ),
    ]  # fmt: skip
    if pairs:
        smoother = [statistics.fmean(p) - statistics.fmean(c) for p, c in rough]
        later = [abs(stages(p)[0] - stages(c)[0]) - 5 for p, c in pairs]
        overfits = [100 * per_image(run, "diff", "pgd_20") for run in cosine]
        found += [
            judged(
                "cosine_smoother", "under cosine, robust accuracy moves less from epoch to epoch",
                "robust, mean change, second half", smoother, errors=spreads, reason=why,
            ),
            judged(
                "cosine_overfits", "cosine does not prevent robust overfitting", "PGD-20, best - last", overfits,
                reason=why,
            ),
            judged(
                "cosine_border", "under cosine the stationary stage is longer or shorter by more than 5 epochs",
                "gradient norm, epochs beyond 5", later, unit="epochs", reason=why,
            ),
        ]  # fmt: skip
    return found


def growth_start_of(run: Result) -> int:
    """The epoch in which a run's growth stage starts, the one after the last where there is none."""
    return growth_start([row[NORM] for row in run.curve]) or len(run.curve) + 1


def trace_rise(run: Result) -> tuple[float, float]:
    """By how much the trace of the Hessian is higher at the end than where growth starts, and its standard error."""
    start, end = run.curve[-max(1, stages(run)[1])], run.curve[-1]
    return end["hessian_trace"] - start["hessian_trace"], math.hypot(
        start["hessian_trace_error"], end["hessian_trace_error"]
    )
