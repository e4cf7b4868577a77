"""The training loop, and nothing else: resumable, and bit for bit the same wherever it was interrupted."""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

from sglrlib import checkpoint
from sglrlib.config import RunConfig
from sglrlib.data import DATASETS, Data, load_data
from sglrlib.fast import attack_target
from sglrlib.labels import LABELS
from sglrlib.measure import accuracies, diagnose, eval_logits, look
from sglrlib.methods import METHODS, adversarial_weights
from sglrlib.models import build_model


class Diverged(RuntimeError):
    """The training loss is no longer finite; the message names the epoch and the last good checkpoint."""


def train(
    config: RunConfig, folder: Path, *, teachers: Sequence[nn.Module] = (), device="cpu", speed="fast",
    report: Callable[[dict], None] = print,
) -> None:  # fmt: skip
    """Train a run to its last epoch, from the checkpoint in folder on if there is one.

    After each epoch, folder holds last.pt (everything a resume needs), best-N.pt (the weights of the best epoch so
    far, N) and curve.csv. teachers are the networks of config.teachers, in eval mode. report is called with each
    epoch's row of the curve. Random streams are seeded by (seed, epoch), so none has to be saved. Raises Diverged when
    the loss is NaN or infinite.
    """
    data = run_data(config).to(device)
    layout = torch.contiguous_format if speed == "plain" else torch.channels_last
    model = run_model(config).to(device, memory_format=layout)
    method = METHODS[config.method](**config.method_options)
    labels = config.label_rule(data.train.y, DATASETS[config.dataset].classes).to(device)
    optimizer = torch.optim.SGD(
        model.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay, fused=speed != "plain"
    )
    attack = training_attack(config)
    parts = dict(model=model, labels=labels, optimizer=optimizer)
    if config.swa_start < 1:
        parts["averaged"] = AveragedModel(model)
    curve = checkpoint.restore(folder / "last.pt", parts, device)
    record = partial(diagnose, config, run_model(config).to(device), labels, method, teachers, data)
    target = attack_target(model, "plain" if config.attack_mode == "train" else speed, config.precision)

    for epoch in range(len(curve) + 1, config.epochs + 1):
        started, total = time.perf_counter(), torch.zeros((), device=device)
        generator = torch.Generator(device).manual_seed(config.seed * 1_000_003 + epoch)
        optimizer.param_groups[0]["lr"] = config.lr_at(epoch)
        labels.start_epoch(epoch, config.first_refined, config.epochs)
        clean_pass = clean_pass_mode(config, epoch)
        model.train()
        for x, y, index in data.train.batches(config.batch_size, generator, config.augment):
            attacked = target.refresh()
            penalty = labels.penalty(index, partial(eval_logits, attacked, x))
            x_adv = attack(attacked, x, y, generator, penalty)
            criterion = partial(labels, index=index, penalty=penalty)
            batch_loss = partial(method.loss, model, x, x_adv, criterion, clean_pass, teachers)
            with adversarial_weights(model, batch_loss, config.awp_at(epoch)):
                loss = batch_loss()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            labels.update()
            total += loss.detach() * len(y)
        row = dict(epoch=epoch, lr=config.lr_at(epoch), loss=total.item() / len(data.train))
        if not math.isfinite(row["loss"]):
            raise Diverged(
                f"the loss of epoch {epoch} is {row['loss']}; the last good checkpoint is that of epoch {epoch - 1} "
                f"in {folder}. A smaller lr than {config.lr} may help."
            )
        judged = model
        if config.averages_at(epoch):
            judged = parts["averaged"].module
            parts["averaged"].update_parameters(model)
            update_bn(data.train.batches(config.batch_size, generator, config.augment), judged)  # re-estimated, clean
        views = look(config, judged, data, speed)
        curve.append(row | accuracies(views) | record(judged, views, clean_pass))
        checkpoint.save_epoch(folder, parts, judged, curve, best_epoch(curve, config))
        report(curve[-1] | dict(seconds=time.perf_counter() - started))


def run_data(config: RunConfig) -> Data:
    """The splits that a run trains and is measured on, on the CPU."""
    return load_data(
        config.dataset, train_size=config.train_size, val_size=config.val_size, test_size=config.test_size,
        noise=config.noise, noise_rate=config.noise_rate, seed=config.seed, folds=config.folds, fold=config.fold,
    )  # fmt: skip


def run_model(config: RunConfig) -> nn.Module:
    """The run's network with its initial weights, on the CPU."""
    dataset = DATASETS[config.dataset]
    normalise = (dataset.mean, dataset.std) if config.normalise else None
    return build_model(config.arch, dataset.classes, dataset.shape, normalise=normalise, seed=config.seed)


def training_attack(config: RunConfig) -> Callable:
    """The attack of a training step: called as PGD is, it returns the images themselves where the method has none."""
    method = METHODS[config.method](**config.method_options)
    if not method.objective:
        return lambda model, x, y, generator, penalty: x
    return config.attack(
        steps=config.attack_steps, objective=method.objective, start=method.start, mode=config.attack_mode,
        weight=method.beta,
    )  # fmt: skip


def clean_pass_mode(config: RunConfig, epoch: int) -> str:
    """The BatchNorm mode of the clean forward pass in this epoch, 'none' where it is not made."""
    refining = epoch >= config.first_refined
    needed = LABELS[config.labels].needs_clean and refining
    modes = dict(needed="train" if needed else "none", always="train" if refining else "none")
    return (modes | dict(eval="eval" if needed else "none"))[config.clean_pass]


def best_epoch(curve: list[dict], config: RunConfig) -> int:
    """The first epoch of the highest accuracy that selects; among those of averaged weights, once there are any."""
    averaged = [row for row in curve if config.averages_at(row["epoch"])]
    return max(averaged or curve, key=lambda row: row[config.selected_by])["epoch"]
