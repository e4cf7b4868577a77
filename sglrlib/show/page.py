"""How a notebook's page shows tables, verdicts and figures, and how the figures of committed results are collected."""

import base64
import hashlib
import html
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Image, display
from matplotlib.figure import Figure

from sglrlib.config import RunConfig
from sglrlib.show import style, tables, verdicts
from sglrlib.show.verdicts import Claim
from sglrlib.store.results import Result

if TYPE_CHECKING:
    import altair

VEGA_LITE = "https://vega.github.io/schema/vega-lite/v5.json"  # the version that JupyterLab draws
_drawn: dict[str, Figure] | None = None


def show_claims(found: Sequence[Claim], needs: str) -> None:
    """Show the verdicts as a table, and what stands below it; where there is none, what it takes to have some."""
    if not found:
        print(f"No claim can be judged: {needs}")
        return
    show_table(verdicts.table(found).set_index("claim"))
    print(verdicts.note(found))


def show_beside_paper(
    found: dict[str, list[Result]], columns: Iterable[str] = ("natural", "pgd_20"), wanted: Iterable[RunConfig] = ()
) -> None:  # fmt: skip
    """Show results in the layout of the paper's tables, its numbers below ours; see tables.beside_paper()."""
    long = tables.beside_paper(found, columns, wanted)
    show_table(tables.as_in_paper(long))
    print(
        "±: standard deviation over seeds; 95 %: interval over seeds and images; bold: the best of ours, of the paper's"
    )
    for mark, meaning in MARKS.items():
        if long.paper.str.contains(mark, regex=False).any():
            print(f"{mark}: {meaning}")


MARKS = {
    "*": "the paper's settings are others, ResNet-18 on CIFAR-10 where it has none nearer; so no difference is taken",
    "†": "this is not the paper's Best minus its Final",
}


def show_table(table: pd.DataFrame) -> None:
    """Show a table with all its rows, columns and words; or that there is nothing in it. Where its rows have no names,
    the first column names them. Text between two ** is bold.
    """
    if table.empty:
        print("none yet")
        return
    if isinstance(table.index, pd.RangeIndex):
        table = table.set_index(table.columns[0])
    display({"text/html": as_html(table), "text/plain": table.to_string().replace("**", "")}, raw=True)


def as_html(table: pd.DataFrame) -> str:
    """A table with its own style: text on the left, numbers on the right, rules as in print, colours of the page."""
    number = re.compile(r"([-+−]?\d.*|–|missing|failed|)")
    right = [all(number.fullmatch(str(value).strip("*")) for value in table.iloc[:, i]) for i in range(table.shape[1])]
    rules = [
        dict(selector="", props="border-collapse: collapse; font-size: 0.9em; display: block; overflow-x: auto"),
        dict(selector="th, td", props="padding: 0.25em 0.7em; border: none; vertical-align: top; text-align: left"),
        dict(selector="tbody tr", props="border-top: 1px solid #8885; background: none"),
        dict(selector="thead", props="border-bottom: 2px solid #888"),
        dict(selector="td, th.row_heading", props="max-width: 24em; white-space: pre-line; font-weight: normal"),
        dict(selector="th.row_heading", props="min-width: 8em"),
    ]
    for i in [i for i, is_number in enumerate(right) if is_number]:
        rules += [
            dict(selector=f"td.col{i}, th.col{i}.level{table.columns.nlevels - 1}", props="text-align: right"),
            dict(selector=f"td.col{i}", props="white-space: nowrap"),
        ]
    for level, labels in enumerate(map(table.index.get_level_values, range(table.index.nlevels))):
        if all(len(str(label)) < 20 for label in labels):
            rules.append(dict(selector=f"th.row_heading.level{level}", props="white-space: nowrap; min-width: 0"))
    name = hashlib.sha256(table.to_string().encode()).hexdigest()[:8]  # rules are for this table of the page
    page = table.style.set_table_styles(rules).set_uuid(name).format(bold, escape=None).to_html()
    return names_in_the_last_row(page)


def names_in_the_last_row(page: str) -> str:
    """An HTML table of pandas, with the names of its index beside those of its columns, not in a row of their own."""
    row = re.search(
        r"\s*<tr>\s*((?:<th class=\"index_name[^>]*>[^<]*</th>\s*)+)(?:<th class=\"blank[^>]*>[^<]*</th>\s*)*</tr>",
        page,
    )
    if row is None:
        return page
    names = re.findall(r"<th.*?</th>", row[1])
    above, below = page[: row.start()], page[row.end() :]
    at = above.rindex("<tr>")
    blanks = r"(\s*<th class=\"blank[^>]*>[^<]*</th>)" + "{" + str(len(names)) + "}"
    return above[:at] + re.sub("<tr>" + blanks, lambda _: "<tr>\n" + "\n".join(names), above[at:], count=1) + below


def bold(value: object) -> str:
    """A cell's text as HTML: **so** is bold."""
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", html.escape(str(value)))


def show_figure(figure: Figure, name: str, committed: str = "") -> None:
    """Keep a figure below runs/figures/ and show it, sharp and with its alternative text; print where it is kept.

    committed: its name among those of committed results, see show_committed().
    """
    if committed and _drawn is not None:
        _drawn[committed] = figure
        return
    if not committed:
        style.entitle(figure, f"Live run: {' '.join(figure.get_suptitle().split())}")
    where = style.save(figure, name)
    show_picture(figure)
    print(where)


def show_committed(figure: Figure, name: str) -> None:
    """Show a figure of committed results, which is figures/name; drawing() collects it."""
    if _drawn is None:
        show_picture(figure)
    else:
        _drawn[name] = figure


def show_interactive(chart: "altair.TopLevelMixin", still: Figure) -> None:
    """Show a chart that its reader can move: in JupyterLab, VS Code and on the site; elsewhere a still picture."""
    spec = chart.to_dict() | {"$schema": VEGA_LITE, "background": "white"}
    said, picture = style.alternative_text(still), base64.b64encode(picture_of(still)).decode()
    shown = {"application/vnd.vegalite.v5+json": spec, "image/png": picture, "text/plain": said}
    display(shown, metadata={"image/png": dict(width=round(100 * style.WIDTH), alt=said)}, raw=True)


def show_picture(figure: Figure) -> None:
    """Show a figure in its own size."""
    picture = Image(picture_of(figure), width=round(100 * style.WIDTH))
    picture.alt = style.alternative_text(figure)  # no argument in IPython 7, which Colab has
    display(picture)


def picture_of(figure: Figure) -> bytes:
    """A figure as PNG, at twice a screen's resolution; it is closed."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=200)
    plt.close(figure)
    return drawn.getvalue()


@contextmanager
def drawing() -> Iterator[dict[str, Figure]]:
    """Within: name -> figure of committed results, collected instead of shown."""
    global _drawn
    _drawn = {}
    try:
        yield _drawn
    finally:
        _drawn = None
