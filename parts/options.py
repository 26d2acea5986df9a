"""The constants of a script as flags of its command line."""

import argparse
import ast
import io
import os
import sys
import textwrap
import tokenize
from pathlib import Path
from types import SimpleNamespace

from parts.errors import UserError

_NOT_PLAIN = object()


def settings_of(constants, argv=None, presets=None, positionals=()):
    """The constants of a script, which gives its `globals()`, overridden by the flags in `argv`.

    A constant is an upper-case name with a plain value (numbers, text, paths, None, tuples and dictionaries of
    these); names that begin with _ are the script's own. Its flag is named after it, and the comment behind it
    is the flag's help. A dictionary's is given as NAME=VALUE, a value being a number, or several with commas
    between; one of another form is a constant where it is annotated, else a table that the script has imported.
    Where the value does not tell what else it may be, an annotation does: `ENCODER: str | None = None`.
    Without `argv` the command line counts if this is the script that was started, and nothing where it was
    imported or pasted into a notebook.
    `presets` maps the name of a boolean constant to {constant: value}, which replaces constants where that
    boolean is on; a flag wins over both. `positionals`: (name, add_argument keywords).
    Returns a namespace with the constants' own names. UserError: a flag's value of the wrong kind.
    """
    if argv is None:
        started = constants["__name__"] == "__main__" and "__file__" in constants  # a notebook's cell has no file
        argv = sys.argv[1:] if started else []
    annotations = constants.get("__annotations__") or constants.get("__annotate__", lambda form: {})(1)  # Python 3.14
    own = _assigned(constants.get("__file__"))  # imported names are not the script's
    plain = {
        name: _plain(value)
        for name, value in constants.items()
        if name.isupper() and name[0] != "_" and (own is None or name in own)
    }
    values = {
        name: value
        for name, value in plain.items()
        if value is not _NOT_PLAIN and (name in annotations or not isinstance(value, dict) or _is_named_numbers(value))
    }
    reasons = _comments(constants.get("__file__"))
    kinds = {name: _kinds(value, annotations.get(name)) for name, value in values.items()}
    parser = argparse.ArgumentParser(
        prog=f"python {Path(constants.get('__file__', 'script.py')).name}",
        description=constants["__doc__"],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Every flag is a constant at the top of the script: edit it there to change it for good.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for name, keywords in positionals:
        parser.add_argument(name, **keywords)
    for name, value in values.items():
        _add_flag(parser, name, value, kinds[name], reasons.get(name, ""))
    given = vars(parser.parse_args(argv))
    flags = {name: _read(name, value, kinds.get(name)) for name, value in given.items()}
    for switch, preset in (presets or {}).items():
        if flags.get(switch, values[switch]):
            values |= preset
    return SimpleNamespace(**(values | flags))


def table(settings):
    """The settings as lines to print, one constant each."""
    width = max(map(len, vars(settings)))
    lines = []
    for name, value in vars(settings).items():
        line, indent = f"  {name:<{width}}  {value!r}", " " * (width + 5)  # a continued one begins behind the bracket
        if isinstance(value, (tuple, dict)):
            line = textwrap.fill(line, 118, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        lines.append(line)
    return "\n".join(lines)


def _plain(value):
    """A constant's value in plain types, which print, pickle and compare alike wherever they come from."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, (list, tuple)):
        items = tuple(map(_plain, value))
        return _NOT_PLAIN if _NOT_PLAIN in items else items
    if isinstance(value, dict):
        items = {_plain(key): _plain(it) for key, it in value.items()}
        return _NOT_PLAIN if _NOT_PLAIN in (*items, *items.values()) else items
    if isinstance(value, os.PathLike) or type(value).__name__ == "device":
        return str(value)
    return value.item() if getattr(value, "shape", None) == () else _NOT_PLAIN  # NumPy's numbers


def _are_numbers(value):
    """Whether it is a number, or a tuple of one or more."""
    several = value if isinstance(value, tuple) else (value,)
    return bool(several) and all(type(it) in (int, float) for it in several)


def _is_named_numbers(value):
    """Whether it is a dictionary that a flag can give."""
    return all(type(name) is str and _are_numbers(it) for name, it in value.items())


def _assigned(file):
    """The names that a script assigns at its top level; None where there is no file to read."""
    try:
        statements = ast.parse(Path(file).read_text(encoding="utf-8")).body
    except (TypeError, OSError, SyntaxError):
        return None
    targets = [target for node in statements for target in getattr(node, "targets", [getattr(node, "target", None)])]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _comments(file):
    """{NAME: the comment behind its assignment at the top level of a script}."""
    try:
        source = Path(file).read_text(encoding="utf-8")
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
        statements = ast.parse(source).body
    except (TypeError, OSError, SyntaxError):  # no file, or one that is being edited: help without reasons
        return {}
    comments = {token.start[0]: token.string.lstrip("# ").strip() for token in tokens if token.type == tokenize.COMMENT}
    targets = {
        node.end_lineno: getattr(node, "target", None) or getattr(node, "targets", [None])[0] for node in statements
    }
    return {target.id: comments[line] for line, target in targets.items() if line in comments and hasattr(target, "id")}


def _kinds(value, annotation):
    """The names of the types that a constant may have."""
    if isinstance(annotation, str):
        return {type(value).__name__, *annotation.replace("None", "NoneType").split(" | ")}
    allowed = getattr(annotation, "__args__", (annotation,)) if annotation else ()
    return {type(value).__name__, *(kind.__name__ for kind in allowed)}


def _add_flag(parser, name, value, kinds, reason):
    flag = "--" + name.lower().replace("_", "-")
    text = f"{reason} (default: {_as_typed(value)})".strip().replace("%", "%%")
    if kinds == {"bool"}:
        parser.add_argument(flag, dest=name, action=argparse.BooleanOptionalAction, help=text)
        return
    words = {"dict": "NAME=VALUE", "tuple": "VALUE"}
    names = sorted(words.get(kind, kind.upper()) for kind in kinds - {"NoneType"})
    if "int" in kinds and "VALUE" in names:
        names.remove("VALUE")
    several = "+" if kinds & {"tuple", "dict"} else None
    parser.add_argument(flag, dest=name, nargs=several, metavar=" or ".join(names) or "VALUE", help=text)


def _as_typed(value):
    """A constant's value as its flag takes it."""
    if isinstance(value, dict):
        given = {name: ",".join(map(str, it)) if isinstance(it, tuple) else it for name, it in value.items()}
        return " ".join(f"{name}={it}" for name, it in given.items())
    return " ".join(map(str, value)) if isinstance(value, tuple) else value


def _read(name, given, kinds):
    """A flag's value: 8 is a number, none is None, 8 9 are two where several are taken, the rest is text.

    Where a dictionary is taken, a=8 b=9 are one, and numbers are a tuple, even a single one.
    Whether a constant may be that number, or None, refuse_wrong decides.
    """
    if kinds is None or isinstance(given, bool):  # a positional, a switch
        return given
    numbers = kinds & {"int", "float"}
    only_text = "str" in kinds and not numbers and "tuple" not in kinds
    given = given if isinstance(given, list) else [given]
    flag = f"--{name.lower().replace('_', '-')}"
    if "dict" in kinds and any("=" in text for text in given):
        return _named(flag, given)
    items = [_literal(text, only_text) for text in given]
    alone = kinds - {"NoneType"} == {"tuple"} and items[0] is not None  # one number where only several are taken
    several = len(items) > 1 or alone or ("dict" in kinds and type(items[0]) in (int, float))
    value = tuple(items) if several else items[0]
    kind = type(value).__name__
    fits = value is None or kind in kinds or (numbers and kind in ("int", "float")) or kinds == {"NoneType"}
    if several and ("str" not in kinds or "dict" in kinds):  # several words are names that lack their values
        fits = fits and not any(isinstance(item, str) for item in items)
    if not fits:
        words = {"int": "a number", "float": "a number", "NoneType": "none", "str": "text", "tuple": "numbers"}
        words["dict"] = "NAME=VALUE"
        expected = " or ".join(dict.fromkeys(words.get(kind, kind) for kind in sorted(kinds)))
        raise UserError(f"{flag} takes {expected}, got {value!r}.")
    return value


def _named(flag, words):
    """{name: number, or tuple of numbers} of a flag's `words`, NAME=VALUE."""
    values, wrong = {}, []
    for word in words:
        name, equals, text = word.partition("=")
        value = _literal(text, False)
        if not (name and equals and text):
            wrong.append(f"{word!r} lacks {'its value' if name and equals else 'its name, or its value'}")
        elif not _are_numbers(value):
            wrong.append(f"the value in {word!r} is no number")
        elif name in values:
            wrong.append(f"{name!r} is given twice")
        else:
            values[name] = value
    if wrong:
        raise UserError(
            f"{flag}: {', '.join(wrong)}. Give values alone, or NAME=VALUE for each, without spaces around =. A value "
            "is a number (3), a colour (0xFF0000), or several of them with commas between (3,4)."
        )
    return values


def _literal(text, only_text):
    if text.lower() == "none":
        return None
    try:
        return text if only_text else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


# What a constant must be: (test, words for one that fails it), for refuse_wrong.


def whole(least):
    """A whole number."""
    return (lambda v: type(v) is int and v >= least), f"a whole number, {least} or more"


def number(least=0.0, below=float("inf"), above=float("-inf"), words=None):
    """A number, `least` <= it < `below` and `above` < it."""
    limits = f"{above} < it" if above >= least else f"{least} or more"
    limits += f", below {below}" if below < float("inf") else ""
    return (lambda v: type(v) in (int, float) and least <= v < below and v > above), words or f"a number, {limits}"


def one_of(*choices):
    """One of some words."""
    return (lambda v: v in choices), f"one of {', '.join(map(str, choices))}"


def sizes(words, count=None):
    """A tuple of whole numbers above 0; `count` of them, if given."""
    return (
        lambda v: isinstance(v, tuple) and len(v) == (count or len(v) or 1) and all(type(n) is int and n > 0 for n in v)
    ), words


def refuse_wrong(settings, **rules):
    """UserError that lists every constant which its rule, (test, words), does not hold for."""
    wrong = [
        f"{name} = {value!r}: {words}"
        for name, (test, words) in rules.items()
        if not test(value := getattr(settings, name))
    ]
    if wrong:
        raise UserError("These constants cannot be used:\n  " + "\n  ".join(wrong))
