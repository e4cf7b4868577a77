"""The slides' t-SNE figure: features of the penultimate layer, drawn, and their separability as numbers."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_samples
from sklearn.neighbors import NearestNeighbors

from sglrlib.config import RunConfig
from sglrlib.judging.diagnostics import features
from sglrlib.method.methods import METHODS
from sglrlib.paths import RESULTS
from sglrlib.show import style
from sglrlib.show.tables import mean_and_spread
from sglrlib.show.verdicts import Claim, judged
from sglrlib.training.networks import load_model
from sglrlib.training.train import run_data

NEIGHBOURS = 10
# Ten hues that stay apart for the colour-blind as far as ten can (M. A. Petroff, arXiv 2107.02270).
TEN = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip


@dataclass(frozen=True)
class Embedding:
    """A run's features of n test images: in the plane (n, 2), and for each image its silhouette (from -1 to 1) and the
    share of its nearest neighbours that are of its own clean class, both (n,) and both of the features themselves.
    """

    config: RunConfig
    y: np.ndarray
    plane: np.ndarray
    silhouette: np.ndarray
    agreement: np.ndarray


def embed(config: RunConfig, points: int, which: str = "last", seed: int = 0) -> Embedding:
    """The embedding of a finished run's checkpoint on its first test images (scikit-learn's TSNE, PCA start).

    Raises UsageError where this machine holds no checkpoint of the run.
    """
    test = run_data(config).test.first(points)
    y, found = test.y_clean.numpy(), features(load_model(config, which), test.x()).numpy()
    plane = TSNE(perplexity=min(30, (len(y) - 1) / 3), init="pca", random_state=seed).fit_transform(found)
    neighbours = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(found).kneighbors(return_distance=False)
    agreement = (y[neighbours] == y[:, None]).mean(1)
    return Embedding(config, y, plane, silhouette_samples(found, y), agreement)


def keep(e: Embedding) -> Path:
    """Write an embedding, rounded, below data/results/tsne; returns where."""
    kept = dict(
        y=e.y.tolist(), plane=e.plane.T.astype(float).round(1).tolist(),
        silhouette=e.silhouette.astype(float).round(3).tolist(), agreement=e.agreement.round(3).tolist(),
    )  # fmt: skip
    path = RESULTS / "tsne" / f"{e.config.id}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(f' "{name}": {json.dumps(row)}' for name, row in kept.items()) + "\n}\n")
    return path


def kept(config: RunConfig) -> Embedding | None:
    """What keep() wrote of a run, None where it wrote nothing."""
    path = RESULTS / "tsne" / f"{config.id}.json"
    if not path.exists():
        return None
    values = {name: np.array(row) for name, row in json.loads(path.read_text()).items()}
    return Embedding(config, **values | dict(plane=values["plane"].T))


def by_panel(embeddings: Iterable[Embedding]) -> dict[tuple[str, float, str], list[Embedding]]:
    """Method, noise rate and label rule -> their embeddings, one a seed."""
    found: dict[tuple[str, float, str], list[Embedding]] = {}
    for e in embeddings:
        found.setdefault((e.config.method, e.config.noise_rate, e.config.labels), []).append(e)
    return found


def figure(embeddings: list[Embedding], item: str = "The slides' t-SNE figure") -> Figure:
    """A row for each noise rate, a column for each label rule: the first seed's picture, and below it the two numbers
    over all seeds.
    """
    panels = by_panel(embeddings)
    rates, rules = (list(dict.fromkeys(key[i] for key in panels)) for i in (1, 2))
    height = 6.0 / len(rules)
    drawn, axes = style.grid(len(rates), len(rules), 0.9 + height * len(rates))
    for (_, rate, rule), those in panels.items():
        axis = axes[rates.index(rate), rules.index(rule)]
        picture(axis, those[0], np.array([style.WIDTH / len(rules), height]) * 72 * 0.85)
        axis.set_title(style.named(rule) + f", {rate:.0%} noise" * bool(rate), fontsize=9)
        axis.set_xlabel("silhouette {}\nneighbours of the class {}%".format(*numbers(those)), fontsize=8)
    last = {rule: numbers(those)[1] for (_, rate, rule), those in panels.items() if rate == rates[-1]}
    told = ", ".join(f"{share.partition(' ')[0]}% with {style.named(rule)}" for rule, share in last.items())
    at = f", {rates[-1]:.0%} noise" * bool(rates[-1])
    message = f"Nearest neighbours of an image that are of its class{at}: {told}"
    return style.entitle(drawn, message, f"{item}: {setting(embeddings)}")


def picture(axis, e: Embedding, points: np.ndarray) -> None:
    """An embedding in the plane, on an axis of points (width, height); of ten classes the names, moved apart."""
    classes = int(e.y.max()) + 1
    colours = TEN if classes <= len(TEN) else sns.color_palette("husl", classes)
    axis.scatter(*e.plane.T, c=[colours[k] for k in e.y], s=4, lw=0, rasterized=True)
    axis.set(xticks=[], yticks=[])
    sns.despine(ax=axis, left=True, bottom=True)
    if classes > len(TEN):
        return
    names, present = style.class_names(e.config.dataset, classes), np.unique(e.y)
    unit = np.ptp([axis.get_xlim(), axis.get_ylim()], axis=1) / points
    medians = np.array([np.median(e.plane[e.y == k], 0) for k in present])
    places = apart(medians, np.array([[6.0 * len(names[k]) + 2, 10.0] for k in present]) * unit)
    outline = [withStroke(linewidth=3, foreground="white")]
    for k, place in zip(present, places, strict=True):
        how = dict(ha="center", va="center", fontsize=9, weight="bold", path_effects=outline)
        axis.text(*place, names[k], color=style.ink(colours[k]), **how)


def apart(places: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Centres (n, 2) of boxes of such sizes (n, 2), moved until none overlaps another, each pair by half of what lacks
    in the direction in which less does.
    """
    places = places.astype(float)
    for _ in range(200):
        for i in range(len(places)):
            for j in range(i):
                gap = places[i] - places[j]
                lacking = (sizes[i] + sizes[j]) / 2 - abs(gap)
                if (lacking > 1e-9).all():
                    way = lacking.argmin()
                    step = lacking[way] / 2 * (1 if gap[way] >= 0 else -1)
                    places[i, way] += step
                    places[j, way] -= step
    return places


