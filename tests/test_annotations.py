"""Annotations of labelme, COCO and YOLO, drawn into masks."""

import json

import cv2
import numpy as np
import pytest
from helpers import SMALL
from PIL import Image

import augment
import dataset
import train
from parts.annotations import Annotated, Shape, draw, draw_masks
from parts.errors import UserError
from parts.mask_rules import find_mask_rule
from parts.masks import png_options, read_mask
from parts.spec import DataSpec

LAMP = [[3, 2], [14, 2], [14, 9], [3, 9]]  # corners (x, y): pixels 3 ... 13 and 2 ... 8
SIZE = (48, 64)


def car_of(k):
    """Corners of a triangle, and its pixels as Pillow draws them at eight times the size."""
    x, y = np.random.default_rng(k).integers(8, 24, 2).tolist()
    corners = [[x, y], [x + 30.5, y + 4], [x + 12, y + 20.25]]
    large = np.zeros((SIZE[0] * 8, SIZE[1] * 8), np.uint8)
    cv2.fillPoly(large, [np.round(np.array(corners) * 8).astype(np.int32)], 1)
    return corners, large[4::8, 4::8] > 0


def truth_of(k):
    mask = car_of(k)[1].astype(np.uint8)
    mask[2:9, 3:14] = 2
    return mask


def labelme(folder, ks, size=SIZE, **changes):
    for k in ks:
        shapes = [
            {"label": "car", "points": car_of(k)[0], "shape_type": "polygon"},
            {"label": "lamp", "points": [LAMP[0], LAMP[2]], "shape_type": "rectangle"} | changes,
        ]
        (folder / f"p{k}.json").write_text(
            json.dumps({"shapes": shapes, "imagePath": "x.jpg", "imageHeight": size[0], "imageWidth": size[1]})
        )


def coco(folder, ks, packed=False, **changes):
    lamp = np.zeros(SIZE, np.uint8)
    lamp[2:9, 3:14] = 1
    counts = np.diff(np.flatnonzero(np.diff(lamp.ravel(order="F"), prepend=0, append=1)), prepend=0).tolist()
    crowd = {"size": list(SIZE), "counts": pack_runs(counts) if packed else counts}
    entries = []
    for k in ks:
        entries.append({"image_id": k, "category_id": 5, "segmentation": [sum(car_of(k)[0], [])]})
        entries.append({"image_id": k, "category_id": 9, "segmentation": crowd, "iscrowd": 1} | changes)
    images = [{"id": k, "file_name": f"train2017/p{k}.png", "height": SIZE[0], "width": SIZE[1]} for k in ks]
    categories = [{"id": 5, "name": "car"}, {"id": 9, "name": "lamp"}]
    text = json.dumps({"images": images, "annotations": entries, "categories": categories})
    (folder / "instances.json").write_text(text)


def pack_runs(counts):
    """As COCO packs run lengths into text."""
    text = ""
    for number, run in enumerate(counts):
        value = run - counts[number - 2] if number > 2 else run
        more = True
        while more:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * more)
    return text


def yolo(folder, ks, names="classes"):
    for k in ks:
        lines = [" ".join([label, *(f"{x / SIZE[1]:.6f} {y / SIZE[0]:.6f}" for x, y in points)])
                 for label, points in (("0", car_of(k)[0]), ("1", LAMP))]  # fmt: skip
        (folder / f"p{k}.txt").write_text("\n".join(lines) + "\n")
    texts = {
        "classes": ("classes.txt", "car\nlamp\n"),
        "lines": ("../data.yaml", "train: ../train/images\nnames:\n  0: car  # of any kind\n  1: 'lamp'\nnc: 2\n"),
        "list": ("data.yaml", "nc: 2\nnames: ['car', 'lamp']\n"),
    }
    name, text = texts[names]
    (folder / name).write_text(text)


def images(folder, ks):
    folder.mkdir(parents=True, exist_ok=True)
    for k in ks:
        mask = truth_of(k)
        noise = np.random.default_rng(k).integers(0, 90, (*SIZE, 3), np.uint8)
        Image.fromarray(noise + 60 * mask[..., None]).save(folder / f"p{k}.png")
    return folder


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Images, and an empty folder for what annotates them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    return images(tmp_path / "i", range(6)), tmp_path / "m"


