"""What is downloaded, below DATA: whole or not at all, checked by its hash before it is used."""

import functools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torchvision
from torchvision.datasets.utils import check_integrity

from sglrlib.paths import DATA

Arrays = tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]  # (images, y) of train and test


class DataError(RuntimeError):
    """A dataset is missing, damaged or cannot be downloaded; the message says what to do."""


@functools.lru_cache(maxsize=1)  # a run asks for its data several times
def cifar(source: type[torchvision.datasets.CIFAR10]) -> Arrays:
    """CIFAR-10 or CIFAR-100 below DATA in torchvision's own layout, downloaded whole or not at all."""
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
