"""The runs that a notebook needs: python -m sglrlib list shows them, run does the missing ones, here or on Slurm."""

import argparse
import ast
import sys
from collections import Counter
from datetime import timedelta

import joblib
import submitit
import torch
import yaml

from sglrlib import grid, lease, plan, runs
from sglrlib.checks import UsageError, within
from sglrlib.data import DataError
from sglrlib.paths import RUNS


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns 0, 1 where a run failed, 2 for what cannot be right, 130 where it was stopped."""
    asked = parser().parse_args(arguments)
    try:
        if not isinstance(asked.y or {}, dict):
            raise UsageError(f"-y = {asked.y!r}: expected names and values, such as '{{rates: [0.4]}}'.")
        parameters = (asked.y or {}) | {name: literal(text) for name, text in asked.p}
        if not asked.notebook:
            return show_store()
        workers = getattr(asked, "workers", 0)
        for name in ("workers", "minutes", "signal", "gpus", "cpus"):
            within(name, getattr(asked, name, 0), 0)
        on_slurm = getattr(asked, "slurm", False)
        together = workers or (0 if on_slurm else joblib.cpu_count())
        threads = 0 if on_slurm else max(1, joblib.cpu_count() // (together or 1))
        tasks = plan.tasks(asked.notebook, parameters, threads if together > 1 else 0)
        if asked.command == "list":
            return show(tasks)
        if not all(how["train_missing"] for task in tasks for _, _, how in task.wanted):
            raise UsageError("train = False computes nothing: expected train = True, the default, to run it.")
        todo = [task for task in tasks if task.lacking]
        print(f"{len(tasks)} runs, {len(todo)} of them to do, {together or 'all'} at a time")
        failures = grid.send(todo, slurm(asked) if on_slurm else local(asked), at_once=0 if on_slurm else together)
        show(tasks)
        return 1 if failures else 0
    except (UsageError, DataError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: each run is kept as far as it is, and the same command goes on from there", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """The options, those for a notebook's parameters as papermill has them."""
    top = argparse.ArgumentParser(prog="python -m sglrlib", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    of_notebook = argparse.ArgumentParser(add_help=False)
    of_notebook.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="parameter")
    of_notebook.add_argument("-y", type=yaml.safe_load, metavar="YAML", help="parameters, such as '{rates: [0.4]}'")
    shown = commands.add_parser("list", parents=[of_notebook], help="show the state of each run, and the time left")
    shown.add_argument("notebook", nargs="?", help="without one: every run of the store")
    sent = commands.add_parser("run", parents=[of_notebook], help="do what is missing, and show how that ended")
    sent.add_argument("notebook")
    sent.add_argument("--workers", type=int, default=0, help="runs at a time; 0: one a core, on Slurm all")
    sent.add_argument(
        "--minutes", type=int, default=0, help="a worker's time; 0: a week, on Slurm 240. Then it goes on"
    )
    sent.add_argument("--signal", type=int, default=120, help="seconds before its end at which a worker is warned")
    sent.add_argument("--gpus", type=int, default=1, help="of each worker, where there are any")
    sent.add_argument("--slurm", action="store_true", help="send to Slurm instead of this machine")
    sent.add_argument("--partition", help="Slurm's")
    sent.add_argument("--cpus", type=int, default=4, help="of each worker on Slurm")
    sent.add_argument("-s", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="option of sbatch")
    return top


def literal(text: str):
    """The Python literal that a text is, as papermill reads numbers and True, else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def local(asked: argparse.Namespace) -> submitit.LocalExecutor:
    """Processes of this machine, started again when their time is over."""
    executor = submitit.LocalExecutor(RUNS / ".grid", max_num_timeout=1000)
    gpus = min(asked.gpus, torch.cuda.device_count())
    executor.update_parameters(
        timeout_min=asked.minutes or 7 * 24 * 60, signal_delay_s=asked.signal, gpus_per_node=gpus
    )
    return executor


def slurm(asked: argparse.Namespace) -> submitit.SlurmExecutor:
    """Jobs of a Slurm cluster, requeued when their time is over or others go first. Raises UsageError without Slurm."""
    try:
        executor = submitit.SlurmExecutor(RUNS / ".grid", max_num_timeout=1000)
    except RuntimeError as error:
        raise UsageError(f"--slurm: {error}; without it the runs are done on this machine.") from error
    executor.update_parameters(
        job_name="sglr", time=asked.minutes or 240, signal_delay_s=asked.signal, gpus_per_node=asked.gpus,
        cpus_per_task=asked.cpus, ntasks_per_node=1, array_parallelism=asked.workers or 1000,
        additional_parameters=dict(asked.s) | dict(requeue=True),
        **(dict(partition=asked.partition) if asked.partition else {}),
    )  # fmt: skip
    return executor


def show(tasks: list[grid.Task]) -> int:
    """Print the runs and their states, the ends of the logs of those that failed, and the sum of the time left."""
    found = grid.states(tasks)
    width = max([len(task.config.title) for task in tasks], default=0)
    for task, (kind, epoch, left) in zip(tasks, found, strict=True):
        at = f"epoch {epoch}/{task.config.epochs}" * (kind != "missing")
        holder = lease.holder(RUNS / task.config.id) if kind != "done" else ""
        claimed = f"  claimed by {holder}" * bool(holder)
        print(f"{task.config.title:{width}}  {kind:7}  {at:13}  {clock(left):>8}  {task.config.id}{claimed}")
    for task, state in zip(tasks, found, strict=True):
        if state.kind == "failed":
            print(runs.failed(task.config))
    counts = Counter(state.kind for state in found)
    left = clock(sum(state.left or 0 for state in found))
    some = "at least " * any(state.left is None for state in found)
    print(f"{len(tasks)} runs: {', '.join(f'{counts[kind]} {kind}' for kind in grid.KINDS)}; {some}{left} of work left")
    return 0


def show_store() -> int:
    """Print every run of the store."""
    counts = Counter()
    for name, kind, epoch in grid.whole_store():
        counts[kind] += 1
        print(f"{name}  {kind}" + f", epoch {epoch}" * bool(epoch))
    print(f"{RUNS}: {', '.join(f'{counts[kind]} {kind}' for kind in grid.KINDS)}")
    return 0


def clock(seconds: float | None) -> str:
    """'0:01:02', or '?'."""
    return "?" if seconds is None else str(timedelta(seconds=round(seconds)))


if __name__ == "__main__":
    sys.exit(main())
