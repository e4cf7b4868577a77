"""Runs as tasks for workers anywhere: the state of each, how long it still takes, and how they are handed out."""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch
from submitit.helpers import DelayedSubmission

from sglrlib import doors
from sglrlib.config import RunConfig
from sglrlib.paths import RUNS
from sglrlib.store import log, results
from sglrlib.store.results import CHECKPOINTS
from sglrlib.training import runs


@dataclass(frozen=True)
class Task:
    """One run and all that is wanted of it; called, it does that, on this machine or another one of the same store.

    wanted: the calls it is made of. needs: ids of the runs that have to be there first. threads: torch's, 0 for as many
    as it takes by itself. carried: what is registered where it was made, by doors.carried().
    """

    config: RunConfig
    wanted: tuple[runs.Wanted, ...]
    needs: frozenset[str] = frozenset()
    threads: int = 0
    carried: bytes = b""

    def __call__(self) -> str:
        """Do what is lacking; returns '', or how it failed with the end of the run's log."""
        doors.take_over(self.carried)
        if self.threads:
            torch.set_num_threads(self.threads)
        for config, job, how in self.wanted:
            if runs.attempt(job, config, **how) is None:
                return runs.failed(config) or f"failed: {config.id}"
        return ""

    def checkpoint(self) -> DelayedSubmission:
        """What submitit queues again at a time limit or a preemption: the same, for a run resumes by itself."""
        return DelayedSubmission(self)

    @property
    def lacking(self) -> list[str]:
        """What a call would have to do: 'training', and the columns that are missing; each once."""
        found = [job(config, **how, by=runs.lacking) for config, job, how in self.wanted]
        return list(dict.fromkeys(step for steps in found for step in steps))


class State(NamedTuple):
    """kind: one of KINDS; epoch: the last one done; left: seconds of work, None where there is nothing to go by."""

    kind: str
    epoch: int
    left: float | None = None


KINDS = ("done", "partial", "failed", "missing")


def states(those: list[Task]) -> list[State]:
    """The state of each task. What is left is told by the run's own pace so far, else by the others' means."""
    known = {task.config.id: results.stored(task.config, committed=True) for task in those}
    paces = {task.config.id: pace(task, known[task.config.id]) for task in those}
    usual = [seconds for seconds in paces.values() if seconds]
    spent = {}
    for result in filter(None, known.values()):
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
        seconds = paces[config.id] or (fmean(usual) if usual else None)
        judging = sum(2 * fmean(spent.get(column, [0])) for column in lacking)
        left = None if seconds is None and epoch < config.epochs else (config.epochs - epoch) * (seconds or 0) + judging
        found.append(State(kind, epoch, left))
    return found


def pace(task: Task, result: results.Result | None) -> float | None:
    """Seconds an epoch, from the run's log, or from a result that was trained on such a device as is used here."""
    if spent := log.epoch_seconds(RUNS / task.config.id):
        return fmean(spent.values())
    here = runs.pick_device(task.wanted[0].how.get("device", "")) == "cpu"
    if result and (result.provenance["device"] == "cpu") == here:
        return result.provenance["seconds"] / task.config.epochs
    return None


def in_store(folder: Path) -> tuple[str, int]:
    """One of KINDS for a run's folder, by what lies there, and the last epoch done as its log has it."""
    names = os.listdir(folder) if folder.exists() else []
    if log.LOG in names and log.failure(folder):
        return "failed", log.last_epoch(folder)
    if "result.json" in names:
        return "done", 0
    return ("partial", log.last_epoch(folder)) if {"last.pt", "previous.pt"} & {*names} else ("missing", 0)


def whole_store() -> Iterator[tuple[str, str, int]]:
    """(id, kind, last epoch) of every run in the store, whichever notebook it is for; results are not read."""
    for folder in sorted(RUNS.glob("*-*")):
        yield folder.name, *in_store(folder)


def send(those: list[Task], executor: Executor, *, at_once: int = 0, say: Callable[[str], None] = print) -> list[str]:
    """Do the tasks on an executor: submitit's, or any with the interface of concurrent.futures.Executor.

    No more than at_once (0: all) are handed over at a time, and none before what it needs has ended. One that fails
    stops no other. Returns how each of those that failed did, with the end of its log. If this process is stopped,
    what it handed over goes on where the executor can, and another call does the rest.
    """
    waiting, running, failures, started = list(those), [], [], time.monotonic()
    while waiting or running:
        unfinished = {task.config.id for task in [*waiting, *(task for task, _ in running)]}
        ready = [task for task in waiting if not task.needs & unfinished]
        ready = ready[: at_once - len(running)] if at_once else ready
        with getattr(executor, "batch", nullcontext)() if len(ready) > 1 else nullcontext():  # Slurm: one array
            handed = [(task, executor.submit(task)) for task in ready]
        waiting = [task for task in waiting if task not in ready]
        running += handed
        for task, future in [pair for pair in running if pair[1].done()]:
            running.remove((task, future))
            failure = outcome(task, future)
            failures += [failure] if failure else []
            ended = (
                f"{len(those) - len(waiting) - len(running)} of {len(those)} after {time.monotonic() - started:.0f} s"
            )
            say(failure or f"{ended}: {task.config.title} seed {task.config.seed}")
        time.sleep(0.1)
    return failures


def outcome(task: Task, future) -> str:
    """What a task returned; where its worker died instead, that is written into the run's log."""
    error = future.exception()
    if error is None:
        return future.result()
    runs.note_failure(task.config, error)
    return runs.failed(task.config) or f"failed: {task.config.id}: {error}"
