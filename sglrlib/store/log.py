"""A run's log: its epochs and their seconds, starts and failures; and where and how long it was trained."""

import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from sglrlib import device as devices
from sglrlib.config import RunConfig

LOG = "log.jsonl"  # in a run's folder


class Log:
    """Called with each epoch's row: keeps the seconds in the run's log, and says how far it is, at most every 5 s."""

    def __init__(self, config: RunConfig, folder: Path, device: str, speed: str, say: Callable[[str], None]):
        self.config, self.folder, self.say = config, folder, progress(say)
        self.where = dict(device=device, speed=speed)
        self.started, self.said, self.done = time.monotonic(), -math.inf, 0

    def __call__(self, row: dict) -> None:
        note(self.folder, epoch=row["epoch"], seconds=round(row["seconds"], 3), **self.where)
        self.done += 1
        epoch, epochs = row["epoch"], self.config.epochs
        now = time.monotonic()
        if now - self.said > 5 or epoch == epochs:
            self.said, left = now, (now - self.started) / self.done * (epochs - epoch)
            clock = f"{int(left // 3600)}:{int(left % 3600 // 60):02}:{int(left % 60):02} left"
            accuracy = f"robust accuracy: train {row['train_robust']:.1f}, test {row['test_robust']:.1f} %"
            self.say(f"{self.config.title} seed {self.config.seed}: epoch {epoch}/{epochs}, {accuracy}, {clock}")


def progress(say: Callable[[str], None]) -> Callable[[str], None]:
    """What takes a line that only the next one replaces: say's own method update, or say."""
    return getattr(say, "update", say)


def note(folder: Path, **values: object) -> None:
    """Add a line to a run's log. The line break comes first, so that a line cut off by a kill spoils itself alone."""
    with open(folder / LOG, "a") as file:
        file.write("\n" + json.dumps(values))


def newest_first(folder: Path) -> Iterator[dict]:
    """The whole lines of a run's log, the last one first; those that a kill cut off are left out."""
    try:
        text = (folder / LOG).read_text(errors="replace")
    except FileNotFoundError:
        return
    for line in reversed(text.splitlines()):
        try:
            yield dict(json.loads(line))
        except (ValueError, TypeError):
            continue


def failure(folder: Path) -> str:
    """The error with which a run failed when it was last worked on, '' where it did not."""
    return next(newest_first(folder), {}).get("failed", "")


def last_epoch(folder: Path) -> int:
    """The last epoch that a run's log has, 0 for none."""
    return next((line["epoch"] for line in newest_first(folder) if is_epoch(line)), 0)


def epoch_seconds(folder: Path) -> dict[int, float]:
    """Epoch -> seconds, of those in a run's log; the last time counts where an epoch was done again."""
    return {line["epoch"]: line["seconds"] for line in list(newest_first(folder))[::-1] if is_epoch(line)}


def is_epoch(line: dict) -> bool:
    """Whether a line of a log is that of an epoch, whole."""
    return isinstance(line.get("epoch"), int) and isinstance(line.get("seconds"), (int, float))


def provenance(folder: Path, device: str, speed: str) -> dict:
    """Where, in which precision of float32 and how long a run was trained: the seconds are summed over the epochs that
    count, resumed or not.
    """
    seconds = round(sum(epoch_seconds(folder).values()), 1)
    return where(device, speed) | dict(convolutions=devices.convolutions(device), seconds=seconds)


def where(device: str, speed: str) -> dict:
    """The device and the versions of this process, and the date."""
    return dict(
        device=devices.device_name(device),
        cpu=devices.cpu_name(),
        threads=torch.get_num_threads(),
        cores=os.cpu_count(),
        speed=speed,
        torch=torch.__version__,
        python=platform.python_version(),
        date=time.strftime("%Y-%m-%d", time.gmtime()),
    )
