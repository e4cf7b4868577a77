"""The columns that a run's result can have beside its curve: which attacks judge it, by which names."""

from collections.abc import Callable, Sequence
from functools import partial

from sglrlib.checks import UsageError, one_of
from sglrlib.config import RunConfig
from sglrlib.method.attacks import Transfer, chain, named_attack
from sglrlib.store.results import CHECKPOINTS
from sglrlib.training.networks import load_model


def attacked(config: RunConfig, attacks: Sequence[str]) -> dict[str, Callable | None]:
    """The columns of attacks by their names: 'natural', and whatever comes before each in its cascade."""
    columns = ["natural", *(column for attack in attacks for column in chain(attack))]
    return {column: None if column == "natural" else white_box(config, column) for column in columns}


def transferred(
    config: RunConfig, source: RunConfig, attacks: Sequence[str] = ("pgd_10", "cw_inf"), which: str = "best"
) -> dict[str, Callable | None]:
    """The columns of attacks made on the network of another run, the source, its checkpoint which ('best' or 'last'):
    the black-box attacks of Table B.3. Their names are transfer_column()'s.

    Raises UsageError where the two runs are of different datasets, or an attack is a part of a cascade.
    """
    one_of("which", which, CHECKPOINTS)
    refuse_cascades(attacks)
    if source.dataset != config.dataset:
        raise UsageError(f"the source is trained on {source.dataset!r}: expected {config.dataset!r}, as the target.")
    made = {a: partial(on_another, white_box(config, a), source=source, which=which) for a in attacks}
    return dict(natural=None) | {transfer_column(a, source, which): build for a, build in made.items()}


def with_confidence(config: RunConfig, attacks: Sequence[str] = ("natural", "pgd_10")) -> dict[str, Callable | None]:
    """The columns with the probabilities that both checkpoints give to the test images, see Result.confidence().

    Every image is attacked there, also one that is misclassified as it is. Raises UsageError for a part of a cascade.
    """
    refuse_cascades(attacks)
    columns = {f"confidence {a}": None if a == "natural" else white_box(config, a) for a in attacks}
    return dict(natural=None) | columns


def white_box(config: RunConfig, attack: str) -> Callable:
    """What builds an attack of ATTACKS with a run's budget and step size."""
    return partial(named_attack, attack, config.eps_255 / 255, config.step_255 / 255)


def on_another(build: Callable, *, source: RunConfig, which: str) -> Transfer:
    """An attack, made on another run's network."""
    return Transfer(build(), load_model(source, which))


def refuse_cascades(attacks: Sequence[str]) -> None:
    """Raise UsageError for an unknown attack, or one that is only the last part of a chain of them."""
    for name in attacks:
        if len(chain(name)) > 2:
            raise UsageError(f"attacks = {name!r} is a cascade: expected a single attack; the nearest is 'apgd_ce'.")


def transfer_column(attack: str, source: RunConfig, which: str = "best") -> str:
    """The column of an attack made on another run's network: attack, architecture, checkpoint and hash of that run."""
    return f"{attack} from {source.arch} {which} {source.id.rsplit('-', 1)[1]}"
