"""make gpu: what only a real card can tell, in half an hour: CUDA tests, what a step costs, a short run on CIFAR-10.

Each part is written to data/results/gpu/ when it is done, and the next call goes on from there. In the end two files
named after the card lie in that folder, a JSON and a page to read: send both in, and others know what this card does.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

import torch

from benchmarks import speed
from benchmarks.report import tables
from sglrlib.checks import UsageError, within
from sglrlib.config import RunConfig
from sglrlib.device import convolutions, device_name, pick_device
from sglrlib.paths import RESULTS, ROOT
from sglrlib.recipes import row_recipe
from sglrlib.store import log
from sglrlib.training import runs

NETWORK, BATCH, IMAGES = "resnet18", 128, 49_000  # of the paper's protocol on CIFAR-10


def main(arguments: list[str] | None = None) -> int:
    """Do the parts that are missing or failed, and write the report; returns 1 where one failed, 2 without a card."""
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda, or cuda:1 for the second one")
    parser.add_argument("--minutes", type=float, default=10, help="for the run on CIFAR-10")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile, which needs a C++ compiler")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu", help="folder of the report")
    options = parser.parse_args(arguments)
    try:
        within("minutes", options.minutes, 0)
        if not options.device.startswith("cuda"):
            raise UsageError(f"device = {options.device!r}: expected a GPU, 'cuda' or 'cuda:1'.")
        device = pick_device(options.device)
    except UsageError as error:
        print(f"make gpu: {error}", file=sys.stderr)
        return 2
    torch.cuda.set_device(device)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{re.sub(r'[^a-z0-9]+', '-', device_name(device).lower()).strip('-')}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for name, part in parts(device, options.minutes, not options.no_compile, found).items():
        if name in found and "error" not in found[name]:
            continue
        print(f"{time.strftime('%H:%M:%S')} {name}", flush=True)
        try:
            found[name] = part() | speed.about("cuda")
        except Exception as error:
            traceback.print_exc()
            found[name] = dict(error=f"{type(error).__name__}: {error}")
        path.write_text(json.dumps(found, indent=1) + "\n")
        path.with_suffix(".md").write_text(page(found))
    print(page(found), f"Saved: {path} and {path.with_suffix('.md')}", sep="\n\n")
    return int(any("error" in part for part in found.values()) or bool(found["tests"]["failed"]))


def parts(device: str, minutes: float, compiled: bool, found: dict) -> dict[str, Callable[[], dict]]:
    """What makes each part of the report, in the order in which they are made; found is what there is already."""
    large, small = speed.task(NETWORK, "cuda", BATCH), speed.task("cnn16", "cuda")
    ladder = speed.parts(large, small, "cuda", rounds=5, compiled=compiled)
    return (
        dict(card=lambda: card(device), tests=cuda_tests)
        | ladder
        | dict(runs=lambda: short_runs(configs(epochs_in(minutes, found)), device))
    )


def card(device: str) -> dict:
    """The card, its driver, and what float32 means on it."""
    properties = torch.cuda.get_device_properties(device)
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(asked, capture_output=True, text=True, timeout=60).stdout.split("\n")[0].strip()
    except OSError:  # AMD's cards have none
        driver = "unknown"
    return dict(
        name=properties.name, gib=round(properties.total_memory / 2**30, 1), cards=torch.cuda.device_count(),
        compute_capability=".".join(map(str, torch.cuda.get_device_capability(device))), driver=driver,
        cuda=torch.version.cuda, convolutions=convolutions(device),
    )  # fmt: skip


def cuda_tests() -> dict:
    """How many of the tests for CUDA passed, and which did not."""
    with TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_cuda.py"]
        subprocess.run([*command, f"--junitxml={report}"], cwd=ROOT, env=os.environ | dict(OMP_NUM_THREADS="1"))
        cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [case.get("name") for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    return dict(passed=len(cases) - len(failed) - skipped, skipped=skipped, failed=failed)


def epochs_in(minutes: float, found: dict) -> int:
    """How many epochs of both runs fit into so many minutes, from 1 to 10; what is measured after each is a quarter."""
    step = next(r["seconds"] for r in found["training"]["rows"] if r["network"] == NETWORK and ", fp32," in r["what"])
    return max(1, min(10, int(60 * minutes / (2 * 1.25 * step * IMAGES / BATCH))))


def configs(epochs: int) -> list[RunConfig]:
    """PGD-AT and SGLR on CIFAR-10 by the paper's protocol, shortened to a few epochs, refined from half of them on."""
    rows = "PGD-AT", "PGD-AT+SGLR"
    return [row_recipe(row, "cifar10", "paper", epochs=epochs, refine_start=0.5 * (epochs > 1)) for row in rows]


def short_runs(configs: list[RunConfig], device: str) -> dict:
    """What a few epochs of each run take and bring, and PGD-20 on 1,000 test images."""
    found = []
    for config in configs:
        torch.cuda.reset_peak_memory_stats()
        result = runs.run(config, ("pgd_20",), images=1000, device=device)
        seconds = list(log.epoch_seconds(runs.RUNS / config.id).values())
        found.append(dict(
            row=config.title, epochs=config.epochs, seconds=seconds, mib=torch.cuda.max_memory_allocated() / 2**20,
            natural=result.accuracy("last", "natural"), pgd_20=result.accuracy("last", "pgd_20"),
            curve=result.curve, judging=result.evaluations["last"]["pgd_20"]["seconds"], run=config.id,
        ))  # fmt: skip
    return dict(rows=found)


def page(found: dict) -> str:
    """The report as Markdown."""
    lines, errors = ["# What this card does", ""], {name: p["error"] for name, p in found.items() if "error" in p}
    if "name" in (c := found.get("card", {})):
        lines += [
            f"{c['name']}, {c['gib']} GiB, compute capability {c['compute_capability']}, driver {c['driver']}, CUDA "
            f"{c['cuda']}, torch {c['torch']}, {c['date']}. In training a float32 convolution is made in "
            f"{c['convolutions'].upper()}; final evaluations and diagnostics are in strict float32.",
            "",
        ]
    if "passed" in (t := found.get("tests", {})):
        lines += [f"CUDA tests: {t['passed']} passed, {t['skipped']} skipped, {len(t['failed'])} failed.", ""]
        lines += [f"- {name}" for name in t["failed"]] + [""] * bool(t["failed"])
    if "rows" in (r := found.get("runs", {})):
        lines += [
            "| run | epochs | s an epoch, median | 200 epochs | peak MiB | natural | PGD-20, 1,000 images | its s |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for x in r["rows"]:
            median = statistics.median(x["seconds"])
            lines.append(
                f"| {x['row']} | {x['epochs']} | {median:.1f} | {200 * median / 3600:.1f} h | {x['mib']:.0f} | "
                f"{x['natural']:.1f} | {x['pgd_20']:.1f} | {x['judging']:.1f} |"
            )
        lines.append("")
    if "kind" in found.get("gate", {}):
        lines += [tables({name: part for name, part in found.items() if "error" not in part}), ""]
    lines += [f"FAILED: {name}: {error}" for name, error in errors.items()]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    sys.exit(main())
