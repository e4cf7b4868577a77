"""The README's numbers are those of the committed results, and its promises about files hold."""

import re

from sglrlib.config import recipe
from sglrlib.paths import RESULTS, ROOT
from sglrlib.results import stored
from sglrlib.tables import beside_paper, claims

README = (ROOT / "README.md").read_text()


def test_the_mini_table_and_its_claims_are_the_committed_results(store, monkeypatch):
    monkeypatch.setattr("sglrlib.results.RESULTS", RESULTS)
    hard, refined = (
        [stored(recipe("cifar10", "mini", labels=rule, seed=seed), committed=True) for seed in (0, 1, 2)]
        for rule in ("hard", "self_guided")
    )
    table = beside_paper({"PGD-AT": hard, "PGD-AT+SGLR": refined}).to_string(index=False)
    for line in [*table.splitlines(), *claims(hard, refined).splitlines()]:
        assert line.strip() in README


def test_every_link_into_the_repository_exists():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")]
    assert len(links) > 4
    for link in links:
        assert (ROOT / link).exists(), link


def test_every_notebook_is_in_the_table():
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"](notebooks/{notebook.name})" in README
