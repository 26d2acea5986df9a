"""Constants that are Python: what they may be, and their flags."""

import sys

import numpy as np
import pytest
from helpers import script as run_script

import dataset
import predict
import train
from parts import options
from parts.errors import UserError
from parts.rules import (
    any_value,
    either,
    file_path,
    interval,
    named_numbers,
    number,
    one_of,
    optional,
    parts,
    sizes,
    whole,
)

SCRIPT = '''"""What it does."""
import os
from pathlib import Path
from os import EX_OK, EX_USAGE as IMPORTED
COUNT = 3  # how many
SHARE: int | float = 5  # a number or a fraction
SIZE = (160, 240)  # height and width
FLIP = True  # mirror
FOREGROUND: int | tuple | None = None  # values, 100 %
RATE = 1e-4  # a rate
FOLDER = "here"  # a folder
DEMO = False  # small
CLASSES: str | tuple | dict | None = None  # which classes

_HIDDEN = 4  # the script's own
def helper():
    LOCAL = 1  # no constant of the script
class UPPER:
    INSIDE = 1
'''
DEFAULTS = dict(COUNT=3, SHARE=5, SIZE=(160, 240), FLIP=True, FOREGROUND=None, RATE=1e-4, FOLDER="here", DEMO=False)
DEFAULTS |= dict(CLASSES=None)
RULES = dict(COUNT=whole(1), FOREGROUND=any_value(), CLASSES=named_numbers(names_needed=False))


@pytest.fixture
def script(tmp_path):
    """make(more text): the globals of a script with more lines, as after its import."""

    def make(more="", name="script.py"):
        path = tmp_path / name
        path.write_text(SCRIPT + more)
        space = {"__name__": "script", "__file__": str(path)}
        exec(compile(SCRIPT + more, str(path), "exec"), space)
        return space

    return make


def settings_of(space, flags="", **keywords):
    words = flags.split() if isinstance(flags, str) else flags
    return options.settings_of(space, words, **{"rules": RULES} | keywords)


def test_constants_are_the_defaults_and_flags_override_them(script):
    """Neither imported names, nor those of functions and classes, nor those that begin with _."""
    assert vars(settings_of(script())) == DEFAULTS
    flags = "--count 7 --share 0.25 --size 8 9 --no-flip --foreground 8 --rate 1 --folder 12 --demo --classes a=1"
    assert vars(settings_of(script(), flags)) == dict(
        COUNT=7, SHARE=0.25, SIZE=(8, 9), FLIP=False, FOREGROUND=8, RATE=1, FOLDER="12", DEMO=True, CLASSES={"a": 1}
    )


@pytest.mark.parametrize(
    "edit, flags, name, value",
    [
        ("COUNT = 2 * 2  # how many", "", "COUNT", 4),
        ("RATE = 0  # a rate", "--rate 0.5", "RATE", 0.5),
        ("RATE = 5e-4 * 8**0.5", "", "RATE", 5e-4 * 8**0.5),
        ("SIZE = [1280 // 4, 1918 // 4]", "", "SIZE", (320, 479)),
        ('FOLDER = Path("/data") / "cars"', "", "FOLDER", "/data/cars"),
        ('FOLDER = Path("/data") / "cars"', "--folder there", "FOLDER", "there"),
        ('FOLDER = "a" if os.sep == "/" else "b"', "", "FOLDER", "a"),
        ("FOREGROUND = 8", "--foreground none", "FOREGROUND", None),
        ("FOREGROUND = 8", "--foreground 8 9", "FOREGROUND", (8, 9)),
        ("FOREGROUND = 8", "--foreground alpha", "FOREGROUND", "alpha"),
        ("import numpy as np\nRATE = np.sqrt(0.25)", "", "RATE", 0.5),
        ("import torch\nFOLDER = torch.device('cpu')", "", "FOLDER", "cpu"),
        ("MINE = 3  # of my own", "--mine 4", "MINE", 4),
        ("import numpy as np\nMINE = {'a': np.int64(3), 'b': [4, 5]}", "", "MINE", {"a": 3, "b": (4, 5)}),
        ("MINE = {'a': 1}", "--mine b=2.5", "MINE", {"b": 2.5}),
        ("if os.sep == '/':\n    MINE = 3\nelse:\n    MINE = None", "--mine 4", "MINE", 4),
        ("MINE, YOURS = 3, 'x'", "--mine 4 --yours y", "YOURS", "y"),
        ("COUNT = None\nif os.sep == '/':\n    COUNT = 3", "--count 4", "COUNT", 4),
        ("FOLDER = 3\nif os.sep == '/':\n    FOLDER = None", "", "FOLDER", None),
        ("TABLE = {None: [()], 'h': [(), (3,)]}", "", "TABLE", {None: ((),), "h": ((), (3,))}),
    ],
)
def test_a_constant_is_python(script, edit, flags, name, value):
    """Whatever stands there: an expression, another type of number, a name of one's own."""
    settings = settings_of(script(edit), flags)
    assert getattr(settings, name) == value and type(getattr(settings, name)) is type(value)


