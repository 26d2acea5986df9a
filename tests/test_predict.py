"""Masks for real files: sizes and names, what is unreadable, windows, scores, submissions, exports."""

import csv
import gzip
import json
import os
import re
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import script
from PIL import Image, TiffImagePlugin

import predict
from parts import pictures
from parts.errors import UserError, describe
from parts.files import write_text
from parts.images import read_image, resize_image
from parts.mask_rules import find_mask_rule
from parts.masks import IGNORED, MaskRule, encode_mask, read_mask
from parts.names import Picture, find_pictures
from parts.outputs import (
    ForegroundScores,
    Submission,
    Threshold,
    Truths,
    UniformMasks,
    best_threshold,
    histogram,
    run_lengths,
)
from parts.predictions import BandedPrediction, Loaded, Result, class_probabilities, classify, probability_map
from parts.scores import count_confusion, dice_from_counts, overlap_of
from parts.spec import DataSpec
from unet import UNet
from utils import save_checkpoint

# Every constant that an expectation may depend on, however somebody has edited them.
EVERY = [
    *("--save-masks", "--no-overlays", "--probabilities", "none", "--threshold", "0.5", "--image-size", "none"),
    *("--flips", "none", "--window", "768", "--overlap", "none", "--masks", "none", "--mask-foreground", "none"),
    *("--mask-ignore", "none", "--mask-name", "none"),
    *("--submission", "none", "--export", "none", "--batch-size", "none", "--num-workers", "2"),
    *("--device", "cpu", "--precision", "float32"),
]


def blobs(height, width, seed=0):
    """A smooth picture, uint8 (H, W, 3)."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 12 + 2, width // 12 + 2, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.fixture(scope="session")
def network():
    """A U-Net with random weights, for which about half of a picture is foreground, and surely so."""
    torch.manual_seed(0)
    network = UNet(features=(8, 16)).eval()
    images = torch.from_numpy(blobs(96, 128)).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        logits = network(images)
        network.output_conv.bias -= logits.median()
        for parameter in network.output_conv.parameters():
            parameter *= 3 / logits.std()
    return network


@pytest.fixture(scope="session")
def checkpoint(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "best.pth"
    state = dict(
        state_dict=network.state_dict(),
        network=dict(in_channels=3, out_channels=1, features=[8, 16]),
        image_size=[96, 128],
        epoch=7,
        settings={"MASK_FOREGROUND": None},
    )
    save_checkpoint(state, path)
    return path


@pytest.fixture
def words(checkpoint, tmp_path):
    """words(inputs, then flags) is predict.py's command line with every other constant given too."""

    def complete(*given):
        given = [str(word) for word in given]
        first = next((index for index, word in enumerate(given) if word.startswith("--")), len(given))
        places = ["--checkpoint", str(checkpoint), "--output-dir", str(tmp_path / "out")]
        return [*given[:first], *EVERY, *places, *given[first:]]

    return complete


@pytest.fixture
def call(words, tmp_path):
    """call(inputs, then flags) runs predict.main; gives (status, output folder)."""
    return lambda *given: (predict.main(words(*given)), tmp_path / "out")


@pytest.fixture
def changed(checkpoint, tmp_path):
    """changed(key=value, ...) is the path of the checkpoint with other values in it."""

    def save(**values):
        torch.save(torch.load(checkpoint, weights_only=True) | values, tmp_path / "changed.pth")
        return str(tmp_path / "changed.pth")

    return save


