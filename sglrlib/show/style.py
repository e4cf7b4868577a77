"""How all figures look: colours, names in the paper's words, headline and small print, and where they are kept."""

import textwrap
from collections.abc import Iterable

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from torch import Tensor

from sglrlib import paths
from sglrlib.method.data import HUMAN
from sglrlib.store.results import Result

# Lightness falls from rule to rule, so that the four stay apart in grey and for the colour-blind; see test_style.py.
COLOURS = {
    "PGD-AT": "#D1491B",
    "PGD-AT+LS": "#3FA7A0",
    "PGD-AT+TE": "#EBC14E",
    "PGD-AT+ADR": "#6FB1E4",
    "PGD-AT+SGLR": "#0F4C8A",
    "AWP": "#C58BC2",
    "KD-AT": "#6B6B6B",
    "KD-SWA": "#7F98A8",
    "TRADES": "#A35BB5",
    "TRADES+SGLR": "#4A1C6B",
    "Standard": "#ADADAD",
}
MARKERS = dict(zip(COLOURS, "osD<^vPXp*h", strict=True))
OTHER_COLOURS = ("#1B7F4B", "#B8860B", "#7A1F3D", "#2E6F9E", "#555555", "#000000")
OTHER_MARKERS = ">Hd8p|"
NAMES = dict(
    digits="8x8 digits", cifar10="CIFAR-10", cifar100="CIFAR-100",
    cnn16="a 3-layer CNN", bn_cnn16="a 3-layer CNN with BatchNorm", cnn24="a wider CNN", cnn32="a still wider CNN",
    resnet18="ResNet-18", resnet34="ResNet-34", resnet50="ResNet-50", wrn34_10="WRN-34-10",
    preact_resnet10_16="a narrow PreAct-ResNet-10", preact_resnet18_16="a narrow PreAct-ResNet-18",
    preact_resnet10_32="a wider PreAct-ResNet-10",
    symmetric="labels drawn anew", symmetric_wrong="labels moved to a wrong class", gaussian="Gaussian images",
    random_pixels="random pixels", shuffled_pixels="shuffled pixels", human_aggregate="people's labels, aggregate",
    human_worst="people's labels, worst", hard="hard labels", smooth="smoothed labels", ensemble="temporal ensembling",
    rectified="rectified labels", self_guided="self-guided labels", alpha="α", lam="λ", refine_start="start",
)  # fmt: skip
CIFAR10 = "plane car bird cat deer dog frog horse ship truck".split()  # short, for axes
WIDTH = 7.0  # inches, a page's


def grid(rows: int, columns: int, height: float = 2.9, **how: object) -> tuple[Figure, np.ndarray]:
    """A figure of a page's width and its axes (rows, columns); how is passed to plt.subplots()."""
    sns.set_theme("paper", "ticks", "colorblind")
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, height), squeeze=False, layout="constrained", **how)
    for axis in axes.flat:
        sns.despine(ax=axis)
    return figure, axes


def named(name: str) -> str:
    """What people call a dataset, network, kind of noise or label rule."""
    return NAMES.get(name, name.replace("_", " "))


def class_names(dataset: str, classes: int) -> list[str]:
    """What people call the classes: CIFAR-10's words, elsewhere their numbers."""
    return CIFAR10 if dataset == "cifar10" else [str(k) for k in range(classes)]


def draw_image(axis, image: Tensor) -> None:
    """Show an image (C, H, W) in [0, 1] on an axis, grey where it has one channel."""
    axis.imshow(image.permute(1, 2, 0).numpy(), cmap="gray", vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[])


