"""What a constant may be, how its flag gives it, and how a message tells it: a Rule, made by the functions here."""

import ast
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from parts.errors import UserError
from parts.own import is_own

_LARGEST = 2**63 - 1  # whole number that PyTorch and the operating system take


@dataclass(frozen=True)
class Rule:
    """What a constant may be, and how its flag gives it."""

    wanted: str  # what it must be, in words, for messages
    accepts: Callable[[Any], bool]  # whether a value fits
    read: Callable[[list[str]], Any]  # the words behind the flag -> the value, or text that `accepts` refuses
    metavar: str  # what --help shows behind the flag
    nargs: int | str = 1  # how many words the flag takes, as of argparse
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
        paths = value if isinstance(value, tuple) else (value,)
        return bool(paths) and all(isinstance(path, str) and path for path in paths)

    def read(given: list[str]) -> Any:
        return given[0] if len(given) == 1 else tuple(given)

    return Rule("a path, or several", accepts, read, "PATH", nargs="+")


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
        return not is_plain(value)

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
        value = _literal(factor.strip()) if times else 1.0
        terms.append((value if type(value) in (int, float) else math.nan, name.strip()))
    return terms


def parts(*choices: str) -> Rule:
    """A tuple of any number of such parts."""
    one = part(*choices)

    def accepts(value: Any) -> bool:
        return isinstance(value, tuple) and all(map(one.accepts, value))

    def read(given: list[str]) -> Any:
        return () if given == ["none"] else tuple(given)

    return Rule(f"any number of: {one.wanted}", accepts, read, "NAME", nargs="*")


def sizes(count: int | None = None) -> Rule:
    """`count` whole numbers above 0, or any number of them: 320 480, 320x480 or 320,480 on the command line."""
    wanted = "height and width" if count == 2 else f"{count or 'one or more'} whole numbers above 0"

    def accepts(value: tuple) -> bool:
        is_long = len(value) == count or (count is None and len(value) > 0)
        return is_long and all(type(side) is int and 0 < side < 2**31 for side in value)  # OpenCV takes no more

    return _numbers(wanted, accepts, "INT")


def weights() -> Rule:
    """ "auto", None, or several numbers above 0."""

    def accepts(value: tuple) -> bool:
        return len(value) > 1 and _are_numbers(value) and all(0 < item < math.inf for item in value)

    return either(_numbers("a number above 0 for each class", accepts), "auto", None)


def interval() -> Rule:
    """Two numbers above 0, the smaller one first: 0.7 1.4 on the command line."""

    def accepts(value: tuple) -> bool:
        return len(value) == 2 and _are_numbers(value) and 0 < value[0] <= value[1] < 1e9

    return _numbers("two numbers above 0, the smaller one first", accepts)


def _numbers(wanted: str, accepts: Callable[[tuple], bool], metavar: str = "NUMBER") -> Rule:
    """A tuple of numbers."""
    return Rule(wanted, lambda value: isinstance(value, tuple) and accepts(value), _read_numbers, metavar, nargs="+")


def any_value() -> Rule:
    """Anything plain: 8, alpha, none, or 8 9, which is a tuple. For constants that something else checks."""
    return Rule("a value, or several", lambda value: True, _read_values, "VALUE", nargs="+")


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
        return (value,) if type(value) in (int, float) else value

    wanted = "NAME=VALUE for each, where a value is a number (3), or several (3,4)"
    if not names_needed:
        wanted = f"values alone, or {wanted}"
    return Rule(wanted, accepts, read, "NAME=VALUE", nargs="+")


def rule_of(value: Any) -> Rule | None:
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
        return Rule("one or more numbers", _are_numbers, _read_numbers, "NUMBER", nargs="+")
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


def is_plain(value: Any) -> bool:
    """Whether a value is a number, text, True, False or None, or a tuple or dictionary of such."""
    if isinstance(value, tuple):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return all(map(is_plain, [*value.keys(), *value.values()]))
    return value is None or type(value) in (bool, int, float, str)


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
        name, _, spelled = word.partition("=")
        value = _literal(spelled)
        if not name or name in named or not (_are_numbers(value) or "{}" in spelled):  # {}: a name, in files' pattern
            wrong.append(repr(word))
        named[name] = value
    if wrong:
        raise UserError(
            f"not to be used: {', '.join(wrong)}. Give values alone, or NAME=VALUE once for each name, without spaces "
            "around =. A value is a number (3), a colour (0xFF0000), or several of them with commas between (3,4)."
        )
    return named
