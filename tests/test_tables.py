import csv
import math

import pandas as pd
import pytest
import torch

from sglrlib.paths import PAPER
from sglrlib.recipes import recipe
from sglrlib.show.tables import (
    as_in_paper,
    beside_paper,
    column_title,
    interval,
    mean_and_spread,
    overview,
    paper_gaps,
    paper_value,
    slips,
    with_best,
)
from sglrlib.store.results import Result
from sglrlib.studies.refinement import claims, gap_claims, masking_claims
from sglrlib.training.runs import run

ROWS = list(csv.DictReader(PAPER.read_text().splitlines()))

# The paper's own arithmetic: printed Diffs that best - final does not give to within rounding.
SLIPS = {
    ("slides: other datasets", "cifar10", "resnet18", "PGD-AT+SGLR", "natural"),  # 0.1 for -0.1
    ("slides: other datasets", "cifar10", "resnet18", "TRADES+SGLR", "natural"),  # -0.9 for -1.1
    ("Table B.4", "cifar10", "resnet18", "PGD-AT+SGLR", "natural"),  # 0.1 for -0.1
}


def test_the_papers_differences_add_up_but_for_the_known_slips():
    cells = {}
    for row in ROWS:
        if row["checkpoint"]:
            key = tuple(row[k] for k in ("table", "dataset", "model", "row", "column"))
            cells.setdefault(key, {})[row["checkpoint"]] = float(row["value"])
    assert len(cells) == (219 - 12) / 3
    wrong = {k for k, c in cells.items() if abs(c["best"] - c["final"] - c["diff"]) > 0.11}
    assert wrong == SLIPS
    assert len(slips()) == 3
    for table, _, _, row, _ in SLIPS:
        assert any(line.startswith(f"{table}, {row}, Natural: Diff printed") for line in slips())


def test_paper_values_are_found_by_name():
    where = dict(dataset="cifar10", model="resnet18")
    assert paper_value("PGD-AT+SGLR", "pgd_20", "best", **where) == 56.4
    assert paper_value("TRADES", "autoattack", "final", dataset="cifar100") == 23.4
    assert paper_value("PGD-AT", "pgd_20", "diff", dataset="cifar10", model="wrn34_10") == 5.7
    assert paper_value("PGD-AT", "pgd_20", "best", dataset="digits") is None


def result(labels, best, last, lost, gained, *, dataset="digits", seed=0, columns=("natural", "pgd_20"), **changes):
    """A run right on so many of 1,000 images at its best and last epoch; lost of them only at the best, gained the
    other way round.
    """
    assert best - lost + gained == last
    flags = dict(best=torch.arange(1000) < best)
    flags["last"] = flags["best"].clone()
    flags["last"][:lost] = False
    flags["last"][best : best + gained] = True
    run = Result(
        config=recipe(dataset, labels=labels, seed=seed, **changes), curve=[], best_epoch=100,
        sizes=dict(train=500, test=1000), evaluations=dict(best={}, last={}), provenance={},
    )  # fmt: skip
    for which in ("best", "last"):
        for column in columns:
            run = run.with_flags(which, column, flags[which])
    return run


def test_a_digits_run_is_never_compared_with_cifar():
    table = beside_paper({"PGD-AT": [result("hard", 800, 700, 120, 20)]})
    assert set(table.difference) == {"–"}
    assert list(table.ours) == ["80.0", "70.0", "10.0"] * 2
    assert list(table.n) == ["1000 x 1"] * 6
    assert list(table.paper) == ["80.7*", "82.4*", "-1.6*", "50.7*", "41.4*", "9.3*"]


def test_the_same_dataset_and_network_is_compared():
    runs = [result("hard", 500 + 10 * s, 410, 100 + 10 * s, 10, dataset="cifar10", seed=s) for s in (0, 1, 2)]
    table = beside_paper({"PGD-AT": runs}).set_index("accuracy")
    shown = table.loc["PGD-20 best", ["ours", "paper", "difference", "n"]].tolist()
    assert shown == ["51.0 ± 1.0", "50.7", "+0.3", "1000 x 3"]


