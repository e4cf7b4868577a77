"""Results beside the paper's numbers, and verdicts on its claims."""

import math
import statistics
from collections.abc import Iterable

import pandas as pd
from scipy.stats import binomtest
from scipy.stats import t as student
from torch import Tensor

from sglrlib.config import RunConfig
from sglrlib.paths import PAPER, RUNS
from sglrlib.recipes import recipe
from sglrlib.store.log import failure
from sglrlib.store.results import Result, paired

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
    '95 %' is the interval that the number of test images leaves, see interval(). n is test images x seeds. Of the
    wanted runs, those that failed follow in rows of their own.
    """
    headers = ["method", "accuracy", "ours", "95 %", "paper", "difference", "n"]
    rows = []
    for label, those in runs.items():
        title, (place, own) = those[0].config.title, paper_place(those[0])
        label = marked(label, those)
        for column in columns:
            if not all(run.has(column, 1) for run in those):
                missing = dict(method=label, accuracy=column_title(column), ours="missing")
                rows.append(dict.fromkeys(headers, "–") | missing)
                continue
            for checkpoint in ("best", "final", "diff"):
                values = [100 * per_image(run, checkpoint, column).mean().item() for run in those]
                mean, (low, high) = statistics.fmean(values), interval(those, checkpoint, column)
                theirs = columns[column] if isinstance(columns, dict) else column
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
                        "n": f"{those[0].n(column)} x {len(those)}",
                    }
                )
    for config in failed(runs, columns, wanted):
        rows.append(
            dict.fromkeys(headers, "–") | dict(method=config.title, accuracy=f"seed {config.seed}", ours="failed")
        )
    return pd.DataFrame(rows, columns=headers)


def marked(label: str, those: list[Result]) -> str:
    """A row's label, which says how many of its runs end at chance level, if any does."""
    guessing = sum(run.at_chance for run in those)
    return f"{label} ({guessing} of {len(those)} at chance)" if guessing else label


def failed(runs: dict[str, list[Result]], columns: Iterable[str], wanted: Iterable[RunConfig]) -> list[RunConfig]:
    """Those of the wanted runs that lack something and failed when they were last worked on."""
    whole = {run.config.id for those in runs.values() for run in those if all(run.has(c, 1) for c in columns)}
    return [config for config in wanted if config.id not in whole and failure(RUNS / config.id)]