@pytest.mark.parametrize(
    "write, options",
    [
        *((labelme, {}), (coco, {}), (coco, {"packed": True})),
        *((yolo, {"names": names}) for names in ("classes", "lines", "list")),
    ],
)
def test_each_tool_gives_the_same_masks(write, options, folders):
    write(folders[1], range(6), **options)
    ((_, drawn),) = draw_masks([folders], "out/drawn")
    rule = find_mask_rule(sorted(drawn.glob("*.png")), DataSpec(classes="all"))
    assert rule.names == ("background", "car", "lamp") and rule.colours == (0, 0x800000, 0x008000)
    for k in range(6):
        mask, truth = read_mask(drawn / f"p{k}.png", rule), truth_of(k)
        assert np.array_equal(mask == 2, truth == 2)
        assert np.count_nonzero((mask == 1) != (truth == 1)) <= 8  # pixels whose middle the outline crosses


def inside(corners, size):
    """Of each pixel whether an odd number of edges is to the left of its middle, edge by edge."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    odd = np.zeros(size, bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0)):
        if y0 != y1:
            odd ^= ((y0 <= y) != (y1 <= y)) & (x >= x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return odd


def test_outlines_that_cross_themselves_and_leave_the_picture(tmp_path):
    for seed in range(60):
        draw_of = np.random.default_rng(seed)
        size, corners = draw_of.integers(1, 40, 2).tolist(), draw_of.uniform(-0.5, 1.5, (draw_of.integers(3, 20), 2))
        corners = corners * size[::-1] * draw_of.choice([1, 30])
        if seed % 2:
            corners = np.round(2 * corners) / 2  # which also meet the middles of pixels
        annotated = Annotated(tmp_path, ["x"], None, [Shape("car", [corners])])
        assert (draw([annotated], tmp_path, size, {"car": 7}) == 7 * inside(corners, size)).all(), seed


def test_two_images_of_one_name_are_not_drawn_into_one_mask(folders):
    """COCO's names have folders, which those of images may lack."""
    images(folders[0] / "train2017", [0])
    images(folders[0] / "val2017", [0])
    coco(folders[1], [0])
    stored = json.loads((folders[1] / "instances.json").read_text())
    stored["images"].append({"id": 7, "file_name": "val2017/p0.png", "height": SIZE[0], "width": SIZE[1]})
    (folders[1] / "instances.json").write_text(json.dumps(stored))
    ((_, drawn),) = draw_masks([folders], "out/drawn")
    assert {path.relative_to(drawn).as_posix() for path in drawn.rglob("*.png")} == {
        "train2017/p0.png",
        "val2017/p0.png",
    }
    for name in ("train2017", "val2017"):
        (folders[0] / name / "p0.png").unlink()
    with pytest.raises(UserError, match="annotates 2 images that .* does not hold, e.g. train2017/p0"):
        draw_masks([folders], "out/drawn")


def test_annotations_beside_images_by_foreground(folders, capsys):
    labelme(folders[0], range(6))
    ((_, drawn),) = draw_masks([(folders[0], folders[0])], "out/drawn")
    assert f"{folders[0]}: annotations of 6 images: car (6), lamp (6). They are drawn" in capsys.readouterr().out
    masks = sorted(drawn.glob("*.png"))
    for foreground, values in ((None, (1, 2)), ("lamp", (2,)), (("car", "lamp"), (1, 2))):
        rule = find_mask_rule(masks, DataSpec(foreground=foreground))
        assert np.array_equal(read_mask(masks[0], rule) == 1, np.isin(np.array(Image.open(masks[0])), values))
    with pytest.raises(
        UserError, match="'lam' is no name of a class; the masks' files say these: background, car, lamp. \"nonz"
    ):
        find_mask_rule(masks, DataSpec(foreground="lam"))
    Image.new("L", SIZE[::-1]).save("plain.png")
    with pytest.raises(UserError, match="'lam' is no name of a class; the masks' files say none. Give whole numbers"):
        find_mask_rule(["plain.png"], DataSpec(foreground="lam"))