@pytest.mark.parametrize(
    "changes", [dict(epochs=1), dict(train_size=64), dict(eps_255=4), dict(noise_rate=0.2), dict(lr=0.05)]
)
def test_another_protocol_is_shown_with_a_star_and_no_difference(changes):
    table = beside_paper({"PGD-AT": [result("hard", 500, 410, 100, 10, dataset="cifar100", **changes)]})
    assert set(table.difference) == {"–"}
    own = beside_paper({"PGD-AT": [result("hard", 500, 410, 100, 10, dataset="cifar100")]})
    assert list(table.paper) == [f"{value}*" for value in own.paper] and "–" not in set(own.difference)


def test_what_was_not_measured_is_missing_and_not_zero():
    table = beside_paper({"PGD-AT": [result("hard", 500, 500, 1, 1)]}, ("autoattack",))
    assert table.iloc[0][["accuracy", "ours", "n"]].tolist() == ["AutoAttack", "missing", "–"]


def test_the_papers_layout():
    runs = [result("hard", 500 + 10 * s, 410, 100 + 10 * s, 10, dataset="cifar10", seed=s) for s in (0, 1, 2)]
    guided = result("self_guided", 800, 800, 1, 1, dataset="cifar10", columns=["natural"])
    long = beside_paper({"PGD-AT": runs, "PGD-AT+SGLR": [guided]})
    failed = dict.fromkeys(long.columns, "–") | dict(method="AWP", accuracy="seed 2", ours="failed")
    table = as_in_paper(pd.concat([long, pd.DataFrame([failed])]))
    assert [*table.columns[:3]] == [("Natural, 1,000 images", name) for name in ("Best", "Final", "Diff")]
    row = table.loc[("PGD-AT", "ours, seeds: 3"), "PGD-20, 1,000 images"]
    assert [*row] == [*long[long.accuracy.str.startswith("PGD-20 ")].ours[:3]] and row["Best"] == "51.0 ± 1.0"
    assert table.loc[("PGD-AT", "paper"), ("PGD-20, 1,000 images", "Best")] == "50.7"
    assert table.loc[("PGD-AT", "ours - paper"), ("PGD-20, 1,000 images", "Best")] == "+0.3"
    assert table.loc[("PGD-AT+SGLR", "ours, seeds: 1"), ("PGD-20", "Best")] == "missing"
    assert "failed" in set(table.loc[("AWP", "seed 2")])


def test_a_slip_of_the_paper_is_marked():
    runs = {"TRADES+SGLR": [result("self_guided", 800, 800, 1, 1, dataset="cifar10", method="trades")]}
    assert list(beside_paper(runs).paper) == ["82.2", "83.3", "-0.9†", "55.8", "55.4", "0.4"]


def test_intervals_by_hand():
    run = result("hard", 800, 700, 120, 20)
    # Wilson: centre (0.8 + z²/2n) / (1 + z²/n), half z sqrt(0.8 * 0.2 / n + z²/4n²) / (1 + z²/n)
    z, n = 1.96, 1000
    centre, half = 0.8 + z * z / (2 * n), z * math.sqrt(0.16 / n + z * z / (4 * n * n))
    expected = [100 * (centre + sign * half) / (1 + z * z / n) for sign in (-1, 1)]
    assert interval([run], "best", "pgd_20") == pytest.approx(expected, abs=1e-3)
    # 120 images -1, 20 images +1, mean -0.1: variance 0.14 - 0.01
    half = 1.96 * 100 * math.sqrt(0.13 / 999)
    assert interval([run], "diff", "pgd_20") == pytest.approx([10 - half, 10 + half], abs=1e-3)
    # three seeds that differ far more than images do: Student's t, 4.303 x 10 / sqrt(3)
    seeds = [result("hard", k, k, 0, 0, seed=s) for s, k in enumerate((400, 500, 600))]
    low, high = interval(seeds, "best", "pgd_20")
    assert high - 50 == pytest.approx(50 - low) == pytest.approx(4.303 * 10 / math.sqrt(3), rel=0.01)


