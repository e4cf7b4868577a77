"""What is registered from outside is known everywhere, is part of a run's identity, and refused where it is wrong."""

import linecache
from dataclasses import dataclass, replace

import nbformat
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nbformat.v4 import new_code_cell, new_notebook
from shell import execute
from torch import nn

from sglrlib import doors, recipe, register, run
from sglrlib.__main__ import main
from sglrlib.checks import UsageError
from sglrlib.config import make_config
from sglrlib.method.attacks import chain
from sglrlib.method.data import HUMAN, load_data
from sglrlib.method.datasets import DATASETS, Dataset
from sglrlib.method.labels import Hard
from sglrlib.method.methods import PGDAT, Method
from sglrlib.recipes import ROWS, row_recipe
from sglrlib.source import CODE, fingerprint
from sglrlib.store.results import stored

SILENT = dict(say=lambda line: None)

RULE = """
from sglrlib import register
from sglrlib.method.labels import Hard
SHARE = 0.5

def mixed(hard, guess, flip):
    return (1 - flip) * hard + flip * guess

@register("labels", "boot")
class Boot(Hard):
    title = "+Boot"

    def __init__(self, y, classes, *, flip: float = SHARE):
        super().__init__(y, classes)
        self.flip = flip

    def target(self, index, adv, clean):
        return mixed(self.hard(index), adv.detach().softmax(1), self.flip)
"""


def cell(source: str) -> dict:
    """What a notebook's cell defines: executed with its source where inspect finds it."""
    name = f"<cell {len(linecache.cache)}>"
    linecache.cache[name] = len(source), None, source.splitlines(keepends=True), name
    namespace = dict(__name__="__main__")
    exec(compile(source, name, "exec"), namespace)
    return namespace


def test_a_rule_is_known_to_configurations_rows_and_errors(small):
    cell(RULE)
    config = small(labels="boot", flip=0.25)
    assert config.title == "PGD-AT+Boot" and config.label_options == dict(flip=0.25)
    assert row_recipe("TRADES+Boot", flip=0.1).label_options == dict(flip=0.1)
    with pytest.raises(UsageError, match="Did you mean 'boot'"):
        recipe(labels="bood")
    with pytest.raises(UsageError, match="Did you mean 'flip'"):
        make_config(labels="boot", flipp=0.1)
    with pytest.raises(UsageError, match="expected a number"):
        recipe(labels="boot", flip="0.1")


@pytest.mark.parametrize(
    "change",
    [
        ("+Boot", "+Bootstrap"), ("adv.detach().softmax(1)", "adv.detach().softmax(1).round()"),
        ("(1 - flip) * hard", "(1 - flip / 2) * hard"), ("SHARE = 0.5", "SHARE = 0.4"), ("super()", "Hard"),
    ],
)  # fmt: skip
def test_changed_code_is_another_run(small, change):
    cell(RULE)
    first = small(labels="boot", flip=0.3).id
    cell(RULE)
    assert small(labels="boot", flip=0.3).id == first
    changed = RULE.replace(*change).replace("Hard.__init__(", "Hard.__init__(self, ")
    assert changed != RULE
    cell(changed)
    assert small(labels="boot", flip=0.3).id != first


def test_code_that_a_run_does_not_use_is_no_part_of_it(small):
    before = small().id
    cell(RULE)
    register("attack", "fgsm", fgsm)
    register("noise", "black", black)
    assert small().id == before and small(noise="black", noise_rate=0.0).id == small(noise_rate=0.0, noise="black").id
    assert "noise black" in small(noise="black").outside_code()


def test_a_source_that_cannot_be_read_is_refused():
    with pytest.raises(UsageError, match="the source of Boot cannot be read"):
        exec(RULE, dict(__name__="__main__"))


def test_a_fingerprint_follows_what_the_code_names():
    texts = dict(function="def f(x): return g(x)\ndef g(x): return x + A[0]\nA = (1, 2)")
    texts["constant"] = texts["function"].replace("(1, 2)", "(1, 3)")
    texts["helper"] = texts["function"].replace("x + A", "x - A")
    texts["default"] = texts["function"].replace("f(x)", "f(x, k=2)")
    texts["array"] = texts["function"].replace("(1, 2)", "torch.tensor([1, 2])")
    found = {name: fingerprint(cell("import torch\n" + text)["f"]) for name, text in texts.items()}
    assert len(set(found.values())) == len(texts)
    recursive = "def f(n): return g(n - 1) if n else 0\ndef g(n): return f(n)"
    assert fingerprint(cell(recursive)["f"]) == fingerprint(cell(recursive)["f"])
    unrelated = texts["function"] + "\nB = 7"
    assert fingerprint(cell("import torch\n" + unrelated)["f"]) == found["function"]