@pytest.fixture
def photos(tmp_path):
    """A tree of pictures: odd sizes, a subfolder, grey, palette, turned by EXIF."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    Image.fromarray(blobs(100, 150)).save(folder / "a.jpg")
    Image.fromarray(blobs(161, 241, 1)).save(folder / "sub" / "b.c.png")
    Image.fromarray(blobs(90, 60, 2)[..., 0]).save(folder / "grey.png")
    Image.fromarray(blobs(64, 80, 3)).quantize(64).save(folder / "palette.gif")
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees
    Image.fromarray(blobs(100, 150, 4)).save(folder / "turned.jpg", exif=exif, quality=95)
    (folder / "notes.txt").write_text("no picture")
    return folder


def load(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


# ---- files


def test_masks_have_each_pictures_size_and_its_place_in_the_tree(photos, call):
    status, out = call(photos)
    assert status == 0
    sizes = {str(path.relative_to(out)): load(path).shape for path in out.rglob("*.*")}
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
        logits = network(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)
        logits = torch.nn.functional.interpolate(logits, (161, 241), mode="bilinear")
    differing = (load(out / "b.c.png") > 0) != (logits[0, 0].numpy() > 0)
    assert differing.mean() < 1e-3


def test_exif_turns_the_mask_with_the_picture(photos, call, tmp_path):
    with Image.open(photos / "turned.jpg") as picture:
        upright = np.rot90(np.asarray(picture), -1)
    Image.fromarray(upright).save(tmp_path / "upright.png")
    _, out = call(photos / "turned.jpg", tmp_path / "upright.png")
    turned, upright = load(out / "turned.png"), load(out / "upright.png")
    assert turned.shape == (150, 100) and (turned == upright).all()


def test_unreadable_files_are_named_and_the_rest_is_done(photos, call, capsys):
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "text.png").write_text("hello")
    (photos / "short.jpg").write_bytes((photos / "a.jpg").read_bytes()[:900])
    (photos / "folder.jpg").mkdir()
    (photos / "lost.png").symlink_to(photos / "nowhere.png")
    status, out = call(photos, photos / "nosuch.jpg", "--submission", photos / "s.csv")
    said = capsys.readouterr()
    assert status == 1
    for name in ("empty.jpg", "text.png", "short.jpg", "lost.png", "nosuch.jpg"):
        assert name in said.err
    assert "5 of the inputs failed" in said.err and "5 images done" in said.out
    assert len(list(out.rglob("*.png"))) == 5
    assert len((photos / "s.csv").read_text().splitlines()) == 6


def test_only_what_can_be_mended_is_refused(photos, call, tmp_path):
    (tmp_path / "bare").mkdir()
    (tmp_path / "junk.pth").write_bytes(b"junk" * 100)
    torch.save({"state_dict": {"layer.weight": torch.zeros(3)}}, tmp_path / "foreign.pth")
    for given, said in (
        ([tmp_path / "bare"], "no image in"),
        ([tmp_path / "missing.jpg"], "no image in"),
        ([], "Which images"),
        ([photos, "--threshold", "1.5"], "THRESHOLD"),
        ([photos, "--threshold", "auto"], "needs MASKS"),
        ([photos, "--image-size", 96, 128, 160], "IMAGE_SIZE"),
        ([photos, "--flips", "both"], "FLIPS"),
        ([photos, "--probabilities", "12"], "PROBABILITIES"),
        ([photos, "--submission", "rows.txt"], "SUBMISSION"),
        (["--export", "model.tflite"], "EXPORT"),
        ([photos, "--export", "model.pt2"], "takes no images"),
        ([photos, "--no-save-masks"], "Nothing would be kept"),
        ([photos, "--overlap", "-1"], "OVERLAP"),
        ([photos, "--num-workers", "-1"], "NUM_WORKERS"),
        ([photos, "--window", "63"], "WINDOW"),
        ([photos, "--batch-size", "1.5"], "BATCH_SIZE"),
        ([photos, "--precision", "float8"], "PRECISION"),
        ([photos, "--device", "abacus"], "DEVICE"),
        ([photos / "*.png"], "no image in"),
        ([photos, "--masks", tmp_path / "nowhere"], "MASKS"),
        ([photos, "--masks", tmp_path / "bare"], "no mask there fits"),
    ):
        with pytest.raises(UserError, match=said):
            call(*given)
    for name, said in (("nosuch.pth", "no such checkpoint"), ("junk.pth", "junk.pth"), ("foreign.pth", "what network")):
        with pytest.raises(UserError, match=said):
            call(photos, "--checkpoint", tmp_path / name)
    with pytest.raises(UserError, match="(?s)FLIPS.*WINDOW.*OVERLAP"):
        call(photos, "--flips", "both", "--window", 1, "--overlap", -1)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_exit_status_and_no_traceback(photos, words, tmp_path):
    (photos / "text.png").write_text("hello")
    ended = script("predict.py", *words(*sorted(photos.glob("*.png"))), cwd=tmp_path)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr and "text.png" in ended.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["grey.png"]
    ended = script("predict.py", *words(tmp_path / "nowhere"), cwd=tmp_path)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr and "no image in" in ended.stderr


def test_equal_names_keep_their_folders_and_true_collisions_are_refused(photos, call, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    Image.fromarray(blobs(50, 70)).save(other / "a.png")
    _, out = call(photos, other)
    assert load(out / "photos" / "a.png").shape == (100, 150) and load(out / "other" / "a.png").shape == (50, 70)
    Image.fromarray(blobs(50, 70)).save(photos / "a.png")
    with pytest.raises(UserError, match="of .*a.jpg and .*of .*a.png"):
        call(photos)
    (photos / "a.png").rename(photos / "A.png")  # the same file to some file systems
    with pytest.raises(UserError, match="of .*A.png and .*of .*a.jpg"):
        call(photos)
    (photos / "A.png").rename(photos / "a.png")
    with pytest.raises(UserError, match="come more than once: a.png"):
        call(photos / "a.png", other / "a.png", "--submission", tmp_path / "s.csv")


def test_no_picture_is_overwritten_and_outputs_are_no_inputs(photos, call):
    with pytest.raises(UserError, match="grey.png"):
        call(photos, "--output-dir", photos)
    out = photos / "predictions"
    for _ in range(2):  # the second time the folder holds masks
        found, missing = find_pictures([str(photos)], out)
        assert len(found) == 5 and not missing
        call(photos, "--output-dir", out)
    assert len(list(out.rglob("*.png"))) == 5


def test_masks_beside_their_pictures_or_below_them_are_no_pictures(photos, call):
    def scored(*inputs, masks):
        status, out = call(*inputs, "--masks", masks)
        assert status == 0
        return {Path(row["image"]).name for row in csv.DictReader((out / "scores.csv").open())} - {"mean"}

    _, out = call(photos)
    beside = photos / "a_mask.png"
    Image.fromarray(load(out / "a.png")).save(beside)
    assert scored(photos, masks=photos) == scored(*photos.glob("?.*"), masks=photos) == {"a.jpg"}
    (photos / "masks").mkdir()
    beside.rename(photos / "masks" / "grey.png")
    Image.fromarray(load(out / "grey.png")).save(photos / "masks" / "grey.png")
    assert scored(photos, masks=photos / "masks") == {"grey.png"}
    with pytest.raises(UserError, match="no file there ends in _mask"):
        call(photos / "sub", "--masks", photos / "sub")


def test_the_longest_names_are_written_too(call, tmp_path):
    path = tmp_path / ("ü" * 125 + ".jpg")
    Image.fromarray(blobs(30, 40)).save(path)
    status, out = call(path)
    assert status == 0 and [mask.stem for mask in out.iterdir()] == [path.stem]


def test_overlays_and_probability_maps(photos, call):
    _, plain = call(photos)
    before = {path.name: load(path) for path in plain.rglob("*.png")}
    for bits, kind in ((8, np.uint8), (16, np.uint16)):
        status, out = call(photos, "--overlays", "--probabilities", bits)
        assert status == 0
        for picture, _ in ((path, 0) for path in out.rglob("*.png") if "probabilities" not in path.parts):
            name = picture.relative_to(out)
            mask, chances = load(picture), load(out / "probabilities" / name)
            assert (mask == before[picture.name]).all(), "the extras change nothing"
            assert chances.dtype == kind and ((chances > np.iinfo(kind).max / 2) == (mask > 0)).mean() > 0.99
            overlay = load(out / "overlays" / name.with_suffix(".jpg"))
            assert overlay.shape == (*mask.shape, 3)


def test_the_articles_checkpoint_needs_nothing_more(photos, network, tmp_path, call):
    torch.save({"state_dict": network.state_dict(), "optimizer": {}}, tmp_path / "article.pth")
    call(photos / "a.jpg", "--checkpoint", tmp_path / "article.pth", "--output-dir", tmp_path / "article")
    _, out = call(photos / "a.jpg", "--image-size", 320, 480)
    assert (load(tmp_path / "article" / "a.png") == load(out / "a.png")).all()


def test_masks_do_not_depend_on_batches_and_threads(photos, call):
    _, out = call(photos)
    expected = {path: load(path) for path in out.rglob("*.png")}
    for batch_size, threads in ((4, "none"), (3, 1), (0, 0)):
        call(photos, "--batch-size", batch_size, "--num-workers", threads)
        for path, mask in expected.items():
            assert (load(path) != mask).mean() < 1e-3, path


def test_mirrored_copies_are_averaged(call, network, tmp_path):
    image = blobs(96, 128, 5)
    Image.fromarray(image).save(tmp_path / "image.png")
    _, out = call(tmp_path / "image.png", "--flips", "h")
    images = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        logits = network(images) + network(images.flip(3)).flip(3)
        assert ((load(out / "image.png") > 0) != (logits[0, 0].numpy() > 0)).mean() < 1e-3
        assert ((load(out / "image.png") > 0) != (network(images)[0, 0].numpy() > 0)).mean() > 1e-2


def test_a_size_of_its_own_and_tiny_pictures(photos, call):
    Image.fromarray(blobs(1, 3)).save(photos / "tiny.png")
    status, out = call(photos, "--image-size", "own", "--window", 128)
    assert status == 0
    assert load(out / "tiny.png").shape == (1, 3) and load(out / "sub" / "b.c.png").shape == (161, 241)


# ---- what is not read


def test_pictures_that_are_not_read_are_told_and_count_as_failed(photos, call, capsys):
    Image.fromarray(blobs(40, 60)).save(photos / "sub" / "scan.jp2")
    np.save(photos / "array.npy", blobs(40, 60))
    Image.fromarray(blobs(40, 60)).save(photos / "raw.DNG", format="TIFF")
    (photos / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    for name in ("nameless", "half.jpg.part"):  # a file manager shows what they hold
        Image.fromarray(blobs(40, 60)).save(photos / name, format="JPEG")
    (photos / ".hidden.jpg").write_bytes(b"")
    unread = ["scan.jp2", "array.npy", "raw.DNG", "phone.heic", "nameless", "half.jpg.part"]
    status, out = call(photos, "--submission", photos / "rows.csv")
    said = capsys.readouterr()
    assert status == 1 and "6 of the inputs failed" in said.err and "5 images done" in said.out
    for name in unread:
        assert re.search(rf"{name}: its kind or its name is not read", said.err), name
        assert name in re.search(r"rows.csv: lacks the rows of 6 inputs: (.*)", said.err)[1]
    assert re.search(r"Left out: 2 that are .*: \S*\.hidden\.jpg, \S*notes\.txt\.", said.out)
    assert len((photos / "rows.csv").read_text().splitlines()) == 6
    Image.new("L", (150, 100)).save(photos / "a_mask.png")  # beside its picture, and so are these
    assert len(find_pictures([str(photos)], mask_dir=str(photos))[1]) == 6
    with pytest.raises(UserError, match="no image in"):  # all that there is to be done, but it was told
        (photos / "only").mkdir()
        (photos / "phone.heic").rename(photos / "only" / "phone.heic")
        call(photos / "only")
    assert "phone.heic: its kind" in capsys.readouterr().err


def test_what_is_no_picture_to_a_person_is_no_failure(photos, call, capsys):
    assert call(photos)[0] == 0
    said = capsys.readouterr()
    assert "Left out: 1 that are no pictures by their names" in said.out and "notes.txt" in said.out
    assert "failed" not in said.err
    call(photos, "--output-dir", photos / "masks")
    capsys.readouterr()
    call(photos, "--output-dir", photos / "masks")
    assert re.search(r"Left out: 2 that are .*: \S*notes.txt, \S*masks\.", capsys.readouterr().out)


def test_videos_and_kinds_that_are_not_read_are_told_with_what_to_do(photos, call, capsys):
    for name in ("film.mp4", "phone.heic"):
        (photos / name).write_bytes(bytes(99))
    for inputs in ([photos], sorted(photos.glob("*.*"))):
        status, _ = call(*inputs)
        said = capsys.readouterr()
        assert status == 1 and "of the inputs failed" in said.err
        assert "film.mp4: is a video. Cut it into frames" in said.err and "phone.heic: its kind or" in said.err
    Image.fromarray(blobs(40, 60)).save(photos / "scan.jp2")
    assert call(photos / "scan.jp2")[0] == 0, "by its own name it may be tried"


# ---- more than 8 bits


def deep_pictures(folder):
    """A grey, a coloured and a page of 16 bits that use 10 of them, and what they are at 8: {name: uint8 (H, W, 3)}."""
    folder.mkdir()
    colours = (blobs(100, 150).astype(np.uint16) << 2) + 500
    grey = np.ascontiguousarray(colours[..., 0])
    cv2.imwrite(str(folder / "colours.png"), colours[..., ::-1])
    Image.fromarray(grey).save(folder / "grey.png")
    save_pages(folder / "stack.tif", [Image.fromarray(grey[::-1].copy()), Image.fromarray(grey)])
    plain = {"colours": colours, "grey": grey, "stack_0": grey[::-1], "stack_1": grey}
    plain = {name: array if array.ndim == 3 else np.repeat(array[..., None], 3, 2) for name, array in plain.items()}
    return {name: np.rint((array - 500.0) / 1020 * 255).astype(np.uint8) for name, array in plain.items()}


def test_images_of_more_than_8_bits_are_read_by_the_span_of_training(call, changed, tmp_path, capsys):
    plain = deep_pictures(tmp_path / "deep")
    Image.fromarray(plain["grey"][..., 0] * np.float32(4) + 500).save(tmp_path / "deep" / "float.tif")
    (tmp_path / "plain").mkdir()
    for name, array in (plain | {"float": plain["grey"]}).items():
        Image.fromarray(array).save(tmp_path / "plain" / f"{name}.png")
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
    Image.fromarray(plain["grey"]).save(tmp_path / "deep" / "eight.png")
    Image.fromarray(plain["grey"][..., 0].astype(np.uint16) * 257).save(tmp_path / "deep" / "full.png")
    assert call(tmp_path / "deep")[0] == 0
    said = capsys.readouterr().out
    told = re.search(r"\n(\d) of them have 16 bits and use only the lowest 12 or fewer, .*?: (.*)\. Train with", said)
    assert told[1] == "4" and said.count("16 bits") == 1
    assert [name for name in ("colours.png", "grey.png", "stack.tif[0]", "stack.tif[1]") if name in told[2]] == [
        "colours.png", "grey.png", "stack.tif[0]", "stack.tif[1]"
    ]  # fmt: skip
    assert "eight" not in told[2] and "full" not in told[2]
    Image.fromarray(plain["grey"][..., 0] + np.float32(0.5)).save(tmp_path / "deep" / "float.tif")
    assert call(tmp_path / "deep")[0] == 1
    assert re.search("float.tif: has floating-point .*IMAGE_RANGE", capsys.readouterr().err)


# ---- files of several pages


def pages(count=3):
    """Pictures of other sizes and contents, as PIL has them."""
    return [Image.fromarray(blobs(60 + 20 * number, 90, number)) for number in range(count)]


def save_pages(path, pictures, **options):
    first, *rest = (picture.copy() for picture in pictures)  # saving leaves its marks on them
    first.save(path, save_all=True, append_images=rest, **options)


@pytest.mark.parametrize("name", ["stack.tif", "film.gif", "film.png", "film.webp"])
def test_every_page_gets_a_mask_as_if_it_were_a_file(call, tmp_path, name):
    (tmp_path / "in").mkdir()
    pictures = pages() if name == "stack.tif" else [picture.resize((90, 60)) for picture in pages()]
    save_pages(tmp_path / "in" / name, pictures, lossless=True)
    status, out = call(tmp_path / "in", "--overlays", "--probabilities", 8, "--submission", tmp_path / "rows.csv")
    stem, suffix = name.split(".")
    assert status == 0
    for folder, ending in ((out, ".png"), (out / "overlays", ".jpg"), (out / "probabilities", ".png")):
        assert {path.name for path in folder.glob("*.*")} == {f"{stem}_{number}{ending}" for number in range(3)}
    rows = list(csv.reader((tmp_path / "rows.csv").open()))
    assert [row[0] for row in rows[1:]] == [f"{stem}_{number}.{suffix}" for number in range(3)]
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
    assert status == 0 and {path.name for path in out.iterdir()} == {"camera.png", "map.png"}


def test_a_damaged_page_is_told_and_the_others_are_done(call, tmp_path, capsys):
    save_pages(tmp_path / "stack.tif", pages())
    whole = (tmp_path / "stack.tif").read_bytes()
    for share, done in ((0.95, 2), (0.5, 1)):  # within the last page, and before it begins
        (tmp_path / "stack.tif").write_bytes(whole[: int(share * len(whole))])
        status, out = call(tmp_path / "stack.tif", "--output-dir", tmp_path / str(share))
        said = capsys.readouterr()
        assert status == 1 and f"{done} images done" in said.out and "stack.tif[2]: is damaged" in said.err
        assert len(list((tmp_path / str(share)).iterdir())) == done


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
        rows = csv.DictReader((out / "scores.csv").open())
        return {Path(row["image"]).name: float(row["dice"]) for row in rows if row["image"] != "mean"}

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
    Image.fromarray(load(out / "single.png")).save(truths / "single.png")
    (truths / "single.tif").unlink()
    assert dice(truths, status=1) == {"single.png": 1}
    assert "stack_mask.tif" in capsys.readouterr().err


# ---- scores


def test_scores_worked_out_by_hand(photos, call, tmp_path, capsys):
    scores = ForegroundScores(tmp_path, Truths(), MaskRule())
    for name, counts in dict(perfect=(8, 8, 8), half=(2, 4, 8), missed=(0, 0, 8), empty=(0, 0, 0)).items():
        both, given, true = counts
        confusion = np.array([[20 - given - true + both, given - both], [true - both, both]])
        scores.take(Result(Picture(Path(name), Path(name)), made={scores: confusion}))
    scores.finish()
    assert scores.dice.tolist() == [1, 2 * 2 / 12, 0, 1] and scores.iou.tolist() == [1, 2 / 10, 0, 1]
    rows = list(csv.DictReader((tmp_path / "scores.csv").open()))
    assert rows[1] == dict(
        image="half", dice="0.333333", iou="0.200000", pixels_in_both="2", predicted_pixels="4", true_pixels="8"
    )
    assert rows[4]["image"] == "mean" and float(rows[4]["dice"]) == pytest.approx((1 + 1 / 3 + 0 + 1) / 4, abs=1e-6)
    # of real masks, each counted, and the lowest first
    _, out = call(photos)
    predicted = load(out / "a.png") > 0
    truths = tmp_path / "truths"
    truths.mkdir()
    halves = {"a": predicted.copy(), "grey": load(out / "grey.png") > 0}
    halves["a"][:50] = False
    for name, truth in halves.items():
        Image.fromarray(truth.astype(np.uint8) * 255).save(truths / f"{name}.png")
    call(photos, "--masks", truths)
    rows = {Path(row["image"]).stem: row for row in csv.DictReader((out / "scores.csv").open())}
    both = int(halves["a"].sum())
    assert [rows["a"][key] for key in ("pixels_in_both", "predicted_pixels", "true_pixels")] == [
        str(both), str(int(predicted.sum())), str(both)
    ]  # fmt: skip
    assert float(rows["a"]["dice"]) == pytest.approx(2 * both / (both + predicted.sum()), abs=1e-6)
    assert float(rows["grey"]["dice"]) == 1
    assert re.search(r"(?s)The lowest Dice:\n  0\.\S+  \S*a\.jpg\n  1\.0000  \S*grey", capsys.readouterr().out)


def test_its_own_masks_score_one_and_their_opposites_nothing(photos, call, tmp_path, capsys):
    _, out = call(photos)
    truths = tmp_path / "truths"
    (truths / "sub").mkdir(parents=True)
    for path in out.rglob("*.png"):
        target = truths / path.relative_to(out).with_name(path.stem + "_mask.png")
        mask = load(path)
        Image.fromarray(255 - mask if path.stem == "grey" else mask).save(target)
    status, out = call(photos, "--masks", truths)
    assert status == 0
    rows = {row["image"]: row for row in csv.DictReader((out / "scores.csv").open())}
    assert float(rows[str(photos / "a.jpg")]["dice"]) == 1 and float(rows[str(photos / "grey.png")]["dice"]) == 0
    assert float(rows["mean"]["dice"]) == 0.8
    said = capsys.readouterr().out
    assert "Dice 0.8000, IoU 0.8000: means over 5" in said
    assert re.search(r"0\.0000 .*grey\.png", said)
    assert load(out / "worst.png").shape[0] > 5 * 240


def test_a_mask_of_another_size_is_scored_at_its_own(photos, call, tmp_path):
    truths = tmp_path / "truths"
    truths.mkdir()
    _, out = call(photos / "a.jpg")
    small = load(out / "a.png")
    Image.fromarray(cv2.resize(small, (300, 200), interpolation=cv2.INTER_LINEAR)).convert("1", dither=0).save(
        truths / "a.png"
    )
    _, out = call(photos, "--masks", truths, "--no-save-masks")
    row = next(csv.DictReader((out / "scores.csv").open()))
    assert float(row["dice"]) > 0.85  # the edges of noise differ
    assert int(row["true_pixels"]) == int((load(truths / "a.png") > 0).sum()), "counted on 200x300"


def test_several_masks_of_a_picture_are_united(photos, call, classes_checkpoint, tmp_path):
    truths = tmp_path / "truths"
    _, out = call(photos)
    (truths / "sub").mkdir(parents=True)
    whole = {"a": load(out / "a.png"), "sub/b.c": load(out / "sub" / "b.c.png"), "grey": load(out / "grey.png")}
    for name, mask in whole.items():
        parts = np.stack([mask, mask])
        parts[0, :, 30:] = parts[1, :, :30] = 0
        for number, part in enumerate(parts if name != "grey" else [mask]):
            Image.fromarray(part).save(truths / f"{name}_obj{number}.png")
    status, out = call(photos, "--masks", truths, "--mask-name", "{}_obj*")
    assert status == 0
    rows = {Path(row["image"]).stem: row for row in csv.DictReader((out / "scores.csv").open())}
    assert set(rows) == {"a", "b.c", "grey", "mean"}
    for name, mask in whole.items():
        assert float(rows[Path(name + ".png").stem]["dice"]) == 1
        assert int(rows[Path(name + ".png").stem]["true_pixels"]) == (mask > 0).sum()
    Image.fromarray(blobs(100, 150)).save(photos / "a_obj1.jpg")
    with pytest.raises(UserError, match="(?s)overwrite.*a_obj1.png: is one of the inputs"):
        call(*photos.glob("a*.jpg"), "--masks", truths, "--mask-name", "{}_obj*", "--output-dir", truths)
    with pytest.raises(UserError, match=r"several masks fit .*a.jpg.*take the \* out of MASK_NAME"):
        call(photos, "--masks", truths, "--mask-name", "{}_obj*", "--checkpoint", classes_checkpoint())


def test_scores_that_would_mislead_are_told(photos, call, tmp_path, capsys):
    """A mask that is turned, one that is damaged, and a meaning of training's that these masks do not have."""
    truths = tmp_path / "truths"
    truths.mkdir()
    Image.fromarray(np.full((100, 150), 255, np.uint8)).save(truths / "turned.png")  # as stored, before EXIF
    Image.fromarray(np.full((100, 150), 255, np.uint8)).save(truths / "a.png")
    (truths / "grey.png").write_bytes(b"no mask")
    status, out = call(photos, "--masks", truths)
    said = capsys.readouterr()
    assert status == 1 and "turned.jpg is 150x100" in said.err and "one is turned" in said.err
    assert "grey.png" in said.err and "2 of the inputs failed" in said.err
    names = {Path(row["image"]).name for row in csv.DictReader((out / "scores.csv").open())}
    assert names == {"a.jpg", "mean"} and len(list(out.rglob("*.png"))) == 5 + 1
    assert "reads as foreground" not in said.out


