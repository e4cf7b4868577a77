"""Table B.1 and its claims: the calibration of a run's checkpoints, natural and under attacks."""

import re
import statistics
from collections.abc import Callable, Iterable, Sequence

import pandas as pd
import torch
from torch import Tensor

from sglrlib.show.tables import column_title, mean_and_spread, paper_place, paper_value
from sglrlib.show.verdicts import Claim, at_chance, judged
from sglrlib.store.results import Result, paired
from sglrlib.studies.refinement import unrefined


def of_curve(run: Result, attack: str) -> str:
    """The columns of the curve, without _ece or _gap, that say how calibrated a run is under an attack; '' for none."""
    found = {"natural": "test_natural", f"pgd_{run.config.eval_steps}": "test_robust"}.get(attack, "")
    return found if run.curve and f"{found}_ece" in run.curve[-1] else ""


def measured(run: Result, attack: str) -> bool:
    """Whether a run says how calibrated its checkpoints are under an attack."""
    return run.has(f"confidence {attack}", 1) or bool(of_curve(run, attack))


def ece(run: Result, which: str, attack: str) -> Tensor:
    """What each image adds to a checkpoint's ECE, (n,); its value in the curve, (1,), if no probabilities are kept."""
    if run.holds(which, f"confidence {attack}", 1):
        return ece_of_each(*run.confidence(which, attack)[::2])
    return in_curve(run, which, f"{of_curve(run, attack)}_ece")


def gap(run: Result, which: str, attack: str) -> Tensor:
    """Confidence minus accuracy, image by image or from the curve, as of ece(): above 0 over-confident."""
    if run.holds(which, f"confidence {attack}", 1):
        highest, _, right = run.confidence(which, attack)
        return highest - right.double()
    return in_curve(run, which, f"{of_curve(run, attack)}_gap")


def in_curve(run: Result, which: str, column: str) -> Tensor:
    """A checkpoint's value of a column of the curve, (1,)."""
    return torch.tensor([run.curve[run.best_epoch - 1 if which == "best" else -1][column]], dtype=torch.float64)


def ece_of_each(confidence: Tensor, right: Tensor, bins: int = 15) -> Tensor:
    """What each sample adds to the ECE, (n,), whose mean it is: confidence - right, signed as the sum in its bin is.

    Their spread is the jackknife's, but for bins that one sample turns round.
    """
    edges = torch.arange(1, bins, dtype=torch.float64) / bins
    place, gaps = torch.bucketize(confidence, edges), confidence - right.double()
    return torch.zeros(bins, dtype=torch.float64).index_add(0, place, gaps).sign()[place] * gaps


def images(run: Result, attack: str) -> int:
    """How many test images the calibration under an attack is of."""
    if run.has(f"confidence {attack}", 1):
        return len(run.confidence("last", attack)[0])
    n = run.sizes["test"]
    return n if attack == "natural" else min(run.config.attacked_size or n, n)


def tables(
    runs: dict[str, list[Result]], attacks: Iterable[str] = ("natural", "pgd_10", "square_500")
) -> list[pd.DataFrame]:
    """table() of each attack that all runs were measured under."""
    every = [run for those in runs.values() for run in those]
    return [table(runs, attack) for attack in attacks if all(measured(run, attack) for run in every)]


def table(runs: dict[str, list[Result]], attack: str) -> pd.DataFrame:
    """Table B.1 in its layout for one attack: ECE (15 bins) at best and last epoch and their difference, ours (mean ±
    std over seeds, and the interval that verdicts use) above the paper's; below them confidence minus accuracy. The
    lowest ECE is between **. The paper's numbers are marked as in tables.beside_paper(); that for Square stands beside
    any number of queries.
    """
    rows: dict[tuple[str, str], dict[tuple[str, str], str]] = {}
    printed = f"ece {'square' if attack.startswith('square') else attack}"
    for label, those in runs.items():
        place, own = paper_place(those[0])
        accuracy = f"{column_title(attack)}, {images(those[0], attack):,} images"
        for checkpoint in ("best", "final", "diff"):
            at = accuracy, checkpoint.capitalize()
            values = [part(ece, run, checkpoint, attack) for run in those]
            found = judged("", "", "", values)
            least = -1.0 if checkpoint == "diff" else 0.0  # no ECE is below 0, whatever rounding makes of it
            signed = statistics.fmean(part(gap, run, checkpoint, attack).mean().item() for run in those)
            paper = paper_value(those[0].config.title, printed, checkpoint, **place)
            for name, text in (
                (f"ours, seeds: {len(those)}", mean_and_spread([max(least, v.mean().item()) for v in values], 3)),
                ("95 %", f"{max(least, found.low):.3f} to {found.high:.3f}"),
                ("paper", "–" if paper is None else f"{paper:.2f}{'' if own else '*'}"),
                ("confidence − accuracy", f"{round(signed, 3) + 0:+.3f}" if checkpoint != "diff" else ""),
            ):
                rows.setdefault((label, name), {})[at] = text
    table = pd.DataFrame([*rows.values()], pd.MultiIndex.from_tuples(rows, names=["method", ""])).fillna("")
    table.columns = pd.MultiIndex.from_tuples(table.columns)
    return with_lowest(table)


