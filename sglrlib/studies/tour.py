"""The tour's figures, images under attack and their labels' targets over the epochs, and what it claims of these."""

import copy
from types import SimpleNamespace

import altair as alt
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from sglrlib.checks import one_of, within
from sglrlib.config import RunConfig
from sglrlib.method.data import Split
from sglrlib.show.plots import mark_phases
from sglrlib.show.style import class_names, draw_image, entitle, grid, named, noise_in_words
from sglrlib.show.verdicts import judged
from sglrlib.training.step import Step

TRUE, GIVEN, OTHERS = "#0F4C8A", "#D98B2B", "#8A8A8A"
ROLES = dict(zip(("given label", "true label", "all others"), (GIVEN, TRUE, OTHERS), strict=True))
DASHES = dict(zip(ROLES, ("--", "-", ":"), strict=True))
MOST_BARS = 10


def scale_of(own: SimpleNamespace, dataset: str) -> str:
    """The scale that a dataset is told at. Raises UsageError where another, or more than one seed, is asked for."""
    scale = "mini" if dataset == "digits" else "small"
    one_of("scale", own.scale or scale, [scale])
    within("seeds", own.seeds, 1, 1)
    return scale


def attacked(
    x: Tensor, x_adv: Tensor, clean: Tensor, adv: Tensor, y: Tensor, y_true: Tensor, flipped: Tensor, config: RunConfig
) -> Figure:
    """Clean images, perturbations (signed, mean over the channels) and adversarial images, one column an image.

    x, x_adv (n, C, H, W) in [0, 1]; clean, adv: their logits (n, K); y, y_true: given and true labels (n,); flipped:
    for each image of the batch that they are chosen from, whether its reading turns.
    """
    names, eps = class_names(config.dataset, clean.shape[1]), config.eps_255
    figure, axes = grid(3, len(x), 4.2)
    for i, column in enumerate(axes.T):
        given, true = names[y[i]], names[y_true[i]]
        before, after = (names[logits[i].argmax()] for logits in (clean, adv))
        draw_image(column[0], x[i])
        signed = column[1].imshow(255 * (x_adv - x)[i].mean(0).numpy(), cmap="RdBu_r", vmin=-eps, vmax=eps)
        draw_image(column[2], x_adv[i])
        label = f"label: {given}" if given == true else f"label: {given}\n(truly {true})"
        colour = "black" if given == true else "#8A4B00"
        column[0].set_title(f"{label}\nread as {before}", fontsize=7.5, color=colour)
        column[1].set(xticks=[], yticks=[])
        column[2].set_title(f"read as {after}", fontsize=7.5, weight="bold" if before != after else "normal")
    for axis, name in zip(axes[:, 0], ("clean $x$", "perturbation", "adversarial $x'$"), strict=True):
        axis.set_ylabel(name, fontsize=8)
    figure.colorbar(signed, ax=axes, label="change (1/255)", ticks=[-eps, 0, eps], shrink=0.33, pad=0.01)
    turned = int((clean.argmax(1) != adv.argmax(1)).sum())
    colours = "; the perturbation is the mean over the colours" if x.shape[1] > 1 else ""
    key = f"Those read differently were chosen first (bold, {turned} of {len(x)}). Brown: a wrong label was given."
    small = f"Algorithm 1, the attack: {of(config)}{colours}. {key}"
    message = f"The attack turns {flipped.sum()} of the batch's {len(flipped)} readings, by changes of at most ε"
    return entitle(figure, message, small)


def chosen(wrong: Tensor, flipped: Tensor, each: int = 3) -> Tensor:
    """Places of so many images with a wrong label, then as many with a right one; those whose reading flips first."""
    places = [kind.nonzero()[:, 0] for kind in (wrong, ~wrong)]
    return torch.cat([of_kind[(~flipped[of_kind]).int().argsort(stable=True)][:each] for of_kind in places])


def of(config: RunConfig) -> str:
    """What the tour's network is trained on, in words."""
    return (
        f"{named(config.dataset)}, {named(config.arch)}, ε = {config.eps_255}/255, {noise_in_words(config)}, one seed"
    )


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
        lines = [(train.y_clean, "true label"), (train.y, "given label")]
        for label, role in lines if chosen is mislabelled else lines[:1]:
            colour, style = ROLES[role], DASHES[role]
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
    panels[1].legend(handles=key, loc="lower left", frameon=False, fontsize=7)
    moved = (targets[-1, mislabelled].argmax(1) == train.y_clean[mislabelled]).double().mean()
    message = f"{moved:.0%} of the wrong labels end with the true class on top of their target"
    return entitle(
        figure, message, f"Equation 1: {of(config)}; above two samples, below all {len(train)} training images."
    )


