"""Figure B.5, and what the supplement (B.3) says of the attack's strength: what is planted, what overfits."""

import statistics
from collections.abc import Iterable

import pandas as pd
from matplotlib.figure import Figure

from sglrlib.config import RunConfig
from sglrlib.recipes import row_recipe, swept
from sglrlib.show import plots
from sglrlib.show.style import COLOURS, entitle, grid, label_ends, named, noise_in_words, setting
from sglrlib.show.tables import column_title, interval, overview, per_image
from sglrlib.show.verdicts import Claim, at_chance, judged, with_interval
from sglrlib.store.results import Result

WRONG_LABELS = "wrong labels"
OWN_NAMES = dict(none="no noise", symmetric=WRONG_LABELS)
WORDS = {"holds": "yes", "does not hold": "no"}  # a verdict on "it overfits"
USUAL = 3  # the place of the recipe's own budget in budgets()


def spoilt(kinds: Iterable[str], rate: float = 0.3) -> dict[str, dict]:
    """Name in words -> what a recipe changes for each kind of noise, of which 'none' is one; rate is its share."""
    changes = {kind: dict(noise=kind, noise_rate=rate) for kind in kinds} | {"none": dict(noise_rate=0.0)}
    return {OWN_NAMES.get(kind, named(kind)): changes[kind] for kind in kinds}


def unattacked(dataset: str, scale: str, **changes: object) -> RunConfig:
    """Standard training as the sweep of noise rates has it, whose wrong labels at 40 % are compared with."""
    return row_recipe("Standard", dataset, scale, **swept(scale), **changes)


def budgets(dataset: str) -> tuple[int, ...]:
    """Budgets of the attack, in 1/255, from none to half as much again as the recipe has."""
    return (0, 6, 13, 26, 39) if dataset == "digits" else (0, 2, 4, 8, 12)


def at_strength(place: int, dataset: str, scale: str, **changes: object) -> RunConfig:
    """PGD-AT trained and tested with the budget at a place of budgets()."""
    return row_recipe("PGD-AT", dataset, scale, **attack(budgets(dataset)[place]), **changes)


def attack(eps: int) -> dict:
    """What a recipe changes for a budget: the attack's step is a quarter of it."""
    return dict(eps_255=eps, step_255=eps / 4)


def by_budget(results: Iterable[list[Result]]) -> dict[str, list[Result]]:
    """Runs under the name of their budget."""
    return {f"ε = {runs[0].config.eps_255}/255": runs for runs in results}


def column_of(results: dict[str, list[Result]]) -> str:
    """The column that overfitting is seen in: the natural accuracy of standard training."""
    return "natural" if next(iter(results.values()))[0].config.method == "standard" else "pgd_20"


def lost(results: dict[str, list[Result]]) -> dict[str, Claim]:
    """Label -> the claim that accuracy is lost from the best epoch to the last, in points."""
    column = column_of(results)
    return {
        label: judged("", "", "", [100 * per_image(run, "diff", column) for run in runs])
        for label, runs in results.items()
        if all(run.has(column, 1) for run in runs)
    }


def rising_claims(results: dict[str, list[Result]]) -> list[Claim]:
    """B.3 to the letter: with spoilt images test accuracy rises as the learning rate decays, from the first epoch at a
    lower rate to the last, for each kind. Chosen epochs would not do: the best one lies above the last by its choice.
    """
    found = []
    for label, runs in results.items():
        if label not in OWN_NAMES.values() and all(run.curve and run.config.drop_epochs for run in runs):
            kind = "robust" if column_of(results) == "pgd_20" else "natural"
            curves = [{row["epoch"]: row[f"test_{kind}"] for row in run.curve} for run in runs]
            risen = [curve[max(curve)] - curve[runs[0].config.drop_epochs[0]] for curve in curves]
            text = f"{kind} accuracy rises as the learning rate decays with {label}"
            of = f"{kind} test accuracy, last epoch - first one at a lower rate, {label}"
            found.append(judged("noise_rises", text, of, risen, reason=at_chance(runs)))
    return found


