"""What is timed: a network, its data, our step and the published ones, and the gate that both must pass first."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import reference
from sglrlib.config import RunConfig
from sglrlib.device import exact_fp32
from sglrlib.method.data import Split
from sglrlib.method.datasets import DATASETS
from sglrlib.method.fast import AttackCopy, captured
from sglrlib.recipes import recipe
from sglrlib.training.step import Step, training_attack
from sglrlib.training.train import first_step, run_data, run_model

# What the gate allows. Of the gradient on the median image, the distance to the reference's relative to its length (a
# rare image sits on a ReLU's kink, where rounding alone decides). Of the attacked images, in fp64, the share of pixels
# that differ (in fp32 an attack on an untrained network amplifies rounding, the reference's own included). Of the loss
# of a step, relative, with the attack's start alone, for the same reason.
TOLERANCES = dict(gradient=1e-5, pixels=1e-4, loss=1e-5)


@dataclass(frozen=True)
class Task:
    """A network to be trained by the paper's method, with images to train it on, on one device."""

    config: RunConfig
    data: Split

    @property
    def batch(self) -> tuple[Tensor, Tensor, Tensor]:
        index = torch.arange(self.config.batch_size, device=self.data.y.device)
        return self.data.x(index), self.data.y[index], index

    @property
    def noise(self) -> Tensor:
        """The start that ours draws from a generator of seed 0, less the images."""
        x, eps = self.batch[0], self.config.eps_255 / 255
        generator = torch.Generator(x.device).manual_seed(0)
        return eps * (2 * torch.rand(x.shape, generator=generator, device=x.device) - 1)

    def model(self) -> nn.Module:
        return run_model(self.config).to(self.data.y.device)

    def release(self, model: nn.Module | None = None) -> Callable[[], Tensor]:
        classes = DATASETS[self.config.dataset].classes
        return partial(
            reference.Release(self.config, model or self.model(), self.data.y, classes), *self.batch, self.noise
        )

    def rice(self) -> Callable[[], Tensor]:
        return partial(reference.Rice(self.config, self.model()), *self.batch, self.noise)

    def step(self, precision="fp32", speed="fast") -> Step:
        """The library's own, as train() sets it up, in its first epoch."""
        step = first_step(self.config.but(precision=precision), self.data.y, speed=speed)
        step.generator.manual_seed(0)
        step.start_epoch(1)
        return step

    def ours(self, precision="fp32", speed="fast", graph=True) -> Callable[[], Tensor]:
        step = self.step(precision, speed)
        on_cuda = self.data.y.is_cuda
        return partial(captured(step) if on_cuda and graph else step, *self.batch)


def task(arch: str, device: str, batch_size: int = 0, images: int = 50_000) -> Task:
    """A network of the cnn family with the recipe of digits; any other on random images of CIFAR-10's shape."""
    protocol = dict(arch=arch, labels="self_guided", refine_start=0.0)
    if "cnn" in arch:
        config = recipe("digits", **protocol)
        return Task(config, run_data(config).train.to(device))
    config = recipe("cifar10", "paper", batch_size=batch_size, **protocol)
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (images, *DATASETS["cifar10"].shape), generator=generator, dtype=torch.uint8)
    y = torch.randint(10, (images,), generator=generator)
    return Task(config, Split(x, y, y, torch.arange(images)).to(device))


@exact_fp32()
def gate(task: Task) -> dict[str, float]:
    """How far ours is from the release, from the same weights, batch and noise: TOLERANCES says in what.

    Raises SystemExit where that is too far.
    """
    model, (x, y, index) = task.model().eval(), task.batch
    start = (x + task.noise).clamp(0, 1)
    theirs = gradients(model, start, y)
    ours = gradients(AttackCopy(model), start, y)
    unattacked = Task(task.config.but(attack_steps=0), task.data)
    loss, expected = unattacked.step()(x, y, index).item(), unattacked.release()().item()
    exact = copy.deepcopy(model).double()
    x = x.double()
    theirs_adv = reference.attack_by_grad(exact, x, y, task.noise, task.config)
    generator = torch.Generator(x.device).manual_seed(0)
    ours_adv = training_attack(task.config)(AttackCopy(exact, torch.float64).net, x, y, generator, None)
    found = dict(
        gradient=((ours - theirs).norm(dim=1) / theirs.norm(dim=1)).median().item(),
        pixels=((ours_adv - theirs_adv).abs() > 1e-6).double().mean().item(),
        loss=abs(loss - expected) / abs(expected),
    )
    if not all(found[name] <= TOLERANCES[name] for name in found):
        raise SystemExit(f"{task.config.arch}: not the same computation, so not timed: {found}, allowed {TOLERANCES}.")
    return found


def gradients(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The gradient of each image's cross-entropy, (N, C * H * W)."""
    x = x.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(model(x), y, reduction="sum"), x)[0].flatten(1)
