"""The notebooks as their users start them: papermill from any folder, wrong parameters, a tampered output."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from sglrlib.paths import DATA, RESULTS, ROOT
from sglrlib.recipes import PAPER_ROWS

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TRAIN, TABLES, BLACK_BOX, ABLATION = (
    ROOT / "notebooks" / f"{name}.ipynb" for name in ("01_train_sglr", "02_main_tables", "08_black_box", "12_ablation")
)
SMALL = ["-p", "epochs", "2", "-p", "train_size", "60", "-p", "val_size", "40", "-p", "test_size", "50"]


def papermill(folder: Path, *arguments, notebook=TRAIN, **variables):
    """papermill's exit code and messages, started in folder, with a store of its own there."""
    environment = os.environ | dict(SGLR_OUT=str(folder), SGLR_DATA=str(DATA), OMP_NUM_THREADS="1") | variables
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", str(notebook), "out.ipynb", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def printed(folder: Path) -> str:
    """Everything that the executed notebook printed."""
    cells = nbformat.read(folder / "out.ipynb", as_version=4).cells
    return "".join(o.get("text", "") for c in cells if c.cell_type == "code" for o in c.outputs)


def test_papermill_runs_it_from_another_folder_and_shows_it_again_without_training(tmp_path):
    done = papermill(tmp_path, *SMALL, "-p", "variant", "equation_1", "-p", "seeds", "2")
    assert done.returncode == 0, done.stderr
    text = printed(tmp_path)
    for expected in ("PGD-AT+SGLR", "r = 0.8", "seeds 0, 1", "50 x 2", "n = 50 test images x 2 seeds"):
        assert expected in text
    (figure,) = (tmp_path / "figures").glob("01_train_sglr_digits_mini_*.png")  # not the recipe's own name
    assert figure.stat().st_size > 10_000

    again = papermill(tmp_path, *SMALL, "-p", "variant", "equation_1", "-p", "seeds", "2", "-p", "train", "False")
    assert again.returncode == 0 and "epoch 1/2" not in printed(tmp_path) and "50 x 2" in printed(tmp_path)
    missing = papermill(tmp_path, *SMALL, "-p", "train", "False", "-p", "seed", "7")
    assert missing.returncode == 0 and "missing: digits-pgd_at-hard-s7" in printed(tmp_path)
    assert "No claim can be judged" in printed(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-p", "metod", "trades"], "parameter = 'metod' is not known. Did you mean 'method'?"),
        (["-p", "method", "trade"], "method = 'trade' is not known. Did you mean 'trades'?"),
        (["-p", "seeds", "0"], "seeds = 0 is out of range: expected from 1 to 1000; the nearest is 1"),
        (["-p", "train", "false"], "train = 'false' is of type str: expected True or False"),
        (["-p", "noise_rate", "1.5"], "noise_rate = 1.5 is out of range: expected from 0 to 1; the nearest is 1"),
        (
            ["-p", "scale", "papr", "-p", "dataset", "cifar10"],
            "scale (of cifar10) = 'papr' is not known. Did you mean 'paper'?",
        ),
    ],
)
def test_wrong_parameters_end_at_once_and_suggest_the_right_one(tmp_path, arguments, said):
    done = papermill(tmp_path, *arguments)
    assert done.returncode != 0
    assert f"UsageError: {said}" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_help_shows_every_parameter_with_a_line_of_help(notebook):
    done = subprocess.run(
        [sys.executable, "-m", "papermill", "--help-notebook", str(notebook)], capture_output=True, text=True
    )
    cells = nbformat.read(notebook, as_version=4).cells
    (cell,) = [c for c in cells if "parameters" in c.metadata.get("tags", [])]
    lines = [line for line in cell.source.splitlines() if not line.startswith("#")]
    assert len(lines) > 3
    for line in lines:
        name, rest = line.split(":", 1)
        assert f"{name}:" in done.stdout and rest.split("#")[1].strip()[:30] in done.stdout


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_notebooks_are_executed_in_order_and_clean(notebook):
    text = notebook.read_text()
    cells = [c for c in nbformat.read(notebook, as_version=4).cells if c.cell_type == "code"]
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    assert "papermill" not in json.loads(text)["metadata"]
    outputs = json.dumps([c.outputs for c in cells])
    assert str(ROOT) not in outputs and "stderr" not in outputs and '"error"' not in outputs


