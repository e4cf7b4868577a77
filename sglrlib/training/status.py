"""How far runs are, and how long they still take."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from sglrlib.config import RunConfig
from sglrlib.device import pick_device
from sglrlib.paths import RUNS
from sglrlib.store import log, results
from sglrlib.store.checkpoint import StoreError
from sglrlib.store.results import CHECKPOINTS
from sglrlib.training import cost, runs
from sglrlib.training.jobs import Task


class State(NamedTuple):
    """kind: one of KINDS; epoch: the last one done; left: seconds of work, None where there is nothing to go by;
    guessed: whether left is an estimate, at least in part.
    """

    kind: str
    epoch: int
    left: float | None = None
    guessed: bool = False


KINDS = ("done", "partial", "failed", "missing")


def states(those: list[Task], estimate: cost.Forecast | None = None) -> list[State]:
    """The state of each task. What is left is told by the run's own pace so far, else by the others' means.

    estimate is called only where there are none, and everywhere if it is of a card that is not here.
    """
    elsewhere = bool(estimate and estimate.card)
    known = {task.config.id: readable(task.config) for task in those}
    paces = {} if elsewhere else {task.config.id: pace(task, known[task.config.id]) for task in those}
    usual = [seconds for seconds in paces.values() if seconds]
    spent = {}
    for result in () if elsewhere else filter(None, known.values()):
        for column, entry in [c for which in CHECKPOINTS for c in result.evaluations[which].items()]:
            spent.setdefault(column, []).append(entry["seconds"])
    found = []
    for task in those:
        config, lacking = task.config, task.lacking
        kind, epoch = in_store(RUNS / config.id)
        if not lacking:
            found.append(State("done", config.epochs, 0.0))
            continue
        if "training" not in lacking:
            kind, epoch = "partial" if kind == "done" else kind, config.epochs
        seconds = paces.get(config.id) or (fmean(usual) if usual else None)
        unknown = [column for column in lacking if column not in ("training", *spent)]
        in_doubt = unknown or (seconds is None and epoch < config.epochs)
        guess = estimated(task, estimate) if estimate and in_doubt else None
        if guess and seconds is None:
            seconds = (guess.training + guess.measuring) / config.epochs
        judging = sum(2 * fmean(spent[column]) for column in lacking if column in spent)
        judging += sum(guess.columns[column] for column in unknown) if guess else 0
        left = None if seconds is None and epoch < config.epochs else (config.epochs - epoch) * (seconds or 0) + judging
        found.append(State(kind, epoch, left, guessed=guess is not None))
    return found


def readable(config: RunConfig) -> results.Result | None:
    """The run's result, here or committed; None where there is none that can be read."""
    try:
        return results.stored(config, committed=True)
    except StoreError:
        return None


def estimated(task: Task, estimate: cost.Forecast) -> cost.Cost:
    """The seconds that a task takes where it would be done."""
    first, config = task.wanted[0], task.config
    columns = {column: wanted.images for wanted in task.wanted for column in wanted.columns}
    device = pick_device(first.device)
    with runs.few_threads(config, device):
        return estimate(config, columns, device, first.speed)


def time_left(those: list[Task], at_once: int = 1) -> Callable[[], str]:
    """What tells how long several tasks still take, so many at once: '; about 3:20 left in all', in hours and minutes.

    '' within the first minute, and where nothing tells; it looks every ten seconds.
    """
    looked, text = time.monotonic() + 50, ""

    def tell() -> str:
        nonlocal looked, text
        if len(those) > 1 and time.monotonic() - looked >= 10:
            looked = time.monotonic()
            left = [state.left for state in states(those)]
            minutes = None if None in left else round(sum(left) / at_once / 60)
            text = "" if minutes is None else f"; about {minutes // 60}:{minutes % 60:02} left in all"
        return text

    return tell


def pace(task: Task, result: results.Result | None) -> float | None:
    """Seconds an epoch, from the run's log, or from a result that was trained on such a device as is used here."""
    if spent := log.epoch_seconds(RUNS / task.config.id):
        return fmean(spent.values())
    here = pick_device(task.wanted[0].device) == "cpu"
    if result and (result.provenance["device"] == "cpu") == here:
        return result.provenance["seconds"] / task.config.epochs
    return None


def in_store(folder: Path) -> tuple[str, int]:
    """One of KINDS for a run's folder, by what lies there, and the last epoch done as its log has it."""
    names = os.listdir(folder) if folder.is_dir() else []
    if log.LOG in names and log.failure(folder):
        return "failed", log.last_epoch(folder)
    if "result.json" in names:
        return "done", 0
    return ("partial", log.last_epoch(folder)) if {"last.pt", "previous.pt"} & {*names} else ("missing", 0)


def whole_store() -> Iterator[tuple[str, str, int]]:
    """(id, kind, last epoch) of every run in the store, whichever notebook it is for; results are not read."""
    for folder in sorted(RUNS.glob("*-*/")):
        yield folder.name, *in_store(folder)
