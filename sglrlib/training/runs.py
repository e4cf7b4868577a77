"""Runs: trained, resumed or loaded, and their checkpoints judged under attacks."""

import dataclasses
import json
import platform
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sglrlib.checks import UsageError, one_of, within
from sglrlib.config import RunConfig
from sglrlib.device import described, gpu_trouble, pick_device, refuse_precision, using
from sglrlib.judging.evaluate import correct, outputs, withstood
from sglrlib.method.attacks import AFTER
from sglrlib.method.data import Split
from sglrlib.method.datasets import DATASETS
from sglrlib.method.files import DataError
from sglrlib.method.models import flops
from sglrlib.paths import RUNS
from sglrlib.store import checkpoint, results
from sglrlib.store.checkpoint import StoreError
from sglrlib.store.lease import alone
from sglrlib.store.log import (
    LOG,
    Log,
    failure,
    newest_first,
    note,
    progress,
    provenance,
    where,
)  # fmt: skip
from sglrlib.store.results import CHECKPOINTS, Result, pack_shares, stored
from sglrlib.training import cost
from sglrlib.training.columns import attacked
from sglrlib.training.flops import counted
from sglrlib.training.networks import load_model
from sglrlib.training.train import best_epoch, run_data, run_model, train


def run(
    config: RunConfig, attacks: Sequence[str] = ("pgd_20",), *, images: int = 0, train_missing: bool = True,
    device: str = "", speed: str = "fast", say: Callable[[str], None] = print,
) -> Result | None:  # fmt: skip
    """The result of a configuration, its best and last checkpoints judged as they are and under attacks (ATTACKS).

    What this store has is loaded; a run that was begun is resumed, after its teachers' runs; of an evaluation that
    was begun, only what is missing is done. A second process that wants the same run, on this machine or another, waits
    for the first and then loads. The other arguments are Wanted's and obtain()'s. Raises UsageError, before any work
    starts, for a name or value that cannot be.
    """
    return obtain(Wanted(config, attacked(config, attacks), images, train_missing, device, speed), say)


DAYS_ON_A_CPU = 10e15  # FLOP: 40 hours of a core that does 70 GFLOP/s


@dataclass(frozen=True)
class Wanted:
    """What somebody wants of a run: columns of its result, each with what builds its attack (None: no attack).

    images: how many of the first test images are attacked (0: all); without an attack it is always all of them. With
    train_missing False nothing is computed: a committed result counts too, a column may be missing, and None stands
    for no result. device '' is CUDA where there is one. speed is 'plain', 'fast' or 'compile'. Raises UsageError for a
    value that cannot be.
    """

    config: RunConfig
    columns: dict[str, Callable | None]
    images: int = 0
    train_missing: bool = True
    device: str = ""
    speed: str = "fast"

    def __post_init__(self):
        one_of("speed", self.speed, ["plain", "fast", "compile"])
        within("images", self.images, 0)

    def check(self) -> None:
        """Raise UsageError, before any work, for what this machine cannot or should not do.

        That is a device that is not here, bfloat16 where it is emulated, and weeks on a CPU that nobody asked for.
        """
        device, config = pick_device(self.device), self.config
        refuse_precision(config.precision, device)
        if device == "cpu" and not self.device and "training" in self.lacking:
            work = counted(config).training
            if work > DAYS_ON_A_CPU:
                raise UsageError(
                    f"training {config.title} takes {work / 1e15:.0f} PFLOP, days or weeks of a CPU, and "
                    f"{gpu_trouble()}. Expected a GPU, scale = 'small', which is made for CPUs, or device = 'cpu' if "
                    "that is meant."
                )

    @property
    def needs(self) -> list[RunConfig]:
        """The runs whose networks this one takes: its teachers, and the sources of transfer attacks."""
        builders = [getattr(build, "keywords", {}) for build in self.columns.values()]
        return [*self.config.teachers, *(keywords["source"] for keywords in builders if "source" in keywords)]

    @property
    def lacking(self) -> list[str]:
        """What obtain() would have to do: 'training', then the columns that are not there; of a result that cannot be
        read, all, so that obtain() says why.
        """
        try:
            result = stored(self.config, list(self.columns), self.images, committed=not self.train_missing)
        except StoreError:
            return ["training", *self.columns]
        missing = [c for c in self.columns if result is None or not result.has(c, self.images)]
        return ["training", *missing] if result is None else missing


def attempt(wanted: Wanted, say: Callable[[str], None] = print) -> Result | None:
    """obtain(), or None where that fails, which is kept in the run's log.

    What would fail alike for every run is raised: UsageError and DataError.
    """
    try:
        return obtain(wanted, say)
    except (UsageError, DataError):
        raise
    except Exception as error:
        note_failure(wanted.config, error)
        say(failed(wanted.config) or f"failed: {wanted.config.id}: {error}")
        return None


def note_failure(config: RunConfig, error: BaseException) -> None:
    """Write into a run's log that it failed, why and where; not where even that fails, as on a full disk."""
    places = [f"{Path(f.filename).name}:{f.lineno} in {f.name}" for f in traceback.extract_tb(error.__traceback__)[-3:]]
    with suppress(OSError):
        (RUNS / config.id).mkdir(parents=True, exist_ok=True)
        note(RUNS / config.id, failed=f"{type(error).__name__}: {error}", at=places)


