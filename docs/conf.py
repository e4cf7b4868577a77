"""The site: README, the notebooks with their committed outputs, and docs/; nothing is executed, no host is asked.

Sphinx with MyST-NB, because it reads notebooks and Markdown as they are and installs by pip. Formulas become MathML,
which browsers draw by themselves; the charts of Altair come alive by a script that the site brings along.
"""

import html
import json
import os
import re
from pathlib import Path

import pandas as pd
import vl_convert
from docutils import nodes
from latex2mathml.converter import convert
from myst_nb.core.render import NbElementRenderer
from PIL import Image

from sglrlib.paths import ROOT
from sglrlib.studies import registry

project = "SGLR companion"
copyright = "its authors"
extensions = ["myst_nb", "sphinx.ext.autodoc"]
root_doc = "README"
include_patterns = [
    "*.md",
    "notebooks/*.ipynb",
    "docs/*.md",
    "data/README.md",
    "data/results/README.md",
    "data/results/*/README.md",
]
html_theme = "furo"
html_title = "SGLR companion"
html_static_path = ["static"]
html_favicon = "static/icon.svg"
html_css_files = ["site.css"]
html_js_files = ["charts.js", "filters.js", "reach.js"]
html_math_renderer = "mathml"
html_copy_source = False
nb_execution_mode = "off"
nb_code_prompt_show = "Show code"
nb_code_prompt_hide = "Hide code"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
VEGA = "application/vnd.vegalite.v5+json"
UNNAMED = {  # what furo, Sphinx and MyST-NB leave without a name for screen readers, or give a wrong one
    '<p class="caption" role="heading">': '<p class="caption" role="heading" aria-level="2">',
    '<aside class="sidebar-drawer">': '<aside class="sidebar-drawer" aria-label="Site">',
    '<aside class="toc-drawer">': '<aside class="toc-drawer" aria-label="This page">',
    '<summary aria-label="Toggle hidden content">': "<summary>",
    '\n<div id="search-results">': '\n<h1>Search</h1><div id="search-results">',
}


def as_mathml(self, node: nodes.Element) -> None:
    """A formula as MathML. Bold letters are characters of their own, as browsers know no other bold in it; a prime is
    not raised a second time, as it is high already.
    """
    made = convert(node.astext(), display="block" if isinstance(node, nodes.math_block) else "inline")
    made = re.sub(r"<msup>(<m[in]>[^<]*</m[in]>)<mi>&#x02032;</mi></msup>", r"\1<mo lspace='0' rspace='0'>′</mo>", made)
    made = re.sub(r'<mi mathvariant="bold">([A-Za-z])</mi>', lambda found: f"<mi>{bold(found[1])}</mi>", made)
    self.body.append(made)
    raise nodes.SkipNode


def bold(letter: str) -> str:
    """A letter among the mathematical bold ones of Unicode."""
    first, bold_first = ("a", 0x1D41A) if letter.islower() else ("A", 0x1D400)
    return chr(bold_first + ord(letter) - ord(first))


def adapted(app, docname: str, source: list[str]) -> None:
    """Give each page what the site alone has: README the list of pages, docs/gallery and docs/claims their contents, a
    notebook's charts an HTML form.
    """
    if docname == root_doc:
        source[0] += toctrees(sorted(app.env.found_docs - {root_doc}))
    elif docname == "docs/gallery":
        source[0] += gallery()
    elif docname == "docs/claims":
        source[0] += claims()
    elif docname.startswith("notebooks/"):
        source[0] = for_browsers(with_links(json.loads(source[0]), docname))
    elif docname == "docs/online":
        source[0] = source[0].replace("OWNER/NAME", os.environ.get("GITHUB_REPOSITORY", "OWNER/NAME"))


def toctrees(pages: list[str]) -> str:
    """The pages, for the sidebar."""
    notebooks = [page for page in pages if page.startswith("notebooks/")]
    first = ["docs/claims", "docs/items", "docs/gallery", "docs/results"]
    more = [page for page in pages if page not in notebooks + first]
    made = ""
    for caption, those in (("What came out", first), ("Notebooks", notebooks), ("More", more)):
        made += "\n".join(["\n```{toctree}", ":hidden:", f":caption: {caption}", "", *those, "```\n"])
    return made


