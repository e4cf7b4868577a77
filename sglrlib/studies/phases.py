"""Figure B.7: the stationary and the growth stage of training, by a rule on the gradient norm, and their claims."""

import itertools
import math
import statistics

import pandas as pd

from sglrlib.show.tables import at_chance, claim, judge, per_image
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
    norms = [row["batch_gradient_norm_hard"] for row in run.curve]
    start = growth_start(norms) or len(norms) + 1
    return start - 1 - math.ceil(len(norms) / 10), len(norms) + 1 - start


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


def claims(piecewise: list[Result], cosine: list[Result]) -> str:
    """What the slides and the supplement (B.5) say of the two stages and of the two schedules, with verdicts."""
    if guessing := at_chance(piecewise, cosine):
        return guessing
    of = f"{len(piecewise[0].curve)} epochs x {len(piecewise)} seed{'s' * (len(piecewise) > 1)}"
    both = all(min(stages(run)) > 0 for run in piecewise)
    traces, errors = zip(*(trace_rise(run) for run in piecewise), strict=True)
    pairs = paired(piecewise, cosine)
    rough = [[roughness(run) for run in pair] for pair in pairs]
    smoother = [statistics.fmean(p) - statistics.fmean(c) for p, c in rough]
    spread = [math.hypot(*(statistics.stdev(moves) / math.sqrt(len(moves)) for moves in pair)) for pair in rough]
    longer = [abs(stages(p)[0] - stages(c)[0]) - 5 for p, c in pairs]
    overfits = [per_image(run, "diff", "pgd_20") for run in cosine]
    return "\n".join(
        [
            f"Training has a stationary stage and a growth stage: {str(both).lower()} (gradient norm, {of})",
            judge("The trace of the Hessian rises from the growth's start to the end", traces, errors, of),
            judge("The cosine schedule moves robust accuracy less from epoch to epoch", smoother, spread, of),
            claim("The cosine schedule does not prevent robust overfitting", "pgd_20", overfits),
            judge("The stationary stages differ by more than 5 epochs", longer, [0.5] * len(longer), of),
        ]
    )


def trace_rise(run: Result) -> tuple[float, float]:
    """By how much the trace of the Hessian is higher at the end than where growth starts, and its standard error."""
    start, end = run.curve[-max(1, stages(run)[1])], run.curve[-1]
    return end["hessian_trace"] - start["hessian_trace"], math.hypot(
        start["hessian_trace_error"], end["hessian_trace_error"]
    )
