"""The registry: each claim of the paper once, data/claims.csv, and what the committed results say of it at each scale.

`python -m sglrlib claims` judges them all and writes data/results/claims.csv, which README and notebooks are read from.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial

import pandas as pd
from torch import Tensor

from sglrlib.config import RunConfig
from sglrlib.method.data import HUMAN, noises_of
from sglrlib.method.labels import LABELS
from sglrlib.paths import CLAIMS, RESULTS
from sglrlib.recipes import recipe, row_recipe, swept
from sglrlib.show.verdicts import Claim, holm, with_interval
from sglrlib.store.results import Result, read
from sglrlib.studies import (
    ablation,
    calibration,
    doubt,
    noise_kinds,
    overfitting,
    phases,
    refinement,
    separability,
    sweep,
)  # fmt: skip
from sglrlib.studies.doubt import Ranking
from sglrlib.studies.separability import Embedding

SCALES = {
    ("digits", "mini"): "digits",
    ("cifar10", "small"): "CIFAR-10 small",
    ("cifar100", "small"): "CIFAR-100 small",
}
COLUMNS = [
    "id", "scale", "claim", "measured by", "effect (95 %)", "images", "seeds", "verdict", "after Holm", "reason",
]  # fmt: skip
VERDICTS = RESULTS / "claims.csv"
MOST_SEEDS = 10
Row = Callable[..., list[Result]]  # a row's name and changes -> its committed results, one a seed


def known() -> pd.DataFrame:
    """data/claims.csv, by id: the paper's words, where they stand, what decides, the notebook."""
    return pd.read_csv(CLAIMS, keep_default_na=False, dtype=str).set_index("id")


def committed(make: Callable[..., RunConfig], *columns: str) -> list[Result]:
    """The committed results of a configuration at every seed that has them, with these columns."""
    found = []
    for seed in range(MOST_SEEDS):
        config = make(seed=seed)
        path = RESULTS / f"{config.id}.json"
        if path.exists():
            found.append(read(config, path))
    return [run for run in found if all(run.has(column, 1) for column in columns)]


def best(rows: Iterable[str], *columns: str, **changes: object) -> dict[str, list[Result]]:
    """best_of() for rows of the paper's tables, with changes to each row's recipe."""
    return best_of({row: partial(row_recipe, row, **changes) for row in rows}, *columns)


def best_of(makers: dict[str, Callable[..., RunConfig]], *columns: str) -> dict[str, list[Result]]:
    """Label -> the committed results of make(dataset, scale, seed=seed), one a seed, at the largest scale that has some
    for every label. columns: that the results must have. Empty where no scale has all.
    """
    return largest(lambda *at: {label: committed(partial(make, *at), *columns) for label, make in makers.items()})


def largest(find: Callable[[str, str], dict]) -> dict:
    """What find(dataset, scale) gives at the largest scale where none of it is empty."""
    for at in (("cifar10", "paper"), ("cifar10", "small"), ("digits", "mini")):
        found = find(*at)
        if found and all(found.values()):
            return found
    return {}


def rows_at(dataset: str, scale: str) -> Row:
    """What gives the committed results of a row of the paper's tables at a scale."""

    def row(name: str, *columns: str, **changes: object) -> list[Result]:
        return committed(partial(row_recipe, name, dataset, scale, **changes), *columns)

    return row


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
    row = rows_at(dataset, scale)
    yield from main_tables(row)
    yield from noise_rates(dataset, scale)
    yield from calibrated(row)
    yield from separability.claims(embeddings(dataset, scale))
    yield from schedules(row)
    yield from label_rules(row)
    yield from black_box(row)
    yield from kinds_of_noise(row, dataset, scale)
    yield from ablation.claims(ablated(dataset, scale), controlled(dataset, scale))
    yield from doubted(dataset, scale)


def recorded(runs: list[Result]) -> list[Result]:
    """Those of the runs whose curves have gradient norm, Hessian and IIW."""
    needed = {"batch_gradient_norm_hard", "hessian_trace", "iiw_paper"}
    return [run for run in runs if run.curve and needed <= run.curve[-1].keys()]