def gallery() -> str:
    """Each committed figure with its alternative text, its notebook and its PDF."""
    made = []
    for path in sorted((ROOT / "figures").glob("*.png")):
        (notebook,) = (ROOT / "notebooks").glob(f"{path.stem[:2]}_*.ipynb")
        said = Image.open(path).text["Description"].replace("[", "(").replace("]", ")")
        links = f"[{notebook.stem}](../notebooks/{notebook.name}) · [PDF](../figures/{path.stem}.pdf)"
        made.append(f"## {path.stem[3:].replace('_', ' ')}\n\n![{said}](../figures/{path.name})\n\n{links}")
    return "\n\n".join(["", *made, ""])


def claims() -> str:
    """The table of verdicts, which filters.js lets a reader filter."""
    words, found = registry.known(), registry.kept()
    table = pd.DataFrame(
        {
            "claim": [registry.quoted(words.loc[name]) for name in found.id],
            "measured by": found["measured by"],
            "scale": found.scale,
            "effect (95 %)": found["effect (95 %)"],
            "n": [f"{n:,} x {seeds}" if n else f"{seeds}" for n, seeds in zip(found.images, found.seeds, strict=True)],
            "verdict": found.verdict,
            "notebook": [words.notebook[name] for name in found.id],
        }
    )
    return "\n\n" + scrolling(table.to_html(index=False, border=0, table_id="verdicts")) + "\n"


def scrolling(table: str) -> str:
    """An HTML table in a box that scrolls, as furo has it; what scrolls itself is no table to all screen readers.
    A header cell without words becomes a plain one.
    """
    table = re.sub(r"<th([^>]*)>(&nbsp;)?</th>", r"<td\1></td>", table.replace("display: block;", ""))
    return f'<div class="table-wrapper container">{table}</div>'


def with_links(notebook: dict, page: str) -> dict:
    """A notebook with links below its title that open it elsewhere: where GitHub builds the site and says for whom."""
    if repository := os.environ.get("GITHUB_REPOSITORY"):
        binder = f"https://mybinder.org/v2/gh/{repository}/HEAD?urlpath=lab/tree/{page}.ipynb"
        colab = f"https://colab.research.google.com/github/{repository}/blob/HEAD/{page}.ipynb"
        links = f"[Open in Binder]({binder}) · [Open in Colab]({colab}) ([put one cell first](../docs/online.md#colab))"
        first = notebook["cells"][0]
        first["source"] = "".join(first["source"]).replace("\n", f"\n\n{links}\n", 1)
    return notebook


def for_browsers(notebook: dict) -> str:
    """A notebook whose wide tables scroll and whose charts have an HTML form too: the specification beside the still
    picture, for charts.js.
    """
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "text/html" in data:
                data["text/html"] = scrolling("".join(data["text/html"]))
            if VEGA in data:
                spec, said = (html.escape(text) for text in (json.dumps(data.pop(VEGA)), "".join(data["text/plain"])))
                picture = f'<img alt="{said}" src="data:image/png;base64,{"".join(data["image/png"]).strip()}">'
                data["text/html"] = f'<figure class="chart" aria-label="{said}" data-spec="{spec}">{picture}</figure>'
    return json.dumps(notebook)


def described(self, data) -> list[nodes.Element]:
    """A notebook's picture with the alternative text that is kept beside it, which MyST-NB does not read."""
    (picture,) = render_image(self, data)
    picture["alt"] = data.output_metadata["image/png"]["alt"]
    return [picture]


render_image, NbElementRenderer.render_image = NbElementRenderer.render_image, described


def plain(app, what, name, thing, options, lines: list[str]) -> None:
    """Docstrings are plain text: their signs are no markup, and where lines are indented all stay as they are."""
    indented = any(line.startswith(" ") for line in lines)
    escaped = (re.sub(r"([*_|`\\])", r"\\\1", line) for line in lines)
    lines[:] = [f"| {line}" if indented and line.strip() else line for line in escaped]


def write_vega(app) -> None:
    """Put the library that draws charts among the static files."""
    folder = Path(app.outdir) / "_static"
    folder.mkdir(parents=True, exist_ok=True)
    library = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    (folder / "vega.js").write_text(f"(() => {{{library}}})();\n")


def name_all(app, error: Exception | None) -> None:
    """Put the names of UNNAMED into each page."""
    for path in Path(app.outdir).rglob("*.html"):
        page = path.read_text()
        for old, new in UNNAMED.items():
            page = page.replace(old, new)
        path.write_text(page)


def setup(app) -> None:
    """What Sphinx calls."""
    app.add_html_math_renderer("mathml", inline_renderers=(as_mathml, None), block_renderers=(as_mathml, None))
    app.connect("source-read", adapted)
    app.connect("builder-inited", write_vega)
    app.connect("autodoc-process-docstring", plain)
    app.connect("build-finished", name_all)
