"""Parts of one's own: a network, loss or metric that a constant names, found in a user's file.

    LOSS = "mine.py:boundary_loss"  # or in Python the object itself: LOSS = boundary_loss

A checkpoint keeps the text. What a checkpoint names is never imported: who loads it must name it himself.
"""

import importlib.util
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

from parts.errors import UserError, guess

_IN_FILE = re.compile(r"(?P<file>.+\.py):(?P<name>\w+)")


def is_own(value: Any) -> bool:
    """Whether a constant's value is no word of the project: the text "FILE.py:NAME", or an object."""
    return not isinstance(value, str) or bool(_IN_FILE.fullmatch(value))


def load_part(constant: str, value: Any, choices: Mapping[str, Any]) -> Any:
    """The object that a constant chooses: by a word of `choices`, by "FILE.py:NAME", or the value itself.

    The file is run once, as an import would. UserError: there is no such word, file or name in the file, or the file
    cannot be run.
    """
    if not isinstance(value, str):
        return value
    if value in choices:
        return choices[value]
    match = _IN_FILE.fullmatch(value)
    if match is None:
        listed = "".join(f"{choice}, " for choice in choices)
        raise UserError(f'{constant} = {value!r}: expected is {listed}or a part of your own, "FILE.py:NAME".')
    with faults_of(constant, value):
        space = vars(_load_file(Path(match["file"]).resolve()))
    if match["name"] not in space:
        name = match["name"]
        raise UserError(f"{constant} = {value!r}: the file has no {name}.{guess(name, space)}")
    return space[match["name"]]


def name_of_part(value: Any) -> str:
    """The text by which a checkpoint keeps a part: "FILE.py:NAME" of an object, and a text itself.

    A functools.partial has the name of its function, an object without one that of its class, a lambda "lambda". What a
    notebook defines is of "main.py".
    """
    if isinstance(value, str):
        return value
    while isinstance(value, partial):
        value = value.func
    named = value if hasattr(value, "__qualname__") else type(value)
    file = getattr(sys.modules.get(named.__module__), "__file__", None) or f"{str(named.__module__).strip('_')}.py"
    return f"{Path(file).name}:{named.__qualname__.rpartition('.')[2].strip('<>')}"


@contextmanager
def faults_of(constant: str, value: Any, contract: str = "") -> Iterator[None]:
    """Turns an exception of a part of one's own into a UserError with its line in the user's file.

    `contract`: what the part must be, to be repeated in the message.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the user's code may raise anything
        place = ""
        for frame in traceback.extract_tb(error.__traceback__):
            if not frame.filename.startswith(_NOT_THE_USERS):
                place = f" ({Path(frame.filename).name}, line {frame.lineno})"
        lines = str(error).strip().splitlines() or [""]
        message = f"{constant} = {name_of_part(value)!r}: {type(error).__name__}: {lines[0][:300]}{place}"
        raise UserError("\n".join([message, *filter(None, [contract])])) from error


_NOT_THE_USERS = ("<", str(Path(__file__).parent), sys.prefix, sys.base_prefix)


@cache
def _load_file(file: Path) -> ModuleType:
    """The module of a Python file, under the file's own name unless another module has it."""
    if not file.is_file():
        raise FileNotFoundError(f"there is no such file in {file.parent}")
    name = file.stem
    known = importlib.util.find_spec(name)
    if known is not None and known.origin is not None and Path(known.origin).resolve() == file:
        return importlib.import_module(name)
    if known is not None:
        name = f"own_{name}"
    specification = importlib.util.spec_from_file_location(name, file)
    assert specification is not None and specification.loader is not None, "the name ends in .py"
    module = sys.modules[name] = importlib.util.module_from_spec(specification)
    try:
        specification.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
