"""Figure B.7: the stationary and the growth stage of training, by a rule on the gradient norm, and their claims."""

import itertools
import math
import statistics

import pandas as pd

from sglrlib.show.tables import per_image
from sglrlib.show.verdicts import Claim, at_chance, judged
from sglrlib.store.results import Result, paired

RULE = (
    "growth starts in the first epoch from which on the mini-batch gradient norm of hard-label cross-entropy (running "
    "median over 5 epochs) stays above 1.5 times its lowest value after the first tenth of the epochs"
)


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
    """Durations of the two stages; gradient norm and Hessian's trace ± its standard error at growth's start and end."""
    rows = []
    for label, those in runs.items():
        for run in those:
            stationary, growth = stages(run)
            at = {"start": run.curve[-growth] if growth else None, "end": run.curve[-1]}
            row = dict(run=label, seed=run.config.seed, stationary=f"{stationary} epochs", growth=f"{growth} epochs")
            for when, epoch in at.items():
                shown = dict(
                    norm="{batch_gradient_norm_hard:.2f}", trace="{hessian_trace:.1f} ± {hessian_trace_error:.1f}"
                )
                row |= {f"{name} at {when}": text.format(**epoch) if epoch else "–" for name, text in shown.items()}
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
    return growth_start([row["batch_gradient_norm_hard"] for row in run.curve]) or len(run.curve) + 1


def trace_rise(run: Result) -> tuple[float, float]:
    """By how much the trace of the Hessian is higher at the end than where growth starts, and its standard error."""
    start, end = run.curve[-max(1, stages(run)[1])], run.curve[-1]
    return end["hessian_trace"] - start["hessian_trace"], math.hypot(
        start["hessian_trace_error"], end["hessian_trace_error"]
    )
