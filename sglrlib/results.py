"""The store: a run is loaded if it is there and trained if it is not; its result is one small JSON file."""

import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import nn

from sglrlib import checkpoint
from sglrlib.attacks import ATTACKS
from sglrlib.checks import UsageError, one_of
from sglrlib.config import RunConfig, make_config
from sglrlib.evaluate import correct
from sglrlib.paths import RESULTS, RUNS
from sglrlib.train import best_epoch, run_data, run_model, train


@dataclass(frozen=True)
class Result:
    """What is kept of a finished run.

    curve: one row an epoch, accuracies in percent. sizes: images in each split, and 'wrong_labels' in the training
    split. accuracy: checkpoint ('best', 'last') -> column ('natural', 'pgd_20') -> percent of the test images.
    flips: column -> images right in best and wrong in last ('lost'), and the reverse ('gained').
    provenance: device, versions, seconds.
    """

    config: RunConfig
    curve: list[dict]
    best_epoch: int
    sizes: dict
    accuracy: dict
    flips: dict
    provenance: dict

    @property
    def n(self) -> int:
        """The number of test images behind every accuracy."""
        return self.sizes["test"]

    def drop(self, column: str) -> float:
        """Best minus last checkpoint, in points: the Diff of the paper's tables."""
        return self.accuracy["best"][column] - self.accuracy["last"][column]


def run(
    config: RunConfig, *, train_missing=True, device="", speed="fast", say: Callable[[str], None] = print
) -> Result | None:
    """The result of a configuration: loaded, or trained to its end (resumed, if it was begun), or None.

    None is returned only where the run is missing and train_missing is False. device '' is CUDA where there is one.
    A second process that wants the same run waits for the first and then loads.
    """
    one_of("speed", speed, ["plain", "fast", "compile"])
    device = pick_device(device)
    folder = RUNS / config.id
    if (result := stored(config)) or not train_missing:
        return result
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder, say):
        if result := stored(config):
            return result
        for leftover in folder.glob(".*.part-*"):  # of a process that was killed while it wrote
            leftover.unlink()
        write_json(folder / "config.json", dataclasses.asdict(config))
        say(f"{config.title} seed {config.seed}: {config.epochs} epochs on {device}")
        train(config, folder, device=device, speed=speed, report=Log(config, folder, device, speed, say))
        result = summarise(config, folder, device, speed)
        write_json(folder / "result.json", dataclasses.asdict(result))
    return result


@contextmanager
def alone(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Within: no other process of this machine is here. The lock goes with the process, even if that is killed."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"waiting for the process that trains {folder.name}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def publish(result: Result) -> Path:
    """Copy a result among the committed ones, below data/results."""
    path = RESULTS / f"{result.config.id}.json"
    write_json(path, dataclasses.asdict(result))
    return path


def stored(config: RunConfig) -> Result | None:
    """The finished result of a configuration from this machine's runs or the committed ones, else None."""
    for path in (RUNS / config.id / "result.json", RESULTS / f"{config.id}.json"):
        if path.exists():
            values = json.loads(path.read_text())
            own = values.pop("config")
            own |= own.pop("method_options") | own.pop("label_options")
            if make_config(**own) != config:
                raise UsageError(f"{path} holds another configuration than its name says; remove it.")
            return Result(config=config, **values)
    return None


def load_model(config: RunConfig, which: str = "best", device="cpu") -> nn.Module:
    """A finished run's network in eval mode: images (N, C, H, W) in [0, 1] in, logits (N, K) out.

    which is 'best' or 'last'. Raises UsageError where this machine holds no such checkpoint.
    """
    one_of("which", which, ["best", "last"])
    folder = RUNS / config.id
    if not (folder / "last.pt").exists():
        raise UsageError(f"{config.id} has no checkpoint in {RUNS}: weights are not committed, train it first.")
    model = run_model(config)
    model.load_state_dict(checkpoint.weights(folder, which))
    return model.to(device).eval()


def pick_device(device: str) -> str:
    """'' -> 'cuda' where there is one, else 'cpu'. Raises UsageError for a device that this machine lacks."""
    one_of("device", device.split(":")[0], ["", "cpu", "cuda"])
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"device = {device!r}: torch finds no CUDA device here; 'cpu' is the nearest.")
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def summarise(config: RunConfig, folder: Path, device: str, speed: str) -> Result:
    """Judge the best and the last checkpoint on the test images, natural and under PGD-20."""
    data = run_data(config).to(device)
    flags = {
        which: {
            column: correct(load_model(config, which, device), data.test, attack, speed=speed)
            for column, attack in (("natural", None), ("pgd_20", config.attack(**ATTACKS["pgd_20"])))
        }
        for which in ("best", "last")
    }
    curve = checkpoint.load(folder / "last.pt")["curve"]
    return Result(
        config=config,
        curve=[{name: round(value, 6) for name, value in row.items()} for row in curve],
        best_epoch=best_epoch(curve, config.select_on),
        sizes=dict(
            train=len(data.train),
            val=len(data.val),
            test=len(data.test),
            wrong_labels=int((data.train.y != data.train.y_clean).sum()),
        ),
        accuracy={
            which: {column: round(100 * f.double().mean().item(), 4) for column, f in columns.items()}
            for which, columns in flags.items()
        },
        flips={
            column: dict(lost=int((b & ~flags["last"][column]).sum()), gained=int((~b & flags["last"][column]).sum()))
            for column, b in flags["best"].items()
        },
        provenance=provenance(folder, device, speed),
    )


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
    return dict(
        device=torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        threads=torch.get_num_threads(),
        cores=os.cpu_count(),
        speed=speed,
        seconds=round(sum(seconds.values()), 1),
        torch=torch.__version__,
        python=platform.python_version(),
        date=time.strftime("%Y-%m-%d", time.gmtime()),
    )


def write_json(path: Path, values: dict) -> None:
    checkpoint.write(path, (json.dumps(values, indent=1) + "\n").encode())
