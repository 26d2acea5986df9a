"""predict.py as a user runs it: which pictures it reads, at what size, what it says of the rest, what it refuses."""

import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import script
from PIL import Image, TiffImagePlugin
from predicting import RULES, blobs, files_in, load, save, save_pages, scores_in, to_images

from parts.errors import UserError, describe
from parts.files import write_text
from parts.masks import MaskRule
from parts.names import find_pictures

# ---- masks


def test_masks_have_each_pictures_size_and_its_place_in_the_tree(photos, call):
    status, out = call(photos)
    assert status == 0
    sizes = {str(path.relative_to(out)): load(path).shape for path in files_in(out)}
    assert sizes == {
        "a.png": (100, 150),
        "sub/b.c.png": (161, 241),
        "grey.png": (90, 60),
        "palette.png": (64, 80),
        "turned.png": (150, 100),
    }
    for path in out.rglob("*.png"):
        mask = load(path)
        assert mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 255}, path


def test_a_mask_is_the_networks_at_its_size_enlarged(photos, call, network):
    _, out = call(photos / "sub")
    image = cv2.resize(load(photos / "sub" / "b.c.png"), (128, 96), interpolation=cv2.INTER_AREA)
    with torch.no_grad():
        logits = torch.nn.functional.interpolate(network(to_images(image)), (161, 241), mode="bilinear")
    differing = (load(out / "b.c.png") > 0) != (logits[0, 0].numpy() > 0)
    assert differing.mean() < 1e-3


def test_exif_turns_the_mask_with_the_picture(photos, call, tmp_path):
    save(tmp_path / "upright.png", np.rot90(load(photos / "turned.jpg"), -1))
    _, out = call(photos / "turned.jpg", tmp_path / "upright.png")
    turned, upright = load(out / "turned.png"), load(out / "upright.png")
    assert turned.shape == (150, 100) and (turned == upright).all()


def test_masks_do_not_depend_on_batches_and_threads(photos, call):
    _, out = call(photos)
    expected = {path: load(path) for path in out.rglob("*.png")}
    for batch_size, threads in ((4, "none"), (3, 1), (0, 0)):
        call(photos, "--batch-size", batch_size, "--num-workers", threads)
        for path, mask in expected.items():
            assert (load(path) != mask).mean() < 1e-3, path


def test_mirrored_copies_are_averaged(call, network, tmp_path):
    image = blobs(96, 128, 5)
    save(tmp_path / "image.png", image)
    _, out = call(tmp_path / "image.png", "--flips", "h")
    images = to_images(image)
    with torch.no_grad():
        plain = network(images)
        averaged = plain + network(images.flip(3)).flip(3)
    mask = load(out / "image.png") > 0
    assert (mask != (averaged[0, 0].numpy() > 0)).mean() < 1e-3 and (mask != (plain[0, 0].numpy() > 0)).mean() > 1e-2


def test_a_size_of_its_own_and_tiny_pictures(photos, call):
    save(photos / "tiny.png", blobs(1, 3))
    status, out = call(photos, "--image-size", "own", "--window", 128)
    assert status == 0
    assert load(out / "tiny.png").shape == (1, 3) and load(out / "sub" / "b.c.png").shape == (161, 241)


def test_the_articles_checkpoint_needs_nothing_more(photos, network, tmp_path, call):
    torch.save({"state_dict": network.state_dict(), "optimizer": {}}, tmp_path / "article.pth")
    call(photos / "a.jpg", "--checkpoint", tmp_path / "article.pth", "--output-dir", tmp_path / "article")
    _, out = call(photos / "a.jpg", "--image-size", 320, 480)
    assert (load(tmp_path / "article" / "a.png") == load(out / "a.png")).all()


def test_a_checkpoint_of_another_program_is_read_where_it_is_understood(photos, call, changed):
    assert call(photos, "--checkpoint", changed(network="unet", settings=None))[0] == 0


