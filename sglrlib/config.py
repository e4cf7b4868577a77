"""What a run is: RunConfig, frozen and validated."""

import hashlib
import inspect
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch

from sglrlib.checks import UsageError, one_of, same_type, within
from sglrlib.judging.diagnostics import DIAGNOSTICS
from sglrlib.method.attacks import PGD
from sglrlib.method.data import AUGMENTS, NOISES, check_noise
from sglrlib.method.datasets import DATASETS
from sglrlib.method.labels import LABELS, Hard
from sglrlib.method.methods import METHODS
from sglrlib.method.models import parse_arch
from sglrlib.source import CODE


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides what a run computes; two equal configurations are one run.

    Budgets are in 1/255. Sizes are numbers of images: 0 means all (for train_size: all that validation leaves).
    Raises UsageError for an unknown name, a wrong type or a value out of range.
    """

    dataset: str = "digits"
    train_size: int = 0
    val_size: int = 0
    test_size: int = 0
    noise: str = "symmetric"
    noise_rate: float = 0.0
    folds: int = 0  # of the training images, for cross-validation; 0 for none
    fold: int = 0  # which of them is left out, from 0 on
    augment: str = "none"

    arch: str = "resnet18"
    normalise: bool = False

    eps_255: int = 8
    step_255: float = 2.0
    attack_steps: int = 10
    attack_mode: str = "eval"  # of the network under the training attack
    precision: str = "fp32"  # bf16: of the training attack and TE's predictions; amp: of the update too (autocast)

    method: str = "pgd_at"
    method_options: dict = field(default_factory=dict)
    labels: str = "hard"
    label_options: dict = field(default_factory=dict)
    refine_start: float = 0.45  # fraction of the epochs
    clean_pass: str = "needed"  # 'needed' and 'always' in train mode, 'eval' when needed but in eval mode
    awp: float = 0.0  # gamma of adversarial weight perturbation, 0 for none
    awp_start: float = 0.0  # fraction of the epochs
    swa_start: float = 1.0  # fraction of the epochs from which the weights are averaged; 1 for never

    epochs: int = 200
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "piecewise"
    lr_drops: tuple = (0.5, 0.75)  # fractions of the epochs, each divides the rate by 10

    eval_steps: int = 10  # PGD steps of the accuracies measured every epoch
    train_eval_size: int = 2000
    attacked_size: int = 0  # images of each split that are attacked every epoch; 0 for all
    diagnostics: tuple = ()  # names of DIAGNOSTICS, recorded every epoch
    select_on: str = "val"  # the split whose robust accuracy names the best epoch
    seed: int = 0

    def __post_init__(self):
        for name in (f.name for f in fields(self) if f.name in DEFAULTS):
            object.__setattr__(self, name, same_type(name, getattr(self, name), DEFAULTS[name]))
        for name, known in CHOICES.items():
            one_of(name, getattr(self, name), known)
        parse_arch(self.arch)
        for name, (low, high) in RANGES.items():
            within(name, getattr(self, name), low, high)
        check_noise(self.dataset, self.noise, self.noise_rate)
        for drop in self.lr_drops:
            within("lr_drops", drop, 0, 1)
        if self.attack_mode == "train" and self.precision != "fp32":
            raise UsageError("attack_mode = 'train' attacks the network itself: precision must be 'fp32'.")
        if self.select_on == "val" and self.val_size == 0:
            raise UsageError("select_on = 'val' needs val_size > 0; without validation images, select_on = 'test'.")
        for name in self.diagnostics:
            one_of("diagnostics", name, DIAGNOSTICS)
        within("fold", self.fold, 0, max(0, self.folds - 1))
        METHODS[self.method](**self.method_options)
        self.label_rule(torch.zeros(1, dtype=torch.long), 2)
        object.__setattr__(self, "method_options", options(METHODS[self.method]) | self.method_options)
        object.__setattr__(self, "label_options", options(LABELS[self.labels]) | self.label_options)

    @property
    def title(self) -> str:
        """The name that the paper's tables use, e.g. 'PGD-AT+SGLR', 'AWP' or 'KD-SWA'."""
        name = METHODS[self.method].title
        if self.swa_start < 1:
            name = name.removesuffix("-AT") + "-SWA"
        if self.awp:
            name = "AWP" if name == METHODS["pgd_at"].title else f"{name}-AWP"
        return name + LABELS[self.labels].title

    @property
    def id(self) -> str:
        """The run's name in the store: a readable head, and a hash of all values that are not the default.

        So a field that is added later, with a default that changes nothing, leaves every id as it was. The source of
        what is registered from outside, and named here, is part of it.
        """
        values = self.as_dict() | self.method_options | self.label_options
        defaults = DEFAULTS | options(METHODS[self.method]) | options(LABELS[self.labels])
        values = {k: v for k, v in values.items() if k in defaults and v != defaults[k]}
        text = json.dumps(values | self.outside_code(), sort_keys=True)
        head = f"{self.dataset}-{self.method}-{self.labels}-s{self.seed}"
        return f"{head}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"

    def outside_code(self) -> dict[str, str]:
        """What this run is made of that is registered from outside: 'kind name' -> the fingerprint of its source."""
        kinds = {kind: [getattr(self, kind)] for kind in ("labels", "method", "arch", "dataset", "noise")}
        kinds["method"] = [self.method, *METHODS[self.method].teachers]
        kinds["diagnostics"] = self.diagnostics
        if not self.noise_rate:
            del kinds["noise"]
        return {f"{k} {name}": CODE[k, name] for k, names in kinds.items() for name in names if (k, name) in CODE}

    def as_dict(self) -> dict:
        """The fields as a dictionary, without refine_start and awp_start where nothing starts there."""
        values = asdict(self)
        if not LABELS[self.labels].starts and self.clean_pass != "always":
            del values["refine_start"]
        if not self.awp:
            del values["awp_start"]
        return values

    def flat(self) -> dict:
        """make_config's arguments that give this configuration: all fields, and the options beside them."""
        values = asdict(self)
        return values.pop("method_options") | values.pop("label_options") | values

    def but(self, **changes: Any) -> "RunConfig":
        """This configuration with some fields or options changed; the options of a rule or method no longer used go."""
        return make_config(**(self.flat() | changes))

    def label_rule(self, y: torch.Tensor, classes: int) -> Hard:
        """The label rule for training labels y (n,)."""
        return LABELS[self.labels](y, classes, **self.label_options)

    def attack(self, **settings) -> PGD:
        """PGD with this run's budget and step size; settings such as steps or objective are PGD's own."""
        return PGD(self.eps_255 / 255, self.step_255 / 255, **settings)

    @property
    def teachers(self) -> list["RunConfig"]:
        """The runs that this one learns from: its recipe with hard labels, by each method that its own names."""
        plain = dict(labels="hard", awp=0.0, swa_start=1.0)
        return [self.but(method=method, **plain) for method in METHODS[self.method].teachers]

    @property
    def selected_by(self) -> str:
        """The column of the curve whose highest value names the best epoch."""
        return f"{self.select_on}_{METHODS[self.method].selected_by}"

    @property
    def first_refined(self) -> int:
        """The epoch, counted from 1, in which refinement starts: 90 of 200 at the release's 0.45."""
        return max(1, self.epoch_at(self.refine_start))

    def awp_at(self, epoch: int) -> float:
        """Gamma of an epoch counted from 1."""
        return self.awp if epoch >= self.epoch_at(self.awp_start) else 0.0

    def averages_at(self, epoch: int) -> bool:
        """Whether the weights after an epoch, counted from 1, enter the average."""
        return self.swa_start < 1 and epoch >= self.epoch_at(self.swa_start)

    @property
    def drop_epochs(self) -> list[int]:
        """The epochs in which the learning rate drops: 100 and 150 of 200, as in the release; none under cosine."""
        return [self.epoch_at(drop) for drop in self.lr_drops] if self.schedule == "piecewise" else []

    def epoch_at(self, fraction: float) -> int:
        return math.ceil(round(fraction * self.epochs, 6))

    def lr_at(self, epoch: int) -> float:
        """Learning rate of an epoch counted from 1. Cosine starts at the full rate; the release is one epoch ahead."""
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / self.epochs))
        return self.lr * 0.1 ** sum(epoch >= drop for drop in self.drop_epochs)


