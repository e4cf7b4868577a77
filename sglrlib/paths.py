"""Where data, runs and figures are, whatever folder a notebook or a test is started from.

SGLR_DATA names another folder for the downloaded datasets, SGLR_OUT another one for runs/ and figures/.
"""

import os
from pathlib import Path

from sglrlib.checks import UsageError

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("SGLR_DATA") or ROOT / "data").absolute()
OUT = Path(os.environ.get("SGLR_OUT") or ROOT).absolute()

RUNS = OUT / "runs"
FIGURES = OUT / "figures"
RESULTS = ROOT / "data" / "results"
WEIGHTS = ROOT / "data" / "weights"
PAPER = ROOT / "data" / "paper.csv"
CLAIMS = ROOT / "data" / "claims.csv"


def check_writable() -> None:
    """Raise UsageError where runs and figures could not be kept."""
    place = next(path for path in (RUNS, *RUNS.parents) if path.exists())
    if not (place.is_dir() and os.access(place, os.W_OK)):
        raise UsageError(f"{RUNS} cannot be written: set SGLR_OUT to a folder that can be, before Jupyter starts.")