def test_classes_have_the_same_values_on_both_sides_and_masks_stay_that_need_not_change(folders):
    labelme(folders[1], range(4), label="bus")
    images_of_val, masks_of_val = images(folders[0].parent / "vi", [6]), folders[0].parent / "vm"
    masks_of_val.mkdir()
    labelme(masks_of_val, [6], label="zebra")
    both = [folders, (images_of_val, masks_of_val)]
    (_, train_masks), (_, val_masks) = draw_masks(both, "out/drawn")
    for folder, values in ((train_masks, {0, 1, 2}), (val_masks, {0, 2, 3})):  # bus, car, zebra
        assert {value for path in folder.glob("*.png") for value in np.unique(Image.open(path))} == values
    before = {path: path.stat().st_mtime_ns for path in train_masks.iterdir()}
    draw_masks(both, "out/drawn")
    assert before == {path: path.stat().st_mtime_ns for path in train_masks.iterdir()}
    (folders[1] / "p3.json").unlink()
    (train_masks / "p2.png").unlink()
    draw_masks(both, "out/drawn")
    assert sorted(path.name for path in train_masks.glob("*.png")) == ["p0.png", "p1.png", "p2.png"]


SHAPE = {"label": "a", "points": LAMP}


def of_shape(**changes):
    return {"shapes": [SHAPE | changes], "imageHeight": SIZE[0], "imageWidth": SIZE[1]}


def of_entry(**changes):
    entry = {"id": 7, "image_id": 1, "category_id": 1} | changes
    listed = [{"id": 1, "file_name": "p0.png", "height": 48, "width": 64}]
    return {"images": listed, "annotations": [entry], "categories": [{"id": 1, "name": "a"}]}


CASES = {
    "cut short": ("p0.json", json.dumps(of_shape())[:40], "is damaged, or not what labelme, COCO or YOLO write"),
    "nested": ("p0.json", "[" * 100_000, "is damaged.*RecursionError"),
    "another tool's": ("p0.json", {"_via_img_metadata": {}}, "is not the JSON that labelme or COCO write. Export it"),
    "another size": ("p0.json", of_shape() | {"imageWidth": 10**9}, r"annotates it at \[48, 1000000000\], but .*48x64"),
    "a line": ("p0.json", of_shape(shape_type="line"), "of the kind line, which"),
    "NaN": ("p0.json", of_shape(points=[[0, 0], [1, 1], [3, float("nan")]]), "all of them numbers"),
    "no name": ("p0.json", of_shape(label=" "), "a class without a name"),
    "boxes": ("a.json", of_entry(bbox=[1, 1, 2, 2]), "a box without an outline, annotation 7; a box is no mask"),
    "runs": ("a.json", of_entry(segmentation={"counts": [5, 9**20]}), "run lengths of .* pixels, not 3072"),
    "negative runs": ("a.json", of_entry(segmentation={"counts": [3073, -1]}), "run lengths below 0"),
    "runs of another size": (
        *("a.json", of_entry(segmentation={"size": [64, 48], "counts": [3072]})),
        r"for a size of \[64, 48\], of an image of \[48, 64\]",
    ),
    "ids twice": (
        *("a.json", of_entry() | {"categories": [{"id": 1, "name": name} for name in "ab"]}),
        "has several categories with the id 1. Give each its own id",
    ),
    "a scribble": ("p0.json", of_shape(points=[[3 + k % 50, k % 2 * 47] for k in range(400)]), "crosses rows .* times"),
    "corners in space": ("p0.json", of_shape(points=[[0, 0, 0], [1, 1, 1], [3, 0, 0], [2, 2, 2]]), "cannot reshape"),
    "packed runs": ("a.json", of_entry(segmentation={"counts": "o" * 10**6}), "more than 60 bits"),
    "no such image": ("a.json", of_entry(segmentation=[[1] * 6], image_id=2), "KeyError: 2"),
    "an image elsewhere": ("p77.json", of_shape(), "annotates 1 image that .*/i does not hold, e.g. p77.\nAdd these"),
    "YOLO's boxes": ("p0.txt", "0 0.1 0.2 0.3 0.4", "has boxes, which are no masks"),
    "no class 3": ("p0.txt", "3 0.1 0.2 0.3 0.4 0.1 0.5", "has class 3, and there are names for 1"),
}


