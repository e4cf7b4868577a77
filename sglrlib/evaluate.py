"""Accuracy of a model on a split, natural or under an attack, image by image."""

import torch
from torch import Tensor, nn

from sglrlib.attacks import PGD
from sglrlib.data import Split
from sglrlib.fast import attack_target


@torch.no_grad()
def correct(model: nn.Module, split: Split, attack: PGD | None = None, *, batch_size=500, speed="fast") -> Tensor:
    """Whether each image is classified as its label y, (N,) bool on the CPU; attacked first where attack is given.

    The attack's random start depends only on the image's place in the split. Attacks are made in fp32 on the model
    or its folded copy, and judged by the model itself in eval mode, whose own mode is restored. A model is attacked
    here too briefly for speed 'compile' to pay: it is taken as 'fast'.
    """
    generator = torch.Generator(split.y.device).manual_seed(0)
    was_training = model.training
    model.eval()
    target = attack_target(model, "plain" if speed == "plain" else "fast").refresh() if attack else None
    flags = []
    for index in torch.arange(len(split), device=split.y.device).split(batch_size):
        x, y = split.x(index), split.y[index]
        if attack:
            x = attack(target, x, y, generator)
        flags.append(model(x).argmax(1) == y)
    model.train(was_training)
    return torch.cat(flags).cpu()


def accuracy(model: nn.Module, split: Split, attack: PGD | None = None, **settings) -> float:
    """The share of correct() images, in percent."""
    return 100 * correct(model, split, attack, **settings).double().mean().item()