@pytest.mark.parametrize("name", ["MASK_FOREGROUND", "mask_foreground"])  # the latter in older checkpoints
def test_a_meaning_of_training_that_these_masks_do_not_have_is_told(photos, call, changed, tmp_path, capsys, name):
    truths = tmp_path / "truths"
    truths.mkdir()
    Image.fromarray(np.full((100, 150), 255, np.uint8)).save(truths / "a.png")
    mask_rule = MaskRule("numbers", (), (8,), rest=True).to_dict()
    path = changed(settings={name: 8}, mask_rule=mask_rule)
    call(photos, "--checkpoint", path, "--masks", truths)
    assert "reads as foreground" in capsys.readouterr().out
    call(photos, "--checkpoint", path, "--masks", truths, "--mask-foreground", 255)
    assert "reads as foreground" not in capsys.readouterr().out


def test_an_output_that_is_no_number_is_no_mask(photos, call, changed, network, capsys):
    weights = network.state_dict()
    path = changed(state_dict=weights | {"output_conv.bias": weights["output_conv.bias"] * float("nan")})
    status, out = call(photos, "--checkpoint", path)
    said = capsys.readouterr()
    assert status == 1 and "a.jpg: the network's output is not a number" in said.err and "0 images done" in said.out
    assert not out.exists()


