"""The figures of committed results, figures/: drawn by the cells of the notebooks that show them."""

import io
import re
from collections.abc import Iterable
from contextlib import redirect_stdout
from pathlib import Path

from matplotlib.figure import Figure
from papermill.iorw import load_notebook_node

from sglrlib.paths import ROOT
from sglrlib.show import notebook

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def drawn(paths: Iterable[Path] = NOTEBOOKS) -> dict[str, Figure]:
    """Name -> figure: each notebook's cells are executed, up to the last that shows a figure of committed results."""
    figures = {}
    for path in paths:
        sources = [cell.source for cell in load_notebook_node(str(path)).cells if cell.cell_type == "code"]
        showing = [i for i, source in enumerate(sources, 1) if re.search(r"show_committed\(|committed=\"", source)]
        namespace = dict(In=[], __name__="__main__")
        with notebook.drawing() as found, redirect_stdout(io.StringIO()):
            for source in sources[: max(showing, default=0)]:
                namespace["In"].append(source)
                exec(compile(source, path.name, "exec"), namespace)
        figures |= found
    return figures
