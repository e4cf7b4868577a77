"""The runs that a notebook needs: python -m sglrlib list shows them, run does the missing ones, here or on Slurm."""

import argparse
import ast
import dataclasses
import keyword
import os
import subprocess
import sys
import time
from collections import Counter
from datetime import timedelta
from functools import partial
from pathlib import Path

import joblib
import submitit
import yaml
from submitit.core.utils import FailedJobError, FailedSubmissionError

from sglrlib.checks import UsageError, within
from sglrlib.config import DEFAULTS
from sglrlib.method.files import DataError
from sglrlib.paths import ROOT, RUNS
from sglrlib.show import plan, style
from sglrlib.show.settings import COMMON, HELP
from sglrlib.store import lease
from sglrlib.studies import gallery, readme, registry
from sglrlib.training import cost, jobs, runs, status

AT_LEAST = 60  # seconds that a worker is given


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns 0, 1 where a run failed, 2 for what cannot be right, 130 where it was stopped."""
    asked = parser().parse_args(arguments)
    try:
        return asked.do(asked)
    except (UsageError, DataError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: each run is kept as far as it is, and the same command goes on from there", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """The options; those for a notebook's parameters are papermill's."""
    top = argparse.ArgumentParser(prog="python -m sglrlib", description=__doc__)
    commands = top.add_subparsers(required=True)
    both = argparse.ArgumentParser(add_help=False)
    both.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="parameter")
    both.add_argument("-y", type=yaml.safe_load, default={}, metavar="YAML", help="parameters: '{rates: [0.4]}'")
    both.add_argument("--trust", action="store_true", help="execute the cells of a notebook from elsewhere, too")
    shown = commands.add_parser("list", parents=[both], help="show the state of each run, and the time left")
    shown.set_defaults(do=list_runs)
    shown.add_argument("notebook", nargs="?", help="without one: every run of the store")
    shown.add_argument(
        "--no-measure", action="store_true", help="'?' for what is not known yet, instead of a few steps"
    )
    shown.add_argument("--card", default="", help=f"times as if on one of: {', '.join(cost.CARDS)}")
    sent = commands.add_parser("run", parents=[both], help="do what is missing, and show how that ended")
    sent.set_defaults(do=do_runs)
    sent.add_argument("notebook")
    sent.add_argument("--workers", type=int, default=0, help="runs at a time; 0: one a GPU, else a core; on Slurm all")
    sent.add_argument("--minutes", type=int, default=0, help="until a worker starts again; 0: a week, on Slurm 240")
    sent.add_argument("--signal", type=int, default=120, help="seconds before that at which it is warned")
    sent.add_argument("--gpus", type=int, default=1, help="of each worker on Slurm")
    sent.add_argument("--slurm", action="store_true", help="send to Slurm instead of this machine")
    sent.add_argument("--partition", default="", help="Slurm's")
    sent.add_argument("--cpus", type=int, default=4, help="of each worker on Slurm")
    sent.add_argument(
        "-s",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="option of sbatch; a VALUE of '' for a flag",
    )
    explained = commands.add_parser("parameters", help="explain what overrides and -p can change")
    explained.set_defaults(do=explain_parameters)
    judged = commands.add_parser("claims", help="judge the paper's claims by the committed results, and keep that")
    judged.set_defaults(do=judge_claims)
    redrawn = commands.add_parser("figures", help="draw the figures of the committed results, figures/, anew")
    redrawn.set_defaults(do=draw_figures)
    return top


def explain_parameters(asked: argparse.Namespace) -> int:
    """Show each parameter with its default: every notebook's, then those of a run, whose recipes may have others."""
    for name, value in (COMMON | DEFAULTS).items():
        print(f"{name:16} {value!r:12} {HELP.get(name, '')}")
    return 0


def judge_claims(asked: argparse.Namespace) -> int:
    """Write the verdicts on the claims and the tables of README, and show the verdicts."""
    registry.VERDICTS.write_text(registry.text())
    readme.write()
    print(readme.summary())
    return 0


def draw_figures(asked: argparse.Namespace) -> int:
    """Write figures/ anew, from committed results and what is computed at once."""
    for name, figure in gallery.drawn():
        print(style.save(figure, name, publish=True))
    return 0


