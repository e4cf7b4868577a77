"""A notebook's parameters: read from its parameters cell and from what papermill injected, checked, and explained."""

import ast
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

from sglrlib.checks import UsageError, one_of, same_type
from sglrlib.config import DEFAULTS

# Parameters of every notebook and their defaults, whether or not its parameters cell shows them.
COMMON = dict(
    scale="", variant="release", seed=0, seeds=1, train=True, device="", speed="fast", publish=False
)  # fmt: skip

# A line on each of them, and on each value of a recipe; registered ones have none.
HELP = dict(
    scale="mini (digits), small (CIFAR on a CPU) or paper (its protocol, the default on CIFAR)",
    variant="reading of self-guided labels: release, equation_1, algorithm_1 or algorithm_1_printed",
    seed="first seed: initial weights, order, attack starts, planted noise",
    seeds="how many seeds, from the first on",
    train="False: show what is on disk or committed, compute nothing",
    device="cpu, cuda or cuda:1; '' takes a GPU where there is one",
    speed="fast (folded attack copy, channels_last, CUDA graph), plain or compile (also torch.compile)",
    publish="True: results, small JSON files, also go to data/results",
    dataset="digits (embedded), cifar10 or cifar100 (downloaded below data/)",
    train_size="training images, 0 for all that validation leaves",
    val_size="validation images, carved from the training set",
    test_size="test images, 0 for all",
    noise="symmetric (over all classes), symmetric_wrong (over the others), class_dependent, gaussian, random_pixels, "
    "shuffled_pixels, human_aggregate or human_worst",
    noise_rate="share of the training samples that it spoils, 0 to 1",
    folds="of the training images, for cross-validation, 0 for none",
    fold="which of them is left out, from 0 on",
    augment="none, crop_flip or crop_flip_rotate (KD-AT's on CIFAR-100)",
    arch="resnet18, resnet34, resnet50, preact_resnetD, preact_resnetD_W, wrnD_W or cnnW: D layers, W channels",
    normalise="True: images are normalised within the network",
    eps_255="budget of the attacks, in 1/255",
    step_255="step of the PGD attacks, in 1/255",
    attack_steps="steps of the training attack",
    attack_mode="of the network under the training attack: eval or train (BatchNorm), as Rice et al. and KD-AT have it",
    precision="fp32, bf16 (the training attack, TE's predictions) or amp (the update as well)",
    method="pgd_at, trades, kd_at (two teachers are trained first) or standard (no attack)",
    labels="hard, smooth, ensemble (TE), rectified (ADR) or self_guided",
    refine_start="fraction of the epochs at which self-guided labels and TE start",
    clean_pass="needed (as released), always (hard labels too: the BatchNorm control) or eval",
    awp="gamma of adversarial weight perturbation, 0 for none",
    awp_start="fraction of the epochs at which it starts",
    swa_start="fraction of the epochs from which the weights are averaged, 1 for never",
    epochs="epochs",
    batch_size="images a step",
    lr="learning rate",
    momentum="of SGD",
    weight_decay="on all parameters (TRADES's own: 2e-4)",
    schedule="piecewise or cosine",
    lr_drops="fractions of the epochs at which the rate is divided by 10 (KD-AT's own: 0.25 and 0.75)",
    eval_steps="PGD steps of the accuracies that are measured every epoch",
    train_eval_size="training images that are measured every epoch",
    attacked_size="images of each split that are attacked every epoch, 0 for all",
    diagnostics="names of DIAGNOSTICS, recorded every epoch",
    select_on="split that names the best epoch: val or test (the paper's rule)",
    r="SGLR: weight of the average in the target (eq. 1), 0 to 1",
    alpha="SGLR and TE: momentum of the average, 0 to 1",
    lam="SGLR: weight of the clean prediction (lambda), 0 to 1",
    initial="SGLR: the average before the first update, one_hot or zero",
    average="SGLR: which average the target takes, new (updated) or old",
    outer="images that the loss is taken on: adversarial, or clean as Algorithm 1 prints it",
    smoothing="LS: s, 0 to 1",
    form="LS: others (s shared by the other classes) or all (by all classes)",
    te_weight="TE: weight of the mean square",
    start="TRADES: of its attack, gaussian or uniform",
    ema_decay="ADR: what the teacher keeps of itself in a step",
    tau_first="ADR: temperature of the teacher in the first epoch",
    tau_last="ADR: temperature towards the last one",
    mix_first="ADR: the teacher's share of the label in the first epoch, where it is right",
    mix_last="ADR: that share towards the last one",
    ramp_end="TE: fraction of the epochs at which it has risen",
    beta="TRADES: weight of the KL term",
    temperature="KD: temperature",
    natural_weight="KD: weight of the standard teacher",
    robust_weight="KD: weight of the adversarially trained teacher",
)


