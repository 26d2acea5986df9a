"""Constants that are Python, their flags, and how scripts end, with real signals."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
from helpers import ROOT, WAIT

from parts.errors import UserError
from parts.options import number, one_of, refuse_wrong, settings_of, sizes, table, whole

SCRIPT = '''"""What it does."""
import os
from pathlib import Path
COUNT = 3  # how many
SHARE: int | float = 5  # a number or a fraction
SIZE = (160, 240)  # height and width
FLIP = True  # mirror
FOREGROUND: int | tuple | None = None  # values, 100 %
RATE = 1e-4  # a rate
FOLDER = "here"  # a folder
DEMO = False  # small

_HIDDEN = 4  # the script's own
def helper():
    LOCAL = 1  # no constant of the script
'''


def constants(source=SCRIPT, path=None):
    """The globals of a script that was imported."""
    space = {"__name__": "script"} | ({"__file__": str(path)} if path else {})
    exec(compile(source, str(path), "exec"), space)
    return space


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return constants(SCRIPT, path)


def test_constants_are_the_defaults(script):
    assert vars(settings_of(script, [])) == dict(
        COUNT=3, SHARE=5, SIZE=(160, 240), FLIP=True, FOREGROUND=None, RATE=1e-4, FOLDER="here", DEMO=False
    )


def test_flags_override_them(script):
    flags = "--count 7 --share 0.25 --size 8 9 --no-flip --foreground 8 --rate 1 --folder 12 --demo"
    assert vars(settings_of(script, flags.split())) == dict(
        COUNT=7, SHARE=0.25, SIZE=(8, 9), FLIP=False, FOREGROUND=8, RATE=1, FOLDER="12", DEMO=True
    )
    assert settings_of(script, ["--foreground", "8", "9"]).FOREGROUND == (8, 9)
    assert settings_of(script, ["--foreground", "none"]).FOREGROUND is None


@pytest.mark.parametrize(
    ("edit", "flags", "name", "value"),
    [
        ("COUNT = 2 * 2  # how many", "", "COUNT", 4),
        ("RATE = 0  # a rate", "--rate 0.5", "RATE", 0.5),
        ("RATE = 5e-4 * 8**0.5", "", "RATE", 5e-4 * 8**0.5),
        ("SIZE = [1280 // 4, 1918 // 4]", "", "SIZE", (320, 479)),
        ('FOLDER = Path("/data") / "cars"', "", "FOLDER", "/data/cars"),
        ('FOLDER = Path("/data") / "cars"', "--folder there", "FOLDER", "there"),
        ('FOLDER = "a" if os.sep == "/" else "b"', "", "FOLDER", "a"),
        ("FOREGROUND = 8", "--foreground none", "FOREGROUND", None),
        ("import numpy as np\nRATE = np.sqrt(0.25)", "", "RATE", 0.5),
        ("MINE = 3  # of my own", "--mine 4", "MINE", 4),
        ("MINE = helper = print  # no plain value", "", "COUNT", 3),
        ("import numpy as np\nMINE = {'a': np.int64(3), 'b': [4, 5]}", "", "MINE", {"a": 3, "b": (4, 5)}),
        ("MINE = {'a': 1}", "--mine b=2.5", "MINE", {"b": 2.5}),
    ],
)
def test_a_constant_is_python(tmp_path, edit, flags, name, value):
    """Whatever stands there: an expression, another type of number, a name of one's own."""
    settings = settings_of(constants(SCRIPT + edit, tmp_path / "script.py"), flags.split())
    assert getattr(settings, name) == value and type(getattr(settings, name)) is type(value)


CLASSES = "CLASSES: str | tuple | dict | None = None  # which classes\n"


@pytest.mark.parametrize(
    ("flags", "value"),
    [
        ("", None),
        ("all", "all"),
        ("none", None),
        ("0 3 8", (0, 3, 8)),
        ("3", (3,)),
        ("0x000000 0xFF0000", (0, 0xFF0000)),
        ("road=3 car=8", {"road": 3, "car": 8}),
        ("road=3", {"road": 3}),
        ("road=0xFF0000 car=8,9 3=-1", {"road": 0xFF0000, "car": (8, 9), "3": -1}),
    ],
)
def test_a_dictionary_is_given_as_names_and_values(flags, value):
    flags = ["--classes", *flags.split()] if flags else []
    found = settings_of(constants(SCRIPT + CLASSES), flags).CLASSES
    assert found == value and type(found) is type(value)
    assert list(found) == list(value) if isinstance(value, dict) else True  # the order is the classes'


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["road=3", "8"], "'8' lacks its name, or its value"),
        (["road=3", "car"], "'car' lacks its name, or its value"),
        (["road=", "car=8", "=3"], "'road=' lacks its value, '=3' lacks its name"),
        (["road", "=", "3"], "'=' lacks its name"),
        (["road=3", "car=8", "road=4"], "'road' is given twice"),
        (["road=x", "car=none", "sky=1,y"], "'road=x' is no number, the value in 'car=none' is no number, the value"),
        (["road", "car"], "NAME=VALUE"),
    ],
)
def test_names_and_values_that_cannot_be_meant_are_refused_in_words(flags, words):
    with pytest.raises(UserError) as told:
        settings_of(constants(SCRIPT + CLASSES), ["--classes", *flags])
    assert words in str(told.value) and str(told.value).startswith("--classes")