def predictions(step: Step, train: Split, samples: Tensor, seed: int) -> Tensor:
    """What the network says of some training images, clean and attacked: probabilities (2, n, K)."""
    model, index = copy.deepcopy(step.model).eval(), samples
    x, y = train.x(index.tolist()), train.y[index]
    x_adv = step.attack(model, x, y, torch.Generator().manual_seed(seed), None)
    with torch.no_grad():
        return torch.stack([model(images).softmax(1) for images in (x, x_adv)])


def recorded(said: Tensor, train: Split, samples: Tensor, config: RunConfig) -> pd.DataFrame:
    """What was said of the samples after each epoch, said (epochs, 2, n, K), of the given and the true class and of all
    others, with the weight that the label gives them and the number of updates of the average since refinement began.
    """
    names, rows = class_names(config.dataset, said.shape[-1]), []
    for place, sample in enumerate(samples.tolist()):
        given, true = train.y[sample].item(), train.y_clean[sample].item()
        title = f"{place + 1}: {names[given]}" + f" (truly {names[true]})" * (given != true)
        for epoch in range(config.epochs + 1):
            clean, adv = said[max(0, epoch - 1), :, place].tolist()
            parts = {"given label": (clean[given], adv[given]), "true label": (clean[true], adv[true])}
            if given == true:
                parts.pop("true label")
            rest = tuple(1 - sum(values) for values in zip(*[parts[role] for role in parts], strict=True))
            for role, (of_clean, of_adv) in dict(parts, **{"all others": rest}).items():
                updates = max(0, epoch - config.first_refined + 1)
                label = float(role == "given label")
                rows.append((title, epoch, updates, role, round(of_clean, 4), round(of_adv, 4), label))
    return pd.DataFrame(rows, columns=["sample", "epoch", "updates", "role", "clean", "adv", "label"])


def sliders(record: pd.DataFrame, config: RunConfig) -> alt.Chart:
    """The target of a training sample over the recorded epochs, by sliders for r, alpha and lambda."""
    start = {name: config.label_options[name] for name in ("r", "alpha", "lam")}
    bounds = dict(r=(0, 1), alpha=(0.05, 0.99), lam=(0, 1))
    names = dict(r="r, weight of the average ", alpha="α, its momentum ", lam="λ, weight of the clean prediction ")
    params = [
        alt.param(name=key, value=start[key], bind=alt.binding_range(min=low, max=high, step=0.01, name=names[key]))
        for key, (low, high) in bounds.items()
    ]
    titles = list(dict.fromkeys(record["sample"]))
    pick = alt.param(name="pick", value=titles[0], bind=alt.binding_select(options=titles, name="training sample "))
    base = (
        alt.Chart(record)
        .transform_filter("datum.sample == pick")
        .transform_calculate(mixed="(lam * datum.clean + (1 - lam) * datum.adv) * pow(alpha, -datum.updates)")
        .transform_calculate(scaled="datum.updates > 0 ? datum.mixed : 0")
        .transform_window(total="sum(scaled)", groupby=["role"], sort=[alt.SortField("epoch")], frame=[None, 0])
        .transform_calculate(average="pow(alpha, datum.updates) * (datum.label + (1 - alpha) * datum.total)")
        .transform_calculate(target="r * datum.average + (1 - r) * datum.label")
    )
    colour = alt.Color("role:N", scale=alt.Scale(domain=[*ROLES], range=[*ROLES.values()]), title="class")
    dashes = alt.Scale(domain=[*ROLES], range=[[6, 3], [1, 0], [2, 2]])  # as DASHES
    lines = base.mark_line(strokeWidth=2).encode(
        alt.X("epoch:Q", title="Epoch"),
        alt.Y("target:Q", title="Weight in the target y", scale=alt.Scale(domain=[0, 1])),
        colour,
        alt.StrokeDash("role:N", scale=dashes, title="class"),  # one legend with the colour's, as the titles agree
        tooltip=["epoch", "role", alt.Tooltip("target:Q", format=".2f")],
    )
    begin = alt.Chart(pd.DataFrame(dict(epoch=[config.first_refined]))).mark_rule(color="#888", strokeDash=[2, 2])
    return (lines + begin.encode(x="epoch:Q")).add_params(*params, pick).properties(width=420, height=240)


