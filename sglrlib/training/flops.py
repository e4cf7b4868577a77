"""The floating-point operations (FLOP) of a run, counted before it has begun."""

import functools
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

from sglrlib.config import RunConfig, make_config, options
from sglrlib.judging.diagnostics import DIAGNOSTICS, Snapshot, View
from sglrlib.method.attacks import AFTER, PGD, named_attack
from sglrlib.method.autoattack import Part
from sglrlib.method.datasets import DATASETS
from sglrlib.training.train import first_step, run_model


class Cost(NamedTuple):
    """What a run takes, all in FLOP or all in seconds: the training, what is measured after each epoch, and each
    column of the evaluation, for both checkpoints together.
    """

    training: float
    measuring: float
    columns: dict[str, float]

    @property
    def total(self) -> float:
        return self.training + self.measuring + sum(self.columns.values())


def counted(config: RunConfig, columns: Mapping[str, int] | None = None) -> Cost:
    """The FLOP of a run: those of its own steps, counted on two made-up images, times images and epochs.

    columns: which are wanted -> how many test images are attacked for each (0: all). As in torch's own counter,
    convolutions and matrix products are all that counts. Two things are simplified: gradient norms of the method's own
    loss count as those of cross-entropy do, and attacks made on another network as if made on this one.
    """
    train, val, test = sizes(config)
    forward, gradient = passes(config.arch, config.dataset)
    epochs = range(1, config.epochs + 1)
    starts = "refine_start" in config.as_dict()
    kinds = Counter((starts and epoch >= config.first_refined, config.awp_at(epoch) > 0) for epoch in epochs)
    steps = sum(n * step_flop(config, *kind) for kind, n in kinds.items())
    steps += forward * sum(map(config.averages_at, epochs))  # the average's BatchNorm statistics

    seen = min(train, config.train_eval_size), val, test
    attacked = [min(n, config.attacked_size or n) for n in seen]
    looks = sum(seen) * forward + sum(attacked) * (config.eval_steps * gradient + forward)
    for name in config.diagnostics:
        few = min(attacked[0], options(DIAGNOSTICS[name]).get("images", attacked[0]))
        looks += few * diagnostic_flop(name, config.arch, config.dataset)

    judged = {column: 2 * judging_flop(config, column, min(n or test, test)) for column, n in (columns or {}).items()}
    return Cost(steps * train, looks * config.epochs, judged)


def sizes(config: RunConfig) -> tuple[int, int, int]:
    """Training, validation and test images. CIFAR's are known, so that an estimate needs no download."""
    if config.dataset in ("cifar10", "cifar100"):
        train, test = 50_000, 10_000
    else:
        train, test = (len(y) for _, y in DATASETS[config.dataset].load())
    train = min(train - config.val_size, config.train_size or train)
    if config.folds > 1:
        train -= len(range(config.fold, train, config.folds))
    return train, config.val_size, config.test_size or test


# The FLOP for one image, each counted once in a process.


@functools.cache
def passes(arch: str, dataset: str) -> tuple[float, float]:
    """FLOP of a forward pass, and of a step of PGD: a forward pass, and one back to the image."""
    model, (x, y, _) = run_model(plain(arch=arch, dataset=dataset)).eval(), made_up(dataset)
    return count(lambda: model(x)), count(lambda: PGD(0.1, 0.1, 1)(model, x, y, torch.Generator()))


def step_flop(config: RunConfig, refined: bool = False, awp: bool = False) -> float:
    """FLOP of a training step, with labels refined or not, with weights perturbed or not."""
    names = ("dataset", "arch", "method", "labels", "clean_pass", "attack_steps")
    values = {name: getattr(config, name) for name in names} | config.method_options | config.label_options
    return counted_step(refined, awp, **values)


@functools.cache
def counted_step(refined: bool, awp: bool, *, attack_steps: int, **values: Any) -> float:
    """step_flop(), by the real Step with one and with two attack steps: each further one costs the same."""
    x, y, index = made_up(values["dataset"])
    found = []
    for steps in (1, 2):
        config = plain(**values, refine_start=0.0 if refined else 1.0, awp=0.01 * awp, attack_steps=steps)
        teachers = [run_model(teacher).eval() for teacher in config.teachers]
        step = first_step(config, y, speed="plain", teachers=teachers)
        step.start_epoch(1)
        found.append(count(lambda step=step: step(x, y, index)))
    return found[0] + (attack_steps - 1) * (found[1] - found[0])


