"""The registry: each claim of the paper once, data/claims.csv, and what the committed results say of it at each scale.

`python -m sglrlib claims` judges them all and writes data/results/claims.csv, which README and notebooks are read from.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pandas as pd

from sglrlib.method.data import HUMAN, noises_of
from sglrlib.paths import CLAIMS, RESULTS
from sglrlib.recipes import swept
from sglrlib.show import style
from sglrlib.show.verdicts import Claim, holm, with_interval
from sglrlib.store.results import Result
from sglrlib.studies import (
    ablation,
    calibration,
    doubt,
    noise_kinds,
    overfitting,
    phases,
    published,
    refinement,
    separability,
    sweep,
)  # fmt: skip
from sglrlib.studies.published import Row

SCALES = {
    ("digits", "mini"): "digits",
    ("cifar10", "small"): "CIFAR-10 small",
    ("cifar100", "small"): "CIFAR-100 small",
}
COLUMNS = [
    "id", "scale", "claim", "measured by", "effect (95 %)", "images", "seeds", "verdict", "after Holm", "reason",
]  # fmt: skip
VERDICTS = RESULTS / "claims.csv"


def known() -> pd.DataFrame:
    """data/claims.csv, by id: the paper's words, where they stand, what decides, the notebook."""
    return pd.read_csv(CLAIMS, keep_default_na=False, dtype=str).set_index("id")


def judge_all() -> list[tuple[str, Claim]]:
    """Every claim that committed results can judge, with its scale; what that scale cannot carry is withheld."""
    claims = known()
    found = []
    for (dataset, scale), title in SCALES.items():
        for claim in judge(dataset, scale):
            why = claims.loc[claim.id, "not on digits"] if dataset == "digits" else ""
            found.append((title, replace(claim, reason=claim.reason or why)))
    return found


def judge(dataset: str, scale: str) -> Iterator[Claim]:
    """The claims on one dataset at one scale, notebook by notebook."""
    row = published.rows_at(dataset, scale)
    yield from main_tables(row)
    for kind in [kind for kind in HUMAN if kind in noises_of(dataset)]:
        yield from main_tables(partial(row, noise=kind, noise_rate=1.0), style.named(kind))
    yield from noise_rates(dataset, scale)
    yield from calibrated(row)
    yield from separability.claims(published.embeddings(dataset, scale))
    yield from schedules(row)
    yield from label_rules(row)
    yield from black_box(row)
    yield from kinds_of_noise(row, dataset, scale)
    yield from ablation.claims(published.ablated(dataset, scale), published.controlled(dataset, scale))
    yield from doubted(dataset, scale)


def recorded(runs: list[Result]) -> list[Result]:
    """Those of the runs whose curves have gradient norm, Hessian and IIW."""
    needed = {"batch_gradient_norm_hard", "hessian_trace", "iiw_paper"}
    return [run for run in runs if run.curve and needed <= run.curve[-1].keys()]


def main_tables(row: Row, data: str = "") -> Iterator[Claim]:
    """Notebooks 01 and 02; data names training data that are not the dataset's own."""
    for method in ("PGD-AT", "TRADES"):
        hard, refined = row(method), row(method + "+SGLR")
        columns = [c for c in ("pgd_20", "autoattack", "natural") if all(run.has(c, 1) for run in hard + refined)]
        if hard and refined:
            yield from refinement.claims(hard, refined, columns, data)


def noise_rates(dataset: str, scale: str) -> Iterator[Claim]:
    """Notebook 03."""
    yield from sweep.claims(published.noise_sweep(dataset, scale))


def calibrated(row: Row) -> Iterator[Claim]:
    """Notebook 04: by the probabilities of each image, else by what the curves say under PGD-10."""
    for attacks in (("pgd_10", "square_500"), ("pgd_10",)):
        standard, hard, refined = (
            [run for run in row(name) if all(calibration.measured(run, attack) for attack in ("natural", *attacks))]
            for name in ("Standard", "PGD-AT", "PGD-AT+SGLR")
        )
        if hard and refined:
            yield from calibration.claims(hard, refined, attacks, standard)
            return


def schedules(row: Row) -> Iterator[Claim]:
    """Notebook 06."""
    piecewise, cosine = (recorded(row("PGD-AT", "pgd_20", schedule=how)) for how in ("piecewise", "cosine"))
    if piecewise:
        yield from phases.claims(piecewise, cosine)


