"""The README's numbers are those of the committed results, and its promises about files hold."""

import csv
import importlib.util
import json
import re
import shlex
from functools import partial
from importlib.metadata import metadata
from statistics import fmean

import pytest
import torch

from sglrlib import __main__
from sglrlib.method.labels import LABELS
from sglrlib.paths import RESULTS, ROOT
from sglrlib.recipes import PAPER_ROWS, row_recipe
from sglrlib.show import plan
from sglrlib.studies import published, readme, registry

README, CLAIMS_PAGE, RESULTS_PAGE = (page.read_text() for page in readme.PAGES)
ITEMS = (ROOT / "docs" / "items.md").read_text()
PAGES = [ROOT / "README.md", RESULTS / "README.md", *(ROOT / "docs").glob("*.md")]


def test_every_table_in_the_readme_is_what_the_committed_results_say():
    """Verdicts and accuracies are computed; where this fails, python -m sglrlib claims writes them."""
    assert registry.VERDICTS.read_text() == registry.text()
    for name, part in readme.parts().items():
        (found,) = re.findall(readme.place(name), README + CLAIMS_PAGE + RESULTS_PAGE, re.DOTALL)
        assert found[1].strip("\n") == part, name


def test_what_came_out_stands_at_the_head_of_each_notebook():
    """Where this fails, python -m sglrlib claims writes it."""
    for path in readme.NOTEBOOKS:
        first = "".join(json.loads(path.read_text())["cells"][0]["source"])
        (found,) = re.findall(readme.place("came out"), first, re.DOTALL)
        assert found[1].strip("\n") == readme.head(path), path.name
        for target in re.findall(r"\]\(([^)#]+)", readme.head(path)):
            assert (path.parent / target).exists(), target


def test_no_verdict_is_typed():
    """Outside of what is computed, README and the pages say of nothing that it holds."""
    typed = README + CLAIMS_PAGE + RESULTS_PAGE
    for name in readme.parts():
        typed = re.sub(readme.place(name), "", typed, flags=re.DOTALL)
    assert not re.findall(r"does not hold|cannot be told|seen in th|: holds|: true|: false", typed)


def test_what_the_later_parts_of_autoattack_break_on_digits():
    every = [run for row in PAPER_ROWS for run in published.results(partial(row_recipe, row))]
    after_two, after_four = (
        torch.cat([run.flags(which, column) for run in every for which in ("best", "last")])
        for column in ("apgd_t", "autoattack")
    )
    broken = (after_two & ~after_four).sum().item()
    text = " ".join((RESULTS / "README.md").read_text().split())
    assert f"Of the {len(after_two):,} verdicts (nine methods, three seeds, two checkpoints, 200 images)" in text
    assert f"{after_two.sum().item():,} stand after APGD-CE and APGD-T" in text
    assert f"FAB-T and Square break {broken} of those" in text


def test_the_gates_table_is_that_of_its_curves():
    """Robust accuracy is the mean of validation and test images; the highest epoch, and the last one."""
    text = (RESULTS / "README.md").read_text()
    for name in ("augmented", "batch_128", "batch_64", "batch_80"):
        curve = list(csv.DictReader((RESULTS / "gate" / f"{name}.csv").read_text().splitlines()))
        robust = [(float(row["val_robust"]) + float(row["test_robust"])) / 2 for row in curve]
        top = max(range(len(robust)), key=robust.__getitem__)
        natural = float(curve[-1]["test_natural"])
        assert f"| {robust[top]:.1f} ({top + 1}" in text and f"| {robust[-1]:.1f} | {natural:.1f} |" in text, name


def test_the_stages_row_is_that_of_its_three_seeds():
    text = (RESULTS / "README.md").read_text()
    runs = published.results(partial(row_recipe, "PGD-AT", "cifar10", "small"), "pgd_10")[:3]
    assert [run.config.seed for run in runs] == [0, 1, 2]
    epochs = zip(*(run.curve for run in runs), strict=True)
    means = [fmean((row["val_robust"] + row["test_robust"]) / 2 for row in rows) for rows in epochs]
    top = max(range(len(means)), key=means.__getitem__)
    natural = fmean(run.accuracy("last", "natural") for run in runs)
    flags = [[run.flags(which, "pgd_10")[:2000].double() for which in ("best", "last")] for run in runs]
    drops = [100 * (best - last).mean().item() for best, last in flags]
    assert f"| {means[top]:.1f} ({top + 1}) | {means[-1]:.1f} | {natural:.1f} |" in text
    assert f"loses {fmean(drops):.1f} ({', '.join(f'{drop:.1f}' for drop in drops)})" in text
    first, within = runs[0].config.drop_epochs[0], runs[0].config.epochs / 10
    assert first <= top + 1 <= first + within and fmean(drops) >= 4 and natural > 50  # the gate


def test_the_speed_is_that_of_the_saved_benchmark():
    found = json.loads((RESULTS / "speed" / "amd-epyc.json").read_text())["training"]
    medians = {r["what"]: r["median"] for r in found["rows"] if r["network"] == "resnet18" and r["threads"] == 1}
    medians |= {r["rung"]: r["median"] for r in found["ladder"]}
    names = "step, fp32, against release", "step, bf16, against release", "+ update in bf16", "step, fp32, against rice"
    fp32, bf16, amp, rice = (f"{medians[name]:.2f}" for name in names)
    text = " ".join(RESULTS_PAGE.split("## Speed")[1].split("##")[0].split())
    assert f"divided by {fp32} in fp32, by {bf16} with the attack in bf16" in text
    assert f"and by {amp} with the update in bf16" in text and f"Rice et al. {rice} in fp32" in text


