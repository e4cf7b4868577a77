"""Faults, each really provoked: every one ends in a clear error or goes on cleanly, and nothing computed is lost."""

import errno
import itertools
import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from shell import execute

from sglrlib import paths
from sglrlib.checks import UsageError
from sglrlib.config import make_config
from sglrlib.method import attacks
from sglrlib.method.attacks import chain
from sglrlib.method.autoattack import Part
from sglrlib.method.files import DataError
from sglrlib.paths import ROOT
from sglrlib.show import notebook, tables
from sglrlib.store import checkpoint, lease, log, results
from sglrlib.store.checkpoint import Damaged, StoreError
from sglrlib.store.results import CHECKPOINTS
from sglrlib.training import jobs, networks, runs, status
from sglrlib.training.columns import attacked
from sglrlib.training.runs import Wanted
from sglrlib.training.step import Step
from sglrlib.training.train import Diverged, train

SILENT = dict(say=lambda line: None, device="cpu")
OWN = SimpleNamespace(train=True, device="cpu", speed="fast", publish=False)  # of a notebook's parameters
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([  # whatever takes long to import here, or else each child takes seconds for it
    "pytest", "IPython.core.history", "IPython.core.interactiveshell", "papermill.iorw", "papermill.parameterize",
    "sklearn.datasets", "torchvision", "sglrlib.training.jobs", "sglrlib.show.notebook", "sglrlib.show.tables",
    "sglrlib.show.page",
])  # fmt: skip


def start(function, store: Path, config, *arguments):
    """A process that does function(config, ...) on the store below a folder."""
    process = PROCESSES.Process(target=in_store, args=(function, store, config.flat(), *arguments), daemon=True)
    process.start()
    return process


def in_store(function, store: Path, flat: dict, *arguments):
    torch.set_num_threads(1)
    for module in (results, runs, networks, tables, jobs, status):
        module.RUNS = store / "runs"
    function(make_config(**flat), *arguments)


def finish(*what) -> int:
    process = start(*what)
    process.join()
    return process.exitcode


def trained(config, wanted=()):
    runs.run(config, wanted, **SILENT)


def judged(config, iterations):
    """An AutoAttack with few iterations, the same in each process."""
    attacks.Part = lambda eps, part, **named: Part(eps, part, iterations[part], **named)
    runs.run(config, ["autoattack"], **SILENT)


def epochs_kept(folder: Path) -> int:
    """How many epochs a run in any state goes on from."""
    for name in ("last.pt", "previous.pt"):
        if (folder / name).exists():
            return len(checkpoint.load(folder / name)["curve"])
    return 0


def same(a, b) -> bool:
    """Equal to the last bit: tensors, and dictionaries and lists of them."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def same_run(config, one: Path, other: Path) -> bool:
    """Whether two stores have the same weights, momentum, label table, curve and flags of a finished run."""
    folders = [store / "runs" / config.id for store in (one, other)]
    last = [checkpoint.load(folder / "last.pt") for folder in folders]
    best = [checkpoint.load(folder / f"best-{last[0]['best']}.pt") for folder in folders]
    values = [json.loads((folder / "result.json").read_text()) for folder in folders]
    flags = [{w: {c: e["flags"] for c, e in v["evaluations"][w].items()} for w in CHECKPOINTS} for v in values]
    return same(*last) and same(*best) and flags[0] == flags[1] and values[0]["curve"] == values[1]["curve"]


# Kills.


def kill(process) -> bool:
    """Whether a process was still at work when it was killed."""
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("changes", [dict(), dict(method="trades", arch="wrn10_1", augment="crop_flip")])
def test_training_killed_at_random_moments(small, tmp_path, fault, changes):
    """Each time up to two epochs further, at whatever it is doing then: as it starts, as it trains, as it saves."""
    config = small(**(dict(epochs=30, noise_rate=0.3) | changes))
    folder = tmp_path / "killed/runs" / config.id
    moments, kept = random.Random(0), 0
    for _ in range(6):
        goal = log.last_epoch(folder) + moments.randint(0, 2)
        process = start(trained, tmp_path / "killed", config)
        while log.last_epoch(folder) < goal and process.is_alive():
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.1))
        assert kill(process)
        before, kept = kept, epochs_kept(folder)
        fault(lost=kept < before)
    assert 0 < kept < config.epochs, "no kill in the middle: the test shows nothing"
    for side in ("whole", "killed"):
        assert finish(trained, tmp_path / side, config) == 0
    assert same_run(config, tmp_path / "whole", tmp_path / "killed")


def test_an_autoattack_cascade_killed_at_random_moments(small, tmp_path, fault):
    """After each of its columns, two checkpoints' natural accuracy and four parts, or in the middle of the next one."""
    config = small(noise_rate=0.0, epochs=8, train_size=300)
    iterations = dict(apgd_ce=20, apgd_t=10, fab_t=10, square=400)
    for side in ("whole", "killed"):
        assert finish(trained, tmp_path / side, config) == 0
    assert finish(judged, tmp_path / "whole", config, iterations) == 0
    path, moments = tmp_path / "killed/runs" / config.id / "result.json", random.Random(1)

    def columns() -> int:
        evaluations = results.read(config, path).evaluations
        return sum(len(evaluations[which]) for which in CHECKPOINTS)

    before, kills, busy = columns(), 0, True
    while busy:
        process = start(judged, tmp_path / "killed", config, iterations)
        while columns() <= before and process.is_alive():
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.1))
        busy = kill(process)
        kills += busy
        fault(lost=columns() < before)
        before = columns()
    assert kills > 2, "hardly a kill in the middle: the test shows nothing"
    assert same_run(config, tmp_path / "whole", tmp_path / "killed")
    assert set(results.read(config, path).evaluations["last"]) == set(chain("autoattack"))