@functools.cache
def diagnostic_flop(name: str, arch: str, dataset: str) -> float:
    """FLOP of one of DIAGNOSTICS for an attacked training image: those that have any grow with these alone."""
    model, (x, y, _) = run_model(plain(arch=arch, dataset=dataset)).eval(), made_up(dataset)
    logits = model(x).detach()
    view = View(x, y, y, logits, x, logits)
    snapshot = Snapshot(model, model, view, view, lambda net, x, x_adv, i: F.cross_entropy(net(x_adv), y[i]), 2, 2)
    return count(lambda: DIAGNOSTICS[name](snapshot))


# The shares of the test images that are assumed to be right as they are, and to withstand APGD-CE.
RIGHT, STANDING = 0.85, 0.55


def judging_flop(config: RunConfig, column: str, images: int) -> float:
    """FLOP of a column, of one checkpoint; images: how many of the first test images are attacked.

    Of these, as in runs.judged(), only those that are right before: RIGHT of them, after APGD-CE STANDING. An upper
    bound with these shares, for AutoAttack leaves an image alone once it is broken.
    """
    forward, _ = passes(config.arch, config.dataset)
    name = column.removeprefix("confidence ").split(" from ")[0]
    if name == "natural":
        return forward * (sizes(config)[2] if column == name else images)
    share = 1.0 if column.startswith("confidence ") else STANDING if name in AFTER else RIGHT
    return share * images * (attack_flop(name, config.arch, config.dataset) + forward)


@functools.cache
def attack_flop(name: str, arch: str, dataset: str) -> float:
    """FLOP of an attack on one image: AutoAttack's parts by their iterations, one of one's own by trying it."""
    attack, (forward, gradient) = named_attack(name, 0.1, 0.1), passes(arch, dataset)
    if isinstance(attack, PGD):
        return attack.steps * gradient
    if isinstance(attack, Part):
        times, targets = attack.iterations, min(9, DATASETS[dataset].classes - 1)
        return {
            "apgd_ce": (times or 100) * gradient + gradient,
            "apgd_t": targets * ((times or 100) * gradient + gradient),
            "fab_t": targets * (times or 100) * (gradient + forward),
            "square": (times or 5000) * forward,
        }[attack.part]
    model, (x, y, _) = run_model(plain(arch=arch, dataset=dataset)).eval(), made_up(dataset)
    return count(lambda: attack(model, x, y, torch.Generator()))


def plain(**values: Any) -> RunConfig:
    """A short run without validation images."""
    return make_config(**values, epochs=2, select_on="test")


def made_up(dataset: str, images: int = 2, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """Grey images (N, C, H, W) of a dataset's shape, labels of class 0 and indices (N,)."""
    x = torch.full((images, *DATASETS[dataset].shape), 0.5, device=device)
    return x, torch.zeros(images, dtype=torch.long, device=device), torch.arange(images, device=device)


def count(call: Callable[[], Any]) -> float:
    """FLOP of a call for each of its two images."""
    with Flop() as flop:
        call()
    return flop.total / 2


class Flop(TorchDispatchMode):
    """Within: total is the FLOP so far, by torch's formulas, and what they count is not computed: its results are zero.

    torch's own FlopCounterMode computes, and follows modules by hooks that fail where an attack differentiates in the
    images.
    """

    total = 0

    def __torch_dispatch__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs, formula = kwargs or {}, flop_registry.get(func._overloadpacket)
        if formula is None:
            return func(*args, **kwargs)
        shapes = func(*tree_map_only(Tensor, lambda tensor: tensor.to("meta"), args), **kwargs)
        self.total += formula(*args, **kwargs, out_val=shapes)
        return tree_map_only(Tensor, lambda tensor: torch.zeros_like(tensor, device="cpu"), shapes)
