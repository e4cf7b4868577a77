import dataclasses
import json
import re
import subprocess
import sys

import pytest

import sglrlib
from sglrlib.checks import UsageError, one_of
from sglrlib.config import DEFAULTS, make_config
from sglrlib.method.labels import LABELS, VARIANTS
from sglrlib.method.methods import METHODS
from sglrlib.paths import PAPER
from sglrlib.recipes import PAPER_ROWS, RECIPES, ROWS, default_scale, recipe, row_recipe
from sglrlib.show.settings import COMMON, HELP, overrides, read


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_the_papers_protocol_needs_no_more_than_the_dataset(dataset):
    c = recipe(dataset, labels="self_guided")
    assert (c.arch, c.epochs, c.batch_size, c.lr, c.momentum, c.weight_decay) == ("resnet18", 200, 128, 0.1, 0.9, 5e-4)
    assert (c.eps_255, c.step_255, c.attack_steps, c.augment, c.normalise) == (8, 2, 10, "crop_flip", False)
    assert (c.train_size, c.test_size, c.noise_rate, c.precision) == (0, 0, 0, "fp32")
    # rates of the release, epochs counted from 1: 0.1 to epoch 99, 0.01 from 100 to 149, 0.001 from 150
    assert [c.lr_at(e) for e in (1, 99, 100, 149, 150, 200)] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert c.first_refined == 90
    assert c.label_options == dict(r=1.0, alpha=0.9, lam=0.2, initial="one_hot", average="new")


def test_fractions_follow_the_number_of_epochs():
    c = recipe("cifar10", epochs=40)
    assert (c.drop_epochs, c.first_refined) == ([20, 30], 18)
    cosine = recipe("cifar10", schedule="cosine", epochs=10)
    assert cosine.lr_at(1) == 0.1 and cosine.lr_at(6) == pytest.approx(0.05) and cosine.drop_epochs == []


def test_variants_change_what_they_name():
    printed = recipe("cifar10", labels="self_guided", variant="algorithm_1_printed")
    assert printed.first_refined == 1
    assert printed.method_options == dict(outer="clean")
    assert printed.label_options["initial"] == "zero"
    control = recipe("cifar10", labels="hard", variant="algorithm_1_printed")
    assert control == recipe("cifar10", labels="hard")
    assert recipe("cifar10", labels="self_guided", variant="equation_1", r=0.3).label_options["r"] == 0.3


@pytest.mark.parametrize("dataset", RECIPES)
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_combination_is_a_configuration_that_survives_json(dataset, labels, method, variant):
    for scale in ["", *RECIPES[dataset]]:
        config = recipe(dataset, scale, variant, labels=labels, method=method)
        values = json.loads(json.dumps(dataclasses.asdict(config)))
        options = values.pop("method_options") | values.pop("label_options")
        assert make_config(**(values | options)) == config
        assert make_config(**(values | options)).id == config.id
    assert default_scale(dataset) in RECIPES[dataset]


def test_ids_follow_what_a_run_depends_on_and_nothing_else():
    hard, guided = recipe("digits", labels="hard"), recipe("digits", labels="self_guided")
    assert hard.id == recipe("digits", labels="hard", r=0.5, alpha=0.1, refine_start=0.7, smoothing=0.3).id
    assert hard.id != recipe("digits", labels="hard", refine_start=0.7, clean_pass="always").id
    changed = [guided.but(**c).id for c in (dict(r=0.5), dict(seed=1), dict(refine_start=0.7), dict(precision="bf16"))]
    assert len({hard.id, guided.id, *changed}) == 6
    assert "/" not in guided.id and guided.id.startswith("digits-pgd_at-self_guided-s0-")


