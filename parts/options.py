"""The constants at the top of a script: what each may be, its flag, and all of them as settings.

    NUM_EPOCHS = 20  # how often every image is seen
    SIZE: tuple | None = (320, 480)  # height and width
    _RULES = dict(NUM_EPOCHS=whole(1), SIZE=optional(sizes(2)))

    settings = settings_of(globals(), argv, rules=_RULES)
    settings.NUM_EPOCHS  # 5 after `python script.py --num-epochs 5`

A constant is an upper-case name that the script itself assigns: not an imported one, and none that begins with _.
A constant that chooses a part (a loss, a network) takes one of the project's words, "mine.py:name", or the object
itself; parts/own.py gives the object for all of them.
Without a rule in the table a constant follows the rule of its value: True makes a switch, 5e-4 takes a number, "adamw"
text, (1, 2) numbers. A constant that is any other object has no flag.
"""

import argparse
import ast
import difflib
import functools
import io
import math
import os
import re
import symtable
import sys
import textwrap
import tokenize
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from parts.errors import UserError
from parts.own import is_own, name_of_part

# ---- rules: what a constant may be

_LARGEST = 2**63 - 1  # whole number that PyTorch and the operating system take


@dataclass(frozen=True)
class Rule:
    """What a constant may be, and how its flag gives it."""

    wanted: str  # what it must be, in words, for messages
    accepts: Callable[[Any], bool]  # whether a value fits
    read: Callable[[list[str]], Any]  # the words behind the flag -> the value, or text that `accepts` refuses
    metavar: str  # what --help shows behind the flag
    several: bool = False  # the flag takes several words
    is_switch: bool = False  # --flag and --no-flag, without words


def switch() -> Rule:
    """True or False: --flag and --no-flag."""
    return Rule("True or False", lambda value: type(value) is bool, _read_one, "", is_switch=True)


def whole(least: int = 0, most: int = _LARGEST) -> Rule:
    """A whole number from `least` to `most`."""
    wanted = f"a whole number from {least} to {most}"
    if most == _LARGEST:
        wanted = f"a whole number, {least} or more, of at most 63 bits"
    return Rule(wanted, lambda value: type(value) is int and least <= value <= most, _read_one, "INT")


def number(least: float = 0.0, *, above: float = -math.inf, below: float = math.inf, most: float = math.inf) -> Rule:
    """A number: `least` <= number <= `most`, and `above` < number < `below`."""
    limits = []
    if above >= least:
        limits.append(f"above {above:g}")
    elif least > -math.inf:
        limits.append(f"{least:g} or more")
    if below < math.inf:
        limits.append(f"below {below:g}")
    if most < math.inf:
        limits.append(f"at most {most:g}")

    def accepts(value: Any) -> bool:
        return type(value) in (int, float) and least <= value <= most and above < value < below

    return Rule(", ".join(["a number", *limits]), accepts, _read_one, "NUMBER")


def any_text() -> Rule:
    """Text, which the flag takes as it is typed."""
    return Rule("text", lambda value: isinstance(value, str), lambda given: given[0], "TEXT")


def file_path(*suffixes: str) -> Rule:
    """A file or folder, as text or Path; with suffixes, a name that ends in one of them."""
    wanted = "a path"
    if suffixes:
        wanted = f"a file name that ends in {' or '.join(suffixes)}"

    def accepts(value: Any) -> bool:
        return isinstance(value, str) and (not suffixes or value.endswith(suffixes))

    return Rule(wanted, accepts, lambda given: given[0], "PATH")


def file_paths() -> Rule:
    """A file, or a tuple of several."""

    def accepts(value: Any) -> bool:
        return isinstance(value, str) or (isinstance(value, tuple) and set(map(type, value)) == {str})

    def read(given: list[str]) -> Any:
        return given[0] if len(given) == 1 else tuple(given)

    return Rule("a path, or several", accepts, read, "PATH", several=True)


def one_of(*choices: Any) -> Rule:
    """One of some words, numbers or None."""
    spelled = {str(choice): choice for choice in choices}

    def read(given: list[str]) -> Any:
        return spelled.get(given[0], _literal(given[0]))

    return Rule(f"one of {', '.join(spelled)}", lambda value: value in choices, read, "CHOICE")


def either(rule: Rule, *choices: str | None) -> Rule:
    """What the rule takes, or one of these words, or None."""
    spelled = {str(choice).lower(): choice for choice in choices}
    names = [rule.wanted, *(f'"{choice}"' if choice else "None" for choice in choices)]

    def accepts(value: Any) -> bool:
        is_word = value is None or isinstance(value, str)  # others, such as arrays, may not compare
        return (is_word and value in choices) or rule.accepts(value)

    def read(given: list[str]) -> Any:
        if len(given) == 1 and given[0].lower() in spelled:
            return spelled[given[0].lower()]
        return rule.read(given)

    return replace(rule, wanted=f"{', '.join(names[:-1])}, or {names[-1]}", accepts=accepts, read=read)


