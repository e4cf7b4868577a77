"""The training loop, and nothing else: resumable, and bit for bit the same wherever it was interrupted."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

from sglrlib.config import RunConfig
from sglrlib.method.data import Data, load_data
from sglrlib.method.datasets import DATASETS
from sglrlib.method.fast import captured, layout
from sglrlib.method.models import build_model
from sglrlib.store import checkpoint
from sglrlib.training.measure import accuracies, diagnose, look
from sglrlib.training.step import Step


class Diverged(RuntimeError):
    """The training loss is no longer finite; the message names the epoch and the last good checkpoint."""


def train(
    config: RunConfig, folder: Path, *, teachers: Sequence[nn.Module] = (), device: str = "cpu", speed: str = "fast",
    report: Callable[[dict], None] = print, say: Callable[[str], None] = print,
) -> None:  # fmt: skip
    """Train a run to its last epoch, from the checkpoint in folder on if there is one.

    After each epoch, folder holds last.pt (everything a resume needs), best-N.pt (the weights of the best epoch so
    far, N) and curve.csv. teachers are the networks of config.teachers, in eval mode. report is called with each
    epoch's row of the curve, say with what a person should know. Random streams are seeded by (seed, epoch), so none
    has to be saved. Raises Diverged when the loss is NaN or infinite, Damaged when no checkpoint there can be used.
    """
    data = run_data(config).to(device)
    step = first_step(config, data.train.y, speed=speed, teachers=teachers)
    parts = dict(model=step.model, labels=step.labels, optimizer=step.optimizer)
    if config.swa_start < 1:
        parts["averaged"] = AveragedModel(step.model)
    curve = checkpoint.restore(folder, config.id, parts, device, say)
    take = captured(step) if speed != "plain" and data.train.y.is_cuda else step
    batches = partial(data.train.batches, config.batch_size, step.generator, config.augment)
    record = partial(diagnose, config, run_model(config).to(device), step.labels, step.method, teachers, data)

    for epoch in range(len(curve) + 1, config.epochs + 1):
        started, total = time.perf_counter(), torch.zeros((), device=device)
        step.generator.manual_seed(config.seed * 1_000_003 + epoch)
        step.start_epoch(epoch)
        for x, y, index in batches():
            total += take(x, y, index) * len(y)
        row = dict(epoch=epoch, lr=config.lr_at(epoch), loss=total.item() / len(data.train))
        if not math.isfinite(row["loss"]):
            raise Diverged(
                f"the loss of epoch {epoch} is {row['loss']}; the last good checkpoint is that of epoch {epoch - 1} "
                f"in {folder}. A smaller lr than {config.lr} may help."
            )
        judged = step.model
        if config.averages_at(epoch):
            judged = parts["averaged"].module
            parts["averaged"].update_parameters(step.model)
            update_bn(by_size(batches(), judged), judged)  # re-estimated, on clean images
        views = look(config, judged, data, speed)
        curve.append(row | accuracies(views) | record(judged, views, step.clean_pass))
        checkpoint.save_epoch(folder, config.id, parts, judged, curve, best_epoch(curve, config))
        report(curve[-1] | dict(seconds=time.perf_counter() - started))


def by_size(batches: Iterable[Sequence[Tensor]], model: nn.Module) -> Iterator[Tensor]:
    """The images of batches for update_bn(), which alone would count a smaller last batch as much as a whole one."""
    norms, seen = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)], 0
    for x, *_ in batches:
        seen += len(x)
        for norm in norms:
            norm.momentum = len(x) / seen  # so that the running statistics stay a mean over all images seen
        yield x


def run_data(config: RunConfig) -> Data:
    """The splits that a run trains and is measured on, on the CPU."""
    return load_data(
        config.dataset, train_size=config.train_size, val_size=config.val_size, test_size=config.test_size,
        noise=config.noise, noise_rate=config.noise_rate, seed=config.seed, folds=config.folds, fold=config.fold,
    )  # fmt: skip


def first_step(config: RunConfig, y: Tensor, *, speed: str = "fast", teachers: Sequence[nn.Module] = ()) -> Step:
    """The run's step with its initial weights, on the device of its training labels y (n,)."""
    model = run_model(config)
    model = model.to(y.device, memory_format=layout(model, speed, y.device))
    labels = config.label_rule(y, DATASETS[config.dataset].classes).to(y.device)
    labels.follow(model)
    optimizer = torch.optim.SGD(
        model.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay, fused=speed != "plain"
    )
    optimizer.register_load_state_dict_post_hook(partial(keep_speed, fused=speed != "plain"))
    return Step(config, model, labels, optimizer, torch.Generator(y.device), teachers=teachers, speed=speed)


def keep_speed(optimizer: torch.optim.Optimizer, *, fused: bool) -> None:
    """What was restored goes on at this run's speed, whichever the checkpoint was written at.

    A checkpoint brings back its own fused, learning rate (a tensor, if steps were captured) and layout of the momentum;
    fused SGD reads momentum in the order of memory, so another layout than the weights' gives wrong updates silently.
    """
    for group in optimizer.param_groups:
        group.update(fused=fused, lr=float(group["lr"]))
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                state[name] = torch.empty_like(weight).copy_(value)


def run_model(config: RunConfig) -> nn.Module:
    """The run's network with its initial weights, on the CPU."""
    dataset = DATASETS[config.dataset]
    normalise = (dataset.mean, dataset.std) if config.normalise else None
    return build_model(config.arch, dataset.classes, dataset.shape, normalise=normalise, seed=config.seed)


def best_epoch(curve: list[dict], config: RunConfig) -> int:
    """The first epoch of the highest accuracy that selects; among those of averaged weights, once there are any."""
    averaged = [row for row in curve if config.averages_at(row["epoch"])]
    return max(averaged or curve, key=lambda row: row[config.selected_by])["epoch"]
