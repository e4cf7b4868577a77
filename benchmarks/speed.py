"""make bench: what a training step, an evaluation and a batch cost, beside the plainest published way to write them.

Everything runs in one process, ours and the reference in turn, round by round, so that a machine whose speed drifts
slows both; a number is the median of the rounds' ratios, with the lowest and the highest. First comes the gate: both
must compute the same. The result goes to data/results/speed/ and is printed as the tables of that folder's README.
"""

import argparse
import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import reference
from benchmarks.clocks import ALLOCATOR, clock, in_child, in_turn, ratio
from benchmarks.report import PREDICTED, tables
from benchmarks.task import Task, gate, task
from sglrlib.checks import UsageError, one_of, within
from sglrlib.device import exact_fp32, pick_device
from sglrlib.judging.evaluate import correct, withstood
from sglrlib.method.autoattack import Part
from sglrlib.method.fast import captured
from sglrlib.paths import RESULTS

AUTOATTACK = dict(apgd_ce=100, apgd_t=100, fab_t=100, square=5000)  # the standard's iterations, in its order


def training(tasks: list[Task], device: str, rounds: int, compiled: bool) -> dict[str, list[dict]]:
    """Rows of whole steps against the bars, on a CPU of two threads and of one; and the ladder of the first task."""
    rows = [line for each in tasks if device == "cpu" for line in steps(each, device, 2, rounds)[0]]
    first, *others = [steps(each, device, 1, rounds, compiled and each is tasks[0]) for each in tasks]
    return dict(rows=rows + first[0] + [line for other in others for line in other[0]], ladder=first[1])


def steps(task: Task, device: str, threads: int, rounds: int, compiled=False) -> tuple[list[dict], list[dict]]:
    """Rows of a network's steps against the bars, and the ladder: its rungs against the release's step.

    With two threads only the bars' steps, and none may be slower than the reference.
    """
    calls = dict(release=task.release(), rice=task.rice(), fp32=task.ours(), bf16=task.ours("bf16"))
    bars = {("release", "fp32"): 1.15, ("release", "bf16"): 1.7, ("rice", "fp32"): 1.6}
    rungs = {"reference": "release"}
    if threads == 1:
        calls["+ channels_last"] = task.release(task.model().to(memory_format=torch.channels_last))
        calls["amp"] = task.ours("amp")
        if device == "cuda":
            calls["reference, strict fp32"] = exact_fp32()(task.release())
            on_channels_last = task.release(task.model().to(memory_format=torch.channels_last))
            calls["+ bf16 by autocast"] = torch.autocast(device, torch.bfloat16)(on_channels_last)
            calls["+ folded bf16 copy for the attack"] = task.ours("amp", graph=False)
            rungs["+ CUDA graph of the whole step"] = "amp"
        else:
            rungs |= {"+ folded copy, frozen, fused SGD": "fp32", "+ attack in bf16": "bf16", "+ update in bf16": "amp"}
        if compiled:
            calls["+ torch.compile of the attack's copy"] = task.ours("amp", "compile")
        rungs |= {name: name for name in calls if name in PREDICTED[device]}
    seconds = in_turn(calls, device, threads, rounds)
    rows = [
        row(task, f"step, {ours}, against {theirs}", threads, seconds, theirs, ours, bar if threads == 1 else 1.0)
        for (theirs, ours), bar in bars.items()
    ]
    ladder = [
        dict(rung=rung, **ratio(seconds["release"], seconds[name]), seconds=statistics.median(seconds[name]))
        for rung, name in rungs.items()
    ]
    return rows, ladder


def row(task: Task, what: str, threads: int, seconds: dict, theirs: str, ours: str, bar: float | None) -> dict:
    """One line of the table of bars."""
    found = ratio(seconds[theirs], seconds[ours])
    return dict(
        what=what, network=task.config.arch, batch=task.config.batch_size, threads=threads, **found, bar=bar,
        met=None if bar is None else found["median"] >= bar, seconds=statistics.median(seconds[ours]),
    )  # fmt: skip