@pytest.mark.parametrize("name, text, words", CASES.values(), ids=CASES)
def test_what_cannot_be_drawn_is_said_in_words(name, text, words, folders):
    (folders[1] / name).write_text(text if isinstance(text, str) else json.dumps(text))
    if name.endswith(".txt"):
        (folders[1] / "classes.txt").write_text("a\n")
    with pytest.raises(UserError, match=words):
        draw_masks([folders], "out/drawn")


def test_annotations_of_no_image_at_all(folders):
    """Each of them may be left out, all of them may not."""
    (folders[1] / "p77.json").write_text(json.dumps(of_shape()))
    with pytest.raises(UserError, match=f"{folders[1]}: annotates no image of {folders[0]}"):
        draw_masks([folders], "out/drawn", DataSpec(skip_unpaired=True))


def test_numbers_of_classes_without_names_cost_no_memory(folders, capsys):
    for name, number in (("p0.txt", 7), ("p1.txt", 10**13)):
        (folders[1] / name).write_text(f"{number} 0.1 0.2 0.3 0.4 0.1 0.5")
    draw_masks([folders], "out/drawn")
    assert "10000000000000 (1)" in capsys.readouterr().out


def test_names_of_hostile_files_do_not_lead_out_of_the_folder(folders):
    stored = of_entry() | {"annotations": []}
    names = enumerate(["../../i/p1.png", "/etc/p2.png", "p3.png"])
    stored["images"] = [{"id": number, "file_name": name, "height": 48, "width": 64} for number, name in names]
    (folders[1] / "a.json").write_text(json.dumps(stored))
    draw_masks([folders], "out/drawn")
    assert sorted(path.name for path in folders[0].parent.rglob("*.png") if "out" in path.parts) == [
        "p1.png", "p2.png", "p3.png"]  # fmt: skip


def test_the_scripts_take_annotations_for_masks(folders, capsys):
    """augment.py's masks keep the names, so that training on them knows them."""
    labelme(folders[1], range(6))
    dataset.main([*map(str, folders), "--classes", "all"])
    assert "there are 3 classes: 0 background, 1 car, 2 lamp" in capsys.readouterr().out
    assert {path.name for path in folders[0].parent.iterdir()} == {"i", "m", "audit_masks", "audit.png"}
    augment.main(["--img-dir", "i", "--mask-dir", "m", "--output-dir", "g", "--val-images", "2"])
    flags = ("--train-img-dir", "--train-mask-dir", "--val-img-dir", "--val-mask-dir")
    made = [f"g/augmented_{name}" for name in ("train_images", "train_masks", "test_images", "test_masks")]
    words = [word for both in zip(flags, made) for word in both]
    settings = train.settings([*SMALL, *words, "--classes", "all"])
    report = train.look_at_data(settings, folders[0].parent)
    assert report.mask_rule.names == ("background", "car", "lamp") and len(report.train) == 16
    settings.TRAIN_IMG_DIR, settings.TRAIN_MASK_DIR, settings.VAL_IMG_DIR, settings.VAL_MASK_DIR = map(str, folders * 2)
    report = train.look_at_data(settings, folders[0].parent)
    assert report.mask_rule.names == ("background", "car", "lamp") and report.train[0].mask.parts[-2] == "train"


def test_texts_that_are_no_labels_of_images_are_none(folders):
    (folders[1] / "notes.txt").write_text("Drawn by hand.")
    assert draw_masks([folders], "out/drawn") == [folders]


def test_masks_that_were_drawn_apart_and_name_other_classes_are_refused(folders):
    for name, car in (("a", "car"), ("b", "bus")):
        Image.fromarray(truth_of(1) % 2).save(folders[1] / f"{name}.png", **png_options({1: car}))
    with pytest.raises(UserError, match="b.png: says that 1 is bus, and other masks say something else. Draw all"):
        find_mask_rule(sorted(folders[1].iterdir()), DataSpec(classes="all"))


ROAD_AND_CAR = {"folders": {"road": "road/{}", "car": "car/{}"}, "suffix": {"road": "{}_road", "car": "{}_CAR_mask"}}


