"""How long a run will take, before it has begun: its counted operations at a rate that is measured here or assumed."""

import functools
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import NamedTuple

from torch import Tensor

from sglrlib.checks import one_of
from sglrlib.config import RunConfig
from sglrlib.device import exact_fp32
from sglrlib.method.fast import WARM_UP, attack_target, captured
from sglrlib.training.flops import Cost, counted, made_up, passes, plain, step_flop
from sglrlib.training.train import first_step


class Rate(NamedTuple):
    """FLOP a second: of training, with what is measured after each epoch, and of evaluation, in strict fp32."""

    training: float
    judging: float


# Peak TFLOP/s, TF32 on tensor cores without sparsity and FP32, by NVIDIA's data sheets of the T4 (which has no TF32)
# and of the H100 SXM (its 989 is with sparsity), and by the appendix of its white paper on Ada.
CARDS = {"NVIDIA T4": (0.0, 8.1), "NVIDIA RTX 4090": (82.6, 82.6), "NVIDIA H100": (494.5, 67.0)}
# What is assumed to be sustained of the peaks: tensor cores wait for memory more often than they compute.
TF32_SHARE, FP32_SHARE = 0.25, 0.5
WORTH_MEASURING = 50e12  # FLOP; less is digits, or some minutes of a core


class Forecast:
    """Called as estimate() is, for one run after the other; str() is what its estimates rest on.

    card '' is this machine; with a name of CARDS, times are as if on such a card. Raises UsageError for another one.
    """

    def __init__(self, card: str = ""):
        self.card, self.flop = card, 0.0
        self.rates = {card: assumed(card)} if card else {}

    def __call__(self, config: RunConfig, columns: Mapping[str, int], device: str, speed: str) -> Cost:
        cost, name = counted(config, columns), self.card or f"{config.arch} in {config.precision}"
        if not self.card:
            self.rates[name] = rate(config, device, speed)
        self.flop += cost.total
        return at(self.rates[name], cost)

    def __str__(self) -> str:
        rates = "; ".join(
            f"{name} {scaled(rate.training)}/s in training, {scaled(rate.judging)}/s in evaluation"
            for name, rate in self.rates.items()
        )
        shares = f"{TF32_SHARE:.0%} of the TF32 peak or {FP32_SHARE:.0%} of the FP32 peak, whichever is more"
        basis = f"assumed: {rates} ({shares}; in evaluation FP32)" if self.card else f"measured here: {rates}"
        return f"~ is an estimate: {scaled(self.flop)} counted; {basis}"


def estimate(config: RunConfig, columns: Mapping[str, int], device: str, speed: str) -> Cost:
    """The seconds of a run on this machine; columns as of flops.counted()."""
    return at(rate(config, device, speed), counted(config, columns))


def announced(configs: list[RunConfig], device: str, speed: str) -> str:
    """', about 3.1 h (281 PFLOP, counted)': to train some runs and look at them after each epoch; '' below a minute."""
    try:
        flop = sum(counted(config).total for config in configs)
        if flop < WORTH_MEASURING:
            return ""
        seconds = sum(estimate(config, {}, device, speed).total for config in configs)
    except Exception:  # such as no memory for another network: no reason not to train
        return ""
    return f", about {spoken(seconds)} ({scaled(flop)}, counted)" if seconds > 60 else ""


def assumed(card: str) -> Rate:
    """What a card of CARDS is taken to sustain; cuDNN may use TF32 in training only. Raises UsageError for another."""
    one_of("card", card, CARDS)
    tf32, fp32 = CARDS[card]
    strict = 1e12 * FP32_SHARE * fp32
    return Rate(max(strict, 1e12 * TF32_SHARE * tf32), strict)


def at(rate: Rate, cost: Cost) -> Cost:
    """The seconds of a cost in FLOP."""
    columns = {column: flop / rate.judging for column, flop in cost.columns.items()}
    return Cost(cost.training / rate.training, cost.measuring / rate.training, columns)


def spoken(seconds: float) -> str:
    """'42 s', '12 min', '3.1 h' or '4.2 days': no more digits than an estimate has."""
    if seconds < 3600:
        return f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:.0f} min"
    number, unit = (seconds / 3600, "h") if seconds < 2 * 86400 else (seconds / 86400, "days")
    return f"{number:.{1 if number < 10 else 0}f} {unit}"


def scaled(flop: float) -> str:
    """'3,915 PFLOP', '281 PFLOP' or '43.4 GFLOP'."""
    size, unit = next((pair for pair in ((1e15, "PFLOP"), (1e12, "TFLOP")) if flop >= pair[0]), (1e9, "GFLOP"))
    return f"{flop / size:.3g} {unit}" if flop < 100 * size else f"{flop / size:,.0f} {unit}"


# Measuring


def rate(config: RunConfig, device: str, speed: str) -> Rate:
    """This machine's, for a run's network, dataset, precision and batch; measured once a process, in some ten seconds.

    'compile' is taken for 'fast': to compile takes longer than that.
    """
    network = config.arch, config.dataset, config.precision, config.batch_size
    return measured(*network, device, "plain" if speed == "plain" else "fast")


@functools.cache
def measured(arch: str, dataset: str, precision: str, batch_size: int, device: str, speed: str) -> Rate:
    """rate(), by steps of PGD-AT, and by PGD in strict fp32."""
    config = plain(arch=arch, dataset=dataset, precision=precision, batch_size=batch_size)
    x, y, index = made_up(dataset, batch_size, device)
    step = first_step(config, y, speed=speed)
    step.start_epoch(1)
    take, warm_up = (captured(step), WARM_UP + 1) if speed == "fast" and y.is_cuda else (step, 1)
    target, attack = attack_target(step.model, speed).refresh(), config.attack(steps=config.attack_steps)
    few = batch_size if y.is_cuda else min(2, batch_size)  # a GPU takes as long for two images as for a batch
    trained = images_a_second(lambda n: take(x[:n], y[:n], index[:n]), few, batch_size, warm_up)
    with exact_fp32():
        attacked = images_a_second(lambda n: attack(target, x[:n], y[:n], step.generator), few, batch_size)
    return Rate(trained * step_flop(config), attacked * attack.steps * passes(arch, dataset)[1])


STEP_SECONDS = 1.5  # for a step that is timed; where the batch takes a CPU longer, it is made smaller


def images_a_second(work: Callable[[int], Tensor], few: int, most: int, warm_up: int = 1) -> float:
    """The median of two calls or more of work(n), n being as many images, from few to most, as fit STEP_SECONDS."""

    def seconds(n: int) -> float:
        started = time.perf_counter()
        work(n).sum().item()  # waits for the device
        return time.perf_counter() - started

    each = min(seconds(few), seconds(few)) / few
    n = max(few, min(most, int(STEP_SECONDS / each)))
    for _ in range(warm_up):
        seconds(n)
    times = [seconds(n), seconds(n)]
    while sum(times) < STEP_SECONDS and len(times) < 20:
        times.append(seconds(n))
    return n / median(times)