def test_a_checkpoint_of_another_kind_is_told_or_read(photos, call, changed, tmp_path):
    for channels in ((1, 1), (4, 1), (4, 3)):
        torch.save(UNet(*channels, (4, 8)).state_dict(), tmp_path / "other.pth")
        with pytest.raises(UserError, match=f"{channels[0]} channels in and {channels[1]} out"):
            call(photos, "--checkpoint", tmp_path / "other.pth")
    with pytest.raises(UserError, match="not understood"):
        call(photos, "--checkpoint", changed(network={"depth": 4}))
    assert call(photos, "--checkpoint", changed(network="unet", settings=None))[0] == 0


def test_names_that_are_no_unicode(call, tmp_path):
    name = os.fsdecode(b"caf\xe9")
    for folder, suffix in (("photos", ".jpg"), ("truths", ".png")):
        (tmp_path / folder).mkdir()
        Image.fromarray(blobs(40, 60)[..., 0]).point(lambda v: 255 * (v > 99)).save(tmp_path / folder / (name + suffix))
    rows = tmp_path / "s.csv"
    status, out = call(tmp_path / "photos", "--masks", tmp_path / "truths", "--submission", rows)
    assert status == 0 and b"\ncaf\xe9.jpg," in rows.read_bytes()
    assert len((out / "scores.csv").read_text().splitlines()) == 3


