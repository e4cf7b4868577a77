"""What a run says while it trains, and where and how long it was trained."""

import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch

from sglrlib.config import RunConfig


class Log:
    """Called with each epoch's row: keeps the seconds in the run's log, and says now and then how long is left."""

    def __init__(self, config: RunConfig, folder: Path, device: str, speed: str, say: Callable[[str], None]):
        self.config, self.path, self.say = config, folder / "log.jsonl", say
        self.where = dict(device=device, speed=speed)
        self.started, self.done = time.monotonic(), 0
        self.path.touch()  # a kill right after the only epoch leaves a finished run without a line here

    def __call__(self, row: dict) -> None:
        with open(self.path, "a") as file:
            # The line break comes first, so that a line cut off by a kill spoils itself alone.
            file.write("\n" + json.dumps(dict(epoch=row["epoch"], seconds=round(row["seconds"], 3)) | self.where))
        self.done += 1
        epoch, epochs = row["epoch"], self.config.epochs
        if self.done == 1 or epoch == epochs or epoch % max(1, epochs // 5) == 0:
            left = (time.monotonic() - self.started) / self.done * (epochs - epoch)
            clock = f"{int(left // 3600)}:{int(left % 3600 // 60):02}:{int(left % 60):02} left"
            accuracy = f"robust accuracy: train {row['train_robust']:.1f}, test {row['test_robust']:.1f} %"
            self.say(f"{self.config.title} seed {self.config.seed}: epoch {epoch}/{epochs}, {accuracy}, {clock}")


def provenance(folder: Path, device: str, speed: str) -> dict:
    """Where and how long a run was trained: the seconds are summed over the epochs that count, resumed or not."""
    lines = [line for line in (folder / "log.jsonl").read_text().splitlines() if line.endswith("}")]  # whole ones
    seconds = {row["epoch"]: row["seconds"] for row in map(json.loads, lines)}
    return where(device, speed) | dict(seconds=round(sum(seconds.values()), 1))


def where(device: str, speed: str) -> dict:
    """The device and the versions of this process, and the date."""
    return dict(
        device=torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        threads=torch.get_num_threads(),
        cores=os.cpu_count(),
        speed=speed,
        torch=torch.__version__,
        python=platform.python_version(),
        date=time.strftime("%Y-%m-%d", time.gmtime()),
    )