def colour_of(label: str, among: Iterable[str] = ()) -> object:
    """The colour of a method; shades of it for several of one method, such as 'PGD-AT, cosine'; a scale for values of
    one thing, such as 'eps = 2/255'; else what the methods leave.
    """
    if label in COLOURS:
        return COLOURS[label]
    among, method = list(among), label.split(",")[0]
    if method in COLOURS:
        shades = [other for other in among if other.startswith(f"{method},")] or [label]
        shades = [method, *shades] if method in among else shades
        return sns.blend_palette([COLOURS[method], "black"], len(shades) + 1)[shades.index(label)]
    others = others_of(label, among)
    if all(" = " in other for other in others) and len({other.split(" = ")[0] for other in others}) == 1:
        return sns.color_palette("viridis", len(others) + 1)[others.index(label)]  # without its pale end
    return OTHER_COLOURS[others.index(label) % len(OTHER_COLOURS)]


def marker_of(label: str, among: Iterable[str] = ()) -> str:
    """The marker of a method, for those who cannot tell the colours apart; for others one that the methods leave."""
    if label in MARKERS:
        return MARKERS[label]
    others = [other for other in among if other not in MARKERS] or [label]
    return OTHER_MARKERS[others.index(label) % len(OTHER_MARKERS)]


def others_of(label: str, among: Iterable[str]) -> list[str]:
    """The labels that belong to no method of the paper's."""
    return [other for other in among if other.split(",")[0] not in COLOURS] or [label]


def entitle(figure: Figure, message: str, small: str = "") -> Figure:
    """Put what a figure shows above it, and below it in small print what it was made of. Both are its alternative
    text, see alternative_text().
    """
    figure.suptitle(textwrap.fill(message, 80, break_on_hyphens=False), x=0.01, ha="left", fontsize=10, weight="bold")
    if small:
        text = "\n".join(textwrap.fill(line, 125, break_on_hyphens=False) for line in small.splitlines())
        figure.supxlabel(text, x=0.01, ha="left", fontsize=7, color="0.25")
    return figure


def alternative_text(figure: Figure) -> str:
    """What a figure shows and was made of, in words."""
    return " ".join(f"{figure.get_suptitle()}. {figure.get_supxlabel()}".split())


def label_ends(axis, ends: dict[str, tuple[float, float, object]], size: float = 7.5) -> None:
    """Write names beside the right ends of lines: name -> x, y and colour. Those too near each other move apart."""
    if not ends:
        return
    low, high = axis.get_ylim()
    log = axis.get_yscale() == "log"
    flat = np.log if log else np.asarray
    points_high = axis.figure.get_figheight() * 72 / max(1, axis.get_subplotspec().get_gridspec().nrows) * 0.62
    apart = 1.25 * size / points_high * (flat(high) - flat(low))
    order = sorted(ends, key=lambda name: ends[name][1])
    at = [float(flat(ends[name][1])) for name in order]
    for _ in range(100):  # push neighbours apart, half of what lacks each
        for i in range(len(at) - 1):
            lacking = apart - (at[i + 1] - at[i])
            if lacking > 1e-9:
                at[i], at[i + 1] = at[i] - lacking / 2, at[i + 1] + lacking / 2
    for name, y in zip(order, at, strict=True):
        x, _, colour = ends[name]
        place = dict(xytext=(5, 0), textcoords="offset points", va="center", fontsize=size)
        axis.annotate(name, (x, np.exp(y) if log else y), color=ink(colour), annotation_clip=False, **place)


