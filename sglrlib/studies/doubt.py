"""Which training labels to doubt: by cross-validated confident learning, and by the labels that training refined."""

import json
import math
import re
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from sglrlib.checks import one_of, within
from sglrlib.config import RunConfig
from sglrlib.judging.evaluate import outputs
from sglrlib.method.data import HUMAN
from sglrlib.method.datasets import DATASETS
from sglrlib.paths import RESULTS
from sglrlib.show import style
from sglrlib.show.verdicts import Claim, judged
from sglrlib.store import checkpoint
from sglrlib.store.results import pack, pack_shares, unpack, unpack_shares
from sglrlib.training import networks, runs
from sglrlib.training.train import run_data

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "IProgress")  # cleanlab's progress bar, never shown here, misses ipywidgets
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

FIRST = 32  # of a ranking that are kept in their order


@dataclass(frozen=True)
class Ranking:
    """What a source says of n training labels; on the CPU.

    mass (n,) float64: the probability of the given label, the lowest doubted most. flagged (n,) bool: called wrong.
    likely (n,) int64: the most probable class.
    """

    mass: Tensor
    flagged: Tensor
    likely: Tensor

    @property
    def order(self) -> Tensor:
        """Positions in the training split (n,), the most doubted first."""
        return self.mass.argsort(stable=True)


def confident_learning(y: Tensor, probabilities: Tensor) -> Ranking:
    """The given labels y (n,) as cleanlab ranks and flags them by out-of-sample probabilities (n, K), by its defaults:
    self-confidence, and pruning by noise rate (Northcutt et al. 2021, arXiv 1911.00068).
    """
    both = y.numpy(), probabilities.numpy()
    mass, flagged = get_label_quality_scores(*both), find_label_issues(*both, n_jobs=1)
    return Ranking(torch.from_numpy(mass), torch.from_numpy(flagged), probabilities.argmax(1))


def by_refined_labels(y: Tensor, p: Tensor) -> Ranking:
    """The given labels y (n,) by their own mass in refined labels p (n, K); flagged where another class has more."""
    return Ranking(p.gather(1, y[:, None])[:, 0], p.argmax(1) != y, p.argmax(1))


def fold_runs(config: RunConfig, folds: int) -> list[RunConfig]:
    """The standard runs (no attack, hard labels) that cross-validate a run's labels, each without one of the folds.

    Which labels are wrong is the same in all of them. Raises UsageError for fewer than two folds.
    """
    within("folds", folds, 2, min(100, config.train_size or 100))
    light = dict(diagnostics=(), attacked_size=10, eval_steps=1, train_eval_size=100)  # their curves are not used
    plain = config.but(method="standard", labels="hard", awp=0.0, swa_start=1.0, **light)
    return [plain.but(folds=folds, fold=fold) for fold in range(folds)]


def left_out(configs: Sequence[RunConfig], device="cpu") -> Tensor:
    """Out-of-sample probabilities (n, K) float64: of each training image, by the fold_runs() network that left it out.

    It is that of the last epoch: to name the best takes validation images with clean labels, and those who look for
    wrong labels have none. Raises UsageError where a checkpoint is missing.
    """
    train = run_data(configs[0].but(folds=0, fold=0)).train.to(device)
    found = torch.empty(len(train), DATASETS[configs[0].dataset].classes, dtype=torch.float64)
    for config in configs:
        part = slice(config.fold, None, config.folds)
        _, logits = outputs(networks.load_model(config, "last", device), train[part].x(), train[part].y)
        found[part] = logits.double().softmax(1).cpu()
    return found


def refined_labels(config: RunConfig) -> Tensor:
    """A run's average predictions of its training images after the last epoch, (n, K) float64; each row sums to one.

    Raises UsageError for labels that were not refined, Damaged where there is no checkpoint.
    """
    one_of("labels", config.labels, ["self_guided"])
    p = checkpoint.load(runs.RUNS / config.id / "last.pt")["labels"]["p"].double()
    return p / p.sum(1, keepdim=True)  # an average that started at zero falls short of one, by as much for each sample


