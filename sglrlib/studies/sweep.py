"""Figure B.4 and Table B.2: label rules at several noise rates; what they memorise, and the claims on it."""

from itertools import chain

import pandas as pd
from matplotlib.figure import Figure

from sglrlib.method.labels import LABELS
from sglrlib.show import plots, style
from sglrlib.show.tables import mean_and_spread, paper_value
from sglrlib.show.verdicts import Claim, at_chance, judged
from sglrlib.store.results import Result, paired
from sglrlib.studies.refinement import gain, unrefined

PAPER_NAMES = {"hard": "Hard Label", "smooth": "Soft Label", "self_guided": "Self-Guided Soft Label"}

Sweep = dict[tuple[str, float], dict[str, list[Result]]]  # (noise, rate) -> label rule -> its runs, one a seed


def by_noise(runs: dict[str, list[Result]]) -> Sweep:
    """Runs sorted by what was planted and by label rule, in the order in which they come."""
    sweep: Sweep = {}
    for run in chain(*runs.values()):
        of_noise = sweep.setdefault((run.config.noise, run.config.noise_rate), {})
        of_noise.setdefault(run.config.labels, []).append(run)
    return sweep


def portion_correct(run: Result) -> float:
    """The share (%) of the training labels that are right."""
    return 100 * (1 - run.sizes["wrong_labels"] / run.sizes["train"])


def memorised(run: Result) -> float:
    """By how many points training accuracy on the assigned labels is above test accuracy on clean ones, at the end."""
    return run.curve[-1]["train_natural"] - run.accuracy("last", "natural")


def figure(sweep: Sweep, noise: str = "symmetric") -> Figure:
    """Test accuracy above, training accuracy below, one column a rate; solid against the labels that matter most.

    Grey and dashed: the portion of correct training labels.
    """
    rates = {rate: runs for (kind, rate), runs in sweep.items() if kind == noise}
    drawn, axes = style.grid(2, len(rates), 4.3, sharex=True, sharey="row")
    for (test, train), (rate, runs) in zip(axes.T, rates.items(), strict=True):
        named = {"PGD-AT" + LABELS[rule].title: those for rule, those in runs.items()}
        plots.lines(test, named, dict(test_natural="-", test_natural_noisy=":"))
        plots.lines(train, named, dict(train_natural="-", train_natural_clean=":"))
        for axis in (test, train):
            axis.axhline(portion_correct(next(iter(runs.values()))[0]), color="0.5", ls="--", lw=1, zorder=0)
        test.set_title(f"noise {rate:.0%}")
        train.set_xlabel("Epoch")
    axes[0, 0].set_ylabel("Test accuracy (%)")
    axes[1, 0].set_ylabel("Training accuracy (%)")
    config = next(iter(runs.values()))[0].config
    drawn.suptitle(f"{config.dataset}, {config.arch}, method {config.method}; n = {runs_n(runs)}", fontsize=8)
    return drawn


def rule_names(runs: dict[str, list[Result]]) -> dict[str, str]:
    """'PGD-AT+SGLR' -> 'self_guided', and so on: colours are those of the methods, names those of the rules."""
    return {"PGD-AT" + LABELS[rule].title: rule.replace("_", "-") for rule in runs}


def runs_n(runs: dict[str, list[Result]]) -> str:
    """How many images and seeds are behind a figure."""
    those = next(iter(runs.values()))
    sizes = those[0].sizes
    return f"{sizes['train']} training, {sizes['test']} test images x {len(those)} seed{'s' * (len(those) > 1)}"


def table(sweep: Sweep) -> pd.DataFrame:
    """Errors (%) on the clean test labels at the best and the last epoch, beside Table B.2, and what is memorised."""
    rows = []
    for (noise, rate), runs in sweep.items():
        for rule, those in runs.items():
            paper = paper_value(PAPER_NAMES.get(rule, ""), f"noise {rate:.0%}", "", dataset="cifar10", model="")
            rows.append(
                {
                    "noise": noise,
                    "rate": f"{rate:.0%}",
                    "wrong": f"{100 - portion_correct(those[0]):.1f} %",
                    "labels": rule,
                    "best": mean_and_spread([100 - run.accuracy("best", "natural") for run in those]),
                    "last": mean_and_spread([100 - run.accuracy("last", "natural") for run in those]),
                    "train - test": mean_and_spread([memorised(run) for run in those]),
                    "paper": "–" if paper is None or noise != "symmetric" else f"{paper:.1f}*",
                    "n": f"{those[0].sizes['test']} x {len(those)}",
                }
            )
    return pd.DataFrame(rows)


def claims(sweep: Sweep) -> list[Claim]:
    """The supplement's claims in B.3 at each rate: what hard labels memorise, and what self-guided ones spare.

    That self-guided labels narrow the gap of training and test tells nothing of memorisation, as test accuracy may
    rise alone; so it is asked too how many of the wrong training labels they predict in the end.
    """
    found = []
    for (noise, rate), runs in sweep.items():
        hard, refined = runs.get("hard"), runs.get("self_guided")
        kind, why = noise.replace("_", " "), at_chance(hard or [], refined or [])
        at = f"{kind} labels" if noise.startswith("human_") else f"{rate:.0%} {kind} noise"

        def claim(id: str, text: str, of: str, values: list, reason: str = "") -> None:
            found.append(judged(id, f"{at}: {text}", of, values, reason=why or reason))  # noqa: B023

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
            for when, word in (("final", "last"), ("best", "best")):
                lower = gain(refined, hard, "natural", when)
                reason = unrefined(refined) if when == "best" else ""
                text = "self-guided labels have the lower test error"
                claim("lower_error", text, f"Natural, {word} epoch", lower, reason)
    return found
