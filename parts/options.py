"""The constants at the top of a script: what each may be, its flag, and all of them as settings.

    NUM_EPOCHS = 20  # how often every image is seen
    SIZE: tuple | None = (320, 480)  # height and width
    _RULES = dict(NUM_EPOCHS=whole(1), SIZE=optional(sizes(2)))

    settings = settings_of(globals(), argv, rules=_RULES)
    settings.NUM_EPOCHS  # 5 after `python script.py --num-epochs 5`

A constant is an upper-case name that the script itself assigns: not an imported one, and none that begins with _. A
comment "# ---- heading" above some of them makes them a group in --help.
A constant that chooses a part (a loss, a network) takes one of the project's words, "mine.py:name", or the object
itself; parts/own.py gives the object for all of them.
Without a rule in the table a constant follows the rule of its value: True makes a switch, 5e-4 takes a number, "adamw"
text, (1, 2) numbers. A constant that is any other object has no flag.
"""

import argparse
import ast
import functools
import io
import os
import symtable
import sys
import textwrap
import tokenize
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from parts.errors import UserError, guess
from parts.own import name_of_part
from parts.rules import Rule, is_plain, rule_of

# ---- a script's text: which names it assigns, and the comments behind them


@dataclass(frozen=True)
class _Source:
    """What the text of a script says about the names of its top level."""

    file_name: str
    names: frozenset[str]  # all of them: assigned, imported, of functions and classes
    assigned: frozenset[str]
    declared: dict[str, Any]  # name -> its value, where the text has a single one, and no expression to evaluate
    comments: dict[str, str]  # name -> the comment behind its assignment
    headings: dict[str, str]  # name -> the heading "# ---- ..." above its assignment
    imports_all: bool  # `from ... import *`: there are more names than the text tells

    @classmethod
    def of(cls, file: str | None) -> "_Source | None":
        """None: there is no file, as in a notebook's cell, or one that is being edited."""
        if file is None:
            return None
        try:
            return cls._parsed(file, Path(file).read_text(encoding="utf-8"))
        except (OSError, SyntaxError):
            return None

    @classmethod
    @functools.lru_cache(maxsize=16)  # the settings of a script are read more than once in a run
    def _parsed(cls, file: str, written: str) -> "_Source":
        tree = ast.parse(written)
        symbols = symtable.symtable(written, file, "exec").get_symbols()
        names = frozenset(symbol.get_name() for symbol in symbols)
        assigned = frozenset(s.get_name() for s in symbols if s.is_assigned() and not s.is_namespace())
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        imports_all = any(node.names[0].name == "*" for node in imports)
        return cls(Path(file).name, names, assigned, _declared(tree), *_described(tree, written), imports_all)


def _assignments(tree: ast.Module) -> Iterator[tuple[str, ast.Assign | ast.AnnAssign]]:
    """(name, statement) of NAME = ... at the top level."""
    for statement in tree.body:
        if isinstance(statement, (ast.Assign, ast.AnnAssign)):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            yield from ((target.id, statement) for target in targets if isinstance(target, ast.Name))


def _declared(tree: ast.Module) -> dict[str, Any]:
    """`declared` of a _Source."""
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    stored = [node.id for node in names if isinstance(node.ctx, ast.Store)]
    declared = {}
    for name, statement in _assignments(tree):
        if statement.value is not None and stored.count(name) == 1:
            with suppress(ValueError, TypeError):  # an expression
                declared[name] = ast.literal_eval(statement.value)
    return declared


def _described(tree: ast.Module, written: str) -> tuple[dict[str, str], dict[str, str]]:
    """`comments` and `headings` of a _Source."""
    tokens = tokenize.generate_tokens(io.StringIO(written).readline)
    by_line = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    marked = {line: comment.lstrip("- ") for line, comment in by_line.items() if comment.startswith("---- ")}
    comments, headings = {}, {}
    for name, statement in _assignments(tree):
        lines = range(statement.lineno, (statement.end_lineno or 0) + 1)
        comments[name] = "".join([by_line[line] for line in lines if line in by_line][-1:])
        headings[name] = "".join([marked[line] for line in marked if line < statement.lineno][-1:])
    return comments, headings


# ---- constants


@dataclass(frozen=True)
class _Constant:
    """A constant of a script: its value, rule and reason (the comment behind it)."""

    value: Any
    rule: Rule | None  # None: an object, which has no flag
    reason: str = ""
    heading: str = ""  # of its group in --help


def _constants_of(space: Mapping[str, Any], source: _Source | None, rules: Mapping[str, Rule]) -> dict[str, _Constant]:
    """{name: constant} of a script whose globals are `space`, in the order of the script."""
    constants = {}
    for name, value in space.items():
        if not name.isupper() or name[0] == "_" or (source and name not in source.assigned):
            continue
        value = _plain(value)
        if source:  # its text tells the kind, as a notebook may have set a value of another
            rule = rules.get(name) or rule_of(_plain(source.declared.get(name, value)))
            constants[name] = _Constant(value, rule, source.comments.get(name, ""), source.headings.get(name, ""))
        elif rule := rules.get(name) or rule_of(value):  # an object without a rule may be an imported one
            constants[name] = _Constant(value, rule)
    return constants


