"""Figure B.1: the labels that rankings doubt most, how good the rankings are, and labels that people say are wrong."""

import statistics
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from sklearn.metrics import average_precision_score, precision_recall_curve, precision_score, recall_score
from torch import Tensor

from sglrlib import paths
from sglrlib.config import RunConfig
from sglrlib.method.data import Split
from sglrlib.method.datasets import DATASETS
from sglrlib.show import style
from sglrlib.studies.doubt import Ranking, agreed_wrong

SOURCES = {"confident learning": (style.OTHER_COLOURS[0], "--"), "refined labels": (style.COLOURS["PGD-AT+SGLR"], "-")}
WRONG = style.COLOURS["PGD-AT"]


def at_hand(dataset: str) -> bool:
    """Whether a dataset's images, and the labels that people gave them, are on this machine; nothing is downloaded."""
    folder = dict(cifar10="cifar-10-batches-py", cifar100="cifar-100-python").get(dataset)
    return folder is None or all((paths.DATA / name).exists() for name in (folder, "cifar_n"))


def most_doubted(rankings: dict[str, Ranking], train: Split, config: RunConfig, item: str = "As Figure B.1") -> Figure:
    """Sixteen labels of each of two rankings, the most doubted first: given label → most probable class. Wrong ones are
    framed, where they are known: because they were planted, or because people contradict them.
    """
    wrong = train.y != train.y_clean
    names = style.class_names(config.dataset, DATASETS[config.dataset].classes)
    figure, axes = style.grid(4, 8, 5.4)
    for (title, ranking), rows in zip(rankings.items(), (axes[:2], axes[2:]), strict=True):
        for axis, places in zip(rows[:, 0], ("1 to 8", "9 to 16"), strict=True):
            axis.set_ylabel(f"{title}\n{places}", fontsize=8)
        for axis, i in zip(rows.flat, ranking.order.tolist(), strict=False):
            style.draw_image(axis, train.x([i])[0])
            axis.set_title(f"{names[train.y[i]]}\n→ {names[ranking.likely[i]]}{' ×' * wrong[i].item()}", fontsize=7)
            for spine in axis.spines.values():
                spine.set(visible=wrong[i].item(), color=WRONG, lw=2)
    hits = " and ".join(f"{wrong[r.order[:16]].sum()} ({title})" for title, r in rankings.items())
    message, which = f"Of the 16 labels that each source doubts most, {hits} are ", "training labels"
    if not wrong.any():
        message = "The labels that two sources doubt most, none of them known to be wrong"
        caveat = "A doubt may be the network's own error: an image that is hard for it, with the right label."
    elif config.noise_rate:
        message += "wrong"
        caveat = "Framed, ×: the label is wrong. Not framed: it is right, and the doubt is the network's own error."
    else:
        message, which = message + "contradicted by people", which + ", none of them trained on"
        caveat = "Framed, ×: three people agree on another class. Else the doubt may be the network's own error."
    small = f"{item}: {style.named(config.dataset)}, {len(train):,} {which}, {style.noise_in_words(config)}; "
    small += f"seed {config.seed}. Above an image: given label → most probable class.\n{caveat}"
    return style.entitle(figure, message, small)


def precision(found: Sequence[tuple[RunConfig, dict[str, Ranking], Tensor]]) -> Figure:
    """Left, the mass that each of two rankings leaves to every given label, of the first seed; right, precision and
    recall of both for every seed, with a dot for what is flagged. found: run, rankings, which labels are wrong (n,).
    """
    figure, ((masses, curves),) = style.grid(1, 2, 3.4)
    config, rankings, wrong = found[0]
    for kind, dot, colour in ((~wrong, ".", "0.45"), (wrong, "x", WRONG)):
        masses.plot(*(ranking.mass[kind] for ranking in rankings.values()), dot, color=colour, ms=4)
    masses.set_xlabel("Probability of the given label (cross-validated)")
    masses.set_ylabel("Mass of the given label\nin the refined label")
    told = {}
    for title in rankings:
        colour, line = SOURCES.get(title, ("0.3", ":"))
        scores = []
        for _, each, truth in found:
            right, share, _ = precision_recall_curve(truth, -each[title].mass)
            curves.plot(100 * share, 100 * right, line, color=colour, lw=1.1)
            at = [100 * score(truth, each[title].flagged, zero_division=0) for score in (recall_score, precision_score)]
            curves.plot(*at, "o", color=colour, mec="white", ms=7, zorder=5)
            scores.append((*at, 100 * average_precision_score(truth, -each[title].mass)))
        recall, right, average = map(statistics.fmean, zip(*scores, strict=True))
        curves.plot([], [], line, color=colour, label=f"{title}: average precision {average:.0f}%")
        told[title] = f"{title} {right:.0f}% (recall {recall:.0f}%)"
    share = 100 * statistics.fmean(truth.double().mean().item() for *_, truth in found)
    curves.axhline(share, color="0.5", lw=0.9, ls=":", zorder=0)
    counts = ", ".join(str(truth.sum().item()) for *_, truth in found)
    curves.annotate("share of wrong labels", (1, share), fontsize=7, color="0.3", va="bottom")
    curves.set(xlabel="Recall (%)", ylabel="Precision (%)", xlim=(0, 103), ylim=(0, 103))
    curves.legend(loc="center left", frameon=False, fontsize=7)
    of = f"seeds: {len(found)}, left the first" if len(found) > 1 else f"seed {config.seed}"
    small = f"{style.named(config.dataset)}, {len(wrong):,} training labels, {style.noise_in_words(config)}: "
    small += f"{counts} wrong; {of}. Left: crosses are wrong labels, dots right ones. "
    small += "Right: a line for each seed, dots: what is flagged."
    return style.entitle(figure, f"Precision of what is flagged: {', '.join(told.values())}", small)


def by_people(seed: int = 0) -> Figure:
    """Sixteen of the CIFAR-10 images whose label three people contradict alike, drawn at random: label → theirs."""
    (images, y), _ = DATASETS["cifar10"].load()
    places, said = agreed_wrong(torch.from_numpy(y))
    drawn = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))[:16]
    figure, axes = style.grid(2, 8, 2.9)
    for axis, i in zip(axes.flat, drawn.tolist(), strict=True):
        style.draw_image(axis, torch.from_numpy(images[places[i]]).float() / 255)
        axis.set_title(f"{style.CIFAR10[y[places[i]]]}\n→ {style.CIFAR10[said[i]]}", fontsize=7)
        for spine in axis.spines.values():
            spine.set_visible(False)
    share = len(places) / len(y)
    message = f"Three people agree on another class for {len(places):,} of {len(y):,} labels of CIFAR-10 ({share:.1%})"
    small = "As Figure B.1: 16 of these training images, drawn at random; label → what all three say "
    return style.entitle(figure, message, small + "(CIFAR-10N, Wei et al. 2022). Three people can be wrong together.")
