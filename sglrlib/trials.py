"""Each kind of entry that register() takes, tried on a few random images before it is known."""

import dataclasses
import inspect
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from sglrlib.checks import UsageError, one_of
from sglrlib.config import DEFAULTS, RunConfig
from sglrlib.judging.diagnostics import Snapshot, View
from sglrlib.judging.evaluate import verify
from sglrlib.method.attacks import OBJECTIVES, Own
from sglrlib.method.data import Split
from sglrlib.method.datasets import DATASETS, Dataset
from sglrlib.method.labels import LABELS, Hard
from sglrlib.method.methods import METHODS, Method
from sglrlib.recipes import ROWS, row_recipe


def try_labels(rule: type[Hard], name: str) -> None:
    subclass(rule, Hard)
    if not rule.title or rule.title in {other.title for key, other in LABELS.items() if key != name}:
        raise UsageError(f"title = {rule.title!r}: expected one of its own, such as '+Boot'.")
    check_options(rule, ["y", "classes"])
    y, index = torch.tensor([0, 1, 2, 0, 1]), torch.tensor([4, 0, 2])
    labels, (model, *_) = rule(y, 3), tiny()
    labels.follow(model)
    for epoch in (1, 2):  # before refinement and after it has begun
        labels.start_epoch(epoch, 2, 2)
        logits, adv, clean = (torch.randn(3, 3, requires_grad=True) for _ in range(3))
        same(labels.target(index, adv, clean if labels.needs_clean else None), torch.zeros(3, 3), "target()")
        penalty = labels.penalty(index, lambda model=model, clean=clean: clean.detach())
        loss = labels(logits, adv, clean.detach(), index, penalty)
        scalar_with_gradient(loss, logits)
        labels.update()
        labels.follow(model)


def try_method(method: type[Method], name: str) -> None:
    subclass(method, Method)
    if not (dataclasses.is_dataclass(method) and method.__dataclass_params__.frozen):
        raise UsageError(f"{method.__qualname__}: expected a class under @dataclass(frozen=True).")
    if getattr(method, "title", "") in ("", *(other.title for key, other in METHODS.items() if key != name)):
        raise UsageError(f"title = {getattr(method, 'title', '')!r}: expected one of its own, such as 'MART'.")
    check_options(method, [])
    one_of("objective", method.objective, ["", *OBJECTIVES])
    for teacher in method.teachers:
        one_of("teachers", teacher, METHODS)
    model, x, y = tiny()
    labels = Hard(y, 3)
    teachers = [model for _ in method.teachers]
    loss = method().loss(model, x, x, partial(labels, index=torch.arange(4)), "train", teachers)
    scalar_with_gradient(loss, *model.parameters())


def try_attack(attack: Callable, name: str) -> None:
    check_arguments(attack, ["model", "x", "y", "eps", "step", "generator"])
    model, x, y = tiny()
    x_adv = Own(attack, 0.1, 0.05)(model, x, y, torch.Generator().manual_seed(0))
    same(x_adv, x, "the attack")
    verify(x, x_adv, 0.1)


def try_arch(build: Callable, name: str) -> None:
    check_arguments(build, ["classes", "shape"])
    failures = []
    for shape in dict.fromkeys(dataset.shape for dataset in DATASETS.values()):
        try:
            logits = build(classes=3, shape=shape)(torch.rand(2, *shape))
        except Exception as error:
            failures.append(f"images {shape}: {type(error).__name__}: {error}")
            continue
        return same(logits.detach(), torch.zeros(2, 3), "the network")
    raise UsageError(f"it takes the images of no known dataset; {'; '.join(failures)}")


def try_dataset(dataset: Dataset, name: str) -> None:
    if not isinstance(dataset, Dataset):
        raise UsageError(f"expected a sglrlib.method.datasets.Dataset, not {type(dataset).__name__}.")
    for images, y in dataset.load():
        if str(images.dtype) != "uint8" or images.shape[1:] != dataset.shape:
            raise UsageError(f"load() gives {images.dtype} {images.shape}: expected uint8 (N, {dataset.shape}).")
        if y.shape != images.shape[:1] or not 0 <= y.min() <= y.max() < dataset.classes:
            raise UsageError(
                f"load() gives labels {y.shape} from {y.min()} to {y.max()}: expected {images.shape[:1]}, "
                f"from 0 to {dataset.classes - 1}."
            )
    for what in ("mean", "std"):
        if len(getattr(dataset, what)) != dataset.shape[0]:
            raise UsageError(f"{what} = {getattr(dataset, what)}: expected a number a channel, {dataset.shape[0]}.")


