"""The source of code that is registered from outside, so that a run's name can depend on it."""

import ast
import dis
import functools
import hashlib
import inspect
import linecache
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor

from sglrlib.checks import UsageError

# (kind, name) of what is registered from outside -> its fingerprint(); what stands in the library is not here.
CODE: dict[tuple[str, str], str] = {}

PLAIN = (int, float, complex, str, bytes, bool, type(None), type(...))
MANY = (list, tuple, set, frozenset, dict)
WRAPPED = (MethodType, classmethod, staticmethod)


def fingerprint(entry: object) -> str:
    """Ten hex digits that change with the source of entry, a function, a class or an object made of those.

    With it go the base classes, functions, classes, modules and constants that it names, as far as they are neither of
    this library nor of an installed package. Files that the code reads are not seen, nor is the state of another
    library's objects. Raises UsageError where a source cannot be read, as in a shell.
    """
    return hashlib.sha256(described(entry, set()).encode()).hexdigest()[:10]


def described(value: Any, seen: set[int]) -> str:
    """The text of a value and of all that it names; what was seen already is only named."""
    if isinstance(value, PLAIN):
        return repr(value)
    if isinstance(value, MANY):
        items = [described(item, seen) for item in (value.items() if isinstance(value, dict) else value)]
        return f"{type(value).__name__}{sorted(items) if isinstance(value, (set, frozenset)) else items}"
    if isinstance(value, (Tensor, np.ndarray)):
        array = np.ascontiguousarray(value.detach().cpu().numpy() if isinstance(value, Tensor) else value)
        return f"{array.dtype}{array.shape}{hashlib.sha256(array.tobytes()).hexdigest()}"
    if isinstance(value, functools.partial):
        return described((value.func, value.args, value.keywords), seen)
    if isinstance(value, WRAPPED):
        return described((value.__func__, getattr(value, "__self__", None)), seen)
    if isinstance(value, property):
        return described((value.fget, value.fset), seen)
    name = getattr(value, "__qualname__", getattr(value, "__name__", type(value).__qualname__))
    if id(value) in seen or not is_own(value):
        return name
    seen.add(id(value))
    if isinstance(value, ModuleType):
        return Path(value.__file__).read_text()
    if isinstance(value, type):
        parts = [v for v in vars(value).values() if isinstance(v, (FunctionType, property, *WRAPPED)) and written(v)]
        constants = {k: v for k, v in vars(value).items() if not k.startswith("__") and isinstance(v, PLAIN + MANY)}
        return class_text(value) + described([*value.__bases__, *parts, constants], seen)
    if isinstance(value, FunctionType):
        known = {k: value.__globals__[k] for k in global_names(value.__code__) if k in value.__globals__}
        held = [cell.cell_contents for cell in value.__closure__ or () if filled(cell)]
        held = [each for each in held if not isinstance(each, type) or each.__qualname__ not in value.__qualname__]
        return text(value) + described([sorted(known.items()), held, value.__defaults__, value.__kwdefaults__], seen)
    return described([type(value), vars(value)], seen)  # an object of one's own class


def is_own(value: object) -> bool:
    """Whether something is neither of this library nor of Python's or an installed package, by its module."""
    name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
    name = name or type(value).__module__
    if name == "__main__":
        return True
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    foreign = name.split(".")[0] in sys.stdlib_module_names | {"sglrlib"}
    return not foreign and file.endswith(".py") and not {"site-packages", "dist-packages"} & {*Path(file).parts}


def written(part: Any) -> bool:
    """Whether a class's function stands in a file or cell, not made by a decorator such as dataclass."""
    function = inspect.unwrap(getattr(part, "__func__", getattr(part, "fget", part)))
    return bool(linecache.getlines(function.__code__.co_filename))


def filled(cell: CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # nothing in it yet
        return False


def global_names(code: CodeType) -> Iterable[str]:
    """The global names that a function's code reads, functions inside it included."""
    names = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return names.union(*(global_names(c) for c in code.co_consts if isinstance(c, CodeType)))


def text(code: FunctionType | type) -> str:
    """The statement that defines a function or class. Raises UsageError where it cannot be read."""
    try:
        return textwrap.dedent(inspect.getsource(code))
    except (OSError, TypeError) as error:
        raise UsageError(
            f"the source of {code.__qualname__} cannot be read, and a run's name depends on it: define it in a "
            "cell of a notebook (a class with a method of its own) or in a file."
        ) from error


def class_text(kind: type) -> str:
    """The class statement, found by one of its methods: inspect finds no class that a notebook's cell defines."""
    for function in (f for f in vars(kind).values() if isinstance(f, FunctionType)):
        lines = linecache.getlines(function.__code__.co_filename)
        for node in ast.walk(ast.parse("".join(lines))):
            if isinstance(node, ast.ClassDef) and node.name == kind.__name__:
                start = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                if start <= function.__code__.co_firstlineno <= node.end_lineno:
                    return textwrap.dedent("".join(lines[start - 1 : node.end_lineno]))
    return text(kind)
