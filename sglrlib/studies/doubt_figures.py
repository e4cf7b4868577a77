"""Figure B.1: the labels that rankings doubt most, how good the rankings are, and labels that people say are wrong."""

import torch
from matplotlib.figure import Figure
from sklearn.metrics import average_precision_score, precision_recall_curve, precision_score, recall_score
from torch import Tensor

from sglrlib.config import RunConfig
from sglrlib.method.data import Split
from sglrlib.method.datasets import DATASETS, human_labels
from sglrlib.show import style
from sglrlib.studies.doubt import Ranking
from sglrlib.studies.tour import class_names, show


def most_doubted(rankings: dict[str, Ranking], train: Split, config: RunConfig) -> Figure:
    """Sixteen labels of each of two rankings, the most doubted first; where wrong ones are known, these are framed."""
    wrong = train.y != train.y_clean
    names = class_names(config, DATASETS[config.dataset].classes)
    figure, axes = style.grid(4, 8, 5.0)
    for (title, ranking), rows in zip(rankings.items(), (axes[:2], axes[2:]), strict=True):
        for axis, places in zip(rows[:, 0], ("1 to 8", "9 to 16"), strict=True):
            axis.set_ylabel(f"{title}\n{places}", fontsize=8)
        for axis, i in zip(rows.flat, ranking.order.tolist(), strict=False):
            show(axis, train.x([i])[0])
            planted = wrong[i].item()
            axis.set_title(f"{names[train.y[i]]}\n→ {names[ranking.likely[i]]}{' ×' * planted}", fontsize=7)
            for spine in axis.spines.values():
                spine.set(visible=planted, color="C3", lw=2)
    framed = "; framed, ×: a wrong label" * wrong.any().item()
    title = f"{config.dataset}, {len(train)} training labels: given label → most probable class{framed}"
    figure.suptitle(title, fontsize=8)
    return figure


def precision(rankings: dict[str, Ranking], train: Split, config: RunConfig) -> Figure:
    """Left, the mass that each of two rankings leaves to every given label; right, precision and recall of both.

    The dot is what a ranking flags, the dotted line the share of wrong labels.
    """
    wrong = train.y != train.y_clean
    figure, ((masses, curves),) = style.grid(1, 2, 3.2)
    for kind, dot, colour, label in ((~wrong, ".", "0.45", "right label"), (wrong, "x", "C3", "wrong label")):
        masses.plot(*(ranking.mass[kind] for ranking in rankings.values()), dot, color=colour, ms=4, label=label)
    masses.set(xlabel="Probability of the given label (cross-validated)", ylabel="Its mass in the refined label")
    for (title, ranking), drawn in zip(rankings.items(), ("C2--", "C0-"), strict=True):
        right, found, _ = precision_recall_curve(wrong, -ranking.mass)
        at = [100 * score(wrong, ranking.flagged, zero_division=0) for score in (recall_score, precision_score)]
        average = 100 * average_precision_score(wrong, -ranking.mass)
        curves.plot(100 * found, 100 * right, drawn, label=f"{title}, average precision {average:.0f} %")
        curves.plot(*at, f"{drawn[:2]}o", mec="white", ms=7, zorder=5)
    curves.axhline(100 * wrong.double().mean(), color="0.5", lw=0.9, ls=":")
    curves.set(xlabel="Recall (%)", ylabel="Precision (%)", xlim=(0, 103), ylim=(0, 103))
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=7)
    figure.suptitle(f"{config.dataset}, {len(train)} training labels, {wrong.sum()} of them wrong", fontsize=8)
    return figure


def agreed_wrong(y: Tensor) -> tuple[Tensor, Tensor]:
    """Which of CIFAR-10's training labels y (N,) three people agree to be wrong: their places, and what they all say.

    Raises DataError where people's labels are not there.
    """
    one, two, three = (human_labels("cifar10")[f"random_{i}"] for i in (1, 2, 3))
    places = ((one == two) & (two == three) & (one != y)).nonzero()[:, 0]
    return places, one[places]


def agreed(images: Tensor, y: Tensor, places: Tensor, said: Tensor, config: RunConfig, seed: int = 0) -> Figure:
    """Sixteen of the places (n,), drawn at random: official label → what three people say."""
    drawn = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))[:16]
    names = class_names(config, 10)
    figure, axes = style.grid(2, 8, 2.9)
    for axis, i in zip(axes.flat, drawn.tolist(), strict=True):
        show(axis, images[places[i]].float() / 255)
        axis.set_title(f"{names[y[places[i]]]}\n→ {names[said[i]]}", fontsize=7)
        for spine in axis.spines.values():
            spine.set_visible(False)
    figure.suptitle(
        f"CIFAR-10, 16 of {len(places)} training images whose label three people agree to be wrong: label → theirs",
        fontsize=8,
    )
    return figure
