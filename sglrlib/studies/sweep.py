"""Figure B.4 and Table B.2: label rules at several noise rates; what they memorise, and the claims on it."""

import math
import re
from itertools import chain
from statistics import fmean

import pandas as pd
from matplotlib.figure import Figure

from sglrlib.config import RunConfig
from sglrlib.method.data import HUMAN
from sglrlib.method.labels import LABELS
from sglrlib.method.methods import METHODS
from sglrlib.show import notebook, plots, style
from sglrlib.show.tables import interval, mean_and_spread, paper_value
from sglrlib.show.verdicts import Claim, at_chance, judged
from sglrlib.store.results import Result, paired
from sglrlib.studies.refinement import gain, unrefined

PAPER_NAMES = {"hard": "Hard Label", "smooth": "Soft Label", "self_guided": "Self-Guided Soft Label"}
# Table B.2's order at every rate: the rule of lower error, the one of higher error, and the claim's id
ORDER = (
    ("self_guided", "hard", "lower_error"),
    ("self_guided", "smooth", "below_smoothed"),
    ("smooth", "hard", "smoothed_below_hard"),
)
SIGNS = {"o": "●", "s": "■", "D": "◆", "^": "▲"}  # markers in text

Sweep = dict[tuple[str, float], dict[str, list[Result]]]  # (noise, rate) -> label rule -> its runs, one a seed


def by_noise(runs: dict[str, list[Result]]) -> Sweep:
    """Runs sorted by what was planted and by label rule, in the order in which they come."""
    sweep: Sweep = {}
    for run in chain(*runs.values()):
        of_noise = sweep.setdefault((run.config.noise, run.config.noise_rate), {})
        of_noise.setdefault(run.config.labels, []).append(run)
    return sweep


def by_kind(sweep: Sweep) -> dict[str, Sweep]:
    """A sweep's parts, one a kind of noise; all labels that people gave are of one, 'human'."""
    parts: dict[str, Sweep] = {}
    for (noise, rate), runs in sweep.items():
        parts.setdefault("human" if noise in HUMAN else noise, {})[noise, rate] = runs
    return parts


def described(configs: list[RunConfig]) -> str:
    """What is about to be run or shown, whatever the noise; without attack nothing of the budget and of lambda, which
    then do nothing: x' is x.
    """
    alike = [c for c in configs if (c.noise, c.noise_rate) == (configs[0].noise, configs[0].noise_rate)]
    lines = [line for line in notebook.describe(alike).splitlines() if not line.startswith("planted label")]
    text = "\n".join(lines)
    return (
        text if METHODS[configs[0].method].objective else re.sub(r"budget eps = [\d.]+/255; |lam = [\d.]+, ", "", text)
    )


def portion_correct(run: Result) -> float:
    """The share (%) of the training labels that are right."""
    return 100 * (1 - run.sizes["wrong_labels"] / run.sizes["train"])


def memorised(run: Result) -> float:
    """By how many points training accuracy on the assigned labels is above test accuracy on clean ones, at the end."""
    return run.curve[-1]["train_natural"] - run.accuracy("last", "natural")


