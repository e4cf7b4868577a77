"""Datasets as uint8 tensors on the training device, batches of (x, y, index), and planted label noise."""

import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torchvision.datasets.utils import check_integrity

from sglrlib.checks import one_of, within
from sglrlib.paths import DATA

SPLIT_SEED = 0  # which images are train, validation and test never depends on a run's seed


class DataError(RuntimeError):
    """A dataset is missing, damaged or cannot be downloaded; the message says what to do."""


@dataclass(frozen=True)
class Split:
    """One split on one device: images (N, C, H, W) uint8; the labels trained on and the clean ones, (N,) int64."""

    images: Tensor
    y: Tensor
    y_clean: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def first(self, n: int) -> "Split":
        """The first n images (all if n is 0)."""
        return Split(*(t[: n or None] for t in (self.images, self.y, self.y_clean)))

    def to(self, device) -> "Split":
        return Split(self.images.to(device), self.y.to(device), self.y_clean.to(device))

    def x(self, index: slice | Tensor = slice(None)) -> Tensor:
        """Images as float32 in [0, 1], (n, C, H, W)."""
        return self.images[index].float().div_(255)

    def batches(self, size: int, generator: torch.Generator, augment: str = "none") -> Iterator:
        """One shuffled epoch of (x, y, index); the last batch may be smaller.

        x (B, C, H, W) float32 in [0, 1], augmented image by image; index (B,) are positions in this split.
        The generator must live on the split's device.
        """
        order = torch.randperm(len(self), generator=generator, device=self.y.device)
        for index in order.split(size):
            images = AUGMENTS[augment](self.images[index], generator)
            yield images.float().div_(255), self.y[index], index


@dataclass(frozen=True)
class Data:
    """The three splits of a run."""

    train: Split
    val: Split
    test: Split

    def to(self, device) -> "Data":
        return Data(self.train.to(device), self.val.to(device), self.test.to(device))


def load_data(
    dataset: str, *, train_size=0, val_size=0, test_size=0, noise="symmetric", noise_rate=0.0, seed=0
) -> Data:
    """Load a dataset of DATASETS, carve the validation split, plant label noise in the rest; on the CPU.

    Sizes are numbers of images; a train_size or test_size of 0 means all there are, a val_size of 0 no validation.
    All splits are stratified and fixed: only the noise depends on seed. Validation and test labels stay clean.
    Raises UsageError for an unknown name or too large a size, DataError where the files are missing or damaged.
    """
    one_of("dataset", dataset, DATASETS)
    classes = DATASETS[dataset].classes
    (train_images, train_y), (test_images, test_y) = DATASETS[dataset].load()
    within("train_size + val_size", train_size + val_size, 0, len(train_y))
    within("test_size", test_size, 0, len(test_y))

    order = stratified_order(train_y)
    val, train = order[:val_size], order[val_size:][: train_size or None]
    test = stratified_order(test_y)[: test_size or None]

    clean = torch.from_numpy(train_y[train])
    confusions = torch.tensor(DATASETS[dataset].confusions or [(k + 1) % classes for k in range(classes)])
    noisy = noisy_labels(clean, classes, noise, noise_rate, seed=seed, confusions=confusions)

    def split(images, y, index):
        y = torch.from_numpy(y[index])
        return Split(torch.from_numpy(images[index]), y, y)

    train_split = replace(split(train_images, train_y, train), y=noisy)
    return Data(train_split, split(train_images, train_y, val), split(test_images, test_y, test))


def stratified_order(y: np.ndarray) -> np.ndarray:
    """A fixed permutation of range(len(y)) every prefix of which holds the classes in (nearly) their proportions."""
    rng = np.random.default_rng(SPLIT_SEED)
    shuffled = rng.permutation(len(y))
    position = np.empty(len(y))
    for k in np.unique(y):
        members = shuffled[y[shuffled] == k]
        position[members] = (np.arange(len(members)) + rng.random(len(members))) / len(members)
    return np.argsort(position, kind="stable")


def noisy_labels(y: Tensor, classes: int, kind: str, rate: float, *, seed: int, confusions: Tensor) -> Tensor:
    """Labels y (N,) with int(rate * N) of them, chosen without replacement, drawn again by NOISES[kind].

    'symmetric' draws from all K classes, the true one included, as the released code: rate * (K-1)/K end up wrong.
    'symmetric_wrong' draws from the K-1 wrong classes, as Theorem 2. 'class_dependent' takes the one class that
    confusions (K,) names for the true one. Raises UsageError for an unknown kind or a rate outside [0, 1].
    """
    one_of("noise", kind, NOISES)
    within("noise_rate", rate, 0, 1)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(y), generator=generator)[: int(rate * len(y))]
    noisy = y.clone()
    noisy[chosen] = NOISES[kind](y[chosen], classes, generator, confusions)
    return noisy


