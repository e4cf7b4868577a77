"""The notebooks as their users start them: papermill from any folder, wrong parameters, a tampered output."""

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from click.testing import CliRunner
from papermill import cli
from shell import execute

from sglrlib.checks import UsageError
from sglrlib.paths import DATA, RESULTS, ROOT
from sglrlib.recipes import PAPER_ROWS
from sglrlib.store.results import Result

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TOUR, TRAIN, TABLES, BLACK_BOX, ABLATION = (
    ROOT / "notebooks" / f"{name}.ipynb"
    for name in ("00_tour", "01_train_sglr", "02_main_tables", "08_black_box", "12_ablation")
)
SMALL = dict(epochs=2, train_size=60, val_size=40, test_size=50)
TINY = dict(epochs=2, train_size=64, val_size=40, test_size=40)


def papermill(folder: Path, **parameters):
    """papermill's exit code and messages on 01, started in folder, with a store of its own there."""
    arguments = [word for name, value in parameters.items() for word in ("-p", name, str(value))]
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", str(TRAIN), "out.ipynb", *arguments]
    environment = os.environ | dict(SGLR_OUT=str(folder), OMP_NUM_THREADS="1")
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def able(monkeypatch):
    """Networks after two epochs are judged as if they were more than guesses."""
    monkeypatch.setattr(Result, "at_chance", False)


def test_papermill_runs_it_from_another_folder_and_shows_it_again_without_training(store):
    asked = SMALL | dict(variant="equation_1", seeds=2)
    done = papermill(store, **asked)
    assert done.returncode == 0, done.stderr
    cells = nbformat.read(store / "out.ipynb", as_version=4).cells
    shown = [o for c in cells if c.cell_type == "code" for o in c.outputs]
    text = "".join(o.get("text", o.get("data", {}).get("text/plain", "")) for o in shown)
    for expected in ("PGD-AT+SGLR", "r = 0.8", "seeds 0, 1", "50 x 2", "cannot be judged here (at chance level"):
        assert expected in text
    (figure,) = (store / "runs" / "figures").glob("01_train_sglr_digits_mini_*.png")  # not the recipe's own name
    assert figure.stat().st_size > 10_000

    again = execute(TRAIN, **asked, train=False)
    assert "epoch 1/2" not in again and "50 x 2" in again
    missing = execute(TRAIN, **SMALL, train=False, seed=7)
    assert "missing: digits-pgd_at-hard-s7" in missing and "No claim can be judged" in missing


def test_wrong_parameters_end_papermill_at_once(tmp_path):
    done = papermill(tmp_path, metod="trades")
    assert done.returncode != 0
    assert "UsageError: parameter = 'metod' is not known. Did you mean 'method'?" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("notebook", "parameters", "said"),
    [
        (TRAIN, dict(method="trade"), "method = 'trade' is not known. Did you mean 'trades'?"),
        (TRAIN, dict(seeds=0), "seeds = 0 is out of range: expected from 1 to 1000; the nearest is 1"),
        (TRAIN, dict(train="false"), "train = 'false' is of type str: expected True or False"),
        (TRAIN, dict(noise_rate=1.5), "noise_rate = 1.5 is out of range: expected from 0 to 1; the nearest is 1"),
        (TRAIN, dict(dataset="cifar10", scale="papr"), "scale (of cifar10) = 'papr' is not known. Did you mean"),
        (TOUR, dict(seeds=3), "seeds = 3 is out of range: expected from 1 to 1"),
        (TOUR, dict(scale="paper"), "scale = 'paper' is not known. Known: 'mini'"),
        (TABLES, dict(rows="PGD-AT+SLGR"), "row = 'PGD-AT+SLGR' is not known. Did you mean 'PGD-AT+SGLR'?"),
        (TABLES, dict(attacks="autoatack"), "attack = 'autoatack' is not known. Did you mean 'autoattack'?"),
        (TABLES, dict(rows="AWP", awp=-0.5), "awp = -0.5 is out of range: expected from 0 to 1; the nearest is 0"),
        (BLACK_BOX, dict(sources="resnet43"), "arch = 'resnet43' is not known. Did you mean 'resnet34'?"),
        (BLACK_BOX, dict(which="first"), "which = 'first' is not known."),
        (ABLATION, dict(ablations="gamma 3"), "ablations = 'gamma' is not known. Did you mean 'lam'?"),
        (ABLATION, dict(ablations="r half"), "r = 'half': expected a number, such as 0.5."),
    ],
)
def test_wrong_parameters_end_before_any_work_and_suggest_the_right_one(store, notebook, parameters, said):
    with pytest.raises(UsageError, match=re.escape(said)):
        execute(notebook, **parameters)
    assert not (store / "runs").exists()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_help_shows_every_parameter_with_a_line_of_help(notebook):
    shown = CliRunner().invoke(cli.papermill, ["--help-notebook", str(notebook)]).output
    cells = nbformat.read(notebook, as_version=4).cells
    (cell,) = [c for c in cells if "parameters" in c.metadata.get("tags", [])]
    lines = [line for line in cell.source.splitlines() if not line.startswith("#")]
    assert 4 < len(lines) <= 6
    for line in lines:
        name, rest = line.split(":", 1)
        assert f"{name}:" in shown and rest.split("#")[1].strip()[:30] in shown


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_notebooks_are_executed_in_order_and_clean(notebook):
    text = notebook.read_text()
    cells = [c for c in nbformat.read(notebook, as_version=4).cells if c.cell_type == "code"]
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    assert "papermill" not in json.loads(text)["metadata"]
    outputs = json.dumps([c.outputs for c in cells])
    assert str(ROOT) not in outputs and "stderr" not in outputs and '"error"' not in outputs