def class_files(folder, patterns, ks=range(6)):
    """Black and white masks of a road below and, but for the first image, a car above."""
    for k in ks:
        for name, rows in (("road", slice(30, 48)), ("car", slice(5, 5 + 3 * k))):
            mask = np.zeros(SIZE, np.uint8)
            mask[rows, k : k + 20] = 255
            path = folder / f"{patterns[name].format(f'p{k}')}.png"
            path.parent.mkdir(exist_ok=True)
            if mask.any():
                Image.fromarray(mask).save(path)


@pytest.mark.parametrize("patterns", ROAD_AND_CAR.values(), ids=ROAD_AND_CAR)
def test_a_file_for_each_class(patterns, folders, capsys):
    class_files(folders[1], patterns)
    spec = DataSpec(classes=patterns)
    ((_, drawn),) = draw_masks([folders], "out/drawn", spec)
    assert "masks of single classes of 6 images: road (6), car (5)" in capsys.readouterr().out
    rule = find_mask_rule(sorted(drawn.glob("*.png")), spec)
    assert rule.names == ("background", "road", "car")
    mask = read_mask(drawn / "p4.png", rule)
    assert (mask[30:, 4:24] == 1).all() and (mask[5:17, 4:24] == 2).all() and np.count_nonzero(mask) == (18 + 12) * 20
    words = [f"{name}={text}" for name, text in patterns.items()]
    augment.main(["--img-dir", "i", "--mask-dir", "m", "--output-dir", "g", "--val-images", "2", "--classes", *words])
    ((_, same),) = draw_masks([("g/augmented_train_images", "g/augmented_train_masks")], "out/again", spec)
    assert same == "g/augmented_train_masks"  # which are drawn already
    assert find_mask_rule(sorted((folders[0].parent / same).glob("*.png")), spec) == rule


def test_several_files_of_a_class_are_united(folders):
    """As of one thing each, which may lie on another. Where two patterns fit a file the longer one counts."""
    for name, rows in (("cell1", (2, 8)), ("cell2", (6, 12)), ("cell_wall", (20, 22))):
        mask = np.zeros(SIZE, np.uint8)
        mask[slice(*rows)] = 255
        Image.fromarray(mask).save(folders[1] / f"p0_{name}.png")
    patterns = {"cell": "{}_cell*", "wall": "{}_cell_wall"}
    ((_, drawn),) = draw_masks([folders], "out/drawn", DataSpec(classes=patterns))
    assert np.bincount(np.array(Image.open(drawn / "p0.png")).ravel()).tolist() == [36 * 64, 10 * 64, 2 * 64]


def test_masks_of_single_classes_that_cannot_be_united(folders, capsys):
    patterns = ROAD_AND_CAR["folders"]
    class_files(folders[1], patterns)
    spec, car = DataSpec(classes=patterns), folders[1] / "car/p3.png"
    Image.new("L", (64, 48), 255).save(car)
    with pytest.raises(UserError, match=f"/road/p3.png: marks 360 pixels that another .*: {car}. Take .*OVERLAP"):
        draw_masks([folders], "out/drawn", spec)
    Image.new("L", (48, 64), 255).save(car)
    with pytest.raises(UserError, match=rf"{car}: is 64x48 \(height x width\), and .*/i/p3.png is 48x64"):
        draw_masks([folders], "out/drawn", spec)
    with pytest.raises(
        UserError, match="MASK_IGNORE = -1: masks of single classes are drawn into one of whole numbers"
    ):
        draw_masks([folders], "out/drawn", DataSpec(classes=patterns, ignore=-1))
    car.rename(folders[1] / "lone.png")
    with pytest.raises(UserError, match="lone.png: named by none of CLASSES = {'road': 'road/{}'.*SKIP_UNPAIRED"):
        draw_masks([folders], "out/drawn", spec)
    car.write_bytes(b"")
    with pytest.raises(UserError, match="lone.png: named by none of CLASSES(.|\n)*car/p3.png: is empty"):
        draw_masks([folders], "out/drawn", spec)
    car.unlink()
    draw_masks([folders], "out/drawn", DataSpec(classes=patterns, skip_unpaired=True))
    assert "lone.png: named by none of CLASSES" in capsys.readouterr().out
