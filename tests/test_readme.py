"""The README's numbers are those of the committed results, and its promises about files hold."""

import json
import re

import pytest

from sglrlib.paths import RESULTS, ROOT
from sglrlib.recipes import PAPER_ROWS, row_recipe
from sglrlib.show.tables import beside_paper, claims, overview
from sglrlib.store.results import stored

COLUMNS = ["natural", "pgd_20", "autoattack"]
README = (ROOT / "README.md").read_text()


@pytest.fixture
def committed(store, monkeypatch):
    """Committed results of a row, for the seeds 0, 1 and 2."""
    monkeypatch.setattr("sglrlib.store.results.RESULTS", RESULTS)
    return lambda row, *where: [stored(row_recipe(row, *where, seed=seed), committed=True) for seed in (0, 1, 2)]


def assert_in_readme(*texts):
    for line in "\n".join(texts).splitlines():
        assert line.strip() in README


def test_the_digits_tables_and_their_claims_are_the_committed_results(committed):
    runs = {row: committed(row) for row in PAPER_ROWS}
    judged = [claims(runs[row], runs[row + "+SGLR"], COLUMNS) for row in ("PGD-AT", "TRADES")]
    assert_in_readme(overview(runs, COLUMNS).to_string(index=False), *judged)
    assert all(run.n("autoattack") == 200 for those in runs.values() for run in those)


def test_the_mini_table_and_its_claims_are_the_committed_results(committed):
    hard, refined = (committed(row, "cifar10", "mini") for row in ("PGD-AT", "PGD-AT+SGLR"))
    table = beside_paper({"PGD-AT": hard, "PGD-AT+SGLR": refined}, COLUMNS)
    assert_in_readme(table.to_string(index=False), claims(hard, refined, COLUMNS))
    runs = {row: committed(row, "cifar10", "mini")[:1] for row in PAPER_ROWS}
    lines = overview(runs, ["natural", "pgd_20"]).to_string(index=False).splitlines()
    assert all(line.strip() in (RESULTS / "README.md").read_text() for line in lines)


def test_the_speed_is_that_of_the_saved_benchmark():
    found = json.loads((RESULTS / "speed" / "amd-epyc.json").read_text())["training"]
    medians = {r["what"]: r["median"] for r in found["rows"] if r["network"] == "resnet18" and r["threads"] == 1}
    medians |= {r["rung"]: r["median"] for r in found["ladder"]}
    names = "step, fp32, against release", "step, bf16, against release", "+ update in bf16", "step, fp32, against rice"
    fp32, bf16, amp, rice = (f"{medians[name]:.2f}" for name in names)
    text = " ".join(README.split("## Speed")[1].split("##")[0].split())
    assert f"divided by {fp32} in fp32, by {bf16} with the attack in bf16" in text
    assert f"and by {amp} with the update in bf16" in text and f"Rice et al. {rice} in fp32" in text


def test_every_link_into_the_repository_exists():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")]
    assert len(links) > 4
    for link in links:
        assert (ROOT / link).exists(), link


def test_every_notebook_is_in_the_table():
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"](notebooks/{notebook.name})" in README


def test_every_item_has_a_notebook_a_figure_and_two_verdicts():
    lines = README.split("## What is reproduced")[1].split("##")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")][2:]
    assert len(rows) >= 19
    for item, notebook, figure, digits, mini in rows:
        assert item and digits and mini and "notebooks/" in notebook and ("figures/" in figure or "tables" in figure)
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
    assert pictures == {path.stem for path in (ROOT / "figures").glob("*.pdf")} and len(pictures) > 25