def optional(rule: Rule) -> Rule:
    """What the rule takes, or None."""
    return either(rule, None)


def part(*choices: str) -> Rule:
    """One of some words, or a part of one's own: "mine.py:name", or the object itself. See parts/own.py."""
    listed = "".join(f"{choice}, " for choice in choices)

    def accepts(value: Any) -> bool:
        if isinstance(value, str):
            return value in choices or is_own(value)
        return not _is_plain(value)

    return Rule(f'{listed}"FILE.py:NAME", or the object itself', accepts, lambda given: given[0], "NAME")


def sum_of(rule: Rule) -> Rule:
    """Parts joined with +, each perhaps with a factor: "0.5*bce + dice"; or a single object."""

    def accepts(value: Any) -> bool:
        if isinstance(value, str):
            terms = terms_of(value)
            return all(math.isfinite(factor) and rule.accepts(name) for factor, name in terms)
        return rule.accepts(value)

    return replace(rule, wanted=f"terms joined with +, each {rule.wanted}", accepts=accepts)


def terms_of(text: str) -> list[tuple[float, str]]:
    """[(0.5, "bce"), (1.0, "dice")] of "0.5*bce + dice"; the factor of a term that cannot be read is not a number."""
    terms = []
    for term in text.split("+"):
        factor, times, name = term.rpartition("*")
        value = 1.0
        if times:
            literal = _literal(factor.strip())
            value = literal if type(literal) in (int, float) else math.nan
        terms.append((value, name.strip()))
    return terms


def parts(*choices: str) -> Rule:
    """A tuple of any number of such parts."""
    one = part(*choices)

    def accepts(value: Any) -> bool:
        return isinstance(value, tuple) and all(map(one.accepts, value))

    def read(given: list[str]) -> Any:
        return () if given == ["none"] else tuple(given)

    return Rule(f"any number of: {one.wanted}", accepts, read, "NAME", several=True)


def sizes(count: int | None = None) -> Rule:
    """`count` whole numbers above 0, or any number of them: 320 480, 320x480 or 320,480 on the command line."""
    wanted = "height and width" if count == 2 else f"{count or 'one or more'} whole numbers above 0"

    def accepts(value: Any) -> bool:
        if not isinstance(value, tuple) or not value or len(value) != (count or len(value)):
            return False
        return all(type(side) is int and 0 < side < 2**31 for side in value)  # OpenCV takes no more

    return Rule(wanted, accepts, _read_numbers, "INT", several=True)


def weights() -> Rule:
    """ "auto", None, or several numbers above 0."""

    def accepts(value: Any) -> bool:
        several = isinstance(value, tuple) and len(value) > 1
        return several and _are_numbers(value) and all(0 < item < math.inf for item in value)

    return either(Rule("a number above 0 for each class", accepts, _read_numbers, "NUMBER", several=True), "auto", None)


def interval() -> Rule:
    """Two numbers above 0, the smaller one first: 0.7 1.4 on the command line."""

    def accepts(value: Any) -> bool:
        return isinstance(value, tuple) and _are_numbers(value) and len(value) == 2 and 0 < value[0] <= value[1] < 1e9

    return Rule("two numbers above 0, the smaller one first", accepts, _read_numbers, "NUMBER", several=True)


def any_value() -> Rule:
    """Anything plain: 8, alpha, none, or 8 9, which is a tuple. For constants that something else checks."""
    return Rule("a value, or several", lambda value: True, _read_values, "VALUE", several=True)


def named_numbers(*, names_needed: bool = True) -> Rule:
    """A dictionary of numbers, or of tuples of numbers: road=3 car=8,9 on the command line.

    Without `names_needed` also numbers alone, as a tuple, and any one word. UserError, when it is read: NAME=VALUE with
    a part missing, or twice the same name.
    """

    def accepts(value: Any) -> bool:
        if isinstance(value, tuple) and any(isinstance(item, str) for item in value):
            return False  # several words are names that lack their values
        return not names_needed or _is_named_numbers(value)

    def read(given: list[str]) -> Any:
        if any("=" in word for word in given):
            return _read_named(given)
        value = _read_values(given)
        if type(value) in (int, float):
            return (value,)
        return value

    wanted = "NAME=VALUE for each, where a value is a number (3), or several (3,4)"
    if not names_needed:
        wanted = f"values alone, or {wanted}"
    return Rule(wanted, accepts, read, "NAME=VALUE", several=True)