def test_a_picture_too_long_for_an_overlay_is_told_and_its_mask_written(photos, call, capsys):
    Image.new("RGB", (70_000, 3)).save(photos / "long.png")
    status, out = call(photos / "long.png", photos / "grey.png", "--overlays")
    assert status == 1 and "long.png: too long for an overlay" in capsys.readouterr().err
    assert load(out / "long.png").shape == (3, 70_000) and (out / "overlays" / "grey.jpg").is_file()


def test_places_that_cannot_be_written_are_told_by_their_names(photos, call, tmp_path):
    (photos / "probabilities").mkdir()
    (photos / "sub" / "b.c.png").rename(photos / "probabilities" / "a.png")
    with pytest.raises(UserError, match="(?s)overwrite.*out/probabilities/a.png of .*a.jpg"):
        call(photos, "--probabilities", 8)
    (tmp_path / "out" / "a.png").mkdir(parents=True)
    with pytest.raises(UserError, match="(?s)overwrite.*out/a.png: .*folder"):
        call(photos / "a.jpg")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError) as caught:
        call(photos, "--output-dir", tmp_path / "file")
    assert describe(caught.value).startswith(f"{tmp_path / 'file'}: a file has the name of a folder")
    with pytest.raises(OSError) as caught:
        write_text(tmp_path / "out" / "a.png", "text")
    assert describe(caught.value).startswith(f"{tmp_path / 'out' / 'a.png'}: this is a folder")


def test_the_chosen_threshold_is_the_best_of_all():
    rng = np.random.default_rng(0)
    images = []
    for shift in (-1.0, -1.5, 0.0):
        truth = (rng.random((40, 50)) < 0.3).astype(np.uint8)
        images.append((((truth * 3 - 1.5) + rng.normal(0, 1, truth.shape) + shift).astype(np.float32), truth))
    best = best_threshold([histogram(*image) for image in images])
    chosen, dice, at_half = best.value, best.dice, best.dice_at_half

    def mean_dice(threshold):
        logits, truths = (np.stack(arrays) for arrays in zip(*images))
        masks = torch.from_numpy(1 / (1 + np.exp(-logits.astype(np.float64))) > threshold)
        return dice_from_counts(
            *overlap_of(count_confusion(masks, torch.from_numpy(truths), 2))[..., 1].numpy().T
        ).mean()

    by_hand = [mean_dice(k / 256) for k in range(1, 256)]
    assert dice == pytest.approx(max(by_hand), abs=1e-3) == pytest.approx(mean_dice(chosen), abs=1e-3)
    assert at_half == pytest.approx(mean_dice(0.5), abs=1e-3) and chosen < 0.45 and dice > at_half + 0.01


def test_equally_good_thresholds_give_the_one_in_the_middle():
    truth = np.array([[0, 1]], np.uint8)
    assert best_threshold([histogram(np.array([[-9, 9]], np.float32), truth)]) == Threshold(0.5, 1, 1)


def test_threshold_auto_raises_the_score(photos, call, tmp_path, capsys):
    _, out = call(photos, "--threshold", 0.8)
    truths = tmp_path / "truths"
    for path in out.rglob("*.png"):
        (truths / path.relative_to(out)).parent.mkdir(parents=True, exist_ok=True)
        path.rename(truths / path.relative_to(out))
    capsys.readouterr()
    call(photos, "--threshold", "auto", "--masks", truths)
    said = capsys.readouterr().out
    assert 0.78 < float(re.search(r"Threshold ([\d.]+)", said)[1]) < 0.82
    assert float(re.search(r"\nDice ([\d.]+)", said)[1]) > 0.98


def test_empty_images_do_not_make_a_threshold_best_at_which_nothing_is_predicted():
    """Two images that hold something, found at 0.25 only, and ten that are empty, where noise is predicted then."""
    truth = np.zeros((20, 20), np.uint8)
    truth[:10] = 1
    holding = (np.where(truth, -0.7, -4).astype(np.float32), truth)
    empty = np.full((20, 20), -4, np.float32)
    empty[0, 0] = -0.7
    images = [holding] * 2 + [(empty, 0 * truth)] * 10
    best = best_threshold([histogram(*image) for image in images])
    assert 0.02 < best.value < 0.34 and best.dice == pytest.approx(2 / 12) and best.dice_at_half == 0
    assert best_threshold([histogram(empty, 0 * truth)]) == Threshold(0.5, 1, 1), "where all are empty, nothing is best"


def test_empty_images_are_told_apart_from_the_mean(photos, call, tmp_path, capsys):
    _, out = call(photos, "--threshold", 1 - 1e-9)
    assert not any(load(path).any() for path in out.rglob("*.png"))
    assert "Nothing is predicted in 5 of them" in capsys.readouterr().out
    truths = tmp_path / "truths"
    truths.mkdir()
    _, out = call(photos / "a.jpg")
    assert "Nothing is predicted" not in capsys.readouterr().out
    Image.fromarray(load(out / "a.png")).save(truths / "a.png")
    for name, size in (("grey", (60, 90)), ("palette", (80, 64))):
        Image.new("L", size).save(truths / f"{name}.png")
    call(photos, "--masks", truths, "--threshold", 1 - 1e-9)
    said = capsys.readouterr().out
    assert "Dice 0.6667, IoU 0.6667: means over 3" in said and "\nDice 0.0000 without those that are empty" in said
    call(photos, "--masks", truths)  # where something is predicted in each
    said = capsys.readouterr().out
    assert "Dice 0.3333" in said and "without those" not in said


# ---- several classes


NAMES = ("0", "road", "a/b", "300")
COLOURS = (0x102030, 0xFF0000, 0x00FF00, 0xFF)
RULES = dict(
    numbers=MaskRule("numbers", (), (), classes=(0, 3, 8, 300), names=NAMES),
    palette=MaskRule("numbers", (), (), ignored=(9,), classes=(0, 3, 8, 7), names=NAMES, colours=COLOURS),
    colours=MaskRule("colours", (), (), ignored=(0xFFFFFF,), classes=COLOURS, names=NAMES, colours=COLOURS),
)


@pytest.fixture(scope="session")
def classes_network(network):
    """The U-Net with four random output channels, none of which is the best everywhere."""
    torch.manual_seed(1)
    weights = network.state_dict()
    several = UNet(features=(8, 16), out_channels=4).eval()
    weights |= {key: torch.randn(4, *weights[key].shape[1:]) for key in ("output_conv.weight", "output_conv.bias")}
    several.load_state_dict(weights)
    with torch.no_grad():
        logits = several(torch.from_numpy(blobs(96, 128)).permute(2, 0, 1)[None] / 255)[0].flatten(1)
        several.output_conv.bias -= logits.median(1).values
        for parameter in several.output_conv.parameters():
            parameter *= (5 / logits.std(1)).reshape(-1, *[1] * (parameter.ndim - 1))
    return several


