"""Table B.1 and its claims: the calibration of a run's checkpoints, natural and under attacks."""

import math
import statistics
from collections.abc import Callable, Iterable
from functools import partial

import pandas as pd

from sglrlib.judging.diagnostics import calibration_error, confidence_gap, standard_error
from sglrlib.show.tables import CHECKPOINTS, at_chance, column_title, judge, paper_place, paper_value
from sglrlib.show.tables import standard_error as image_error
from sglrlib.store.results import Result, paired


def table(runs: dict[str, list[Result]], attacks: Iterable[str], power: float = 1.0) -> pd.DataFrame:
    """ECE (15 bins, power m) and confidence gap of each method's checkpoints under each attack, beside Table B.1.

    Means over the seeds ± the bootstrap's standard error over the test images. The paper's number is marked as in
    tables.beside_paper(); that for Square stands beside any number of queries.
    """
    rows = []
    ece = partial(calibration_error, power=power)
    for label, those in runs.items():
        place, own = paper_place(those[0])
        for attack in attacks:
            for checkpoint, which in CHECKPOINTS.items():
                column = f"ece {'square' if attack.startswith('square') else attack}"
                paper = paper_value(those[0].config.title, column, checkpoint, **place)
                rows.append(
                    {
                        "method": label,
                        "attack": column_title(attack),
                        "checkpoint": checkpoint,
                        "ECE": "{:.3f} ± {:.3f}".format(*over_seeds(those, which, attack, ece)),
                        "conf - acc": "{:+.3f} ± {:.3f}".format(*over_seeds(those, which, attack, confidence_gap)),
                        "paper's ECE": "–" if paper is None else f"{paper:.2f}{'' if own else '*'}",
                        "n": f"{len(those[0].confidence(which, attack)[0])} x {len(those)}",
                    }
                )
    return pd.DataFrame(rows)


def claims(hard: list[Result], refined: list[Result], attacks: Iterable[str]) -> str:
    """What the supplement says in B.2, one line each with its verdict; and what its unsigned measure hides."""
    if guessing := at_chance(hard, refined):
        return guessing
    a, b = hard[0].config.title, refined[0].config.title
    lines = []
    for attack in attacks:
        lines += [
            compare(
                f"{a} is worse calibrated at its last epoch than at its best", (hard, "last"), (hard, "best"), attack
            ),
            compare(f"{b} is better calibrated than {a} at the last epoch", (hard, "last"), (refined, "last"), attack),
            compare(f"{b} is better calibrated than {a} at the best epoch", (hard, "best"), (refined, "best"), attack),
            under_confident(f"{b} is under-confident at the last epoch", refined, "last", attack),
            less_often_sure(f"{b} is less often more than 90 % sure than {a} at the last epoch", hard, refined, attack),
        ]
    return "\n".join(lines)


def compare(text: str, larger: tuple, smaller: tuple, attack: str = "natural") -> str:
    """A claim that the ECE of some (runs, checkpoint) is larger than that of others under an attack."""
    if guessing := at_chance(larger[0], smaller[0]):
        return guessing
    checkpoints = larger[1], smaller[1]
    pairs = [
        [one(run, which, attack, calibration_error) for run, which in zip(pair, checkpoints, strict=True)]
        for pair in paired(larger[0], smaller[0])
    ]
    differences = [more - less for (more, _), (less, _) in pairs]
    return judge(
        text, differences, [math.hypot(e, f) for (_, e), (_, f) in pairs], source(larger[0], larger[1], attack)
    )


def under_confident(text: str, runs: list[Result], which: str, attack: str) -> str:
    """A claim that the mean confidence is below the accuracy."""
    values = [one(run, which, attack, confidence_gap) for run in runs]
    return judge(text, [-value for value, _ in values], [error for _, error in values], source(runs, which, attack))


def less_often_sure(text: str, hard: list[Result], refined: list[Result], attack: str) -> str:
    """A claim that confidence is above 0.9 on fewer images at the last epoch of the refined runs."""
    gains = []
    for pair in paired(hard, refined):
        h, r = ((run.confidence("last", attack)[0] > 0.9).double() for run in pair)
        gains.append(h - r)
    means, errors = [100 * gain.mean().item() for gain in gains], [image_error(gain) for gain in gains]
    return judge(text, means, errors, source(refined, "last", attack))


def one(run: Result, which: str, attack: str, statistic: Callable) -> tuple[float, float]:
    """A statistic of (confidence, right) and its standard error."""
    confidence, _, right = run.confidence(which, attack)
    return statistic(confidence, right), standard_error(statistic, confidence, right)


def over_seeds(runs: list[Result], which: str, attack: str, statistic: Callable) -> tuple[float, float]:
    """The mean of one() over the seeds, and its standard error from the images."""
    values, errors = zip(*(one(run, which, attack, statistic) for run in runs), strict=True)
    return statistics.fmean(values), math.hypot(*errors) / len(errors)


def source(runs: list[Result], which: str, attack: str) -> str:
    n = len(runs[0].confidence(which, attack)[0])
    return f"{column_title(attack)}, n = {n} test images x {len(runs)} seed{'s' * (len(runs) > 1)}"
