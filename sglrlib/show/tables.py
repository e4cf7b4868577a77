"""Results beside the paper's numbers."""

import re
import statistics
from collections.abc import Iterable

import pandas as pd
from torch import Tensor

from sglrlib.config import RunConfig
from sglrlib.judging.evaluate import accuracy_interval
from sglrlib.paths import PAPER, RUNS
from sglrlib.recipes import recipe
from sglrlib.show.verdicts import judged
from sglrlib.store.log import failure
from sglrlib.store.results import Result

TITLES = {"natural": "Natural", "autoattack": "AutoAttack", "cw_inf": "CW_inf"}
CHECKPOINTS = {"best": "best", "final": "last"}  # the paper's word -> ours
# What must be the paper's before a difference to its number is taken; dataset and network come first.
PROTOCOL = (
    "train_size", "test_size", "noise_rate", "folds", "augment", "eps_255", "step_255", "attack_steps", "epochs",
    "batch_size", "lr", "momentum", "weight_decay", "schedule", "lr_drops",
)  # fmt: skip
ROUNDING = 0.11  # how far the difference of two rounded numbers may be from the rounded difference


def paper_value(row: str, column: str, checkpoint: str, *, dataset: str, model: str = "resnet18") -> float | None:
    """A number of the paper's tables, in the paper's unit, or None where it reports none.

    row as in Result's title; column such as 'natural' or 'pgd_20'; checkpoint 'best', 'final' or 'diff'. Where the
    paper does not name the model or the checkpoint, they are ''.
    """
    paper = pd.read_csv(PAPER, keep_default_na=False)
    found = paper.query("dataset == @dataset and model == @model and row == @row and column == @column")
    values = found.loc[found.checkpoint == checkpoint, "value"]
    return None if values.empty else float(values.iloc[0])


def paper_place(run: Result) -> tuple[dict, bool]:
    """Dataset and model under which the paper's numbers for a run are found, and whether its protocol is the paper's.

    Where the paper reports nothing on them, it is ResNet-18 on CIFAR-10, for orientation.
    """
    config = run.config
    own = dict(dataset=config.dataset, model=config.arch)
    if paper_value("PGD-AT", "natural", "best", **own) is None:
        return dict(dataset="cifar10", model="resnet18"), False
    theirs = recipe(config.dataset, "paper")
    return own, all(getattr(config, name) == getattr(theirs, name) for name in PROTOCOL)


def slips() -> list[str]:
    """Where the paper's own Diff is not its Best minus its Final, beyond rounding."""
    paper = pd.read_csv(PAPER).dropna(subset="checkpoint")
    keys = ["table", "dataset", "model", "row", "column"]
    wide = paper.pivot_table(index=keys, columns="checkpoint", values="value", sort=False).reset_index()
    wrong = wide[(wide.best - wide.final - wide["diff"]).abs() > ROUNDING]
    return [
        f"{w.table}, {w.row}, {column_title(w.column)}: Diff printed {w.diff:+.1f}, "
        f"but {w.best} - {w.final} = {w.best - w.final:+.1f}"
        for w in wrong.itertuples()
    ]


def paper_gaps() -> pd.DataFrame:
    """PGD-20 minus AutoAttack, in points, at the best and the final checkpoint of each row of the paper's tables.

    Rows of one setting and one attack should have about the same; where a gain in PGD-20 widens the gap, AutoAttack
    does not confirm it.
    """
    paper = pd.read_csv(PAPER).query("column in ('pgd_20', 'autoattack') and checkpoint in ('best', 'final')")
    keys = ["dataset", "model", "row"]
    wide = paper.drop_duplicates([*keys, "column", "checkpoint"])
    wide = wide.pivot_table(index=keys, columns=["column", "checkpoint"], values="value", sort=False)
    return (wide["pgd_20"] - wide["autoattack"]).round(1).reset_index().rename_axis(columns=None)


def is_slip(row: str, column: str, **place: str) -> bool:
    """Whether the Diff that paper_value() finds is one of slips()."""
    shown = [paper_value(row, column, checkpoint, **place) for checkpoint in ("best", "final", "diff")]
    return None not in shown and abs(shown[0] - shown[1] - shown[2]) > ROUNDING