def test_nbval_is_red_on_one_changed_number(tmp_path):
    """On a copy that compares two cells only: the parameters as committed, and what they make of the recipe."""
    nb = nbformat.read(TRAIN, as_version=4)
    nb.cells = [c for c in nb.cells if c.cell_type == "code"][:2]
    outcomes = []
    for name in ("as_committed", "changed"):
        nbformat.write(nb, tmp_path / f"{name}.ipynb")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval", "--nbval-current-env"]
        done = subprocess.run([*command, str(tmp_path / f"{name}.ipynb")], capture_output=True, text=True, cwd=tmp_path)
        outcomes.append(done.returncode)
        before = nb.cells[1].outputs[0].text
        nb.cells[1].outputs[0].text = before.replace("60 epochs", "61 epochs")
        assert name == "changed" or nb.cells[1].outputs[0].text != before
    assert outcomes == [0, 1]


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_real_cifar_through_papermill(tmp_path, dataset):
    folder = dict(cifar10="cifar-10-batches-py", cifar100="cifar-100-python")[dataset]
    if not (DATA / folder).exists():
        pytest.skip(f"{folder} is not in {DATA}; it is downloaded when a notebook first asks for it")
    arguments = ["-p", "dataset", dataset, "-p", "scale", "mini", "-p", "epochs", "1", "-p", "train_size", "256"]
    done = papermill(
        tmp_path, *arguments, "-p", "val_size", "100", "-p", "test_size", "100", "-p", "augment", "crop_flip"
    )
    assert done.returncode == 0, done.stderr
    assert "256 training images, 0 of them with a wrong label; 100 validation, 100 test images" in printed(tmp_path)


TINY = ["-p", "epochs", "2", "-p", "train_size", "256", "-p", "val_size", "40", "-p", "test_size", "40"]


@pytest.mark.parametrize("dataset", ["digits", "cifar10"])
def test_every_method_of_the_tables_through_the_notebooks_own_parameters(tmp_path, dataset):
    if dataset == "cifar10" and not (DATA / "cifar-10-batches-py").exists():
        pytest.skip(f"cifar-10-batches-py is not in {DATA}; it is downloaded when a notebook first asks for it")
    arguments = ["-p", "dataset", dataset, "-p", "scale", "mini", "-p", "rows", "all", "-p", "refine_start", "0.0"]
    attacks = ["-p", "attacks", "pgd_2, pgd_20_step_0.765, square", "-p", "attack_images", "4"]
    done = papermill(tmp_path, *TINY, *arguments, *attacks, "-p", "publish", "False", notebook=TABLES)
    assert done.returncode == 0, done.stderr
    text = printed(tmp_path)
    for row in PAPER_ROWS:
        assert f"{row}: 1 of 1 seeds; 256 training images" in text
    assert text.count("Square diff") == text.count("PGD-20, step 0.765 diff") == 9
    assert text.count("40 x 1") == 9 * 9 and text.count("  4 x 1") == 9 * 3
    assert "AWP: awp = 0.01" in text and "KD-SWA: swa_start = 0.28, natural_weight = 0.1" in text
    assert "-0.9†" in text or "-0.9*†" in text
    assert "TRADES+SGLR has the higher natural accuracy at the last epoch: " in text
    (figure,) = (tmp_path / "figures").glob("02_main_tables_9_rows_*.png")
    assert figure.stat().st_size > 10_000


def test_compositions_and_missing_runs(tmp_path):
    arguments = ["-p", "attacks", "pgd_2", "-p", "rows", "AWP+SGLR, TRADES+LS, PGD-SWA"]
    done = papermill(tmp_path, *TINY, *arguments, notebook=TABLES)
    assert done.returncode == 0 and "No claim can be judged" in printed(tmp_path), done.stderr
    arguments = ["-p", "attacks", "pgd_2, cw_inf", "-p", "rows", "AWP+SGLR, TRADES-AWP", "-p", "train", "False"]
    done = papermill(tmp_path, *TINY, *arguments, notebook=TABLES)
    text = printed(tmp_path)
    assert done.returncode == 0 and "missing: digits-trades-hard-s0" in text, done.stderr
    assert [line.split() for line in text.splitlines() if "missing" in line and "CW" in line] == [
        ["AWP+SGLR", "CW_inf", "missing", "–", "–", "–", "–"]
    ]


def test_black_box_attacks_through_the_notebook(tmp_path):
    done = papermill(tmp_path, *TINY, "-p", "sources", "cnn8, wrn10_1", "-p", "seeds", "2", notebook=BLACK_BOX)
    assert done.returncode == 0, done.stderr
    text = printed(tmp_path)
    assert "source: cnn8, stands for resnet34; PGD-AT, 1 epochs, seed 0, its best checkpoint" in text
    assert text.count("CW_inf from wrn10_1 diff") == 2 and text.count("40 x 2") == 24
    assert text.count("withstands it more often than the same in the white box: ") == 8
    assert text.count("PGD-AT+SGLR, last: ok the outputs are raw logits") == 1
    assert len(list((tmp_path / "figures").glob("08_black_box_digits_mini_*.png"))) == 1


