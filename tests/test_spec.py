"""DataSpec: the constants that can be meant, and the others in words."""

from types import SimpleNamespace

import pytest

from parts.errors import UserError
from parts.spec import DataSpec, ListedClass

PETS = {"cat": 1, "dog": 2}
CLASSES_CURE = '{"road": 3, "car": 8}'
# name -> (constants, texts of the message)
WRONG = {
    "no class": ({"classes": ()}, ["CLASSES = ()", '"all"', CLASSES_CURE]),
    "another word for classes": ({"classes": "cat"}, ["CLASSES = 'cat'", '"all"']),
    "fractions": ({"classes": (0, 0.5)}, ["0.5", "0xFF0000"]),
    "switches": ({"classes": (False, True)}, ["False"]),
    "negative": ({"classes": (0, -1)}, ["-1"]),
    "the wrong way round": ({"classes": {0: "cat", 1: "dog"}}, [CLASSES_CURE]),
    "no name": ({"classes": {"": 0, "dog": 1}}, [CLASSES_CURE]),
    "a colour out of range": ({"classes": ((0, 0, 0), (0, 0, 256))}, ["256"]),
    "classes and a foreground": ({"classes": PETS, "foreground": 1}, ["MASK_FOREGROUND = 1", "Take one of them back"]),
    "classes and alpha": ({"classes": "all", "foreground": "alpha"}, ["MASK_FOREGROUND = 'alpha'"]),
    "a word in capitals": ({"foreground": "NONZERO"}, ['"nonzero"', '"alpha"']),
    "a word and a value": ({"foreground": ("alpha", 3)}, ['"nonzero"', '"alpha"']),
    "foreground of fractions": ({"foreground": (255.7, 0.2)}, ["MASK_FOREGROUND = (255.7, 0.2)", "whole numbers"]),
    "ignored words": ({"ignore": "void"}, ["MASK_IGNORE = 'void'", "whole numbers"]),
    "ignored fractions": ({"ignore": 0.5}, ["MASK_IGNORE = 0.5"]),
    "ignored nothing": ({"ignore": ()}, ["MASK_IGNORE = ()"]),
    "ignored and alpha": ({"ignore": 3, "foreground": "alpha"}, ['MASK_FOREGROUND = "alpha"', "Take one of them back"]),
    "a group that is no pattern": ({"group": "(a"}, ["GROUP = '(a'", "regular expression"]),
}


for given in [
    (4095, 0),
    (1, 1),
    (0,),
    (0, 1, 2),
    "Auto",
    255,
    True,
    (0, float("nan")),
    (0, float("inf")),
    ("0", "1"),
    (),
]:
    WRONG[f"image range {given}"] = ({"image_range": given}, ["IMAGE_RANGE = ", "--image-range 0 4095"])
WRONG["fit"] = ({"fit": "crop"}, ['FIT = \'crop\': give "stretch" or "pad"'])
for given in (0, 2.0, True, "3", None):
    WRONG[f"channels {given}"] = ({"channels": given}, ["CHANNELS = ", "4 for RGB with a fourth"])
for given in (0, (), (1, 2), (1, 2, 4), (0, 1, 2), (1.0,), "321"):
    WRONG[f"picture bands {given}"] = ({"picture_bands": given}, ["PICTURE_BANDS = ", "--picture-bands 4 3 2"])
for given in ["_seg", "", "{}{}", "{}_*_*", "/masks/{}", "masks\\{}", "*"]:
    WRONG[f"mask name {given}"] = ({"mask_name": given}, ["MASK_NAME = ", "{}_segmentation"])


@pytest.mark.parametrize("name", WRONG)
def test_constants_that_cannot_be_meant_are_told_in_words(name):
    constants, expected = WRONG[name]
    with pytest.raises(UserError) as caught:
        DataSpec(**constants)
    assert [text for text in expected if text not in str(caught.value)] == []


def test_a_script_s_settings_are_one_value():
    settings = SimpleNamespace(
        MASK_FOREGROUND=None,
        MASK_IGNORE=255,
        CLASSES="all",
        CHANNELS=4,
        IMAGE_RANGE=(0, 4095),
        GROUP="x",
        IMAGE_NAME="{}_i",
        MASK_NAME="{}_*",
        RESIZE_MASKS=True,
        FIT="pad",
        PICTURE_BANDS=None,
        OVERLAP=False,
        SKIP_UNPAIRED=True,
    )
    described = dict(classes="all", channels=4, image_range=(0, 4095), group="x", skip_unpaired=True)
    described |= dict(resize_masks=True, fit="pad")
    assert DataSpec.of(settings) == DataSpec(ignore=255, image_name="{}_i", mask_name="{}_*", **described)


def test_what_the_constants_list():
    assert DataSpec().listed_classes == DataSpec(classes="all").listed_classes == ()
    assert DataSpec(classes=range(2)).listed_classes == (ListedClass(None, 0, False), ListedClass(None, 1, False))
    named = DataSpec(classes={" red ": (255, 0, 0), "car": 0x0000FF}).listed_classes
    assert named == (ListedClass("red", 0xFF0000, True), ListedClass("car", 0x0000FF, False))
    assert DataSpec(ignore=3).ignored_values == (3,) and DataSpec().ignored_values == ()
    for image_range in (None, "auto", (0, 4095), (-1.5, 2), [0, 1]):
        assert DataSpec(image_range=image_range).image_range == image_range
    for word in (None, "alpha", "nonzero"):
        assert DataSpec(foreground=word).foreground_values is None
    assert DataSpec(foreground=["car", "lamp"]).foreground_names == ("car", "lamp")
    assert DataSpec(foreground=[1, 2]).foreground_values == (1, 2)