def label_points(axis, points: dict[str, tuple[tuple[float, float], object]], size: float = 7.5) -> None:
    """Write names beside points, name -> (x, y) and colour: each where it covers least of the axis's lines and of the
    other names, with a thin line to its point if that is not near. To be called last, when the axis has its place.
    """
    if not points:
        return
    axis.figure.draw_without_rendering()
    scale, inside, written = axis.figure.dpi / 72, axis.get_window_extent(), []
    drawn = np.concatenate([between(line.get_transform().transform(line.get_xydata())) for line in axis.lines])
    places = [(far * np.cos(turn), far * np.sin(turn)) for far in (8, 14, 22, 32) for turn in np.arange(16) * np.pi / 8]

    def put(text: Text, place: tuple[float, float]) -> Bbox:
        right, up = place
        text.set(position=place, ha="center" if abs(right) < 4 else "left" if right > 0 else "right")
        text.set_va("center" if abs(up) < 4 else "bottom" if up > 0 else "top")
        return text.get_window_extent().padded(1.5 * scale)

    def cost(box: Bbox, place: tuple[float, float]) -> float:
        covered = np.all((drawn > box.min) & (drawn < box.max), axis=1).sum()
        crossed = sum(box.overlaps(other) for other in written)
        outside = box.x0 < inside.x0 or box.x1 > inside.x1 or box.y0 < inside.y0 or box.y1 > inside.y1
        return covered + 100 * crossed + 50 * outside + np.hypot(*place) / 4

    for name, (at, colour) in points.items():
        text = axis.annotate(name, at, textcoords="offset points", xytext=(0, 0), fontsize=size, color=ink(colour))
        found = min(places, key=lambda place: cost(put(text, place), place))
        written.append(put(text, found))
        if np.hypot(*found) > 10:
            line = dict(arrowstyle="-", color=colour, lw=0.5, shrinkA=0, shrinkB=4)
            axis.annotate("", at, textcoords="offset points", xytext=found, arrowprops=line)


def between(line: np.ndarray, steps: int = 40) -> np.ndarray:
    """Many points on a line given by its corners (n, 2)."""
    along = np.linspace(0, len(line) - 1, steps * max(1, len(line) - 1))
    return np.stack([np.interp(along, range(len(line)), values) for values in line.T], axis=1)


def ink(colour: object) -> tuple:
    """A colour dark enough to be read as text on white: contrast 4.5 at least, as WCAG asks for."""
    rgb = np.array(to_rgb(colour))
    while 1.05 / (0.05 + luminance(rgb)) < 4.5:
        rgb = 0.95 * rgb
    return tuple(rgb)


def luminance(rgb: np.ndarray) -> float:
    """Relative luminance of an sRGB colour in [0, 1]."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def setting(runs: list[Result], bars: str = "", images: str = "") -> str:
    """What was run: dataset, network, budget, noise in the training data, test images (those of the curves, unless
    images names others) and seeds; and what the bars are, of a figure that has such and no curves.
    """
    config = runs[0].config
    n, attacked = runs[0].sizes["test"], config.attacked_size
    few = f" ({attacked:,} of them after each epoch)" if 0 < attacked < n and not bars else ""
    seeds = f"{len(runs)} seeds" if len(runs) > 1 else f"seed {config.seed}"
    spread = f", bars: {bars}" if bars else ", bands from lowest to highest" if len(runs) > 1 else ""
    network = f"{named(config.dataset)}, {named(config.arch)}, {runs[0].sizes['train']:,} training images"
    budget = f"ε = {config.eps_255}/255, " if config.method != "standard" else ""
    return f"{network}, {budget}{noise_in_words(config)}; {images or f'{n:,} test images{few}'}; {seeds}{spread}."


def noise_in_words(config) -> str:
    """What is wrong with the training data: nothing planted, labels drawn anew, labels given by people, or images."""
    if not config.noise_rate:
        return "no planted noise"
    if config.noise in HUMAN:
        return f"labels given by people ({config.noise.removeprefix('human_')})"
    what = "of the labels drawn anew" if config.noise == "symmetric" else named(config.noise)
    return f"{config.noise_rate:.0%} {what}"


def save(figure: Figure, name: str, publish: bool = False) -> str:
    """Write a figure as PNG and PDF, below runs/figures/ or, to be kept, figures/; returns where the PNG is."""
    folder = paths.FIGURES if publish else paths.RUNS / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", dpi=200, metadata=dict(Description=alternative_text(figure)))
    figure.savefig(folder / f"{name}.pdf", metadata=dict(CreationDate=None))
    return (folder / f"{name}.png").relative_to(paths.OUT).as_posix()
