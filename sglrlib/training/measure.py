"""What is measured of a run after each epoch: accuracies, and the diagnostics that it was asked for."""

import copy
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from sglrlib.config import RunConfig
from sglrlib.device import exact_fp32
from sglrlib.judging.diagnostics import DIAGNOSTICS, Snapshot, View
from sglrlib.judging.evaluate import examples, outputs
from sglrlib.method.attacks import untouched
from sglrlib.method.data import HUMAN, Data, Split, planted
from sglrlib.method.datasets import DATASETS
from sglrlib.method.fast import attack_target
from sglrlib.method.labels import Hard
from sglrlib.method.methods import Method


def look(config: RunConfig, model: nn.Module, data: Data, speed: str) -> dict[str, View]:
    """A network's view of a train subset, and of the validation and test images; attacked by PGD of eval_steps.

    The attack is made in the precision of training, on one copy for all; the logits are in fp32, TF32 off.
    """
    attack = config.attack(steps=config.eval_steps)
    splits: dict[str, Split] = dict(train=data.train.first(config.train_eval_size), val=data.val, test=data.test)
    views = {}
    with untouched(model):
        target = attack_target(model, "plain" if speed == "plain" else "fast", config.precision).refresh()
        for name, split in splits.items():
            if len(split):
                x, logits = outputs(model, split.x(), split.y)
                few = split.first(config.attacked_size)
                x_adv = examples(target, few.x(), few.y, attack)
                logits_adv = outputs(model, x_adv, few.y)[1]
                views[name] = View(x, split.y, split.y_clean, logits, x_adv, logits_adv)
    return views


def accuracies(views: dict[str, View]) -> dict[str, float]:
    """Natural and robust accuracy (%) against the assigned labels, for the curve."""
    return {
        f"{name}_{kind}": 100 * (logits.argmax(1) == view.y[: len(logits)]).double().mean().item()
        for name, view in views.items()
        for kind, logits in (("natural", view.logits), ("robust", view.logits_adv))
    }


@exact_fp32()
def diagnose(
    config: RunConfig, initial: nn.Module, labels: Hard, method: Method, teachers: Sequence, data: Data,
    model: nn.Module, views: dict[str, View], clean_pass: str,
) -> dict[str, float]:  # fmt: skip
    """The columns of config.diagnostics, made on copies, TF32 off: the run goes on as if it had not been looked at.

    Test labels get the noise of the training labels, but for people's labels: of test images there are none.
    """
    if not config.diagnostics:
        return {}
    rate = 0.0 if config.noise in HUMAN else config.noise_rate
    noisy = planted(data.test.to("cpu"), DATASETS[config.dataset], config.noise, rate, seed=config.seed)
    test = views["test"]
    test = View(test.x, noisy.y.to(test.y.device), test.y_clean, test.logits, test.x_adv, test.logits_adv)
    row = {}
    for name in config.diagnostics:
        loss = partial(own_loss, method, labels, clean_pass, teachers)
        untied = copy.deepcopy(model).eval()
        row |= DIAGNOSTICS[name](
            Snapshot(untied, initial, views["train"], test, loss, samples=len(data.train), batch_size=config.batch_size)
        )
    return row


def own_loss(
    method: Method, labels: Hard, clean_pass: str, teachers: Sequence, model: nn.Module, x: Tensor, x_adv: Tensor,
    index: Tensor,
) -> Tensor:  # fmt: skip
    """The mean loss of a training step, of a model in whichever mode it is; labels are left as they are."""
    labels = copy.deepcopy(labels)
    penalty = labels.penalty(index, partial(eval_logits, x, model=model))
    criterion = partial(labels, index=index, penalty=penalty)
    clean_pass = clean_pass if model.training or clean_pass == "none" else "eval"
    return method.loss(model, x, x_adv, criterion, clean_pass, teachers)


@torch.no_grad()
def eval_logits(x: Tensor, model: nn.Module) -> Tensor:
    """Logits (N, K) of a model in eval mode, whose own mode is restored."""
    with untouched(model):
        return model(x)
