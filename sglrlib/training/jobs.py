"""Runs as tasks for workers anywhere, and how they are handed out."""

import dataclasses
import os
import re
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext, suppress
from dataclasses import dataclass

import joblib
import psutil
import submitit
import torch
from submitit.helpers import DelayedSubmission

from sglrlib import doors
from sglrlib.checks import UsageError
from sglrlib.config import RunConfig
from sglrlib.device import pick_device
from sglrlib.method.files import DataError
from sglrlib.paths import RUNS
from sglrlib.store import lease, log, results
from sglrlib.training import runs
from sglrlib.training.columns import attacked
from sglrlib.training.train import run_data


@dataclass(frozen=True)
class Task:
    """One run and all that is wanted of it; called, it does that, on this machine or another one of the same store.

    needs: ids of the runs that have to be there first. threads: torch's, 0 for as many as it takes by itself. parent:
    the process of this machine with which the worker ends, 0 for none; then visible is its CUDA_VISIBLE_DEVICES.
    carried: doors.carried() where it was made.
    """

    config: RunConfig
    wanted: tuple[runs.Wanted, ...]
    needs: frozenset[str] = frozenset()
    threads: int = 0
    parent: int = 0
    visible: str | None = None
    carried: bytes = b""

    def __call__(self) -> str:
        """Do what is lacking; returns '', or how it failed with the end of the run's log."""
        if self.parent:
            threading.Thread(target=end_with, args=[self.parent], daemon=True).start()
            see(self.visible)
        doors.take_over(self.carried)
        if self.threads:
            torch.set_num_threads(self.threads)
        _began[self.config.id] = how_far(self)
        said = []
        for wanted in self.wanted:
            if runs.attempt(wanted, said.append) is None:
                return runs.failed(self.config) or said[-1]
        return ""

    def on(self, device: str) -> "Task":
        """This task on another device; '' leaves it its own."""
        wanted = [dataclasses.replace(each, device=device or each.device) for each in self.wanted]
        return dataclasses.replace(self, wanted=tuple(wanted))

    def checkpoint(self) -> DelayedSubmission | None:
        """What submitit queues again at a time limit or a preemption: the same, for a run resumes by itself; nothing
        where this start has brought it no further, which would go on for ever.
        """
        if how_far(self) != _began.get(self.config.id):
            return DelayedSubmission(self)
        runs.note_failure(self.config, TimeoutError("no epoch and no attack ended before the limit of time"))
        return None

    @property
    def lacking(self) -> list[str]:
        """What a call would have to do: 'training', and the columns that are missing; each once."""
        return list(dict.fromkeys(step for wanted in self.wanted for step in wanted.lacking))


_began: dict[str, tuple[int, int]] = {}  # how far a task was when it was called in this process