def test_an_object_is_a_constant_without_a_flag(script, capsys):
    space = script("MINE = helper = print  # no plain value\nWORDS = ('a', 'b')\nHALVES = [os, 1]")
    settings = settings_of(space)
    assert settings.MINE is print and settings.WORDS == ("a", "b") and settings.HALVES[0] is space["os"]
    plain = options.plain(settings)  # as a checkpoint keeps them
    assert plain["MINE"] == "builtins.py:print" and plain["WORDS"] == ("a", "b") and plain["HALVES"][1] == 1
    assert "MINE" in options.table(settings)
    with pytest.raises(UserError, match="--mine is no argument"):
        settings_of(space, "--mine 3")


@pytest.mark.parametrize("text", ["320 480", "320x480", "320X480", "320×480", "320,480", "(320,480)"])
def test_sizes_are_written_in_any_way(script, text):
    assert settings_of(script(), f"--size {text}").SIZE == (320, 480)
    assert settings_of(script("MINE = None"), f"--mine {text}", rules=dict(MINE=optional(sizes(2)))).MINE == (320, 480)


@pytest.mark.parametrize(
    "flags, value",
    [
        ("", None),
        ("all", "all"),
        ("none", None),
        ("0 3 8", (0, 3, 8)),
        ("3", (3,)),
        ("0x000000 0xFF0000", (0, 0xFF0000)),
        ("road=3 car=8", {"road": 3, "car": 8}),
        ("road=3", {"road": 3}),
        ("road=road/{} car={}_car", {"road": "road/{}", "car": "{}_car"}),
        ("road=0xFF0000 car=8,9 3=-1", {"road": 0xFF0000, "car": (8, 9), "3": -1}),
    ],
)
def test_a_dictionary_is_given_as_names_and_values(script, flags, value):
    given = settings_of(script(), f"--classes {flags}" if flags else "").CLASSES
    assert given == value and type(given) is type(value)
    assert not isinstance(value, dict) or list(given) == list(value)  # the order is the classes'


@pytest.mark.parametrize(
    "flags, message",
    [
        (["road=3", "8"], "--classes: not to be used: '8'. Give values alone, or NAME=VALUE once for each name"),
        (["road=3", "car"], "used: 'car'."),
        (["road=", "car=8", "=3"], "used: 'road=', '=3'."),
        (["road", "=", "3"], "used: 'road', '=', '3'."),
        (["road=3", "car=8", "road=4"], "used: 'road=4'."),
        (["road=x", "car=none", "sky=1,y"], "used: 'road=x', 'car=none', 'sky=1,y'."),
        (["road", "car"], "CLASSES = ('road', 'car'): values alone, or NAME=VALUE"),
    ],
)
def test_names_and_values_that_cannot_be_meant_are_refused_in_words(script, flags, message):
    with pytest.raises(UserError) as told:
        settings_of(script(), ["--classes", *flags])
    assert message in str(told.value)


@pytest.mark.parametrize(
    "rule, good, bad, message",
    [
        (
            whole(1),
            [1, 50],
            [0, -1, 1.0, "1", True, None, (1,), 10**20],
            "a whole number, 1 or more, of at most 63 bits",
        ),
        (whole(1, 100), [1, 100], [0, 101], "a whole number from 1 to 100"),
        (number(), [0, 0.5], [-1, float("nan"), "x", None, True], "a number, 0 or more"),
        (number(above=0, below=1), [0.5], [0, 1, float("nan")], "a number, above 0, below 1"),
        (number(most=1), [0, 1, 0.3], [1.1, -0.1], "a number, 0 or more, at most 1"),
        (one_of(None, 8, "x"), [None, 8, "x"], [9, "y", ()], "one of None, 8, x"),
        (sizes(2), [(1, 2)], [(1,), (1, 2, 3), (0, 2), (1.0, 2), 8, None, "x"], "height and width"),
        (sizes(), [(1,), (1, 2, 3)], [(), (0,), (2**31,), None], "one or more whole numbers above 0"),
        (interval(), [(0.7, 1.4), (1, 1)], [(1.4, 0.7), (0, 1), (1,), 1.5, None, (1, "x")], "the smaller one first"),
        (optional(whole(0)), [None, 0], [-1, "none"], "a whole number, 0 or more, of at most 63 bits, or None"),
        (either(sizes(2), "own", None), [None, "own", (1, 2)], ["x", (1,)], 'height and width, "own", or None'),
        (file_path(".csv", ".csv.gz"), ["a.csv", "b.csv.gz"], ["a.png", None], "ends in .csv or .csv.gz"),
    ],
)
def test_rules_tell_what_a_constant_may_be(script, rule, good, bad, message):
    for value in good:
        space = script("MINE = None") | {"MINE": value}
        assert value == settings_of(space, rules=dict(MINE=rule)).MINE
        typed = ["--mine", *map(str, value if isinstance(value, tuple) else [value])]
        assert value == settings_of(space, typed, rules=dict(MINE=rule)).MINE
    for value in bad:
        with pytest.raises(UserError) as told:
            settings_of(script("MINE = None") | {"MINE": value}, rules=dict(MINE=rule))
        assert f"MINE = {value!r}: " in str(told.value) and message in str(told.value)


