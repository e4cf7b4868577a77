"""The grid: a notebook's runs listed, and done by workers of every kind, whatever happens to them."""

import dataclasses
import json
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from statistics import fmean

import nbformat
import pytest
import submitit
import torch
from nbformat.v4 import new_code_cell, new_notebook
from shell import execute
from submitit.core.utils import FailedSubmissionError

from sglrlib import __main__, device
from sglrlib.__main__ import main
from sglrlib.paths import ROOT
from sglrlib.show import plan
from sglrlib.store import lease, log
from sglrlib.training import jobs, runs, status
from sglrlib.training.status import State

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TABLES, BLACK_BOX = (ROOT / "notebooks" / f"{name}.ipynb" for name in ("02_main_tables", "08_black_box"))
SMALL = dict(epochs=3, train_size=60, val_size=40, test_size=40, attacks="pgd_2, apgd_ce", attack_images=10)
ARGUMENTS = [word for name, value in SMALL.items() for word in ("-p", name, str(value))]


def command(store: Path, *arguments, **variables) -> subprocess.Popen:
    """python -m sglrlib in a process group of its own, on the store below a folder; what it prints goes to a file."""
    with open(store / "said", "a") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "sglrlib", *arguments], stdout=said, stderr=subprocess.STDOUT, cwd=store,
            env=os.environ | dict(SGLR_OUT=str(store), OMP_NUM_THREADS="1") | variables, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
        )  # fmt: skip


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebooks_runs_are_known_without_computing_anything(store, notebook):
    tasks = pickle.loads(pickle.dumps(plan.tasks(notebook, {})))  # as workers get them
    assert bool(tasks) == (notebook.stem not in ("00_tour", "11_theory"))  # these two ask for no runs
    assert len({task.config.id for task in tasks}) == len(tasks)
    assert all(task.lacking[0] == "training" for task in tasks)
    assert not runs.RUNS.exists()


def test_what_a_run_needs_is_a_task_of_its_own_and_comes_first(store):
    titles = [task.config.title for task in plan.tasks(TABLES, dict(rows="KD-SWA, PGD-AT"))]
    assert titles == ["Standard", "PGD-AT", "KD-SWA"]
    student = plan.tasks(TABLES, dict(rows="KD-AT"))[-1]
    assert student.needs == {teacher.id for teacher in student.config.teachers} and len(student.needs) == 2
    targets = plan.tasks(BLACK_BOX, {})
    assert [task.config.arch for task in targets] == ["cnn16", "cnn16", "cnn24", "cnn32"]
    sources = {task.config.id for task in targets[2:]}
    assert [task.needs for task in targets] == [sources, sources, set(), set()]


class Recording:
    """An executor that ends each task when it is asked to, and keeps what it was given."""

    def __init__(self):
        self.given, self.running = [], []

    def submit(self, task):
        self.given.append(task.config.title)
        self.running.append(future := Future())
        future.device = task.wanted[0].device
        return future


def test_no_more_than_so_many_at_once_and_none_before_what_it_needs(store, monkeypatch):
    tasks = plan.tasks(TABLES, dict(rows="KD-AT, KD-SWA, TRADES, AWP"))
    given = {}
    for at in (["", ""], None):
        executor, most = Recording(), []

        def end_the_first(seconds, running=executor.running, most=most):
            most.append(len(running))
            if running:
                running.pop(0).set_result("")

        monkeypatch.setattr(jobs.time, "sleep", end_the_first)
        assert jobs.send(tasks, executor, at=at, say=lambda line: None) == {}
        given[max(most)] = executor.given
    assert given == {
        2: ["Standard", "PGD-AT", "TRADES", "KD-AT", "KD-SWA", "AWP"],
        4: ["Standard", "PGD-AT", "TRADES", "AWP", "KD-AT", "KD-SWA"],
    }


