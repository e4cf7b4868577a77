"""The slides' t-SNE figure: features of the penultimate layer, drawn, and their separability as numbers."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_samples
from sklearn.neighbors import NearestNeighbors

from sglrlib.config import RunConfig
from sglrlib.judging.diagnostics import features
from sglrlib.show import style
from sglrlib.show.verdicts import Claim, judged
from sglrlib.training.networks import load_model
from sglrlib.training.train import run_data

NEIGHBOURS = 10


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


def figure(embeddings: list[Embedding]) -> Figure:
    """One panel a run: a row for each noise rate, a column for each label rule; classes named at their medians."""
    rates = list(dict.fromkeys(e.config.noise_rate for e in embeddings))
    rules = list(dict.fromkeys(e.config.labels for e in embeddings))
    drawn, axes = style.grid(len(rates), len(rules), 0.6 + 2.0 * len(rates))
    colours = sns.color_palette("husl", int(max(e.y.max() for e in embeddings)) + 1)
    for e in embeddings:
        axis = axes[rates.index(e.config.noise_rate), rules.index(e.config.labels)]
        axis.scatter(*e.plane.T, c=[colours[k] for k in e.y], s=2, lw=0, rasterized=True)
        for k in np.unique(e.y) if len(colours) <= 10 else []:
            axis.annotate(str(k), np.median(e.plane[e.y == k], 0), ha="center", va="center", fontsize=8, weight="bold")
        axis.set(xticks=[], yticks=[], title=f"{e.config.labels.replace('_', '-')}, noise {e.config.noise_rate:.0%}")
        axis.set_xlabel(f"silhouette {e.silhouette.mean():.2f}, neighbours {e.agreement.mean():.0%}", fontsize=7)
        sns.despine(ax=axis, left=True, bottom=True)
    c = embeddings[0].config
    drawn.suptitle(f"{c.dataset}, {c.arch}, method {c.method}; n = {len(embeddings[0].y)} test images", fontsize=8)
    return drawn


def table(embeddings: list[Embedding]) -> pd.DataFrame:
    """Mean silhouette and share of neighbours of the same clean class, for each run."""
    return pd.DataFrame(
        {
            "noise": f"{e.config.noise_rate:.0%} {e.config.noise}",
            "labels": e.config.labels,
            "silhouette": f"{e.silhouette.mean():.3f}",
            "neighbours of the class": f"{e.agreement.mean():.1%}",
            "n": len(e.y),
        }
        for e in embeddings
    )


def claims(embeddings: list[Embedding]) -> list[Claim]:
    """Whether self-guided labels give the more separable features at each noise rate, by both numbers."""
    at: dict[tuple[float, str], list[Embedding]] = {}
    for e in embeddings:
        at.setdefault((e.config.noise_rate, e.config.labels), []).append(e)
    found = []
    for (rate, rule), guided in at.items():
        for rival in ("hard", "smooth") if rule == "self_guided" else ():
            seeds = {e.config.seed: e for e in at.get((rate, rival), [])}
            pairs = [(e, seeds[e.config.seed]) for e in guided if e.config.seed in seeds]
            text = f"{rate:.0%} noise: features are more separable with self-guided than with {rival} labels"
            for name, of in (("silhouette", "silhouette"), ("agreement", "neighbours of the class")) if pairs else ():
                more = [torch.from_numpy(100 * (getattr(e, name) - getattr(other, name))) for e, other in pairs]
                found.append(judged("separable", text, of, more))
    return found