def test_a_column_may_be_shown_on_the_images_of_a_slower_one():
    run = result("hard", 800, 700, 120, 20)  # the first 800 are right at the best
    table = beside_paper({"PGD-AT": [run]}, ["pgd_20", "pgd_20 on 900", "pgd_20 on 5000"]).set_index("accuracy")
    assert table.loc["PGD-20 on 900 best", ["ours", "n"]].tolist() == ["88.9", "900 x 1"]
    assert table.loc["PGD-20 on 5000 best", ["ours", "n"]].tolist() == ["80.0", "1000 x 1"]
    assert overview({"PGD-AT": [run]}, ["pgd_20 on 900"])["PGD-20 on 900"].tolist() == ["88.9 -> 77.8"]


@pytest.mark.parametrize(
    ("column", "title"),
    [("pgd_20", "PGD-20"), ("apgd_ce", "APGD-CE"), ("pgd_20_step_0.765", "PGD-20, step 0.765"), ("natural", "Natural")],
)
def test_titles_of_columns(column, title):
    assert column_title(column) == title


def test_the_papers_gaps_between_its_attacks():
    gaps = paper_gaps().set_index(["dataset", "model", "row"])
    assert gaps.loc["cifar10", "resnet18", "PGD-AT"].tolist() == [3.0, 1.2]  # 50.7 - 47.7, 41.4 - 40.2
    assert gaps.loc["cifar100", "resnet18", "PGD-AT+SGLR"].tolist() == [7.0, 7.6]
    assert len(gaps) == 15 and not gaps.isna().any(axis=None)


def test_the_overview_has_a_line_a_method():
    runs = {"PGD-AT": [result("hard", 800 + 10 * s, 700, 100 + 10 * s, 0, seed=s) for s in (0, 1, 2)]}
    (line,) = overview(runs, ["pgd_20", "autoattack"]).to_dict("records")
    assert line == {"method": "PGD-AT", "PGD-20": "81.0 ± 1.0 -> 70.0 ± 0.0", "AutoAttack": "missing", "seeds": 3}
    assert mean_and_spread([51.04]) == "51.0"


def test_a_network_at_chance_level_is_said_to_be(store, small):
    """In progress, in the tables, and where it would be judged."""
    guessing, able = result("hard", 110, 110, 0, 0), result("hard", 800, 800, 0, 0)
    assert guessing.at_chance and not able.at_chance and not result("hard", 130, 130, 0, 0).at_chance
    for table in (overview, beside_paper):
        labels = set(table({"PGD-AT": [guessing, able], "AWP": [able]}, ["natural"]).method)
        assert labels == {"PGD-AT (1 of 2 at chance)", "AWP"}
    judged = claims([able], [guessing]) + gap_claims([guessing], [able], ["natural"])
    judged += masking_claims([guessing], ["pgd_20"])
    assert {(c.word, c.reason) for c in judged} == {("cannot be judged here", "at chance level: PGD-AT seed 0")}
    said = []
    run(small(lr=100.0, epochs=1), (), say=said.append)
    assert said[-1] == "at chance level: PGD-AT+SGLR seed 0, so nothing can be concluded from it"


def test_the_best_of_ours_and_of_the_papers_is_marked_but_no_natural_difference():
    columns = pd.MultiIndex.from_product([["Natural, 9 images", "PGD-20, 9 images"], ["Best", "Diff"]])
    rows = pd.MultiIndex.from_product([["A", "B"], ["ours, seeds: 3", "95 %", "paper"]], names=["method", ""])
    of_a, of_b = ["50.0 ± 1.0", "-2.0", "30.0 ± 1.0", "5.0"], ["40.0 ± 1.0", "1.0", "31.0 ± 1.0", "-0.5"]
    cells = [
        of_a,
        ["0 to 99"] * 4,
        ["80.7", "–", "50.7*", "9.3*"],
        of_b,
        ["0 to 99"] * 4,
        ["82.9", "–", "56.4*", "0.5*"],
    ]
    marked = with_best(pd.DataFrame(cells, index=rows, columns=columns))
    assert [*marked.iloc[0]] == ["**50.0 ± 1.0**", "-2.0", "30.0 ± 1.0", "5.0"]
    assert [*marked.iloc[3]] == ["40.0 ± 1.0", "1.0", "**31.0 ± 1.0**", "**-0.5**"]
    assert [*marked.iloc[5]] == ["**82.9**", "–", "**56.4***", "**0.5***"]
    assert [*marked.iloc[1]] == ["0 to 99"] * 4