def test_nbval_is_red_on_one_changed_number(tmp_path):
    """On a copy of what is printed of the recipe: the cell as committed, and once more with another number."""
    nb = nbformat.read(TRAIN, as_version=4)
    live = [c for c in nb.cells if c.cell_type == "code" and "committed" not in c.metadata.get("tags", [])]
    nb.cells = live[:3]  # imports, parameters, what is about to be run
    nb.cells.append(copy.deepcopy(nb.cells[2]))
    nb.cells[3]["id"] = "changed"
    before = nb.cells[2].outputs[0].text
    nb.cells[3].outputs[0].text = before.replace("60 epochs", "61 epochs")
    assert nb.cells[3].outputs[0].text != before
    nbformat.write(nb, tmp_path / "changed.ipynb")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval", "--nbval-current-env"]
    done = subprocess.run([*command, "changed.ipynb"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and "1 failed, 3 passed" in done.stdout, done.stdout


def real(dataset: str):
    """Skip where a downloaded dataset is not there."""
    folder = dict(cifar10="cifar-10-batches-py", cifar100="cifar-100-python").get(dataset, "")
    if not (DATA / folder).exists():
        pytest.skip(f"{folder} is not in {DATA}; it is downloaded when a notebook first asks for it")


def test_real_cifar100(store):
    real("cifar100")
    sizes = dict(epochs=1, train_size=64, val_size=100, test_size=100)
    text = execute(TRAIN, dataset="cifar100", scale="small", **sizes, augment="crop_flip")
    assert "64 training images, 0 of them with a wrong label; 100 validation, 100 test images" in text


@pytest.mark.parametrize(
    ("dataset", "rows"),
    [("digits", PAPER_ROWS), ("cifar10", ("KD-SWA", "TRADES", "TRADES+SGLR"))],
    ids=["digits", "cifar10"],
)
def test_every_method_of_the_tables_through_the_notebooks_own_parameters(store, dataset, rows, able):
    real(dataset)
    asked = dict(
        dataset=dataset,
        scale="mini" if dataset == "digits" else "small",
        rows=", ".join(rows),
        refine_start=0.0,
        batch_size=32,
        arch="cnn16" if dataset == "digits" else "preact_resnet10_4",
    )
    text = execute(TABLES, **TINY, **asked, attacks="pgd_2, pgd_20_step_0.765, square", attack_images=4)
    n = len(rows)
    for row in rows:
        assert f"{row}: 1 of 1 seeds; 64 training images" in text
    assert text.count("Square, 4 images") == text.count("PGD-20, step 0.765, 40 images") == 1
    assert text.count("ours, seeds: 1") == 2 * n  # a table of PGD and one of the slower attacks
    judged = sum(row + "+SGLR" in rows for row in rows)  # pairs, each with four claims an attack and one natural
    assert text.count("40 x 1") == 9 * judged and len(re.findall(r"\b4 x 1", text)) == 4 * judged
    assert "KD-SWA: swa_start = 0.28, natural_weight = 0.1" in text and ("AWP: awp = 0.01" in text) == (n == 9)
    assert n < 9 or "-0.9†" in text or "-0.9*†" in text
    assert "TRADES+SGLR has the higher natural accuracy" in text
    (figure,) = (store / "runs" / "figures").glob(f"02_main_tables_{n}_rows_*.png")
    assert figure.stat().st_size > 10_000


def test_compositions_and_missing_runs(store, able):
    text = execute(TABLES, **TINY, attacks="pgd_2", rows="AWP+SGLR, TRADES+LS, PGD-SWA")
    assert "No claim can be judged" in text
    text = execute(TABLES, **TINY, attacks="pgd_2, cw_inf", rows="AWP+SGLR, TRADES-AWP", train=False)
    assert "missing: digits-trades-hard-s0" in text
    assert re.search(r"AWP\+SGLR +ours, seeds: 1 .* missing", text) and "CW_inf" in text


def test_black_box_attacks_through_the_notebook(store, able):
    text = execute(BLACK_BOX, **TINY, sources="cnn8, wrn10_1", seeds=2)
    assert "source: cnn8, stands for resnet34; PGD-AT, 1 epochs, seed 0, its best checkpoint" in text
    assert text.count("CW_inf from wrn10_1, 40 images") == 1 and text.count("40 x 2") == 12
    assert text.count("ours, seeds: 2") == 2
    assert text.count("withstands an attack made on another network more often than one made on itself") == 8
    assert text.count("last checkpoint, trained here:\n    ok the outputs are raw logits") == 1
    assert len(list((store / "runs" / "figures").glob("08_black_box_digits_mini_*.png"))) == 1


VERDICT = re.compile(r"seen in th|cannot be judged here|holds")
STUDIES = [n for n in NOTEBOOKS if n.stem[:2] in ("03", "04", "05", "06", "07", "09", "10", "12")]


@pytest.mark.parametrize("notebook", STUDIES, ids=lambda p: p.stem)
def test_missing_runs_are_shown_as_missing(store, notebook):
    text = execute(notebook, train=False, seed=7)
    _, missing, live = text.partition("missing: digits-")
    assert missing and not VERDICT.search(live)
    assert not (store / "runs").exists()


@pytest.mark.parametrize(
    "notebook", [n for n in STUDIES if n.stem[:2] in ("03", "04", "06", "07")], ids=lambda p: p.stem
)
def test_committed_results_are_drawn_without_checkpoints(store, monkeypatch, notebook):
    monkeypatch.setattr("sglrlib.store.results.RESULTS", RESULTS)
    text = execute(notebook, train=False, seeds=3)
    assert "missing" not in text and ("holds" in text or "open" in text) and "in this run" not in text
    assert list((store / "runs" / "figures").glob(f"{notebook.stem}_digits_mini*.png"))


OTHER_RULES = """
import json, sys
from sglrlib.method import labels
del labels.LABELS["smooth"], labels.LABELS["ensemble"]
labels.LABELS["toy"] = type("Toy", (labels.Hard,), dict(title="+TOY"))
from pathlib import Path
from shell import execute
from sglrlib.studies import registry
registry.VERDICTS = Path("nowhere")  # what is committed has all rules
print(json.dumps([execute(path, **parameters) for path, parameters in json.loads(sys.argv[1])]))
"""


def test_a_rule_taken_from_the_registry_is_gone_everywhere_and_a_new_one_is_there(tmp_path):
    """In a process of its own, before anything else is imported."""
    tiny = dict(epochs=1, train_size=60, test_size=40)
    sweep, overfitting = (n for n in NOTEBOOKS if n.stem[:2] in ("03", "07"))
    asked = [
        (overfitting, tiny | dict(attacked_size=20)),
        (sweep, tiny | dict(labels="all", rates=[0.4], wrong_rates=[])),
        (TABLES, tiny | dict(rows="PGD-AT, PGD-AT+TOY, TRADES+TOY", train=False)),
    ]
    command = [sys.executable, "-c", OTHER_RULES, json.dumps(asked, default=str)]
    here = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    environment = os.environ | dict(SGLR_OUT=str(tmp_path), PYTHONPATH=here, LOKY_MAX_CPU_COUNT="1")
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for (notebook, _), text in zip(asked, json.loads(done.stdout), strict=True):
        assert "+TOY" in text or "-toy-" in text, notebook
        assert "smooth" not in text and "ensemble" not in text
        assert notebook == TABLES or ("+LS" not in text and "+TE" not in text)  # there the paper's own rows stand too
