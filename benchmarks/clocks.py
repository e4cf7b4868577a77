"""How it is timed: in turn, in one process, or in a fresh process with an environment of its own."""

import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

ALLOCATOR = dict(MALLOC_MMAP_MAX_="0", MALLOC_TRIM_THRESHOLD_="8589934592", MALLOC_TOP_PAD_="268435456")


def clock(device: str, threads: int) -> Callable[[Callable[[], object]], float]:
    """What times a call, in seconds: CPU time of one thread, wall time of several, events on CUDA."""

    def on_cuda(call):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000

    def on_cpu(call, now=time.process_time if threads == 1 else time.perf_counter):
        start = now()
        call()
        return now() - start

    return on_cuda if device == "cuda" else on_cpu


def in_turn(calls: dict[str, Callable], device: str, threads: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each call in each round, all calls in turn; those that take under a fifth of a second are repeated."""
    timed, seconds = clock(device, threads), {name: [] for name in calls}
    torch.set_num_threads(threads)
    for call in calls.values():
        for _ in range(5 if device == "cuda" else 1):
            call()  # the first ones compile, allocate and capture
    repeats = {name: max(1, round(0.2 / timed(call))) for name, call in calls.items()}
    for _ in range(rounds):
        for name, call in calls.items():
            spent = timed(lambda call=call, n=repeats[name]: [call() for _ in range(n)])
            seconds[name].append(spent / repeats[name])
    return seconds


def ratio(reference: list[float], ours: list[float]) -> dict[str, float]:
    """Median, lowest and highest of reference / ours, round by round: larger is faster."""
    ratios = [a / b for a, b in zip(reference, ours, strict=True)]
    return dict(median=statistics.median(ratios), min=min(ratios), max=max(ratios), rounds=len(ratios))


def in_child(function: Callable, *arguments, **variables):
    """The result of a function in a fresh process, whose allocator and threads are set by these variables alone."""
    before = dict(os.environ)
    for known in (*ALLOCATOR, "OMP_WAIT_POLICY", "OMP_NUM_THREADS"):
        os.environ.pop(known, None)
    os.environ.update(variables)
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(function, *arguments).result()
    finally:
        os.environ.clear()
        os.environ.update(before)