@pytest.fixture
def classes_checkpoint(classes_network, changed):
    """classes_checkpoint(rule, ...) is the path of a checkpoint of that network, for masks of that MaskRule."""
    architecture = dict(in_channels=3, out_channels=4, features=[8, 16])
    return lambda mask_rule=RULES["numbers"], **values: changed(
        state_dict=classes_network.state_dict(), network=architecture, mask_rule=mask_rule.to_dict(), **values
    )


def labels_by_hand(network, path, size=(96, 128)):
    """The class of each pixel at the picture's own size: the enlarged logits of the network, the highest one."""
    image = read_image(path)
    own = image.shape[:2]
    with torch.no_grad():
        images = torch.from_numpy(resize_image(image, size)).permute(2, 0, 1)[None] / 255
        logits = network(images)[0].numpy()
    return np.stack([resize_image(plane, own) for plane in logits])


@pytest.mark.parametrize("kind", RULES)
def test_classes_are_written_as_the_masks_of_training_have_them(
    photos, call, classes_network, classes_checkpoint, kind
):
    mask_rule = RULES[kind]
    status, out = call(photos, "--checkpoint", classes_checkpoint(mask_rule))
    assert status == 0 and len(list(out.rglob("*.*"))) == 5
    seen = set()
    for path in photos.rglob("*.*"):
        if path.suffix != ".txt":
            written = out / path.relative_to(photos).with_suffix(".png")
            labels = read_mask(written, mask_rule)
            logits = labels_by_hand(classes_network, path)
            best, second = np.sort(logits, axis=0)[[-1, -2]]
            assert (labels == logits.argmax(0))[best - second > 1e-3].all(), path
            assert (load(written) == np.asarray(encode_mask(labels, mask_rule))).all()
            seen |= set(np.unique(labels).tolist())
    assert seen == {0, 1, 2, 3}
    found = find_mask_rule(
        [*out.rglob("*.png")], DataSpec(classes=dict(zip(mask_rule.names, mask_rule.classes))), num_workers=1
    )
    assert (
        found.classes == mask_rule.classes
        and found.kind == mask_rule.kind
        and bool(found.colours) == bool(mask_rule.colours)
    )


@pytest.mark.slow
def test_two_classes_give_what_one_foreground_gives(photos, call, changed, network, tmp_path):
    """The class of 255 has the logits of the foreground, that of 0 has none; or both have something more."""
    rng = np.random.default_rng(0)
    assert not classify(np.ones((2, 4, 6), np.float32), (4, 6)).mask.any(), "of equal ones the first"
    logits = rng.normal(0, 3, (2, 40, 60)).astype(np.float32)
    for size in ((40, 60), (123, 77), (20, 200)):
        decided = classify(logits, size)
        mask = decided.mask
        lies_above = resize_image(logits[1] - logits[0], size)
        assert (mask == (lies_above > 0)).all() and mask.any() and not mask.all()
        (_, foreground), alone = class_probabilities(logits, decided.lead, 8), probability_map(lies_above, 8)
        assert np.abs(foreground.astype(int) - alone).max() <= 1
    weights = network.state_dict()
    two = {key: torch.cat([0 * weights[key], weights[key]]) for key in ("output_conv.weight", "output_conv.bias")}
    mask_rule = MaskRule("numbers", (), (), classes=(0, 255), names=("0", "255")).to_dict()
    path = changed(
        state_dict=weights | two, network=dict(in_channels=3, out_channels=2, features=[8, 16]), mask_rule=mask_rule
    )
    in_windows = ("--window", 64, "--image-size")
    for flags in ((), ("--flips", "hv"), (*in_windows, "own"), (*in_windows, 120, 160), ("--batch-size", 3)):
        call(photos, *flags, "--output-dir", tmp_path / "one")
        call(photos, *flags, "--output-dir", tmp_path / "two", "--checkpoint", path)
        for mask in (tmp_path / "one").rglob("*.png"):
            other = load(tmp_path / "two" / mask.relative_to(tmp_path / "one"))
            assert (load(mask) == other).all() and other.any() and not other.all(), (flags, mask)


def test_probabilities_of_classes_are_softmax():
    logits = np.random.default_rng(0).normal(0, 40, (5, 30, 40)).astype(np.float32)
    for bits, size in ((8, (30, 40)), (16, (77, 91)), (16, (13, 50))):
        decided = classify(logits, size)
        planes = torch.from_numpy(np.stack([resize_image(plane, size) for plane in logits])).double()
        expected = planes.softmax(0).numpy()
        maps = np.stack(list(class_probabilities(logits, decided.lead, bits)))
        most = 2**bits - 1
        assert maps.dtype == (np.uint8 if bits == 8 else np.uint16) and maps.max() == most
        assert np.abs(maps - expected * most).max() < 0.5 + 1e-4 * most
        assert (decided.mask == planes.argmax(0).numpy()).mean() > 0.999


def test_a_map_of_each_class_and_overlays_with_one_legend(photos, call, classes_network, classes_checkpoint):
    path = classes_checkpoint()
    status, out = call(photos, "--checkpoint", path, "--probabilities", 16, "--overlays")
    assert status == 0
    for name in ("a", "sub/b.c"):
        maps = [load(out / "probabilities" / f"{name}_{kind}.png") for kind in ("0", "road", "a_b", "300")]
        labels = read_mask(out / f"{name}.png", RULES["numbers"])
        total = np.stack(maps).astype(int).sum(0)
        assert maps[0].shape == labels.shape and np.abs(total - 65535).max() <= 4
        chosen = np.take_along_axis(np.stack(maps), labels[None].astype(int), 0)[0]
        assert (chosen == np.stack(maps).max(0)).mean() > 0.999
        image, palette = read_image(next(photos.rglob(f"{name}.*"))), pictures.Palette.of(RULES["numbers"])
        pictures.save_image(out / "drawn.jpg", pictures.overlay(image, labels, palette))
        assert (load(out / "overlays" / f"{name}.jpg") == load(out / "drawn.jpg")).all()
    assert (out / "overlays" / "legend.png").is_file()
    assert len(list((out / "probabilities").rglob("*.png"))) == 20
    with pytest.raises(UserError, match="overlays/legend.png: is one of the inputs"):
        call(photos, out / "overlays" / "legend.png", "--checkpoint", path, "--overlays")
    Image.fromarray(blobs(40, 60)).save(photos / "a_b.png")
    same = MaskRule("numbers", (), (), classes=(0, 1, 2, 3), names=("c", "b_c", "d", "e"))
    with pytest.raises(UserError, match="(?s)overwrite.*a_b_c.png of .*a.jpg and .*a_b_c.png of .*a_b.png"):
        call(photos, "--checkpoint", classes_checkpoint(same), "--probabilities", 8)


