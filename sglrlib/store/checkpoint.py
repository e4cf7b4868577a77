"""Files that a kill -9 cannot damage, and whose damage is seen: written whole beside their place, then moved there."""

import csv
import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from sglrlib.store.lease import still_ours

FORMAT = 1  # of checkpoints; a higher one than a program knows was written by a newer version


class StoreError(RuntimeError):
    """A file of a run cannot be used; the message names it and says what to do."""


class Damaged(StoreError):
    """A file is not what was written: truncated, altered, empty, gone, or something else altogether."""


def write(path: Path, content: bytes) -> None:
    """Replace a file atomically: a reader, or a machine that loses power, sees the old content or the new.

    Raises LostLease where the folder is another process's by now.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    still_ours(path.parent)
    part = path.with_name(f".{path.name}.part-{os.getpid()}")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)  # on a full disk it would be in the way
        raise


def save(path: Path, values: dict) -> None:
    """Write tensors and plain values so that load() reads them back, and torch.load() too.

    The SHA-256 of all before it is the comment that ends the zip file: torch itself reads flipped bits as numbers.
    """
    buffer = io.BytesIO()
    torch.save(values | dict(format=FORMAT), buffer)
    content = buffer.getvalue()[:-2] + (32).to_bytes(2, "little")  # an empty comment's length gives way
    write(path, content + hashlib.sha256(content).digest())


def load(path: Path, device: str = "cpu", run: str = "") -> dict:
    """What save() wrote, without executing anything in it.

    Raises Damaged where it is not there or not that any more, or names another run than the one given; StoreError where
    a newer version of this library wrote it.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise Damaged(f"{path} is not there.") from error
    if len(content) < 32 or hashlib.sha256(content[:-32]).digest() != content[-32:]:
        raise Damaged(f"{path} is damaged: its SHA-256 is not the one it was written with.")
    try:
        values = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
        newer = values.pop("format") > FORMAT
    except Exception as error:
        kind = type(error).__name__
        raise Damaged(f"{path} is no checkpoint of this library ({kind}); nothing in it was executed.") from error
    if newer:
        raise StoreError(f"{path} was written by a newer version: expected format {FORMAT}. Update, or set SGLR_OUT.")
    if run and (found := values.get("run", run)) != run:
        raise Damaged(f"{path} is of another run, {found}: expected {run}.")
    return values


def save_epoch(folder: Path, run: str, parts: dict, judged: nn.Module, curve: list[dict], best: int) -> None:
    """Save the state of a run, by its id, after an epoch, best being the best epoch so far.

    parts is what a resume needs; judged the network that the curve speaks of: parts' model, or an average of it.
    last.pt is what counts, and is written when all it refers to is there: best-N.pt, the weights of epoch N. What it
    was before stays as previous.pt.
    """
    if best == curve[-1]["epoch"]:
        save(folder / f"best-{best}.pt", dict(run=run, model=judged.state_dict()))
    write(folder / "curve.csv", as_csv(curve).encode())
    states = {name: part.state_dict() for name, part in parts.items()} | dict(run=run, curve=curve, best=best)
    last = folder / "last.pt"
    if last.exists():
        last.replace(folder / "previous.pt")  # a kill before the next line leaves that one, which restore() takes
    save(last, states if judged is parts["model"] else states | dict(judged=judged.state_dict()))
    epochs = sorted(int(path.stem[5:]) for path in folder.glob("best-*.pt") if path.stem[5:].isdecimal())
    for epoch in epochs[:-2]:  # previous.pt may refer to the last but one
        (folder / f"best-{epoch}.pt").unlink()


def restore(
    folder: Path, run: str, parts: dict, device: str = "cpu", say: Callable[[str], None] = print
) -> list[dict]:  # fmt: skip
    """Put the state of a run's last epoch saved into parts and return the curve; [] where nothing is saved.

    Where last.pt is damaged, or a kill left none, previous.pt is taken. Raises Damaged where both are there and neither
    can be read, or the weights of the best epoch so far cannot, StoreError as load() does.
    """
    damage = None
    for path in (folder / "last.pt", folder / "previous.pt"):
        if not path.exists():
            continue
        try:
            state = load(path, device, run)
            load(folder / f"best-{state['best']}.pt", run=run)
        except Damaged as error:
            damage = damage or error
            continue
        if damage:
            say(f"{damage} The checkpoint before it is taken: epoch {len(state['curve'])}.")
            (folder / "last.pt").replace(folder / "damaged.pt")  # else it would take the good one's place
        for name, part in parts.items():
            part.load_state_dict(state[name])
        return state["curve"]
    if damage:
        raise Damaged(f"{damage} No other checkpoint of the run can be used: remove {folder} to train it again.")
    return []


def tidy(folder: Path) -> None:
    """Remove from a finished run the checkpoints that only a resume needs."""
    best = load(folder / "last.pt")["best"]
    for path in folder.glob("*.pt"):
        if path.name not in ("last.pt", f"best-{best}.pt"):
            path.unlink()


def remove_parts(folder: Path) -> None:
    """Remove what processes that were killed while they wrote have left."""
    for part in folder.glob(".*.part-*"):
        part.unlink()


def weights(folder: Path, which: str, run: str = "") -> dict:
    """The model's state in a run's 'best' or 'last' checkpoint. Raises as load() does."""
    last = load(folder / "last.pt", run=run)
    if which == "best":
        return load(folder / f"best-{last['best']}.pt", run=run)["model"]
    return last.get("judged", last["model"])


def as_csv(rows: list[dict]) -> str:
    """Rows of equal keys as CSV text."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