def overview(runs: dict[str, list[Result]], columns: Iterable[str], wanted: Iterable[RunConfig] = ()) -> pd.DataFrame:
    """Ours alone, one row a method: best -> final of each column, mean ± std over seeds, and how many seeds.

    Of the wanted runs, those that failed follow in rows of their own.
    """
    rows = []
    for label, those in runs.items():
        row = {"method": marked(label, those)}
        for column in columns:
            shown = "missing"
            if all(run.has(column, 1) for run in those):
                shown = " -> ".join(
                    mean_and_spread([run.accuracy(CHECKPOINTS[which], column) for run in those])
                    for which in ("best", "final")
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
    attack, *source = column.split(" ")
    name = attack.capitalize() if attack.startswith("square") else attack.upper()
    title = TITLES.get(attack, name.replace("_STEP_", ", step ").replace("_", "-"))
    return " ".join([title, *source[:2]])  # without the source's checkpoint and hash


def per_image(run: Result, checkpoint: str, column: str) -> Tensor:
    """Whose mean is an entry of the table, (n,) float64: 1 for each image classified correctly, 0 for the others; for
    'diff' the 'best' minus the 'final'.
    """
    if checkpoint == "diff":
        return per_image(run, "best", column) - per_image(run, "final", column)
    return run.flags(CHECKPOINTS[checkpoint], column)[: run.n(column)].double()


def interval(those: list[Result], checkpoint: str, column: str) -> tuple[float, float]:
    """The 95 % interval, in percent or points, that the number of test images leaves to an entry; not the seeds.

    Wilson's binomial for an accuracy of one run, else the normal one of the images' means over the runs.
    """
    values = sum(per_image(run, checkpoint, column) for run in those) / len(those)
    if checkpoint != "diff" and len(those) == 1:
        bounds = binomtest(int(values.sum()), len(values)).proportion_ci(method="wilson")
        return 100 * bounds.low, 100 * bounds.high
    mean, half = 100 * values.mean().item(), 1.96 * standard_error(values)
    return mean - half, mean + half


def at_chance(*groups: list[Result]) -> str:
    """Why no claim on these runs can be judged, '' where none of them ends at chance level."""
    guessing = [run.config for those in groups for run in those if run.at_chance]
    names = ", ".join(f"{config.title} seed {config.seed}" for config in guessing)
    return f"Cannot be judged here, at chance level: {names}." if guessing else ""


def claims(hard: list[Result], refined: list[Result], columns: Iterable[str] = ("pgd_20", "natural")) -> str:
    """The paper's claims on a method and the same with refined labels, one line each with its verdict.

    The two lists are compared seed by seed and image by image. Robust is what each attack of columns says.
    """
    if guessing := at_chance(hard, refined):
        return guessing
    a, b = hard[0].config.title, refined[0].config.title
    lines = []
    for c in columns:
        gain = {which: differences(refined, hard, which, c) for which in ("final", "diff")}
        if c == "natural":
            lines.append(claim(f"{b} has the higher natural accuracy at the last epoch", c, gain["final"]))
            continue
        overfits = [per_image(run, "diff", c) for run in hard]
        lines += [
            claim(f"{a} is more robust at its best epoch than at its last (robust overfitting)", c, overfits),
            claim(f"{b} loses less of its best robust accuracy than {a}", c, [-g for g in gain["diff"]]),
            claim(f"{b} is more robust than {a} at the last epoch", c, gain["final"]),
        ]
    return "\n".join(lines)


def gap_claims(hard: list[Result], refined: list[Result], columns: Iterable[str]) -> str:
    """Whether the refined network's gap between best and final is the smaller one, whatever the sign of either."""
    if guessing := at_chance(hard, refined):
        return guessing
    a, b = hard[0].config.title, refined[0].config.title
    lines = []
    for c in columns:
        gaps = []
        for pair in paired(hard, refined):
            h, r = (per_image(run, "diff", c) for run in pair)
            gaps.append(h * h.mean().sign() - r * r.mean().sign())
        lines.append(claim(f"{b} has a smaller gap between best and final than {a}", c, gaps))
    return "\n".join(lines)


def masking_claims(runs: list[Result], columns: Iterable[str]) -> str:
    """Whether each checkpoint withstands black-box attacks more often than the white-box one of the same kind.

    columns as of runs.transfer_column(). A network that only masked its gradients would not.
    """
    return at_chance(runs) or "\n".join(
        claim(
            f"{runs[0].config.title}, {which}, withstands it more often than the same in the white box",
            column,
            [per_image(run, which, column) - per_image(run, which, column.split(" ")[0]) for run in runs],
        )
        for column in columns
        for which in ("best", "final")
    )


def judge(text: str, differences: list[float], errors: list[float], of: str) -> str:
    """A claim that the mean of differences, one a seed, is positive, with its verdict (see there), and of what."""
    return f"{text}: {verdict(differences, errors)} ({of})"


def differences(ones: list[Result], others: list[Result], checkpoint: str, column: str) -> list[Tensor]:
    """Image by image, one minus other, for each seed."""
    pairs = paired(ones, others)
    return [per_image(one, checkpoint, column) - per_image(other, checkpoint, column) for one, other in pairs]


def claim(text: str, column: str, values: list[Tensor]) -> str:
    """A claim that the mean of values, (n,) for each seed, is positive; with its verdict and its n."""
    answer = verdict([100 * v.mean().item() for v in values], [standard_error(v) for v in values])
    n = f"n = {len(values[0]) if values else 0} test images x {len(values)} seed{'s' * (len(values) != 1)}"
    return f"{text}: {answer} ({column_title(column)}, {n})"


def verdict(differences: list[float], errors: list[float]) -> str:
    """Whether a difference claimed to be positive is: 'true', 'false' or 'cannot be told from this run'.

    differences: one a seed, in points; errors: their standard errors from the number of test images. With three seeds
    or more the 95 % interval is Student's over the seeds, but never narrower than the images alone give.
    """
    n, mean = len(differences), statistics.fmean(differences or [0])
    if n == 0:
        return "cannot be told from this run"
    half = 1.96 * math.sqrt(sum(e * e for e in errors)) / n
    if n >= 3:
        half = max(half, float(student.ppf(0.975, n - 1)) * statistics.stdev(differences) / math.sqrt(n))
    return "true" if mean > half else "false" if mean < -half else "cannot be told from this run"


def standard_error(values: Tensor) -> float:
    """Standard error (points) of the mean of values (n,), one an image; never below one image's worth.

    For the difference of two flags it is McNemar's.
    """
    n = len(values)
    return 100 * math.sqrt(max((values - values.mean()).square().sum().item(), 1)) / n