def main_tables(row: Row) -> Iterator[Claim]:
    """Notebooks 01 and 02."""
    for method in ("PGD-AT", "TRADES"):
        hard, refined = row(method), row(method + "+SGLR")
        columns = [c for c in ("pgd_20", "autoattack", "natural") if all(run.has(c, 1) for run in hard + refined)]
        if hard and refined:
            yield from refinement.claims(hard, refined, columns)


def noise_rates(dataset: str, scale: str) -> Iterator[Claim]:
    """Notebook 03."""
    yield from sweep.claims(noise_sweep(dataset, scale))


def noise_sweep(dataset: str, scale: str) -> sweep.Sweep:
    """The committed results of standard training by the paper's label rules, under each kind and rate of noise."""
    noises = [("symmetric", rate) for rate in (0.0, 0.2, 0.4, 0.6, 0.8)]
    noises += [("symmetric_wrong", rate) for rate in (0.4, 0.8)]
    noises += [(kind, 1.0) for kind in HUMAN if kind in noises_of(dataset)]
    light = dict(swept(scale), method="standard")
    runs = {
        f"{noise} {rate} {rule}": committed(
            partial(recipe, dataset, scale, **light, noise=noise, noise_rate=rate, labels=rule)
        )
        for noise, rate in noises
        for rule in sweep.PAPER_NAMES
        if rule in LABELS
    }
    return sweep.by_noise(runs)


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


def embeddings(dataset: str, scale: str) -> list[Embedding]:
    """Notebook 05: what is kept of standard training on wrong labels, and of adversarial training without any."""
    made = [dict(swept(scale), method="standard", noise_rate=rate) for rate in (0.2, 0.6)] + [dict(noise_rate=0.0)]
    every = [
        recipe(dataset, scale, labels=rule, seed=seed, **changes)
        for changes in made
        for rule in ("hard", "smooth", "self_guided")
        for seed in range(MOST_SEEDS)
    ]
    return [found for found in map(separability.kept, every) if found]


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
    for name, column, light in (("PGD-AT", "pgd_20", {}), ("Standard", "natural", swept(scale))):
        planted = noise_kinds.spoilt(("gaussian", "random_pixels", "symmetric")).items()
        kinds = {kind: row(name, column, **light, **changes) for kind, changes in planted}
        kinds = {kind: those for kind, those in kinds.items() if those}
        yield from refinement.drop_claims("other_noise", kinds, noise_kinds.WRONG_LABELS, column)
    budgets = noise_kinds.budgets(dataset)
    runs = [row("PGD-AT", "pgd_20", **noise_kinds.attack(eps)) for eps in budgets]
    usual = f"ε = {budgets[noise_kinds.USUAL]}/255"
    yield from refinement.drop_claims("weak_attacks", noise_kinds.by_budget(filter(None, runs)), usual)


def ablated(dataset: str, scale: str) -> dict[str, list[Result]]:
    """Notebook 12, the parts of the method."""
    row = rows_at(dataset, scale)
    return ablation.cases(lambda name, **changes: row(name, "pgd_20", **changes))


def controlled(dataset: str, scale: str) -> dict[str, list[Result]]:
    """Notebook 12, its control."""
    row, normed = rows_at(dataset, scale), ablation.NORMED if dataset == "digits" else {}
    return ablation.controls(lambda name, **changes: row(name, "pgd_20", **normed, **changes))


def doubted(dataset: str, scale: str) -> Iterator[Claim]:
    """Notebook 10."""
    for kept in ranked(dataset, scale):
        for title in kept[0][1]:
            yield from doubt.claims(title, [(rankings[title], wrong) for _, rankings, wrong in kept])


def ranked(dataset: str, scale: str) -> list[list[tuple[RunConfig, dict[str, Ranking], Tensor]]]:
    """What is kept of doubt for each kind of wrong labels, at each seed: run, rankings, and which labels are wrong. On
    digits these are the planted ones, elsewhere those that people gave.
    """
    noises = [{}] if dataset == "digits" else [dict(noise=kind, noise_rate=1.0) for kind in HUMAN]
    found = []
    for noise in [noise for noise in noises if not noise or noise["noise"] in noises_of(dataset)]:
        every = [row_recipe("PGD-AT+SGLR", dataset, scale, seed=seed, **noise) for seed in range(MOST_SEEDS)]
        found.append([(config, *kept) for config in every if (kept := doubt.kept(config))])
    return [kept for kept in found if kept]


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