@pytest.mark.parametrize("words, value", [([], ()), (["none"], ()), (["x", "mine.py:y"], ("x", "mine.py:y"))])
def test_parts_may_be_none(script, words, value):
    space, rule = script("MINE = ('x',)"), parts("x")
    assert value == settings_of(space, ["--mine", *words], rules=dict(MINE=rule)).MINE


def test_all_that_is_wrong_is_told_at_once(script):
    space = script() | {"FLIP": "no", "FOLDER": None, "RATE": np.float64(2)}  # what a notebook has set
    with pytest.raises(UserError) as told:
        settings_of(space, "--count x --size a b --share fast")
    lines = str(told.value).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["COUNT", "SHARE", "SIZE", "FLIP", "FOLDER"]
    assert "COUNT = 'x': a whole number, 1 or more, of at most 63 bits" in str(told.value)


def test_nul_is_in_no_name_of_a_file(script):
    with pytest.raises(UserError, match=r"FOLDER = 'a\\x00b': without the character NUL"):
        settings_of(script() | {"FOLDER": "a\0b"})
    with pytest.raises(UserError, match="inputs = .*: without the character NUL"):
        predict.main(["a.png", "a\0b"])


def test_a_dictionary_is_shown_as_it_is_typed(script, capsys):
    many = {f"a class {i}": (i, i + 100) for i in range(30)}
    space = script(f"MINE = {{'road': 3, 'car': (8, 9)}}\nMANY = {many}\n")
    with pytest.raises(SystemExit):
        settings_of(space, "--help")
    printed = " ".join(capsys.readouterr().out.split())
    assert "(default: road=3 car=8,9)" in printed and "--classes NAME=VALUE [" in printed
    lines = options.table(settings_of(space)).splitlines()
    assert any(line.split(maxsplit=1) == ["MINE", "{'road': 3, 'car': (8, 9)}"] for line in lines)
    start = next(i for i, line in enumerate(lines) if line.split()[0] == "MANY")
    assert max(map(len, lines)) <= 118 and start + 5 < len(lines)
    assert " ".join(line.strip() for line in lines[start:]).split(maxsplit=1)[1] == repr(many)


def test_a_changed_module_is_obeyed(script):
    space = script() | {"COUNT": 9}
    assert settings_of(space).COUNT == 9 and settings_of(space, "--count 1").COUNT == 1


def test_a_misspelt_name_is_refused_with_the_one_that_is_meant(script):
    with pytest.raises(UserError) as told:
        settings_of(script() | {"COUNTS": 9})
    assert str(told.value) == "COUNTS is no constant of script.py. Is COUNT meant? (`del script.COUNTS` takes it back.)"
    assert settings_of(script("from os import *") | {"COUNTS": 9}).COUNT == 3  # nobody knows whose it is
    for word, nearest in (("--fold=3", "--folder"), ("--no-flop", "--no-flip"), ("--COUNT", "--count")):
        with pytest.raises(UserError) as told:
            settings_of(script(), [word])
        line, hint = str(told.value).splitlines()
        assert line.startswith(word.partition("=")[0]) and line.endswith(f"Is {nearest} meant?") and "--help" in hint
    for words in (["--unknown"], ["stray"], ["--count"]):
        with pytest.raises(UserError, match=r"(?s)script.py.*`python script.py --help` lists all flags"):
            settings_of(script(), words)


def test_a_notebooks_own_arguments_are_none_of_ours(monkeypatch, script):
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "/tmp/kernel-1.json"])
    space = script()
    assert settings_of(space, None).COUNT == 3  # imported
    cell = {name: value for name, value in space.items() if name != "__file__"} | {"__name__": "__main__"}
    assert settings_of(cell, None).COUNT == 3  # pasted into a cell: no __file__
    monkeypatch.setattr(sys, "argv", ["script.py", "--count", "7"])
    assert settings_of(space | {"__name__": "__main__"}, None).COUNT == 7