def figure(sweep: Sweep, item: str) -> Figure:
    """Accuracy over epochs on test images above, on training images below, one column a noise and rate. In both rows
    against true labels solid, against labels with noise dotted; dashed the portion of correct training labels. At the
    right end of the upper row the paper's Table B.2, for what it has.
    """
    drawn, axes = style.grid(2, len(sweep), 5.6, sharex=True, sharey="row")
    ends, rules, marked = {}, {}, False  # ends and rules: of each rule in the last column that has it
    for (test, train), ((noise, rate), runs) in zip(axes.T, sweep.items(), strict=True):
        titled = {f"PGD-AT{LABELS[rule].title}": those for rule, those in runs.items()}  # whose colours the rules have
        noisy = {} if noise in HUMAN else dict(test_natural_noisy=":")  # CIFAR-N has none of test images
        plots.lines(test, titled, dict(test_natural="-") | noisy)
        ends |= plots.lines(train, titled, dict(train_natural_clean="-", train_natural=":"))
        rules |= dict(zip(titled, runs, strict=True))
        some = next(iter(runs.values()))[0]
        starts = {those[0].config.first_refined for rule, those in runs.items() if LABELS[rule].starts}
        for axis in (test, train):
            axis.axhline(portion_correct(some), color="0.5", ls="--", lw=1, zorder=0)
            for epoch in starts:
                axis.axvline(epoch, color="0.5", ls=(0, (1, 1)), lw=0.9, zorder=0)
        for title, rule in zip(titled, runs, strict=True):
            error = of_paper(rule, noise, rate)
            if error is not None:
                how = dict(color=style.colour_of(title), mfc="white", ms=5, mew=1.2, zorder=4)
                marked = True
                test.plot(1.12 * some.config.epochs, 100 - error, style.marker_of(title), **how)
        test.set_title(style.named(noise) if noise in HUMAN else f"{rate:.0%} noise", fontsize=9)
        train.set_xlabel("Epoch")
    names = {title: f"{style.named(rule)} {SIGNS.get(style.marker_of(title), '')}" for title, rule in rules.items()}
    right = train.get_xlim()[1]  # beside the axis: the dashed line ends there
    style.label_ends(train, {names[title]: (right, *ends[title][1:]) for title in names})
    axes[0, 0].set_ylabel("Test accuracy (%)")
    axes[1, 0].set_ylabel("Training accuracy (%)")
    config, seeds = some.config, {len(those) for runs in sweep.values() for those in runs.values()}
    each = f"{min(seeds)} to {max(seeds)}" if len(seeds) > 1 else max(seeds)
    said = f"{each} seeds a curve, bands from lowest to highest" if seeds != {1} else f"seed {config.seed}"
    small = (
        f"{item}: {style.named(config.dataset)}, {style.named(config.arch)}, {METHODS[config.method].title} training, "
        f"{some.sizes['train']:,} training and {some.sizes['test']:,} test images; "
        f"noise: {', '.join(dict.fromkeys(style.named(noise) for noise, _ in sweep))}; {said}. "
        "Solid: against true labels; dotted: against labels with noise; dashed: portion of correct training labels; "
        "dotted upright: refinement starts."
    )
    small += " Hollow, at the right: the paper's Table B.2 as 100 - error, on CIFAR-10 with another network." * marked
    return style.entitle(drawn, message(sweep), small)


def message(sweep: Sweep) -> str:
    """What self-guided labels gain over hard ones in the end where labels are wrong, and what is still memorised."""
    both = [runs for (_, rate), runs in sweep.items() if rate and {"hard", "self_guided"} <= runs.keys()]
    if not both:
        return "Training and test accuracy where labels are wrong"
    gained = [ends(runs["self_guided"], "test_natural") - ends(runs["hard"], "test_natural") for runs in both]
    kept = [ends(runs["self_guided"], "train_natural_wrong") for runs in both]
    text = f"Self-guided labels end with {span(gained, '+')} points of test accuracy over hard ones"
    return text if any(map(math.isnan, kept)) else f"{text}, and {span(kept)} % of the wrong labels memorised"


def ends(runs: list[Result], column: str) -> float:
    """A column of the curve in the last epoch, mean over seeds; nan where it is not recorded."""
    return fmean(run.curve[-1].get(column, math.nan) for run in runs)


def span(values: list[float], sign: str = "-") -> str:
    """'4 to 11', or '4' where all are."""
    both = dict.fromkeys(f"{value:{sign}.0f}".replace("-", "−") for value in (min(values), max(values)))
    return " to ".join(both)


def of_paper(rule: str, noise: str, rate: float) -> float | None:
    """The error (%) that Table B.2 prints for a label rule, None where it prints none."""
    if noise != "symmetric" or rule not in PAPER_NAMES:
        return None
    return paper_value(PAPER_NAMES[rule], f"noise {rate:.0%}", "", dataset="cifar10", model="")


