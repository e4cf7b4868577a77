"""Which datasets there are: where their images come from, what is known of them, and how people labelled them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor

from sglrlib.checks import one_of
from sglrlib.method.files import Arrays, Human, cifar

SPLIT_SEED = 0  # which images are for validation and test never depends on a run's seed


def digits() -> Arrays:
    """scikit-learn's 1,797 handwritten digits, 8x8, rescaled from 0..16 to 0..255; 797 train, 1,000 test."""
    from sklearn.datasets import load_digits  # here, as it takes a second and a half
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    y = bunch.target.astype(np.int64)
    train, test = train_test_split(np.arange(len(y)), test_size=1000, random_state=SPLIT_SEED, stratify=y)
    return (images[train], y[train]), (images[test], y[test])


def of_torchvision(name: str) -> Arrays:
    from torchvision import datasets  # here, as it takes two seconds

    return cifar(getattr(datasets, name))


@dataclass(frozen=True)
class Dataset:
    """How to load a dataset; an image's (C, H, W); per-channel mean and std; the class each one is mistaken for.

    CIFAR-10's std is the one that this literature passes on: the mean of the images' own, not that of all pixels.
    """

    load: Callable
    classes: int
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    confusions: tuple[int, ...] | None = None  # None: the next class
    human: Human | None = None  # labels that people gave the training images


DATASETS = {
    "digits": Dataset(digits, 10, (1, 8, 8), (0.3043,), (0.3753,)),
    "cifar10": Dataset(
        partial(of_torchvision, "CIFAR10"),
        classes=10,
        shape=(3, 32, 32),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
        # Patrini et al. 2017 (arXiv 1609.03683): truck -> automobile, bird -> airplane, deer -> horse, cat <-> dog
        confusions=(0, 1, 0, 5, 7, 3, 6, 7, 8, 1),
        human=Human(
            "CIFAR-10_human.pt",
            "873e69c39cb9b5e97fb6bae2d60bb59b38a5cbc31d2b868f7903dcb2b9dd2310",
            dict(aggregate="aggre_label", worst="worse_label") | {f"random_{i}": f"random_label{i}" for i in (1, 2, 3)},
        ),
    ),
    "cifar100": Dataset(
        partial(of_torchvision, "CIFAR100"),
        classes=100,
        shape=(3, 32, 32),
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        human=Human(
            "CIFAR-100_human.pt",
            "bd2d80409754d420292d622e15e25248ba21e37d27429efac49c8da723f44394",
            dict(worst="noisy_label"),
        ),
    ),
}


def human_labels(dataset: str) -> dict[str, Tensor]:
    """The labels that people gave a dataset's training images: name -> (N,) int64, in the order of Split.position.

    Of cifar10 the three people's, random_1 to random_3; aggregate, which most of them gave; and worst, a wrong one if
    there is one. Of cifar100 one person's, worst. Raises UsageError for another dataset, DataError as load_data() does.
    """
    one_of("dataset with human labels", dataset, [name for name, known in DATASETS.items() if known.human])
    return labels_by_people(DATASETS[dataset])


def labels_by_people(dataset: Dataset) -> dict[str, Tensor]:
    (_, y), _ = dataset.load()
    return dataset.human.labels(y)
