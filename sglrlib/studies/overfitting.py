"""The slides' figures on robust overfitting, label rules and information in the weights: their table and claims."""

import math
import statistics
from itertools import pairwise

import pandas as pd
from scipy.stats import spearmanr

from sglrlib.show.tables import mean_and_spread
from sglrlib.show.verdicts import Claim, at_chance, judged
from sglrlib.store.results import Result, paired
from sglrlib.studies.refinement import self_guided


def table(runs: dict[str, list[Result]]) -> pd.DataFrame:
    """For each method at the best and the last epoch: generalisation gap, gradient norms and both IIW.

    The second IIW is named with the number of batches that it is summed over: its scale depends on it.
    """
    run = next(iter(runs.values()))[0]
    images = min(n for n in (run.sizes["train"], run.config.train_eval_size, run.config.attacked_size) if n)
    columns = {
        "gap": lambda row: row["train_robust"] - row["test_robust"],
        "norm, hard": lambda row: row["batch_gradient_norm_hard"],
        "norm, own": lambda row: row["batch_gradient_norm_own"],
        "IIW, paper": lambda row: row["iiw_paper"],
        f"IIW, code x 1e3, {math.ceil(images / run.config.batch_size)} batches": lambda row: 1000 * row["iiw_code"],
    }
    rows = []
    for label, those in runs.items():
        ends = [(run.curve[run.best_epoch - 1], run.curve[-1]) for run in those]
        shown = {
            name: " -> ".join(mean_and_spread([of(pair[i]) for pair in ends], 2) for i in (0, 1))
            for name, of in columns.items()
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
        found.append(judged("norm_grows", text, "log ratio, last epoch", growth, unit="", reason=why))
        for id, what, column in (
            ("smaller_norm", "a smaller gradient norm", "batch_gradient_norm_hard"),
            ("less_information", "less information in its weights", "iiw_paper"),
        ):
            less = [math.log(h.curve[-1][column] / r.curve[-1][column]) for h, r in both]
            text = f"{name} ends with {what} than {title}"
            found.append(judged(id, text, "log ratio, last epoch", less, unit="", reason=why))
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
    rows = run.curve[len(run.curve) // 10 :]
    changes = [[b[c] - a[c] for a, b in pairwise(rows)] for c in ("iiw_paper", "batch_gradient_norm_hard")]
    return spearmanr(*changes).statistic


def log_growth(run: Result, column: str = "batch_gradient_norm_hard") -> float:
    """The logarithm of a column's last value over its median in the tenth of the epochs before the rate first drops."""
    drop = run.config.drop_epochs[0] if run.config.drop_epochs else len(run.curve) // 2
    before = [row for row in run.curve if drop - math.ceil(len(run.curve) / 10) <= row["epoch"] < drop] or run.curve[:1]
    return math.log(run.curve[-1][column] / statistics.median(row[column] for row in before))