def _rule_of(value: Any) -> Rule | None:
    """The rule of a constant that has none in the script's table, by its value; None for an object without a flag."""
    if value is None:
        return any_value()
    if type(value) is bool:
        return switch()
    if type(value) in (int, float):
        return number(-math.inf)
    if isinstance(value, str):
        return any_text()
    if _are_numbers(value):
        return Rule("one or more numbers", _are_numbers, _read_numbers, "NUMBER", several=True)
    if _is_named_numbers(value):
        return named_numbers()
    return None


def _are_numbers(value: Any) -> bool:
    """Whether it is a number, or a tuple of one or more."""
    several = value if isinstance(value, tuple) else (value,)
    return bool(several) and all(type(item) in (int, float) for item in several)


def _is_named_numbers(value: Any) -> bool:
    """Whether it is a dictionary that a flag can give."""
    return isinstance(value, dict) and all(type(key) is str and _are_numbers(item) for key, item in value.items())


# ---- the words behind a flag


def _literal(word: str) -> Any:
    """The number or tuple that a word spells, None for none, and any other word itself."""
    if word.lower() == "none":
        return None
    try:
        return ast.literal_eval(word)
    except (ValueError, TypeError, SyntaxError):
        return word


def _read_one(given: list[str]) -> Any:
    return _literal(given[0])


def _read_values(given: list[str]) -> Any:
    """The value of one word, or a tuple of several."""
    return _literal(given[0]) if len(given) == 1 else tuple(map(_literal, given))


def _read_numbers(given: list[str]) -> Any:
    """(320, 480) of 320 480, of 320x480 and of 320,480; a single word that is no number remains text."""
    if len(given) == 1 and re.fullmatch(r"[1-9]\d*([xX×][1-9]\d*)+", given[0]):
        given = re.split("[xX×]", given[0])
    items: list[Any] = []
    for word in given:
        value = _literal(word)
        items += value if isinstance(value, (tuple, list)) else [value]
    if len(items) == 1 and not _are_numbers(items[0]):
        return items[0]
    return tuple(items)


def _read_named(given: list[str]) -> dict[str, Any]:
    """{name: number, tuple of numbers, or pattern with {}} of words NAME=VALUE. UserError: all that is wrong."""
    named: dict[str, Any] = {}
    wrong = []
    for word in given:
        name, equals, spelled = word.partition("=")
        value = _literal(spelled)
        if not name or not equals:
            wrong.append(f"{word!r} lacks its name, or its value")
        elif not spelled:
            wrong.append(f"{word!r} lacks its value")
        elif not _are_numbers(value) and "{}" not in spelled:  # which stands for a name, in a pattern of files
            wrong.append(f"the value in {word!r} is no number")
        elif name in named:
            wrong.append(f"{name!r} is given twice")
        else:
            named[name] = value
    if wrong:
        raise UserError(
            f"{', '.join(wrong)}. Give values alone, or NAME=VALUE for each, without spaces around =. A value is a "
            "number (3), a colour (0xFF0000), or several of them with commas between (3,4)."
        )
    return named


# ---- a script's text: which names it assigns, and the comments behind them


@dataclass(frozen=True)
class _Source:
    """What the text of a script says about the names of its top level."""

    file_name: str
    names: frozenset[str]  # all of them: assigned, imported, of functions and classes
    assigned: frozenset[str]
    declared: dict[str, Any]  # name -> its value, where the text has a single one, and no expression to evaluate
    comments: dict[str, str]  # name -> the comment behind its assignment
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
        return cls(Path(file).name, names, assigned, *_read_assignments(tree, written), imports_all)


def _assignments(tree: ast.Module) -> Iterator[tuple[str, ast.Assign | ast.AnnAssign]]:
    """(name, statement) of NAME = ... at the top level."""
    for statement in tree.body:
        if isinstance(statement, (ast.Assign, ast.AnnAssign)):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            yield from ((target.id, statement) for target in targets if isinstance(target, ast.Name))


def _read_assignments(tree: ast.Module, written: str) -> tuple[dict[str, Any], dict[str, str]]:
    """`declared` and `comments` of a _Source."""
    tokens = tokenize.generate_tokens(io.StringIO(written).readline)
    by_line = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    stored = [node.id for node in names if isinstance(node.ctx, ast.Store)]
    declared, comments = {}, {}
    for name, statement in _assignments(tree):
        for line in range(statement.lineno, (statement.end_lineno or 0) + 1):  # the last one, where there are several
            if line in by_line:
                comments[name] = by_line[line]
        if statement.value is not None and stored.count(name) == 1:
            with suppress(ValueError, TypeError):  # an expression
                declared[name] = ast.literal_eval(statement.value)
    return declared, comments


