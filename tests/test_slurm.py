"""The grid on a real Slurm of two machines, which slurm.sh puts up on this one; `make slurm` asks for it.

Whatever happens to the jobs, the command ends with what two runs and their student have without Slurm, bit for bit.
"""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from test_grid import TABLES, command

from sglrlib.store import checkpoint, log

pytestmark = pytest.mark.skipif(not os.environ.get("SGLR_SLURM"), reason="make slurm runs it, as root, on Debian")
ASKED = dict(
    rows="KD-SWA", epochs=30, train_size=60, val_size=40, test_size=40, attacks="pgd_2, apgd_ce", attack_images=10
)  # fmt: skip
RUN = ["run", str(TABLES), *[word for name, value in ASKED.items() for word in ("-p", name, str(value))]]
SLURM = ["--slurm", "--gpus", "0", "--cpus", "1", "--minutes", "10", "--signal", "60"]


def sh(text: str) -> str:
    """What a shell command prints. Raises CalledProcessError, with what it says, where it fails."""
    ended = subprocess.run(text, shell=True, capture_output=True, text=True)
    assert ended.returncode == 0, f"{text}: {ended.stdout}{ended.stderr}"
    return ended.stdout.strip()


def machines(words: str) -> None:
    # To a file: who reads its output would wait for the daemons to end.
    sh(f"{Path(__file__).with_name('slurm.sh')} {words} > /tmp/slurm.sh.log 2>&1 || (cat /tmp/slurm.sh.log; false)")


@pytest.fixture(scope="module", autouse=True)
def slurm():
    machines("install")
    machines("start")
    yield
    machines("stop")


@pytest.fixture(scope="module")
def peace(tmp_path_factory):
    """What the runs have when nothing happens to them, without Slurm."""
    folder = tmp_path_factory.mktemp("peace")
    assert command(folder, *RUN).wait() == 0, (folder / "said").read_text()
    return found(folder)


def halted(store: Path, kind: str, wait_for) -> tuple[Path, subprocess.Popen, str]:
    """The command at work on Slurm, a run of a kind halted after its first epoch: its folder, the command, the job."""
    process = command(store, *RUN, *SLURM)

    def begun() -> list[Path]:
        return [folder for folder in (store / "runs").glob(f"digits-{kind}-*") if log.last_epoch(folder)]

    wait_for(begun, process)
    (folder,) = begun()
    sh(f"scancel --signal STOP {job(folder)}")
    assert log.last_epoch(folder) < ASKED["epochs"]
    return folder, process, job(folder)


def job(folder: Path) -> str:
    """The id of the job that a run was last given to."""
    return next(line["job"] for line in log.newest_first(folder) if "job" in line)


def state(number: str) -> str:
    """What Slurm says of a job."""
    return sh(f"scontrol show job {number}")


def said(folder: Path) -> str:
    return (folder / "said").read_text()


def found(store: Path) -> dict:
    """Of each run: its curve, its flags under each attack, and its weights."""
    runs = {}
    for folder in sorted((store / "runs").glob("digits-*")):
        result = json.loads((folder / "result.json").read_text())
        flags = [[w, c, entry["flags"]] for w, columns in result["evaluations"].items() for c, entry in columns.items()]
        weights = {which: checkpoint.weights(folder, which, folder.name) for which in ("best", "last")}
        runs[folder.name] = result["curve"], sorted(flags), weights
    return runs


def ends_as(process: subprocess.Popen, store: Path, peace: dict) -> bool:
    """Whether the command ends well, each epoch done once, and with what peace has."""
    assert process.wait() == 0, said(store)
    for folder in (store / "runs").glob("digits-*"):
        assert len(log.epoch_seconds(folder)) == ASKED["epochs"] and not log.failure(folder)
    here = found(store)
    same = here.keys() == peace.keys() and all(here[run][:2] == peace[run][:2] for run in peace)
    return same and all(
        torch.equal(tensor, peace[run][2][which][name])
        for run in peace for which in ("best", "last") for name, tensor in here[run][2][which].items()
    )  # fmt: skip


def test_to_the_end(tmp_path, peace):
    """What is asked for is passed on, a flag of sbatch too: the jobs are held until they are released."""
    options = "--gpus 1 --partition low --workers 1 -s account lab -s hold".split()
    process, shown = command(tmp_path, *RUN, *SLURM, *options, ""), []
    while process.poll() is None:
        for held in re.findall(r"(\d+) JobHeldUser", sh("squeue --noheader --format '%A %r'")):
            shown.append(state(held))
            sh(f"scontrol release {held}")
        time.sleep(0.1)
    assert ends_as(process, tmp_path, peace)
    assert "3 runs, 3 of them to do, 1 at a time" in said(tmp_path)
    assert ["ArrayTaskThrottle=1" in one for one in shown] == [True, False]  # two teachers as one array, the student
    for word in ("Account=lab", "Partition=low", "TimeLimit=00:10:00", "Requeue=1", "CPUs/Task=1", "gres:gpu:1"):
        assert all(word in one for one in shown), word


