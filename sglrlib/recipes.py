"""Which runs are made: RECIPES, one row per dataset and scale, and ROWS, those of the paper's tables."""

from typing import Any

from sglrlib.checks import one_of
from sglrlib.config import DEFAULTS, RunConfig, make_config
from sglrlib.method.labels import LABELS, VARIANTS


def recipe(dataset: str = "digits", scale: str = "", variant: str = "release", **changes: Any) -> RunConfig:
    """The configuration of a dataset at a scale ('' = the dataset's first in RECIPES), some values changed.

    variant is a reading of self-guided refinement, a name of VARIANTS. Raises UsageError as RunConfig does.
    """
    one_of("dataset", dataset, RECIPES)
    if scale:
        one_of(f"scale (of {dataset})", scale, RECIPES[dataset])
    one_of("variant", variant, VARIANTS)
    tuned = RECIPES[dataset][scale or default_scale(dataset)]
    known = {name: value for name, value in tuned.items() if name in DEFAULTS}  # a rule with its option may be gone
    values = dict(dataset=dataset) | known | changes
    reading = VARIANTS[variant] if values.get("labels") == "self_guided" else {}
    return make_config(**(values | reading | changes))


def default_scale(dataset: str) -> str:
    """The scale that a dataset is run at when none is named: its first row in RECIPES. Raises UsageError for an unknown
    dataset.
    """
    one_of("dataset", dataset, RECIPES)
    return next(iter(RECIPES[dataset]))


def swept(scale: str = "") -> dict:
    """What sweeps of standard training over natural accuracy change: next to nothing is attacked, training accuracy is
    of 2,000 images; and at scale small there are twice as many to train on, as a run takes a quarter of the time.
    """
    light = dict(diagnostics=("noisy_labels",), attacked_size=50, train_eval_size=2000)
    return light | dict(train_size=10_000) if scale == "small" else light


# What a run records after each epoch for the figures over epochs.
RECORDED = ("calibration", "gradient_norm", "hessian_trace", "information", "noisy_labels")

# The released protocol is RunConfig's defaults. Digits are planted with noise because clean digits have
# hardly an ambiguous label, and a network without BatchNorm and weight decay shows robust overfitting in seconds. With
# seed 1 that network stays at a constant prediction under AWP from the first epoch on, and falls back to one under TE's
# weight of 300: hence a later start there, and a lower weight. CIFAR's small is meant as a stage on which robust
# overfitting happens by itself on a CPU, see data/results/README.md; refinement starts where the release's does, at
# nine tenths of the epochs before the first drop of the learning rate.
RECIPES: dict[str, dict[str, dict]] = {
    "digits": {
        "mini": dict(
            train_size=500, val_size=297, noise_rate=0.3, arch="cnn16", eps_255=26, step_255=6.5, attack_steps=7,
            epochs=60, batch_size=50, weight_decay=0.0, lr_drops=(0.65, 0.9), refine_start=0.3,
            awp_start=0.1, te_weight=100.0, attacked_size=300, train_eval_size=200, diagnostics=RECORDED,
        ),
    },
    "cifar10": {
        "paper": dict(augment="crop_flip", val_size=1000, attacked_size=2000, diagnostics=RECORDED),
        "small": dict(
            train_size=5000, val_size=500, arch="preact_resnet10_16", attack_steps=5, epochs=40, batch_size=80,
            lr_drops=(0.25, 0.75), refine_start=0.225, attacked_size=500, train_eval_size=500, diagnostics=RECORDED,
        ),
    },
}  # fmt: skip
RECIPES["cifar100"] = {
    scale: values | dict(tau_first=1.5, tau_last=1.0) for scale, values in RECIPES["cifar10"].items()
}

# Test images under AutoAttack, its parts and Square, at each scale; 0 for all.
FEW_IMAGES = dict(mini=200, small=500, paper=0)

# The rows of the paper's tables: what each changes in a recipe, and what follows from composing them. gamma of AWP (for
# TRADES from epoch 10 of 200 on) and the start of SWA (epoch 56 of 200) are those of their repositories. All else is
# the recipe's, so the KD rows are attacked in eval mode and share its drops (theirs: train mode, epochs 50 and 150).
METHOD_ROWS: dict[str, dict] = {
    "PGD-AT": dict(),
    "AWP": dict(awp=0.01),
    "PGD-SWA": dict(swa_start=0.28),
    "KD-AT": dict(method="kd_at"),
    "KD-SWA": dict(method="kd_at", swa_start=0.28),
    "TRADES": dict(method="trades"),
    "TRADES-AWP": dict(method="trades", awp=0.005, awp_start=0.05),
    "Standard": dict(method="standard"),
}
ROWS: dict[str, dict] = {}


def compose() -> None:
    """Put each method of METHOD_ROWS with each label rule into ROWS, by the name that the tables use."""
    for title, changes in METHOD_ROWS.items():
        ROWS.update({title + rule.title: changes | dict(labels=name) for name, rule in LABELS.items()})


compose()
PAPER_ROWS = tuple(row for row in (
    "PGD-AT", "PGD-AT+LS", "PGD-AT+TE", "PGD-AT+SGLR", "AWP", "KD-AT", "KD-SWA", "TRADES", "TRADES+SGLR",
) if row in ROWS)  # fmt: skip


def row_recipe(
    row: str, dataset: str = "digits", scale: str = "", variant: str = "release", **changes: Any
) -> RunConfig:
    """recipe() for a name of ROWS, such as 'PGD-AT+SGLR'; what a row is made of changes only the rows made of it.

    So awp = 0.02 changes AWP and leaves PGD-AT as it is. Raises UsageError for an unknown row, suggesting the nearest.
    """
    one_of("row", row, ROWS)
    parts = {name for changed in METHOD_ROWS.values() for name in changed} | {"labels"}
    tuned = {name: value for name, value in changes.items() if name in ROWS[row] and name not in ("method", "labels")}
    common = {name: value for name, value in changes.items() if name not in parts}
    return recipe(dataset, scale, variant, **(common | ROWS[row] | tuned))