@pytest.mark.slow
def test_the_exit_status_and_no_traceback(photos, command_line, tmp_path):
    (photos / "text.png").write_text("hello")
    ended = script("predict.py", *command_line(*sorted(photos.glob("*.png"))), cwd=tmp_path)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr and "text.png" in ended.stderr
    assert [path.name for path in files_in(tmp_path / "out")] == ["grey.png"]
    ended = script("predict.py", *command_line(tmp_path / "nowhere"), cwd=tmp_path)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr and "no image in" in ended.stderr


# ---- what is refused before anything is written

REFUSED = [  # inputs and flags, with the folders of the fixture `places`; and words of the message
    ("{bare}", "no image in"),
    ("missing.jpg", "no image in"),
    ("{photos}/*.png", "no image in"),
    ("", "Which images"),
    ("{photos} --threshold 1.5", "THRESHOLD"),
    ("{photos} --threshold auto", "needs MASKS"),
    ("{photos} --image-size 96 128 160", "IMAGE_SIZE"),
    ("{photos} --flips both", "FLIPS"),
    ("{photos} --probabilities 12", "PROBABILITIES"),
    ("{photos} --submission rows.txt", "SUBMISSION"),
    ("--export model.tflite", "EXPORT"),
    ("{photos} --export model.pt2", "takes no images"),
    ("{photos} --no-save-masks", "Nothing would be kept"),
    ("{photos} --disagreement", "DISAGREEMENT is that of several networks"),
    ("{photos} --overlap -1", "OVERLAP"),
    ("{photos} --num-workers -1", "NUM_WORKERS"),
    ("{photos} --window 63", "WINDOW"),
    ("{photos} --batch-size 1.5", "BATCH_SIZE"),
    ("{photos} --precision float8", "PRECISION"),
    ("{photos} --device abacus", "DEVICE"),
    ("{photos} --flips both --window 1 --overlap -1", "(?s)FLIPS.*WINDOW.*OVERLAP"),
    # true masks
    ("{photos} --masks nowhere", "MASKS"),
    ("{photos} --masks {bare}", "no mask there fits"),
    ("{photos}/sub --masks {photos}/sub", "no file there ends in _mask"),
    # checkpoints
    ("{photos} --checkpoint nosuch.pth", "no such checkpoint"),
    ("{photos} --checkpoint {files}/junk.pth", "junk.pth"),
    ("{photos} --checkpoint {files}/foreign.pth", "what network"),
    ("{photos} --checkpoint {files}/depth.pth", "not understood"),
    # outputs that would overwrite an input or each other
    ("{twins}", "of .*a.jpg and .*of .*a.png"),
    ("{cases}", "of .*A.png and .*of .*a.jpg on some systems: .*case, or in how an accent"),
    ("{accents}", "of .*e\u0301.png and .*of .*\u00e9.png on some systems"),
    ("{photos}/a.jpg {twins}/a.jpg --submission s.csv", "come more than once: a.jpg"),
    ("{photos} --output-dir {photos}", "would be replaced.*grey.png"),
    ("{maps} --probabilities 8", "(?s)overwrite.*out/probabilities/a.png of .*a.jpg"),
    ("{legend} --checkpoint {files}/classes.pth --overlays", "would be replaced.*out/overlays/legend.png"),
    (
        "{classes} --checkpoint {files}/classes.pth --probabilities 8",
        "(?s)overwrite.*a_b_c.png of .*a.jpg and .*a_b_c.png of .*a_b.png",
    ),
    (
        "{several} --masks {truths} --mask-name {{}}_obj* --output-dir {truths}",
        "would be replaced.*a_obj1.png",
    ),
    # what is for one foreground alone
    (
        "{photos} --checkpoint {files}/classes.pth --threshold 0.7 --submission s.csv",
        r"(?s)4 classes \(c, b_c, d, e\).*THRESHOLD = 0.7, SUBMISSION = 's.csv'\.",
    ),
    (
        "{photos} --checkpoint {files}/classes.pth --threshold auto --masks {photos} --mask-foreground 3",
        "THRESHOLD = 'auto', MASK_FOREGROUND = 3",
    ),
    (
        "{several}/a.jpg --masks {truths} --mask-name {{}}_obj* --checkpoint {files}/classes.pth",
        r"several masks fit .*a.jpg.*take the \* out of MASK_NAME",
    ),
]