def failed(config: RunConfig) -> str:
    """A failed run's name and the last lines of its log; '' where it did not fail when it was last worked on."""
    folder = RUNS / config.id
    if not failure(folder):
        return ""
    tail = [json.dumps(line) for line in islice(newest_first(folder), 3)][::-1]
    return "\n    ".join([f"failed: {config.id}, whose {LOG} ends in", *tail])


def obtain(wanted: Wanted, say: Callable[[str], None] = print) -> Result | None:
    """A result with at least the wanted columns; trained and judged where it must be.

    say is called with what a person should know; its method update, if it has one, with what only the next such line
    replaces.
    """
    config = wanted.config
    if not wanted.train_missing or not wanted.lacking:
        return stored(config, list(wanted.columns), wanted.images, committed=not wanted.train_missing)
    wanted.check()
    device = pick_device(wanted.device)
    for needed in wanted.needs:
        run(needed, (), device=device, speed=wanted.speed, say=say)
    test = run_data(config).test.to(device)
    folder = RUNS / config.id
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder, say), using(device), few_threads(config, device):
        checkpoint.remove_parts(folder)
        note(folder, started=time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()), host=platform.node())
        result = stored(config) or trained(config, folder, device, wanted.speed, say)
        results.write(folder / "result.json", result)
        for which in CHECKPOINTS:
            result = judged(result, which, test, wanted, device, say)
    if result.at_chance:
        progress(say)(chance_warning(config))
    return result


def chance_warning(config: RunConfig) -> str:
    return f"at chance level: {config.title} seed {config.seed}, so nothing can be concluded from it"


@contextmanager
def few_threads(config: RunConfig, device: str) -> Iterator[None]:
    """Within: one of torch's threads where a batch is so little work for a CPU that several would wait for each other.

    That is below 0.1 GFLOP a pass: on digits two threads are slower than one, and slower by far on a busy machine.
    """
    before = torch.get_num_threads()
    if device == "cpu" and config.batch_size * flops(run_model(config), DATASETS[config.dataset].shape) < 1e8:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def trained(config: RunConfig, folder: Path, device: str, speed: str, say: Callable[[str], None]) -> Result:
    """Train a run to its end; a result without evaluations."""
    checkpoint.write(folder / "config.json", (json.dumps(dataclasses.asdict(config), indent=1) + "\n").encode())
    begins = f"{config.title} seed {config.seed}: {config.epochs} epochs on {described(device)}"
    progress(say)(begins)
    watched = hasattr(say, "update") and not (folder / "last.pt").exists()  # one that goes on has a pace of its own
    if about := cost.announced([config], device, speed) if watched else "":
        progress(say)(begins + about)
    teachers = [load_model(teacher, "best", device) for teacher in config.teachers]
    report = Log(config, folder, device, speed, say)
    train(config, folder, teachers=teachers, device=device, speed=speed, report=report, say=say)
    checkpoint.tidy(folder)
    data = run_data(config)
    curve = checkpoint.load(folder / "last.pt")["curve"]
    wrong = int((data.train.y != data.train.y_clean).sum())
    return Result(
        config=config,
        curve=[{name: float(f"{value:.6g}") for name, value in row.items()} for row in curve],
        best_epoch=best_epoch(curve, config),
        sizes=dict(train=len(data.train), val=len(data.val), test=len(data.test), wrong_labels=wrong),
        evaluations={which: {} for which in CHECKPOINTS},
        provenance=provenance(folder, device, speed),
    )


def judged(result: Result, which: str, test: Split, wanted: Wanted, device: str, say: Callable[[str], None]) -> Result:
    """The result with the wanted columns of a checkpoint that it lacked; written after each of them."""
    config, model = result.config, None
    for column, build in wanted.columns.items():
        n = len(test) if build is None else min(wanted.images or len(test), len(test))
        if result.holds(which, column, n):
            continue
        started, whose = time.perf_counter(), f"{config.title} seed {config.seed}, {which}: {column}"
        progress(say)(f"{whose}, {n} images")
        model = model or load_model(config, which, device)
        x, y = test.x(slice(n)), test.y[:n]
        how = dict(classes=DATASETS[config.dataset].classes, speed=wanted.speed)
        more = {}
        if column == "natural":
            flags = correct(model, x, y, **how)
        elif column.startswith("confidence "):
            flags, more = confidence(model, x, y, build() if build else None, **how)
        else:
            before = result.flags(which, AFTER.get(column, "natural"))[:n]
            flags = withstood(model, x, y, build(), before, **how)
        seconds = round(time.perf_counter() - started, 2)
        result = result.with_flags(which, column, flags, **more, seconds=seconds, **where(device, wanted.speed))
        results.write(RUNS / config.id / "result.json", result)
        progress(say)(f"{whose}, {flags.sum()} of {n} images stand, {seconds:.0f} s")
    return result


def confidence(
    model: nn.Module, x: Tensor, y: Tensor, attack: Callable | None, **how: Any
) -> tuple[torch.Tensor, dict[str, str]]:
    """Flags as of correct(), and the packed probabilities that Result.confidence() unpacks."""
    probabilities = outputs(model, x, y, attack, **how)[1].double().softmax(1)
    highest, predicted = probabilities.max(1)
    labelled = probabilities.gather(1, y[:, None])[:, 0]
    return (predicted == y).cpu(), dict(highest=pack_shares(highest.cpu()), labelled=pack_shares(labelled.cpu()))
