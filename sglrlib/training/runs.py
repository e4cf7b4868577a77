"""Runs: trained, resumed or loaded; their checkpoints judged under attacks, loaded as networks, exported."""

import dataclasses
import json
import platform
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import nn

from sglrlib.checks import UsageError, one_of, within
from sglrlib.config import RunConfig
from sglrlib.judging.evaluate import correct, outputs, withstood
from sglrlib.judging.sanity import Check, suspect
from sglrlib.method.attacks import AFTER, Transfer, chain, named_attack
from sglrlib.method.data import DATASETS, DataError, Split
from sglrlib.paths import RUNS
from sglrlib.store import checkpoint, results
from sglrlib.store.lease import alone
from sglrlib.store.log import LOG, Log, failure, newest_first, note, provenance, where
from sglrlib.store.results import CHECKPOINTS, Result, pack_shares, stored
from sglrlib.training.train import best_epoch, run_data, run_model, train


def run(config: RunConfig, attacks: Sequence[str] = ("pgd_20",), *, by: Callable | None = None, **how) -> Result | None:
    """The result of a configuration, its best and last checkpoints judged as they are and under attacks (ATTACKS).

    What this store has is loaded; a run that was begun is resumed, after its teachers' runs; of an evaluation that
    was begun, only what is missing is done. A second process that wants the same run, on this machine or another, waits
    for the first and then loads. how is passed to obtain(), or to what else by is: lacking() computes nothing. Raises
    UsageError, before any work starts, for a name or value that cannot be.
    """
    eps, step = config.eps_255 / 255, config.step_255 / 255
    columns = ["natural", *(column for attack in attacks for column in chain(attack))]
    return (by or obtain)(config, {column: partial(named_attack, column, eps, step) for column in columns}, **how)


class Wanted(NamedTuple):
    """A call that somebody waits for: job(config, **how), run() or another one of this module."""

    config: RunConfig
    job: Callable
    how: dict


def attempt(job: Callable, config: RunConfig, **how) -> Result | None:
    """job(config, **how), run() or another one of this module; None where it fails, which is kept in the run's log.

    What would fail alike for every run is raised: UsageError and DataError.
    """
    try:
        return job(config, **how)
    except (UsageError, DataError):
        raise
    except Exception as error:
        note_failure(config, error)
        how.get("say", print)(failed(config) or f"failed: {config.id}: {error}")
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


def is_stored(config: RunConfig) -> bool:
    """Whether this store has a result of the run, with whichever columns."""
    return (RUNS / config.id / "result.json").exists()


def transfer(
    config: RunConfig, source: RunConfig, attacks: Sequence[str] = ("pgd_10", "cw_inf"), *, which="best",
    by: Callable | None = None, **how,
) -> Result | None:  # fmt: skip
    """run() under adversarial images made on another run's network, its checkpoint which ('best' or 'last'): the
    black-box attacks of Table B.3. The columns' names are transfer_column()'s.

    Raises UsageError where the two runs are of different datasets, or an attack is a part of a cascade.
    """
    one_of("which", which, CHECKPOINTS)
    refuse_cascades(attacks)
    if source.dataset != config.dataset:
        raise UsageError(f"the source is trained on {source.dataset!r}: expected {config.dataset!r}, as the target.")
    if how.get("train_missing", True) and by is None:
        run(source, (), **how)

    def attack(name):
        white_box = named_attack(name, config.eps_255 / 255, config.step_255 / 255)
        return Transfer(white_box, load_model(source, which, pick_device(how.get("device", ""))))

    columns = {transfer_column(name, source, which): partial(attack, name) for name in attacks}
    return (by or obtain)(config, dict(natural=None) | columns, **how)


def refuse_cascades(attacks: Sequence[str]) -> None:
    """Raise UsageError for an unknown attack, or one that is only the last part of a chain of them."""
    for name in attacks:
        if len(chain(name)) > 2:
            raise UsageError(f"attacks = {name!r} is a cascade: expected a single attack; the nearest is 'apgd_ce'.")


def transfer_column(attack: str, source: RunConfig, which: str = "best") -> str:
    """The column of an attack made on another run's network: attack, architecture, checkpoint and hash of that run."""
    return f"{attack} from {source.arch} {which} {source.id.rsplit('-', 1)[1]}"


def confidences(
    config: RunConfig, attacks: Sequence[str] = ("natural", "pgd_10"), *, by: Callable | None = None, **how
) -> Result | None:
    """run(), with the probabilities that both checkpoints give to the test images, see Result.confidence().

    Every image is attacked here, also one that is misclassified as it is. Raises UsageError as run() does, and for a
    part of a cascade.
    """
    eps, step = config.eps_255 / 255, config.step_255 / 255
    refuse_cascades(attacks)
    columns = {f"confidence {a}": None if a == "natural" else partial(named_attack, a, eps, step) for a in attacks}
    return (by or obtain)(config, dict(natural=None) | columns, **how)


def lacking(config: RunConfig, columns: Sequence[str], *, images=0, train_missing=True, **_) -> list[str]:
    """What obtain() with these arguments would have to do: 'training', then the columns that are not there."""
    result = stored(config, columns, images, committed=not train_missing)
    return ["training", *columns] if result is None else [c for c in columns if not result.has(c, images)]