def test_each_gpu_is_given_to_no_more_runs_than_asked_for(store, monkeypatch):
    monkeypatch.setattr(device, "gpu_trouble", lambda index=0: "")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert jobs.places("", 0) == jobs.places("cuda", 2) == ["cuda:0", "cuda:1"]
    assert jobs.places("", 3) == ["cuda:0", "cuda:1", "cuda:0"] and jobs.places("", 1) == ["cuda:0"]
    assert jobs.places("cuda:1") == ["cuda:1"] and jobs.places("cpu", 3) == [""] * 3
    tasks, executor, held = plan.tasks(TABLES, dict(rows="PGD-AT, TRADES, AWP, PGD-AT+LS")), Recording(), []

    def end_the_first(seconds):
        held.append([future.device for future in executor.running])
        if executor.running:
            executor.running.pop(0).set_result("")

    monkeypatch.setattr(jobs.time, "sleep", end_the_first)
    assert jobs.send(tasks, executor, at=jobs.places("cuda"), say=lambda line: None) == {}
    assert held == [["cuda:0", "cuda:1"], ["cuda:1"], ["cuda:0"], ["cuda:1"], []]


@pytest.mark.parametrize("visible", ["3,5", None])
def test_a_local_worker_sees_the_gpus_that_its_parent_sees(small, monkeypatch, visible):
    """submitit shows each local worker other ones: none, or the first."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    (here,), (elsewhere,) = (jobs.tasks([runs.Wanted(small(), {})], parent=parent) for parent in (os.getpid(), 0))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    dataclasses.replace(elsewhere, wanted=())()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""  # Slurm's own choice stays
    dataclasses.replace(here, wanted=())()
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == visible


def test_a_task_takes_as_many_threads_as_it_is_given(small):
    torch.set_num_threads(2)
    try:
        jobs.Task(small(), ())()
        assert torch.get_num_threads() == 2
        jobs.Task(small(), (), threads=1)()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(1)


def test_states_and_the_time_that_is_left(store, capsys, monkeypatch):
    tasks = plan.tasks(TABLES, SMALL | dict(rows="PGD-AT, PGD-AT+SGLR", seeds=2))
    assert status.states(tasks) == [State("missing", 0, None)] * 4
    done, judged, partial, failed = (runs.RUNS / task.config.id for task in tasks)
    assert tasks[0]() == ""
    runs.run(tasks[1].config, ["pgd_2"], device="cpu", say=lambda line: None)
    for folder, last in ((partial, {}), (failed, dict(failed="Diverged: nan"))):
        folder.mkdir()
        log.note(folder, epoch=1, seconds=2.0)
        log.note(folder, **last)
        (folder / "last.pt").touch()
    with open(partial / log.LOG, "a") as file:
        file.write('\n{"epoch": 2, "sec')  # cut off by a kill
    kinds = [(state.kind, state.epoch) for state in status.states(tasks)]
    assert kinds == [("done", 3), ("partial", 3), ("partial", 1), ("failed", 1)]
    assert tasks[0].lacking == [] and tasks[1].lacking == ["apgd_ce"]
    left = [state.left for state in status.states(tasks)]
    found = [json.loads((folder / "result.json").read_text())["evaluations"] for folder in (done, judged)]
    entries = [entry for those in found for columns in those.values() for entry in columns.items()]
    spent = {name: fmean(e["seconds"] for column, e in entries if column == name) for name in ("pgd_2", "apgd_ce")}
    assert left[0] == 0 and left[1] == pytest.approx(2 * spent["apgd_ce"])
    natural = fmean(entry["seconds"] for column, entry in entries if column == "natural")
    judging = 2 * (natural + sum(spent.values()))
    assert left[2] == left[3] == pytest.approx(2 * 2.0 + judging)  # two epochs of two seconds, and the judging
    assert main(["list", str(TABLES), *ARGUMENTS, "-p", "seeds", "2"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"PGD-AT\+SGLR  digits-pgd_at-self_guided-s0-\w+  partial  epoch 1/3 +\d:\d\d:\d\d left", said)
    assert f'failed: {failed.name}, whose log.jsonl ends in\n    {{"epoch": 1, "seconds": 2.0}}\n    {{"failed"' in said
    assert "4 runs: 1 done, 2 partial, 1 failed, 0 missing; 0:" in said
    assert main(["list"]) == 0
    assert "2 done, 1 partial, 1 failed, 0 missing" in capsys.readouterr().out
    monkeypatch.setattr(status, "pick_device", lambda device: "cuda")
    for folder in (done, judged):
        (folder / log.LOG).unlink()
    assert status.pace(tasks[0], runs.stored(tasks[0].config)) is None  # a CPU's pace says nothing of a GPU's


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["list", "notebooks/02_main_table.ipynb"], "is not known. Did you mean"),
        (["list", str(TABLES), "-p", "row", "all"], "parameter = 'row' is not known. Did you mean 'rows'?"),
        (["list", str(TABLES), "-p", "rows", ""], "no run is asked for: expected one or more rows"),
        (["list", str(TABLES), "-p", "rows", " , "], "' , ' names nothing: expected one or more names"),
        (["run", str(TABLES), "-p", "train", "False"], "train = False computes nothing"),
        (
            ["run", str(TABLES), "--workers", "-1"],
            "workers = -1 is out of range: expected at least 0; the nearest is 0",
        ),
        (["run", str(TABLES), "--minutes", "-1"], "minutes = -1 is out of range"),
        (["run", str(TABLES), "--slurm"], 'Could not detect "srun"'),
        (["run", str(TABLES), "-y", "[1]"], "-y = [1]: expected names and values"),
        (["list", str(TABLES), "-p", "rows"], "expected 2 arguments"),
        (["list", str(TABLES), "-p", "x=1;import os;y", "1"], "parameter = 'x=1;import os;y' is no name"),
        (["list", str(TABLES), "-p", "In", "1"], "parameter = 'In' is no name"),
        (["list", str(TABLES), "-y", "{1: 2}"], "parameter = '1' is no name"),
        (
            ["run", str(TABLES), "--minutes", "2"],
            "--minutes 2 with --signal 120: a worker would be warned of its end after 0 s, and may take 60 s to start "
            "and do an epoch. Expected --minutes 3 or more, or --signal 60 or less.",
        ),
    ],
)
def test_what_cannot_be_is_said_before_any_work(store, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PATH", "")  # without Slurm, also where it is installed
    try:
        code = main(arguments)
    except SystemExit as end:  # argparse's own
        code = end.code
    assert code == 2 and said in capsys.readouterr().err
    assert not runs.RUNS.exists()


def test_a_grid_interrupted_twice_ends_with_the_same_table(store, tmp_path, wait_for, fault):
    """On two workers: interrupted, killed with its workers, and called again; beside it, done here without any."""
    asked = SMALL | dict(epochs=15, rows="KD-SWA")
    tasks = plan.tasks(TABLES, asked)
    assert [task() for task in tasks] == [""] * 3
    table = execute(TABLES, **asked, train=False)
    assert "KD-SWA" in table and "missing" not in table

    trouble = tmp_path / "trouble"
    trouble.mkdir()
    words = [word for name, value in asked.items() for word in ("-p", name, str(value))]
    grid = ["run", str(TABLES), *words, "--workers", "2"]

    def said() -> str:
        return (trouble / "said").read_text()

    def begun(kind: str) -> bool:
        return any(0 < log.last_epoch(folder) < 15 for folder in (trouble / "runs").glob(f"digits-{kind}-*"))

    for kind, end in (("pgd_at", signal.SIGINT), ("kd_at", signal.SIGKILL)):  # a teacher's run, then a student's
        process = command(trouble, *grid)
        wait_for(lambda kind=kind: begun(kind), process)
        os.killpg(process.pid, end)
        assert process.wait() != 0
    assert command(trouble, *grid).wait() == 0, said()
    assert "3 runs, 3 of them to do, 2 at a time" in said() and "3 runs: 3 done, 0 partial, 0 failed" in said()
    to_do = [int(number) for number in re.findall(r"(\d) of them to do", said())]
    assert to_do[0] == 3 >= to_do[1] > to_do[2] == 1, to_do
    for folder in (trouble / "runs").glob("digits-*"):
        assert len(log.epoch_seconds(folder)) == 15 and log.failure(folder) == ""
    (store / "runs").rename(store / "peace")
    (trouble / "runs").rename(store / "runs")
    fault(lost=execute(TABLES, **asked, train=False) != table)


def test_one_failed_run_neither_stops_the_others_nor_hides(store, capsys, fault):
    asked = SMALL | dict(rows="PGD-AT, PGD-AT+LS, PGD-AT+SGLR")
    tasks = plan.tasks(TABLES, asked)
    assert tasks[0]() == ""
    config = tasks[1].config
    folder = runs.RUNS / config.id
    folder.mkdir(parents=True)
    (folder / "last.pt").write_bytes(b"garbage")
    assert main(["run", str(TABLES), *ARGUMENTS, "-p", "rows", asked["rows"], "--workers", "2"]) == 1
    said = capsys.readouterr().out
    assert f"failed: {config.id}, whose log.jsonl ends in" in said
    assert '"failed": "Damaged: ' in said and "3 runs: 2 done, 0 partial, 1 failed, 0 missing" in said
    table = execute(TABLES, **asked, train=False)
    assert re.search(r"PGD-AT\+LS +seed 0 +.*failed", table) and f"failed: {config.id}" in table
    assert "cannot be judged here (at chance level: PGD-AT seed 0, PGD-AT+SGLR seed 0)" in table  # two epochs are few

    (folder / "last.pt").unlink()
    assert [state.kind for state in status.states(tasks)] == ["done", "failed", "done"]
    assert tasks[1]() == ""
    fault(lost=[state.kind for state in status.states(tasks)] != ["done"] * 3)


def worker(folder: Path) -> int:
    """The process that works on a run."""
    return int(re.search(r"process (\d+)", lease.holder(folder))[1])


@pytest.fixture
def pool():
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        yield executor


class Dying:
    """An executor whose workers do an epoch of what they are given, or none, and die; the last one ends it."""

    def __init__(self, epochs):
        self.epochs = list(epochs)

    def submit(self, task):
        folder, future = runs.RUNS / task.config.id, Future()
        folder.mkdir(parents=True, exist_ok=True)
        if not self.epochs:
            future.set_result(task())
            return future
        log.note(folder, epoch=log.last_epoch(folder) + self.epochs.pop(0), seconds=1.0)
        future.set_exception(RuntimeError("the job has not produced any output"))
        return future


@pytest.mark.parametrize(
    ("epochs", "ends"), [([1, 1, 1, 1], True), ([1, 0, 1, 0], True), ([0, 0], False), ([1, 0, 0], False)]
)
def test_a_worker_that_dies_is_replaced_as_long_as_there_is_progress(store, epochs, ends, fault):
    (task,) = plan.tasks(TABLES, SMALL | dict(rows="PGD-AT"))
    said = []
    failures = jobs.send([task], Dying(epochs), say=said.append)
    assert (not failures) == ends == (not task.lacking)
    assert sum("its worker ended, another one goes on" in line for line in said) == len(epochs) - (not ends)
    fault(lost=log.last_epoch(runs.RUNS / task.config.id) < (3 if ends else sum(epochs)))


def test_a_job_that_slurm_has_queued_again_is_waited_for(store, monkeypatch):
    """After the loss of its machine it counts as failed until it starts elsewhere; it is not sent a second time."""
    lost, again, sent = Future(), Future(), []
    lost.set_exception(RuntimeError("has not produced any output (state: NODE_FAIL)"))
    again.set_result("")
    in_queue = iter([None, lost, lost, again])  # when it is handed over, and each time it seems dead
    monkeypatch.setattr(jobs, "queued", lambda task: next(in_queue))
    monkeypatch.setattr(jobs, "PAUSE_S", 0)

    class Losing:
        def submit(self, task):
            sent.append(task)
            return lost

    assert jobs.send(plan.tasks(TABLES, SMALL | dict(rows="PGD-AT")), Losing(), say=lambda line: None) == {}
    assert len(sent) == 1 and next(in_queue, "all asked") == "all asked"


def test_only_where_nothing_is_lacking_the_command_succeeds(store, monkeypatch, capsys):
    monkeypatch.setattr(jobs, "send", lambda *_, **__: {})
    assert main(["run", str(TABLES), *ARGUMENTS]) == 1
    assert "0 done, 0 partial, 0 failed" in capsys.readouterr().out


def test_any_executor_will_do_and_a_worker_that_dies_is_noted(store, pool, wait_for, fault):
    tasks = plan.tasks(TABLES, SMALL | dict(rows="PGD-AT, PGD-AT+SGLR"), threads=1)
    assert jobs.send(tasks, pool, say=lambda line: None) == {}
    assert [state.kind for state in status.states(tasks)] == ["done", "done"]

    (late,) = plan.tasks(TABLES, SMALL | dict(rows="PGD-AT+LS", epochs=2000))
    sent = []

    class Killing:
        def submit(self, task):
            sent.append(pool.submit(task))
            wait_for((runs.RUNS / task.config.id / "last.pt").exists)
            os.kill(worker(runs.RUNS / task.config.id), signal.SIGKILL)
            return sent[-1]

    with pytest.raises(BrokenProcessPool):
        jobs.send([late], Killing(), say=lambda line: None)
    failure = runs.failed(late.config)
    assert failure.startswith(f"failed: {late.config.id}, whose log.jsonl ends in") and "BrokenProcessPool" in failure
    (state,) = status.states([late])
    fault(lost=state.kind != "failed" or state.epoch < 1)


def test_submitit_starts_a_timed_out_run_again_and_it_resumes(store, wait_for, fault):
    """Warned of its end, as at a time limit, once its first epoch is done; to submitit any time is late here."""
    (task,) = plan.tasks(TABLES, SMALL | dict(rows="PGD-AT+SGLR", attacks="pgd_1", epochs=100), threads=1)
    folder = runs.RUNS / task.config.id
    executor = submitit.LocalExecutor(store / "jobs", max_num_timeout=1000)
    executor.update_parameters(timeout_min=10)

    class Warning:
        def submit(self, task):
            job = executor.submit(task)
            wait_for(lambda: log.last_epoch(folder) > 0)
            os.kill(worker(folder), signal.SIGUSR2)
            return job

    assert jobs.send([task], Warning(), say=lambda line: None) == {}
    said = "".join(path.read_text() for path in (store / "jobs").glob("*_log.err"))
    starts = [line for line in log.newest_first(folder) if "started" in line]
    assert said.count("Caught signal SIGUSR2") == said.count("this job is timed-out") == len(starts) - 1 >= 1
    noted = [line["epoch"] for line in log.newest_first(folder) if "epoch" in line]
    fault(lost=max(noted) != 100 or len(noted) > 100 + len(starts) - 1)  # no more than the one in progress


def test_a_controller_that_is_out_for_a_while_is_asked_again(store, monkeypatch):
    class Away:
        def __init__(self, times):
            self.times = times

        def submit(self, task):
            self.times -= 1
            if self.times >= 0:
                raise FailedSubmissionError("sbatch: error: Unable to contact slurm controller (connect failure)")
            return "the job"

    tasks, said = plan.tasks(TABLES, SMALL | dict(rows="PGD-AT")), []
    monkeypatch.setattr(jobs, "PAUSE_S", 0)
    assert jobs.hand_over(tasks, Away(2), said.append) == ["the job"]
    assert len(said) == 2 and "Slurm does not answer, asked again in 0 s: sbatch: error: Unable" in said[0]
    monkeypatch.setattr(jobs, "OUTAGE_S", -1)
    with pytest.raises(FailedSubmissionError):
        jobs.hand_over(tasks, Away(1), said.append)


def test_a_place_whose_name_submitit_would_fill_in_is_refused(store, monkeypatch, capsys):
    monkeypatch.setattr(__main__, "RUNS", store / "100%j" / "runs")
    assert main(["run", str(TABLES), *ARGUMENTS]) == 2
    assert f"SGLR_OUT = '{store}/100%j': expected a folder without % in its path" in capsys.readouterr().err


def test_a_start_without_progress_is_not_queued_again(store):
    (task,) = plan.tasks(TABLES, SMALL | dict(rows="PGD-AT"))
    folder = runs.RUNS / task.config.id
    jobs._began[task.config.id] = jobs.how_far(task)
    assert task.checkpoint() is None and "no epoch and no attack ended before the limit" in log.failure(folder)
    log.note(folder, epoch=1, seconds=1.0)
    assert task.checkpoint().function is task
    jobs._began[task.config.id] = jobs.how_far(task)
    assert task.checkpoint() is None


def test_a_notebook_from_elsewhere_is_executed_only_if_it_is_trusted(tmp_path, capsys):
    path = tmp_path / "theirs.ipynb"
    cell = new_code_cell(f"import os; os.mkdir({str(tmp_path / 'done')!r})\nnotebook.gather({{}})")
    nbformat.write(new_notebook(cells=[cell], metadata=nbformat.read(TABLES, 4).metadata), path)
    assert main(["list", str(path)]) == 2 and "lies outside of" in capsys.readouterr().err
    assert not (tmp_path / "done").exists()
    with pytest.raises(NameError):  # its cells were executed: this one lacks an import
        main(["list", str(path), "--trust"])
    assert (tmp_path / "done").exists() and f"executing the cells of {path}" in capsys.readouterr().err