def label_rules(row: Row) -> Iterator[Claim]:
    """Notebook 07."""
    hard = row("PGD-AT", "pgd_20")
    others = {name: row(name, "pgd_20") for name in ("PGD-AT+LS", "PGD-AT+TE", "PGD-AT+ADR", "PGD-AT+SGLR")}
    others = {name: those for name, those in others.items() if those}
    yield from refinement.rival_claims(others)
    others = {name: recorded(those) for name, those in others.items() if recorded(those)}
    if recorded(hard) and others:
        yield from overfitting.claims(recorded(hard), others)


def black_box(row: Row) -> Iterator[Claim]:
    """Notebook 08: whichever sources the committed attacks were made on."""
    hard, refined = row("PGD-AT"), row("PGD-AT+SGLR")
    made = [column for column in refined[0].evaluations["best"] if " from " in column] if refined else []
    for column in made:
        mine = [
            [run for run in runs if run.has(column, 1) and run.has(column.split(" ")[0], 1)] for runs in (hard, refined)
        ]
        if all(mine):
            yield from refinement.masking_claims(mine[1], [column])
            yield from refinement.gap_claims(*mine, [column])


def kinds_of_noise(row: Row, dataset: str, scale: str) -> Iterator[Claim]:
    """Notebook 09."""
    for name, column, share, light in (("PGD-AT", "pgd_20", 0.3, {}), ("Standard", "natural", 0.4, swept(scale))):
        planted = noise_kinds.spoilt(("gaussian", "random_pixels", "shuffled_pixels", "symmetric"), share).items()
        kinds = {kind: row(name, column, **light, **changes) for kind, changes in planted}
        kinds = {kind: those for kind, those in kinds.items() if those}
        yield from refinement.drop_claims("other_noise", kinds, noise_kinds.WRONG_LABELS, column)
        yield from noise_kinds.rising_claims(kinds)
    budgets = noise_kinds.budgets(dataset)
    runs = [row("PGD-AT", "pgd_20", **noise_kinds.attack(eps)) for eps in budgets]
    usual = f"ε = {budgets[noise_kinds.USUAL]}/255"
    yield from refinement.drop_claims("weak_attacks", noise_kinds.by_budget(filter(None, runs)), usual)


def doubted(dataset: str, scale: str) -> Iterator[Claim]:
    """Notebook 10."""
    for kept in published.ranked(dataset, scale):
        yield from doubt.claims(kept)
    yield from doubt.people_claims(published.unseen(dataset, scale))


def table() -> pd.DataFrame:
    """The verdicts: one row a claim, what measured it, and scale; Holm's family is all claims at a scale."""
    found = judge_all()
    survives = {}
    for scale in SCALES.values():
        of_scale = [claim for where, claim in found if where == scale]
        survives |= {id(claim): yes for claim, yes in zip(of_scale, holm(of_scale), strict=True)}
    rows = [
        {
            "id": claim.id, "scale": scale, "claim": claim.text, "measured by": claim.of,
            "effect (95 %)": with_interval(claim), "images": claim.images, "seeds": claim.seeds,
            "verdict": claim.word, "after Holm": "yes" if survives[id(claim)] else "no", "reason": claim.reason,
        }
        for scale, claim in found
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def text() -> str:
    """table() as it is kept."""
    return table().to_csv(index=False, lineterminator="\n")


def kept() -> pd.DataFrame:
    """data/results/claims.csv, no rows where it was never written."""
    return pd.read_csv(VERDICTS, keep_default_na=False) if VERDICTS.exists() else pd.DataFrame(columns=COLUMNS)


def of_notebook(number: str) -> pd.DataFrame:
    """What the committed results say of a notebook's claims, in the paper's words: alike on every machine."""
    claims = known().query("notebook == @number")
    found = kept()
    found = found[found.id.isin(claims.index)]
    order = {name: place for place, name in enumerate([*claims.index, *reversed(SCALES.values())])}
    found = found.sort_values(["id", "scale"], key=lambda column: column.map(order), kind="stable")
    table = pd.DataFrame(
        {
            "claim": [quoted(claims.loc[name]) for name in found.id],
            "measured by": found["measured by"],
            "scale": found.scale,
            "effect (95 %)": found["effect (95 %)"],
            "n": [
                f"{images:,} x {seeds}" if images else f"{seeds}"
                for images, seeds in zip(found.images, found.seeds, strict=True)
            ],
            "verdict": [
                f"**{word}**" + f": {why}" * bool(why) for word, why in zip(found.verdict, found.reason, strict=True)
            ],
        }
    )
    return table.set_index(["claim", "measured by", "scale"])


def quoted(claim: pd.Series) -> str:
    """A claim in the paper's words and where they stand; ours, in brackets, as they are."""
    return claim.claim if claim.claim.startswith("(") else f"“{claim.claim}” ({claim.loc['where']})"
