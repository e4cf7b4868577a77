"""The parts of AutoAttack (Croce & Hein 2020, arXiv 2003.01690), as attacks; the attacking is pyautoattack's."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from sglrlib.checks import UsageError, one_of, within

_LOG = logging.getLogger(__name__)
_LOG.addHandler(logging.NullHandler())  # its word on vanishing gradients is for sanity.py to say


@dataclass(frozen=True)
class Part:
    """One part of AutoAttack's standard version for l_inf, a name of PARTS, with the version's settings.

    eps is in pixel units of [0, 1]. iterations 0 is the standard's: 100, for Square 5,000 queries. The random start
    of each batch comes from seed alone, so flags are those of pyautoattack on the same batches of batch_size.
    Raises UsageError for an unknown part or values out of range.
    """

    batch_size: ClassVar[int] = 250
    eps: float
    part: str
    iterations: int = 0
    seed: int = 0
    cascade: str = ""  # the attack whose last part this is: on its own it is weaker, so correct() refuses it

    def __post_init__(self):
        one_of("part", self.part, PARTS)
        within("eps", self.eps, 0, 1)
        within("iterations", self.iterations, 0)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Adversarial images for x (N, C, H, W) in [0, 1] and labels y (N,), or x itself where none was found.

        The model must be in eval mode. Raises UsageError where it has too few classes.
        """
        classes = model(x[:1]).shape[1]
        if classes < 4:
            raise UsageError(f"AutoAttack's losses need at least 4 classes; this model has {classes}.")
        settings = dict(norm="Linf", eps=self.eps, seed=self.seed, device=x.device, n_restarts=1)
        attack = PARTS[self.part](model, classes, self.iterations, settings)
        with torch.no_grad(), own_random_stream():
            return attack.perturb(x.clone(), y.clone()).detach()


@dataclass(frozen=True)
class Square(Part):
    """Square alone (Andriushchenko et al. 2020, arXiv 1912.00049): 5,000 queries, its schedule not rescaled."""

    part: str = "square"


@contextmanager
def own_random_stream() -> Iterator[None]:
    """Within: torch's global generators, those of GPUs in use too, may be seeded at will. After: they are as before."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count() * torch.cuda.is_initialized())):
        yield


def _apgd_ce(model, classes, iterations, settings):
    return APGDAttack(model, n_iter=iterations or 100, rho=0.75, loss="ce", logger=_LOG, **settings)


def _apgd_t(model, classes, iterations, settings):
    targets = min(9, classes - 1)
    return APGDAttack_targeted(
        model, n_iter=iterations or 100, rho=0.75, n_target_classes=targets, logger=_LOG, **settings
    )


def _fab_t(model, classes, iterations, settings):
    targets = min(9, classes - 1)
    return FABAttack_PT(model, n_iter=iterations or 100, targeted=True, n_target_classes=targets, **settings)


def _square(model, classes, iterations, settings):
    return SquareAttack(model, n_queries=iterations or 5000, p_init=0.8, resc_schedule=False, **settings)


PARTS: dict[str, Callable] = {"apgd_ce": _apgd_ce, "apgd_t": _apgd_t, "fab_t": _fab_t, "square": _square}
