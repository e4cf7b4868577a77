"""The slides' figures on robust overfitting, label rules and information in the weights: their table and claims."""

import math
import statistics

import pandas as pd
from scipy.stats import spearmanr

from sglrlib.show.tables import at_chance, claim, differences, judge, mean_and_spread
from sglrlib.store.results import Result, paired
from sglrlib.studies.phases import stages


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


def rival_claims(others: dict[str, list[Result]]) -> str:
    """That self-guided labels end more robust than every other rule but hard labels."""
    if guessing := at_chance(*others.values()):
        return guessing
    refined = self_guided(others)
    lines = []
    for rival, those in others.items() if refined else ():
        if those is not refined:
            gain = differences(refined, those, "final", "pgd_20")
            text = f"{refined[0].config.title} is more robust than {rival} at the last epoch"
            lines.append(claim(text, "pgd_20", gain))
    return "\n".join(lines)


def weight_claims(hard: list[Result], others: dict[str, list[Result]]) -> str:
    """What the slides say of gradient norm and IIW, and what refinement does to both at the last epoch."""
    if guessing := at_chance(hard, *others.values()):
        return guessing
    title, seeds = hard[0].config.title, f"{len(hard)} seed{'s' * (len(hard) > 1)}"
    of = f"{len(hard[0].curve)} epochs x {seeds}"
    correlations = [trend(run) for run in hard]
    shown = ", ".join(f"{rho:.2f}" for rho in correlations)
    together = all_of(rho > 0.5 for rho in correlations)
    lines = [
        f"The gradient norm of {title} grows to the end: {all_of(stages(run)[1] > 0 for run in hard)} "
        f"(rule of notebook 06, {of})",
        f"IIW and gradient norm of {title} rise and fall together: {together} "
        f"(Spearman's rho {shown}; true above 0.5, {of})",
    ]
    if refined := self_guided(others):
        name = refined[0].config.title
        columns = {
            "a smaller gradient norm": "batch_gradient_norm_hard",
            "less information in its weights": "iiw_paper",
        }
        for what, column in columns.items():
            less = [h.curve[-1][column] - r.curve[-1][column] for h, r in paired(hard, refined)]
            text = f"{name} ends with {what} than {title}"
            lines.append(judge(text, less, [0.0] * len(less), f"one number a seed, {seeds}"))
    return "\n".join(lines)


def self_guided(runs: dict[str, list[Result]]) -> list[Result] | None:
    """The runs with self-guided labels, if there are any."""
    return next((those for those in runs.values() if those[0].config.labels == "self_guided"), None)


def trend(run: Result) -> float:
    """Spearman's rank correlation of IIW and gradient norm over the epochs after the first tenth."""
    rows = run.curve[len(run.curve) // 10 :]
    return spearmanr([r["iiw_paper"] for r in rows], [r["batch_gradient_norm_hard"] for r in rows]).statistic


def all_of(truths) -> str:
    """'true', 'false', or for how many of the seeds."""
    truths = list(truths)
    share = statistics.fmean(truths)
    return {1.0: "true", 0.0: "false"}.get(share, f"true for {sum(truths)} of {len(truths)} seeds")