def fgsm(model, x, y, eps, step, generator):
    """Goodfellow et al. 2015: one step of the budget's size."""
    x = x.clone().requires_grad_(True)
    gradient = torch.autograd.grad(F.cross_entropy(model(x), y), x)[0]
    return (x + eps * gradient.sign()).clamp(0, 1)


def black(split, dataset, generator):
    return split.images * 0, split.y


def test_a_dataset_without_peoples_labels_has_the_fingerprint_that_it_always_had():
    data = Dataset(stripes, 3, (1, 6, 6), (0.4,), (0.3,))
    assert [*doors.parts(data)] == ["load", "classes", "shape", "mean", "std", "confusions"]
    assert doors.parts(replace(data, human=DATASETS["cifar10"].human))["human"].names


def test_an_attack_is_judged_again_when_its_code_changes(small, store):
    register("attack", "fgsm", fgsm)
    assert chain("fgsm") == ["natural", "fgsm"]
    config = small(epochs=8, train_size=300, noise_rate=0.0)
    first = run(config, ["fgsm"], **SILENT)
    assert first.accuracy("last", "fgsm") < first.accuracy("last", "natural")
    assert run(config, ["fgsm"], say=pytest.fail) == first
    source = "def fgsm(model, x, y, eps, step, generator):\n    return x\n"
    register("attack", "fgsm", cell(source)["fgsm"])
    assert config.id == first.config.id and not stored(config).has("fgsm")
    again = run(config, ["fgsm"], **SILENT)
    assert again.accuracy("last", "fgsm") == again.accuracy("last", "natural") and again.curve == first.curve


def stripes():
    y = np.arange(120) % 3
    images = np.repeat((y * 100).astype(np.uint8), 36).reshape(120, 1, 6, 6)
    return (images[:90], y[:90]), (images[90:], y[90:])


def test_a_method_a_network_a_dataset_a_noise_a_diagnostic_and_a_row_train(small, store):
    @register("method", "clean_half")
    @dataclass(frozen=True)
    class Half(Method):
        title = "Half"
        share: float = 0.5

        def loss(self, model, x, x_adv, criterion, clean_pass, teachers):
            adv, clean = model(x_adv), model(x)
            return criterion(self.share * adv + (1 - self.share) * clean, adv.detach(), clean.detach())

    @register("arch", "mlp")
    def mlp(*, classes, shape):
        return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 16), nn.ReLU(), nn.Linear(16, classes))

    @register("diagnostics", "weight_norm")
    def weight_norm(snapshot):
        return dict(weight_norm=sum(p.square().sum().item() for p in snapshot.model.parameters()))

    register("noise", "black", black)
    own = dict(epochs=2, val_size=20, batch_size=10, arch="mlp", eps_255=4, step_255=2.0, attack_steps=2)
    register("dataset", "stripes", Dataset(stripes, 3, (1, 6, 6), (0.4,), (0.3,)), recipe=own)
    register("row", "Half, no decay", dict(method="clean_half", weight_decay=0.0))
    assert (load_data("stripes", noise="black", noise_rate=0.5).train.images[:5] == 0).any()
    config = row_recipe("Half, no decay", "stripes", noise="black", noise_rate=0.2, diagnostics=("weight_norm",))
    assert (config.title, config.weight_decay, config.epochs) == ("Half", 0.0, 2)
    kinds = {name.split()[0] for name in config.outside_code()}
    assert kinds == {"method", "arch", "dataset", "noise", "diagnostics"}
    result = run(config, ["pgd_5"], **SILENT)
    assert result.curve[-1]["weight_norm"] > 0 and result.n("pgd_5") == 30
    assert {"Half", "Half+SGLR", "Half, no decay"} <= ROWS.keys()


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in ("labels", "method", "noise") for name in doors.KNOWN[kind] if name not in HUMAN],
)
def test_the_librarys_own_entries_keep_the_contract(kind, name):
    if name != "hard":  # whose title is that of no rule
        doors.TRIALS[kind](doors.KNOWN[kind][name], name)


class NoTitle(Hard):
    def target(self, index, adv, clean):
        return self.hard(index)


class Wrong(NoTitle):
    title = "+W"


class Flat(Wrong):
    def target(self, index, adv, clean):
        return self.y[index]


class Attached(Wrong):
    def target(self, index, adv, clean):
        return adv.softmax(1)


class Clash(Wrong):
    def __init__(self, y, classes, *, lr: float = 0.1):
        super().__init__(y, classes)


class Untyped(Wrong):
    def __init__(self, y, classes, *, share=None):
        super().__init__(y, classes)


def too_far(model, x, y, eps, step, generator):
    return (x + 2 * eps).clamp(0, 1)


def old_style(model, x, y):
    return x