def pgd_evaluations(task: Task, device: str, rounds: int) -> list[dict]:
    """Rows of PGD-20, last iterate, fp32, on an untrained network that is right on every image."""
    task = Task(task.config.but(batch_size=task.config.batch_size // 2), task.data)
    model, (x, _, _), noise = task.model().eval(), task.batch, task.noise
    with torch.no_grad():
        y = model(x).argmax(1)
    longer = task.config.but(attack_steps=20)
    calls = dict(
        backward=partial(reference.pgd_evaluation, model, x, y, noise, longer),
        grad=lambda: reference.attack_by_grad(model.eval(), x, y, noise, longer),
        ours=partial(correct, model, x, y, task.config.attack(steps=20)),
    )
    seconds = in_turn(calls, device, 1, rounds)
    return [
        row(task, "PGD-20 evaluation against loss.backward()", 1, seconds, "backward", "ours", 1.3),
        row(task, "PGD-20 evaluation against autograd.grad", 1, seconds, "grad", "ours", None),
    ]


def cascades(task: Task, images: int, share: float, epochs: int, device: str, rounds: int) -> dict:
    """A row of AutoAttack's cascade with this share of its iterations, on a network after some epochs of training.

    Untrained, it is right on every image. Raises SystemExit where a flag differs.
    """
    step, data = task.step(), task.data
    for _ in range(epochs):
        for batch in data.batches(task.config.batch_size, step.generator):
            step(*batch)
    model, x = step.model.to(memory_format=torch.contiguous_format).eval(), data.x(slice(images))
    with torch.no_grad():
        y = data.y_clean[:images] if epochs else model(x).argmax(1)
    eps, iterations = task.config.eps_255 / 255, {part: int(share * n) for part, n in AUTOATTACK.items()}
    calls = dict(
        plain=partial(reference.plain_cascade, model, x, y, eps, iterations),
        ours=partial(cascade, model, x, y, eps, iterations),
    )
    flags = {name: call().cpu() for name, call in calls.items()}
    if not torch.equal(flags["plain"], flags["ours"]):
        raise SystemExit(f"AutoAttack's flags differ, so not timed: {flags}")
    seconds = in_turn(calls, device, 1, rounds)
    what = f"AutoAttack, {share:.0%} of its iterations, {images} images, flags equal ({int(flags['ours'].sum())} stand)"
    return row(task, what, 1, seconds, "plain", "ours", 1.2) | dict(batch=images)


def cascade(model: nn.Module, x: Tensor, y: Tensor, eps: float, iterations: dict[str, int]) -> Tensor:
    """Flags (N,) after AutoAttack's four parts, each on what the one before left, on the model's prepared copy."""
    flags = correct(model, x, y)
    for part, n in iterations.items():
        flags = withstood(model, x, y, Part(eps, part, n), flags)
    return flags


def data_path(task: Task, device: str, rounds: int) -> dict:
    """An epoch's batches, shuffled and augmented but not trained on, as a share of the steps they feed."""
    config, generator = task.config, torch.Generator(device).manual_seed(0)
    batches = -(-len(task.data) // config.batch_size)

    def epoch():
        for _ in task.data.batches(config.batch_size, generator, config.augment):
            pass

    seconds = in_turn(dict(epoch=epoch, step=task.ours("bf16")), device, 1, rounds)
    shares = [a / batches / b for a, b in zip(seconds["epoch"], seconds["step"], strict=True)]
    return dict(
        network=config.arch, batch=config.batch_size, augment=config.augment, median=statistics.median(shares),
        min=min(shares), max=max(shares), rounds=len(shares), bar=0.05, met=statistics.median(shares) < 0.05,
    )  # fmt: skip


def peaks(arch: str, device: str, batch_size: int) -> list[dict]:
    """Peak memory (MiB) of a process that takes three steps; on CUDA of the allocator, on a CPU resident."""
    calls = {"release": "release", "rice": "rice", "ours, fp32": "ours fp32", "ours, bf16": "ours bf16"}
    found = [dict(step=label, mib=in_child(peak, arch, device, batch_size, call)) for label, call in calls.items()]
    return [entry | dict(met=entry["mib"] <= found[0]["mib"]) for entry in found]


def peak(arch: str, device: str, batch_size: int, call: str) -> float:
    torch.set_num_threads(1)
    kind, *how = call.split()
    take = getattr(task(arch, device, batch_size, images=batch_size), kind)(*how)
    for _ in range(5 if device == "cuda" else 3):
        take()
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    # Not ru_maxrss: a new process inherits it from the one that started it.
    return int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) / 2**10


def environments(arch: str, batch_size: int, steps: int, rounds: int) -> list[dict]:
    """Wall seconds of a step (bf16 attack) in fresh processes that differ in threads and environment, in turn."""
    passive = dict(OMP_WAIT_POLICY="PASSIVE")
    settings = [(1, {}), (1, ALLOCATOR), (2, {}), (2, passive), (2, passive | ALLOCATOR)]
    seconds = [[in_child(wall, arch, batch_size, steps, n, **extra) for n, extra in settings] for _ in range(rounds)]
    return [
        dict(network=arch, threads=n, variables=sorted(extra), seconds=statistics.median(those),
             **ratio([first for first, *_ in seconds], those))
        for (n, extra), those in zip(settings, zip(*seconds, strict=True), strict=True)
    ]  # fmt: skip


def wall(arch: str, batch_size: int, steps: int, threads: int) -> float:
    torch.set_num_threads(threads)
    call, timed = task(arch, "cpu", batch_size).ours("bf16"), clock("cpu", 2)  # wall time, also of one thread
    call()
    return statistics.median(timed(lambda: [call() for _ in range(steps)]) / steps for _ in range(3))


def roof(task: Task) -> dict[str, float]:
    """GFLOP/s of one core in fp32: of the release's step, of ours, and of one convolution that suits the core well.

    A step counts as 2 * attack_steps + 4 forward passes: a gradient costs as much again, the update's twice as much.
    """
    torch.set_num_threads(1)
    x, weight = torch.rand(32, 64, 32, 32), torch.rand(64, 64, 3, 3)
    best = partial(F.conv2d, *(tensor.to(memory_format=torch.channels_last) for tensor in (x, weight)))
    calls = {"the release's step": task.release(), "ours": task.ours(), "a 3x3 convolution of 64 channels": best}
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        task.model()(task.batch[0])
    step = counted.get_total_flops() * (2 * task.config.attack_steps + 4)
    flops = [step, step, 2 * len(x) * 30 * 30 * weight.numel()]
    seconds = in_turn(calls, "cpu", 1, rounds=3)
    return {name: n / statistics.median(seconds[name]) / 1e9 for name, n in zip(calls, flops, strict=True)}


def epoch_seconds(task: Task) -> float:
    """Of an epoch on 50,000 images as train() runs it on CUDA, its data path included, after one to warm up."""
    step = task.step("amp")
    take = captured(step)

    def epoch():
        for batch in task.data.batches(task.config.batch_size, step.generator, task.config.augment):
            take(*batch)

    for _ in range(4):  # the smaller last batch comes once an epoch, and is captured at its fourth
        epoch()
    return clock("cuda", 1)(epoch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="", help="cpu or cuda; '': CUDA where there is one")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each comparison")
    parser.add_argument("--network", default="resnet18", help="the one beside the small one on digits")
    parser.add_argument("--batch", type=int, default=0, help="its images a step; 0: 32 on a CPU, 128 on CUDA")
    parser.add_argument("--compile", action="store_true", help="torch.compile too: minutes, and a C++ compiler")
    parser.add_argument("--out", type=Path, default=RESULTS / "speed", help="folder of the result")
    parser.add_argument("--only", default="", help="measure one part again, after the gate, and keep the others")
    options = parser.parse_args()
    try:
        device, rounds = pick_device(options.device), options.rounds
        within("rounds", rounds, 1)
        within("batch", options.batch, 0)
        batch = options.batch or (32 if device == "cpu" else 128)
        chosen = parts(task(options.network, device, batch), task("cnn16", device), device, rounds, options.compile)
        if options.only:
            one_of("only", options.only, chosen)
        options.out.mkdir(parents=True, exist_ok=True)
    except (UsageError, OSError) as error:
        parser.error(str(error))
    torch.set_num_threads(1)
    path = options.out / f"{re.sub(r'[^a-z0-9]+', '-', about(device)['device'].lower()).strip('-')}.json"
    found = json.loads(path.read_text()) if options.only and path.exists() else {}
    for part in ("gate", options.only) if options.only else chosen:
        found[part] = chosen[part]() | about(device)
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{time.strftime('%H:%M:%S')} {part}", flush=True)
    print(tables(found), f"Saved: {path}", sep="\n\n")


def parts(large: Task, small: Task, device: str, rounds: int, compiled: bool) -> dict[str, Callable[[], dict]]:
    """What measures each part of the result, in the order in which they are measured; the gate is always first."""
    arch, batch = large.config.arch, large.config.batch_size
    found = dict(
        gate=lambda: {each.config.arch: gate(each) for each in (large, small)},
        training=lambda: training([large, small], device, rounds, compiled),
        evaluation=lambda: dict(
            rows=[
                *pgd_evaluations(large, device, rounds),
                cascades(task("bn_cnn16", device), 200, 0.1, 10, device, rounds),
                cascades(large, 4, 0.02, 0, device, rounds),
            ]
        ),
        data_path=lambda: dict(rows=[data_path(each, device, rounds) for each in (large, small)]),
        memory=lambda: dict(rows=peaks(arch, device, batch)),
    )
    if device == "cuda":
        return found | dict(epoch=lambda: dict(seconds=epoch_seconds(large)))
    return found | dict(
        roof=lambda: dict(gflops=roof(large)),
        environments=lambda: dict(rows=[*environments(arch, batch, 1, 3), *environments("cnn16", 0, 20, 3)]),
    )


def about(device: str) -> dict:
    """Where and with what this is measured."""
    return dict(
        kind=device, device=torch.cuda.get_device_name() if device == "cuda" else processor(), cores=os.cpu_count(),
        capability=torch.backends.cpu.get_cpu_capability(), torch=torch.__version__,
        python=platform.python_version(), date=time.strftime("%Y-%m-%d", time.gmtime()),
        environment={name: os.environ[name] for name in (*ALLOCATOR, "OMP_WAIT_POLICY") if name in os.environ},
    )  # fmt: skip


def processor() -> str:
    info = Path("/proc/cpuinfo")  # where there is one, the name of the processor stands there alone
    found = re.search(r"^model name\s*:\s*(.+)", info.read_text(), re.M) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