# ---- constants


@dataclass(frozen=True)
class _Constant:
    """A constant of a script: its value, rule and reason (the comment behind it)."""

    value: Any
    rule: Rule | None  # None: an object, which has no flag
    reason: str = ""


def _constants_of(space: Mapping[str, Any], source: _Source | None, rules: Mapping[str, Rule]) -> dict[str, _Constant]:
    """{name: constant} of a script whose globals are `space`, in the order of the script."""
    constants = {}
    for name, value in space.items():
        if not name.isupper() or name[0] == "_" or (source and name not in source.assigned):
            continue
        value = _plain(value)
        if source:  # its text tells the kind, as a notebook may have set a value of another
            rule = rules.get(name) or _rule_of(_plain(source.declared.get(name, value)))
            constants[name] = _Constant(value, rule, source.comments.get(name, ""))
        elif rule := rules.get(name) or _rule_of(value):  # an object without a rule may be an imported one
            constants[name] = _Constant(value, rule)
    return constants


def _shared_constants(
    space: Mapping[str, Any], shared: Mapping[str, Any], names: Collection[str] | None, own: Collection[str]
) -> dict[str, _Constant]:
    """{name: constant} of those that a script takes from the module `shared`, but for its `own` of the same name."""
    source = _Source.of(shared["__file__"])
    declared = _constants_of(shared, source, shared["_SHARED"])
    _refuse_misspelt(shared, source, declared)
    constants = {}
    for name in shared["_SHARED"]:
        if name in own or (names is not None and name not in names):
            continue
        constants[name] = declared[name]
        if name in space:  # set in the script's module: train.CLASSES = "all"
            constants[name] = replace(declared[name], value=_plain(space[name]))
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


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, [*value.keys(), *value.values()]))
    return value is None or type(value) in (bool, int, float, str)


def _question(name: str, known: Collection[str]) -> str:
    """ " Is ... meant?", with the known name that is most like this one; nothing if none is."""
    nearest = difflib.get_close_matches(name, known, n=1)
    return f" Is {nearest[0]} meant?" if nearest else ""


def _refuse_misspelt(space: Mapping[str, Any], source: _Source | None, known: Collection[str]) -> None:
    """UserError: somebody has set a name in a module, as `train.LEARNINGRATE = 1`, which is no constant of it."""
    if source is None or source.imports_all:
        return
    module = Path(source.file_name).stem
    wrong = []
    for name in space:
        if name.isupper() and name[0] != "_" and name not in source.names and name not in known:
            line = f"{name} is no constant of {source.file_name}.{_question(name, known)}"
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


def _as_typed(value: Any) -> str:
    """A constant's value as its flag takes it."""
    if isinstance(value, dict):
        return " ".join(f"{key}={_as_typed(item).replace(' ', ',')}" for key, item in value.items())
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return str(value)


def _add_flags(parser: Any, constants: Mapping[str, _Constant]) -> None:
    """Adds a flag for each constant to a parser, or to a group of one."""
    for name, constant in constants.items():
        rule = constant.rule
        if rule is None:
            continue
        keywords: dict[str, Any] = dict(nargs="+" if rule.several else 1, metavar=rule.metavar)
        if rule.is_switch:
            keywords = dict(action=argparse.BooleanOptionalAction)
        help_text = f"{constant.reason} (default: {_as_typed(constant.value)})".strip().replace("%", "%%")
        parser.add_argument(_flag(name), dest=name, help=help_text, **keywords)


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
    return parser


def _parse(parser: argparse.ArgumentParser, argv: Sequence[str], constants: Mapping[str, _Constant]) -> dict[str, Any]:
    """{name: value} of a command line. UserError: an argument that is none, or that cannot be read."""
    rules = {name: constant.rule for name, constant in constants.items() if constant.rule}
    given, rest = parser.parse_known_args(argv)
    unknown = [word.partition("=")[0] for word in rest if word.startswith("-")] or rest
    if unknown:
        flags = [_flag(name) for name in rules] + [_flag(f"no_{name}") for name in rules if rules[name].is_switch]
        line = f"{unknown[0]} is no argument of `{parser.prog}`.{_question(unknown[0].lower(), flags)}"
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
    _add_flags(parser, own)
    if shared is not None:
        module = Path(shared["__file__"]).name
        _add_flags(parser.add_argument_group(f"constants that stand in {module}, for all scripts"), common)

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
    if _is_plain(value):
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
