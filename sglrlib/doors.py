"""One's own label rule, method, attack, network, dataset, noise, diagnostic or row, from a notebook or a script."""

import re
import sys
from functools import partial
from typing import Any

import cloudpickle
import torch

from sglrlib import recipes
from sglrlib.checks import UsageError, one_of
from sglrlib.config import DEFAULTS, options
from sglrlib.judging.diagnostics import DIAGNOSTICS
from sglrlib.method.attacks import ATTACKS, EXAMPLES, Own
from sglrlib.method.data import NOISES, load_data
from sglrlib.method.datasets import DATASETS, Dataset
from sglrlib.method.labels import LABELS
from sglrlib.method.methods import METHODS
from sglrlib.method.models import MODELS
from sglrlib.recipes import METHOD_ROWS, RECIPES, ROWS, compose
from sglrlib.source import CODE, fingerprint, is_own
from sglrlib.trials import TRIALS


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
