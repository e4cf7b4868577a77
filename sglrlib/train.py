"""The training loop, and nothing else: resumable, and bit for bit the same wherever it was interrupted."""

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from sglrlib import checkpoint
from sglrlib.config import RunConfig
from sglrlib.data import DATASETS, Data, Split, load_data
from sglrlib.evaluate import accuracy
from sglrlib.fast import attack_target
from sglrlib.labels import LABELS
from sglrlib.methods import METHODS
from sglrlib.models import build_model


class Diverged(RuntimeError):
    """The training loss is no longer finite; the message names the epoch and the last good checkpoint."""


def train(
    config: RunConfig, folder: Path, *, device="cpu", speed="fast", report: Callable[[dict], None] = print
) -> None:
    """Train a run to its last epoch, from the checkpoint in folder on if there is one.

    After each epoch, folder holds last.pt (everything a resume needs), best-N.pt (the weights of the best epoch so
    far, N) and curve.csv. report is called with each epoch's row of the curve. Random streams are seeded by (seed,
    epoch), so none has to be saved. Raises Diverged when the loss is NaN or infinite.
    """
    data = run_data(config).to(device)
    layout = torch.contiguous_format if speed == "plain" else torch.channels_last
    model = run_model(config).to(device, memory_format=layout)
    method = METHODS[config.method](**config.method_options)
    labels = config.label_rule(data.train.y, DATASETS[config.dataset].classes).to(device)
    optimizer = torch.optim.SGD(
        model.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay, fused=speed != "plain"
    )
    attack = config.attack(steps=config.attack_steps, objective=method.objective, start=method.start)
    parts = dict(model=model, labels=labels, optimizer=optimizer)
    curve = checkpoint.restore(folder / "last.pt", parts, device)
    target = attack_target(model, speed, config.precision)

    for epoch in range(len(curve) + 1, config.epochs + 1):
        started, total = time.perf_counter(), torch.zeros((), device=device)
        generator = torch.Generator(device).manual_seed(config.seed * 1_000_003 + epoch)
        optimizer.param_groups[0]["lr"] = config.lr_at(epoch)
        refining = epoch >= config.first_refined
        clean_pass = clean_pass_mode(config, refining)
        model.train()
        for x, y, index in data.train.batches(config.batch_size, generator, config.augment):
            x_adv = attack(target.refresh(), x, y, generator)
            loss = method.loss(model, x, x_adv, partial(labels, index, refining=refining), clean_pass)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(y)
        row = dict(epoch=epoch, lr=config.lr_at(epoch), loss=total.item() / len(data.train))
        if not math.isfinite(row["loss"]):
            raise Diverged(
                f"the loss of epoch {epoch} is {row['loss']}; the last good checkpoint is that of epoch {epoch - 1} "
                f"in {folder}. A smaller lr than {config.lr} may help."
            )
        curve.append(row | measure(config, model, data, speed))
        checkpoint.save_epoch(folder, parts, curve, best_epoch(curve, config.select_on))
        report(curve[-1] | dict(seconds=time.perf_counter() - started))


def run_data(config: RunConfig) -> Data:
    """The splits that a run trains and is measured on, on the CPU."""
    return load_data(
        config.dataset, train_size=config.train_size, val_size=config.val_size, test_size=config.test_size,
        noise=config.noise, noise_rate=config.noise_rate, seed=config.seed,
    )  # fmt: skip


def run_model(config: RunConfig) -> nn.Module:
    """The run's network with its initial weights, on the CPU."""
    dataset = DATASETS[config.dataset]
    normalise = (dataset.mean, dataset.std) if config.normalise else None
    return build_model(config.arch, dataset.classes, dataset.shape, normalise=normalise, seed=config.seed)


def clean_pass_mode(config: RunConfig, refining: bool) -> str:
    """The BatchNorm mode of the clean forward pass in this epoch, 'none' where it is not made."""
    needed = LABELS[config.labels].needs_clean and refining
    modes = dict(needed="train" if needed else "none", always="train" if refining else "none")
    return (modes | dict(eval="eval" if needed else "none"))[config.clean_pass]


def measure(config: RunConfig, model: nn.Module, data: Data, speed: str) -> dict[str, float]:
    """Natural and robust accuracy (%) on a train subset (assigned labels), validation and test, for the curve."""
    attack = config.attack(steps=config.eval_steps)
    splits: dict[str, Split] = dict(train=data.train.first(config.train_eval_size), val=data.val, test=data.test)
    return {
        f"{name}_{kind}": accuracy(model, split, how, speed=speed)
        for name, split in splits.items()
        if len(split)
        for kind, how in (("natural", None), ("robust", attack))
    }


def best_epoch(curve: list[dict], select_on: str) -> int:
    """The first epoch of the highest robust accuracy on the split that selects, 'val' or 'test'."""
    return max(curve, key=lambda row: row[f"{select_on}_robust"])["epoch"]
