"""What README, docs and notebooks have from committed results, between "<!-- name -->" and "<!-- end of name -->"."""

import json
import re
from functools import partial
from pathlib import Path
from statistics import fmean

import pandas as pd

from sglrlib.paths import ROOT
from sglrlib.recipes import PAPER_ROWS, row_recipe
from sglrlib.show import style
from sglrlib.show.tables import CHECKPOINTS, overview, paper_value
from sglrlib.store.results import Result
from sglrlib.studies import published, registry

PAGES = [ROOT / "README.md", ROOT / "docs" / "claims.md", ROOT / "docs" / "results.md"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# The claims that README shows with their effects; the others stand in docs/claims.md.
MAIN = ("overfits", "spared", "robust", "natural", "ahead_of_smooth", "ahead_of_ensemble", "ahead_of_rectified")
WORDS = ("holds", "does not hold", "open", "cannot be judged here")
LEGEND = (
    "*Holds* or *does not hold*: three seeds or more, and the 95 % interval over seeds and test images lies above "
    "or below zero. *Open*: zero is inside. *(Not) seen in this run*: fewer than three seeds. *Cannot be judged "
    "here*: the scale cannot carry it. –: no result. *2 of 4*: of so many measurements of a claim (attacks, "
    "epochs, noise rates)."
)


def write() -> None:
    """Put each part of parts() into the page that has a place for it, and what came out, head(), into the first cell of
    each notebook.
    """
    made = parts()
    for page in PAGES:
        text = page.read_text()
        for name in [name for name in made if f"<!-- {name} -->" in text]:
            text = filled(text, name, made[name], page)
        page.write_text(text)
    for path in NOTEBOOKS:
        values = json.loads(path.read_text())
        first = values["cells"][0]
        first["source"] = filled("".join(first["source"]), "came out", head(path), path).splitlines(keepends=True)
        path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def filled(text: str, name: str, part: str, path: Path) -> str:
    """A file's text with a part put into its place. Raises ValueError where there is not one such place."""
    text, found = re.subn(place(name), lambda m: f"{m[1]}\n{part}\n\n{m[3]}", text, flags=re.DOTALL)
    if found != 1:
        raise ValueError(f"{path} has {found} places for {name!r}: expected one.")
    return text


def head(path: Path) -> str:
    """What came out of a notebook's claims by the committed results, and the way on."""
    at = NOTEBOOKS.index(path)
    links = [f"← [{other.stem}]({other.name})" for other in NOTEBOOKS[:at][-1:]]
    links += [f"→ [{other.stem}]({other.name})" for other in NOTEBOOKS[at + 1 :][:1]]
    way = " · ".join([*links, "[all notebooks](../docs/items.md)"])
    return "\n\n".join(filter(None, [came_out(path.stem[:2]), way]))


def place(name: str) -> str:
    """A pattern of three groups: the mark before a part, the part, the mark after it."""
    return f"(<!-- {name} -->\n)(.*?)(<!-- end of {name} -->)"


def parts() -> dict[str, str]:
    """Name -> Markdown."""
    made = {"beside the paper": beside_paper(), "main claims": main_claims(), "claims": summary()}
    made["theory"] = theory()
    for (dataset, scale), title in registry.SCALES.items():
        made[title] = main_table(dataset, scale)
    return made


def beside_paper() -> str:
    """PGD-AT with and without refinement, the paper's accuracies and ours: a table in Markdown."""
    rows = ("PGD-AT", "PGD-AT+SGLR")
    runs = published.best(rows, "pgd_20")
    run, seeds = runs["PGD-AT"][0], len(runs["PGD-AT"])
    here = f"{style.named(run.config.arch)}, {run.sizes['train']:,} training images, {seeds} seeds"

    def printed(row: str, column: str, when: str) -> str:
        return f"{paper_value(row, column, when, dataset='cifar10'):.1f}"

    def ours(row: str, column: str, when: str) -> str:
        return f"{fmean(each.accuracy(CHECKPOINTS[when], column) for each in runs[row]):.1f}"

    lines = [f"| {style.named(run.config.dataset)}, best → last epoch (%) | {' | '.join(rows)} |", "|---|---|---|"]
    for column, name in (("pgd_20", "robust (PGD-20)"), ("natural", "natural")):
        for whose, value in (("the paper, ResNet-18", printed), (f"here, {here}", ours)):
            cells = [" → ".join(value(row, column, when) for when in ("best", "final")) for row in rows]
            lines.append(f"| {name}: {whose} | {' | '.join(cells)} |")
    return "\n".join([
        *lines, "",
        f"The curves are of PGD-{run.config.eval_steps} on {run.config.attacked_size} test images, so they differ from "
        f"the headline and the table, which are of PGD-20 on all {run.sizes['test']:,}. The best epoch is chosen on "
        "validation images; differences are taken before rounding.",
    ])  # fmt: skip


def main_claims() -> str:
    """MAIN with what each measurement gave, a table in Markdown, and how many of all claims have which verdict."""
    found, known = registry.kept(), registry.known()
    scales = [scale for scale in registry.SCALES.values() if (found.scale == scale).any()]
    lines = [f"| the paper | measured here | {' | '.join(scales)} | |", "|---" * (len(scales) + 3) + "|"]
    for name in MAIN:
        (path,) = (ROOT / "notebooks").glob(f"{known.notebook[name]}_*.ipynb")
        mine = found[found.id == name].copy()
        mine["by"] = [of.partition(", ")[0] for of in mine["measured by"]]
        mine["when"] = [of.partition(", ")[2] for of in mine["measured by"]]
        words = registry.quoted(known.loc[name])
        for (text, when), those in mine.groupby(["claim", "when"], sort=False):
            cells = [measured(those[those.scale == scale]) for scale in scales]
            link = f"[{path.stem[:2]}](notebooks/{path.name})"
            lines.append(f"| {words} | {text}: {when} | {' | '.join(cells)} | {link} |")
            words = "″"
    counts = [f"{scale}: {tally(scale, found)}" for scale in scales]
    return "\n".join([*lines, "", f"All {len(known)} claims. {'. '.join(counts)}.", "", LEGEND])


def measured(found: pd.DataFrame) -> str:
    """The verdicts of a claim's measurements, each with its attack and its effect; why where none can be given."""
    said = []
    for word, those in found.groupby("verdict", sort=False):
        effects = those["effect (95 %)"].str.replace(" points", "")
        each = [f"{by} {effect}" for by, effect in zip(those.by, effects, strict=True)]
        said.append(f"*{word}*: {those.reason.iloc[0] if word == WORDS[-1] else ', '.join(each)}")
    return "; ".join(said) or "–"


def tally(scale: str, found: pd.DataFrame) -> str:
    """How many claims have which verdict at a scale, those with several apart."""
    words = []
    for name in registry.known().index:
        verdicts = set(verdicts_on(name, scale, found).verdict) or {"not run"}
        words.append(min(verdicts) if len(verdicts) == 1 else "with several verdicts")
    plural = dict(zip(WORDS, ("hold", "do not hold", "open", "cannot be judged"), strict=True))
    order = [*WORDS, *sorted(set(words) - {*WORDS, "not run"}), "not run"]
    return ", ".join(f"{words.count(word)} {plural.get(word, word)}" for word in order if word in words)


def summary() -> str:
    """All claims, a table in Markdown for docs/: the paper's words, and how often they hold at each scale that has any
    results.
    """
    found = registry.kept()
    scales = [scale for scale in registry.SCALES.values() if (found.scale == scale).any()]
    lines = [f"| the paper's claim | {' | '.join(scales)} | notebook |", "|---" * (len(scales) + 2) + "|"]
    for name, claim in registry.known().iterrows():
        cells = [counted(verdicts_on(name, scale, found)) or "–" for scale in scales]
        (path,) = (ROOT / "notebooks").glob(f"{claim.notebook}_*.ipynb")
        lines.append(
            f"| {registry.quoted(claim)} | {' | '.join(cells)} | [{claim.notebook}](../notebooks/{path.name}) |"
        )
    return "\n".join([*lines, "", LEGEND])


def came_out(number: str) -> str:
    """What the committed results say of a notebook's claims, in our words, at each scale that has results, the largest
    first and with effects; '' for a notebook without claims.
    """
    found = registry.kept()
    found = found[found.id.isin(registry.known().query("notebook == @number").index)]
    scales = [scale for scale in reversed(registry.SCALES.values()) if (found.scale == scale).any()]
    parts = []
    for scale in scales:
        here = found[found.scale == scale]
        seeds = " or ".join(map(str, sorted(set(here.seeds))))
        start = "On" if parts else "**What came out** on"
        claims = [said_so(text, those, brief=bool(parts)) for text, those in here.groupby("claim", sort=False)]
        parts.append("\n".join([f"{start} {scale} (seeds: {seeds}):", "", *(f"- {claim}" for claim in claims)]))
    return "\n\n".join([*parts, LEGEND] if parts else [])


def said_so(text: str, found: pd.DataFrame, brief: bool) -> str:
    """A claim with the verdicts on it: of how many measurements each is, where they differ or are many; the effects,
    unless brief or of too few seeds; why there is no verdict.
    """
    each, of = [], f" of {len(found)} measurements"
    words = set(found.verdict)
    for word in [word for word in WORDS if word in words] + sorted(words - set(WORDS)):
        mine = found[found.verdict == word]
        notes = [effects(mine)] * (not brief and word in WORDS[:-1]) + sorted(set(mine.reason) - {""})
        count = f" in {len(mine)}{of * (not each)}" * (len(mine) < len(found) or (len(found) > 3 and not brief))
        each.append(f"*{word}*{count}" + f" ({'; '.join(notes)})" * bool(notes))
    return f"{text[0].upper()}{text[1:]}: {', '.join(each)}"


def effects(found: pd.DataFrame) -> str:
    """The effects of verdicts on one claim: each with what it was measured by and its interval, of many the range."""
    values = list(found["effect (95 %)"])
    if len(values) > 2:
        numbers = sorted((text.split(" (")[0] for text in values), key=lambda text: float(text.split()[0]))
        return f"effects from {numbers[0]} to {numbers[-1]}"
    each = [f"{of}: {text}" for of, text in zip(found["measured by"], values, strict=True)]
    return "; ".join(text.replace(" (", ", ").replace(")", "") for text in each)


def verdicts_on(name: str, scale: str, found: pd.DataFrame) -> pd.DataFrame:
    """The rows of registry.kept() on a claim at a scale."""
    return found[(found.id == name) & (found.scale == scale)]


def counted(found: pd.DataFrame) -> str:
    """Verdicts as 'holds', or 'holds 2 of 4, open 2 of 4'; '' where there are none."""
    verdicts = list(found.verdict)
    if len(set(verdicts)) == 1:
        return verdicts[0]
    return ", ".join(f"{word} {verdicts.count(word)} of {len(verdicts)}" for word in dict.fromkeys(verdicts))


def theory() -> str:
    """How many statements of each kind hold, as the committed notebook 11 says."""
    cells = json.loads((ROOT / "notebooks" / "11_theory.ipynb").read_text())["cells"]
    texts = ["".join(output.get("text", "")) for cell in cells for output in cell.get("outputs", [])]
    counts = [line for text in texts for line in text.splitlines() if "(holds: " in line]
    return "\n".join(f"    {line}" for line in counts)


def main_table(dataset: str, scale: str) -> str:
    """Accuracies of the paper's rows, as a block of code; or that there are none."""
    runs = {row: published.results(partial(row_recipe, row, dataset, scale)) for row in PAPER_ROWS}
    runs = {row: those for row, those in runs.items() if those}
    if not runs:
        return "Not run yet."
    every = [run for those in runs.values() for run in those]
    attacked = [column for column in ("pgd_20", "autoattack") if any(run.has(column, 1) for run in every)]
    few = min((run.n("autoattack") for run in every if run.has("autoattack", 1)), default=0)
    columns = ["natural", *attacked] + [f"pgd_20 on {few}"] * bool(few)
    table = overview(runs, columns).to_string(index=False)
    return "\n".join(f"    {line}" for line in [*table.splitlines(), "", *notes(every)])


def notes(every: list[Result]) -> list[str]:
    """What stands below a table: the configuration, images and machines."""
    c, seeds = every[0].config, sorted({run.config.seed for run in every})
    where = sorted({run.provenance.get("cpu", "a processor without a name") for run in every})
    noise = f", {c.noise_rate:.0%} of their labels drawn anew" if c.noise_rate else ""
    hours = sum(run.provenance.get("seconds", 0) for run in every) / 3600
    return [
        f"{c.arch}, {every[0].sizes['train']} training images{noise}, eps = {c.eps_255}/255, {c.epochs} epochs; "
        f"seeds {', '.join(map(str, seeds))};",
        f"best -> last epoch, mean ± standard deviation over seeds; {every[0].sizes['test']} test images;",
        f"trained in {hours:.1f} hours by the clock, beside other work, on {' and '.join(where)}.",
    ]
