"""Which training labels to doubt: by cross-validated confident learning, by the labels that training refined, and by
networks that were trained on others; and which of CIFAR-10's labels people contradict.
"""

import json
import math
import re
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from sglrlib.checks import one_of, within
from sglrlib.config import RunConfig
from sglrlib.judging.evaluate import outputs
from sglrlib.method.data import HUMAN, Split, load_data
from sglrlib.method.datasets import DATASETS, human_labels
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
        found[part] = said_by(config, train[part])
    return found


def said_by(config: RunConfig, split: Split) -> Tensor:
    """The probabilities (n, K) float64, on the CPU, that a run's last network gives to a split's images."""
    model = networks.load_model(config, "last", split.y.device)
    logits = [outputs(model, part.x(), part.y)[1] for part in (split[i : i + 5000] for i in range(0, len(split), 5000))]
    return torch.cat(logits).double().softmax(1).cpu()


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


def agreed_wrong(y: Tensor) -> tuple[Tensor, Tensor]:
    """Which of CIFAR-10's training labels y (N,) three people contradict alike: their places, and what they all say.

    Raises DataError where people's labels are not there.
    """
    one, two, three = (human_labels("cifar10")[f"random_{i}"] for i in (1, 2, 3))
    places = ((one == two) & (two == three) & (one != y)).nonzero()[:, 0]
    return places, one[places]


def unseen(config: RunConfig) -> Split:
    """CIFAR-10's training images that a run has neither for training nor for validation; on the CPU. Where three people
    contradict a label alike, y_clean is what they say.
    """
    every, own = load_data("cifar10").train, run_data(config)
    in_order = every.position.argsort()
    (places, said), truth = agreed_wrong(every.y[in_order]), every.y.clone()
    truth[in_order[places]] = said
    rest = ~torch.isin(every.position, torch.cat([own.train.position, own.val.position]))
    return replace(every, y_clean=truth)[rest]


def rankings_of_unseen(config: RunConfig, device="cpu") -> tuple[RunConfig, dict[str, Ranking], Tensor] | None:
    """Rankings of the labels of unseen() images by two networks, a refining run's and the same with hard labels, and
    which of them people contradict (n,). None but for CIFAR-10's own labels, networks at hand and images left.
    """
    both = config.but(labels="hard"), config
    if config.dataset != "cifar10" or config.noise_rate or not all(map(networks.holds, both)):
        return None
    split = unseen(config)
    if not len(split):
        return None
    rankings = {each.title: confident_learning(split.y, said_by(each, split.to(device))) for each in both}
    return config, rankings, split.y != split.y_clean


def people_claims(found: Sequence[tuple[RunConfig, dict[str, Ranking], Tensor]]) -> list[Claim]:
    """Whether networks find the labels that people contradict: found, rankings_of_unseen() of each seed; none for none.

    Average precision is held against their share. Where n labels are contradicted, precision is that of the n labels
    doubted most, held against one half.
    """
    judgements = []
    for title in found[0][1] if found else ():
        seeds = [(rankings[title], wrong) for _, rankings, wrong in found]
        measures = {
            "doubted before others": ("average precision above their share", [beyond_chance(*each) for each in seeds]),
            "found": ("precision of as many above one half", [above_half(w[r.order[: w.sum()]]) for r, w in seeds]),
        }
        judgements += [
            judged(
                "contradicted", f"labels that three people contradict are {how}",
                f"{title}, images that it never saw: {of}", *zip(*values, strict=True),
            )
            for how, (of, values) in measures.items()
        ]  # fmt: skip
    return judgements


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
