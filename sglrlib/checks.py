"""Errors for people: the value, what was expected, and the nearest thing that would have been right."""

import difflib
from collections.abc import Iterable
from typing import Any

# Other common names, which no spelling would lead from to ours.
SYNONYMS = {"learning_rate": "lr", "wd": "weight_decay", "model": "arch", "epsilon": "eps_255", "num_epochs": "epochs"}


class UsageError(ValueError):
    """A name or value that cannot be right, found before any work has started."""


def one_of(what: str, value: object, known: Iterable[str]) -> None:
    """Raise UsageError unless value is among the known names; suggests the nearest."""
    known = list(known)
    if value not in known:
        folded = {name.lower(): name for name in known}
        near = difflib.get_close_matches(str(value).lower(), folded, n=1, cutoff=0.3)
        near = SYNONYMS.get(str(value)) if SYNONYMS.get(str(value)) in known else folded[near[0]] if near else ""
        hint = f" Did you mean {near!r}?" if near else ""
        raise UsageError(f"{what} = {value!r} is not known.{hint} Known: {', '.join(map(repr, known))}.")


def within(what: str, value: float, low: float, high: float = float("inf")) -> None:
    """Raise UsageError unless low <= value <= high (NaN is refused too); names the nearest value allowed."""
    if not low <= value <= high:
        nearest = low if not value > high else high
        expected = f"at least {low}" if high == float("inf") else f"from {low} to {high}"
        raise UsageError(f"{what} = {value!r} is out of range: expected {expected}; the nearest is {nearest}.")


def number(what: str, text: str) -> float:
    """The number that a text stands for. Raises UsageError where it is none."""
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{what} = {text!r}: expected a number, such as 0.5.") from None


def same_type(what: str, value: Any, example: Any) -> Any:
    """Return value with the type of example (an int passes for a float), or raise UsageError.

    papermill hands over 'true' as text and lists as text; both are refused here with the spelling that works.
    """
    wanted = type(example)
    if wanted is float and type(value) is int:
        return float(value)
    if wanted is tuple and isinstance(value, (list, tuple)):
        within(f"length of {what}", len(value), 0, 1000)
        member = example[0] if example else ""  # an empty list stands for one of names
        return tuple(same_type(f"{what}[{i}]", item, member) for i, item in enumerate(value))
    if type(value) is not wanted:
        hint = {
            bool: "True or False, capitalised",
            int: "a whole number, such as 3",
            float: "a number, such as 0.1 or 1.0e-3",
            str: "text",
            tuple: "a list, such as [0.5, 0.75] (with papermill: -y '{name: [0.5, 0.75]}')",
        }[wanted]
        raise UsageError(f"{what} = {value!r} is of type {type(value).__name__}: expected {hint}.")
    return value