def part(measure: Callable, run: Result, checkpoint: str, attack: str) -> Tensor:
    """A measure at a checkpoint in the paper's words: 'best', 'final', or 'diff', the best minus the final."""
    if checkpoint == "diff":
        return measure(run, "best", attack) - measure(run, "last", attack)
    return measure(run, "best" if checkpoint == "best" else "last", attack)


def with_lowest(table: pd.DataFrame) -> pd.DataFrame:
    """table() with the lowest ECE of ours and of the paper's between ** at each checkpoint, if there are several."""
    for at in [at for at in table.columns if at[1] != "Diff"]:
        for kind in ("ours", "paper"):
            cells = {i: table[at].iloc[i] for i, (_, name) in enumerate(table.index) if name.startswith(kind)}
            numbers = {i: float(found[0]) for i, text in cells.items() if (found := re.match(r"[\d.]+", text))}
            for i in [i for i, number in numbers.items() if number == min(numbers.values())] * (len(numbers) > 1):
                table.iloc[i, table.columns.get_loc(at)] = f"**{cells[i]}**"
    return table


def claims(
    hard: list[Result], refined: list[Result], attacks: Iterable[str], standard: Sequence[Result] = ()
) -> list[Claim]:
    """What the supplement says in B.2; and what its unsigned measure hides."""
    a, b, why = hard[0].config.title, refined[0].config.title, at_chance(hard, refined)
    last, best = (hard, "last"), (hard, "best")
    found = []

    def claim(id: str, text: str, of: str, attack: str, values: list[Tensor], unit: str = "", why: str = why) -> None:
        n = f", {images(hard[0], attack):,} images a seed" if all(len(v) == 1 for v in values) else ""
        if values:  # a comparison needs a seed that both have
            found.append(judged(id, text, of + n, values, unit=unit, reason=why))

    clean, spared = "ECE without attack, last epoch", f"{b} is better calibrated than {a}"
    if standard:
        values = more((list(standard), "last"), last, ece, "natural")
        text = f"{a} is better calibrated than standard training"
        claim("standard_calibration", text, clean, "natural", values, why=at_chance(hard, standard))
    if all(measured(run, "natural") for run in hard + refined):
        claim("calibration_spared", spared, clean, "natural", more(last, (refined, "last"), ece, "natural"))
    for attack in attacks:
        name = column_title(attack)
        for id, text, when, larger, smaller in (
            ("calibration_worsens", f"{a} is worse calibrated at its last epoch than at its best", "", last, best),
            ("calibration_spared", spared, ", last epoch", last, (refined, "last")),
            ("calibration_spared", spared, ", best epoch", best, (refined, "best")),
        ):
            early = unrefined(refined) if smaller == (refined, "best") else ""
            values = more(larger, smaller, ece, attack)
            claim(id, text, f"ECE under {name}{when}", attack, values, why=why or early)
        if all(run.has(f"confidence {attack}", 1) for run in hard + refined):
            surer = [100 * v for v in more(last, (refined, "last"), sure, attack)]
            text, of = f"{b} is less often more than 90 % sure than {a}", f"share of images, {name}, last epoch"
            claim("less_confident", text, of, attack, surer, "points")
        doubt = [-gap(run, "last", attack) for run in refined]
        text, of = f"the confidence of {b} is below its accuracy", f"accuracy - confidence, {name}, last epoch"
        claim("under_confident", text, of, attack, doubt)
    return found


def more(larger: tuple, smaller: tuple, measure: Callable, attack: str) -> list[Tensor]:
    """What one (runs, checkpoint) has more of than another, as measure says it, for each seed that both have, on the
    test images that all have.
    """
    pairs = paired(larger[0], smaller[0])
    both = [(measure(one, larger[1], attack), measure(other, smaller[1], attack)) for one, other in pairs]
    n = min((len(values) for pair in both for values in pair), default=0)
    return [one[:n] - other[:n] for one, other in both]


def sure(run: Result, which: str, attack: str) -> Tensor:
    """Whether a checkpoint is more than 90 % sure of an image, whatever its class, (n,) float64."""
    return (run.confidence(which, attack)[0] > 0.9).double()