def read(
    namespace: dict, cells: Iterable[str], mine: Iterable[str] = (), hidden: Mapping[str, Any] | None = None
) -> tuple[SimpleNamespace, dict]:  # fmt: skip
    """The notebook's own parameters, and the changes to a recipe, checked.

    Its own are COMMON, what the parameters cell declares beyond RunConfig's fields and options, mine, the names of
    such fields that it deals with itself, and hidden, those that the cell does not show and their defaults. All others
    are changes to a recipe; those of the cell are left out where they are '', [], 0 (a whole number) or -1: the
    recipe's own value. What overrides says is taken as it stands, and wins.

    Only cells that do nothing but assign literals count: the parameters cell, where names are declared with a type, and
    the one that papermill injects. Where cells are not kept, as under nbval, the namespace has what is declared.
    papermill merely warns of a name that it does not know: here that is a UsageError, and so is a wrong type. An
    unknown name is also removed from the namespace, so that a corrected cell works.
    """
    hidden = dict(hidden or {})
    assigned = [(name, value) for cell in cells for name, value in literals_assigned(cell) if name in namespace]
    lazy = namespace.get("__annotate__", lambda form: {})  # from Python 3.14 on
    annotated = namespace.get("__annotations__") or lazy(1)
    declared = {name: namespace[name] for name in annotated if name in namespace}
    given, first = hidden | declared | dict(assigned), dict(reversed(assigned))
    more = overrides(same_type("overrides", given.pop("overrides", ""), ""))
    examples = COMMON | hidden | {name: first.get(name, value) for name, value in declared.items()} | DEFAULTS
    examples.pop("overrides", "")
    for name in [name for name in given if name not in examples]:
        if not is_left_to_recipe(given[name]):  # else it may be the option of a rule or method that is no longer there
            namespace.pop(name)
            one_of("parameter", name, examples)
        given.pop(name)
    for name in more:
        one_of("parameter", name, examples)
    given, more = [
        {name: same_type(name, value, as_tuple(examples[name])) for name, value in those.items()}
        for those in (given, more)
    ]
    own = {*mine, *examples.keys() - DEFAULTS.keys(), *COMMON, *hidden}
    given = {name: value for name, value in given.items() if name in own or not is_left_to_recipe(value)} | more
    changes = {name: value for name, value in given.items() if name not in own}
    return SimpleNamespace(**(COMMON | {name: given[name] for name in given.keys() & own})), changes


def overrides(text: str) -> dict[str, Any]:
    """'lr=0.05, schedule=cosine' as names and values: literals, and single words that stand for text.

    Raises UsageError for anything else.
    """
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        words = {pair.arg: pair.value for pair in call.keywords}
        if not isinstance(call.func, ast.Name) or call.args or None in words or len(words) < len(call.keywords):
            raise ValueError("names and values")
        return {name: word.id if isinstance(word, ast.Name) else ast.literal_eval(word) for name, word in words.items()}
    except (SyntaxError, ValueError, AttributeError, TypeError) as error:
        expected = "expected names and values, each once, such as 'lr=0.05, schedule=cosine, lr_drops=[0.5, 0.75]'"
        raise UsageError(f"overrides = {text!r}: {expected}.") from error


def as_tuple(value: Any) -> Any:
    """A list as a tuple, anything else as it is."""
    return tuple(value) if isinstance(value, list) else value


def is_left_to_recipe(value: object) -> bool:
    """Whether a value stands for the recipe's own: '', [] or (), 0 as a whole number, -1."""
    return value in ("", (), -1) or (type(value) is int and value == 0)


def literals_assigned(cell: str) -> list[tuple[str, object]]:
    """The names that a cell assigns and their values, if all it does is assign literals to names."""
    try:
        values = [(statement, ast.literal_eval(statement.value)) for statement in ast.parse(cell).body]
    except (SyntaxError, ValueError, AttributeError):
        return []
    targets = [(getattr(s, "targets", None) or [getattr(s, "target", None)], value) for s, value in values]
    return [(target.id, value) for those, value in targets for target in those if isinstance(target, ast.Name)]
