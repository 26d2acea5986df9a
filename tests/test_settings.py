import pytest

from errors import UserError
from settings import plain, settings_of, table

SCRIPT = '''"""What it does."""
from reading import CARVANA_GROUP
COUNT = 3  # how many
SHARE: int | float = 5  # a number or a fraction
SIZE = (160, 240)  # height and width
FLIP = True  # mirror
FOREGROUND: int | tuple | None = None  # values, 100 %
RATE = 1e-4  # a rate
FOLDER = "here"  # a folder
GROUP = CARVANA_GROUP  # a pattern
DEMO = False  # small

HIDDEN = 4
'''


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def test_constants_are_the_defaults(script):
    settings = settings_of(script, [])
    assert (settings.count, settings.size, settings.flip, settings.foreground) == (3, (160, 240), True, None)
    assert settings.group.startswith("([0-9a-f]{12})")
    assert not hasattr(settings, "hidden") and settings.given == []


def test_flags_override_them(script):
    flags = [
        "--count",
        "7",
        "--share",
        "0.25",
        "--size",
        "8",
        "9",
        "--no-flip",
        "--foreground",
        "8",
        "--rate",
        "1",
        "--folder",
        "12",
        "--demo",
    ]
    settings = settings_of(script, flags)
    assert plain(settings) == dict(
        count=7, share=0.25, size=(8, 9), flip=False, foreground=8, rate=1.0, folder="12",
        group=settings.group, demo=True,
    )  # fmt: skip
    assert isinstance(settings.rate, float)
    assert settings_of(script, ["--foreground", "8", "9"]).foreground == (8, 9)
    assert settings_of(script, ["--foreground", "none"]).foreground is None


def test_a_preset_wins_over_the_default_and_a_flag_over_the_preset(script):
    presets = {"DEMO": {"COUNT": 9, "SHARE": 1}}
    assert settings_of(script, [], presets).count == 3
    settings = settings_of(script, ["--demo", "--share", "2"], presets)
    assert (settings.count, settings.share) == (9, 2)


@pytest.mark.parametrize("flags", ["--count x", "--count 2.5", "--size a b", "--count none", "--rate fast"])
def test_a_value_of_the_wrong_kind_is_refused_in_words(script, flags):
    with pytest.raises(UserError, match=flags.split()[0]):
        settings_of(script, flags.split())


def test_help_gives_reasons_and_defaults(script, capsys):
    with pytest.raises(SystemExit) as end:
        settings_of(script, ["--help"])
    shown = capsys.readouterr().out
    assert end.value.code == 0
    assert "how many (default: 3)" in shown and "values, 100 % (default: None)" in shown
    assert "--flip, --no-flip" in shown and "What it does." in shown


def test_an_unknown_flag_ends_with_status_2(script):
    with pytest.raises(SystemExit) as end:
        settings_of(script, ["--unknown"])
    assert end.value.code == 2


def test_the_table_names_every_constant(script):
    assert [line.split()[0] for line in table(settings_of(script, [])).splitlines()] == [
        "COUNT", "SHARE", "SIZE", "FLIP", "FOREGROUND", "RATE", "FOLDER", "GROUP", "DEMO",
    ]  # fmt: skip


def test_an_edited_constant_that_is_to_be_worked_out_is_told_in_words(tmp_path):
    (tmp_path / "a.py").write_text("RATE = 5e-4 * 8**0.5  # of eight processes\n")
    with pytest.raises(UserError, match="RATE = 0.0005"):
        settings_of(tmp_path / "a.py", [])


def test_an_edited_constant_may_lose_its_comment_and_be_a_list(script):
    edited = SCRIPT.replace("COUNT = 3  # how many", "COUNT = 4").replace("(160, 240)  # height and width", "[8, 9]")
    script.write_text(edited.replace("DEMO = False  # small", "DEMO = True"))
    settings = settings_of(script, ["--size", "16", "16"])
    assert (settings.count, settings.size, settings.demo) == (4, (16, 16), True)
    assert settings_of(script, []).size == (8, 9)