def end_with(parent: int) -> None:
    """Wait for the end of another process of this machine, then end this one; a run resumes from its last epoch."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(parent)
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(1)
    os._exit(1)


def see(visible: str | None) -> None:
    """Have CUDA show the GPUs that the parent sees: submitit shows each local worker the first, or none."""
    if visible is None:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible


def places(device: str, workers: int = 0) -> list[str]:
    """Where this machine does runs at the same time, one entry each: '' is a core of the CPU, 'cuda:1' a GPU.

    workers: how many; they share the GPUs as evenly as can be. 0: one a core or a GPU. Raises as pick_device() does.
    """
    picked = pick_device(device)
    if picked == "cpu":
        return [""] * (workers or joblib.cpu_count())
    gpus = [picked] if ":" in picked else [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return [gpus[i % len(gpus)] for i in range(workers or len(gpus))]


def tasks(wanted: Iterable[runs.Wanted], threads: int = 0, parent: int = 0) -> list[Task]:
    """One task a run, each after those of the runs that it needs itself; threads and parent are passed to each."""
    asked: dict[str, list[runs.Wanted]] = {}
    for each in wanted:
        for config in each.needs:
            first = dataclasses.replace(each, config=config, columns=attacked(config, ()))
            asked.setdefault(config.id, []).append(first)
        asked.setdefault(each.config.id, []).append(each)
    how = dict(threads=threads, parent=parent, visible=os.environ.get("CUDA_VISIBLE_DEVICES"), carried=doors.carried())
    return [
        Task(those[0].config, tuple(those), frozenset(c.id for w in those for c in w.needs), **how)
        for those in asked.values()
    ]


def send(
    those: list[Task], executor: Executor, *, at: list[str] | None = None, say: Callable[[str], None] = print
) -> dict[str, str]:
    """Do the tasks on an executor: submitit's, or any with the interface of concurrent.futures.Executor.

    Each is handed over to a place of places() that is free, or all at a time where none are given, and none before
    what it needs has ended. One that fails stops no other; one whose worker died is handed over again, until two
    workers in a row have brought it no further. Returns id -> the end of its log, of those that failed. say is as in
    runs.obtain(). If this process is stopped, what it handed over goes on where tasks have no parent, and
    another call does the rest. Raises UsageError or DataError before any work where data are missing or too few,
    BrokenProcessPool where the executor is.
    """
    check_data(task.config for task in those)
    waiting, running, failures, started = list(those), [], {}, time.monotonic()
    free = [""] * len(those) if at is None else list(at)
    reached, idle = {task.config.id: how_far(task) for task in those}, Counter()
    tell, told = log.progress(say), started

    def so_far() -> str:
        done = len(those) - len(waiting) - len(running)
        return f"{done} of {len(those)} after {time.monotonic() - started:.0f} s"

    while waiting or running:
        unfinished = {task.config.id for task in [*waiting, *(task for task, *_ in running)]}
        ready = [task for task in waiting if not task.needs & unfinished][: len(free)]
        futures = hand_over([task.on(place) for task, place in zip(ready, free, strict=False)], executor, say)
        running += zip(ready, free, futures, strict=False)
        waiting, free = [task for task in waiting if task not in ready], free[len(ready) :]
        for task, place, future in [entry for entry in running if entry[2].done()]:
            running.remove((task, place, future))
            if died(future) and (again := queued(task)):  # Slurm has lost the job's machine, and queued it again
                running.append((task, place, again))
                time.sleep(PAUSE_S)
                continue
            free.append(place)
            if died(future):
                before, reached[task.config.id] = reached[task.config.id], how_far(task)
                idle[task.config.id] = idle[task.config.id] + 1 if reached[task.config.id] == before else 0
                if idle[task.config.id] < 2:
                    waiting.append(task)
                    say(f"{at_work(task.config)}: its worker ended, another one goes on")
                    continue
            if failure := outcome(task, future):
                failures[task.config.id] = failure
                say(failure)
            else:
                result = results.stored(task.config)
                chance = ", at chance level" if result and result.at_chance else ""
                tell(f"{so_far()}: {task.config.title} seed {task.config.seed}{chance}")
        if tell is not say and running and time.monotonic() - told > 1:
            told = time.monotonic()
            tell(f"{so_far()}; at work: " + ", ".join(at_work(task.config) for task, *_ in running))
        time.sleep(0.1)
    return failures


def hand_over(those: list[Task], executor: Executor, say: Callable[[str], None] = print) -> list[Future]:
    """The futures of tasks that are given to an executor, Slurm's as one array.

    One whose job an earlier call has sent is not sent again. A controller that is out is asked for OUTAGE_S seconds.
    """
    jobs, started = {task.config.id: queued(task) for task in those}, time.monotonic()
    anew = [task for task in those if not jobs[task.config.id]]
    while anew:
        try:
            with getattr(executor, "batch", nullcontext)() if len(anew) > 1 else nullcontext():
                jobs |= {task.config.id: executor.submit(task) for task in anew}
            break
        except Exception as error:
            away = re.search("[Uu]nable to contact|[Cc]onnection refused|timed out|temporarily", str(error))
            if not away or time.monotonic() - started > OUTAGE_S:
                raise
            say(f"Slurm does not answer, asked again in {PAUSE_S} s: {str(error).strip().splitlines()[-1]}")
            time.sleep(PAUSE_S)
    for task in anew:
        if isinstance(job := jobs[task.config.id], submitit.SlurmJob):
            (RUNS / task.config.id).mkdir(parents=True, exist_ok=True)
            log.note(RUNS / task.config.id, job=job.job_id, files=str(job.paths.folder))
    return list(jobs.values())


OUTAGE_S, PAUSE_S = 600, 10


def queued(task: Task) -> Future | None:
    """The Slurm job that an earlier call gave a task to, if it waits or runs: a second one would only hold a place."""
    last = next((line for line in log.newest_first(RUNS / task.config.id) if "job" in line), {})
    if task.parent or not last or not shutil.which("squeue"):
        return None
    found = subprocess.run(["squeue", "--noheader", "--jobs", last["job"]], capture_output=True, text=True)
    return submitit.SlurmJob(folder=last["files"], job_id=last["job"]) if found.stdout.strip() else None


def check(those: Iterable[Task]) -> None:
    """Raise UsageError for what this machine cannot or should not do, see Wanted.check()."""
    for wanted in [each for task in those for each in task.wanted if each.lacking]:
        wanted.check()


def check_data(configs: Iterable[RunConfig]) -> None:
    """Load each dataset in the sizes and with the noise asked for. Raises DataError or UsageError where that fails."""
    asked = {(c.dataset, c.train_size, c.val_size, c.test_size, c.noise if c.noise_rate else ""): c for c in configs}
    for config in asked.values():
        run_data(config)


def at_work(config: RunConfig) -> str:
    """How far a run is that a worker was given, or which other process it waits for."""
    folder = RUNS / config.id
    other = lease.others(folder)
    at = f"waiting for {other}, epoch" if other else "epoch"
    return f"{config.title} seed {config.seed} {at} {log.last_epoch(folder)}/{config.epochs}"


def how_far(task: Task) -> tuple[int, int]:
    """What grows while a task makes progress: the last epoch done, and fewer columns that are lacking."""
    return log.last_epoch(RUNS / task.config.id), -len(task.lacking)


def died(future: Future) -> bool:
    """Whether a worker ended without a word, at a limit of time or memory, say; a pool of processes is dead with it."""
    error = future.exception()
    return error is not None and not isinstance(error, (UsageError, DataError, BrokenProcessPool))


def outcome(task: Task, future: Future) -> str:
    """What a task returned; where its worker died instead, that is written into the run's log."""
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, (UsageError, DataError)):
        raise error from None
    runs.note_failure(task.config, error)
    if isinstance(error, BrokenProcessPool):
        raise error
    return runs.failed(task.config) or f"failed: {task.config.id}: {error}"