def numbers(those: list[Embedding]) -> tuple[str, str]:
    """Mean silhouette, and percent of neighbours of the same class, over seeds ± their standard deviation."""
    shares = [100 * e.agreement.mean() for e in those]
    silhouette = mean_and_spread([e.silhouette.mean() for e in those], 2).replace("-", "−")
    return silhouette, mean_and_spread(shares, 0)


def setting(embeddings: list[Embedding]) -> str:
    """What was run, on how many images and seeds, and what chance gives."""
    c, y = embeddings[0].config, embeddings[0].y
    seeds = sorted({e.config.seed for e in embeddings})
    trained = "standard training" if c.method == "standard" else f"{METHODS[c.method].title}, ε = {c.eps_255}/255"
    of = f"pictures of seed {seeds[0]}, numbers mean ± std over {len(seeds)} seeds" if seeds[1:] else f"seed {seeds[0]}"
    share = (np.bincount(y) * (np.bincount(y) - 1)).sum() / (len(y) * (len(y) - 1))
    return (
        f"{style.named(c.dataset)}, {style.named(c.arch)}, {trained}, {c.train_size:,} training images; features of "
        f"{len(y):,} test images before the last layer, last epoch; {of}. Chance: silhouette 0, neighbours {share:.0%}."
    )


def table(embeddings: list[Embedding]) -> pd.DataFrame:
    """Mean silhouette and share of neighbours of the same clean class over seeds, for each noise rate and rule."""
    rows = {}
    for (_, rate, rule), those in by_panel(embeddings).items():
        silhouette, share = numbers(those)
        at = f"{rate:.0%} of the labels drawn anew" if rate else "no planted noise", style.named(rule)
        rows[at] = {
            "silhouette": silhouette,
            "neighbours of the class": f"{share}%",
            "n": f"{len(those[0].y)} x {len(those)}",
        }
    return pd.DataFrame([*rows.values()], pd.MultiIndex.from_tuples(rows, names=["noise", "labels"]))


def claims(embeddings: list[Embedding]) -> list[Claim]:
    """Whether self-guided labels give the more separable features at each noise rate, by both numbers."""
    at, found = by_panel(embeddings), []
    for (method, rate, rule), guided in at.items():
        for rival in ("hard", "smooth") if rule == "self_guided" else ():
            seeds = {e.config.seed: e for e in at.get((method, rate, rival), [])}
            pairs = [(e, seeds[e.config.seed]) for e in guided if e.config.seed in seeds]
            text = "features are more separable with self-guided labels"
            where = f"{rate:.0%} noise" if rate else f"{METHODS[method].title} without planted noise"
            for name, of in (("silhouette", "silhouette"), ("agreement", "neighbours of the class")) if pairs else ():
                more = [torch.from_numpy(100 * (getattr(e, name) - getattr(other, name))) for e, other in pairs]
                found.append(judged("separable", text, f"{of}, against {style.named(rival)}, {where}", more))
    return found