def test_known_ids_do_not_change_under_our_hands():
    """Committed results are found by id. If this fails, a default has changed: give the field a new name instead."""
    known = dict(dataset="cifar10", augment="crop_flip", val_size=1000)
    assert make_config(**known, labels="hard").id == "cifar10-pgd_at-hard-s0-a39bafcf15"
    assert make_config(**known, labels="self_guided").id == "cifar10-pgd_at-self_guided-s0-e2fa7af9a5"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(metod="trades"), "parameter = 'metod' is not known. Did you mean 'method'"),
        (dict(method="trade"), "Did you mean 'trades'"),
        (dict(labels="selfguided"), "Did you mean 'self_guided'"),
        (dict(labels="self_guided", r=2.0), "r = 2.0 is out of range: expected from 0 to 1; the nearest is 1"),
        (dict(noise_rate=-0.5), "the nearest is 0"),
        (dict(noise_rate=float("nan")), "noise_rate = nan is out of range"),
        (dict(epochs="ten"), "epochs = 'ten' is of type str: expected a whole number"),
        (dict(epochs=2.5), "epochs = 2.5 is of type float: expected a whole number"),
        (dict(normalise="true"), "expected True or False"),
        (dict(lr="1e-3"), "lr = '1e-3' is of type str: expected a number"),
        (dict(lr_drops="[0.5]"), "expected a list"),
        (dict(lr_drops=[0.5, 7.0]), "lr_drops = 7.0 is out of range"),
        (dict(arch="resnet20"), "Did you mean 'resnet"),
        (dict(seed=-3), "seed = -3"),
        (dict(select_on="tests"), "Did you mean 'test'"),
        (dict(val_size=0), "select_on = 'val' needs val_size > 0"),
    ],
)
def test_bad_values_are_named_with_the_nearest_right_one(wrong, said):
    with pytest.raises(UsageError, match=said.replace("[", r"\[").replace(".", r"\.")):
        recipe("digits", **wrong)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (dict(dataset="cifar"), "cifar10"),
        (dict(scale="papr", dataset="cifar10"), "paper"),
        (dict(variant="eq1"), "equation_1"),
    ],
)
def test_bad_recipes(arguments, said):
    with pytest.raises(UsageError, match=f"Did you mean '{said}'"):
        recipe(**arguments)


def test_a_notebooks_parameters():
    cells = [
        "import os",
        "epochs: int = 0  # help\nlr: float = -1.0\nseeds: int = 1\nlabels: str = 'all'\nrates: list = [0.1, 0.2]",
        "# Parameters\nlr = 0.5\nseeds = 2\nrates = [0.5]",
        "x = len('a')",
    ]
    namespace = {}
    for cell in cells:
        exec(cell, namespace)
    own, changes = read(namespace, cells, ["labels"])
    mine = dict(seeds=2, rates=(0.5,), labels="all")
    assert vars(own) == COMMON | mine and changes == dict(lr=0.5)
    # Where the cells are not kept, what the parameters cell declares is still known.
    assert vars(read(namespace, [""], ["labels"])[0]) == COMMON | mine
    lazily = {name: value for name, value in namespace.items() if name != "__annotations__"}
    lazily["__annotate__"] = lambda form: namespace["__annotations__"]  # as Python 3.14 has it
    assert vars(read(lazily, [""], ["labels"])[0]) == COMMON | mine
    namespace["epochs"] = 9  # a variable of the notebook's own, later
    assert read(namespace, cells, ["labels"])[1] == changes


def test_what_overrides_say_is_taken_as_it_stands():
    """Also 0, -1 and '', which in a cell are the recipe's own; and it wins."""
    text = "epochs=9, weight_decay=0, schedule=cosine, lr_drops=[0.5], row='b+c', power=2, publish=True"
    cells = ["epochs: int = 0\nrow: str = 'a'\noverrides: str = ''", f"epochs = 7\noverrides = {text!r}"]
    namespace = {}
    for cell in cells:
        exec(cell, namespace)
    own, changes = read(namespace, cells, (), dict(power=1.0))
    assert vars(own) == COMMON | dict(row="b+c", power=2.0, publish=True)
    assert changes == dict(epochs=9, weight_decay=0.0, schedule="cosine", lr_drops=(0.5,))
    assert overrides("") == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lr", "overrides = 'lr': expected names and values, each once, such as 'lr=0.05, "),
        ("lr=", "expected names and values"),
        ("lr=1)(", "expected names and values"),
        ("lr=0.1, lr=0.2", "expected names and values"),
        ("**{'lr': 1}", "expected names and values"),
        ("rows=PGD-AT", "expected names and values"),
        ("lr=__import__('os').getpid()", "expected names and values"),
        ("lrr=0.1", "parameter = 'lrr' is not known. Did you mean 'lr'?"),
        ("epochs=1.5", "epochs = 1.5 is of type float: expected a whole number"),
        ("overrides=1", "parameter = 'overrides' is not known"),
    ],
)
def test_wrong_overrides(text, said):
    with pytest.raises(UsageError, match=re.escape(said)):
        read(dict(overrides=text), [f"overrides = {text!r}"])