def table(sweep: Sweep) -> pd.DataFrame:
    """Table B.2: errors (%) on the clean test labels at the best and the last epoch, one column a rate, below them the
    paper's; and by how many points training accuracy on the assigned labels ends above test accuracy. The lowest error
    of each kind is between **; how many seeds stands in the head of the rows.
    """
    seeds = sorted({len(those) for runs in sweep.values() for those in runs.values()})
    cells: dict[tuple[str, str], dict[tuple[str, str], str]] = {("", "wrong training labels"): {}}
    for (noise, rate), runs in sweep.items():
        at = style.named(noise), "all" if noise in HUMAN else f"{rate:.0%}"
        cells["", "wrong training labels"][at] = f"{100 - portion_correct(next(iter(runs.values()))[0]):.0f} %"
        errors: dict[str, dict[str, str]] = {}
        for rule, those in runs.items():
            (low, high), paper = interval(those, "final", "natural"), of_paper(rule, noise, rate)
            best, last = (
                mean_and_spread([100 - run.accuracy(w, "natural") for run in those]) for w in ("best", "last")
            )
            lines = {
                "best": best,
                "last": last,
                "last, 95 %": f"{100 - high:.1f} to {100 - low:.1f}",
                "paper*": "–" if paper is None else f"{paper:.1f}",
                "train - test": mean_and_spread([memorised(run) for run in those]),
            }
            for name, text in lines.items():
                cells.setdefault((style.named(rule), name), {})[at] = text
                errors.setdefault(name, {})[rule] = text
        for name in ("best", "last", "paper*"):
            numbers = {rule: float(text.split()[0]) for rule, text in errors[name].items() if text != "–"}
            for rule in [rule for rule, number in numbers.items() if number == min(numbers.values())]:
                cells[style.named(rule), name][at] = f"**{errors[name][rule]}**"
    columns = pd.MultiIndex.from_tuples(cells["", "wrong training labels"])
    rows = pd.MultiIndex.from_tuples(cells, names=["test error (%)", f"seeds: {' to '.join(map(str, seeds))}"])
    return pd.DataFrame([[row.get(at, "–") for at in columns] for row in cells.values()], index=rows, columns=columns)


def claims(sweep: Sweep) -> list[Claim]:
    """The supplement's claims in B.3 at each rate: what hard labels memorise, and what self-guided ones spare; and the
    order of its Table B.2.

    That self-guided labels narrow the gap of training and test tells nothing of memorisation, as test accuracy may
    rise alone; so it is asked too how many of the wrong training labels they predict in the end.
    """
    found = []
    for (noise, rate), runs in sweep.items():
        hard, refined = runs.get("hard"), runs.get("self_guided")
        why = at_chance(*runs.values())
        at = style.named(noise) if noise in HUMAN else f"{rate:.0%} of the {style.named(noise)}"
        at = at if rate else "no wrong labels"

        def claim(id: str, text: str, of: str, values: list, reason: str = "") -> None:
            found.append(judged(id, text, f"{at}, {of}", values, reason=why or reason))  # noqa: B023

        if hard and rate:
            above = [run.curve[-1]["train_natural"] - portion_correct(run) for run in hard]
            text = "with hard labels, training accuracy ends above the portion of correct labels"
            claim("memorises", text, "training accuracy, last epoch", above)
        pairs = paired(hard or [], refined or [])
        if pairs and rate:
            narrower = [memorised(h) - memorised(r) for h, r in pairs]
            claim("narrows", "self-guided labels narrow the gap of training and test", "train - test", narrower)
            if all("train_natural_wrong" in run.curve[-1] for pair in pairs for run in pair):
                fewer = [h.curve[-1]["train_natural_wrong"] - r.curve[-1]["train_natural_wrong"] for h, r in pairs]
                text = "self-guided labels memorise fewer of the wrong labels"
                claim("not_memorised", text, "wrong training labels predicted, last epoch", fewer)
        for better, worse, id in ORDER:
            ones, others = runs.get(better, []), runs.get(worse, [])
            text = f"{style.named(better)} have a lower test error than {style.named(worse)}"
            if paired(ones, others):
                claim(id, text, "Natural, last epoch", gain(ones, others, "natural"))
        if pairs:
            text = "self-guided labels have a lower test error than hard labels"
            best = gain(refined, hard, "natural", "best")
            claim("lower_error", text, "Natural, best epoch", best, unrefined(refined))
    return found
