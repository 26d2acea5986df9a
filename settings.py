"""A script's constants, and the flags that override them for one run.

A constant is an UPPER_CASE assignment at the top level of a script, with a comment behind it or in one
block with such a one. The comment is its reason and becomes the flag's help text.
`NUM_EPOCHS = 20  # ...` gives `--num-epochs N`, a boolean gives `--x` and `--no-x`, a tuple takes
several values. Where the default does not tell the type, an annotation does: `ENCODER: str | None = None`.
"""

import argparse
import ast
import io
import tokenize
from pathlib import Path
from types import SimpleNamespace

from errors import UserError


def settings_of(script, argv=None, presets=None, positionals=()):
    """The constants of the file `script`, overridden by `argv` (by default the command line).

    `presets` maps the name of a boolean constant to {constant: value}, which replaces defaults where
    that boolean is on: `{"DEMO": {"NUM_EPOCHS": 8}}`. A flag that was given wins over both.
    `positionals` is a sequence of (name, add_argument keywords).
    Returns a namespace with lower-case names; `.given` holds the names that the command line set.
    """
    source = Path(script).read_text(encoding="utf-8")
    constants = _constants(source)
    parser = argparse.ArgumentParser(
        prog=f"python {Path(script).name}",
        description=ast.get_docstring(ast.parse(source)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Every flag is a constant at the top of the script: edit it there to change it for good.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for name, keywords in positionals:
        parser.add_argument(name, **keywords)
    for name, (value, types, reason) in constants.items():
        _add_flag(parser, name, value, types, reason)
    given = vars(parser.parse_args(argv))
    values = {name.lower(): value for name, (value, _, _) in constants.items()}
    for switch, preset in (presets or {}).items():
        if given.get(switch.lower(), values[switch.lower()]):
            values.update({name.lower(): value for name, value in preset.items()})
    for name, value in given.items():
        if name.upper() in constants:
            value = _checked(name, value, *constants[name.upper()][:2])
        values[name] = value
    return SimpleNamespace(**values, given=sorted(given))


def plain(settings):
    """The settings as a dictionary of plain types, in their order of declaration."""
    return {name: value for name, value in vars(settings).items() if name != "given"}


def table(settings):
    """The settings as lines to print, one constant each."""
    values = plain(settings)
    width = max(map(len, values))
    return "\n".join(f"  {name.upper():<{width}}  {value!r}" for name, value in values.items())


def fits(test, value):
    """Whether `test(value)` is true; a value of a kind that it cannot be asked of does not fit."""
    try:
        return bool(test(value))
    except TypeError:
        return False


def _constants(source):
    """{NAME: (value, allowed types, reason)} for each constant that `source` declares."""
    comments = {
        token.start[0]: token.string.lstrip("# ").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    known, blocks, last = {}, [], None
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom):
            known.update({alias.asname or alias.name: (node.module, alias.name) for alias in node.names})
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if not (isinstance(target, ast.Name) and target.id.isupper()):
            continue
        if node.lineno - 1 != last:
            blocks.append({})
        blocks[-1][target.id] = node
        last = node.end_lineno
    constants = {}
    for block in blocks:
        if not any(node.end_lineno in comments for node in block.values()):
            continue
        for name, node in block.items():
            value = _value(name, node, known)
            annotation = getattr(node, "annotation", None)
            types = ast.unparse(annotation).split(" | ") if annotation else [type(value).__name__]
            constants[name] = (value, types, comments.get(node.end_lineno, ""))
    return constants


def _value(name, node, imported):
    """A literal's value, or that of a constant imported by name from a module beside the script."""
    if isinstance(node.value, ast.Name) and node.value.id in imported:
        module, name = imported[node.value.id]
        return getattr(__import__(module), name)
    try:
        value = ast.literal_eval(node.value)
    except ValueError:
        raise UserError(
            f"Line {node.lineno}: {name} = {ast.unparse(node.value)}: write the value itself, worked out."
        ) from None
    return tuple(value) if isinstance(value, list) else value


def _add_flag(parser, name, value, types, reason):
    flag = "--" + name.lower().replace("_", "-")
    shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
    text = f"{reason} (default: {shown})".strip().replace("%", "%%")
    if types == ["bool"]:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
        return
    parser.add_argument(
        flag,
        nargs="+" if "tuple" in types else None,
        type=_literal if types != ["str"] else str,
        metavar=" or ".join(kind.upper() for kind in types if kind not in ("None", "tuple")) or "VALUE",
        help=text,
    )


def _literal(text):
    """`8` is a number, `none` is None, anything else is text."""
    if text.lower() == "none":
        return None
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _checked(name, value, default, types):
    if isinstance(value, list):
        value = value[0] if len(value) == 1 and not isinstance(default, tuple) else tuple(value)
        if isinstance(value, tuple) and isinstance(default, tuple):
            kinds = {type(item) for item in default} | {int} if default else {type(v) for v in value}
            if not all(type(item) in kinds for item in value):
                raise UserError(f"--{name.replace('_', '-')} takes numbers, got {' '.join(map(str, value))}.")
    allowed = set(types) | ({"int"} if "float" in types else set())
    if value is not None and type(value).__name__ not in allowed or value is None and "None" not in allowed:
        expected = " or ".join("nothing" if kind == "None" else kind for kind in types)
        raise UserError(f"--{name.replace('_', '-')} takes {expected}, got {value!r}.")
    return float(value) if types == ["float"] else value