def test_a_dictionary_that_no_flag_gives_is_a_constant_where_it_is_annotated():
    table_of_another = "TABLE = {None: [()], 'h': [(), (3,)]}\nWORDS = {'a': 'text'}\nSWITCHES = {'a': True}\n"
    assert not {"TABLE", "WORDS", "SWITCHES"} & set(vars(settings_of(constants(SCRIPT + table_of_another), [])))
    mistaken = CLASSES.replace("= None", "= {3: 'road'}")  # for the rules to refuse in words
    assert settings_of(constants(SCRIPT + mistaken), []).CLASSES == {3: "road"}


def test_names_and_values_are_text_where_no_dictionary_is_taken(script):
    assert settings_of(script, ["--folder", "a=3"]).FOLDER == "a=3"
    with pytest.raises(UserError, match="--share takes a number"):
        settings_of(script, ["--share", "a=3"])


def test_a_dictionary_is_shown_as_it_is_typed(capsys):
    many = {f"a class {i}": (i, i + 100) for i in range(30)}
    space = constants(SCRIPT + CLASSES + f"MINE = {{'road': 3, 'car': (8, 9)}}\nMANY = {many}\n")
    with pytest.raises(SystemExit):
        settings_of(space, ["--help"])
    printable = " ".join(capsys.readouterr().out.split())
    assert "(default: road=3 car=8,9)" in printable and "--classes NAME=VALUE or STR or VALUE [" in printable
    lines = table(settings_of(space, [])).splitlines()
    assert any(line.split(maxsplit=1) == ["MINE", "{'road': 3, 'car': (8, 9)}"] for line in lines)
    start = next(i for i, line in enumerate(lines) if line.split()[0] == "MANY")
    assert max(map(len, lines)) <= 118 and start + 5 < len(lines)
    assert " ".join(line.strip() for line in lines[start:]).split(maxsplit=1)[1] == repr(many)


def test_a_changed_module_is_obeyed(script):
    script["COUNT"] = 9
    assert settings_of(script, []).COUNT == 9 and settings_of(script, ["--count", "1"]).COUNT == 1


def test_a_notebooks_own_arguments_are_none_of_ours(monkeypatch, script):
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "/tmp/kernel-1.json"])
    assert settings_of(script).COUNT == 3  # imported
    assert settings_of(constants() | {"__name__": "__main__"}).COUNT == 3  # pasted into a cell: no __file__
    monkeypatch.setattr(sys, "argv", ["script.py", "--count", "7"])
    assert settings_of(script | {"__name__": "__main__"}).COUNT == 7


def test_a_preset_wins_over_the_constant_and_a_flag_over_the_preset(script):
    presets = {"DEMO": {"COUNT": 9, "SHARE": 1}}
    assert settings_of(script, [], presets).COUNT == 3
    settings = settings_of(script, ["--demo", "--share", "2"], presets)
    assert (settings.COUNT, settings.SHARE) == (9, 2)


@pytest.mark.parametrize("flags", ["--count x", "--size a b", "--rate fast"])
def test_a_value_of_the_wrong_kind_is_refused_in_words(script, flags):
    with pytest.raises(UserError, match=flags.split()[0]):
        settings_of(script, flags.split())


def test_rules_tell_all_that_is_wrong_at_once():
    settings = SimpleNamespace(A=0, B="20", C=1.0, D="x", E=(8,), F=None, G=0.5)
    rules = dict(A=whole(1), B=whole(1), C=number(below=1), D=one_of("y"), E=sizes("two", 2), F=number(), G=number())
    with pytest.raises(UserError) as told:
        refuse_wrong(settings, **rules)
    lines = str(told.value).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["A", "B", "C", "D", "E", "F"]
    assert "B = '20': a whole number, 1 or more" in str(told.value)


def test_help_gives_reasons_and_defaults(script, capsys):
    with pytest.raises(SystemExit) as end:
        settings_of(script, ["--help"])
    printable = capsys.readouterr().out
    assert end.value.code == 0
    assert "how many (default: 3)" in printable and "values, 100 % (default: None)" in printable
    assert "--flip, --no-flip" in printable and "What it does." in printable and "--hidden" not in printable


def test_an_unknown_flag_ends_with_status_2(script):
    with pytest.raises(SystemExit) as end:
        settings_of(script, ["--unknown"])
    assert end.value.code == 2


def test_the_table_names_every_constant(script):
    names = [line.split()[0] for line in table(settings_of(script, [])).splitlines()]
    assert names == ["COUNT", "SHARE", "SIZE", "FLIP", "FOREGROUND", "RATE", "FOLDER", "DEMO"]


# ---- how a script ends

DROPPED = """
import os, signal
from parts import errors
class Deaf:
    def __del__(self):  # what a handler raises in here is dropped by Python
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass
def main():
    Deaf()
    print("still running", flush=True)
    errors.stop_if_asked()
    print("never reached")
errors.run(main)
"""


def ended(code):
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=WAIT)


def test_a_signal_that_python_drops_still_ends_the_loop():
    done = ended(DROPPED)
    assert done.returncode == 130 and "still running" in done.stdout and "never reached" not in done.stdout
    assert done.stderr == "\nStopped.\n"


def test_each_end_has_its_status_and_no_traceback():
    for body, status, words in (
        ("raise errors.UserError('mend this')", 2, "mend this"),
        ("open('/dev/full', 'w').write('x' * 10**6)", 2, "disk is full"),
        ("signal.raise_signal(signal.SIGTERM)", 143, "SIGTERM"),
        ("return 1", 1, ""),
        ("pass", 0, ""),
    ):
        done = ended(f"import signal\nfrom parts import errors\ndef main():\n    {body}\nerrors.run(main)\nprint('on')")
        assert done.returncode == status and words in done.stderr and "Traceback" not in done.stderr
        assert ("on" in done.stdout) == (status == 0)  # a notebook's kernel goes on
