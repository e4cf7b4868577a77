"""The slides on robust overfitting, label rules and information in the weights: their figures, table and claims."""

import math
import statistics
from itertools import pairwise

import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from sglrlib.show import plots
from sglrlib.show.style import colour_of, entitle, grid, label_ends, label_points, marker_of, setting
from sglrlib.show.tables import mean_and_spread
from sglrlib.show.verdicts import Claim, at_chance, judged
from sglrlib.store.results import Result, paired
from sglrlib.studies.refinement import self_guided

Runs = dict[str, list[Result]]  # method -> its runs, one a seed
NORM, IIW = "batch_gradient_norm_hard", "iiw_paper"
FORMULA = "IIW, PIB's formula"  # as it is named in figures


def gradient_norm(results: Runs, item: str = "") -> Figure:
    """The slides' two panels over epochs: gradient norm and generalisation gap."""
    panels = {"Gradient norm": NORM, "Robust: training − test (points)": "train_robust - test_robust"}
    return side_by_side(results, panels, grows("the gradient norm", NORM, results), item)


def information(results: Runs, item: str = "") -> Figure:
    """IIW over epochs, each estimator in a panel of its own."""
    panels = {FORMULA: IIW, "IIW, PIB's code": "iiw_code"}
    return side_by_side(results, panels, grows("IIW by PIB's formula", IIW, results), item)


def label_rules(results: Runs, item: str = "") -> Figure:
    """Robust test accuracy and gradient norm over epochs."""
    panels = {"Test accuracy, PGD-10 (%)": "test_robust", "Gradient norm": NORM}
    figure = side_by_side(results, panels, plots.losses(results), item)
    return entitle(figure, figure.get_suptitle(), f"{small(results, item)} Headline: PGD-20, all test images.")


def remaining(results: Runs, item: str = "") -> Figure:
    """What else was recorded: gradient norms of each method's own loss and of all images at once, and sharpness."""
    panels = {
        "Gradient norm, own loss": "batch_gradient_norm_own",
        "Norm of the mean gradient": "gradient_norm_hard",
        "Trace of the Hessian": "hessian_trace",
    }
    return side_by_side(results, panels, grows("the trace of the Hessian", "hessian_trace", results), item)


def information_of_rules(results: Runs, item: str = "") -> Figure:
    """IIW over epochs; and at the last one, beside the robust accuracy lost after the best: each seed, and the mean."""
    figure, (axes,) = grid(1, 2, 3.3)
    label_ends(axes[0], panel(axes[0], results, FORMULA, IIW))
    means = {}
    for label, runs in results.items():
        points = [(run.drop("pgd_20"), run.curve[-1][IIW]) for run in runs]
        colour, marker = colour_of(label, results), marker_of(label, results)
        axes[1].plot(*zip(*points, strict=True), marker, color=colour, ms=4, alpha=0.5, mew=0)
        means[label] = [statistics.fmean(values) for values in zip(*points, strict=True)]
        axes[1].plot(*means[label], marker, color=colour, ms=8, mec="white", mew=0.5)
    axes[1].set(xlabel="Robust accuracy lost (points)", yscale="log", ylim=axes[0].get_ylim())
    axes[1].set_ylabel(f"{FORMULA}, last epoch")
    (first, (_, usual)), most = next(iter(means.items())), max(means, key=lambda label: means[label][1])
    message = f"{most} ends with {means[most][1] / usual:.1f} times the IIW of {first} and loses"
    message += f" {means[most][0]:.1f} points of robust accuracy, {first} {means[first][0]:.1f}"
    entitle(figure, message, small(results, item) + " Right: a small mark a seed, a large one their mean.")
    label_points(axes[1], {label: (mean, colour_of(label, results)) for label, mean in means.items()})
    return figure


def side_by_side(results: Runs, panels: dict[str, str], message: str, item: str) -> Figure:
    """Panels over epochs, one column of the curve each; rings at the best epochs."""
    figure, axes = grid(1, len(panels), 3.3, sharex=True)
    for axis, (title, column) in zip(axes.flat, panels.items(), strict=True):
        ends = panel(axis, results, title, column)
    label_ends(axis, ends)
    return entitle(figure, message, small(results, item))


def panel(axis, results: Runs, title: str, column: str) -> dict:
    """One column of the curve over epochs, IIW on a logarithmic axis, a ring at each seed's best epoch.

    What the first tenth of the epochs holds does not stretch the axis. Returns what label_ends() wants.
    """
    config = max((runs[0].config for runs in results.values()), key=lambda config: "refine_start" in config.as_dict())
    ends = plots.lines(axis, results, {column: "-"}, best=column)
    plots.mark_phases(axis, config)
    axis.set(xlabel="Epoch", ylabel=title)
    values = [plots.value(row, column) for runs in results.values() for run in runs for row in settled(run)]
    room = 0.05 * (max(values) - min(values)) or 1
    axis.set_ylim(min(values) - room, max(values) + room)
    if column.startswith("iiw") and min(values) > 0:
        axis.set(yscale="log", ylim=(min(values) / 1.3, 1.3 * max(values)))
    if column.startswith("test"):
        plots.mark_chance(axis, config)
    return ends


def small(results: Runs, item: str) -> str:
    """What stands below a figure of panels."""
    text = setting(next(iter(results.values()))) + plots.unequal(results) + " Rings: best epoch of each seed."
    return f"{item}: {text}" if item else text