def still(record: pd.DataFrame, config: RunConfig) -> Figure:
    """What sliders() shows first, for every sample side by side."""
    r, alpha, lam = (config.label_options[name] for name in ("r", "alpha", "lam"))
    samples = record.groupby("sample", sort=False)
    figure, axes = grid(1, samples.ngroups, 2.4, sharey=True)
    for axis, (title, of_sample) in zip(axes[0], samples, strict=True):
        for role, of_role in of_sample.groupby("role", sort=False):
            average, weights = of_role.label.iloc[0], []
            for row in of_role.itertuples():
                if row.updates:
                    average = alpha * average + (1 - alpha) * (lam * row.clean + (1 - lam) * row.adv)
                weights.append(r * average + (1 - r) * row.label)
            axis.plot(of_role.epoch, weights, DASHES[role], color=ROLES[role], label=role)
        axis.set(title=title, xlabel="Epoch", ylim=(-0.02, 1.02))
        axis.axvline(config.first_refined, color="0.5", lw=0.9, ls=":")
    axes[0, 0].set_ylabel("Weight in the target y")
    axes[0, 0].legend(frameon=False, fontsize=7)
    small = f"Equation 1: {of(config)}. In JupyterLab and on the site sliders move this."
    small += " Dotted upright: refinement begins."
    return entitle(figure, f"Targets at r = {r:g}, α = {alpha:g}, λ = {lam:g}", small)


def claims(train: Split, targets: Tensor) -> list[tuple[str, Tensor, float]]:
    """What the tour claims of the last targets (n, K): words, a value for each image of the kind, and a threshold."""
    wrong, everyone, last = train.y != train.y_clean, torch.arange(len(train)), targets.double()
    on_true, on_given = last[everyone, train.y_clean], last[everyone, train.y]
    ahead = on_true > on_given
    gained = on_true / (1 - on_given)  # of the weight that is not on the given label, the share on the true class
    chance = 1 / (targets.shape[1] - 1)
    return [
        ("most wrong labels weigh less in their target than the true class", ahead[wrong].double(), 1 / 2),
        ("more than chance of the weight off wrong labels is on the true class", gained[wrong], chance),
        ("right labels keep the largest weight in their target", (last.argmax(1) == train.y)[~wrong].double(), 9 / 10),
    ]


def shares(found: list[tuple[str, Tensor, float]]) -> str:
    """What claims() found, in percent."""
    return "\n".join(
        f"{text}: {values.mean():.1%}, threshold {threshold:.1%} (n = {len(values)})"
        for text, values, threshold in found
    )


def verdicts(checks: dict[str, bool], batch: int, found: list[tuple[str, Tensor, float]]) -> str:
    """Which checks, of a batch of so many images, are true, and whether each of claims() is seen in this run."""
    lines = [f"{text}: {str(bool(holds)).lower()} (n = {batch} images, the batch)" for text, holds in checks.items()]
    for text, values, threshold in found:
        word = judged("", text, "", [100 * (values - threshold)]).word
        lines.append(f"{text}: {word} (target at the last epoch, n = {len(values)} training images)")
    return "\n".join(lines)


def bars(row, train: Split, targets: Tensor, sample: int, epochs: list[int], config: RunConfig) -> None:
    """One row of axes: a sample's image, then its target at each epoch, of the classes that ever weigh most."""
    names = class_names(config.dataset, targets.shape[2])
    given, true = train.y[sample].item(), train.y_clean[sample].item()
    draw_image(row[0], train.x([sample])[0])
    row[0].set_title(f"given: {names[given]}\ntrue: {names[true]}", fontsize=8)
    heaviest = sorted(targets[epochs, sample].amax(0).topk(min(MOST_BARS, len(names))).indices.tolist())
    colours = [TRUE if k == true else GIVEN if k == given else "0.6" for k in heaviest]
    hatches = ["/////" if k == given else "" for k in heaviest]
    for axis, epoch in zip(row[1:], epochs, strict=True):
        weights = targets[epoch, sample, heaviest].tolist()
        axis.bar(range(len(heaviest)), weights, color=colours, hatch=hatches, ec="white", lw=0)
        axis.set_xticks(range(len(heaviest)), [names[k] for k in heaviest], fontsize=6)
        axis.tick_params("x", length=0, pad=1, rotation=0 if len(names[0]) == 1 else 90)
        axis.set(ylim=(0, 1.02), yticks=[0, 0.5, 1], yticklabels=["0", "½", "1"] if axis is row[1] else [])
        sns.despine(ax=axis)
    row[1].set_ylabel("Target")
