"""One training step: attack a batch, take the method's loss under the label rule, update the weights."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from sglrlib.config import RunConfig
from sglrlib.method.fast import attack_target
from sglrlib.method.labels import LABELS, Hard
from sglrlib.method.methods import METHODS, adversarial_weights
from sglrlib.training.measure import eval_logits


class Step:
    """What a run does with one batch, and the only place where it is written.

    All random numbers come from generator, on the model's device. speed is attack_target()'s. start_epoch() comes
    before the first step of an epoch; mode is then what the step's course depends on beside its tensors.
    """

    def __init__(
        self, config: RunConfig, model: nn.Module, labels: Hard, optimizer: torch.optim.Optimizer,
        generator: torch.Generator, *, teachers: Sequence[nn.Module] = (), speed="fast",
    ):  # fmt: skip
        self.config, self.model, self.labels, self.optimizer = config, model, labels, optimizer
        self.generator, self.teachers = generator, teachers
        self.method = METHODS[config.method](**config.method_options)
        self.attack = training_attack(config)
        self.target = attack_target(model, "plain" if config.attack_mode == "train" else speed, config.precision)

    def start_epoch(self, epoch: int) -> None:
        """Say which epoch begins, counted from 1; the model goes into train mode."""
        config = self.config
        self.labels.start_epoch(epoch, config.first_refined, config.epochs)
        self.clean_pass, self.gamma = clean_pass_mode(config, epoch), config.awp_at(epoch)
        self.mode = self.labels.refining, self.clean_pass, self.gamma
        set_learning_rate(self.optimizer, config.lr_at(epoch))
        self.model.train()

    def __call__(self, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """Update the weights with images x (B, C, H, W) in [0, 1], labels y (B,) and their positions index (B,).

        Returns the batch's mean loss before the update, detached.
        """
        self.optimizer.zero_grad()  # before the attack: the last step's gradients would only take memory
        attacked = self.target.refresh()
        penalty = self.labels.penalty(index, partial(eval_logits, x, model=attacked))
        x_adv = self.attack(attacked, x, y, self.generator, penalty)
        criterion = partial(self.labels, index=index, penalty=penalty)

        def batch_loss() -> Tensor:
            with torch.autocast(x.device.type, torch.bfloat16, self.config.precision == "amp", cache_enabled=False):
                return self.method.loss(self.model, x, x_adv, criterion, self.clean_pass, self.teachers)

        with adversarial_weights(self.model, batch_loss, self.gamma):
            loss = batch_loss()
            loss.backward()
            self.optimizer.step()
        self.labels.update()
        self.labels.follow(self.model)
        return loss.detach()


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


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set it in place where it is a tensor, as a captured step needs it."""
    for group in optimizer.param_groups:
        group["lr"] = group["lr"].fill_(value) if isinstance(group["lr"], Tensor) else value