@pytest.mark.parametrize(
    ("notebook", "arguments", "said"),
    [
        (TABLES, ["-p", "rows", "PGD-AT+SLGR"], "row = 'PGD-AT+SLGR' is not known. Did you mean 'PGD-AT+SGLR'?"),
        (TABLES, ["-p", "attacks", "autoatack"], "attack = 'autoatack' is not known. Did you mean 'autoattack'?"),
        (TABLES, ["-p", "awp", "-0.5"], "awp = -0.5 is out of range: expected from 0 to 1; the nearest is 0"),
        (BLACK_BOX, ["-p", "sources", "resnet43"], "arch = 'resnet43' is not known. Did you mean 'resnet34'?"),
        (BLACK_BOX, ["-p", "which", "first"], "which = 'first' is not known."),
        (ABLATION, ["-p", "ablations", "gamma 3"], "ablations = 'gamma' is not known. Did you mean 'lam'?"),
        (ABLATION, ["-p", "ablations", "r half"], "r = 'half': expected a number, such as 0.5."),
    ],
)
def test_wrong_rows_attacks_and_sources_end_before_any_work(tmp_path, notebook, arguments, said):
    rows = ["-p", "rows", "AWP"] if "awp" in arguments else []
    done = papermill(tmp_path, *arguments, *rows, notebook=notebook)
    assert done.returncode != 0 and f"UsageError: {said}" in done.stderr
    assert not (tmp_path / "runs").exists()


VERDICT = re.compile(r": (true|false|cannot be told)")
STUDIES = [n for n in NOTEBOOKS if n.stem[:2] in ("03", "04", "05", "06", "07", "09", "10", "12")]


@pytest.mark.parametrize("notebook", STUDIES, ids=lambda p: p.stem)
def test_missing_runs_are_shown_as_missing(tmp_path, notebook):
    done = papermill(tmp_path, "-p", "train", "False", "-p", "seed", "7", notebook=notebook)
    assert done.returncode == 0, done.stderr
    text = printed(tmp_path)
    assert "missing: digits-" in text and ": true (" not in text and ": false (" not in text
    assert not (tmp_path / "runs").exists() and not (tmp_path / "figures").exists()


@pytest.mark.parametrize(
    "notebook", [n for n in STUDIES if n.stem[:2] in ("03", "04", "06", "07")], ids=lambda p: p.stem
)
def test_committed_cifar10_results_are_drawn_without_data_or_checkpoints(tmp_path, notebook):
    arguments = ["-p", "dataset", "cifar10", "-p", "scale", "mini", "-p", "train", "False"]
    done = papermill(tmp_path, *arguments, notebook=notebook, SGLR_DATA=str(tmp_path / "nowhere"))
    assert done.returncode == 0, done.stderr
    assert "missing" not in printed(tmp_path) and ": true (" in printed(tmp_path)
    assert list((tmp_path / "figures").glob(f"{notebook.stem}_cifar10_mini*.png"))
    kept = (RESULTS / "README.md").read_text()
    judged = [line for line in printed(tmp_path).splitlines() if line.endswith(")") and VERDICT.search(line)]
    assert len(judged) > 2
    for line in judged:
        assert line in kept


def test_a_rule_taken_from_the_registry_is_gone_everywhere_and_a_new_one_is_there(tmp_path):
    startup = tmp_path / "ipython" / "profile_default" / "startup" / "rules.py"
    startup.parent.mkdir(parents=True)
    startup.write_text(
        "from sglrlib.method import labels\n"
        "del labels.LABELS['smooth'], labels.LABELS['ensemble']\n"
        "labels.LABELS['toy'] = type('Toy', (labels.Hard,), dict(title='+TOY'))\n"
    )
    how = dict(IPYTHONDIR=str(tmp_path / "ipython"), LOKY_MAX_CPU_COUNT="1")
    tiny = ["-p", "epochs", "1", "-p", "train_size", "60", "-p", "test_size", "40"]
    sweep, overfitting = (n for n in NOTEBOOKS if n.stem[:2] in ("03", "07"))
    runs = {
        overfitting: ["-p", "attacked_size", "20"],
        sweep: ["-p", "labels", "all", "-y", "{rates: [0.4], wrong_rates: []}"],
        TABLES: ["-p", "rows", "PGD-AT, PGD-AT+TOY, TRADES+TOY", "-p", "train", "False"],
    }
    for notebook, arguments in runs.items():
        done = papermill(tmp_path, *tiny, *arguments, notebook=notebook, **how)
        assert done.returncode == 0, done.stderr
        text = printed(tmp_path)
        assert "+TOY" in text or "-toy-" in text, notebook
        assert "smooth" not in text and "ensemble" not in text
        assert notebook == TABLES or ("+LS" not in text and "+TE" not in text)  # there the paper's own rows stand too
