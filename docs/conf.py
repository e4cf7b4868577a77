"""The site: README, the notebooks with their committed outputs, and docs/; nothing is executed, no host is asked.

Sphinx with MyST-NB, because it reads notebooks and Markdown as they are and installs by pip. Formulas become MathML,
which browsers draw by themselves; the charts of Altair come alive by a script that the site brings along.
"""

import html
import json
import re
from pathlib import Path

import vl_convert
from docutils import nodes
from latex2mathml.converter import convert

HERE = Path(__file__).parent

project = "SGLR companion"
copyright = "its authors"
extensions = ["myst_nb"]
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
html_js_files = ["charts.js"]
html_math_renderer = "mathml"
html_copy_source = False
nb_execution_mode = "off"
nb_code_prompt_show = "Show code"
nb_code_prompt_hide = "Hide code"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
VEGA = "application/vnd.vegalite.v5+json"


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
    """Give README the list of pages, and a notebook's charts an HTML form: the specification beside the still picture,
    for charts.js.
    """
    if docname == root_doc:
        pages = sorted(app.env.found_docs - {root_doc})
        for caption, here in (("Notebooks", True), ("More", False)):
            those = [page for page in pages if page.startswith("notebooks/") == here]
            source[0] += "\n".join(["\n```{toctree}", ":hidden:", f":caption: {caption}", "", *those, "```\n"])
    if not docname.startswith("notebooks/"):
        return
    notebook = json.loads(source[0])
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            if VEGA in output.get("data", {}):
                data = output["data"]
                spec, said = (html.escape(text) for text in (json.dumps(data.pop(VEGA)), "".join(data["text/plain"])))
                picture = f'<img alt="{said}" src="data:image/png;base64,{"".join(data["image/png"]).strip()}">'
                data["text/html"] = f'<figure class="chart" data-spec="{spec}">{picture}</figure>'
    source[0] = json.dumps(notebook)


def write_vega(app) -> None:
    """Put the library that draws charts among the static files."""
    folder = Path(app.outdir) / "_static"
    folder.mkdir(parents=True, exist_ok=True)
    library = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    (folder / "vega.js").write_text(f"(() => {{{library}}})();\n")


def setup(app) -> None:
    """What Sphinx calls."""
    app.add_html_math_renderer("mathml", inline_renderers=(as_mathml, None), block_renderers=(as_mathml, None))
    app.connect("source-read", adapted)
    app.connect("builder-inited", write_vega)
