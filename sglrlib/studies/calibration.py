"""Table B.1 and its claims: the calibration of a run's checkpoints, natural and under attacks."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from sglrlib.judging.diagnostics import calibration_error, confidence_gap, reliability, standard_error
from sglrlib.show.style import colour_of, entitle, grid, marker_of, setting
from sglrlib.show.tables import CHECKPOINTS, column_title, paper_place, paper_value
from sglrlib.show.verdicts import Claim, at_chance, judged
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


def claims(
    hard: list[Result], refined: list[Result], attacks: Iterable[str], standard: Sequence[Result] = ()
) -> list[Claim]:
    """What the supplement says in B.2; and what its unsigned measure hides."""
    a, b, why = hard[0].config.title, refined[0].config.title, at_chance(hard, refined)
    last, best = (hard, "last"), (hard, "best")
    found = []
    if standard:
        text = f"{a} is better calibrated than standard training"
        of = "ECE without attack, last epoch"
        values = more((list(standard), "last"), last, "natural", ece_of_each)
        found.append(judged("standard_calibration", text, of, values, unit="", reason=at_chance(hard, standard)))
    for attack in attacks:
        name = column_title(attack)
        for id, text, when, larger, smaller in (
            ("calibration_worsens", f"{a} is worse calibrated at its last epoch than at its best", "", last, best),
            ("calibration_spared", f"{b} is better calibrated than {a}", ", last epoch", last, (refined, "last")),
            ("calibration_spared", f"{b} is better calibrated than {a}", ", best epoch", best, (refined, "best")),
        ):
            values = more(larger, smaller, attack, ece_of_each)
            found.append(judged(id, text, f"ECE under {name}{when}", values, unit="", reason=why))
        surer = more(last, (refined, "last"), attack, lambda highest, right: (highest > 0.9).double())
        text, of = f"{b} is less often more than 90 % sure than {a}", f"share of images, {name}, last epoch"
        found.append(judged("less_confident", text, of, [100 * v for v in surer], reason=why))
        doubt = [right.double() - highest for highest, _, right in (run.confidence("last", attack) for run in refined)]
        text, of = f"{b} is under-confident", f"accuracy - confidence, {name}, last epoch"
        found.append(judged("under_confident", text, of, doubt, unit="", reason=why))
    return found


def more(larger: tuple, smaller: tuple, attack: str, of_each: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
    """Image by image, what one (runs, checkpoint) has more of than another, for each seed that both have."""
    found = []
    for pair in paired(larger[0], smaller[0]):
        one, other = (run.confidence(which, attack) for run, which in zip(pair, (larger[1], smaller[1]), strict=True))
        found.append(of_each(one[0], one[2]) - of_each(other[0], other[2]))
    return found


def ece_of_each(confidence: Tensor, right: Tensor, bins: int = 15) -> Tensor:
    """What each sample adds to the ECE, (n,), whose mean it is: confidence - right, signed as the sum in its bin is.

    Their spread is the jackknife's, but for bins that one sample turns round.
    """
    edges = torch.arange(1, bins, dtype=torch.float64) / bins
    place, gaps = torch.bucketize(confidence, edges), confidence - right.double()
    return torch.zeros(bins, dtype=torch.float64).index_add(0, place, gaps).sign()[place] * gaps


def one(run: Result, which: str, attack: str, statistic: Callable) -> tuple[float, float]:
    """A statistic of (confidence, right) and its standard error."""
    confidence, _, right = run.confidence(which, attack)
    return statistic(confidence, right), standard_error(statistic, confidence, right)


def over_seeds(runs: list[Result], which: str, attack: str, statistic: Callable) -> tuple[float, float]:
    """The mean of one() over the seeds, and its standard error from the images."""
    values, errors = zip(*(one(run, which, attack, statistic) for run in runs), strict=True)
    return statistics.fmean(values), math.hypot(*errors) / len(errors)


def figure(results: dict[str, list[Result]], attacks: Iterable[str], which: str = "last") -> Figure:
    """Above, reliability diagrams of a checkpoint under each attack; below, the density of the labelled class's
    probability. One colour a method, the first seed's.
    """
    attacks = list(attacks)
    figure, axes = grid(2, len(attacks), 4.2, sharex=True)
    for (top, bottom), attack in zip(axes.T, attacks, strict=True):
        top.plot([0, 1], [0, 1], color="0.6", lw=0.9, zorder=0)
        for label, runs in results.items():
            highest, labelled, right = runs[0].confidence(which, attack)
            count, confidence, accuracy = reliability(highest, right)
            colour, marker = colour_of(label, results), marker_of(label, results)
            top.plot(confidence[count > 0], accuracy[count > 0], f"-{marker}", color=colour, ms=3.5, lw=1)
            bottom.hist(labelled, 20, range=(0, 1), density=True, histtype="step", color=colour, lw=1.3)
        title = "no attack" if attack == "natural" else column_title(attack)
        top.set(title=f"{title}, n = {len(right)}", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        bottom.set_yscale("log")
        top.set_xlabel("Confidence")
        top.tick_params(labelbottom=True)
        bottom.set_xlabel("Probability of the label")
    axes[0, 0].set_ylabel("Accuracy")
    axes[1, 0].set_ylabel("Density")
    return entitle(figure, f"Calibration of the {which} checkpoint", setting(next(iter(results.values()))))
