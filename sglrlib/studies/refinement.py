"""The paper's claims on robust overfitting and on what refined labels do to it, from accuracies image by image."""

from collections.abc import Iterable

from torch import Tensor

from sglrlib.show.tables import column_title, per_image
from sglrlib.show.verdicts import Claim, at_chance, judged
from sglrlib.store.results import Result, paired


def claims(
    hard: list[Result], refined: list[Result], columns: Iterable[str] = ("pgd_20", "natural"), data: str = ""
) -> list[Claim]:
    """The claims on a method and the same with refined labels. Robust is what each attack of columns says; data says
    what is particular about what they were trained on.
    """
    why, a, b = at_chance(hard, refined), hard[0].config.title, refined[0].config.title
    family = "trades_" if a == "TRADES" else ""
    found = []

    def claim(name: str, text: str, of: str, values: list[Tensor], reason: str = "") -> None:
        if values:  # a comparison needs a seed that both have
            found.append(judged(family + name, text, of + f", {data}" * bool(data), values, reason=why or reason))

    for c in columns:
        name = column_title(c)
        if c == "natural":
            claim("natural", f"{b} has the higher natural accuracy", "Natural, last epoch", gain(refined, hard, c))
            continue
        drops = [per_image(run, "diff", c) for run in hard]
        claim("overfits", f"{a} loses robust accuracy after its best epoch", f"{name}, best - last", points(drops))
        less = gain(hard, refined, c, "diff")
        claim("spared", f"{b} loses less of its best robust accuracy than {a}", f"{name}, best - last", less)
        text = f"{b} is more robust than {a}"
        claim("robust", text, f"{name}, last epoch", gain(refined, hard, c))
        claim("robust", text, f"{name}, best epoch", gain(refined, hard, c, "best"), unrefined(refined))
    return found


def rival_claims(others: dict[str, list[Result]], column: str = "pgd_20") -> list[Claim]:
    """That self-guided labels end more robust than every other rule but hard labels."""
    refined, found = self_guided(others), []
    for rival, those in others.items() if refined else ():
        if those is not refined and paired(refined, those):
            text = f"{refined[0].config.title} is more robust than {rival}"
            of, why = f"{column_title(column)}, last epoch", at_chance(refined, those)
            id = f"ahead_of_{those[0].config.labels}"
            found.append(judged(id, text, of, gain(refined, those, column), reason=why))
    return found


def gap_claims(hard: list[Result], refined: list[Result], columns: Iterable[str]) -> list[Claim]:
    """Whether the refined network's gap between best and last is the smaller one, whatever the sign of either."""
    a, b = hard[0].config.title, refined[0].config.title
    found = []
    for c in columns if paired(hard, refined) else ():
        gaps = []
        for pair in paired(hard, refined):
            h, r = (per_image(run, "diff", c) for run in pair)
            gaps.append(h * h.mean().sign() - r * r.mean().sign())
        text = f"{b} has a smaller gap between best and last epoch than {a}"
        of = f"{column_title(c)}, |best - last|"
        found.append(judged("transfer_gap", text, of, points(gaps), reason=at_chance(hard, refined)))
    return found


def masking_claims(runs: list[Result], columns: Iterable[str]) -> list[Claim]:
    """Whether each checkpoint withstands black-box attacks more often than the white-box one of the same kind.

    columns as of columns.transfer_column(). A network that only masked its gradients would not.
    """
    title, why = runs[0].config.title, at_chance(runs)
    found = []
    for c in columns:
        for when, word in (("best", "best"), ("final", "last")):
            more = [per_image(run, when, c) - per_image(run, when, c.split(" ")[0]) for run in runs]
            text = f"{title} withstands an attack made on another network more often than one made on itself"
            found.append(judged("no_masking", text, f"{column_title(c)}, {word} epoch", points(more), reason=why))
    return found


def drop_claims(id: str, runs: dict[str, list[Result]], most: str, column: str = "pgd_20") -> list[Claim]:
    """That the runs of most lose more accuracy after their best epoch than those of each other label.

    That a thing does no harm cannot be shown, only that it does less; and that one of them alone overfits is no answer.
    """
    what, found = "natural" if column == "natural" else "robust", []
    for label, those in runs.items() if most in runs else ():
        if label != most and paired(runs[most], those):
            more, why = gain(runs[most], those, column, "diff"), at_chance(runs[most], those)
            text = f"more {what} accuracy is lost with {most} than with {label}"
            of = f"{column_title(column)}, best - last, {most} against {label}"
            found.append(judged(id, text, of, more, reason=why))
    return found


def unrefined(runs: list[Result]) -> str:
    """Why the best networks of runs with refined labels tell nothing of them; '' where all were trained on such."""
    early = [
        run for run in runs if "refine_start" in run.config.as_dict() and run.best_epoch < run.config.first_refined
    ]
    return f"refinement starts after the best epoch in {len(early)} of {len(runs)} seeds" if early else ""


def gain(ones: list[Result], others: list[Result], column: str, checkpoint: str = "final") -> list[Tensor]:
    """Image by image, in points, one minus other, for each seed that both have."""
    pairs = paired(ones, others)
    return points([per_image(one, checkpoint, column) - per_image(other, checkpoint, column) for one, other in pairs])


def bars(runs: list[Result]) -> str:
    """What the intervals of a figure of such runs are."""
    return f"95 % intervals over {'seeds and images' if len(runs) > 1 else 'images'}"


def points(values: list[Tensor]) -> list[Tensor]:
    """Shares as percentage points."""
    return [100 * v for v in values]


def self_guided(runs: dict[str, list[Result]]) -> list[Result] | None:
    """The runs with self-guided labels, if there are any."""
    return next((those for those in runs.values() if those[0].config.labels == "self_guided"), None)