def test_a_preset_wins_over_the_constant_and_a_flag_over_the_preset(script):
    presets = {"DEMO": {"COUNT": 9, "SHARE": 1}}
    assert settings_of(script(), presets=presets).COUNT == 3
    settings = settings_of(script(), "--demo --share 2", presets=presets)
    assert (settings.COUNT, settings.SHARE) == (9, 2)


def test_help_gives_reasons_and_defaults(script, capsys):
    with pytest.raises(SystemExit) as end:
        settings_of(script("MINE = (\n    1  # inside brackets\n)\n# ---- sizes\nWIDE = 2  # a width"), "--help")
    printed = capsys.readouterr().out
    assert end.value.code == 0
    assert "how many (default: 3)" in printed and "values, 100 % (default: None)" in printed
    assert "--flip, --no-flip" in printed and "What it does." in printed
    assert "inside brackets (default: 1)" in printed and printed.count("--wide") == 1  # not in the line of usage, too
    assert printed.index("inside brackets") < printed.index("\nsizes:\n") < printed.index("--wide")
    assert not any(flag in printed for flag in ("--hidden", "--imported", "--ex-ok", "--local", "--inside"))


def test_the_table_names_every_constant(script):
    names = [line.split()[0] for line in options.table(settings_of(script())).splitlines()]
    assert names == list(DEFAULTS)


def test_shared_constants_stand_in_one_module(script, capsys):
    shared = script("MASKS = 'a'  # shared\nOWN = 1\n_SHARED = dict(MASKS=None, COUNT=None)\n", "data.py")
    shared["_SHARED"] = dict(MASKS=one_of("a", "b"), COUNT=whole(5))
    space = script(name="user.py")
    assert vars(settings_of(space, shared=shared)) == DEFAULTS | {"MASKS": "a"}  # the script's own COUNT is its own
    assert settings_of(space, shared=shared | {"MASKS": "b"}).MASKS == "b"  # dataset.CLASSES = ... in a notebook
    assert settings_of(space | {"MASKS": "b"}, shared=shared).MASKS == "b"  # train.CLASSES = ... likewise
    assert settings_of(space | {"MASKS": "b"}, "--masks a", shared=shared).MASKS == "a"
    assert vars(settings_of(space, shared=shared, shared_names=())) == DEFAULTS
    with pytest.raises(UserError, match="other.py: was imported as .*, in the place of this project's file"):
        settings_of(space, shared=script("", "other.py"))
    for wrong, message in (
        (dict(constants=space | {"MASKS": "c"}, shared=shared), "MASKS = 'c': one of a, b"),
        (dict(constants=space | {"MASKS": "b"}, shared=shared, shared_names=()), "MASKS is no constant of user.py"),
        (dict(constants=space, shared=shared | {"MASK": "b"}), "MASK is no constant of data.py. Is MASKS meant"),
    ):
        with pytest.raises(UserError, match=message):
            settings_of(wrong.pop("constants"), **wrong)
    with pytest.raises(SystemExit):
        settings_of(space, "--help", shared=shared)
    assert "constants that stand in data.py" in capsys.readouterr().out


# ---- the project's scripts


@pytest.mark.parametrize(
    "name, flag, message",
    [
        ("train.py", "--learning-rat=3", "Is --learning-rate meant?"),
        ("train.py", "--batchsize", "Is --batch-size meant?"),
        ("augment.py", "--mask-foregroud", "Is --mask-foreground meant?"),
        ("predict.py", "--classes", "predict.py"),  # which has MASK_NAME alone of the shared ones
        ("dataset.py", "--points", "dataset.py"),  # an imported name
    ],
)
def test_scripts_refuse_what_is_no_flag_in_two_lines(tmp_path, name, flag, message):
    words = [tmp_path, tmp_path] if name == "dataset.py" else []
    done = run_script(name, *words, flag, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.strip().splitlines()) == 2, done.stderr


def test_scripts_obey_what_a_notebook_sets_in_either_module(monkeypatch):
    monkeypatch.setattr(dataset, "CLASSES", "all")
    settings = options.settings_of(vars(train), [], rules=train._RULES, shared=vars(dataset))
    assert settings.CLASSES == "all" and settings.MASK_FOREGROUND is None
    monkeypatch.setattr(train, "MASK_FOREGROUND", 8, raising=False)
    assert options.settings_of(vars(train), [], shared=vars(dataset)).MASK_FOREGROUND == 8
    monkeypatch.setattr(train, "LEARNINGRATE", 1e-2, raising=False)
    with pytest.raises(UserError, match="LEARNINGRATE is no constant of train.py. Is LEARNING_RATE meant"):
        train.main([])