def test_what_is_installed_by_hash_is_what_is_tested():
    """requirements-hashed.txt has each version of requirements.txt, and nothing without a hash."""

    def pins(name: str) -> dict[str, str]:
        pairs = re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / name).read_text(), re.MULTILINE)
        return {re.sub("[_.]", "-", package).lower(): version for package, version in pairs}

    plain, hashed = pins("requirements.txt"), pins("requirements-hashed.txt")
    assert len(plain) > 100 and plain.items() <= hashed.items()
    assert len(re.findall(r"==.*\\\n    --hash=sha256:", (ROOT / "requirements-hashed.txt").read_text())) == len(hashed)


def test_every_link_into_the_repository_exists():
    for page in PAGES:
        links = [link for link in re.findall(r"\]\(([^)#]+)", page.read_text()) if not link.startswith("http")]
        for link in links:
            assert (page.parent / link).exists(), (page.name, link)


def test_the_readme_stays_short():
    assert len(README.splitlines()) <= 200


def commands() -> list[str]:
    """The command lines of README and docs, without their comments."""
    text = "\n".join(page.read_text() for page in PAGES).replace("\\\n", " ")
    lines = [line.split(" #")[0].strip() for line in text.splitlines() if line.startswith("    ")]
    return [line for line in lines if line.startswith(("papermill ", "python -m ", "make "))]


@pytest.mark.parametrize("line", commands())
def test_every_command_of_the_pages_is_understood(line, store, capsys):
    """Not run, as most take minutes to days, but taken apart and checked up to its first work."""
    program, *words = shlex.split(line)
    if program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif words[0] == "--help-notebook":
        assert (ROOT / words[1]).exists()
    elif program == "papermill" or words[:2] == ["-m", "sglrlib"]:
        arguments = ["list", words[0], *words[2:]] if program == "papermill" else words[2:]
        asked = __main__.parser().parse_args(arguments)
        if "notebook" in asked and asked.notebook:
            assert plan.tasks(ROOT / asked.notebook, __main__.parameters(asked))
    else:
        assert importlib.util.find_spec(words[1])


def test_the_python_of_the_readme_is_understood(tidy, tmp_path, monkeypatch):
    """Executed up to the first line that trains."""
    monkeypatch.syspath_prepend(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    for i, block in enumerate(blocks):
        compile(block, "README", "exec")
        (tmp_path / f"readme_block_{i}.py").write_text(block.split("result = run(")[0])
        importlib.import_module(f"readme_block_{i}")
    assert len(blocks) == 3 and "bootstrap" in LABELS


def test_a_result_is_read_without_this_library_as_the_docs_say(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "result-files.md").read_text(), re.DOTALL)
    exec(block, {})
    run = published.results(partial(row_recipe, "PGD-AT", "cifar10", "small"), "pgd_20")[0]
    assert f"{run.accuracy('last', 'pgd_20'):.1f} % of {run.n('pgd_20')} images" in capsys.readouterr().out


def test_every_paper_that_a_notebook_links_is_among_the_references():
    cited = {
        number for path in readme.NOTEBOOKS for number in re.findall(r"arxiv\.org/abs/([\d.]+\d)", path.read_text())
    }
    listed = set(re.findall(r"arxiv\.org/abs/([\d.]+\d)", (ROOT / "docs" / "references.md").read_text()))
    assert cited <= listed, cited - listed


def test_every_notebook_is_in_the_table():
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"](../notebooks/{notebook.name})" in ITEMS


def test_every_item_has_a_notebook_and_a_figure():
    lines = ITEMS.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")][2:]
    assert len(rows) >= 19
    for item, notebook, figure in rows:
        assert item and "notebooks/" in notebook and ("figures/" in figure or "in the notebook" in figure)
    paper = [
        "Algorithm 1",
        "equation 1",
        *(f"Figure B.{i}" for i in range(1, 8)),
        *(f"Table B.{i}" for i in range(1, 5)),
    ]
    for item in [*paper, "Theorem 1", "Theorem 2", "Lemma 1", "Propositions 1 and 2", "label noise", "t-SNE", "IIW"]:
        assert any(item in row[0] for row in rows), item


def test_every_figure_is_there_as_a_picture_and_for_print():
    pictures = {path.stem for path in (ROOT / "figures").glob("*.png")}
    assert pictures == {path.stem for path in (ROOT / "figures").glob("*.pdf")} and len(pictures) > 20
    shown = set(re.findall(r"figures/(\w+)\.png", ITEMS))
    assert shown <= pictures and len(pictures - shown) <= 4, pictures - shown


def test_the_licence_of_everything_that_is_installed_is_listed():
    page = (ROOT / "docs" / "licences.md").read_text()
    rows = re.findall(r"^\| (\S+).*? \| (\d+) \| (.*) \|$", page, re.MULTILINE)
    listed = {name: licence for licence, n, names in rows for name in names.split(", ")}
    assert [int(n) for _, n, _ in rows] == [len(names.split(", ")) for *_, names in rows]
    pinned = re.findall(r"^[\w.-]+(?===)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert listed.keys() == set(pinned)
    for name, licence in listed.items():
        found = metadata(name)
        said = [found.get("License-Expression"), found.get("License"), *(found.get_all("Classifier") or [])]
        short = licence.split("-")[0]
        words = rf"\b{short}|" + dict(MPL="Mozilla", PSF="Python Software").get(short, short)
        assert re.search(words, " ".join(filter(None, said))), (name, licence)