NOISES: dict[str, Callable] = {
    "symmetric": lambda y, classes, generator, _: torch.randint(classes, y.shape, generator=generator),
    "symmetric_wrong": lambda y, classes, generator, _: (
        (y + torch.randint(1, classes, y.shape, generator=generator)) % classes
    ),
    "class_dependent": lambda y, classes, generator, confusions: confusions[y],
}


def crop_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Pad by 4 with black, crop at random, mirror half of the images; one gather for the whole batch."""
    n, _, height, width = images.shape
    device = images.device
    top, left = (torch.randint(9, (n, 1), generator=generator, device=device) for _ in range(2))
    mirrored = torch.rand((n, 1), generator=generator, device=device) < 0.5
    rows = top + torch.arange(height, device=device)  # (N, H)
    columns = left + torch.arange(width, device=device)  # (N, W)
    columns = torch.where(mirrored, columns.flip(1), columns)
    each = torch.arange(n, device=device)[:, None, None]
    padded = F.pad(images, (4, 4, 4, 4))
    return padded[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def crop_flip_rotate(images: Tensor, generator: torch.Generator) -> Tensor:
    """crop_flip, then each image turned by up to 15 degrees either way (nearest pixel, black outside)."""
    angle = (torch.rand(len(images), generator=generator, device=images.device) * 2 - 1) * math.radians(15)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    turn = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)  # (N, 2, 3)
    grid = F.affine_grid(turn, list(images.shape), align_corners=False)
    cropped = crop_flip(images, generator).float()
    return F.grid_sample(cropped, grid, mode="nearest", align_corners=False).to(images.dtype)


AUGMENTS: dict[str, Callable] = {
    "none": lambda images, generator: images,
    "crop_flip": crop_flip,
    "crop_flip_rotate": crop_flip_rotate,  # KD-AT's on CIFAR-100, see methods.Distillation
}


# Where images come from: each loader returns (train images, y), (test images, y) as NumPy arrays.


def digits():
    """scikit-learn's 1,797 handwritten digits, 8x8, rescaled from 0..16 to 0..255; 797 train, 1,000 test."""
    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    y = bunch.target.astype(np.int64)
    train, test = train_test_split(np.arange(len(y)), test_size=1000, random_state=SPLIT_SEED, stratify=y)
    return (images[train], y[train]), (images[test], y[test])


def cifar(source: type[torchvision.datasets.CIFAR10]):
    """CIFAR-10 or CIFAR-100 below DATA in torchvision's own layout, downloaded whole or not at all."""
    if not (DATA / source.base_folder).exists():
        download(source)
    folder, meta = DATA / source.base_folder, source.meta
    files = [*source.train_list, *source.test_list, (meta["filename"], meta["md5"])]
    if damaged := [name for name, md5 in files if not check_integrity(str(folder / name), md5)]:
        raise DataError(
            f"{', '.join(damaged)} in {folder}: damaged or missing (md5). Remove that folder and run again to download "
            f"it, or put the files of {source.filename} there."
        )
    parts = [source(str(DATA), train=train, download=False) for train in (True, False)]
    return [(part.data.transpose(0, 3, 1, 2), np.array(part.targets, dtype=np.int64)) for part in parts]


def download(source: type[torchvision.datasets.CIFAR10]) -> None:
    """Fetch and unpack into a temporary folder beside the final one; only a whole dataset is moved into place."""
    try:
        DATA.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".download-", dir=DATA))
    except OSError as error:
        raise DataError(f"{DATA} cannot be written ({error}). Set SGLR_DATA to a folder that can.") from error
    try:
        source(str(partial), download=True)
        (partial / source.base_folder).replace(DATA / source.base_folder)
    except Exception as error:
        if not (DATA / source.base_folder).exists():  # else another process was faster
            raise DataError(
                f"{source.__name__} is not in {DATA} and could not be downloaded ({error}). Connect to the network and "
                f"run again, or unpack {source.filename} ({source.url}) there."
            ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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


DATASETS = {
    "digits": Dataset(digits, 10, (1, 8, 8), (0.3043,), (0.3753,)),
    "cifar10": Dataset(
        lambda: cifar(torchvision.datasets.CIFAR10),
        classes=10,
        shape=(3, 32, 32),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
        # Patrini et al. 2017 (arXiv 1609.03683): truck -> automobile, bird -> airplane, deer -> horse, cat <-> dog
        confusions=(0, 1, 0, 5, 7, 3, 6, 7, 8, 1),
    ),
    "cifar100": Dataset(
        lambda: cifar(torchvision.datasets.CIFAR100),
        classes=100,
        shape=(3, 32, 32),
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    ),
}
