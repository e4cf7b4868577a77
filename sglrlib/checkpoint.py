"""Files that a kill -9 cannot damage: each is written whole beside its place, then moved there."""

import csv
import io
import os
from pathlib import Path

import torch
from torch import nn


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read; the message names the file and what to do."""


def write(path: Path, content: bytes) -> None:
    """Replace a file atomically: a reader, or a machine that loses power, sees the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part-{os.getpid()}")
    with open(part, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def save(path: Path, values: dict) -> None:
    """Write tensors and plain values so that load() reads them back."""
    buffer = io.BytesIO()
    torch.save(values, buffer)
    write(path, buffer.getvalue())


def load(path: Path, device="cpu") -> dict:
    """What save() wrote, without executing anything in it. Raises CheckpointError if the file cannot be read."""
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        message = f"{path} is not a checkpoint that can be read ({error}). Remove it to start again."
        raise CheckpointError(message) from error


def save_epoch(folder: Path, parts: dict, judged: nn.Module, curve: list[dict], best: int) -> None:
    """Save the state of a run after an epoch, best being the best epoch so far.

    parts is what a resume needs; judged the network that the curve speaks of: parts' model, or an average of it.
    last.pt is what counts, and is written when all it refers to is there: best-N.pt, the weights of epoch N.
    """
    if best == curve[-1]["epoch"]:
        save(folder / f"best-{best}.pt", dict(model=judged.state_dict()))
    write(folder / "curve.csv", as_csv(curve).encode())
    states = {name: part.state_dict() for name, part in parts.items()} | dict(curve=curve, best=best)
    save(folder / "last.pt", states if judged is parts["model"] else states | dict(judged=judged.state_dict()))
    for old in folder.glob("best-*.pt"):
        if old.name != f"best-{best}.pt":
            old.unlink()


def weights(folder: Path, which: str) -> dict:
    """The model's state in a run's 'best' or 'last' checkpoint. Raises CheckpointError where there is none."""
    last = load(folder / "last.pt")
    if which == "best":
        return load(folder / f"best-{last['best']}.pt")["model"]
    return last.get("judged", last["model"])


def restore(path: Path, parts: dict, device="cpu") -> list[dict]:
    """Put the state of the last epoch saved into parts and return the curve; [] where nothing is saved."""
    if not path.exists():
        return []
    state = load(path, device)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["curve"]


def as_csv(rows: list[dict]) -> str:
    """Rows of equal keys as CSV text."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
