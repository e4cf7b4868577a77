"""One's own label rule, method, attack, network, dataset, noise, diagnostic or row, from a notebook or a script."""

import dataclasses
import inspect
import math
import re
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import cloudpickle
import torch
from torch import Tensor, nn

from sglrlib import recipes
from sglrlib.checks import UsageError, one_of
from sglrlib.config import DEFAULTS, RunConfig, options
from sglrlib.judging.diagnostics import DIAGNOSTICS, Snapshot, View
from sglrlib.judging.evaluate import verify
from sglrlib.method.attacks import ATTACKS, EXAMPLES, OBJECTIVES, Own
from sglrlib.method.data import NOISES, Split, load_data
from sglrlib.method.datasets import DATASETS, Dataset
from sglrlib.method.labels import LABELS, Hard
from sglrlib.method.methods import METHODS, Method
from sglrlib.method.models import MODELS
from sglrlib.recipes import METHOD_ROWS, RECIPES, ROWS, compose, row_recipe
from sglrlib.source import CODE, fingerprint, is_own


def register(kind: str, name: str, entry: Any = None, *, recipe: dict | None = None) -> Any:
    """Make an entry of one's own known by a name; without entry it is a decorator. Returns the entry.

    From then on parameters, recipes, tables, error messages and workers know it. It is tried on a few random images
    first, and the source of its code enters the ids of the runs that use it: changed code is another run. kind:

    labels       a subclass of method.labels.Hard, whose keyword arguments are its options; it overrides target() or
                 penalty(). target(index (B,), adv (B, K), clean (B, K) or None) returns targets (B, K) float, without
                 gradient. What must survive a resume is a buffer. title, such as "+LS", names it in tables.
    method       a frozen dataclass, subclass of method.methods.Method, with a title; its fields are its options. loss()
                 returns the batch's mean loss, differentiable in the weights of a model in train mode.
    attack       attack(model, x, y, eps, step, generator) -> adversarial images like x (N, C, H, W), within eps of x
                 and in [0, 1]; eps and step are in [0, 1]. The model is in eval mode, its weights frozen, gradients on.
    arch         build(*, classes, shape) -> a network: images (N, *shape) in [0, 1] in, raw logits (N, classes) out.
    dataset      a method.datasets.Dataset whose load() returns (train images, y), (test images, y): NumPy arrays, uint8
                 (N, C, H, W) and integers (N,). recipe: what its runs change in RunConfig's defaults.
    noise        noise(split, dataset, generator) -> (images, y), of the shapes and types that they have in split, a
                 method.data.Split of the samples to spoil: (n, C, H, W) uint8 and (n,) int64.
    diagnostics  record(snapshot) -> {column: number}, after each epoch of the runs that name it; snapshot is a
                 judging.diagnostics.Snapshot.
    row          a dictionary of changes to a recipe, the row's name in tables.

    Raises UsageError for a name that the library has, an entry that does not do what its kind must, with what was
    expected, and where its source cannot be read.
    """
    if entry is None:
        return partial(register, kind, name, recipe=recipe)
    one_of("kind", kind, TRIALS)
    if (kind, name) not in ENTRIES and name in KNOWN[kind]:
        raise UsageError(f"{kind} {name!r} is the library's own: choose another name.")
    if kind != "row" and not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UsageError(f"{kind} {name!r}: expected a name of small letters, digits and _, such as 'my_rule'.")
    if kind != "dataset" and recipe is not None:
        raise UsageError(f"recipe belongs to a dataset, not to {kind} {name!r}.")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # torch.manual_seed() would seed the GPUs' too
            TRIALS[kind](entry, name)
    except UsageError as error:
        raise UsageError(f"{kind} {name!r}: {error}") from error
    except Exception as error:
        raise UsageError(f"{kind} {name!r} failed when tried: {type(error).__name__}: {error}") from error
    for changed in recipe or ():
        one_of("recipe", changed, DEFAULTS)
    enter(kind, name, entry, recipe, fingerprint(parts(entry) if kind == "dataset" else entry))
    if kind == "dataset":
        try:
            own = recipes.recipe(name)
            load_data(name, train_size=own.train_size, val_size=own.val_size, test_size=own.test_size)
        except UsageError as error:
            del DATASETS[name], RECIPES[name], ENTRIES[kind, name], CODE[kind, name]
            raise UsageError(f"the recipe of dataset {name!r}: {error}") from error
    return entry


ENTRIES: dict[tuple[str, str], tuple] = {}  # (kind, name) -> (entry, recipe, fingerprint)
KNOWN = dict(
    labels=LABELS, method=METHODS, attack=ATTACKS, arch=MODELS, dataset=DATASETS, noise=NOISES,
    diagnostics=DIAGNOSTICS, row=ROWS,
)  # fmt: skip


def enter(kind: str, name: str, entry: Any, recipe: dict | None, code: str) -> None:
    """Put an entry where its kind is looked up, untried."""
    ENTRIES[kind, name], CODE[kind, name] = (entry, recipe, code), code
    if kind == "attack":
        ATTACKS[name] = partial(Own, entry)
        EXAMPLES[:] = [*dict.fromkeys([*EXAMPLES, name])]
    else:
        KNOWN[kind][name] = (entry, []) if kind == "arch" else entry
    if kind in ("labels", "method"):
        DEFAULTS.update(options(entry))
    if kind == "method":
        METHOD_ROWS[entry.title] = dict(method=name)
    if kind == "dataset":
        RECIPES[name] = dict(own=recipe or {})
    compose()


def parts(dataset: Dataset) -> dict[str, Any]:
    """A dataset's fields; human, which came later, only where it is set: the fingerprint of another stays as it was."""
    return {name: value for name, value in vars(dataset).items() if name != "human" or value}


def carried() -> bytes:
    """All that is registered, for the worker processes of this one; modules of one's own go along by value."""
    if not ENTRIES:
        return b""
    parts = [p for entry, *_ in ENTRIES.values() for p in [entry, *getattr(entry, "__dict__", {}).values()]]
    modules = {sys.modules.get(getattr(part, "__module__", None) or "") for part in parts}
    own = [m for m in modules if m and m.__name__ != "__main__" and is_own(m)]
    for module in own:
        cloudpickle.register_pickle_by_value(module)
    try:
        return cloudpickle.dumps([(*key, *entry) for key, entry in ENTRIES.items()])
    finally:
        for module in own:
            cloudpickle.unregister_pickle_by_value(module)


def take_over(entries: bytes) -> None:
    """Know what carried() gave in the process that started this one."""
    for entry in cloudpickle.loads(entries) if entries else ():
        enter(*entry)


# Each kind is tried before it is known.


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
