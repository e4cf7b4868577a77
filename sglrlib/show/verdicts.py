"""Verdicts on claims: the one place that judges whether what is claimed to be positive is, over seeds and images."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.optimize import brentq
from scipy.special import gammaincinv, ndtr
from torch import Tensor

from sglrlib.checks import UsageError
from sglrlib.store.results import Result

SEEDS = 3  # that a verdict on a method needs; fewer only tell what was seen in these runs
LEVEL = 0.05


@dataclass(frozen=True)
class Claim:
    """A claim that a mean is positive, and what the runs say of it.

    id is its name in data/claims.csv. effect is the mean over seeds and images, low and high its 95 % interval, p the
    two-sided probability of as much without any effect; all three are NaN where one number of one run is all there is.
    images is 0 where each seed gives one number. reason says why the claim cannot be judged here, '' where it can.
    """

    id: str
    text: str
    of: str
    effect: float
    low: float
    high: float
    p: float
    images: int
    seeds: int
    unit: str = "points"
    reason: str = ""

    @property
    def word(self) -> str:
        """'holds', 'does not hold' or 'open' for the method; with fewer than three seeds, whether it was seen."""
        if self.reason:
            return "cannot be judged here"
        if self.seeds < SEEDS:
            positive = self.effect > 0 if math.isnan(self.low) else self.low > 0
            return f"{'' if positive else 'not '}seen in {'this run' if self.seeds == 1 else 'these runs'}"
        return "holds" if self.low > 0 else "does not hold" if self.high < 0 else "open"


def judged(
    id: str, text: str, of: str, values: Sequence[Tensor | float], errors: Sequence[float] = (), *,
    shared: bool = True, unit: str = "points", reason: str = "",
) -> Claim:  # fmt: skip
    """The claim that the mean of values is positive, with its verdict.

    values: for each seed a number for each image, (n,), or one number. shared: whether the images are the same for all
    seeds, as test images are; training images that each seed draws for itself are not. errors: standard errors of the
    numbers, where they are known; they count where the seeds are too few to tell. Raises UsageError where there is no
    seed.
    """
    if not len(values):
        raise UsageError(f"{text!r}: there is no run of it. Expected one seed at least.")
    rows = [torch.atleast_1d(torch.as_tensor(v).double()) for v in values]
    n, seeds = min(map(len, rows)), len(rows)
    effect, (from_seeds, from_images) = variance_of_mean(torch.stack([row[:n] for row in rows]), shared)
    if errors and seeds < SEEDS:
        from_images = sum(error**2 for error in errors) / seeds**2
    low, high, p = interval(effect, from_seeds, from_images, seeds)
    if math.isnan(effect):  # such as the correlation of something constant
        reason = reason or "not defined for these runs"
    return Claim(id, text, of, effect, low, high, p, n if n > 1 else 0, seeds, unit, reason)


def variance_of_mean(values: Tensor, shared: bool) -> tuple[float, tuple[float, float]]:
    """The mean of values (seeds, images), and its variance in two parts: that which the few seeds tell, with one degree
    of freedom less than there are, and that which the many images tell.

    With shared images a value is mean + seed + image + rest, all but the mean random, and the parts are those of the
    two-way analysis of variance: MS_seed / (S n), and (MS_image - MS_rest) / (S n) where positive. With fewer than
    three seeds the statement is about these networks alone, so that only the images count.
    """
    seeds, n = values.shape
    mean, by_seed, by_image = values.mean().item(), values.mean(1), values.mean(0)
    if seeds < SEEDS:
        own = by_image if shared else values.flatten()
        return mean, (0.0, own.var().item() / len(own) if n > 1 else math.nan)
    from_seeds = by_seed.var().item() / seeds
    if n == 1 or not shared:
        return mean, (from_seeds, 0.0)
    rest = (values - by_seed[:, None] - by_image + mean).square().sum().item() / ((seeds - 1) * (n - 1))
    return mean, (from_seeds, max(0.0, seeds * by_image.var().item() - rest) / (seeds * n))


def interval(effect: float, from_seeds: float, from_images: float, seeds: int) -> tuple[float, float, float]:
    """95 % interval and two-sided p of a normal mean: one part of its variance estimated from S seeds, one known.

    The first part times (S - 1) / chi2 of S - 1 degrees stands for what it may be, over which the normal is averaged
    (Behrens and Fisher; Tsui & Weerahandi 1989): Student's t where the images' part is zero, the normal where the
    seeds' is. In simulation it errs in 2.5 to 5.7 % of cases; a t with Satterthwaite's degrees of freedom in up to
    8.8 % with three seeds, where the two parts are alike.
    """
    if math.isnan(from_images) or math.isnan(effect):
        return math.nan, math.nan, math.nan
    possible = from_images * np.ones(1)
    if from_seeds:
        possible = from_images + from_seeds * (seeds - 1) / chi_squares(seeds - 1)
    widths = np.sqrt(possible)
    if not widths.max():
        return effect, effect, float(effect == 0)

    def outside(distance: float) -> float:
        return float(2 * ndtr(-distance / widths).mean())

    half = brentq(lambda distance: outside(distance) - LEVEL, 0, 1000 * widths.max())
    return effect - half, effect + half, outside(abs(effect))


@functools.cache
def chi_squares(degrees: int, points: int = 500) -> np.ndarray:
    """Quantiles of a chi-square distribution, equally probable, to average over."""
    return 2 * gammaincinv(degrees / 2, (np.arange(points) + 0.5) / points)


def at_chance(*groups: Sequence[Result]) -> str:
    """Why no claim on these runs can be judged, '' where none of them ends at chance level."""
    guessing = [run.config for those in groups for run in those if run.at_chance]
    names = ", ".join(dict.fromkeys(f"{config.title} seed {config.seed}" for config in guessing))
    return f"at chance level: {names}" if guessing else ""


def holm(claims: Sequence[Claim]) -> list[bool]:
    """Which claims still differ from zero at 5 % when none of the family may err (Holm 1979); those judged count."""
    order = sorted((i for i, c in enumerate(claims) if tested(c)), key=lambda i: claims[i].p)
    survives, still = [False] * len(claims), True
    for rank, i in enumerate(order):
        still = still and claims[i].p <= LEVEL / (len(order) - rank)
        survives[i] = still
    return survives


def tested(c: Claim) -> bool:
    """Whether a claim is on the method: judged, from three seeds at least."""
    return not c.reason and c.seeds >= SEEDS


def table(claims: Sequence[Claim]) -> pd.DataFrame:
    """One row a claim: its words, what was measured, the effect with the interval that the verdict uses, n, verdict."""
    rows = [
        {
            "claim": c.text,
            "measured by": c.of,
            "effect (95 %)": with_interval(c),
            "n": f"{c.images} x {c.seeds}" if c.images else f"{c.seeds}",
            "verdict": c.word + f" ({c.reason})" * bool(c.reason) + " *" * survives,
        }
        for c, survives in zip(claims, holm(claims), strict=True)
    ]
    return pd.DataFrame(rows, columns=["claim", "measured by", "effect (95 %)", "n", "verdict"])


def with_interval(c: Claim) -> str:
    """'+8.1 points (6.2 to 10.0)'."""
    digits = 1 if c.unit in ("points", "epochs") else 3
    bounds = "" if math.isnan(c.low) else f" ({c.low:.{digits}f} to {c.high:.{digits}f})"
    return f"{c.effect:+.{digits}f} {c.unit}".strip() + bounds


def note(claims: Sequence[Claim]) -> str:
    """What stands below table(): what the interval covers, and what the number of claims means for the reader."""
    few = [c for c in claims if c.seeds < SEEDS and not c.reason]
    lines = []
    if few:
        lines.append(
            "Fewer than three seeds say nothing about the method: the interval is of the images, for these networks."
        )
    if family := [c for c in claims if tested(c)]:
        lines.append(
            f"{len(family)} claims on the method; after Holm's correction for their number {sum(holm(family))} (*) "
            "still differ from zero."
        )
    return " ".join(lines)
