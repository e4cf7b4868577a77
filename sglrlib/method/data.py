"""A run's data: three splits as uint8 tensors on the training device, batches of (x, y, index), and planted noise."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sglrlib.checks import one_of, within
from sglrlib.method.datasets import DATASETS, SPLIT_SEED, Dataset, labels_by_people

Spoilt = tuple[Tensor, Tensor]  # images and labels


@dataclass(frozen=True)
class Split:
    """One split on one device: images (N, C, H, W) uint8; the labels trained on and the clean ones, (N,) int64.

    position (N,) int64: the place of each sample in the dataset's own training or test files.
    """

    images: Tensor
    y: Tensor
    y_clean: Tensor
    position: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: slice | Tensor) -> "Split":
        return Split(self.images[index], self.y[index], self.y_clean[index], self.position[index])

    def first(self, n: int) -> "Split":
        """The first n images (all if n is 0)."""
        return self[: n or None]

    def to(self, device: torch.device | str) -> "Split":
        return Split(*(part.to(device) for part in (self.images, self.y, self.y_clean, self.position)))

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

    def to(self, device: torch.device | str) -> "Data":
        return Data(self.train.to(device), self.val.to(device), self.test.to(device))


def load_data(
    dataset: str, *, train_size: int = 0, val_size: int = 0, test_size: int = 0, noise: str = "symmetric",
    noise_rate: float = 0.0, seed: int = 0, folds: int = 0, fold: int = 0,
) -> Data:  # fmt: skip
    """Load a dataset of DATASETS, carve the validation split, plant noise in the rest; on the CPU.

    Sizes are numbers of images; a train_size or test_size of 0 means all there are, a val_size of 0 no validation.
    All splits are stratified. Validation and test are fixed and stay clean; seed decides which training images are
    drawn, where not all are, and the noise. With folds > 1, every folds-th training image, from position fold on, is
    left out after the noise is planted.
    Raises UsageError for an unknown name, noise that the dataset does not have or too large a size, DataError where the
    files are missing or damaged.
    """
    one_of("dataset", dataset, DATASETS)
    check_noise(dataset, noise, noise_rate)
    (train_images, train_y), (test_images, test_y) = DATASETS[dataset].load()
    within("train_size + val_size", train_size + val_size, 0, len(train_y))
    within("test_size", test_size, 0, len(test_y))

    order = stratified_order(train_y, SPLIT_SEED)
    val, train = order[:val_size], order[val_size:]
    if 0 < train_size < len(train):
        train = train[stratified_order(train_y[train], seed)[:train_size]]
    test = stratified_order(test_y, SPLIT_SEED)[: test_size or None]

    def split(images, y, index):
        y = torch.from_numpy(y[index])
        return Split(torch.from_numpy(images[index]), y, y, torch.from_numpy(index))

    noisy = planted(split(train_images, train_y, train), DATASETS[dataset], noise, noise_rate, seed=seed)
    within("fold", fold, 0, max(0, folds - 1))
    if folds > 1:
        noisy = noisy[torch.arange(len(noisy)) % folds != fold]
    return Data(noisy, split(train_images, train_y, val), split(test_images, test_y, test))


def stratified_order(y: np.ndarray, seed: int) -> np.ndarray:
    """A permutation of range(len(y)) every prefix of which holds the classes in (nearly) their proportions."""
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(y))
    position = np.empty(len(y))
    for k in np.unique(y):
        members = shuffled[y[shuffled] == k]
        position[members] = (np.arange(len(members)) + rng.random(len(members))) / len(members)
    return np.argsort(position, kind="stable")


def check_noise(dataset: str, kind: str, rate: float) -> None:
    """Raise UsageError unless a kind of noise is known, its rate within [0, 1], and people gave the labels it needs."""
    one_of("noise", kind, NOISES)
    within("noise_rate", rate, 0, 1)
    if rate:
        one_of(f"noise on {dataset}", kind, noises_of(dataset))


def noises_of(dataset: str) -> list[str]:
    """The kinds of noise that a dataset can have: all of NOISES, but for the labels that nobody gave."""
    human = DATASETS[dataset].human
    return [name for name in NOISES if name not in HUMAN or (human and HUMAN[name] in human.names)]


def planted(split: Split, dataset: Dataset, kind: str, rate: float, *, seed: int) -> Split:
    """The split with int(rate * N) of its N samples, chosen without replacement, spoilt by NOISES[kind]."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(split), generator=generator)[: int(rate * len(split))]
    if not len(chosen):
        return split
    images, y = split.images.clone(), split.y.clone()
    images[chosen], y[chosen] = NOISES[kind](split[chosen], dataset, generator)
    return replace(split, images=images, y=y)