def greyscale_only(*, classes, shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(7, classes))


def softly(*, classes, shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), classes + 1))


def doubled(split, dataset, generator):
    return split.images, split.y.double()


@pytest.mark.parametrize(
    ("kind", "name", "entry", "said"),
    [
        ("label", "a", Wrong, "kind = 'label' is not known. Did you mean 'labels'"),
        ("labels", "hard", Wrong, "'hard' is the library's own"),
        ("labels", "My Rule", Wrong, "expected a name of small letters"),
        ("labels", "a", nn.Linear, "expected a subclass of sglrlib.method.labels.Hard"),
        ("labels", "a", NoTitle, "expected one of its own, such as"),
        ("labels", "a", Flat, r"target\(\) returns torch.int64 \(3,\): expected torch.float32 \(3, 3\)"),
        ("labels", "a", Attached, "tensor with gradient: expected none"),
        ("labels", "a", Clash, "option 'lr' has another meaning"),
        ("labels", "a", Untyped, "option 'share': expected a default that is a bool, int, float or str"),
        ("method", "a", Wrong, "expected a subclass of sglrlib.method.methods.Method"),
        ("method", "a", type("Loose", (Method,), dict(title="L")), "expected a class under @dataclass"),
        ("method", "a", PGDAT, "title = 'PGD-AT': expected one of its own"),
        ("attack", "a", old_style, "expected the arguments model, x, y, eps, step, generator"),
        ("attack", "a", too_far, r"an attack went 0\.2 far"),
        ("arch", "a", greyscale_only, "takes the images of no known dataset"),
        ("arch", "a", softly, r"returns torch.float32 \(2, 4\): expected torch.float32 \(2, 3\)"),
        ("dataset", "a", dict(), "expected a sglrlib.method.datasets.Dataset, not dict"),
        ("noise", "a", doubled, "labels returns torch.float64"),
        ("diagnostics", "a", lambda snapshot: 3.0, "expected a dictionary of columns"),
        ("row", "A", dict(lrr=0.1), "Did you mean 'lr'"),
    ],
)
def test_what_does_not_do_what_its_kind_must_is_refused(kind, name, entry, said):
    before = {kind: dict(known) for kind, known in doors.KNOWN.items()}
    with pytest.raises(UsageError, match=said):
        register(kind, name, entry)
    assert {kind: dict(known) for kind, known in doors.KNOWN.items()} == before and not CODE


def test_a_dataset_whose_recipe_cannot_be_is_refused_and_forgotten():
    data = Dataset(stripes, 3, (1, 6, 6), (0.4,), (0.3,))
    for own, said in (
        (dict(val_size=10**6), "train_size . val_size = 1000000"),
        (dict(val_size=5, lr=-1.0), "lr = -1.0"),
    ):
        with pytest.raises(UsageError, match=f"the recipe of dataset 'stripes': {said} is out of range"):
            register("dataset", "stripes", data, recipe=own)
        assert not CODE and not doors.ENTRIES and "stripes" not in doors.DATASETS


def test_a_rule_registered_in_a_notebook_trains_in_workers_of_either_kind(store, two_workers):
    """The notebook's own workers, by joblib, and those of the command line, by submitit, do the same runs."""
    ask = """
own, changes = notebook.parameters()
configs = [recipe(**changes, labels="boot", seed=seed) for seed in notebook.seeds_of(own)]
runs = notebook.gather(notebook.by_title(configs), own, ["pgd_5"])
print(*[(run.config.id, run.accuracy("last", "pgd_5")) for run in runs.get("PGD-AT+Boot", [])], sep="\\n")
"""
    parameters = new_code_cell(
        "epochs: int = 2\nseeds: int = 2\ntrain_size: int = 60\nflip: float = 0.3\nseed: int = 0"
    )
    parameters.metadata.tags = ["parameters"]
    imports = "from sglrlib.recipes import recipe\nfrom sglrlib.show import notebook"
    made = new_notebook(cells=[parameters, *map(new_code_cell, (RULE, imports, ask))])
    made.metadata.kernelspec = dict(name="python3", display_name="Python 3", language="python")
    path = store / "mine.ipynb"
    nbformat.write(made, path)
    said = execute(path)
    assert "2 of 2 after" in said
    (store / "runs").rename(store / "joblib")
    assert main(["run", str(path), "-p", "seeds", "1", "--trust"]) == 0
    found = {}
    for way in ("joblib", "runs"):
        files = sorted((store / way).glob("*/result.json"))
        found[way] = {file.parent.name: (file.parent / "curve.csv").read_text() for file in files}
    assert len(found["joblib"]) == 2 and len(found["runs"]) == 1
    assert found["runs"].items() <= found["joblib"].items()
