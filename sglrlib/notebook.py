"""A notebook's parameters: read from its parameters cell and from what papermill injected, and checked."""

import ast
from collections.abc import Iterable, Iterator
from types import SimpleNamespace

from IPython import get_ipython

from sglrlib.checks import one_of, same_type, within
from sglrlib.config import DEFAULTS, RunConfig, default_scale, recipe


def parameters(**own) -> tuple[SimpleNamespace, dict]:
    """What the cells run so far assign, checked: this notebook's own parameters, and the changes to a recipe.

    own gives the parameters that only this notebook knows, with their defaults; all others are the fields and options
    of a RunConfig, and are left out of the changes where they are '', [], 0 (a whole number) or -1: the recipe's own
    value. Only cells that do nothing but assign literals count: the parameters cell and the one papermill injects.
    papermill merely warns of a name that it does not know: here that is a UsageError, and so is a wrong type.
    """
    shell = get_ipython()
    return read(shell.user_ns, shell.user_ns["In"], own)


def read(namespace: dict, cells: Iterable[str], own: dict) -> tuple[SimpleNamespace, dict]:
    """parameters() of a given namespace and cells; an unknown name is also removed, so that a corrected cell works."""
    given, examples = {}, DEFAULTS | own
    for name in [n for cell in cells for n in literals_assigned(cell) if n in namespace]:
        if name not in examples:
            namespace.pop(name)
            one_of("parameter", name, examples)
        given[name] = same_type(name, namespace[name], examples[name])
    changes = {name: value for name, value in given.items() if name not in own and not is_left_to_recipe(value)}
    return SimpleNamespace(**(own | {name: value for name, value in given.items() if name in own})), changes


def is_left_to_recipe(value) -> bool:
    """Whether a value stands for the recipe's own: '', [] or (), 0 as a whole number, -1."""
    return value in ("", (), -1) or (type(value) is int and value == 0)


def literals_assigned(cell: str) -> Iterator[str]:
    """The names that a cell assigns, if all it does is assign literals to names."""
    try:
        statements = ast.parse(cell).body
        for statement in statements:
            ast.literal_eval(statement.value)
    except (SyntaxError, ValueError, AttributeError):
        return
    for statement in statements:
        targets = getattr(statement, "targets", None) or [getattr(statement, "target", None)]
        yield from (target.id for target in targets if isinstance(target, ast.Name))


def seeds_of(own: SimpleNamespace) -> range:
    """The seeds that a notebook's parameters seed and seeds ask for. Raises UsageError where there are none."""
    within("seed", own.seed, 0)
    within("seeds", own.seeds, 1)
    return range(own.seed, own.seed + own.seeds)


def figure_name(stem: str, configs: list[RunConfig], scale: str) -> str:
    """stem_dataset_scale for the recipe as it stands; the run's hash is added where any of its values was changed."""
    c = configs[-1]
    name = f"{stem}_{c.dataset}_{scale or default_scale(c.dataset)}"
    unchanged = c == recipe(c.dataset, scale, labels="self_guided", seed=c.seed)
    return name if unchanged else f"{name}_{c.id.rsplit('-', 1)[1]}"


SELECTED_ON = dict(val="validation images", test="TEST images, as in the paper: best numbers are optimistic")


def describe(configs: list[RunConfig]) -> str:
    """What a notebook is about to run or show, in a few lines; differs only where the configurations do."""
    c, refined = configs[0], configs[-1]
    drops = " and ".join(map(str, c.drop_epochs))
    schedule = "cosine" if c.schedule == "cosine" else f"divided by 10 from epoch {drops} on"
    lines = [
        f"{c.dataset}, {c.arch}, {', '.join(dict.fromkeys(x.title for x in configs))}; "
        f"seeds {', '.join(map(str, dict.fromkeys(x.seed for x in configs)))}",
        f"budget eps = {c.eps_255}/255; training attack PGD-{c.attack_steps}, step {c.step_255:g}/255, {c.precision}",
        f"{c.epochs} epochs of SGD, batch {c.batch_size}, learning rate {c.lr:g} {schedule}, "
        f"momentum {c.momentum:g}, weight decay {c.weight_decay:g}",
        f"planted label noise: {c.noise_rate:.0%} of the training labels ({c.noise})",
        f"best epoch: highest PGD-{c.eval_steps} accuracy on {SELECTED_ON[c.select_on]}",
    ]
    if refined.label_options:
        options = ", ".join(f"{name} = {value}" for name, value in refined.label_options.items())
        starts = f", from epoch {refined.first_refined}" if "refine_start" in refined.as_dict() else ""
        lines.append(f"labels {refined.labels}: {options}{starts}")
    return "\n".join(lines)
