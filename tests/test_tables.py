import csv
import math

import pytest

from sglrlib.config import recipe
from sglrlib.paths import PAPER
from sglrlib.results import Result
from sglrlib.tables import accuracy_error, beside_paper, claims, drop_error, paper_value, verdict

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


def test_paper_values_are_found_by_name():
    where = dict(dataset="cifar10", model="resnet18")
    assert paper_value("PGD-AT+SGLR", "pgd_20", "best", **where) == 56.4
    assert paper_value("TRADES", "autoattack", "final", dataset="cifar100") == 23.4
    assert paper_value("PGD-AT", "pgd_20", "diff", dataset="cifar10", model="wrn34_10") == 5.7
    assert paper_value("PGD-AT", "pgd_20", "best", dataset="digits") is None


def result(labels, best, last, lost, gained, *, dataset="digits", seed=0):
    config = recipe(dataset, labels=labels, seed=seed)
    columns = ("natural", "pgd_20")
    return Result(
        config=config, curve=[], best_epoch=1, sizes=dict(test=1000), provenance={},
        accuracy=dict(best=dict.fromkeys(columns, best), last=dict.fromkeys(columns, last)),
        flips={column: dict(lost=lost, gained=gained) for column in columns},
    )  # fmt: skip


def test_a_digits_run_is_never_compared_with_cifar():
    table = beside_paper({"PGD-AT": [result("hard", 80.0, 70.0, 120, 20)]})
    assert set(table.difference) == {"–"}
    assert list(table.ours) == ["80.0", "70.0", "10.0"] * 2
    assert list(table.n) == ["1000 x 1"] * 6


def test_the_same_dataset_and_network_is_compared():
    runs = [result("hard", 50.0 + s, 41.0, 100, 10, dataset="cifar10", seed=s) for s in (0, 1, 2)]
    table = beside_paper({"PGD-AT": runs}).set_index("accuracy")
    assert table.loc["PGD-20 best", ["ours", "paper", "difference", "n"]].tolist() == [
        "51.0 ± 1.0",
        "50.7",
        "+0.3",
        "1000 x 3",
    ]


@pytest.mark.parametrize(
    ("differences", "errors", "expected"),
    [
        ([5.0], [1.0], "true"),
        ([-5.0], [1.0], "false"),
        ([1.5], [1.0], "cannot be told from this run"),
        ([2.0, 2.0, 2.0], [0.1] * 3, "true"),
        ([0.1, 2.0, 4.0], [0.1] * 3, "cannot be told from this run"),  # seeds differ more than images
    ],
)
def test_verdicts(differences, errors, expected):
    assert verdict(differences, errors) == expected


def test_standard_errors_by_hand():
    run = result("hard", 80.0, 70.0, 120, 20)
    assert accuracy_error(run, "best", "pgd_20") == pytest.approx(100 * math.sqrt(0.8 * 0.2 / 1000))
    # 120 images -1, 20 images +1, mean -0.1: variance 0.14 - 0.01
    assert drop_error(run, "pgd_20") == pytest.approx(100 * math.sqrt(0.13 / 1000))


def verdicts(lines: str) -> list[str]:
    return [line.split(": ")[1].split(" (")[0] for line in lines.splitlines()]


def test_claims_come_out_as_the_numbers_do():
    overfits, kept = result("hard", 80.0, 70.0, 120, 20), result("self_guided", 80.0, 79.5, 15, 10)
    lines = claims([overfits], [kept])
    assert verdicts(lines) == ["true"] * 4
    assert lines.count("(n = 1000 test images x 1 seed)") == 4
    lines = claims([result("hard", 80, 80, 3, 3)], [result("self_guided", 80, 70, 120, 20)])
    assert verdicts(lines) == ["cannot be told from this run", "false", "false", "false"]