def test_classes_of_a_picture_in_windows(photos, call, classes_checkpoint, tmp_path, capsys):
    """At its own size they are decided band by band: the same masks, maps and scores as in one piece."""
    path, files = classes_checkpoint(), [photos / "a.jpg", photos / "sub" / "b.c.png"]
    own = ("--checkpoint", path, "--image-size", "own", "--probabilities", 8)
    call(*files, *own, "--output-dir", tmp_path / "whole")
    for mask in ("a", "b.c"):
        (tmp_path / "truths").mkdir(exist_ok=True)
        (tmp_path / "truths" / f"{mask}.png").write_bytes((tmp_path / "whole" / f"{mask}.png").read_bytes())
    small = read_mask(tmp_path / "whole" / "a.png", RULES["numbers"], (50, 75))  # scored at its own size
    encode_mask(small, RULES["numbers"]).save(tmp_path / "truths" / "a.png")
    status, out = call(*files, *own, "--window", 64, "--masks", tmp_path / "truths", "--overlays")
    assert status == 0
    for name in ("a.png", "b.c.png", "probabilities/a_road.png", "probabilities/b.c_300.png"):
        one, other = load(tmp_path / "whole" / name), load(out / name)
        assert one.shape == other.shape and (np.abs(one.astype(int) - other) > 1).mean() < 1e-3, name
    rows = {Path(row["image"]).name: float(row["dice"]) for row in csv.DictReader((out / "scores.csv").open())}
    assert rows["b.c.png"] > 0.995 and rows["a.jpg"] > 0.995


def test_windows_of_classes_need_a_strip_of_memory():
    """Not a plane of logits a class, of which there are 30 of 0.4 MB here."""
    torch.manual_seed(0)
    runner = predict.make_runner(UNet(features=(4, 8), out_channels=30).eval(), "cpu", "float32", window=64)
    image = blobs(1400, 70)
    with torch.no_grad():  # so that each is the best somewhere
        runner.network.output_conv.bias -= torch.from_numpy(np.median(runner.logits(image[None, :100])(0), axis=(1, 2)))
    tracemalloc.start()
    try:
        prediction = BandedPrediction(Loaded(None, image.shape[:2], image), runner.channels)
        for top, logits in runner.bands(image):
            assert logits.untyped_storage().nbytes() < 1e6  # which tracemalloc does not see
            prediction.put(top, logits.numpy())
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 3e6 and len(np.unique(prediction.mask)) > 1
    assert (prediction.mask == runner.logits_in_windows(image).argmax(0)).mean() > 0.9999


def test_scores_of_classes(photos, call, classes_checkpoint, tmp_path, capsys):
    """Of its own masks, of which one lacks a class, one is ignored in part, and one is shifted by hand."""
    mask_rule = RULES["palette"]
    path = classes_checkpoint(mask_rule)
    _, out = call(photos, "--checkpoint", path)
    truths = tmp_path / "truths"
    truths.mkdir()
    masks = {name: read_mask(out / f"{name}.png", mask_rule) for name in ("a", "grey", "palette")}
    masks["a"][masks["a"] == 3] = 0
    masks["grey"][:30] = (masks["grey"][:30] + 1) % 4
    true = {name: mask.copy() for name, mask in masks.items()}
    true["grey"][:30] = IGNORED
    for name, mask in true.items():
        encode_mask(mask, mask_rule).save(truths / f"{name}.png")
    status, out = call(photos, "--checkpoint", path, "--masks", truths)
    said = capsys.readouterr().out
    assert status == 0 and "there are 4 classes: 0, 3 road, 8 a/b, 7 300; 9 is ignored" in said
    rows = {Path(row["image"]).stem: row for row in csv.DictReader((out / "scores.csv").open())}
    assert list(rows["a"]) == ["image", "dice", "dice_0", "dice_road", "dice_a/b", "dice_300"]
    assert [float(rows["grey"][key] or 1) for key in list(rows["grey"])[1:]] == [1] * 5
    predicted = read_mask(out / "a.png", mask_rule)
    by_hand = [
        2 * ((predicted == k) & (true["a"] == k)).sum() / ((predicted == k).sum() + (true["a"] == k).sum())
        for k in range(4)
    ]
    assert by_hand[3] == 0 < by_hand[0] < 1
    assert [float(rows["a"][key]) for key in list(rows["a"])[1:]] == pytest.approx(
        [np.mean(by_hand), *by_hand], abs=1e-6
    )
    holding = [row for name, row in rows.items() if name != "mean" and row["dice_300"]]
    assert float(rows["mean"]["dice_300"]) == pytest.approx(
        np.mean([float(row["dice_300"]) for row in holding]), abs=1e-6
    )
    pooled = np.concatenate([true[name][true[name] != IGNORED] for name in true])
    found = np.concatenate([read_mask(out / f"{name}.png", mask_rule)[true[name] != IGNORED] for name in true])
    iou = [((pooled == k) & (found == k)).sum() / ((pooled == k) | (found == k)).sum() for k in range(4)]
    table = dict(re.findall(r"\n  (\S+) +[\d.]+  ([\d.]+) +[\d.]+ %", said))
    assert {name: float(value) for name, value in table.items()} == pytest.approx(
        dict(zip(mask_rule.names, iou)), abs=1e-4
    )
    assert f"IoU {np.mean(iou):.4f}" in said and "The lowest Dice:" in said
    assert load(out / "worst.png").shape[0] > 3 * 240


def test_true_classes_are_read_by_the_rule_of_training(photos, call, classes_checkpoint, tmp_path, capsys):
    truths = tmp_path / "truths"
    truths.mkdir()
    for name, value, size in (("a", 3, (150, 100)), ("grey", 5, (60, 90))):
        Image.new("L", size, value).save(truths / f"{name}.png")
    status, out = call(photos, "--checkpoint", classes_checkpoint(), "--masks", truths)
    said = capsys.readouterr()
    assert status == 1 and "grey.png: holds other values" in said.err
    names = {Path(row["image"]).name for row in csv.DictReader((out / "scores.csv").open())}
    assert names == {"a.jpg", "mean"}
    status, out = call(photos, "--checkpoint", classes_checkpoint(), "--masks", truths, "--mask-ignore", 5)
    assert status == 0 and "5 is ignored" in capsys.readouterr().out


def test_what_is_for_one_foreground_is_refused_for_classes(photos, call, classes_checkpoint, tmp_path):
    path = classes_checkpoint()
    with pytest.raises(
        UserError, match=r"(?s)4 classes \(0, road, a/b, 300\).*THRESHOLD = 0.7, SUBMISSION = '\S*.csv'\."
    ):
        call(photos, "--checkpoint", path, "--threshold", 0.7, "--submission", tmp_path / "s.csv")
    with pytest.raises(UserError, match="THRESHOLD = 'auto', MASK_FOREGROUND = 3"):
        call(photos, "--checkpoint", path, "--threshold", "auto", "--masks", photos, "--mask-foreground", 3)
    assert not (tmp_path / "out").exists()


def test_a_network_that_tells_one_class_alone_everywhere_is_told(
    photos, call, classes_network, classes_checkpoint, capsys
):
    call(photos, "--checkpoint", classes_checkpoint())
    assert "Every pixel" not in capsys.readouterr().out
    weights = classes_network.state_dict()
    weights["output_conv.bias"] = weights["output_conv.bias"] + torch.tensor([0, 0, 1e4, 0])
    path = classes_checkpoint()
    torch.save(torch.load(path, weights_only=True) | {"state_dict": weights}, path)
    call(photos, "--checkpoint", path)
    assert "Every pixel of them is predicted as a/b" in capsys.readouterr().out
    for labels in ((2, None), (2, 1)):  # not everywhere, or not the same one
        uniform = UniformMasks(RULES["numbers"])
        for name, label in zip("ab", labels):
            uniform.take(Result(Picture(Path(name), Path(name)), made={uniform: label}))
        uniform.report()
    assert not capsys.readouterr().out


