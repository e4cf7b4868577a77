"""What any model is worth: whole attacks and the five checks against masked gradients, in one call."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from sglrlib.judging.evaluate import accuracy_interval, correct, withstood
from sglrlib.judging.sanity import Check, suspect
from sglrlib.method.attacks import chain, named_attack


@dataclass(frozen=True)
class Report:
    """What judge() found; printed, it is a table.

    flags: attack -> whether each image is right under it, (N,) bool, 'natural' first. checks: sanity.suspect()'s.
    """

    eps_255: float
    flags: dict[str, Tensor]
    checks: list[Check]

    def accuracy(self, attack: str) -> float:
        """The share of images that are right under an attack, or 'natural', in percent."""
        return 100 * self.flags[attack].double().mean().item()

    def interval(self, attack: str) -> tuple[float, float]:
        """The 95 % interval of accuracy() over the choice of images (Wilson), in percent."""
        return accuracy_interval(self.flags[attack])

    @property
    def suspected(self) -> list[str]:
        """The checks that the model fails; while there are any, its robust accuracies may be too high."""
        return [check.name for check in self.checks if not check.holds]

    def __str__(self):
        n = len(self.flags["natural"])
        lines = [f"eps = {self.eps_255:g}/255, {n} images; in brackets the 95 % interval over images"]
        for attack in self.flags:
            low, high = self.interval(attack)
            lines.append(f"{attack:12} {self.accuracy(attack):5.1f} %  [{low:.1f}, {high:.1f}]")
        return "\n".join([*lines, *map(str, self.checks)])


def judge(
    model: nn.Module, x: Tensor, y: Tensor, eps_255: float, *, attacks: Sequence[str] = ("autoattack",),
    step_255: float | None = None, speed: str = "fast",
) -> Report:  # fmt: skip
    """Accuracy of a model on images x (N, C, H, W) in [0, 1] with labels y (N,), natural and under attacks, and checks.

    attacks are names of attacks.ATTACKS. A cascade such as 'autoattack' is run whole, and its earlier parts are in the
    report too. step_255 is PGD's step, a quarter of the budget where it is not given. Where the model's forward cannot
    be traced, speed = 'plain' attacks the model itself. Raises UsageError as evaluate.outputs() does, and for a budget
    or an attack that cannot be, before any work.
    """
    eps, step = eps_255 / 255, (eps_255 / 4 if step_255 is None else step_255) / 255
    chains = [chain(attack) for attack in attacks]
    for names in chains:
        for name in names[1:]:
            named_attack(name, eps, step)
    flags = dict(natural=correct(model, x, y, speed=speed))
    for names in chains:
        for before, name in pairwise(names):
            if name not in flags:
                flags[name] = withstood(model, x, y, named_attack(name, eps, step), flags[before], speed=speed)
    return Report(eps_255, flags, suspect(model, x, y, eps))
