"""Finds the committed results that notebooks show and verdicts are made of."""

from collections.abc import Callable, Iterable
from functools import partial

from torch import Tensor

from sglrlib.config import RunConfig
from sglrlib.method.data import HUMAN, noises_of
from sglrlib.method.labels import LABELS
from sglrlib.paths import RESULTS
from sglrlib.recipes import recipe, row_recipe, swept
from sglrlib.store.results import Result, read
from sglrlib.studies import ablation, doubt, separability, sweep
from sglrlib.studies.doubt import Ranking
from sglrlib.studies.separability import Embedding

MOST_SEEDS = 10
Row = Callable[..., list[Result]]  # a row's name and changes -> its committed results, one a seed


def results(make: Callable[..., RunConfig], *columns: str) -> list[Result]:
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
    return largest(lambda *at: {label: results(partial(make, *at), *columns) for label, make in makers.items()})


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
        return results(partial(row_recipe, name, dataset, scale, **changes), *columns)

    return row


def noise_sweep(dataset: str, scale: str) -> sweep.Sweep:
    """The committed results of standard training by the paper's label rules, under each kind and rate of noise."""
    noises = [("symmetric", rate) for rate in (0.0, 0.2, 0.4, 0.6, 0.8)]
    noises += [("symmetric_wrong", rate) for rate in (0.4, 0.8)]
    noises += [(kind, 1.0) for kind in HUMAN if kind in noises_of(dataset)]
    light = dict(swept(scale), method="standard")
    runs = {
        f"{noise} {rate} {rule}": results(
            partial(recipe, dataset, scale, **light, noise=noise, noise_rate=rate, labels=rule)
        )
        for noise, rate in noises
        for rule in sweep.PAPER_NAMES
        if rule in LABELS
    }
    return sweep.by_noise(runs)


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


def ablated(dataset: str, scale: str) -> dict[str, list[Result]]:
    """Notebook 12, the parts of the method."""
    row = rows_at(dataset, scale)
    return ablation.cases(lambda name, **changes: row(name, "pgd_20", **changes))


def controlled(dataset: str, scale: str) -> dict[str, list[Result]]:
    """Notebook 12, its control."""
    row, normed = rows_at(dataset, scale), ablation.NORMED if dataset == "digits" else {}
    return ablation.controls(lambda name, **changes: row(name, "pgd_20", **normed, **changes))


def unseen(dataset: str, scale: str) -> list[tuple[RunConfig, dict[str, Ranking], Tensor]]:
    """What is kept of doubt.rankings_of_unseen() at each seed; it is of CIFAR-10 alone."""
    seeds = range(MOST_SEEDS if dataset == "cifar10" else 0)
    every = [row_recipe("PGD-AT+SGLR", dataset, scale, seed=seed) for seed in seeds]
    return [(config, *kept) for config in every if (kept := doubt.kept(config))]


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