def test_a_file_that_does_not_tell_its_classes_has_numbers(photos, call, classes_network, tmp_path):
    torch.save(classes_network.state_dict(), tmp_path / "foreign.pth")
    status, out = call(photos / "a.jpg", "--checkpoint", tmp_path / "foreign.pth", "--image-size", 96, 128)
    assert status == 0
    logits = labels_by_hand(classes_network, photos / "a.jpg")
    assert (load(out / "a.png") == logits.argmax(0)).mean() > 0.999


# ---- ignored pixels of one foreground


def test_ignored_pixels_are_not_scored(photos, call, changed, tmp_path, capsys):
    _, out = call(photos)
    predicted, truths = load(out / "a.png") > 0, tmp_path / "truths"
    truths.mkdir()
    truth = predicted.astype(np.uint8)
    truth[:50] = 1 - truth[:50]  # all wrong
    truth[:40] = 7
    Image.fromarray(truth).save(truths / "a.png")
    right = int(predicted[50:].sum())
    given = predicted[40:].sum() + (truth == 1).sum()

    def row(*flags):
        call(photos, "--masks", truths, *flags)
        return next(csv.DictReader((out / "scores.csv").open()))

    for flags in (("--mask-ignore", 7), ("--checkpoint", changed(settings={"MASK_IGNORE": 7}))):
        scores = row(*flags)
        assert float(scores["dice"]) == pytest.approx(2 * right / given, abs=1e-6)
        assert int(scores["predicted_pixels"]) == predicted[40:].sum()
        assert "7 is ignored" in capsys.readouterr().out
    mask_rule = MaskRule("numbers", (), (1,), rest=True, ignored=(7,)).to_dict()
    path = changed(settings={"MASK_IGNORE": 7, "MASK_FOREGROUND": 1}, mask_rule=mask_rule)
    assert row("--checkpoint", path) == scores
    with pytest.raises(UserError, match="several classes"):
        row()
    truth[:40] = 0  # where nothing is ignored
    Image.fromarray(truth * 255).save(truths / "a.png")
    assert row() == row("--mask-ignore", 7) != scores


def test_a_threshold_is_not_chosen_by_ignored_pixels(photos, call, tmp_path, capsys):
    _, out = call(photos, "--threshold", 0.8)
    truths = tmp_path / "truths"
    truths.mkdir()
    for name in ("a", "grey"):
        truth = load(out / f"{name}.png").copy()
        truth[20:] = 100
        Image.fromarray(truth).save(truths / f"{name}.png")
    capsys.readouterr()
    call(photos, "--threshold", "auto", "--masks", truths, "--mask-ignore", 100)
    said = capsys.readouterr().out
    assert 0.7 < float(re.search(r"Threshold ([\d.]+)", said)[1]) < 0.9
    assert float(re.search(r"\nDice ([\d.]+)", said)[1]) > 0.98


# ---- the submission


def test_runs_worked_out_by_hand():
    assert run_lengths(np.array([[0, 1, 1], [1, 0, 1]])) == "2 3 6 1", "row by row: pixels 2, 3, 4 and 6"
    row = np.zeros((1, 16), int)
    row[0, [0, 1, 2, 9, 10, 11, 12, 13]] = 1
    assert run_lengths(row) == "1 3 10 5", "the example of the competition's page"
    assert run_lengths(np.zeros((3, 3))) == "" and run_lengths(np.ones((3, 3))) == "1 9"


def decoded(runs, size):
    """The mask {0, 1} of runs, row by row; they are in order and apart, and end within it."""
    mask, end = np.zeros(size[0] * size[1], np.uint8), 0
    numbers = list(map(int, runs.split()))
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        assert start > end + (end > 0) and length > 0
        end = start + length - 1
        assert end <= mask.size
        mask[start - 1 : end] = 1
    return mask.reshape(size)


def test_runs_come_back_as_the_mask():
    rng = np.random.default_rng(0)
    for share in (0, 0.01, 0.5, 0.99, 1):
        for size in ((1, 1), (1, 40), (37, 1), (61, 83)):
            mask = (rng.random(size) < share).astype(np.uint8)
            assert (decoded(run_lengths(mask), size) == mask).all()


def test_the_submission_decodes_to_the_masks(photos, call, tmp_path):
    for path in (tmp_path / "rows.csv", tmp_path / "deep" / "rows.csv.gz"):
        _, out = call(photos, "--submission", path)
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt") as file:
            rows = list(csv.reader(file))
        assert rows[0] == ["img", "rle_mask"] and len(rows) == 6
        assert [row[0] for row in rows[1:]] == ["a.jpg", "grey.png", "palette.gif", "turned.jpg", "b.c.png"]
        masks = {mask.stem: load(mask) for mask in out.rglob("*.png")}
        for name, runs in rows[1:]:
            mask = masks[Path(name).stem]
            assert (decoded(runs, mask.shape) * 255 == mask).all()


def test_rows_are_written_as_they_come_and_appear_when_complete(tmp_path):
    path = tmp_path / "rows.csv"
    submission = Submission(path, ["b.png: there is no such file."])
    for index in range(1000):
        picture = Picture(Path(f"{index}.jpg"), Path(str(index)))
        submission.take(Result(picture, made={submission: "1 1"} if index != 7 else {}))
        assert not any(tmp_path.iterdir())
    submission.finish()
    lines = path.read_text().splitlines()
    assert lines[:2] == ["img,rle_mask", "0.jpg,1 1"] and len(lines) == 1000 and len(list(tmp_path.iterdir())) == 1
    assert submission.lacking == ["b.png", "7.jpg"]
    broken = Submission(path)
    broken.take(Result(picture, made={broken: "1 1"}))
    del broken
    assert len(path.read_text().splitlines()) == 1000 and len(list(tmp_path.iterdir())) == 1


# ---- elsewhere


@pytest.mark.slow
def test_the_exported_program_gives_the_same_at_any_size(network, call, tmp_path, capsys):
    assert call("--export", tmp_path / "model.pt2")[0] == 0
    assert "any N" in capsys.readouterr().out
    program = torch.export.load(tmp_path / "model.pt2").module()
    for shape in ((1, 3, 64, 64), (3, 3, 33, 47), (2, 3, 96, 130)):
        images = torch.rand(shape)
        with torch.no_grad():
            assert torch.allclose(program(images), network(images), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
def test_exports_of_classes_carry_all_channels_and_their_names(
    classes_network, classes_checkpoint, call, tmp_path, capsys, suffix
):
    path = str(tmp_path / f"model.{suffix}")
    if suffix == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package)
    assert call("--checkpoint", classes_checkpoint(), "--export", path)[0] == 0
    said = capsys.readouterr().out
    assert "logits (N, 4, H, W)" in said and "0, road, a/b, 300" in said
    images = torch.rand(2, 3, 40, 56)
    if suffix == "pt2":
        program, space = torch.export.load(path).module(), dict(torch=torch, path=path)
        logits = program(images)
    else:
        session = __import__("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
        logits, space = torch.from_numpy(session.run(None, {"images": images.numpy()})[0]), dict(session=session)
    with torch.no_grad():
        assert torch.allclose(logits, classes_network(images), atol=1e-4)
    told = re.search(r"their names are in the file, (.*): 0, road", said)[1]
    assert json.loads(eval(f"({told})", space, {})[-1] if suffix == "pt2" else eval(told, space)) == [*NAMES]


def test_onnx_is_compared_or_its_packages_are_named(call, network, tmp_path):
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match="pip install onnx"):
            call("--export", tmp_path / "model.onnx")
        assert not (tmp_path / "model.onnx").exists()
        return
    assert call("--export", tmp_path / "model.onnx")[0] == 0
    assert (tmp_path / "model.onnx").stat().st_size > 4 * sum(p.numel() for p in network.parameters())
