"""Results beside the paper's numbers, and verdicts on its claims."""

import math
import statistics

import pandas as pd
from scipy.stats import t as student

from sglrlib.paths import PAPER
from sglrlib.results import Result

COLUMN_NAMES = {"natural": "Natural", "pgd_20": "PGD-20"}


def paper_value(row: str, column: str, checkpoint: str, *, dataset: str, model: str = "resnet18") -> float | None:
    """A number of the paper's tables, in the paper's unit, or None where it reports none.

    row as in Result's title; column 'natural', 'pgd_20' or 'autoattack'; checkpoint 'best', 'final' or 'diff'.
    """
    paper = pd.read_csv(PAPER)
    found = paper.query("dataset == @dataset and model == @model and row == @row and column == @column")
    values = found.loc[found.checkpoint == checkpoint, "value"]
    return None if values.empty else float(values.iloc[0])


def beside_paper(results: dict[str, list[Result]]) -> pd.DataFrame:
    """Best, final and their difference for each method: ours (mean ± std over seeds), paper, difference, n.

    Where our run is of another dataset or network than any in the paper, its number for ResNet-18 on CIFAR-10 is shown
    for orientation, marked with a star, and no difference is taken. n is test images x seeds.
    """
    rows = []
    for label, runs in results.items():
        config = runs[0].config
        own = paper_value(config.title, "natural", "best", dataset=config.dataset, model=config.arch) is not None
        where = dict(dataset=config.dataset, model=config.arch) if own else dict(dataset="cifar10", model="resnet18")
        for column, name in COLUMN_NAMES.items():
            ours = {
                "best": [run.accuracy["best"][column] for run in runs],
                "final": [run.accuracy["last"][column] for run in runs],
                "diff": [run.drop(column) for run in runs],
            }
            for checkpoint, values in ours.items():
                paper = paper_value(config.title, column, checkpoint, **where)
                spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
                mean = statistics.fmean(values)
                rows.append(
                    {
                        "method": label,
                        "accuracy": f"{name} {checkpoint}",
                        "ours": f"{mean:.1f}{spread}",
                        "paper": "–" if paper is None else f"{paper:.1f}{'' if own else '*'}",
                        "difference": f"{mean - paper:+.1f}" if own and paper is not None else "–",
                        "n": f"{runs[0].n} x {len(runs)}",
                    }
                )
    return pd.DataFrame(rows)


def claims(hard: list[Result], refined: list[Result]) -> str:
    """The paper's claims on two methods, one line each with its verdict; PGD-20 on test images unless said."""
    a, b = hard[0].config.title, refined[0].config.title
    pairs = list(zip(hard, refined, strict=True))  # of the same seed

    def drop_of_hard() -> str:
        return verdict([h.drop("pgd_20") for h in hard], [drop_error(h, "pgd_20") for h in hard])

    def smaller_drop() -> str:
        differences = [h.drop("pgd_20") - r.drop("pgd_20") for h, r in pairs]
        return verdict(differences, [math.hypot(*(drop_error(run, "pgd_20") for run in pair)) for pair in pairs])

    def higher_at_last(column: str) -> str:
        differences = [r.accuracy["last"][column] - h.accuracy["last"][column] for h, r in pairs]
        return verdict(differences, [math.hypot(*(accuracy_error(x, "last", column) for x in pair)) for pair in pairs])

    n = f"n = {hard[0].n} test images x {len(hard)} seed{'s' * (len(hard) > 1)}"
    judged = {
        f"{a} is more robust at its best epoch than at its last (robust overfitting)": drop_of_hard(),
        f"{b} loses less of its best robust accuracy than {a}": smaller_drop(),
        f"{b} is more robust than {a} at the last epoch": higher_at_last("pgd_20"),
        f"{b} has the higher natural accuracy at the last epoch": higher_at_last("natural"),
    }
    return "\n".join(f"{claim}: {answer} ({n})" for claim, answer in judged.items())


def verdict(differences: list[float], errors: list[float]) -> str:
    """Whether a difference claimed to be positive is: 'true', 'false' or 'cannot be told from this run'.

    differences: one a seed, in points; errors: their standard errors from the number of test images. With three seeds
    or more the 95 % interval is Student's over the seeds, but never narrower than the images alone give.
    """
    n, mean = len(differences), statistics.fmean(differences)
    half = 1.96 * math.sqrt(sum(e * e for e in errors)) / n
    if n >= 3:
        half = max(half, float(student.ppf(0.975, n - 1)) * statistics.stdev(differences) / math.sqrt(n))
    return "true" if mean > half else "false" if mean < -half else "cannot be told from this run"


def drop_error(run: Result, column: str) -> float:
    """Standard error (points) of best minus last on the same n images, from the images that changed (McNemar)."""
    lost, gained = run.flips[column]["lost"], run.flips[column]["gained"]
    return 100 * math.sqrt(max(lost + gained - (lost - gained) ** 2 / run.n, 1)) / run.n


def accuracy_error(run: Result, which: str, column: str) -> float:
    """Binomial standard error (points) of an accuracy."""
    p = run.accuracy[which][column] / 100
    return 100 * math.sqrt(max(p * (1 - p), 1 / run.n) / run.n)