def rankings(config: RunConfig, folds: Sequence[RunConfig], device="cpu") -> dict[str, Ranking]:
    """Both rankings of a run's training labels, from its own refined labels and its fold_runs()."""
    y = run_data(config).train.y
    learnt, refined = left_out(folds, device), refined_labels(config)
    return {"confident learning": confident_learning(y, learnt), "refined labels": by_refined_labels(y, refined)}


def claims(found: Sequence[tuple[RunConfig, dict[str, Ranking], Tensor]]) -> list[Claim]:
    """Whether each of the rankings finds the wrong labels. found, one a seed: run, rankings, and which of its labels
    are wrong, (n,); some must be. None where there are no seeds.

    Average precision is held against their share, about that of a random order; precision and recall against one half.
    """
    judgements, noise = [], found[0][0].noise if found else ""
    whose = f", {style.named(noise)}" if noise in HUMAN else ""
    for title in found[0][1] if found else ():
        seeds = [(rankings[title], wrong) for _, rankings, wrong in found]
        measures = {
            "average precision above their share": [beyond_chance(*each) for each in seeds],
            "precision above one half": [above_half(wrong[r.flagged]) for r, wrong in seeds if r.flagged.any()],
            "recall above one half": [above_half(r.flagged[wrong]) for r, wrong in seeds],
        }
        judgements += [
            judged("found", "wrong labels are found", f"{title}: {of}{whose}", *zip(*values, strict=True))
            for of, values in measures.items()
            if values
        ]
    return judgements


def above_half(hits: Tensor) -> tuple[float, float]:
    """The share of hits (n,) minus one half, in points, and its standard error."""
    share = hits.double().mean().item()
    return 100 * (share - 0.5), 100 * math.sqrt(max(share * (1 - share), 1 / len(hits)) / len(hits))


def keep(config: RunConfig, rankings: dict[str, Ranking], wrong: Tensor) -> Path:
    """Write rankings of a run's training labels, and which are wrong, below data/results/doubt; returns where.

    Many masses round to zero, so the first of each ranking are kept in their order, with their most probable classes.
    """
    kept = {
        title: dict(
            mass=pack_shares(r.mass), flagged=pack(r.flagged),
            first=r.order[:FIRST].tolist(), likely=r.likely[r.order[:FIRST]].tolist(),
        )
        for title, r in rankings.items()
    }  # fmt: skip
    path = RESULTS / "doubt" / f"{config.id}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dict(wrong=pack(wrong), rankings=kept), indent=1)
    path.write_text(re.sub(r"\[[^]]*\]", lambda numbers: " ".join(numbers[0].split()), text) + "\n")
    return path


def kept(config: RunConfig) -> tuple[dict[str, Ranking], Tensor] | None:
    """What keep() wrote of a run, None where it wrote nothing; the most probable classes only of the first, else -1."""
    path = RESULTS / "doubt" / f"{config.id}.json"
    if not path.exists():
        return None
    values = json.loads(path.read_text())
    rankings = {}
    for title, r in values["rankings"].items():
        mass, likely = unpack_shares(r["mass"]), torch.full((len(unpack(r["flagged"])),), -1)
        mass[r["first"]] -= 1e-9 * torch.arange(len(r["first"]), 0, -1)  # their order, where they round to the same
        likely[r["first"]] = torch.tensor(r["likely"])
        rankings[title] = Ranking(mass, unpack(r["flagged"]), likely)
    return rankings, unpack(values["wrong"])


def beyond_chance(ranking: Ranking, wrong: Tensor, draws: int = 200) -> tuple[float, float]:
    """Average precision minus the share of wrong labels, in points, and its standard error: the spread over draws of as
    many wrong and as many right labels, with replacement.
    """
    rng, kinds = torch.Generator().manual_seed(0), [kind.nonzero()[:, 0] for kind in (wrong, ~wrong)]
    drawn = [torch.cat([k[torch.randint(len(k), (len(k),), generator=rng)] for k in kinds]) for _ in range(draws)]
    every, *others = [average_precision_score(wrong[s], -ranking.mass[s]) for s in [torch.cat(kinds), *drawn]]
    return 100 * (every - wrong.double().mean().item()), 100 * statistics.stdev(others)
