"""A notebook's parameters: read from its parameters cell and from what papermill injected, and checked."""

import ast
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace

import joblib
from IPython import get_ipython

from sglrlib import doors
from sglrlib.checks import UsageError, one_of, same_type, within
from sglrlib.config import DEFAULTS, RunConfig
from sglrlib.method.labels import LABELS
from sglrlib.recipes import default_scale, row_recipe
from sglrlib.store import results
from sglrlib.store.results import Result
from sglrlib.training import runs


def parameters(**own) -> tuple[SimpleNamespace, dict]:
    """What the cells run so far assign, checked: this notebook's own parameters, and the changes to a recipe.

    own gives the parameters that only this notebook knows, with their defaults; all others are the fields and options
    of a RunConfig, and are left out of the changes where they are '', [], 0 (a whole number) or -1: the recipe's own
    value. Only cells that do nothing but assign literals count: the parameters cell and the one papermill injects.
    papermill merely warns of a name that it does not know: here that is a UsageError, and so is a wrong type.
    """
    namespace = _plan.namespace if _plan else get_ipython().user_ns
    return read(namespace, namespace["In"], own)


def read(namespace: dict, cells: Iterable[str], own: dict) -> tuple[SimpleNamespace, dict]:
    """parameters() of a given namespace and cells; an unknown name is also removed, so that a corrected cell works."""
    given, examples = {}, DEFAULTS | own
    for name in [n for cell in cells for n in literals_assigned(cell) if n in namespace]:
        if name not in examples:
            if is_left_to_recipe(namespace[name]):  # the option of a rule or method that is no longer there
                continue
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
    within("seeds", own.seeds, 1, 1000)
    return range(own.seed, own.seed + own.seeds)


def names_in(text: str) -> list[str]:
    """The names in a parameter such as 'PGD-AT, AWP', none in ''. Raises UsageError for a text of commas or blanks."""
    names = [name.strip() for name in text.split(",") if name.strip()]
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


def collect(
    configs: list[RunConfig], attacks: Iterable[str], own: SimpleNamespace, job: Callable = runs.run, **how
) -> dict[str, list[Result]]:
    """Title -> results, one a seed: see gather(), which this calls."""
    found = {}
    for result in gather(configs, own, job, attacks=attacks, **how):
        found.setdefault(result.config.title, []).append(result)
    return found


def labelled(
    groups: dict[str, list[RunConfig]], own: SimpleNamespace, job: Callable = runs.run, **how
) -> dict[str, list[Result]]:
    """Label -> results of its configurations, one a seed; see gather(). A label without any run is left out."""
    found = {r.config.id: r for r in gather([c for those in groups.values() for c in those], own, job, **how)}
    present = {label: [found[c.id] for c in those if c.id in found] for label, those in groups.items()}
    return {label: those for label, those in present.items() if those}


def gather(configs: Iterable[RunConfig], own: SimpleNamespace, job: Callable = runs.run, **how) -> list[Result]:
    """The result of each configuration by job(config, **how), a function of training.runs; those missing are left out.

    They are run, or only shown where own.train is False, and published where own.publish says so. How far each run is,
    and which is missing, is printed. Several runs to train share the cores of a CPU, one on each. One that fails stops
    no other: it is left out, and printed with the end of its log. Raises RuntimeError where all failed.
    """
    how |= dict(train_missing=own.train, device=own.device, speed=own.speed)
    configs = list({config.id: config for config in configs}.values())
    device = runs.refuse_settings(own.device, own.speed, how.get("images", 0))
    if _plan:
        _plan.wanted += [runs.Wanted(config, job, how) for config in configs]
        return []
    failed = set()
    if own.train and device == "cpu":
        failed = side_by_side([config for config in configs if not runs.is_stored(config)], job, how)
    found = []
    for config in (config for config in configs if config.id not in failed):
        result = runs.attempt(job, config, **how)
        if result is not None:
            found.append(result)
            if own.publish:
                results.publish(result)
        elif not own.train:
            print(runs.failed(config) or f"missing: {config.id} (train = False)")
    if own.train and configs and not found:
        raise RuntimeError(f"all {len(configs)} runs failed: see the ends of their logs above.")
    return found


def side_by_side(configs: list[RunConfig], job: Callable, how: dict) -> set[str]:
    """Do several jobs at once, one on each core; nothing where there is but one job or core. Returns what failed."""
    together = min(len(configs), joblib.cpu_count())
    if together < 2:
        return set()
    print(f"{len(configs)} runs, {together} at a time; each writes how far it is to log.jsonl in its folder of runs/")
    started, failed, carried = time.monotonic(), set(), doors.carried()
    with joblib.parallel_config("loky", n_jobs=together, inner_max_num_threads=1):
        done = joblib.Parallel(return_as="generator_unordered")(
            joblib.delayed(quiet)(job, c, how, os.getpid(), carried) for c in configs
        )
        try:
            for number, (config, failure) in enumerate(done, 1):
                after = f"{number} of {len(configs)} done after {time.monotonic() - started:.0f} s"
                print(failure or f"{after}: {config.title} seed {config.seed}")
                failed |= {config.id} if failure else set()
        except BrokenProcessPool:
            print("one of these processes was killed, so the rest is done one after another")
    return failed


def quiet(job: Callable, config: RunConfig, how: dict, parent: int, carried: bytes) -> tuple[RunConfig, str]:
    """Do a job without a word; returns whose it was, and how it failed ('' where it did not).

    It ends within seconds of the process parent, so that nothing trains on for a kernel that was killed. carried is
    what is registered there.
    """
    doors.take_over(carried)
    threading.Thread(target=end_with, args=[parent], daemon=True).start()
    said = []
    done = runs.attempt(job, config, say=said.append, **how)
    return config, "" if done else said[-1]


def end_with(parent: int) -> None:
    """Wait for the end of this process's parent, then end it at once; a run resumes from its last epoch."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


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


def figure_name(stem: str, configs: list[RunConfig], rows: Iterable[str], scale: str, **own) -> str:
    """stem_dataset_scale where configs are those rows as the recipe, with a notebook's own changes, has them; else the
    last one's hash is added.
    """
    c = configs[-1]
    name = f"{stem}_{c.dataset}_{scale or default_scale(c.dataset)}"
    as_they_stand = {row_recipe(row, c.dataset, scale, seed=x.seed, **own).id for row in rows for x in configs}
    return name if {x.id for x in configs} == as_they_stand else f"{name}_{c.id.rsplit('-', 1)[1]}"


SELECTED_ON = dict(val="validation images", test="TEST images, as in the paper: best numbers are optimistic")


def describe(configs: list[RunConfig]) -> str:
    """What a notebook is about to run or show, in a few lines; differs only where the configurations do.

    Raises UsageError where there is nothing.
    """
    if not configs:
        raise UsageError("no run is asked for: expected one or more rows or labels, such as 'PGD-AT'.")
    c = configs[0]
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
    for config in {x.title: x for x in configs}.values():
        chosen = {name: value for name, value in config.as_dict().items() if name in ("awp", "awp_start", "swa_start")}
        chosen = {name: value for name, value in chosen.items() if value != DEFAULTS[name]}
        chosen |= {name: value for name, value in config.method_options.items() if name != "outer"}
        chosen |= config.label_options
        starts = [f"from epoch {config.first_refined}"] if "refine_start" in config.as_dict() else []
        if chosen:
            lines.append(f"{config.title}: " + ", ".join([f"{n} = {v}" for n, v in chosen.items()] + starts))
    return "\n".join(lines)
