"""A notebook executed within the test's own process, where all imports are done; papermill needs seconds for them."""

import io
from contextlib import redirect_stdout
from unittest.mock import patch

import matplotlib.pyplot as plt
from IPython.core.history import HistoryManager
from IPython.core.interactiveshell import InteractiveShell

from sglrlib.show import notebook, page, plan


def execute(path, **parameters) -> str:
    """What a notebook's cells print, tables as text, the parameters put in as papermill puts them in; raises as a cell
    does.
    """

    def display(shown: object, raw: bool = False, **_) -> None:
        print(shown["text/plain"] if raw else shown)

    with patch.object(HistoryManager, "enabled", False):
        shell = InteractiveShell()
    with (
        patch.object(notebook, "get_ipython", lambda: shell),
        patch.object(notebook, "display", display),
        patch.object(page, "display", display),
        redirect_stdout(io.StringIO()) as printed,
    ):
        for cell in plan.cells(path, parameters):
            if cell.cell_type == "code":
                shell.run_cell(cell.source, store_history=True).raise_error()
    plt.close("all")
    return printed.getvalue()