@pytest.fixture
def places(photos, network, classes_checkpoint, changed, tmp_path):
    """{name: folder} of what REFUSED needs."""
    names = ("bare", "files", "twins", "cases", "accents", "maps", "classes", "several", "truths")
    folders = {name: tmp_path / name for name in names} | {"photos": photos, "legend": tmp_path / "out" / "overlays"}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    image = blobs(50, 70)
    for path in (
        *("twins/a.jpg", "twins/a.png", "cases/a.jpg", "cases/A.png", "maps/a.jpg", "maps/probabilities/a.png"),
        *("accents/\u00e9.png", "accents/e\u0301.png"),
        *("classes/a.jpg", "classes/a_b.png", "several/a.jpg", "several/a_obj1.jpg", "out/overlays/legend.png"),
    ):
        save(tmp_path / path, image)
    for number in range(2):
        save(folders["truths"] / f"a_obj{number}.png", image[..., 0] // 128 * np.uint8(255))

    files = folders["files"]
    (files / "junk.pth").write_bytes(b"junk" * 100)
    torch.save({"state_dict": {"layer.weight": torch.zeros(3)}}, files / "foreign.pth")
    os.rename(changed(network={"depth": 4}), files / "depth.pth")
    rule = MaskRule("numbers", (), (), classes=(0, 1, 2, 3), names=("c", "b_c", "d", "e"))
    os.rename(classes_checkpoint(rule), files / "classes.pth")
    return folders


def test_what_can_be_mended_is_refused_and_nothing_is_written(places, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for line, words in REFUSED:
        given = [word.format(**places) for word in line.split()]
        with pytest.raises(UserError) as caught:
            call(*given)
        assert re.search(words, str(caught.value)), (line, str(caught.value))
    assert sorted(tmp_path.rglob("*")) == before


def test_places_that_cannot_be_written_are_told_by_their_names(photos, call, tmp_path):
    (tmp_path / "out" / "a.png").mkdir(parents=True)
    with pytest.raises(UserError, match="would be replaced.*out/a.png"):
        call(photos / "a.jpg")
    (tmp_path / "file").write_text("")
    for attempt, words in (
        (lambda: call(photos, "--output-dir", tmp_path / "file"), "file: a file has the name of a folder"),
        (lambda: write_text(tmp_path / "out" / "a.png", "text"), "out/a.png: this is a folder"),
    ):
        with pytest.raises(OSError) as caught:
            attempt()
        assert describe(caught.value).startswith(f"{tmp_path}/{words}")


# ---- names


def test_equal_names_keep_their_folders(photos, call, tmp_path):
    save(tmp_path / "other" / "a.png", blobs(50, 70))
    _, out = call(photos, tmp_path / "other")
    assert load(out / "photos" / "a.png").shape == (100, 150) and load(out / "other" / "a.png").shape == (50, 70)


def test_outputs_are_no_inputs(photos, call):
    out = photos / "predictions"
    for _ in range(2):  # the second time the folder holds masks
        wanted, missing = find_pictures([str(photos)], out)
        assert len(wanted) == 5 and not missing
        call(photos, "--output-dir", out)
    assert len(list(out.rglob("*.png"))) == 5


def test_masks_beside_their_pictures_or_below_them_are_no_pictures(photos, call):
    def scored(*inputs, masks):
        status, out = call(*inputs, "--masks", masks)
        assert status == 0
        return set(scores_in(out)) - {"mean"}

    _, out = call(photos)
    beside = photos / "a_mask.png"
    save(beside, load(out / "a.png"))
    assert scored(photos, masks=photos) == scored(*photos.glob("?.*"), masks=photos) == {"a.jpg"}
    (photos / "masks").mkdir()
    beside.rename(photos / "masks" / "grey.png")
    save(photos / "masks" / "grey.png", load(out / "grey.png"))
    assert scored(photos, masks=photos / "masks") == {"grey.png"}


def test_the_longest_names_are_written_too(call, tmp_path):
    path = tmp_path / ("ü" * 125 + ".jpg")
    save(path, blobs(30, 40))
    status, out = call(path)
    assert status == 0 and [mask.stem for mask in files_in(out)] == [path.stem]


def test_names_that_are_no_unicode(call, tmp_path):
    name = os.fsdecode(b"caf\xe9")
    for path in (tmp_path / "photos" / f"{name}.jpg", tmp_path / "truths" / f"{name}.png"):
        save(path, (blobs(40, 60)[..., 0] > 99) * np.uint8(255))
    rows = tmp_path / "s.csv"
    status, out = call(tmp_path / "photos", "--masks", tmp_path / "truths", "--submission", rows)
    assert status == 0 and b"\ncaf\xe9.jpg," in rows.read_bytes()
    assert len((out / "scores.csv").read_text().splitlines()) == 3


# ---- what is not read

UNREAD = "its kind or its name is not read"
SPOILT = {  # what a file's name and content are, and words that are said of it
    "empty.jpg": (b"", "is empty"),
    "text.png": (b"hello", "no picture of a kind that is read, whatever its name says"),
    "photo.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "is an EPS picture, which is not read"),
    "layers.psd": (b"8BPS" + bytes(40), UNREAD),
    "short.jpg": (lambda image: image[:900], "damaged or cut short"),
    "scan.jp2": ("JPEG2000", UNREAD),
    "array.npy": (b"\x93NUMPY", UNREAD),
    "raw.DNG": ("TIFF", UNREAD),
    "phone.heic": (b"\0\0\0\x18ftypheic" + bytes(99), UNREAD),
    "nameless": ("JPEG", UNREAD),  # a file manager shows what these two hold
    "half.jpg.part": ("JPEG", UNREAD),
    "film.mp4": (bytes(99), "is a video. Cut it into frames"),
}
LEFT_OUT = {".hidden.jpg": b"", "notes.txt": b"no picture"}


def test_what_cannot_be_read_is_told_by_name_and_the_rest_is_done(photos, call, capsys):
    for name, (content, _) in SPOILT.items():
        if isinstance(content, str):
            Image.fromarray(blobs(40, 60)).save(photos / name, format=content)
        else:
            whole = (photos / "a.jpg").read_bytes()
            (photos / name).write_bytes(content(whole) if callable(content) else content)
    (photos / "folder.jpg").mkdir()
    (photos / "lost.png").symlink_to(photos / "nowhere.png")
    for name, content in LEFT_OUT.items():
        (photos / name).write_bytes(content)
    said_of = {name: words for name, (_, words) in SPOILT.items()} | {"lost.png": "link", "nosuch.jpg": "no such file"}

    status, out = call(photos, photos / "nosuch.jpg", "--submission", photos / "rows.csv")
    said = capsys.readouterr()
    assert status == 1 and "14 of the inputs failed" in said.err and "5 images done" in said.out
    for name, words in said_of.items():
        assert re.search(rf"/{re.escape(name)}: .*{words}", said.err), name
    left_out = re.search(r"Left out: 3 that are .*: (.*)\.\n", said.out)[1]
    assert {Path(name).name for name in left_out.split(", ")} == {*LEFT_OUT, "folder.jpg"}
    assert len(list(out.rglob("*.png"))) == 5 and len((photos / "rows.csv").read_text().splitlines()) == 6
    lacking = re.search(r"rows.csv: lacks the rows of 14 inputs: (.*) and 4 more\.", said.err)[1]
    assert len(lacking.split(", ")) == 10 and all(Path(name).name in said_of for name in lacking.split(", "))


def test_unread_pictures_among_masks_or_alone_are_told_too(photos, call, capsys):
    Image.fromarray(blobs(40, 60)).save(photos / "scan.jp2")
    (photos / "scan.jp2").rename(photos / "scan.xyz")
    assert call(photos / "a.jpg", photos / "scan.xyz")[0] == 1
    assert f"scan.xyz: {UNREAD}" in capsys.readouterr().err, "whatever its suffix"
    (photos / "a.jpg").rename(photos / "a.xyz")
    assert call(photos / "a.xyz")[0] == 0, "by its own name a picture of a kind that is read may have any suffix"
    (photos / "a.xyz").rename(photos / "a.jpg")
    (photos / "scan.xyz").rename(photos / "scan.jp2")
    save(photos / "a_mask.png", np.zeros((100, 150), np.uint8))  # in a folder that is also that of the masks
    assert len(find_pictures([str(photos)], mask_dir=str(photos))[1]) == 1
    for name in ("phone.heic", "film.mp4"):
        (photos / name).write_bytes(bytes(99))
    status, _ = call(*sorted(photos.glob("*.*")))  # as the shell names them
    said = capsys.readouterr().err
    assert status == 1 and f"phone.heic: {UNREAD}" in said and "film.mp4: is a video" in said
    (photos / "only").mkdir()
    (photos / "phone.heic").rename(photos / "only" / "phone.heic")
    with pytest.raises(UserError, match="no image in"):  # and yet it is told
        call(photos / "only")
    assert f"phone.heic: {UNREAD}" in capsys.readouterr().err


def test_what_is_no_picture_to_a_person_is_no_failure(photos, call, capsys):
    assert call(photos)[0] == 0
    said = capsys.readouterr()
    assert "Left out: 1 that are no pictures by their names" in said.out and "notes.txt" in said.out
    assert "failed" not in said.err
    call(photos, "--output-dir", photos / "masks")
    capsys.readouterr()
    call(photos, "--output-dir", photos / "masks")
    assert re.search(r"Left out: 2 that are .*: \S*notes.txt, \S*masks\.", capsys.readouterr().out)


def test_an_output_that_is_no_number_is_no_mask(photos, call, changed, network, capsys):
    weights = network.state_dict()
    path = changed(state_dict=weights | {"output_conv.bias": weights["output_conv.bias"] * float("nan")})
    status, out = call(photos, "--checkpoint", path)
    said = capsys.readouterr()
    assert status == 1 and "a.jpg: the network's output is not a number" in said.err and "0 images done" in said.out
    assert not files_in(out)


# ---- more than 8 bits


def deep_pictures(folder):
    """A grey, a coloured and two pages of 16 bits that use 10 of them, and what they are at 8: {name: (H, W, 3)}."""
    folder.mkdir()
    colours = (blobs(100, 150).astype(np.uint16) << 2) + 500
    grey = np.ascontiguousarray(colours[..., 0])
    cv2.imwrite(str(folder / "colours.png"), colours[..., ::-1])
    save(folder / "grey.png", grey)
    save_pages(folder / "stack.tif", [Image.fromarray(grey[::-1].copy()), Image.fromarray(grey)])
    plain = {"colours": colours, "grey": grey, "stack_0": grey[::-1], "stack_1": grey}
    plain = {name: array if array.ndim == 3 else np.repeat(array[..., None], 3, 2) for name, array in plain.items()}
    return {name: np.rint((array - 500.0) / 1020 * 255).astype(np.uint8) for name, array in plain.items()}


def test_images_of_more_than_8_bits_are_read_by_the_range_of_training(call, changed, tmp_path, capsys):
    plain = deep_pictures(tmp_path / "deep")
    save(tmp_path / "deep" / "float.tif", plain["grey"][..., 0] * np.float32(4) + 500)
    for name, array in (plain | {"float": plain["grey"]}).items():
        save(tmp_path / "plain" / f"{name}.png", array)
    call(tmp_path / "plain", "--output-dir", tmp_path / "expected")
    path = changed(image_range=[500, 1520])
    status, out = call(tmp_path / "deep", "--checkpoint", path, "--overlays")
    assert status == 0 and "16 bits" not in capsys.readouterr().out
    for name in (*plain, "float"):
        expected = load(tmp_path / "expected" / f"{name}.png")
        assert (load(out / f"{name}.png") == expected).all() and expected.any(), name
        assert load(out / "overlays" / f"{name}.jpg").std() > 30
    call(tmp_path / "plain", "--checkpoint", path)
    assert (load(out / "grey.png") == load(tmp_path / "expected" / "grey.png")).all(), "8 bits stay as they are"


def test_what_images_of_more_than_8_bits_lose_is_told_by_file(call, tmp_path, capsys):
    plain = deep_pictures(tmp_path / "deep")
    save(tmp_path / "deep" / "eight.png", plain["grey"])
    save(tmp_path / "deep" / "full.png", plain["grey"][..., 0].astype(np.uint16) * 257)
    assert call(tmp_path / "deep")[0] == 0
    said = capsys.readouterr().out
    told = re.search(r"\n(\d) of them have 16 bits and use only the lowest 12 or fewer, .*?: (.*)\. Train with", said)
    names = [Path(name).name for name in told[2].split(", ")]
    assert told[1] == "4" and names == ["colours.png", "grey.png", "stack.tif[0]", "stack.tif[1]"]
    assert said.count("16 bits") == 1
    save(tmp_path / "deep" / "float.tif", plain["grey"][..., 0] + np.float32(0.5))
    assert call(tmp_path / "deep")[0] == 1
    assert re.search("float.tif: has floating-point .*IMAGE_RANGE", capsys.readouterr().err)


def test_what_transparency_hides_is_told_by_file(call, tmp_path, capsys):
    image, alpha = blobs(50, 70), np.full((50, 70, 1), 255, np.uint8)
    save(tmp_path / "in" / "clear.png", image)
    save(tmp_path / "in" / "opaque.png", np.dstack([image, alpha]))
    alpha[:9] = 0
    save(tmp_path / "in" / "cut.png", np.dstack([image, alpha]))
    status, out = call(tmp_path / "in")
    told = re.findall(
        r"1 image with a channel of transparency, .* red, green and blue.\n  (\S*)", capsys.readouterr().out
    )
    assert status == 0 and [Path(name).name for name in told] == ["cut.png"]
    assert (load(out / "cut.png") == load(out / "clear.png")).all()


# ---- files of several pages


def pages(count=3):
    """Pictures of other sizes and contents, as PIL has them."""
    return [Image.fromarray(blobs(60 + 20 * number, 90, number)) for number in range(count)]


@pytest.mark.parametrize("name", ["stack.tif", "film.gif", "film.png", "film.webp"])
def test_every_page_gets_a_mask_as_if_it_were_a_file(call, tmp_path, name):
    (tmp_path / "in").mkdir()
    pictures = pages()
    if name != "stack.tif":  # of which alone pages may differ in size
        pictures = [picture.resize((90, 60)) for picture in pictures]
    save_pages(tmp_path / "in" / name, pictures, lossless=True)
    status, out = call(tmp_path / "in", "--overlays", "--probabilities", 8, "--submission", tmp_path / "rows.csv")
    stem, suffix = name.split(".")
    assert status == 0
    for folder, ending in ((out, ".png"), (out / "overlays", ".jpg"), (out / "probabilities", ".png")):
        assert {path.name for path in files_in(folder) if path.parent == folder} == {
            f"{stem}_{number}{ending}" for number in range(3)
        }
    rows = (tmp_path / "rows.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == [f"{stem}_{number}.{suffix}" for number in range(3)]
    with Image.open(tmp_path / "in" / name) as file:
        for number in range(3):
            file.seek(number)
            file.convert("RGB").save(tmp_path / f"alone_{number}.png")
    call(*tmp_path.glob("alone_*.png"), "--output-dir", tmp_path / "alone")
    for number in range(3):
        mask = load(out / f"{stem}_{number}.png")
        assert mask.shape == pictures[number].size[::-1] and (mask > 0).any()
        assert (mask == load(tmp_path / "alone" / f"alone_{number}.png")).all()


def test_previews_are_no_pages(call, tmp_path):
    (tmp_path / "in").mkdir()
    save_pages(tmp_path / "camera.mpo", pages())
    (tmp_path / "camera.mpo").rename(tmp_path / "in" / "camera.jpg")
    with TiffImagePlugin.AppendingTiffWriter(str(tmp_path / "in" / "map.tif"), True) as file:
        for size, kind in (((90, 60), 0), ((45, 30), 1), ((90, 60), 4)):  # a reduced copy, a transparency mask
            pages()[0].resize(size).save(file, format="TIFF", tiffinfo={254: kind})
            file.newFrame()
    status, out = call(tmp_path / "in")
    assert status == 0 and {path.name for path in files_in(out)} == {"camera.png", "map.png"}


def test_a_damaged_page_is_told_and_the_others_are_done(call, tmp_path, capsys):
    save_pages(tmp_path / "stack.tif", pages())
    whole = (tmp_path / "stack.tif").read_bytes()
    for share, done in ((0.95, 2), (0.5, 1)):  # within the last page, and before it begins
        (tmp_path / "stack.tif").write_bytes(whole[: int(share * len(whole))])
        status, out = call(tmp_path / "stack.tif", "--output-dir", tmp_path / str(share))
        said = capsys.readouterr()
        assert status == 1 and f"{done} image" in said.out and "stack.tif[2]: is damaged" in said.err
        assert len(files_in(tmp_path / str(share))) == done


def test_pages_are_scored_by_those_of_their_mask(call, tmp_path, capsys):
    """Of equally many; or by masks of their own; and of no others."""
    photos, truths = tmp_path / "photos", tmp_path / "truths"
    for folder in (photos, truths, tmp_path / "own"):
        folder.mkdir()
    save_pages(photos / "stack.tif", pages())
    pages()[0].save(photos / "single.png")
    _, out = call(photos)
    masks = [Image.fromarray(load(out / f"stack_{number}.png")) for number in range(3)]
    masks[0] = Image.fromarray(255 - np.asarray(masks[0]))
    save_pages(truths / "stack_mask.tif", masks)
    save_pages(truths / "single.tif", masks)

    def dice(masks, status=0):
        assert call(photos, "--masks", masks)[0] == status
        return {name: float(row["dice"]) for name, row in scores_in(out).items() if name != "mean"}

    assert dice(truths) == {"stack.tif[0]": 0, "stack.tif[1]": 1, "stack.tif[2]": 1}
    said = capsys.readouterr().out
    assert re.search(r"Without a mask in .* \(of as many pages\), so not scored: \S*single.png\n", said)
    assert re.search(r"The lowest Dice:\n  0.0000  \S*stack.tif\[0\]", said)
    for number in (1, 2):
        masks[number].save(tmp_path / "own" / f"stack_{number}.png")
    assert dice(tmp_path / "own") == {"stack.tif[1]": 1, "stack.tif[2]": 1}
    save_pages(truths / "stack_mask.tif", masks[:2])
    with pytest.raises(UserError, match="as many pages"):
        call(photos, "--masks", truths)
    (truths / "stack_mask.tif").write_bytes(b"no mask")
    save(truths / "single.png", load(out / "single.png"))
    (truths / "single.tif").unlink()
    assert dice(truths, status=1) == {"single.png": 1}
    assert "stack_mask.tif" in capsys.readouterr().err


# ---- the true masks


@pytest.mark.parametrize("name", ["MASK_FOREGROUND", "mask_foreground"])  # the latter in older checkpoints
def test_a_meaning_of_training_that_these_masks_do_not_have_is_told(photos, call, changed, tmp_path, capsys, name):
    save(tmp_path / "truths" / "a.png", np.full((100, 150), 255, np.uint8))
    path = changed(settings={name: 8}, mask_rule=MaskRule("numbers", (), (8,), rest=True).to_dict())
    call(photos, "--checkpoint", path, "--masks", tmp_path / "truths")
    assert "reads as foreground" in capsys.readouterr().out
    call(photos, "--checkpoint", path, "--masks", tmp_path / "truths", "--mask-foreground", 255)
    assert "reads as foreground" not in capsys.readouterr().out


def test_true_classes_are_read_by_the_rule_of_training(photos, call, classes_checkpoint, tmp_path, capsys):
    truths = tmp_path / "truths"
    save(truths / "a.png", np.full((100, 150), 3, np.uint8))
    save(truths / "grey.png", np.full((90, 60), 5, np.uint8))
    status, out = call(photos, "--checkpoint", classes_checkpoint(RULES["numbers"]), "--masks", truths)
    assert status == 1 and "grey.png: holds other values" in capsys.readouterr().err
    assert set(scores_in(out)) == {"a.jpg", "mean"}
    path = classes_checkpoint(RULES["numbers"])
    status, out = call(photos, "--checkpoint", path, "--masks", truths, "--mask-ignore", 5)
    assert status == 0 and "5 is ignored" in capsys.readouterr().out