def killed_at(config, step: int):
    """Train and judge; dead at that step of the writing of files: half-written, written, before and after the move."""
    steps = itertools.count(1)

    def tick():
        if next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    class Halting:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, content):
            self.file.write(content[: len(content) // 2])
            self.file.flush()
            tick()
            self.file.write(content[len(content) // 2 :])

    move = Path.replace

    def replace(source, target):
        tick()
        move(source, target)
        tick()

    Path.replace = replace
    checkpoint.open = lambda *arguments: Halting(open(*arguments))
    trained(config, ["pgd_2"])


def test_killed_at_every_step_of_every_write(small, store, tmp_path, fault):
    """Of config.json, the best and the last checkpoint, the one before it, the curve and the results."""
    config = small(epochs=2, arch="cnn4", train_size=20, val_size=10, test_size=10, train_eval_size=10)
    assert finish(trained, tmp_path / "whole", config, ["pgd_2"]) == 0
    for step in itertools.count(1):
        if finish(killed_at, store, config, step) == 0:
            break
        trained(config, ["pgd_2"])
        fault(lost=not same_run(config, tmp_path / "whole", store))
        left = {path.name for path in (store / "runs" / config.id).iterdir()}
        best = checkpoint.load(store / "runs" / config.id / "last.pt")["best"]
        assert left <= {
            "config.json",
            "curve.csv",
            "last.pt",
            f"best-{best}.pt",
            "result.json",
            "log.jsonl",
            ".lock",
        }, step
        shutil.rmtree(store / "runs")
    assert step > 30


def filmed(config, film: Path):
    """Train and judge, and keep what the run's folder holds before each change of it, as a loss of power finds it: of
    each file its content, and what of it was flushed to the disk.
    """
    folder, frames, flushed, fsync, looking = runs.RUNS / config.id, [], {}, os.fsync, threading.Lock()

    def look(event, arguments):
        changes = event in ("open", "os.rename", "os.remove", "os.link", "fsync")
        if not changes or not str(arguments[0]).startswith(str(folder)) or not looking.acquire(blocking=False):
            return  # not while it looks itself
        files = {}
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            with open(path, "rb") as file:
                content, safe = file.read(), flushed.get(os.fstat(file.fileno()).st_ino, b"")
                files[path.name] = content, safe if content.startswith(safe) else b""  # else another file's, long gone
        if files not in frames:
            frames.append(files)
        looking.release()

    def flush(descriptor):
        look("fsync", [folder])
        fsync(descriptor)
        flushed[os.fstat(descriptor).st_ino] = Path(f"/proc/self/fd/{descriptor}").read_bytes()

    os.fsync = flush
    sys.addaudithook(look)
    trained(config, ["pgd_2"])
    film.write_bytes(pickle.dumps(frames))


def left_by_a_loss_of_power(files: dict[str, tuple[bytes, bytes]]):
    """Each folder that may be found afterwards: a journal keeps names in order, but of what was not flushed to the disk
    there may be nothing, zeros or all.
    """
    versions = {name: {all_: 0, kept: 0, kept.ljust(len(all_), b"\0"): 0} for name, (all_, kept) in files.items()}
    for contents in itertools.product(*versions.values()):
        yield dict(zip(files, contents, strict=True))


def test_a_loss_of_power_at_every_moment(small, store, tmp_path, monkeypatch, fault):
    config = small(epochs=2, arch="cnn4", train_size=20, val_size=10, test_size=10, train_eval_size=10)
    assert finish(filmed, tmp_path / "whole", config, tmp_path / "film") == 0
    monkeypatch.setattr(lease, "NAMELESS_S", 0.0)
    folder, tried = store / "runs" / config.id, []
    for files in pickle.loads((tmp_path / "film").read_bytes()):
        for left in left_by_a_loss_of_power(files):
            if left in tried:
                continue
            tried.append(left)
            folder.mkdir(parents=True)
            for name, content in left.items():
                (folder / name).write_bytes(content)
            trained(config, ["pgd_2"])
            fault(lost=not same_run(config, tmp_path / "whole", store))
            shutil.rmtree(folder)
    assert len(tried) > 50


# Disks, files.


@pytest.mark.parametrize("kind", ["tmpfs", "failing write"])
def test_a_full_disk(small, tmp_path, store, monkeypatch, fault, kind):
    config = small(epochs=6)
    assert finish(trained, tmp_path / "whole", config) == 0
    full = tmp_path / "full"
    full.mkdir()
    if kind == "tmpfs":
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=500k", "none", full], capture_output=True)
        if mounted.returncode:
            pytest.skip("this machine does not let us mount a small tmpfs; the failing write is tested beside it")
    for module in (results, runs, networks, tables, jobs, status):
        monkeypatch.setattr(module, "RUNS", full / "runs")
    try:
        said = []
        with monkeypatch.context() as failing:
            if kind == "failing write":
                calls = itertools.count()

                def fsync(fd):
                    if next(calls) == 8:
                        raise OSError(errno.ENOSPC, "No space left on device")

                failing.setattr(checkpoint.os, "fsync", fsync)
            assert runs.attempt(Wanted(config, attacked(config, ()), device="cpu"), said.append) is None
        assert "No space left on device" in said[-1]
        kept = epochs_kept(full / "runs" / config.id)
        assert not [*(full / "runs" / config.id).glob(".*.part-*")]  # it would only take space
        assert 0 < kept < 6
        if kind == "tmpfs":
            subprocess.run(["mount", "-o", "remount,size=20m", full], check=True)
        said.clear()
        assert runs.attempt(Wanted(config, attacked(config, ()), device="cpu"), said.append)
        assert f"epoch {kept + 1}/6" in said[1] and not log.failure(full / "runs" / config.id)
        fault(lost=not same_run(config, tmp_path / "whole", full))
    finally:
        if kind == "tmpfs":
            subprocess.run(["umount", full], check=True)


@pytest.mark.parametrize("kind", ["read-only", "a file"])
def test_a_store_that_cannot_be_written_is_named_before_any_work(store, monkeypatch, fault, kind):
    """Also where all that is asked for is committed: the figure has to go somewhere."""
    place = store / "place"
    if kind == "a file":
        place.touch()
    else:
        place.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", place], capture_output=True).returncode:
            pytest.skip("this machine does not let us mount a read-only tmpfs; the file is tested beside it")
    monkeypatch.setattr(paths, "RUNS", place / "runs")
    try:
        with pytest.raises(UsageError, match=r"place/runs cannot be written: set SGLR_OUT to a folder that can be"):
            execute(ROOT / "notebooks/01_train_sglr.ipynb", train=False)
    finally:
        if kind == "read-only":
            subprocess.run(["umount", place], check=True)
    fault(lost=False)


class Bomb:
    """A pickle that leaves a file where it is executed."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def signed(values) -> bytes:
    """A checkpoint as checkpoint.save() would write it, of values that it would refuse to read."""
    path = Path("signed.pt").absolute()
    checkpoint.save(path, values)
    content = path.read_bytes()
    path.unlink()
    return content


DAMAGES = {
    "truncated": lambda content, bomb: content[: len(content) // 2],
    "one bit flipped": lambda content, bomb: content[:5000] + bytes([content[5000] ^ 1]) + content[5001:],
    "last bit flipped": lambda content, bomb: content[:-1] + bytes([content[-1] ^ 1]),
    "empty": lambda content, bomb: b"",
    "zeros": lambda content, bomb: bytes(len(content)),
    "a malicious pickle": lambda content, bomb: pickle.dumps(bomb),
    "a malicious checkpoint with the right digest": lambda content, bomb: signed(dict(model=bomb)),
}


def stopped(config, epoch: int):
    """Train until that epoch is saved."""
    folder = runs.RUNS / config.id

    class Stop(Exception):
        pass

    def report(row):
        if row["epoch"] == epoch:
            raise Stop

    folder.mkdir(parents=True)
    with pytest.raises(Stop):
        train(config, folder, report=report)
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_not_taken_but_the_one_before_it(small, store, tmp_path, monkeypatch, fault, damage):
    monkeypatch.chdir(tmp_path)
    config = small(epochs=6)
    assert finish(trained, tmp_path / "whole", config) == 0
    folder = stopped(config, 4)
    bomb = tmp_path / "executed"
    (folder / "last.pt").write_bytes(DAMAGES[damage]((folder / "last.pt").read_bytes(), Bomb(bomb)))
    said = []
    assert runs.attempt(Wanted(config, attacked(config, ()), device="cpu"), said.append)
    assert not bomb.exists()
    (line,) = [line for line in said if "last.pt" in line]
    assert line.endswith("The checkpoint before it is taken: epoch 3.")
    fault(lost=not same_run(config, tmp_path / "whole", tmp_path))


def test_a_damaged_checkpoint_never_takes_the_good_ones_place(small, store, monkeypatch, fault):
    """The resumed run is killed while it writes its first checkpoint."""
    config = small(epochs=6)
    folder = stopped(config, 4)
    (folder / "last.pt").write_bytes(b"garbage")

    def killed(path, values):
        raise SystemExit

    with monkeypatch.context() as context, pytest.raises(SystemExit):
        context.setattr(checkpoint, "save", killed)
        runs.run(config, (), **SILENT)
    fault(lost=epochs_kept(folder) != 3)


@pytest.mark.parametrize("damaged", ["last.pt", "best-3.pt"])
def test_the_checkpoint_before_the_last_keeps_its_own_best_weights(tmp_path, fault, damaged):
    """Of three epochs the first is the best until the third."""
    model = torch.nn.Linear(2, 2)
    for epoch, best in ((1, 1), (2, 1), (3, 3)):
        torch.nn.init.constant_(model.weight, epoch)
        curve = [dict(epoch=e) for e in range(1, epoch + 1)]
        checkpoint.save_epoch(tmp_path, "a run", dict(model=model), model, curve, best)
    (tmp_path / damaged).write_bytes(b"")
    said = []
    assert len(checkpoint.restore(tmp_path, "a run", dict(model=model), say=said.append)) == 2
    assert damaged in said[0] and (model.weight == 2).all()
    fault(lost=not (checkpoint.load(tmp_path / "best-1.pt")["model"]["weight"] == 1).all())


@pytest.mark.parametrize("damage", DAMAGES)
def test_without_any_readable_checkpoint_the_error_names_them_and_nothing_is_removed(
    small, store, tmp_path, monkeypatch, fault, damage
):
    monkeypatch.chdir(tmp_path)
    config = small()
    folder = stopped(config, 3)
    bomb = tmp_path / "executed"
    for name in ("last.pt", "previous.pt"):
        (folder / name).write_bytes(DAMAGES[damage]((folder / name).read_bytes(), Bomb(bomb)))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(Damaged, match=r"last.pt is .*No other checkpoint.* remove .* to train it again"):
        runs.run(config, (), **SILENT)
    after = {path: path.read_bytes() for path in folder.iterdir() if path in before}
    assert not bomb.exists()
    fault(lost=before != after)


def test_every_flipped_bit_is_seen(tmp_path):
    path, flips = tmp_path / "last.pt", random.Random(0)
    checkpoint.save(path, dict(weights=torch.randn(50), curve=[dict(epoch=1)]))
    content = bytearray(path.read_bytes())
    assert torch.load(path, weights_only=True)["curve"] == [dict(epoch=1)]  # any tool may read it
    for bit in flips.sample(range(8 * len(content)), 500):
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        with pytest.raises(Damaged):
            checkpoint.load(path)
        content[bit // 8] ^= 1 << bit % 8


def test_a_best_checkpoint_that_is_damaged_later_on(small, store, fault):
    config = small()
    result = runs.run(config, (), **SILENT)
    folder = runs.RUNS / config.id
    best = folder / f"best-{result.best_epoch}.pt"
    best.write_bytes(best.read_bytes()[:-7])
    with pytest.raises(Damaged, match=f"{best} is damaged"):
        networks.load_model(config, "best")
    assert not networks.load_model(config, "last").training
    fault(lost=runs.run(config, (), say=pytest.fail) != result)


def test_a_checkpoint_of_a_newer_version_is_left_alone(small, store, monkeypatch, fault):
    config = small()
    folder = stopped(config, 3)
    with monkeypatch.context() as newer:
        newer.setattr(checkpoint, "FORMAT", checkpoint.FORMAT + 1)
        checkpoint.save(folder / "last.pt", checkpoint.load(folder / "last.pt"))
    before = (folder / "last.pt").read_bytes()
    with pytest.raises(StoreError, match=r"last.pt was written by a newer version: expected format 1. Update, or set"):
        runs.run(config, (), **SILENT)
    fault(lost=before != (folder / "last.pt").read_bytes())


EDITS = {
    "a number": lambda text: text.replace('"wrong_labels": ', '"wrong_labels": 1'),
    "a flag": lambda text: text.replace('"flags": "40:', '"flags": "40:8', 1),
    "a comma": lambda text: text.replace(",", "", 1),
    "half of it": lambda text: text[: len(text) // 2],
    "all of it": lambda text: "",
    "its form": lambda text: "[]",
    "its configuration": lambda text: text.replace('"epochs": 4', '"epochs": 5'),
    "its digest": lambda text: text.replace('"sha256": "', '"sha256": "0'),
    "a key": lambda text: text.replace('"best_epoch"', '"best"'),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_result_that_was_edited_by_hand_is_refused_and_can_be_had_again(small, store, fault, edit):
    config = small()
    runs.run(config, ["pgd_2"], **SILENT)
    path = runs.RUNS / config.id / "result.json"
    written = json.loads(path.read_text())
    changed = EDITS[edit](path.read_text())
    assert changed != path.read_text()
    path.write_text(changed)
    with pytest.raises(Damaged, match=r"result.json (is no result|was edited).* remove it"):
        runs.run(config, ["pgd_2"], **SILENT)
    assert path.read_text() == changed
    path.unlink()
    said = []
    runs.run(config, ["pgd_2"], device="cpu", say=said.append)
    assert not any("epoch 1/" in line for line in said)  # judged again, not trained again
    again = json.loads(path.read_text())
    fault(lost=[again[key] for key in ("curve", "sizes")] != [written[key] for key in ("curve", "sizes")])


def test_a_result_under_another_runs_name_is_refused(small, store):
    one, other = small(), small(seed=1)
    runs.run(one, (), **SILENT)
    (runs.RUNS / other.id).mkdir()
    text = (runs.RUNS / one.id / "result.json").read_text()
    (runs.RUNS / other.id / "result.json").write_text(text)
    with pytest.raises(Damaged, match="holds another configuration than its name says"):
        runs.run(other, (), **SILENT)


def rewritten(path, change):
    """A result file with its values changed and its digest made anew, as by somebody who means it."""
    values = json.loads(path.read_text())
    del values["sha256"]
    values = change(values)
    path.write_text(json.dumps(values | dict(sha256=results.digest(values))))


def test_a_result_of_another_version_is_named_and_stops_no_other(small, store, capsys, fault):
    one, other = small(epochs=1), small(epochs=1, seed=1)
    runs.run(one, ["pgd_2"], **SILENT)
    path = runs.RUNS / one.id / "result.json"
    rewritten(path, lambda values: values | dict(config=values["config"] | dict(tomorrow=1)))
    with pytest.raises(StoreError, match=r"result.json was written by another version of this library: .*tomorrow"):
        runs.run(one, ["pgd_2"], **SILENT)
    found = notebook.gather({"both": [one, other]}, OWN, ["pgd_2"])
    assert [run.config.seed for run in found["both"]] == [1]
    said = capsys.readouterr().out
    assert f"failed: {one.id}, whose log.jsonl ends in" in said and "result.json was written by another version" in said
    tasks = jobs.tasks([Wanted(config, attacked(config, ["pgd_2"])) for config in (one, other)])
    assert [state.kind for state in status.states(tasks)] == ["failed", "done"]
    fault(lost=not path.exists())


@pytest.mark.parametrize("flags", ["41:" + "A" * 8, "8:AAAA", "40:", "40:A", "999999999999:", "-5:AAAA"])
def test_flags_of_more_or_other_images_than_there_are_are_refused(small, store, flags):
    config = small(epochs=1)
    runs.run(config, (), **SILENT)
    path = runs.RUNS / config.id / "result.json"

    def forged(values):
        values["evaluations"]["best"]["natural"]["flags"] = flags
        return values

    rewritten(path, forged)
    with pytest.raises(Damaged, match=r"result.json is no result of this library"):
        results.read(config, path)


VALUES = [None, True, -1, 10**12, 0.5, float("nan"), "", "x" * 50, "999999999999:", "-5:AAAA", [], [[]], {}, {"a": {}}]


def places_in(values, path=()):
    """The paths to everything in nested dictionaries and lists."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places_in(value, (*path, key))


def put(values, path, value):
    for key in path[:-1]:
        values = values[key]
    if value is KeyError:
        del values[path[-1]]
    else:
        values[path[-1]] = value


def test_no_mutant_of_a_result_is_taken_for_another_or_ends_in_an_error_without_its_name(small, store, fault):
    config = small(epochs=2)
    written = runs.run(config, ["pgd_2"], **SILENT)
    path, counts = runs.RUNS / config.id / "result.json", Counter()
    text, rng = path.read_text(), random.Random(0)
    places = [place for place in places_in(json.loads(text)) if place[0] != "sha256"]
    for _ in range(2500):
        place, value = rng.choice(places), rng.choice([*VALUES, KeyError])
        path.write_text(text)
        rewritten(path, lambda values, where=place, value=value: put(values, where, value) or values)
        try:
            result = results.read(config, path)
        except StoreError as error:
            assert "result.json" in str(error)
            counts["refused"] += 1
            continue
        counts["read"] += 1
        assert result.config == config
        for which in CHECKPOINTS:
            for column in result.evaluations[which]:
                flags = result.flags(which, column)
                assert flags.dtype == torch.bool and len(flags) <= written.sizes["test"]
    assert counts["refused"] > 600 and counts["read"] > 60
    fault(lost=False)


def test_another_runs_checkpoint_is_not_taken(small, store, fault):
    """Not as a beginning, not as the best weights, not as a network."""
    one, other = small(epochs=2), small(epochs=2, seed=1)
    runs.run(one, (), **SILENT)
    folder = runs.RUNS / other.id
    shutil.copytree(runs.RUNS / one.id, folder, ignore=shutil.ignore_patterns("*.json*"))
    with pytest.raises(Damaged, match=rf"last.pt is of another run, {one.id}: expected {other.id}"):
        runs.run(other, (), **SILENT)
    shutil.rmtree(folder)
    runs.run(other, (), **SILENT)
    last = checkpoint.load(folder / "last.pt")
    (best,) = (runs.RUNS / one.id).glob("best-*.pt")
    shutil.copy(best, folder / f"best-{last['best']}.pt")
    with pytest.raises(Damaged, match="is of another run"):
        networks.load_model(other, "best")
    with pytest.raises(Damaged, match="is of another run"):
        checkpoint.restore(folder, other.id, {})
    fault(lost=not networks.load_model(one))


def test_stray_files_stop_nothing(small, store, fault):
    config = small(epochs=3)
    folder = runs.RUNS / config.id
    folder.mkdir(parents=True)
    for name in ("best-x.pt", "best-.pt", "notes.txt", "config.json.bak", ".DS_Store"):
        (folder / name).write_text("?")
    (folder / "best-9").mkdir()
    (folder / log.LOG).write_text('{"epoch": 7}\n{"epoch": "x", "seconds": 1}\n[1]\nnull\n{"epoch": 1, "sec')
    (runs.RUNS / "a-stray-file").write_text("?")
    assert log.last_epoch(folder) == 0 and log.epoch_seconds(folder) == {}
    assert [name for name, *_ in status.whole_store()] == [config.id]
    assert len(runs.run(config, (), **SILENT).curve) == 3
    assert (folder / "notes.txt").read_text() == "?"
    fault(lost=not networks.load_model(config))


# Numbers, clocks, other processes.


def test_a_loss_that_is_nan_fails_its_run_alone_and_is_tried_again(small, store, monkeypatch, capsys, fault):
    good, bad = small(), small(seed=1)
    step, steps = Step.__call__, itertools.count()

    def diverging(self, x, y, index):
        loss = step(self, x, y, index)
        return loss * float("nan") if self.config.seed == 1 and next(steps) >= 4 else loss  # two steps an epoch

    with monkeypatch.context() as spoilt:
        spoilt.setattr("sglrlib.training.step.Step.__call__", diverging)
        found = notebook.gather(notebook.by_title([good, bad]), OWN)
    (results_of_good,) = found[good.title]
    assert results_of_good.config == good
    said = capsys.readouterr().out
    assert f"failed: {bad.id}, whose log.jsonl ends in" in said and "Diverged: the loss of epoch 3 is nan" in said
    shown = tables.overview(found, ["natural"], [good, bad]).to_dict("records")
    assert [(row["Natural"] == "failed", row["seeds"]) for row in shown] == [(False, 1), (True, "seed 1")]
    rows = tables.beside_paper(found, ["natural"], [good, bad]).to_dict("records")
    assert (rows[-1]["accuracy"], rows[-1]["ours"]) == ("seed 1", "failed")
    assert epochs_kept(runs.RUNS / bad.id) == 2
    notebook.gather(notebook.by_title([good, bad]), OWN)
    assert f"{bad.title} seed 1: epoch 3/4" in capsys.readouterr().out
    assert tables.failed(found, ["natural"], [bad]) == []
    log.note(runs.RUNS / good.id, failed="LostLease: by a worker whose run another one took over and finished")
    assert tables.failed(found, ["natural"], [good]) == []
    whole = store / "whole"
    assert finish(trained, whole, bad) == 0
    fault(lost=not same_run(bad, whole, store))


def test_one_that_fails_beside_others_is_not_tried_twice(small, store, two_workers, capsys, fault):
    """On two processes, as a notebook starts them."""
    good, bad = small(), small(seed=1)
    (runs.RUNS / bad.id).mkdir(parents=True)
    (runs.RUNS / bad.id / "last.pt").write_bytes(b"garbage")
    (found,) = notebook.gather(notebook.by_title([bad, good]), OWN).values()
    assert [result.config for result in found] == [good]
    said = capsys.readouterr().out
    assert said.count("failed: ") == 1 and f"failed: {bad.id}, whose log.jsonl ends in" in said
    noted = [line for line in log.newest_first(runs.RUNS / bad.id) if "failed" in line]
    fault(lost=len(noted) != 1)


@pytest.mark.parametrize("error", [UsageError, DataError])
def test_what_would_fail_alike_for_every_run_ends_the_notebook(small, store, monkeypatch, error):
    def no_data(config):
        raise error("unpack the data first")

    monkeypatch.setattr(jobs.joblib, "cpu_count", lambda: 2)
    monkeypatch.setattr(jobs, "run_data", no_data)
    monkeypatch.setattr(notebook.loky.process_executor.ProcessPoolExecutor, "submit", pytest.fail)
    with pytest.raises(error, match="unpack the data first"):
        notebook.gather(notebook.by_title([small(), small(seed=1)]), OWN)
    assert not runs.RUNS.exists()


def test_sizes_that_the_data_do_not_have_are_refused_before_a_worker_starts(small, store, monkeypatch):
    monkeypatch.setattr(jobs.joblib, "cpu_count", lambda: 2)
    monkeypatch.setattr(notebook.loky.process_executor.ProcessPoolExecutor, "submit", pytest.fail)
    with pytest.raises(UsageError, match=r"train_size \+ val_size = 930 is out of range") as refused:
        notebook.gather(notebook.by_title([small(train_size=900), small(train_size=900, seed=1)]), OWN)
    assert refused.value.__cause__ is None and not runs.RUNS.exists()


def test_where_all_runs_fail_the_notebook_ends(small, store, monkeypatch):
    monkeypatch.setattr("sglrlib.training.step.Step.__call__", lambda self, x, y, index: x.sum() / 0)
    with pytest.raises(RuntimeError, match="all 1 runs failed"):
        notebook.gather(notebook.by_title([small()]), OWN)
    with pytest.raises(Diverged):
        runs.run(small(), (), **SILENT)


def test_an_epoch_done_again_counts_as_it_was_done_last(tmp_path):
    for epoch, seconds in ((1, 1.0), (2, 5.0), (2, 7.0)):
        log.note(tmp_path, epoch=epoch, seconds=seconds)
    assert log.epoch_seconds(tmp_path) == {1: 1.0, 2: 7.0} and log.last_epoch(tmp_path) == 2


def test_a_clock_that_jumps(small, store, tmp_path, monkeypatch, fault):
    config, now, jumps = small(), time.time, random.Random(0)
    assert finish(trained, tmp_path / "whole", config, ["pgd_2"]) == 0
    monkeypatch.setattr(time, "time", lambda: now() + jumps.choice([-1, 1]) * 1e9)
    runs.run(config, ["pgd_2"], **SILENT)
    seconds = log.epoch_seconds(runs.RUNS / config.id)
    assert len(seconds) == 4 and all(0 <= value < 1e6 for value in seconds.values())
    fault(lost=not same_run(config, tmp_path / "whole", store))


def holding(config, seconds: float):
    """Hold a run's lease, writing into its folder again and again, until it is lost or asked for."""
    lease.LEASE_S = seconds
    folder = runs.RUNS / config.id
    folder.mkdir(parents=True, exist_ok=True)
    with lease.alone(folder, print):
        (folder / "held").touch()
        while not (folder / "asked for").exists():
            time.sleep(0.05)
            checkpoint.write(folder / "curve.csv", b"the first holder's")


def start_holding(store: Path, config, seconds: float):
    """A process in holding(), once it holds."""
    process = start(holding, store, config, seconds)
    while not (runs.RUNS / config.id / "held").exists():
        assert process.is_alive()
        time.sleep(0.01)
    return process


def test_a_lease_lasts_whatever_the_clocks_say(small, store, monkeypatch, fault):
    """Two leases whose files are of another century: for twice as long as one lasts, nobody else gets them."""
    monkeypatch.setattr(lease, "LEASE_S", 6.0)
    taken, waiting = [], []
    for year in (1971, 2100):
        config = small(seed=year)
        folder = runs.RUNS / config.id
        process = start_holding(store, config, lease.LEASE_S)
        stamp = (year - 1970) * 365.25 * 86400
        os.utime(folder / ".lock", (stamp, stamp))
        said = []

        def wait(folder=folder, said=said):
            with lease.alone(folder, said.append):
                taken.append(folder)

        thread = threading.Thread(target=wait)
        thread.start()
        waiting.append((folder, process, said, thread))
    time.sleep(2 * lease.LEASE_S)
    fault(lost=taken != [])
    for folder, process, said, thread in waiting:
        (folder / "asked for").touch()
        thread.join()
        process.join()
        assert said[0].startswith(f"waiting for process {process.pid} on ") and process.exitcode == 0
    assert len(taken) == 2


def test_a_dead_process_on_this_machine_blocks_nobody(small, store, fault):
    config = small()
    folder = runs.RUNS / config.id
    process = start_holding(store, config, lease.LEASE_S)
    assert kill(process)
    assert lease.holder(folder).startswith(f"process {process.pid} on ")
    with lease.alone(folder, pytest.fail):  # which is called where it has to wait
        fault(lost=not lease.holder(folder).startswith(f"process {os.getpid()} on "))
    assert lease.holder(folder) == ""


@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"?"], ids=["empty", "zeros", "garbage"])
def test_a_claim_that_names_nobody_is_removed(small, store, monkeypatch, fault, content):
    """As a loss of power leaves it, between the creation of the file and its content."""
    monkeypatch.setattr(lease, "NAMELESS_S", 0.3)
    config = small(epochs=1)
    folder = runs.RUNS / config.id
    folder.mkdir(parents=True)
    (folder / ".lock").write_bytes(content)
    assert runs.run(config, (), **SILENT) and not list(folder.glob(".lock*"))
    fault(lost=False)


def test_a_claim_that_is_still_being_written_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "NAMELESS_S", 1.0)
    marker = tmp_path / ".lock"
    marker.touch()
    writer = threading.Timer(0.4, lambda: marker.write_text("soon"))
    writer.start()
    lease.remove_nameless(marker)
    writer.join()
    assert marker.read_text() == "soon"


def test_a_dead_machine_blocks_nobody_for_ever(small, store, monkeypatch, fault):
    monkeypatch.setattr(lease, "LEASE_S", 1.5)
    folder = runs.RUNS / small().id
    folder.mkdir(parents=True)
    (folder / ".lock").write_text("filelock/2\npid=1\nhost=elsewhere\nmode=lease\ntoken=ab\nduration=1.5\n")
    started, said = time.monotonic(), []
    with lease.alone(folder, said.append):
        fault(lost=time.monotonic() - started < 1.5)
    assert said == [f"waiting for process 1 on elsewhere, which works on {folder.name}"]


def test_a_process_that_stood_still_too_long_writes_nothing_any_more(small, store, monkeypatch, fault):
    monkeypatch.setattr(lease, "LEASE_S", 1.0)
    config = small()
    folder = runs.RUNS / config.id
    process = start_holding(store, config, lease.LEASE_S)
    os.kill(process.pid, signal.SIGSTOP)
    with lease.alone(folder, lambda line: None):
        checkpoint.write(folder / "curve.csv", b"the second holder's")
        os.kill(process.pid, signal.SIGCONT)
        process.join()
        assert process.exitcode == 1
        fault(lost=(folder / "curve.csv").read_bytes() != b"the second holder's")
        assert lease.holder(folder).startswith(f"process {os.getpid()} on ")


def test_two_processes_that_want_one_run_train_it_once(small, tmp_path, fault):
    config = small(epochs=8)
    both = [start(trained, tmp_path, config) for _ in range(2)]
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    lines = (tmp_path / "runs" / config.id / log.LOG).read_text().split()
    fault(lost=sum('"epoch":' in line for line in lines) != 8)


KERNEL = """
from sglrlib.recipes import recipe
from sglrlib.show.notebook import Line, side_by_side
from sglrlib.training.columns import attacked
from sglrlib.training.runs import Wanted

side_by_side([Wanted(config, attacked(config, ())) for config in (recipe(epochs=9999, seed=s) for s in (0, 1))], Line())
"""
COMMAND = [
    "-m",
    "sglrlib",
    "run",
    str(ROOT / "notebooks" / "02_main_tables.ipynb"),
    "--workers",
    "2",
    "-p",
    "epochs",
    "9999",
]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in Linux's /proc")
@pytest.mark.parametrize("command", [["-c", KERNEL], COMMAND], ids=["notebook", "command"])
def test_workers_end_with_the_process_that_started_them(tmp_path, wait_for, command):
    """It is killed once two work; they would for hours."""
    environment = os.environ | dict(LOKY_MAX_CPU_COUNT="2", PYTHONPATH=str(ROOT), SGLR_OUT=str(tmp_path))
    first = subprocess.Popen([sys.executable, *command], cwd=tmp_path, env=environment)
    wait_for(lambda: len(workers(tmp_path)) == 2, first)
    pids = workers(tmp_path)
    first.kill()
    first.wait()
    wait_for(lambda: not any(map(alive, pids)))


def workers(store: Path) -> list[int]:
    """The processes that work on the runs of a store."""
    holders = [lease.holder(folder) for folder in store.glob("runs/*/")]
    return [int(holder.split()[1]) for holder in holders if holder]


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and that nobody has waited for does not."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"