def kinds_over_epochs(results: dict[str, list[Result]], item: str = "") -> Figure:
    """Training and test accuracy over epochs, natural and robust: a line a kind of noise. The axis of test accuracy is
    that of the last four fifths of the epochs.
    """
    first = next(iter(results.values()))
    shown = ["Natural"] if column_of(results) == "natural" else ["Natural", "Robust"]
    figure, axes = grid(len(shown), 2, 1.0 + 2.2 * len(shown), sharex=True)
    for (left, right), kind in zip(axes, shown, strict=True):
        for axis, which in ((left, "train"), (right, "test")):
            column = f"{which}_{kind.lower()}"
            ends = plots.lines(axis, results, {column: "-"}, best="test_")
            plots.mark_phases(axis, first[0].config)
            axis.set_ylabel(f"{kind}, {which.replace('train', 'training')} (%)")
        late = [row[column] for runs in results.values() for run in runs for row in run.curve[len(run.curve) // 5 :]]
        right.set_ylim(min(late) - 2, max(late) + 2)
        for axis in (left, right):
            plots.mark_chance(axis, first[0].config)
        label_ends(right, ends)
    for axis in axes[-1]:
        axis.set_xlabel("Epoch")
    share = max(runs[0].config.noise_rate for runs in results.values())
    noise = f"{share:.0%} of the training samples spoilt in the way named"
    images = min(n for n in (first[0].config.train_eval_size, first[0].sizes["train"]) if n)
    most, tested = max(results.values(), key=len), ""
    if shown == ["Natural"]:
        noise, tested = f"standard training, {noise}", f"{first[0].sizes['test']:,} test images"
    text = setting(most, images=tested).replace(noise_in_words(most[0].config), noise) + plots.unequal(results)
    text += f" Training accuracy: {images:,} images, spoilt ones included. Test axes leave out the first epochs."
    text += " Rings: best epoch of each seed."
    claims = sorted(lost(results).items(), key=lambda pair: -pair[1].effect)
    each = ", ".join(f"{claim.effect:.1f} with {name}" for name, claim in claims).replace("-", "−")
    message = f"Points of {shown[-1].lower()} accuracy lost after the best epoch: {each}"
    return entitle(figure, message, f"{item}: {text}" if item else text)


def strengths(results: dict[str, list[Result]], item: str = "", unspoilt: Iterable[Result] = ()) -> Figure:
    """PGD-20 accuracy at the best and the last epoch against the budget, and what is lost between, with intervals.

    unspoilt: runs on the same data without planted noise, for comparison.
    """
    figure, (axes,) = grid(1, 2, 3.3)
    found = sorted(results.values(), key=lambda runs: runs[0].config.eps_255)
    colour, c = COLOURS["PGD-AT"], found[0][0].config
    for checkpoint, style, face in (("best", "--", "white"), ("final", "-", colour)):
        bars(axes[0], found, checkpoint, color=colour, mfc=face, ls=style)
    bars(axes[1], found, "diff", color=colour, ls="-")
    unspoilt = [run for run in unspoilt if run.config.dataset == c.dataset and run.config.noise_rate != c.noise_rate]
    if unspoilt:
        at = bars(axes[1], [unspoilt], "diff", color="black", mfc="white")
        axes[1].annotate("no planted noise", at, xytext=(-8, -3), textcoords="offset points", ha="right", fontsize=7.5)
    axes[1].axhline(0, color="0.5", lw=0.8, zorder=0)
    axes[0].set_ylabel("PGD-20 accuracy (%)")
    axes[1].set_ylabel("Lost after the best epoch (points)")
    for axis in axes:
        axis.set_xlabel("ε in training and test (1/255)")
    drops = {name: claim.effect for name, claim in lost(results).items()}
    most, least = max(drops, key=drops.get), min(drops, key=drops.get)
    message = f"Most robust accuracy is lost at {most} ({drops[most]:.1f} points), "
    message += f"least at {least.removeprefix('ε = ')} ({drops[least]:.1f})"
    text = setting(found[0]).replace(f"ε = {c.eps_255}/255, ", "").replace(", bands from lowest to highest", "")
    text += plots.unequal(results) + " Left: dashed, hollow: best epoch; solid, filled: last. Bars: 95 % intervals."
    return entitle(figure, message, f"{item}: {text}" if item else text)


def bars(axis, found: list[list[Result]], checkpoint: str, **looks: object) -> tuple[float, float]:
    """PGD-20 accuracy at a checkpoint, or 'diff', against the budget, with intervals. Returns the last point."""
    x = [runs[0].config.eps_255 for runs in found]
    means = [statistics.fmean(100 * per_image(r, checkpoint, "pgd_20").mean().item() for r in runs) for runs in found]
    ends = [interval(runs, checkpoint, "pgd_20") for runs in found]
    away = [[abs(mean - pair[i]) for mean, pair in zip(means, ends, strict=True)] for i in (0, 1)]
    axis.errorbar(x, means, away, **(dict(marker="o", ms=6, lw=1.2, elinewidth=1.2, capsize=2, ls="") | looks))
    return x[-1], means[-1]


def table(results: dict[str, list[Result]], name: str = "noise") -> pd.DataFrame:
    """Accuracies, best -> last; the points lost with their 95 % interval; whether that is overfitting."""
    column = column_of(results)
    results = {label: runs for label, runs in results.items() if all(run.has(column, 1) for run in runs)}
    rows = overview(results, dict.fromkeys(["natural", column])).rename(columns={"method": name})
    found = lost(results).values()
    rows[f"{column_title(column)} lost (95 %)"] = [with_interval(claim) for claim in found]
    rows["overfits"] = [WORDS.get(claim.word, claim.word) for claim in found]
    rows["test images"] = [runs[0].n(column) for runs in results.values()]
    return rows
