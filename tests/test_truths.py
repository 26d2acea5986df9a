"""True masks that predict.py scores by, drawn from annotations as train.py draws them."""

import json
from pathlib import Path

import numpy as np
import pytest
from predicting import scores_in
from test_annotations import coco, images, labelme, truth_of, yolo

from parts.annotations import draw_masks
from parts.errors import UserError
from parts.masks import MaskRule, encode_mask

RULE = MaskRule(classes=(3, 0, 8, 300), names=("lamp", "background", "car", "tree"))  # in no order of any tool


def class_files(folder, ks):
    for k in ks:
        for value, name in enumerate(("car", "lamp"), 1):
            encode_mask((truth_of(k) == value).astype(np.uint8), MaskRule()).save(folder / f"p{k}_{name}.png")


@pytest.fixture
def annotated(tmp_path):
    """Images, and an empty folder for what annotates them."""
    (tmp_path / "m").mkdir()
    return images(tmp_path / "i", range(4)), tmp_path / "m"


def rows(scored):
    status, out = scored
    assert status == 0
    return scores_in(out)


@pytest.mark.parametrize(
    "write, beside", [(labelme, True), (coco, False), (yolo, False), (class_files, False), (class_files, True)]
)
def test_annotations_score_as_the_masks_that_are_drawn_of_them(
    annotated, call, classes_checkpoint, tmp_path, capsys, write, beside
):
    """Also where the network's values and their order are other ones than the drawing for training gives."""
    pictures, masks = annotated
    settings = {}
    if write is class_files:
        settings = {"CLASSES": {"car": "{}_car", "lamp": "{}_lamp"}}
        masks = pictures / "masks" if beside else masks
        masks.mkdir(exist_ok=True)
    elif beside:
        masks = pictures
    write(masks, range(3))
    path = classes_checkpoint(RULE, settings=settings)
    drawn = tmp_path / "drawn"
    drawn.mkdir()
    for k in range(3):
        labels = np.array([1, 2, 0], np.uint8)[truth_of(k)]
        encode_mask(labels, RULE).save(drawn / f"p{k}.png")
    expected = rows(call(pictures, "--checkpoint", path, "--masks", drawn))
    capsys.readouterr()
    scored = rows(call(pictures, "--checkpoint", path, "--masks", masks))
    said = capsys.readouterr().out
    assert "of 3 images: car (3), lamp (3)" in said and "so not scored" in said and "p3.png" in said
    assert set(scored) == set(expected) == {"p0.png", "p1.png", "p2.png", "mean"}
    for name, row in expected.items():
        for column in ("dice", "dice_lamp", "dice_car"):
            assert float(scored[name][column]) == pytest.approx(float(row[column]), abs=0.03), "but for the outline"
        assert scored[name]["dice_lamp"] == row["dice_lamp"]


def test_the_foreground_is_what_is_annotated_or_what_mask_foreground_names(annotated, call, changed, tmp_path, capsys):
    pictures, masks = annotated
    labelme(masks, range(4))
    ((_, drawn),) = draw_masks([annotated], tmp_path / "drawn")
    for given, told in (((), None), (("--mask-foreground", "lamp"), ("car", "lamp"))):
        path = changed(settings={"MASK_FOREGROUND": told})
        of_masks = rows(call(pictures, "--checkpoint", path, "--masks", drawn, *given))
        assert rows(call(pictures, "--checkpoint", path, "--masks", masks, *given)) == of_masks, (given, told)
    (masks / "sub").mkdir()
    (masks / "p0.json").rename(masks / "sub" / "p0.json")  # as masks may lie in any subfolder
    assert set(rows(call(pictures / "p0.png", "--checkpoint", path, "--masks", masks))) == {"p0.png", "mean"}


def test_annotations_that_cannot_be_compared_are_refused(annotated, call, changed, classes_checkpoint, capsys):
    pictures, masks = annotated
    labelme(masks, range(4), label="bus")
    classes = Path(classes_checkpoint(RULE)).rename(pictures.parent / "classes.pth")
    for flags, words in (
        (("--checkpoint", classes), r"m annotates bus, and the network knows background, car, lamp, tree\."),
        (("--mask-foreground", "lamp"), r"MASK_FOREGROUND is lamp, and .*m annotates bus, car\."),
        (("--checkpoint", changed(settings={"MASK_FOREGROUND": 1})), r"MASK_FOREGROUND is 1, and .* bus, car\."),
        (("--mask-ignore", 7), "MASK_IGNORE is a value of masks"),
    ):
        with pytest.raises(UserError, match=words):
            call(pictures, "--masks", masks, *flags)
    other = images(pictures.parent / "other", [7])
    (other / "p7.png").rename(other / "q.png")
    with pytest.raises(UserError, match="annotates none of the pictures"):
        call(other, "--masks", masks)
    (masks / "p3.json").write_text("{")
    with pytest.raises(UserError, match="p3.json: is damaged"):
        call(pictures, "--masks", masks)
    (masks / "p3.json").unlink()
    stored = json.loads((masks / "p2.json").read_text())
    (masks / "p2.json").write_text(json.dumps(stored | {"imageHeight": 9}))
    assert call(pictures, "--masks", masks)[0] == 1
    assert "p2.json: annotates it at [9, 64], but " in capsys.readouterr().err
    (masks / "p2.json").unlink()
    without = MaskRule(classes=(1, 2, 3, 4), names=("bus", "car", "lamp", "tree"))
    with pytest.raises(UserError, match="what is in no shape is background, and the network has no such class"):
        call(pictures, "--masks", masks, "--checkpoint", classes_checkpoint(without))