def test_every_parameter_has_a_line_of_help():
    assert HELP.keys() == COMMON.keys() | DEFAULTS.keys() and all(HELP.values())


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("metod = 'trades'", "Did you mean 'method'"),
        ("trian = False", "Did you mean 'train'"),
        ("train = 'false'", "expected True or False"),
        ("seeds = 1.5", "expected a whole number"),
        ("rates: list = [0.1]; rates = ['a']", r"rates\[0\] = 'a' is of type str: expected a number"),
        ("lr_drops = [" + "0.5," * 1001 + "]", "length of lr_drops = 1001 is out of range: expected from 0 to 1000"),
    ],
)
def test_a_notebooks_wrong_parameters(cell, said):
    namespace = {}
    exec(cell, namespace)
    with pytest.raises(UsageError, match=said):
        read(namespace, cell.split("; "))
    if "Did you" in said:  # the wrong name is gone, so the corrected cell works
        assert read(namespace, [cell])[1] == {}


def test_every_row_of_the_papers_tables_has_its_name_and_a_run_of_its_own():
    configs = {row: row_recipe(row, "cifar10", "paper") for row in ROWS}
    assert all(config.title == row for row, config in configs.items())
    assert len({config.id for config in configs.values()}) == len(ROWS) == 40
    reported = {row for row in csv_rows() if row not in ("Hard Label", "Soft Label", "Self-Guided Soft Label")}
    assert set(PAPER_ROWS) == reported


def csv_rows():
    return {line.split(",")[3] for line in PAPER.read_text().splitlines()[1:]}


def test_what_a_row_is_made_of_is_tuned_only_there():
    changes = dict(awp=0.02, epochs=7, swa_start=0.9, smoothing=0.1, beta=3.0)
    assert row_recipe("AWP", **changes).awp == 0.02
    assert row_recipe("PGD-AT", **changes) == recipe("digits", epochs=7)
    assert row_recipe("AWP", labels="smooth", method="trades") == row_recipe("AWP")
    assert row_recipe("KD-SWA", **changes).swa_start == 0.9
    assert row_recipe("PGD-AT+LS", **changes).label_options["smoothing"] == 0.1
    assert row_recipe("TRADES", **changes).method_options["beta"] == 3.0


def test_when_weights_are_perturbed_and_averaged():
    """As in their repositories: AWP for TRADES from epoch 10 of 200, SWA from epoch 56, none of either by default."""
    awp, swa, plain = (row_recipe(row, "cifar10", "paper") for row in ("TRADES-AWP", "KD-SWA", "PGD-AT"))
    assert [awp.awp_at(epoch) for epoch in (9, 10, 200)] == [0.0, 0.005, 0.005]
    assert [swa.averages_at(epoch) for epoch in (55, 56, 200)] == [False, True, True]
    assert not plain.averages_at(200) and plain.awp_at(200) == 0.0
    assert row_recipe("AWP", "cifar10", "paper").awp_at(1) == 0.01
    # Where nothing is perturbed, when it would start does not make another run of it.
    assert plain.but(awp_start=0.3).id == plain.id and awp.but(awp_start=0.3).id != awp.id


def test_teachers_share_the_recipe_and_nothing_of_the_students_method():
    student = row_recipe("KD-SWA+SGLR", noise_rate=0.4, seed=5)
    standard, robust = student.teachers
    assert standard == row_recipe("Standard", noise_rate=0.4, seed=5)
    assert robust == row_recipe("PGD-AT", noise_rate=0.4, seed=5)
    assert not robust.teachers


def test_a_train_mode_attack_needs_fp32():
    with pytest.raises(UsageError, match="attack_mode = 'train' attacks the network itself: precision must be 'fp32'"):
        recipe("cifar10", attack_mode="train", precision="bf16")


def test_another_common_name_leads_to_ours():
    with pytest.raises(UsageError, match=r"'learning_rate' is not known\. Did you mean 'lr'"):
        one_of("parameter", "learning_rate", ["lr", "noise_rate"])
    with pytest.raises(UsageError, match="Did you mean 'noise_rate'"):
        one_of("parameter", "learning_rate", ["noise_rate"])


def test_the_face_is_there_and_costs_nothing_until_it_is_used():
    code = "import sys, sglrlib; assert 'torch' not in sys.modules; [getattr(sglrlib, n) for n in sglrlib.__all__]"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert sorted(sglrlib._HOMES) == sglrlib.__all__ and set(sglrlib.__all__) <= set(dir(sglrlib))
    with pytest.raises(AttributeError, match="expected one of recipe"):
        _ = sglrlib.jugde


@pytest.mark.parametrize("module", ["sglrlib.__main__", "sglrlib.studies.registry", "sglrlib.show.notebook"])
def test_what_takes_seconds_to_import_is_imported_where_it_is_used(module):
    late = {"altair", "papermill", "sklearn.datasets", "torchvision"}
    code = f"import sys, {module}; assert not {late} & {{*sys.modules}}"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
