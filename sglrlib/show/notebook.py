"""What a notebook's cells call: its parameters, and the runs that it asks for."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

from IPython import get_ipython
from IPython.display import Pretty, display
from joblib.externals import loky

from sglrlib import paths
from sglrlib.checks import UsageError, one_of, within
from sglrlib.config import DEFAULTS, RunConfig
from sglrlib.device import pick_device
from sglrlib.method.labels import LABELS
from sglrlib.method.methods import METHODS
from sglrlib.recipes import default_scale, row_recipe
from sglrlib.show import settings
from sglrlib.store import results
from sglrlib.store.results import Result
from sglrlib.training import cost, jobs, runs, status
from sglrlib.training.columns import attacked


def parameters(*mine: str, **hidden: Any) -> tuple[SimpleNamespace, dict]:
    """What the parameters cell, its overrides and papermill give, checked: the notebook's own parameters, and the
    changes to a recipe, see settings.read(). hidden: parameters of its own that the cell does not show, by default.

    Raises UsageError for a name or value that cannot be right, or a store that cannot be written.
    """
    namespace = _plan.namespace if _plan else get_ipython().user_ns
    asked = settings.read(namespace, namespace["In"], mine, hidden)
    if not _plan:
        paths.check_writable()
    return asked


def seeds_of(own: SimpleNamespace) -> range:
    """The seeds that a notebook's parameters seed and seeds ask for. Raises UsageError where there are none."""
    within("seed", own.seed, 0)
    within("seeds", own.seeds, 1, 1000)
    return range(own.seed, own.seed + own.seeds)