@pytest.mark.parametrize(
    ("options", "reason"),
    [(["--partition", "gpux"], "invalid partition"), (["-s", "account", "nobody"], "Invalid account")],
)
def test_what_slurm_does_not_take_is_said_in_its_words(tmp_path, options, reason):
    process = command(tmp_path, *RUN, *SLURM, *options)
    assert process.wait() == 2
    assert "UsageError: Slurm does not take the jobs: " in said(tmp_path) and reason in said(tmp_path)


def test_at_its_limit_of_time_a_run_is_queued_again(tmp_path, peace, wait_for, fault):
    """The limit is set to the minute before which Slurm warns, and taken back once the job starts again.
    Until then the run does hardly anything.
    """
    folder, process, number = halted(tmp_path, "kd_at", wait_for)
    sh(f"scontrol update jobid={number} timelimit=1")

    def started_again() -> bool:
        for word, seconds in (("CONT", 0.05), ("STOP", 0.5)):  # not by scancel, whose signals overtake each other
            subprocess.run(["pkill", f"-{word}", "--full", "^/[^ ]*python.* -m submitit.core._submit"])
            time.sleep(seconds)
        return "Restarts=1" in state(number)

    wait_for(started_again, process)
    assert 0 < log.last_epoch(folder) < ASKED["epochs"]
    sh(f"scontrol update jobid={number} timelimit=10")
    fault(lost=not ends_as(process, tmp_path, peace))
    assert "Caught signal SIGUSR2" in "".join(path.read_text() for path in tmp_path.glob("runs/.grid/*/*_log.err"))


def test_a_run_makes_way_for_others(tmp_path, peace, wait_for, fault):
    folder, process, number = halted(tmp_path, "kd_at", wait_for)
    other = sh("sbatch --parsable --partition high --nodes 2 --exclusive --output /dev/null --wrap 'sleep 1'")
    wait_for(lambda: "Restarts=1" in state(number), process)
    assert 0 < log.last_epoch(folder) < ASKED["epochs"]
    fault(lost=not ends_as(process, tmp_path, peace))
    assert "COMPLETED" in state(other)


@pytest.fixture(scope="module")
def bereft(tmp_path_factory, wait_for):
    """A grid one of whose machines is lost: its store, the run that was there, the command at work.

    Another machine takes such a run over after two minutes without a sign of life: other tests run meanwhile.
    """
    store = tmp_path_factory.mktemp("bereft")
    folder, process, number = halted(store, "kd_at", wait_for)
    lost = re.search(r"\bNodeList=(n\d)", state(number))[1]
    machines(f"down {lost}")
    wait_for(lambda: re.search(r"JobState=RUNNING[^$]* Restarts=1", state(number)), process)
    machines(f"up {lost}")
    return store, folder, process


def test_a_run_whose_machine_is_lost_is_queued_again(bereft):
    _, folder, process = bereft
    assert 0 < log.last_epoch(folder) < ASKED["epochs"] and process.poll() is None


def test_a_job_that_is_cancelled_is_sent_again(tmp_path, peace, wait_for, fault):
    folder, process, number = halted(tmp_path, "kd_at", wait_for)
    sh(f"scancel {number}")
    fault(lost=not ends_as(process, tmp_path, peace))
    assert "its worker ended, another one goes on" in said(tmp_path) and job(folder) != number


def test_stopped_and_called_again_the_command_takes_up_its_jobs(tmp_path, peace, wait_for, fault):
    folder, process, number = halted(tmp_path, "pgd_at", wait_for)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait() == 130
    assert "go on; to end them: scancel " in said(tmp_path) and number in said(tmp_path)
    again = command(tmp_path, *RUN, *SLURM)
    wait_for(lambda: " of them to do, all at a time" in said(tmp_path).split("scancel")[1], again)
    sh(f"scancel --signal CONT {number}")
    fault(lost=not ends_as(again, tmp_path, peace))
    assert job(folder) == number


def test_a_controller_that_is_away_between_two_waves(tmp_path, peace, wait_for, fault):
    _, process, _ = halted(tmp_path, "pgd_at", wait_for)
    machines("down slurmctld")
    sh("pkill -CONT --full submitit.core._submit")
    wait_for(lambda: "Slurm does not answer, asked again in 10 s" in said(tmp_path), process)
    machines("up slurmctld")
    fault(lost=not ends_as(process, tmp_path, peace))


def test_and_goes_on_on_another_machine(bereft, peace, fault):
    store, folder, process = bereft
    fault(lost=not ends_as(process, store, peace))
    assert {line["host"] for line in log.newest_first(folder) if "host" in line} == {"n1", "n2"}


def test_without_accounting_it_is_refused(tmp_path):
    machines("start noacct")
    assert command(tmp_path, *RUN, *SLURM).wait() == 2
    assert "--slurm: sacct does not answer (" in said(tmp_path) and "accounting storage is disabled" in said(tmp_path)
