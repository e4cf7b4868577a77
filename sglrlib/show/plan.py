"""Which runs a notebook needs: its cells are executed, and what they ask for is noted instead of computed."""

import io
import linecache
import re
from contextlib import redirect_stdout
from pathlib import Path

from sglrlib.checks import one_of
from sglrlib.show import notebook
from sglrlib.training import jobs, runs
from sglrlib.training.jobs import Task


def tasks(path: str | Path, parameters: dict, threads: int = 0, parent: int = 0) -> list[Task]:
    """A notebook's runs, its parameters changed as papermill changes them; see jobs.tasks().

    Raises UsageError, before any work, for a missing notebook, an unknown parameter or a wrong value.
    """
    path = Path(path)
    if not path.is_file():
        one_of("notebook", str(path), map(str, sorted(path.parent.glob("*.ipynb"))))
    return jobs.tasks(asked_for(cells(path, parameters)), threads, parent)


def cells(path: Path, parameters: dict | None = None) -> list:
    """A notebook's cells, its parameters changed as papermill changes them."""
    from papermill.iorw import load_notebook_node  # here, as it takes three seconds
    from papermill.parameterize import parameterize_notebook

    return parameterize_notebook(load_notebook_node(str(path)), parameters or {}).cells


def asked_for(cells: list) -> list[runs.Wanted]:
    """What code cells ask notebook.gather() for, in that order; only those up to the last that asks are executed, and
    none that shows committed results.
    """
    sources = [
        cell.source for cell in cells if cell.cell_type == "code" and "committed" not in cell.metadata.get("tags", [])
    ]
    asking = [i for i, source in enumerate(sources, 1) if re.search(r"notebook\.gather\(", source)]
    with notebook.planning() as plan, redirect_stdout(io.StringIO()):
        execute(sources[: max(asking, default=0)], plan.namespace)
    return plan.wanted


def execute(sources: list[str], namespace: dict) -> None:
    """Execute cells one after another in a plan's namespace."""
    for source in sources:
        namespace["In"].append(source)
        name = f"<cell {len(namespace['In'])} of a notebook>"
        linecache.cache[name] = len(source), None, source.splitlines(keepends=True), name  # for doors.register()
        exec(compile(source, name, "exec"), namespace)