def symmetric(split: Split, dataset: Dataset, generator: torch.Generator) -> Spoilt:
    """Labels drawn from all K classes, the true one included, as released: rate * (K-1)/K of all end up wrong."""
    return split.images, torch.randint(dataset.classes, split.y.shape, generator=generator)


def symmetric_wrong(split: Split, dataset: Dataset, generator: torch.Generator) -> Spoilt:
    """Labels drawn from the K-1 wrong classes, as in Theorem 2."""
    shift = torch.randint(1, dataset.classes, split.y.shape, generator=generator)
    return split.images, (split.y + shift) % dataset.classes


def class_dependent(split: Split, dataset: Dataset, generator: torch.Generator) -> Spoilt:
    """The one class that the dataset names as the true one's confusion."""
    confusions = dataset.confusions or [(k + 1) % dataset.classes for k in range(dataset.classes)]
    return split.images, torch.tensor(confusions)[split.y]


def human_aggregate(split: Split, dataset: Dataset, generator: torch.Generator) -> Spoilt:
    """The label that most of three people gave (CIFAR-10N: 9.01 % wrong, the paper says 9.03 %)."""
    return split.images, labels_by_people(dataset)["aggregate"][split.position]


def human_worst(split: Split, dataset: Dataset, generator: torch.Generator) -> Spoilt:
    """A wrong one of three people's labels, if any (CIFAR-10N: 40.21 % wrong); one person's (CIFAR-100N: 40.20 %)."""
    return split.images, labels_by_people(dataset)["worst"][split.position]


def gaussian(split: Split, dataset: Dataset, generator: torch.Generator) -> Spoilt:
    """Images of Gaussian noise with the dataset's mean and std of each channel; labels kept (Zhang et al. 2017)."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (dataset.mean, dataset.std))
    drawn = torch.randn(split.images.shape, generator=generator) * std + mean
    return (drawn * 255).clamp(0, 255).to(torch.uint8), split.y


def random_pixels(split: Split, dataset: Dataset, generator: torch.Generator) -> Spoilt:
    """Each image's pixels in an order of its own, all channels alike; labels kept (Zhang et al. 2017)."""
    images = split.images
    order = torch.rand(len(images), 1, images.shape[2:].numel(), generator=generator).argsort(2)
    return images.flatten(2).gather(2, order.expand(-1, images.shape[1], -1)).view_as(images), split.y


def shuffled_pixels(split: Split, dataset: Dataset, generator: torch.Generator) -> Spoilt:
    """All images' pixels in one random order; labels kept (Zhang et al. 2017)."""
    order = torch.randperm(split.images.shape[2:].numel(), generator=generator)
    return split.images.flatten(2)[:, :, order].view_as(split.images), split.y


# What can be wrong with a training sample: its label, or its image.
NOISES: dict[str, Callable] = {
    noise.__name__: noise
    for noise in (
        symmetric, symmetric_wrong, class_dependent, gaussian, random_pixels, shuffled_pixels, human_aggregate,
        human_worst,
    )
}  # fmt: skip
# Which of them are labels that people gave, and which of their labels; test images have none.
HUMAN = dict(human_aggregate="aggregate", human_worst="worst")


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