def try_noise(noise: Callable, name: str) -> None:
    check_arguments(noise, ["split", "dataset", "generator"])
    dataset = next(iter(DATASETS.values()))
    images, y = torch.zeros(6, *dataset.shape, dtype=torch.uint8), torch.arange(6) % dataset.classes
    split = Split(images.clone(), y.clone(), y.clone(), torch.arange(6))
    spoilt, labels = noise(split, dataset, torch.Generator().manual_seed(0))
    same(spoilt, images, "images")
    same(labels, y, "labels")
    if not 0 <= labels.min() <= labels.max() < dataset.classes:
        raise UsageError(f"labels from {labels.min()} to {labels.max()}: expected 0 to {dataset.classes - 1}.")


def try_diagnostics(record: Callable, name: str) -> None:
    model, x, y = tiny()
    view = View(x, y, y, model(x).detach(), x, model(x).detach())
    row = record(Snapshot(model, model, view, view, lambda net, x, *_: nn.functional.cross_entropy(net(x), y), 4, 4))
    if not (isinstance(row, dict) and row and all(isinstance(v, float) for v in row.values())):
        raise UsageError(f"it returns {row!r}: expected a dictionary of columns, each a float.")


def try_row(changes: dict, name: str) -> None:
    if not isinstance(changes, dict):
        raise UsageError(f"expected a dictionary of changes to a recipe, not {type(changes).__name__}.")
    before = ROWS.get(name)
    ROWS[name] = changes
    try:
        row_recipe(name)
    finally:
        ROWS.pop(name) if before is None else ROWS.update({name: before})


TRIALS = dict(
    labels=try_labels, method=try_method, attack=try_attack, arch=try_arch, dataset=try_dataset, noise=try_noise,
    diagnostics=try_diagnostics, row=try_row,
)  # fmt: skip


def tiny() -> tuple[nn.Module, Tensor, Tensor]:
    """A linear network of three classes in eval mode, four images (4, 1, 8, 8) and their labels."""
    x, y = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval(), x, y


def subclass(entry: object, wanted: type) -> None:
    if not (isinstance(entry, type) and issubclass(entry, wanted)):
        raise UsageError(f"expected a subclass of {wanted.__module__}.{wanted.__qualname__}, not {entry!r}.")


def check_arguments(function: Callable, wanted: list[str]) -> None:
    """Raise UsageError unless a function can be called with these arguments by name or in this order."""
    if not callable(function):
        raise UsageError(f"expected a function ({', '.join(wanted)}), not {type(function).__name__}.")
    try:
        inspect.signature(function).bind(**dict.fromkeys(wanted))
    except TypeError as error:
        raise UsageError(f"{error}: expected the arguments {', '.join(wanted)}, by these names.") from None


def check_options(entry: Callable, first: list[str]) -> None:
    """Raise UsageError unless all arguments but the first ones are options: a default, a plain type, a free name."""
    own = {field.name for field in dataclasses.fields(RunConfig)}
    for name, parameter in list(inspect.signature(entry).parameters.items())[len(first) :]:
        default = parameter.default
        if type(default) not in (bool, int, float, str):
            raise UsageError(f"option {name!r}: expected a default that is a bool, int, float or str, as its type.")
        if name in own or type(DEFAULTS.get(name, default)) is not type(default):
            raise UsageError(f"option {name!r} has another meaning already: choose another name.")


def same(given: object, wanted: Tensor, what: str) -> None:
    """Raise UsageError unless a tensor has the wanted one's shape and dtype, no gradient, and is finite."""
    if not isinstance(given, Tensor):
        raise UsageError(f"{what} returns {type(given).__name__}: expected a tensor {tuple(wanted.shape)}.")
    if given.shape != wanted.shape or given.dtype != wanted.dtype:
        raise UsageError(
            f"{what} returns {given.dtype} {tuple(given.shape)}: expected {wanted.dtype} {tuple(wanted.shape)}."
        )
    if given.requires_grad:
        raise UsageError(f"{what} returns a tensor with gradient: expected none; detach() it.")
    if not given.isfinite().all():
        raise UsageError(f"{what} returns NaN or infinity: expected finite numbers.")


def scalar_with_gradient(loss: object, *inputs: Tensor) -> None:
    if not isinstance(loss, Tensor) or loss.dim() or not loss.requires_grad:
        shown = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise UsageError(f"the loss is {shown}: expected one number, the batch's mean, with gradient.")
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
    if not math.isfinite(loss.item()) or all(g is None for g in gradients):
        raise UsageError(f"the loss is {loss.item():g} and must be finite, with a gradient in the logits or weights.")
