"""Adversarial training in the plainest published way: what `make bench` measures the library against.

Written anew after the descriptions of the original code, operation by operation: the release of the paper
(github.com/devicerxx/SGLS) and of Rice et al. 2020 (github.com/locuslab/robust_overfitting). Nothing here is used
anywhere else: the library's own step is sglrlib/training/step.py.
"""

import torch
import torch.nn.functional as F
from pyautoattack import AutoAttack
from torch import Tensor, nn

from sglrlib.config import RunConfig


def attack_by_grad(model: nn.Module, x: Tensor, y: Tensor, noise: Tensor, config: RunConfig) -> Tensor:
    """The release's training attack: eval mode, torch.autograd.grad. noise (N, C, H, W) is where it starts."""
    eps, step = config.eps_255 / 255, config.step_255 / 255
    model.eval()
    x_adv = torch.clamp(x + noise, 0, 1)
    for _ in range(config.attack_steps):
        x_adv.requires_grad_()
        loss = F.cross_entropy(model(x_adv), y)
        gradient = torch.autograd.grad(loss, [x_adv])[0]
        x_adv = x_adv.detach() + step * torch.sign(gradient)
        x_adv = torch.min(torch.max(x_adv, x - eps), x + eps)
        x_adv = torch.clamp(x_adv, 0, 1)
    model.train()
    return x_adv


def attack_by_backward(model: nn.Module, x: Tensor, y: Tensor, noise: Tensor, config: RunConfig) -> Tensor:
    """Rice et al.'s: train mode, loss.backward(), which computes the gradients of all weights on the way.

    A pixel that stands exactly at 0 or 1 gets no gradient through the clamp with torch 2.15.
    """
    eps, step = config.eps_255 / 255, config.step_255 / 255
    delta = torch.max(torch.min(noise, 1 - x), 0 - x).requires_grad_()
    for _ in range(config.attack_steps):
        loss = F.cross_entropy(model(torch.clamp(x + delta, 0, 1)), y)
        loss.backward()
        moved = torch.clamp(delta.detach() + step * torch.sign(delta.grad), -eps, eps)
        delta.data = torch.max(torch.min(moved, 1 - x), 0 - x)
        delta.grad.zero_()
    return torch.clamp(x + delta.detach(), 0, 1)


class Release:
    """The release's step: attack, update and clean forward in train mode, that with a graph thrown away."""

    def __init__(self, config: RunConfig, model: nn.Module, y: Tensor, classes: int):
        self.config, self.model = config, model.train()
        self.optimizer = sgd(config, model)
        self.soft_labels = F.one_hot(y, classes).float()

    def __call__(self, x: Tensor, y: Tensor, index: Tensor, noise: Tensor) -> Tensor:
        options = self.config.label_options
        x_adv = attack_by_grad(self.model, x, y, noise, self.config)
        self.optimizer.zero_grad()
        adv = self.model(x_adv)
        clean = self.model(x).detach()
        mix = options["lam"] * F.softmax(clean, 1) + (1 - options["lam"]) * F.softmax(adv.detach(), 1)
        self.soft_labels[index] = options["alpha"] * self.soft_labels[index] + (1 - options["alpha"]) * mix
        loss = torch.mean(-torch.sum(F.log_softmax(adv, 1) * self.soft_labels[index], 1))
        loss.backward()
        self.optimizer.step()
        return loss.detach()


class Rice:
    """The step of Rice et al.: plain adversarial training, with the clean forward that they make for their log."""

    def __init__(self, config: RunConfig, model: nn.Module):
        self.config, self.model = config, model.train()
        self.optimizer = sgd(config, model)

    def __call__(self, x: Tensor, y: Tensor, index: Tensor, noise: Tensor) -> Tensor:
        x_adv = attack_by_backward(self.model, x, y, noise, self.config)
        loss = F.cross_entropy(self.model(x_adv), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        F.cross_entropy(self.model(x), y)
        return loss.detach()


def sgd(config: RunConfig, model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay)


def pgd_evaluation(model: nn.Module, x: Tensor, y: Tensor, noise: Tensor, config: RunConfig) -> Tensor:
    """The evaluation of TRADES' repository: loss.backward(), the last iterate; flags (N,) of those right."""
    eps, step = config.eps_255 / 255, config.step_255 / 255
    x_adv = x + noise
    for _ in range(config.attack_steps):
        x_adv.requires_grad_()
        model.zero_grad()
        loss = F.cross_entropy(model(x_adv), y)
        loss.backward()
        x_adv = x_adv.detach() + step * x_adv.grad.sign()
        x_adv = torch.clamp(torch.min(torch.max(x_adv, x - eps), x + eps), 0, 1)
    with torch.no_grad():
        return model(x_adv).argmax(1) == y


def plain_cascade(model: nn.Module, x: Tensor, y: Tensor, eps: float, iterations: dict[str, int]) -> Tensor:
    """The same by AutoAttack's own evaluation, on the model as it is."""
    adversary = AutoAttack(model, eps=eps, seed=0, device=x.device)
    how = dict(n_restarts=1, eps=eps, norm="Linf", seed=0, device=x.device)
    adversary.apgd.__init__(model, n_iter=iterations["apgd_ce"], **how)  # which derives its schedule from n_iter
    adversary.apgd_targeted.__init__(model, n_iter=iterations["apgd_t"], **how)
    adversary.fab.n_iter, adversary.square.n_queries = iterations["fab_t"], iterations["square"]
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        x_adv, _ = adversary.run_standard_evaluation(x, y)
    with torch.no_grad():
        return model(x_adv).argmax(1) == y