def names_in(text: str) -> list[str]:
    """The names in a parameter such as 'PGD-AT, AWP', none in ''. Raises UsageError for a text of commas or blanks."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    within("how many names", len(names), 0, 1000)
    if text and not names:
        raise UsageError(f"{text!r} names nothing: expected one or more names, such as 'PGD-AT, AWP'.")
    return names


def rules(text: str) -> list[str]:
    """Label rules from a parameter: '' is the paper's three as far as there are such, 'all' every one of LABELS.

    Raises UsageError for an unknown one.
    """
    if text in ("", "all"):
        return [rule for rule in (LABELS if text else ("hard", "smooth", "self_guided")) if rule in LABELS]
    for name in names_in(text):
        one_of("labels", name, LABELS)
    return names_in(text)


def by_title(configs: Iterable[RunConfig]) -> dict[str, list[RunConfig]]:
    """Title -> its configurations, as gather() wants them."""
    groups = {}
    for config in configs:
        groups.setdefault(config.title, []).append(config)
    return groups


def gather(
    groups: dict[str, list[RunConfig]], own: SimpleNamespace, attacks: Iterable[str] = (), *,
    columns: Callable[[RunConfig], dict] | None = None, images: int = 0,
) -> dict[str, list[Result]]:  # fmt: skip
    """Label -> the results of its configurations, judged under attacks, or with the columns that columns(config) gives.

    They are run, or only shown where own.train is False, and published where own.publish says so. images as of
    runs.Wanted. A line shows how far they are. Several runs share the cores of a CPU, one on each. What is
    missing is left out and named, and so is a run that fails, with the end of its log; it stops no other. Raises
    RuntimeError where all failed.
    """
    columns = columns or partial(attacked, attacks=attacks)
    configs = [config for those in groups.values() for config in those]
    wanted = {c.id: runs.Wanted(c, columns(c), images, own.train, own.device, own.speed) for c in configs}
    if _plan:
        _plan.wanted += wanted.values()
        return {}
    say, found = Line(), {}
    todo = [each for each in wanted.values() if own.train and each.lacking]
    for each in todo:
        each.check()
    failed = side_by_side(todo, say)
    say.more = status.time_left(jobs.tasks(todo))
    for name, each in wanted.items():
        result = None if name in failed else runs.attempt(each, say)
        if result is not None:
            found[name] = result
            if result.at_chance:
                say(runs.chance_warning(each.config))
            if own.publish:
                results.publish(result)
        elif not own.train:
            print(runs.failed(each.config) or f"missing: {name} (train = False)")
    if own.train and wanted and not found:
        raise RuntimeError(f"all {len(wanted)} runs failed: see the ends of their logs above.")
    present = {label: [found[c.id] for c in those if c.id in found] for label, those in groups.items()}
    return {label: those for label, those in present.items() if those}


def side_by_side(wanted: list[runs.Wanted], say: "Line") -> dict[str, str]:
    """Do several runs at once, one on each GPU or core; nothing where there is but one run or place.

    Returns id -> the end of its log, of those that failed. The workers end with this process.
    """
    at = jobs.places(wanted[0].device)[: len(wanted)] if wanted else []
    if len(at) < 2:
        return {}
    tasks, first = jobs.tasks(wanted, 1, os.getpid()), wanted[0]
    configs = [task.config for task in tasks if "training" in task.lacking]
    if about := cost.announced(configs, pick_device(first.device), first.speed):
        say.update(f"{len(tasks)} runs, {len(at)} at a time{about}")
    say.more = status.time_left(tasks, len(at))
    executor = loky.get_reusable_executor(len(at), timeout=10, env=dict(OMP_NUM_THREADS="1"))
    try:
        return jobs.send(tasks, executor, at=at, say=say)
    except BrokenProcessPool:
        say("one of these processes was killed, so the rest is done one after another")
        return {}
    except BaseException:
        executor.shutdown(kill_workers=True)
        raise


class Line:
    """Prints what it is called with; update() writes over what it wrote before, in one line of a notebook's cell.

    more is called for what that line ends in.
    """

    def __init__(self):
        self.shown, self.more = None, str

    def __call__(self, text: str) -> None:
        print(text, flush=True)

    def update(self, text: str) -> None:
        text += self.more()
        if not hasattr(get_ipython(), "kernel"):
            self(text)
        elif self.shown is None:
            self.shown = display(Pretty(text), display_id=True)
        else:
            self.shown.update(Pretty(text))


@dataclass
class Plan:
    """What the cells of a notebook have assigned so far, those cells as namespace["In"], and what they asked for."""

    namespace: dict
    wanted: list[runs.Wanted]


_plan: Plan | None = None


@contextmanager
def planning() -> Iterator[Plan]:
    """Within: parameters() and gather() belong to a plan; nothing is computed, what gather() is asked for is noted."""
    global _plan
    _plan = Plan(dict(In=[], __name__="__main__"), [])
    try:
        yield _plan
    finally:
        _plan = None


def describe_results(found: dict[str, list[Result]], wanted: int) -> str:
    """How many runs of each method are there, of how many wanted, and on how many images; no accuracies."""
    lines = []
    for title, those in found.items():
        sizes = those[0].sizes
        wrong = f"{sizes['wrong_labels']} of them with a wrong label"
        lines.append(
            f"{title}: {len(those)} of {wanted} seeds; {sizes['train']} training images, {wrong}; "
            f"{sizes['val']} validation, {sizes['test']} test images"
        )
    return "\n".join(lines)


def figure_name(stem: str, configs: list[RunConfig], rows: Iterable[str], scale: str, **own: Any) -> str:
    """stem_dataset_scale where configs are those rows as the recipe, with a notebook's own changes, has them; else the
    last one's hash is added.
    """
    c = configs[-1]
    name = f"{stem}_{c.dataset}_{scale or default_scale(c.dataset)}"
    as_they_stand = {row_recipe(row, c.dataset, scale, seed=x.seed, **own).id for row in rows for x in configs}
    return name if {x.id for x in configs} == as_they_stand else f"{name}_{c.id.rsplit('-', 1)[1]}"


SELECTED_ON = dict(
    val="validation images; the paper's is that on the test images, which makes its Diff the larger",
    test="TEST images, as in the paper: best numbers are optimistic",
)


def describe(configs: list[RunConfig]) -> str:
    """What a notebook is about to run or show, in a few lines; differs only where the configurations do.

    Raises UsageError where there is nothing.
    """
    if not configs:
        raise UsageError("no run is asked for: expected one or more rows or labels, such as 'PGD-AT'.")
    c, methods = configs[0], {x.title: METHODS[x.method] for x in configs}
    attacked = [title for title, method in methods.items() if method.objective]
    attack = f"training attack PGD-{c.attack_steps}, step {c.step_255:g}/255" if attacked else "no training attack"
    attack += f" ({', '.join(attacked)})" * (0 < len(attacked) < len(methods))
    chosen: dict[str, list[str]] = {}
    for title, method in methods.items():
        chosen.setdefault(f"PGD-{c.eval_steps}" if method.selected_by == "robust" else "natural", []).append(title)
    by = [f"{kind} accuracy" + f" ({', '.join(titles)})" * (len(chosen) > 1) for kind, titles in chosen.items()]
    drops = " and ".join(map(str, c.drop_epochs))
    schedule = "cosine" if c.schedule == "cosine" else f"divided by 10 from epoch {drops} on"
    lines = [
        f"{c.dataset}, {c.arch}, {', '.join(dict.fromkeys(x.title for x in configs))}; "
        f"seeds {', '.join(map(str, dict.fromkeys(x.seed for x in configs)))}",
        f"budget eps = {c.eps_255}/255; {attack}, {c.precision}",
        f"{c.epochs} epochs of SGD, batch {c.batch_size}, learning rate {c.lr:g} {schedule}, "
        f"momentum {c.momentum:g}, weight decay {c.weight_decay:g}",
        f"planted label noise: {c.noise_rate:.0%} of the training labels ({c.noise})",
        f"best epoch: highest {' or '.join(by)} on {SELECTED_ON[c.select_on]}",
    ]
    for config in {x.title: x for x in configs}.values():
        chosen = {name: value for name, value in config.as_dict().items() if name in ("awp", "awp_start", "swa_start")}
        chosen = {name: value for name, value in chosen.items() if value != DEFAULTS[name]}
        chosen |= {name: value for name, value in config.method_options.items() if name != "outer"}
        chosen |= config.label_options
        starts = [f"from epoch {config.first_refined}"] if "refine_start" in config.as_dict() else []
        if chosen:
            lines.append(f"{config.title}: " + ", ".join([f"{n} = {v}" for n, v in chosen.items()] + starts))
    return "\n".join(lines)