def list_runs(asked: argparse.Namespace) -> int:
    """Show a notebook's runs, or those of the whole store."""
    if asked.notebook:
        estimate = None if asked.no_measure and not asked.card else cost.Forecast(asked.card)
        trust(asked)
        show(plan.tasks(asked.notebook, parameters(asked)), estimate)
        return 0
    counts = Counter()
    for name, kind, epoch in status.whole_store():
        counts[kind] += 1
        print(f"{name}  {kind}" + f", epoch {epoch}" * bool(epoch))
    print(f"{RUNS}: {summary(counts)}")
    return 0


def do_runs(asked: argparse.Namespace) -> int:
    """Do a notebook's missing runs, and show how that ended."""
    for name in ("workers", "minutes", "signal", "gpus", "cpus"):
        within(name, getattr(asked, name), 0)
    check_minutes(asked.minutes, asked.signal, 60 * asked.slurm)
    trust(asked)
    tasks = plan.tasks(asked.notebook, parameters(asked), parent=0 if asked.slurm else os.getpid())
    if not all(wanted.train_missing for task in tasks for wanted in task.wanted):
        raise UsageError("train = False computes nothing: expected train = True, the default, to run it.")
    todo = [task for task in tasks if task.lacking]
    at = None if asked.slurm else jobs.places(tasks[0].wanted[0].device, asked.workers)
    if at is not None:
        threads = 0 if len(at) == 1 else max(1, joblib.cpu_count() // len(at))
        todo = [dataclasses.replace(task, threads=threads) for task in todo]
        jobs.check(todo)
    executor = slurm(asked) if asked.slurm else local(asked)
    say = partial(print, flush=True)  # also into a file, line by line
    together = len(at) if at else asked.workers or "all"
    say(f"{len(tasks)} runs, {len(todo)} of them to do, {together} at a time")
    try:
        failures = jobs.send(todo, executor, at=at, say=say)
    except (FailedJobError, FailedSubmissionError) as error:
        raise UsageError(f"Slurm does not take the jobs: {error}. Those that it took go on.") from error
    except KeyboardInterrupt:
        if sent := [job.job_id for task in todo if (job := jobs.queued(task))]:
            print(f"jobs {', '.join(sent)} go on; to end them: scancel {' '.join(sent)}", file=sys.stderr)
        raise
    show(tasks)
    return int(bool(failures) or any(task.lacking for task in tasks))


def check_minutes(minutes: int, signal: int, early: int) -> None:
    """Raise UsageError for a limit of time that would be over before a worker gets anywhere.

    early: by how many seconds the warning may come too soon, on Slurm a minute.
    """
    left = 60 * minutes - signal - early
    if minutes and left < AT_LEAST:
        shorter = f", or --signal {left + signal - AT_LEAST} or less" * (left + signal >= AT_LEAST)
        raise UsageError(
            f"--minutes {minutes} with --signal {signal}: a worker would be warned of its end after {left} s, and may "
            f"take {AT_LEAST} s to start and do an epoch. Expected --minutes "
            f"{-(-(AT_LEAST + signal + early) // 60)} or more{shorter}."
        )


def trust(asked: argparse.Namespace) -> None:
    """Say that a notebook's cells are executed. Raises UsageError for one from elsewhere, unless it is trusted."""
    if not (asked.trust or Path(asked.notebook).resolve().is_relative_to(ROOT)):
        raise UsageError(
            f"{asked.notebook} lies outside of {ROOT}, and its cells would be executed, up to the last that asks for "
            "runs, to see which these are. --trust does so."
        )
    print(f"executing the cells of {asked.notebook} to see which runs it asks for", file=sys.stderr)


def parameters(asked: argparse.Namespace) -> dict:
    """The notebook's parameters that -y and -p give. Raises UsageError for a -y that is no mapping, and for what is no
    name: papermill would execute it.
    """
    if not isinstance(asked.y, dict):
        raise UsageError(f"-y = {asked.y!r}: expected names and values, such as '{{rates: [0.4]}}'.")
    found = {str(name): value for name, value in asked.y.items()} | {name: literal(text) for name, text in asked.p}
    for name in found:
        if not name.isidentifier() or name.startswith("_") or name in {*keyword.kwlist, "In", "Out"}:
            raise UsageError(f"parameter = {name!r} is no name: expected letters, digits and _, such as 'epochs'.")
    return found


def literal(text: str) -> object:
    """The Python literal that a text is, as papermill reads numbers and True, else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def local(asked: argparse.Namespace) -> submitit.LocalExecutor:
    """Processes of this machine, started again when their time is over."""
    executor = submitit.LocalExecutor(job_files(), max_num_timeout=1000)
    executor.update_parameters(timeout_min=asked.minutes or 7 * 24 * 60, signal_delay_s=asked.signal)
    return executor


def job_files() -> Path:
    """A folder of this call's own: submitit names files after job ids, which come again.

    Raises UsageError for a % in its path, which submitit would fill in.
    """
    if "%" in str(RUNS):
        raise UsageError(f"SGLR_OUT = '{RUNS.parent}': expected a folder without % in its path, for a grid.")
    return RUNS / ".grid" / f"{time.strftime('%Y-%m-%d-%H%M%S')}-{os.getpid()}"


def slurm(asked: argparse.Namespace) -> submitit.SlurmExecutor:
    """Jobs of a Slurm cluster, requeued when their time is over or others go first.

    Raises UsageError without Slurm, and without its accounting, by which submitit learns how a job ended.
    """
    try:
        executor = submitit.SlurmExecutor(job_files(), max_num_timeout=1000)
    except RuntimeError as error:
        raise UsageError(f"--slurm: {error}; without it the runs are done on this machine.") from error
    sacct = subprocess.run(["sacct", "--noheader", "--jobs", "1"], capture_output=True, text=True)
    if sacct.returncode:
        raise UsageError(
            f"--slurm: sacct does not answer ({sacct.stderr.strip()}), so a job that dies would not be noticed. "
            "Expected Slurm with accounting; without it, get a machine from Slurm and call this there without --slurm."
        )
    executor.update_parameters(
        job_name="sglr", time=asked.minutes or 240, signal_delay_s=asked.signal, gpus_per_node=asked.gpus,
        cpus_per_task=asked.cpus, ntasks_per_node=1, array_parallelism=asked.workers or 1000,
        additional_parameters={name: value or True for name, value in asked.s} | dict(requeue=True),
        **({"partition": asked.partition} if asked.partition else {}),
    )  # fmt: skip
    return executor


def show(tasks: list[jobs.Task], estimate: cost.Forecast | None = None) -> None:
    """Print the runs and their states, the ends of the logs of those that failed, and the sum of the time left.

    What is an estimate has a ~ before it, and the last line says what it rests on.
    """
    found = status.states(tasks, estimate)
    width = max([len(task.config.title) for task in tasks], default=0)
    for task, (kind, epoch, left, guessed) in zip(tasks, found, strict=True):
        at = f"epoch {epoch}/{task.config.epochs}" * (kind != "missing")
        holder = lease.holder(RUNS / task.config.id)
        more = f"  {clock(left, guessed)} left" + f"  claimed by {holder}" * bool(holder)
        print(f"{task.config.title:{width}}  {task.config.id}  {kind:7}  {at:13}{more * (kind != 'done')}".rstrip())
    for task, state in zip(tasks, found, strict=True):
        if state.kind == "failed":
            print(runs.failed(task.config))
    guessed = any(state.guessed for state in found)
    left = clock(sum(state.left or 0 for state in found), guessed)
    some = "at least " * any(state.left is None for state in found)
    print(f"{len(tasks)} runs: {summary(Counter(state.kind for state in found))}; {some}{left} of work left")
    if guessed:
        print(estimate)


def summary(counts: Counter) -> str:
    return ", ".join(f"{counts[kind]} {kind}" for kind in status.KINDS)


def clock(seconds: float | None, guessed: bool = False) -> str:
    """'0:01:02', '~3.1 h' where that is an estimate, or '?'."""
    if guessed:
        return f"~{cost.spoken(seconds)}"
    return "?" if seconds is None else str(timedelta(seconds=round(seconds)))


if __name__ == "__main__":
    sys.exit(main())
