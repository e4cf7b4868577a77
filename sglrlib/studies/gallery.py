"""The figures of committed results, figures/: drawn by the cells of the notebooks that show them."""

import io
import re
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from sglrlib.paths import ROOT
from sglrlib.show import notebook, page, plan

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def drawn(paths: Iterable[Path] = NOTEBOOKS) -> Iterator[tuple[str, Figure]]:
    """Name and figure, one after another: each notebook's cells are executed, up to the last that shows a figure of
    committed results. A figure is closed when the next one is asked for.
    """
    for path in paths:
        sources = [cell.source for cell in plan.cells(path) if cell.cell_type == "code"]
        showing = [i for i, source in enumerate(sources, 1) if re.search(r"show_committed\(|committed=\"", source)]
        with notebook.planning() as planned, page.drawing() as found, redirect_stdout(io.StringIO()):
            plan.execute(sources[: max(showing, default=0)], planned.namespace)
        for name, figure in found.items():
            yield name, figure
            plt.close(figure)