def _shared_constants(
    space: Mapping[str, Any], shared: Mapping[str, Any], names: Collection[str] | None, own: Collection[str]
) -> dict[str, _Constant]:
    """{name: constant} of those that a script takes from the module `shared`, but for its `own` of the same name."""
    if "_SHARED" not in shared:  # a module of the user's, or of a package, that came first in sys.path
        raise UserError(
            f"{shared.get('__file__')}: was imported as {shared['__name__']}, in the place of this project's file of "
            "that name. Put the project's folder first in sys.path, before anything imports one of the two."
        )
    source = _Source.of(shared["__file__"])
    declared = _constants_of(shared, source, shared["_SHARED"])
    _refuse_misspelt(shared, source, declared)
    heading = f"images and masks: constants that stand in {Path(shared['__file__']).name}, for all scripts"
    constants = {}
    for name in shared["_SHARED"]:
        if name not in own and (names is None or name in names):
            value = _plain(space.get(name, declared[name].value))  # set in the script's module: train.CLASSES = "all"
            constants[name] = replace(declared[name], value=value, heading=heading)
    return constants


def _plain(value: Any) -> Any:
    """The value in plain types, which print, pickle and compare alike wherever they come from, where that can be."""
    if isinstance(value, (list, tuple, range)):
        return tuple(map(_plain, value))
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, os.PathLike) or type(value).__name__ == "device":
        return str(value)
    if getattr(value, "shape", None) == () and hasattr(value, "item"):  # NumPy's numbers
        return value.item()
    return value


def _refuse_misspelt(space: Mapping[str, Any], source: _Source | None, known: Collection[str]) -> None:
    """UserError: somebody has set a name in a module, as `train.LEARNINGRATE = 1`, which is no constant of it."""
    if source is None or source.imports_all:
        return
    module = Path(source.file_name).stem
    wrong = []
    for name in space:
        if name.isupper() and name[0] != "_" and name not in source.names and name not in known:
            line = f"{name} is no constant of {source.file_name}.{guess(name, known)}"
            wrong.append(f"{line} (`del {module}.{name}` takes it back.)")
    if wrong:
        raise UserError("\n".join(wrong))


# ---- the command line


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser that tells errors as a UserError, without the usage of fifty flags."""

    def error(self, message: str) -> Any:
        raise UserError(f"{self.prog}: {message}.\n`{self.prog} --help` lists all flags.")


def _flag(name: str) -> str:
    return "--" + name.lower().replace("_", "-")


def flags_of(settings: SimpleNamespace) -> list[str]:
    """The arguments of a command line that give these settings."""
    arguments = []
    for name, value in vars(settings).items():
        if isinstance(value, bool):
            arguments.append(_flag(name if value else f"no_{name}"))
        else:
            arguments += [_flag(name), *_arguments_of(value)]
    return arguments


def _arguments_of(value: Any) -> list[str]:
    """A constant's value as the arguments behind its flag."""
    if isinstance(value, dict):
        return [f"{name}={','.join(_arguments_of(item))}" for name, item in value.items()]
    if isinstance(value, tuple):
        return [str(item).replace(" ", "") if isinstance(item, tuple) else str(item) for item in value]
    return [str(value)]


def _add_flags(parser: argparse.ArgumentParser, constants: Mapping[str, _Constant]) -> None:
    """Adds a flag for each constant to a parser, those under one heading as a group."""
    groups: dict[str, Any] = {"": parser}
    for name, constant in constants.items():
        rule = constant.rule
        if rule is None:
            continue
        keywords: dict[str, Any] = dict(nargs=rule.nargs, metavar=rule.metavar)
        if rule.is_switch:
            keywords = dict(action=argparse.BooleanOptionalAction)
        help_text = f"{constant.reason} (default: {' '.join(_arguments_of(constant.value))})".strip().replace("%", "%%")
        if constant.heading not in groups:
            groups[constant.heading] = parser.add_argument_group(constant.heading)
        groups[constant.heading].add_argument(_flag(name), dest=name, help=help_text, **keywords)