def beside_paper(
    runs: dict[str, list[Result]], columns: Iterable[str] = ("natural", "pgd_20"), wanted: Iterable[RunConfig] = ()
) -> pd.DataFrame:
    """Best, final and their difference for each method: ours (mean ± std over seeds), paper, difference, n.

    runs: method -> its runs, one a seed. columns may be a dictionary from our name of a column to the paper's. Where
    our protocol is not the paper's, its number is shown for orientation, with a star, and no difference is taken; where
    it has none for our dataset and network, that for ResNet-18 on CIFAR-10. A dagger marks a Diff of the paper
    that is not its Best minus its Final.
    '95 %' is the interval over seeds and test images; with fewer than three seeds over the images alone, see
    interval(). n is test images x seeds. A column 'pgd_20 on 500' is that on the first 500 of its images, to be
    compared with an attack that had no more. Of the wanted runs, those that failed follow in rows of their own.
    """
    headers = ["method", "accuracy", "ours", "95 %", "paper", "difference", "n"]
    rows = []
    for label, those in runs.items():
        title, (place, own) = those[0].config.title, paper_place(those[0])
        label = marked(label, those)
        for column in columns:
            if not all(run.has(whole(column), 1) for run in those):
                missing = dict(method=label, accuracy=column_title(column), ours="missing")
                rows.append(dict.fromkeys(headers, "–") | missing)
                continue
            for checkpoint in ("best", "final", "diff"):
                values = [100 * per_image(run, checkpoint, column).mean().item() for run in those]
                mean, (low, high) = statistics.fmean(values), interval(those, checkpoint, column)
                theirs = columns[column] if isinstance(columns, dict) else whole(column)
                paper = paper_value(title, theirs, checkpoint, **place)
                mark = ("" if own else "*") + ("†" if checkpoint == "diff" and is_slip(title, theirs, **place) else "")
                rows.append(
                    {
                        "method": label,
                        "accuracy": f"{column_title(column)} {checkpoint}",
                        "ours": mean_and_spread(values),
                        "95 %": f"{low:.1f} to {high:.1f}",
                        "paper": "–" if paper is None else f"{paper:.1f}{mark}",
                        "difference": f"{mean - paper:+.1f}" if own and paper is not None else "–",
                        "n": f"{n_of(those[0], column)} x {len(those)}",
                    }
                )
    for config in failed(runs, columns, wanted):
        rows.append(
            dict.fromkeys(headers, "–") | dict(method=config.title, accuracy=f"seed {config.seed}", ours="failed")
        )
    return pd.DataFrame(rows, columns=headers)


def as_in_paper(long: pd.DataFrame) -> pd.DataFrame:
    """beside_paper() in the paper's layout: Best, Final and Diff of each accuracy side by side; below each other ours,
    its interval, the paper's, and the difference where one is taken.
    """
    wide: dict[tuple[str, str], dict[tuple[str, str], str]] = {}
    rows = long.to_dict("records")
    seeds = {row["method"]: f"ours, seeds: {row['n'].partition(' x ')[2]}" for row in rows if row["n"] != "–"}
    for row in rows:
        ours, value = seeds.get(row["method"], "ours"), row["ours"]
        if value == "failed":
            at, lines = ("", ""), {row["accuracy"]: value}
        elif value == "missing":
            at, lines = (row["accuracy"], "Best"), {ours: value}
        else:
            accuracy, _, checkpoint = row["accuracy"].rpartition(" ")
            at = f"{accuracy}, {int(row['n'].partition(' ')[0]):,} images", checkpoint.capitalize()
            lines = {ours: value, "95 %": row["95 %"], "paper": row["paper"]}
            if row["difference"] != "–":
                lines["ours - paper"] = row["difference"]
        for name, value in lines.items():
            wide.setdefault((row["method"], name), {})[at] = value
    columns = pd.MultiIndex.from_tuples(dict.fromkeys(at for row in wide.values() for at in row))
    table = pd.DataFrame([[row.get(at, "") for at in columns] for row in wide.values()], columns=columns)
    return with_best(table.set_axis(pd.MultiIndex.from_tuples(wide, names=["method", ""])))


