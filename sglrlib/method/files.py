"""What is downloaded, below DATA: whole or not at all, checked by its hash before it is used."""

import functools
import hashlib
import io
import shutil
import tempfile
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sglrlib.paths import DATA

Arrays = tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]  # (images, y) of train and test
CIFAR_N = "https://github.com/UCSC-REAL/cifar-10-100n/raw/main/data/"


class DataError(RuntimeError):
    """A dataset is missing, damaged or cannot be downloaded; the message says what to do."""


@functools.lru_cache(maxsize=1)  # a run asks for its data several times
def cifar(source: type) -> Arrays:
    """torchvision's CIFAR10 or CIFAR100 below DATA in its own layout, downloaded whole or not at all."""
    from torchvision.datasets.utils import check_integrity  # here, as it takes two seconds

    folder, meta = DATA / source.base_folder, source.meta
    if not folder.exists():
        download(
            folder, lambda partial: source(str(partial), download=True), f"unpack {source.filename} ({source.url})"
        )
    files = [*source.train_list, *source.test_list, (meta["filename"], meta["md5"])]
    if damaged := [name for name, md5 in files if not check_integrity(str(folder / name), md5)]:
        raise DataError(
            f"{', '.join(damaged)} in {folder}: damaged or missing (md5). Remove that folder and run again to download "
            f"it, or put the files of {source.filename} there."
        )
    parts = [source(str(DATA), train=train, download=False) for train in (True, False)]
    return [(part.data.transpose(0, 3, 1, 2), np.array(part.targets, dtype=np.int64)) for part in parts]


@dataclass(frozen=True)
class Human:
    """Labels that people gave a dataset's training images: a file of CIFAR-N (Wei et al. 2022, arXiv 2110.12088).

    names: what a set of labels is called here -> in the file.
    """

    file: str
    sha256: str
    names: dict[str, str]

    def labels(self, y: np.ndarray) -> dict[str, Tensor]:
        """All sets of labels by name, each (N,) int64 in the order of the training labels y (N,).

        Nothing in the file is executed: NumPy arrays of int64 are all that is taken from it. Raises DataError where it
        is missing, damaged or in another order.
        """
        path, url = DATA / "cifar_n" / self.file, CIFAR_N + self.file
        if not path.exists():
            download(path, lambda partial: self.fetch(url, partial), f"put {url}")
        content = path.read_bytes()
        if not self.whole(content):
            raise DataError(
                f"{path.name} in {path.parent}: damaged (sha256). Remove it and run again to download it, or put {url} "
                f"there."
            )
        rebuild = np.empty(0).__reduce__()[0], "numpy.core.multiarray._reconstruct"  # named as NumPy 1 did
        with torch.serialization.safe_globals([rebuild, np.ndarray, np.dtype, np.dtypes.Int64DType]):
            held = torch.load(io.BytesIO(content), weights_only=True)
        if not np.array_equal(held["clean_label"], y):
            raise DataError(
                f"{path.name} in {path.parent} is not in the order of the training images: its clean labels are not "
                f"theirs. Put the official files into {DATA}, both the images' and {url}."
            )
        return {name: torch.from_numpy(held[key]) for name, key in self.names.items()}

    def fetch(self, url: str, folder: Path) -> None:
        with urllib.request.urlopen(url, timeout=60) as answer:
            content = answer.read()
        if not self.whole(content):
            raise DataError("what came is another file, by its sha256")
        (folder / self.file).write_bytes(content)

    def whole(self, content: bytes) -> bool:
        return hashlib.sha256(content).hexdigest() == self.sha256


def download(target: Path, fetch: Callable[[Path], object], instead: str) -> None:
    """Have fetch() put target's namesake into a temporary folder below DATA; only what is whole is moved into place.

    Raises DataError; instead is what to do where there is no network.
    """
    try:
        DATA.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".download-", dir=DATA))
    except OSError as error:
        raise DataError(f"{DATA} cannot be written ({error}). Set SGLR_DATA to a folder that can.") from error
    try:
        fetch(partial)
        target.parent.mkdir(exist_ok=True)
        (partial / target.name).replace(target)
    except Exception as error:
        if not target.exists():  # else another process was faster
            raise DataError(
                f"{target.name} is not in {target.parent} and could not be downloaded ({error}). Connect to the "
                f"network and run again, or {instead} there."
            ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