def _make_parser(
    file_name: str, description: str | None, positionals: Sequence[tuple[str, dict[str, Any]]]
) -> argparse.ArgumentParser:
    """A script's parser, with its positional arguments and without flags."""
    parser = _Parser(
        prog=f"python {file_name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Every flag is a constant at the top of the script: edit it there to change it for good.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for name, keywords in positionals:
        parser.add_argument(name, **keywords)
    parser.usage = parser.format_usage().removeprefix("usage: ").strip() + " [--flag value ...]"  # not all fifty
    return parser


def _parse(parser: argparse.ArgumentParser, argv: Sequence[str], constants: Mapping[str, _Constant]) -> dict[str, Any]:
    """{name: value} of a command line. UserError: an argument that is none, or that cannot be read."""
    rules = {name: constant.rule for name, constant in constants.items() if constant.rule}
    given, rest = parser.parse_known_args(argv)
    unknown = [word.partition("=")[0] for word in rest if word.startswith("-")] or rest
    if unknown:
        flags = [_flag(name) for name in rules] + [_flag(f"no_{name}") for name in rules if rules[name].is_switch]
        line = f"{unknown[0]} is no argument of `{parser.prog}`.{guess(unknown[0].lower(), flags)}"
        raise UserError(f"{line}\n`{parser.prog} --help` lists all flags.")
    values = vars(given)
    for name, typed in values.items():
        if name in rules and not rules[name].is_switch:  # others are positional arguments, or read already
            try:
                values[name] = _plain(rules[name].read(typed))
            except UserError as error:
                raise UserError(f"{_flag(name)}: {error}") from None
    return values


# ---- settings


def settings_of(
    constants: Mapping[str, Any],
    argv: Sequence[str] | None = None,
    *,
    rules: Mapping[str, Rule] | None = None,
    shared: Mapping[str, Any] | None = None,
    shared_names: Collection[str] | None = None,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
    positionals: Sequence[tuple[str, dict[str, Any]]] = (),
) -> SimpleNamespace:
    """The constants of a script, overridden by the flags of a command line, under the constants' own names.

    constants     the script's `globals()`
    argv          the command line; None: that of the process, if this script was started, and none where it was
                  imported or pasted into a notebook
    rules         {constant: what it may be}, for those whose value alone does not tell
    shared        `vars()` of a module whose `_SHARED`, {constant: rule}, lists constants that this script has too; one
                  that is set in the script (`train.CLASSES = "all"`) wins
    shared_names  of these alone; None: all of them
    presets       {switch: {constant: value}}: values that replace constants where the switch is on; a flag wins
    positionals   (name, keywords of add_argument) of arguments without a flag

    UserError: a flag or constant that does not exist, or all that their rules refuse.
    """
    source = _Source.of(constants.get("__file__"))
    own = _constants_of(constants, source, rules or {})
    common: dict[str, _Constant] = {}
    if shared is not None:
        common = _shared_constants(constants, shared, shared_names, own)
    every = own | common
    _refuse_misspelt(constants, source, every)

    parser = _make_parser(Path(constants.get("__file__", "script.py")).name, constants["__doc__"], positionals)
    _add_flags(parser, every)

    if argv is None:
        started = constants["__name__"] == "__main__" and "__file__" in constants  # a notebook's cell has no file
        argv = sys.argv[1:] if started else []
    flags = _parse(parser, argv, every)
    result = {name: constant.value for name, constant in every.items()}
    for name, preset in (presets or {}).items():
        if flags.get(name, result[name]):
            result |= preset
    result |= flags
    _refuse_wrong(result, every)
    return SimpleNamespace(**result)


def _refuse_wrong(settings: Mapping[str, Any], constants: Mapping[str, _Constant]) -> None:
    """UserError that lists every constant whose rule refuses its value."""
    wrong = []
    for name, constant in constants.items():
        if constant.rule is not None and not constant.rule.accepts(settings[name]):
            wrong.append(f"{name} = {settings[name]!r}: {constant.rule.wanted}")
    for name, value in settings.items():
        texts = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(text, str | os.PathLike) and "\0" in os.fspath(text) for text in texts):
            wrong.append(f"{name} = {value!r}: without the character NUL, which no name of a file holds")
    if wrong:
        raise UserError("These constants cannot be used:\n  " + "\n  ".join(wrong))


def plain(settings: SimpleNamespace) -> dict[str, Any]:
    """The settings as a file can keep them: of an object its name."""
    return {name: _named(value) for name, value in vars(settings).items()}


def _named(value: Any) -> Any:
    if is_plain(value):
        return value
    if isinstance(value, tuple):
        return tuple(map(_named, value))
    return name_of_part(value)


def changed(settings: SimpleNamespace, *modules: Mapping[str, Any]) -> SimpleNamespace:
    """The settings that differ from what the files of these `modules` (their globals) declare."""
    declared: dict[str, Any] = {}
    for space in reversed(modules):
        declared |= {name: _plain(value) for name, value in space.items() if name.isupper()}
        if source := _Source.of(space.get("__file__")):  # a notebook may have set another value in the module
            declared |= {name: _plain(value) for name, value in source.declared.items()}
    differing = {name: value for name, value in vars(settings).items() if _named(declared.get(name)) != _named(value)}
    return SimpleNamespace(**differing)


def table(settings: SimpleNamespace) -> str:
    """The settings as lines to print, one constant each."""
    width = max(map(len, vars(settings)), default=0)
    indent = " " * (width + 5)  # a continued line begins behind the bracket
    lines = []
    for name, value in vars(settings).items():
        line = f"  {name:<{width}}  {value!r}"
        if not isinstance(value, str):  # whose spaces count
            line = textwrap.fill(line, 118, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        lines.append(line)
    return "\n".join(lines)
