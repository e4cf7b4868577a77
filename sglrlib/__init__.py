"""Training, attacks, evaluation and diagnostics behind the notebooks of the SGLR companion (CVPR 2024)."""

from importlib import import_module

# The face: each name's module is imported when it is first used.
_HOMES = dict(
    recipe="recipes", run="training.runs", load_model="training.networks", export="training.networks",
    judge="judging.report", register="doors",
)  # fmt: skip
__all__ = ["export", "judge", "load_model", "recipe", "register", "run"]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}: expected one of {', '.join(_HOMES)}.")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