CHOICES = dict(
    dataset=DATASETS, noise=NOISES, augment=AUGMENTS, method=METHODS, labels=LABELS,
    precision=["fp32", "bf16", "amp"], attack_mode=["eval", "train"], clean_pass=["needed", "always", "eval"],
    schedule=["piecewise", "cosine"], select_on=["val", "test"],
)  # fmt: skip
RANGES = dict(
    train_size=(0, math.inf), val_size=(0, math.inf), test_size=(0, math.inf), noise_rate=(0, 1),
    eps_255=(0, 255), step_255=(0, 255), attack_steps=(0, 1000), eval_steps=(0, 1000), refine_start=(0, 1),
    awp=(0, 1), awp_start=(0, 1), swa_start=(0, 1),
    epochs=(1, 100_000), batch_size=(1, 100_000), lr=(1e-8, 100), momentum=(0, 1), weight_decay=(0, 1),
    train_eval_size=(1, math.inf), attacked_size=(0, math.inf), folds=(0, 100), fold=(0, 100),
    seed=(0, 2**31 - 1),
)  # fmt: skip


def options(entry: Callable) -> dict[str, Any]:
    """The options of a label rule or method and their defaults: the keyword arguments it is built with."""
    parameters = inspect.signature(entry).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def make_config(**values: Any) -> RunConfig:
    """A RunConfig from flat names: its fields, and the options of the label rule and method that it names.

    Options of rules and methods that are not chosen are ignored, so one set of values serves a whole comparison.
    Raises UsageError for a name that belongs to nothing, suggesting the nearest.
    """
    own = {f.name for f in fields(RunConfig)}
    method, labels = values.get("method", RunConfig.method), values.get("labels", RunConfig.labels)
    one_of("method", method, METHODS)
    one_of("labels", labels, LABELS)
    for name in values:
        one_of("parameter", name, DEFAULTS)

    def chosen(entry: Callable) -> dict[str, Any]:
        defaults = options(entry)
        return {name: same_type(name, values[name], defaults[name]) for name in defaults.keys() & values.keys()}

    return RunConfig(
        **{name: value for name, value in values.items() if name in own},
        method_options=chosen(METHODS[method]),
        label_options=chosen(LABELS[labels]),
    )


# Every name that make_config knows, with a value of its type.
DEFAULTS: dict[str, object] = {f.name: f.default for f in fields(RunConfig) if not f.name.endswith("_options")}
for _entry in [*METHODS.values(), *LABELS.values()]:
    DEFAULTS |= options(_entry)