def settled(run: Result) -> list[dict]:
    """The curve without the first tenth of the epochs."""
    return run.curve[len(run.curve) // 10 :]


def grows(what: str, column: str, results: Runs) -> str:
    """How many times as large a column is at the end as after the first drop of the learning rate, in a sentence."""
    grown = {
        label: statistics.fmean(run.curve[-1][column] for run in runs)
        / (statistics.fmean(after_drop(run, column) for run in runs) or math.nan)
        for label, runs in results.items()
    }
    each = ", ".join(f"{factor:.1f}-fold with {label}" for label, factor in grown.items())
    return f"After the first drop of the learning rate {what} grows {each}"


def after_drop(run: Result, column: str) -> float:
    """A column's median in the tenth of the epochs from the first drop of the learning rate on."""
    first = run.config.drop_epochs[0] if run.config.drop_epochs else len(run.curve) // 2
    after = [row for row in run.curve if first <= row["epoch"] < first + math.ceil(len(run.curve) / 10)]
    return statistics.median(row[column] for row in after or run.curve[-1:])


def table(runs: dict[str, list[Result]]) -> pd.DataFrame:
    """For each method at the best and the last epoch: generalisation gap, gradient norm and both IIW.

    The second IIW is named with the number of batches that it is summed over: its scale depends on it.
    """
    run = next(iter(runs.values()))[0]
    images = min(n for n in (run.sizes["train"], run.config.train_eval_size, run.config.attacked_size) if n)
    columns = {  # name -> column of the curve, factor, decimals
        "gap (points)": ("train_robust - test_robust", 1, 1),
        "gradient norm": (NORM, 1, 2),
        "IIW, formula": (IIW, 1, 0),
        f"IIW, code x 1,000 ({math.ceil(images / run.config.batch_size)} batches)": ("iiw_code", 1000, 1),
    }
    rows = []
    for label, those in runs.items():
        ends = [[run.curve[run.best_epoch - 1] for run in those], [run.curve[-1] for run in those]]
        shown = {
            name: " -> ".join(mean_and_spread([by * plots.value(row, column) for row in end], digits) for end in ends)
            for name, (column, by, digits) in columns.items()
        }
        rows.append(dict(method=label) | shown | dict(seeds=len(those)))
    return pd.DataFrame(rows)


def claims(hard: list[Result], others: dict[str, list[Result]]) -> list[Claim]:
    """What the slides say of gradient norm and IIW, and what refinement does to both at the last epoch.

    A norm that grows as the learning rate falls is nothing special: it has to grow more than that of the network with
    refined labels. Two curves that both rise correlate whatever they are, so it is their changes from epoch to epoch
    that are correlated, after the first tenth of the epochs. That IIW marks robust overfitting would mean that the
    label rules which lose more robust accuracy have more of it.
    """
    title, refined = hard[0].config.title, self_guided(others)
    found = [
        judged(
            "iiw_follows_norm", f"IIW and gradient norm of {title} change alike", "Spearman's rho of their changes",
            [correlation(run) for run in hard], unit="rho", reason=at_chance(hard),
        )
    ]  # fmt: skip
    if refined and paired(hard, refined):
        name, why = refined[0].config.title, at_chance(hard, refined)
        both = paired(hard, refined)
        growth = [log_growth(h) - log_growth(r) for h, r in both]
        text = f"the gradient norm of {title} grows more after the first drop of the learning rate than that of {name}"
        of = f"log of the ratio of growths, {title} to {name}"
        found.append(judged("norm_grows", text, of, growth, unit="", reason=why))
        for id, what, column in (
            ("smaller_norm", "a smaller gradient norm", "batch_gradient_norm_hard"),
            ("less_information", "less information in its weights", "iiw_paper"),
        ):
            less = [math.log(h.curve[-1][column] / r.curve[-1][column]) for h, r in both]
            text = f"{name} ends with {what} than {title}"
            of = f"log of the ratio, {title} to {name}, last epoch"
            found.append(judged(id, text, of, less, unit="", reason=why))
    rules = [hard, *others.values()]
    seeds = set.intersection(*({run.config.seed for run in those} for those in rules))
    if len(rules) > 2 and seeds:
        marks = []
        for seed in sorted(seeds):
            of_seed = [next(run for run in those if run.config.seed == seed) for those in rules]
            drops, iiw = [run.drop("pgd_20") for run in of_seed], [run.curve[-1]["iiw_paper"] for run in of_seed]
            marks.append(spearmanr(drops, iiw).statistic)
        text = "label rules that lose more robust accuracy end with more IIW"
        of = f"Spearman's rho over {len(rules)} rules"
        found.append(judged("iiw_marks_overfitting", text, of, marks, unit="rho", reason=at_chance(*rules)))
    return found


def correlation(run: Result) -> float:
    """Spearman's rho of the changes of IIW and gradient norm from epoch to epoch, after the first tenth of them."""
    rows = settled(run)
    changes = [[b[c] - a[c] for a, b in pairwise(rows)] for c in ("iiw_paper", "batch_gradient_norm_hard")]
    return spearmanr(*changes).statistic


def log_growth(run: Result, column: str = "batch_gradient_norm_hard") -> float:
    """The logarithm of a column's last value over its median in the tenth of the epochs before the rate first drops."""
    drop = run.config.drop_epochs[0] if run.config.drop_epochs else len(run.curve) // 2
    before = [row for row in run.curve if drop - math.ceil(len(run.curve) / 10) <= row["epoch"] < drop] or run.curve[:1]
    return math.log(run.curve[-1][column] / statistics.median(row[column] for row in before))