def with_best(table: pd.DataFrame) -> pd.DataFrame:
    """as_in_paper() with the best of ours and of the paper's between ** in each column: the highest; of a robust Diff
    the lowest, of a natural one none. Nothing is marked where there is but one.
    """
    table = table.copy()
    kinds = [name.partition(",")[0] for _, name in table.index]
    natural = TITLES["natural"]
    for at in [at for at in table.columns if not (at[1] == "Diff" and at[0].startswith(natural))]:
        for kind in ("ours", "paper"):
            cells = {i: re.match(r"-?[\d.]+", table[at].iloc[i]) for i in range(len(table)) if kinds[i] == kind}
            numbers = {i: float(found[0]) for i, found in cells.items() if found}
            best = (min if at[1] == "Diff" else max)(numbers.values(), default=None)
            for i in [i for i, number in numbers.items() if number == best] if len(numbers) > 1 else ():
                table.iloc[i, table.columns.get_loc(at)] = f"**{table[at].iloc[i]}**"
    return table


def marked(label: str, those: list[Result]) -> str:
    """A row's label, which says how many of its runs end at chance level, if any does."""
    guessing = sum(run.at_chance for run in those)
    return f"{label} ({guessing} of {len(those)} at chance)" if guessing else label


def failed(runs: dict[str, list[Result]], columns: Iterable[str], wanted: Iterable[RunConfig]) -> list[RunConfig]:
    """Those of the wanted runs that lack something and failed when they were last worked on."""
    done = {run.config.id for those in runs.values() for run in those if all(run.has(whole(c), 1) for c in columns)}
    return [config for config in wanted if config.id not in done and failure(RUNS / config.id)]


def overview(runs: dict[str, list[Result]], columns: Iterable[str], wanted: Iterable[RunConfig] = ()) -> pd.DataFrame:
    """Ours alone, one row a method: best -> final of each column, mean ± std over seeds, and how many seeds.

    Of the wanted runs, those that failed follow in rows of their own.
    """
    rows = []
    for label, those in runs.items():
        row = {"method": marked(label, those)}
        for column in columns:
            shown = "missing"
            if all(run.has(whole(column), 1) for run in those):
                shown = " -> ".join(
                    mean_and_spread([100 * per_image(run, which, column).mean().item() for run in those])
                    for which in CHECKPOINTS
                )
            row[column_title(column)] = shown
        rows.append(row | {"seeds": len(those)})
    titles = [column_title(column) for column in columns]
    for config in failed(runs, columns, wanted):
        rows.append({"method": config.title} | dict.fromkeys(titles, "failed") | {"seeds": f"seed {config.seed}"})
    return pd.DataFrame(rows)


def mean_and_spread(values: list[float], digits: int = 1) -> str:
    """'51.0 ± 1.0', or '51.0' for a single value."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def column_title(column: str) -> str:
    """A column's name as people write it: 'PGD-20', 'AutoAttack', 'PGD-10 from resnet34'."""
    column, on, few = column.partition(" on ")
    attack, *source = column.split(" ")
    name = attack.capitalize() if attack.startswith("square") else attack.upper()
    title = TITLES.get(attack, name.replace("_STEP_", ", step ").replace("_", "-"))
    return " ".join([title, *source[:2]]) + on + few  # without the source's checkpoint and hash


def per_image(run: Result, checkpoint: str, column: str) -> Tensor:
    """Whose mean is an entry of the table, (n,) float64: 1 for each image classified correctly, 0 for the others; for
    'diff' the 'best' minus the 'final'.
    """
    if checkpoint == "diff":
        return per_image(run, "best", column) - per_image(run, "final", column)
    return run.flags(CHECKPOINTS[checkpoint], whole(column))[: n_of(run, column)].double()


def whole(column: str) -> str:
    """The column that 'pgd_20 on 500' is a part of; any other is whole."""
    return column.partition(" on ")[0]


def n_of(run: Result, column: str) -> int:
    """The number of test images behind an entry."""
    few = column.partition(" on ")[2]
    return min(run.n(whole(column)), int(few) if few else run.sizes["test"])


def interval(those: list[Result], checkpoint: str, column: str) -> tuple[float, float]:
    """The 95 % interval of an entry, in percent or points: the one that verdicts use, over seeds and images.

    Wilson's binomial for an accuracy of one run.
    """
    values = [100 * per_image(run, checkpoint, column) for run in those]
    if checkpoint != "diff" and len(those) == 1:
        return accuracy_interval(values[0] > 0)
    found = judged("", "", "", values)
    return found.low, found.high
