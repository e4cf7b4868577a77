"""The tour's two figures: images under attack, and their labels' targets over the epochs."""

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from sglrlib.config import RunConfig
from sglrlib.method.data import Split
from sglrlib.show.plots import mark_phases

CIFAR10 = "plane car bird cat deer dog frog horse ship truck".split()  # short, for axes
TRUE, GIVEN = sns.color_palette("colorblind")[:2]
MOST_BARS = 10


def attacked(
    x: Tensor, x_adv: Tensor, clean: Tensor, adv: Tensor, y: Tensor, y_true: Tensor, config: RunConfig
) -> Figure:
    """Clean images, perturbations (signed, mean over the channels) and adversarial images, one column an image.

    x, x_adv (n, C, H, W) in [0, 1]; clean, adv: their logits (n, K); y, y_true: given and true labels (n,).
    """
    sns.set_theme("paper", "ticks", "colorblind")
    names, eps = class_names(config, clean.shape[1]), config.eps_255
    figure, axes = plt.subplots(3, len(x), figsize=(7.0, 3.9), squeeze=False, layout="constrained")
    for i, column in enumerate(axes.T):
        given, true = names[y[i]], names[y_true[i]]
        show(column[0], x[i])
        signed = column[1].imshow(255 * (x_adv - x)[i].mean(0).numpy(), cmap="RdBu_r", vmin=-eps, vmax=eps)
        show(column[2], x_adv[i])
        for axis, logits, above in ((column[0], clean, f"true: {true}\n"), (column[2], adv, "")):
            title = f"{above}{given} → {names[logits[i].argmax()]}"
            axis.set_title(title, color="black" if given == true else "#a34900", fontsize=7)
        column[1].set(xticks=[], yticks=[])
    for axis, name in zip(axes[:, 0], ("clean $x$", "perturbation", "adversarial $x'$"), strict=True):
        axis.set_ylabel(name)
    figure.colorbar(signed, ax=axes, label="perturbation (1/255)", ticks=[-eps, 0, eps], shrink=0.33, pad=0.01)
    figure.suptitle("given label → what the network reads; coloured: a wrong label was given", fontsize=8)
    return figure


def targets_over_epochs(train: Split, targets: Tensor, samples: list[int], config: RunConfig) -> Figure:
    """Bars of two samples' targets at a few epochs; below, the weights of the given and the true class over all.

    samples: positions in train of a mislabelled and a rightly labelled one. targets (epochs + 1, n, K): those of every
    epoch, the given labels first. A line is the mean over all samples of a kind, its band their middle half, the thin
    line the sample above.
    """
    sns.set_theme("paper", "ticks", "colorblind")
    first, last = config.first_refined, config.epochs
    epochs = sorted({min(epoch, last) for epoch in (first - 1, first, first + 4, first + 14, last)})
    figure = plt.figure(figsize=(7.0, 5.4), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[3, 2.2])
    grid = above.subplots(2, len(epochs) + 1, width_ratios=[0.8] + [1] * len(epochs))
    panels = below.subplots(1, 2, sharey=True)
    mislabelled = train.y != train.y_clean
    for sample, row, panel, chosen in zip(samples, grid, panels, (mislabelled, ~mislabelled), strict=True):
        bars(row, train, targets, sample, epochs, config)
        lines = [(train.y_clean, TRUE, "-"), (train.y, GIVEN, "--")]
        for label, colour, style in lines if chosen is mislabelled else lines[:1]:
            weight = targets[:, range(len(train)), label]
            each = weight[:, chosen]
            panel.plot(each.mean(1), style, color=colour)
            panel.fill_between(range(last + 1), each.quantile(0.25, 1), each.quantile(0.75, 1), color=colour, alpha=0.2)
            panel.plot(weight[:, sample], style, color=colour, lw=0.6)
        mark_phases(panel, config)
        panel.set(xlabel="Epoch", ylim=(-0.02, 1.02), xlim=(0, last))
        kind = "wrong" if chosen is mislabelled else "right"
        panel.set_title(f"all {int(chosen.sum())} images with a {kind} label", fontsize=8, pad=14)
        sns.despine(ax=panel)
    for axis, epoch in zip(grid[0, 1:], epochs, strict=True):
        updates = max(0, epoch - first + 1)
        axis.set_title(f"epoch {epoch}\n{f'update {updates}' if updates else 'given label'}", fontsize=8)
    panels[0].set_ylabel("Weight in the target")
    key = [
        Patch(fc=GIVEN, ec="white", hatch="/////", label="given label"),
        Patch(fc=TRUE, ec="white", label="true label"),
        Patch(fc=TRUE, ec="white", hatch="/////", label="both"),
        plt.Line2D([], [], color="0.3", label="mean; band: middle half"),
        plt.Line2D([], [], color="0.3", lw=0.6, label="the sample above"),
    ]
    figure.legend(handles=key, loc="outside lower center", ncols=5, frameon=False, fontsize=7)
    return figure


def bars(row, train: Split, targets: Tensor, sample: int, epochs: list[int], config: RunConfig) -> None:
    """One row of axes: a sample's image, then its target at each epoch, of the classes that ever weigh most."""
    names = class_names(config, targets.shape[2])
    given, true = train.y[sample].item(), train.y_clean[sample].item()
    show(row[0], train.x([sample])[0])
    row[0].set_title(f"given: {names[given]}\ntrue: {names[true]}", fontsize=8)
    heaviest = targets[epochs, sample].amax(0).topk(min(MOST_BARS, len(names))).indices.sort().values.tolist()
    colours = [TRUE if k == true else GIVEN if k == given else "0.6" for k in heaviest]
    hatches = ["/////" if k == given else "" for k in heaviest]
    for axis, epoch in zip(row[1:], epochs, strict=True):
        axis.bar(range(len(heaviest)), targets[epoch, sample, heaviest], color=colours, hatch=hatches, ec="white", lw=0)
        axis.set_xticks(range(len(heaviest)), [names[k] for k in heaviest], fontsize=6)
        axis.tick_params("x", length=0, pad=1, rotation=0 if len(names[0]) == 1 else 90)
        axis.set(ylim=(0, 1.02), yticks=[0, 0.5, 1], yticklabels=["0", "½", "1"] if axis is row[1] else [])
        sns.despine(ax=axis)
    row[1].set_ylabel("Target")


def show(axis, image: Tensor) -> None:
    """An image (C, H, W) in [0, 1], grey where it has one channel."""
    axis.imshow(image.permute(1, 2, 0).numpy(), cmap="gray", vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[])


def class_names(config: RunConfig, classes: int) -> list[str]:
    """What people call the classes: CIFAR-10's words, elsewhere their numbers."""
    return CIFAR10 if config.dataset == "cifar10" else [str(k) for k in range(classes)]