def obtain(
    config: RunConfig, columns: dict[str, Callable], *, images=0, train_missing=True, device="", speed="fast",
    say: Callable[[str], None] = print,
) -> Result | None:  # fmt: skip
    """A result with at least these columns, each with what builds its attack; trained and judged where it must be.

    images: how many of the first test images are attacked (0: all); 'natural' is always of all. With train_missing
    False nothing is computed, a committed result counts too, a column may be missing, and None stands for no result.
    device '' is CUDA where there is one.
    """
    device = refuse_settings(device, speed, images)
    result = stored(config, columns, images, committed=not train_missing)
    if not train_missing or (result and all(result.has(column, images) for column in columns)):
        return result
    folder = RUNS / config.id
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder, say):
        checkpoint.remove_parts(folder)
        note(folder, started=time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()), host=platform.node())
        result = stored(config) or trained(config, folder, device, speed, say)
        results.write(folder / "result.json", result)
        test = run_data(config).test.to(device)
        for which in CHECKPOINTS:
            result = judged(result, which, test, columns, images, device, speed, say)
    return result


def refuse_settings(device: str, speed: str, images: int = 0) -> str:
    """The device that is meant. Raises UsageError for settings of obtain() that cannot be."""
    one_of("speed", speed, ["plain", "fast", "compile"])
    within("images", images, 0)
    return pick_device(device)


def trained(config: RunConfig, folder: Path, device: str, speed: str, say: Callable[[str], None]) -> Result:
    """Train a run to its end, after its teachers; a result without evaluations."""
    how = dict(device=device, speed=speed, say=say)
    for teacher in config.teachers:
        run(teacher, (), **how)
    checkpoint.write(folder / "config.json", (json.dumps(dataclasses.asdict(config), indent=1) + "\n").encode())
    say(f"{config.title} seed {config.seed}: {config.epochs} epochs on {device}")
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


def judged(
    result: Result, which: str, test: Split, columns: dict[str, Callable | None], images, device, speed, say
) -> Result:
    """The result with the columns of a checkpoint that it lacked; written after each of them."""
    config, model = result.config, None
    for column, build in columns.items():
        n = len(test) if column == "natural" else min(images or len(test), len(test))
        if result.holds(which, column, n):
            continue
        started = time.perf_counter()
        model = model or load_model(config, which, device)
        x, y = test.x(slice(n)), test.y[:n]
        how = dict(classes=DATASETS[config.dataset].classes, speed=speed)
        more = {}
        if column == "natural":
            flags = correct(model, x, y, **how)
        elif column.startswith("confidence "):
            flags, more = confidence(model, x, y, build() if build else None, **how)
        else:
            before = result.flags(which, AFTER.get(column, "natural"))[:n]
            flags = withstood(model, x, y, build(), before, **how)
        seconds = round(time.perf_counter() - started, 2)
        result = result.with_flags(which, column, flags, **more, seconds=seconds, **where(device, speed))
        results.write(RUNS / config.id / "result.json", result)
        if not column.endswith("natural"):
            stand = f"{flags.sum()} of {n} images stand, {seconds:.0f} s"
            say(f"{config.title} seed {config.seed}, {which}: {column}, {stand}")
    return result


def confidence(model: nn.Module, x, y, attack: Callable | None, **how) -> tuple[torch.Tensor, dict[str, str]]:
    """Flags as of correct(), and the packed probabilities that Result.confidence() unpacks."""
    probabilities = outputs(model, x, y, attack, **how)[1].double().softmax(1)
    highest, predicted = probabilities.max(1)
    labelled = probabilities.gather(1, y[:, None])[:, 0]
    return (predicted == y).cpu(), dict(highest=pack_shares(highest.cpu()), labelled=pack_shares(labelled.cpu()))


def suspected(config: RunConfig, which: str = "best", *, images=200, device="") -> list[Check]:
    """The five checks of sanity.suspect() on a finished run's network, with the first of its test images."""
    device = pick_device(device)
    test = run_data(config).test.first(images).to(device)
    return suspect(load_model(config, which, device), test.x(), test.y, config.eps_255 / 255)


def holds(config: RunConfig) -> bool:
    """Whether this machine holds the checkpoints of a run."""
    return (RUNS / config.id / "last.pt").exists()


def load_model(config: RunConfig, which: str = "best", device="cpu") -> nn.Module:
    """A finished run's network in eval mode: images (N, C, H, W) in [0, 1] in, logits (N, K) out.

    which is 'best' or 'last'. Raises UsageError where this machine holds no such checkpoint.
    """
    one_of("which", which, CHECKPOINTS)
    folder = RUNS / config.id
    if not holds(config):
        raise UsageError(f"{config.id} has no checkpoint in {RUNS}: weights are not committed, run() it first.")
    model = run_model(config)
    model.load_state_dict(checkpoint.weights(folder, which))
    return model.to(device).eval()


def export(config: RunConfig, which: str = "best", path: str | Path = "") -> Path:
    """Write a finished run's weights as safetensors, the configuration (make_config's arguments) as JSON in its header.

    Returns where. path '' is best.safetensors or last.safetensors in the run's folder. Raises as load_model() does.
    """
    state = {name: tensor.contiguous() for name, tensor in load_model(config, which).state_dict().items()}
    path = Path(path or RUNS / config.id / f"{which}.safetensors")
    save_file(state, path, metadata=dict(config=json.dumps(config.flat()), which=which, format="pt"))
    return path


def pick_device(device: str) -> str:
    """'' -> 'cuda' where there is one, else 'cpu'. Raises UsageError for a device that this machine lacks."""
    one_of("device", device.split(":")[0], ["", "cpu", "cuda"])
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"device = {device!r}: torch finds no CUDA device here; 'cpu' is the nearest.")
    return device or ("cuda" if torch.cuda.is_available() else "cpu")
