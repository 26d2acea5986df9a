"""Images of other channels than RGB, from the file to the mask."""

import dataclasses
import re
import struct
import zlib
from importlib.util import find_spec

import cv2
import numpy as np
import pytest
import tifffile
import torch
from helpers import flags
from PIL import Image

import dataset
import predict
import train
from augment import Choices, make_augmented
from dataset import CropDataset
from parts import images, pictures
from parts.arrays import Files, make_arrays
from parts.audit import audit
from parts.errors import UnusableFile, UserError
from parts.images import decode_image, depth_of, image_size, pages_of, pixels_of, read_image, resize_image
from parts.masks import MaskRule
from parts.names import find_pictures, pair_files
from parts.own_dataset import folders_of, write_dataset
from parts.recipe import jitter_colors
from parts.spec import DataSpec

H, W = 20, 30


def values(channels, dtype=np.uint8, seed=0):
    drawn = np.random.default_rng(seed).integers(0, 256, (H, W, channels))
    return (drawn * 200 + 7 if dtype == np.uint16 else drawn).astype(dtype)


def write(path, array, **options):
    """Writes (H, W, C) as the kind of file that the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".tif":
        stored = np.moveaxis(array, -1, 0) if options.get("planarconfig") == "separate" else array
        tifffile.imwrite(path, stored, **dict(photometric="minisblack", planarconfig="contig") | options)
    else:
        Image.fromarray(array.squeeze()).save(path)


KINDS = {
    "grey.png": (values(1), {}),
    "grey.jpg": (np.full((H, W, 1), 90, np.uint8), {}),
    "with_alpha.png": (values(2), {}),
    "rgb.png": (values(3), {}),
    "four.png": (values(4), {}),
    "four.tif": (values(4), dict(photometric="rgb")),
    "associated.tif": (values(4), dict(photometric="rgb", extrasamples=["assocalpha"])),
    "seven.tif": (values(7), {}),
    "two_deep.tif": (values(2, np.uint16), {}),
    "deflated.tif": (values(5, np.uint16), dict(compression="zlib", predictor=True)),
    "tiled.tif": (values(5), dict(tile=(16, 16))),
    "planar.tif": (values(5, np.uint16), dict(planarconfig="separate")),
    "floats.tif": (values(3, np.float32), {}),
    "seven.npy": (values(7), {}),
    "flat.npy": (values(1)[..., 0], {}),
    "deep.npy": (values(3, np.int64) * 9, {}),
    "floats.npy": (values(6, np.float64) / 7, {}),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_channel_of_a_file_is_read(tmp_path, name):
    array, options = KINDS[name]
    path = tmp_path / name
    write(path, array, **options)
    stored = array.reshape(H, W, -1)
    count = stored.shape[2]
    for channels in (None, count):
        decoded = decode_image(path, channels=channels)
        pixels = pixels_of(decoded, path, channels)
        assert pixels.dtype in (np.uint8, np.uint16, np.float32)
        np.testing.assert_array_equal(pixels, stored.astype(pixels.dtype))
        assert decoded.size == image_size(path) == (H, W) and pages_of(path) == [0]
    depth = depth_of(decoded, path, count)
    assert (depth is None) == (stored.dtype == np.uint8)
    image = read_image(path, (9, 40), value_range=(0, 60_000), channels=count)  # smaller, and larger
    assert image.dtype == np.uint8 and image.shape == (9, 40, count)
    other = count + 4
    with pytest.raises(UnusableFile, match=f"has {count} channels?, and CHANNELS = {other}.*--channels {count}"):
        read_image(path, value_range=(0, 1), channels=other)


def test_greys_and_equal_colours_are_one_channel(tmp_path):
    write(tmp_path / "equal.png", np.repeat(values(1), 3, axis=2))
    assert np.array_equal(read_image(tmp_path / "equal.png", channels=1), values(1))
    write(tmp_path / "grey.npy", values(1))
    assert np.array_equal(read_image(tmp_path / "grey.npy"), np.repeat(values(1), 3, axis=2))


def test_16_bits_with_alpha_keep_all_channels(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), values(4, np.uint16))
    right = values(4, np.uint16)[..., [2, 1, 0, 3]]
    assert np.array_equal(pixels_of(decode_image(tmp_path / "a.png", channels=4), tmp_path / "a.png", 4), right)
    assert np.array_equal(
        read_image(tmp_path / "a.png", channels=4, value_range=(0, 65535))[..., 3] > 99,
        np.rint(right[..., 3] / 257) > 99,
    )


def broken(name, make, text):
    marks = (
        [pytest.mark.skipif(find_spec("imagecodecs") is not None, reason="it reads LZW")] if name == "lzw.tif" else []
    )
    return pytest.param(name, make, text, id=name, marks=marks)


def recompressed(path):
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags["Compression"].overwrite(5)


@pytest.mark.parametrize(
    "name, make, text",
    [
        broken("text.npy", lambda path: path.write_text("no array"), "is no .npy file"),
        broken("cut.npy", lambda path: path.write_bytes(path.read_bytes()[:-9]), "damaged or cut short"),
        broken("cut.tif", lambda path: path.write_bytes(path.read_bytes()[:-9]), "damaged or cut short"),
        broken("objects.npy", lambda path: np.save(path, np.array([{}]), allow_pickle=True), "damaged or cut short"),
        broken("volume.npy", lambda path: np.save(path, np.zeros((2, 2, 2, 2))), "holds an array of 2x2x2x2"),
        broken("complex.npy", lambda path: np.save(path, np.ones((2, 2), complex)), "values of complex128"),
        broken("nan.npy", lambda path: np.save(path, np.full((2, 2), np.nan)), "4 pixels that are no numbers"),
        broken("lzw.tif", lambda path: recompressed(path), "pip install imagecodecs"),
    ],
)  # fmt: skip
def test_a_damaged_file_of_bands_is_refused_in_words(tmp_path, name, make, text):
    path = tmp_path / name
    write(path, values(5))
    make(path)
    with pytest.raises(UnusableFile, match=text):
        read_image(path, value_range=(0, 1), channels=5)


def test_more_channels_than_opencv_resizes_at_once():
    image = resize_image(values(7), (11, 13))
    one_by_one = [resize_image(values(7)[..., band], (11, 13)) for band in range(7)]
    assert np.abs(image.astype(int) - np.stack(one_by_one, axis=2)).max() <= 1


def test_colours_of_other_channels_vary_without_their_balance():
    images, draws = torch.rand(2, 5, 4, 4), torch.rand(2, 5)
    varied = jitter_colors(images, 0.5, draws)
    assert torch.equal(varied[:, :3], jitter_colors(images, 0.5, draws)[:, :3])
    factors = (varied - varied.mean((1, 2, 3), keepdim=True)) / (images - images.mean((1, 2, 3), keepdim=True))
    assert torch.allclose(factors, factors[:, :1, :1, :1].expand_as(factors), rtol=1e-3), "one contrast for all"


# ---- datasets of such files


def write_image(path, suffix, image):
    """Writes an image (H, W, C) as the file path.suffix, or as "files": path_0000.png, path_0001.png ..."""
    if suffix != "files":
        return write(path.with_name(f"{path.name}.{suffix}"), image)
    for number in range(image.shape[2]):
        write(path.with_name(f"{path.name}_{number:04}.png"), image[..., number : number + 1])


def draw_pairs(folder, count, make, suffix, size=(32, 48), first=0):
    """Rectangles that show in the last channel alone; `make` turns uint8 (H, W, 5) into the image."""
    for index in range(first, first + count):
        draw = np.random.default_rng(index)
        mask = np.zeros(size, np.uint8)
        top, left = draw.integers(0, size[0] // 2), draw.integers(0, size[1] // 2)
        mask[top : top + size[0] // 3, left : left + size[1] // 3] = 255
        noise = draw.integers(0, 255, (*size, 4), np.uint8)
        write_image(
            folder / f"i/img_{index:02d}", suffix, make(np.dstack([noise, draw.integers(0, 60, size) + mask // 2]))
        )
        write(folder / f"m/img_{index:02d}.png", mask)


DATA = {
    "grey": (lambda a: a[..., 4].astype(np.uint8), "png", 1, ()),
    "fourth": (lambda a: a[..., 1:].astype(np.uint8), "png", 4, ()),
    "bands": (lambda a: a.astype(np.uint8), "npy", 5, ()),
    "deep": (lambda a: a[..., 3:].astype(np.uint16) * 12, "tif", 2, ("--image-range", "auto")),
    "files": (lambda a: a[..., 2:].astype(np.uint8), "files", 3, ("--image-name", "{}_00*")),
}


@pytest.fixture
def data(tmp_path, request):
    make, suffix, *_ = DATA[request.param]
    for side, count, first in (("t", 8, 0), ("v", 2, 8)):
        draw_pairs(tmp_path / side, count, make, suffix, first=first)
    return tmp_path


@pytest.mark.parametrize("data", ["bands"], indirect=True)
def test_arrays_and_crops_keep_all_channels(data):
    pairs = pair_files(data / "t/i", data / "t/m", DataSpec(channels=5))
    for size in ((16, 24), None):
        files = Files(pairs, MaskRule(), image_size=size, channels=5)
        arrays = make_arrays(files, data / f"arrays-{size}", num_workers=0, progress=False)
        assert np.array_equal(arrays.sample(3).image, files.sample(3).image)
        assert arrays.sample(3).image.shape == (*(size or (32, 48)), 5)
        other = Files(pairs, MaskRule(), image_size=size, channels=1)
        with pytest.raises(UserError, match="has 5 channels, and CHANNELS = 1"):
            make_arrays(other, data / f"arrays-{size}", num_workers=0, progress=False)
    crops = CropDataset(Files(pairs, MaskRule(), channels=5), (40, 56))
    image, mask = crops[0]
    assert image.shape == (5, 40, 56) and mask.shape == (40, 56) and (mask[32:] == 255).all()
    assert torch.equal(image[:, 32:], image[:, 23:31].flip(1)), "padded by reflection"


@pytest.mark.parametrize("data", ["bands"], indirect=True)
def test_the_audit_counts_channels(data, capsys):
    folders = (data / "t/i", data / "t/m"), (data / "v/i", data / "v/m")
    report = audit(*folders, DataSpec(channels="auto"), sheet=data / "sheet.png", num_workers=0)
    assert report.channels == 5 and report.sheet and not report.problems
    assert "5, of which the pictures show 1, 2, 3 (PICTURE_BANDS)" in report.text()
    other = audit(*folders, DataSpec(channels="auto", picture_bands=(6,)), sheet=data / "6.png", num_workers=0)
    assert "PICTURE_BANDS = (6,): the images have 5 channels" in other.problems[0] and not (data / "6.png").exists()
    named = audit(*folders, DataSpec(channels=4), num_workers=0)
    assert "has 5 channels, and CHANNELS = 4" in named.problems[0]
    rgb = audit(*folders, num_workers=0)
    assert "set CHANNELS (--channels auto)" in rgb.problems[0], "which does not list them"
    write(data / "t/i/img_00.npy", values(3)), write(data / "t/m/img_00.png", values(1) // 128 * 255)
    report = audit(*folders, DataSpec(channels="auto"), sheet=data / "sheet.png", num_workers=0)
    assert "3: 1 image, e.g." in report.problems[0] and "5: 9 images, e.g." in report.problems[0]
    with pytest.raises(UserError, match="CHANNELS"):
        dataset.ImageDataset(*folders[0], spec=DataSpec(channels="auto"))
    folder = dataset.ImageDataset(*folders[1], spec=DataSpec(channels=5))
    assert folder[0][0].shape == (32, 48, 5)


def slow_but(*few):
    return [pytest.param(name, marks=[] if name in few else pytest.mark.slow) for name in DATA]


@pytest.mark.parametrize("data", slow_but("deep", "files"), indirect=True)
def test_from_training_to_prediction(data, request, capsys):
    make, suffix, channels, more = DATA[request.node.callspec.params["data"]]
    folders = [f"--{side}-{kind}-dir" for side in ("train", "val") for kind in ("img", "mask")]
    places = [str(data / name) for name in ("t/i", "t/m", "v/i", "v/m")]
    given = [word for both in zip(folders, places) for word in both]
    out, bands = data / "run", ["--picture-bands", "2"] if channels > 1 else []
    train.main([*flags(OUTPUT_DIR=out, NUM_EPOCHS=2), *given, "--channels", "auto", *bands, *more])
    saved = torch.load(out / "best.pth", weights_only=True)
    assert saved["network"]["in_channels"] == channels and saved["settings"]["CHANNELS"] == "auto"
    dtype = make(np.zeros((1, 1, 5))).dtype
    other = 3 if channels != 3 else 2
    write_image(data / "v/i/other", suffix, values(other).astype(dtype))
    options = ["--checkpoint", str(out / "best.pth"), "--output-dir", str(data / "p"), "--device", "cpu", "--overlays"]
    assert predict.main([places[2], *options]) == 1
    wrong = (
        rf"other.*(has {other} channels|and 1 file after it make 2 channels of one image), and CHANNELS = {channels}"
    )
    assert re.search(wrong, capsys.readouterr().err)
    masks = {path.name: path.read_bytes() for path in (data / "p").glob("*.png")}
    assert set(masks) == {"img_08.png", "img_09.png"}
    files = sorted(map(str, (data / "v/i").glob("img_08*")))
    # Pictures are grey, of the second channel; the checkpoint tells predict.py
    corner = np.asarray(Image.open(out / "saved_images/examples.png").convert("RGB"), int)[60:80, 30:60]
    assert np.ptp(corner, axis=2).max() == 0 and corner.std() > 9
    image, mask = (
        read_image(files, None, 0, saved["image_range"], channels),
        np.asarray(Image.open(data / "p/img_08.png")),
    )
    pictures.save_image(
        data / "drawn.jpg", pictures.overlay(image, mask > 0, pictures.Palette.of(None, (2,) if bands else None))
    )
    assert (data / "drawn.jpg").read_bytes() == (data / "p/overlays/img_08.jpg").read_bytes()
    assert predict.main([*files, *options[:2], "--output-dir", str(data / "one"), "--device", "cpu"]) == 0
    assert {path.name: path.read_bytes() for path in (data / "one").glob("*.png")} == {
        "img_08.png": masks["img_08.png"]
    }
    mask = predict.Predictor(out / "best.pth", DEVICE="cpu")(files if len(files) > 1 else files[0])
    assert np.array_equal(mask, np.asarray(Image.open(data / "one/img_08.png")))


@pytest.mark.parametrize("data", DATA, indirect=True)
def test_augment_keeps_all_channels_and_the_kind_of_file(data, request):
    make, suffix, channels, more = DATA[request.node.callspec.params["data"]]
    spec = DataSpec(channels="auto" if suffix == "files" else channels)
    named = "{}"  # how a copy is
    if suffix == "files":
        spec, suffix, named = dataclasses.replace(spec, image_name=more[1]), "tif", "{}_001"
    make_augmented(data / "t/i", data / "t/m", data / "out", spec, Choices(val_images=2, num_workers=0))
    folder = data / "out/augmented_train_images"
    assert len(list(folder.glob(f"*.{suffix}"))) == 4 * 6
    sources = sorted((data / "t/i").glob("img_01*"))
    stored = pixels_of(decode_image(sources, channels=None), sources[0], None)
    assert stored.shape[2] == channels and stored.dtype == make(np.zeros((1, 1, 5))).dtype
    flips = {"": np.s_[:], "_hflip": np.s_[:, ::-1], "_vflip": np.s_[::-1]}
    for name, flip in flips.items():
        path = folder / f"{named.format('img_01' + name)}.{suffix}"
        copy = pixels_of(decode_image(path, channels=channels), path, channels)
        assert copy.dtype == stored.dtype and np.array_equal(copy, stored[flip]), name
    path = folder / f"{named.format('img_01_grid')}.{suffix}"
    bent = pixels_of(decode_image(path, channels=channels), path, channels)
    mask = read_image(data / "out/augmented_train_masks/img_01_grid.png", channels=1)[..., 0] > 0
    assert bent.shape == stored.shape and bent[mask, -1].mean() > 1.5 * bent[~mask, -1].mean(), "bent as its mask is"
    assert (data / "out/augmented_preview.png").exists()
    made = make_augmented(data / "t/i", data / "t/m", data / "out", spec, Choices(val_images=2, num_workers=0))
    assert made.written == 0, "all is there"
    pairs = pair_files(folder, data / "out/augmented_train_masks", spec)
    assert len(pairs) == 4 * 6 and not any(pair.bands for pair in pairs), "by the same IMAGE_NAME"


FAULTS = {  # the files of images beside a_0000 to a_0002, b_..., CHANNELS -> what is said of them
    "one is missing": (
        ["c_0000", "c_0002"],
        "auto",
        r"c_0000.png: makes c of 2 files: .*c_0002.png. Give it the files that",
    ),
    "another one": (["c_0000", "c_0001", "c_0003"], 3 + 1, r"others have \(_0000, _0001, _0002\), or remove it"),
    "no CHANNELS": (["c_0000"], 3, r"not clear which belong together: .*a_0000.png, .*a_0001.png.*set CHANNELS"),
}


@pytest.mark.parametrize("names, channels, said", FAULTS.values(), ids=FAULTS)
def test_files_that_make_no_image(tmp_path, names, channels, said):
    for name in [*(f"{image}_000{number}" for image in "ab" for number in range(3)), *names]:
        write(tmp_path / f"i/{name}.png", values(1))
    for image in "abc":
        write(tmp_path / f"m/{image}.png", values(1))
    with pytest.raises(UserError, match=said):
        pair_files(tmp_path / "i", tmp_path / "m", DataSpec(channels=channels, image_name="{}_000*"))


@pytest.mark.parametrize("other", [values(1, np.uint16), values(1)[1:]])
def test_files_of_an_image_have_one_size_and_depth(tmp_path, other):
    write(tmp_path / "a_0000.png", values(1)), write(tmp_path / "a_0001.png", other)
    with pytest.raises(UnusableFile, match=r"a_0001.png: is .*, and .*a_0000.png is 20x30 of uint8"):
        read_image([tmp_path / "a_0000.png", tmp_path / "a_0001.png"], channels=2)


def test_augment_refuses_what_its_kind_of_file_cannot_hold(tmp_path):
    greys = b"".join(b"\0" + bytes(4 * W) for _ in range(H))  # of 16 bits with alpha, which no library here writes
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", W, H, 16, 4, 0, 0, 0)), (b"IDAT", zlib.compress(greys)), (b"IEND", b"")]
    content = b"\x89PNG\r\n\x1a\n"
    for kind, part in chunks:
        content += struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part))
    for side in ("i", "m"):
        (tmp_path / side).mkdir()
    for index in range(2):
        (tmp_path / f"i/{index}.png").write_bytes(content)
        write(tmp_path / f"m/{index}.png", values(1))
    folders = tmp_path / "i", tmp_path / "m", tmp_path / "o"
    with pytest.raises(UserError, match="has two channels of 16 bits.*Save it as TIFF"):
        make_augmented(*folders, DataSpec(channels=2), Choices(val_images=1, num_workers=0))


def test_a_dataset_of_ones_own_may_have_any_channels(tmp_path):
    samples = [(values(5, seed=seed), np.zeros((H, W), np.uint8)) for seed in range(2)]
    write_dataset("mine", lambda train: samples, tmp_path, "auto")
    images, masks = folders_of(tmp_path, "train")
    pairs = pair_files(images, masks, DataSpec(channels="auto"))
    assert all(np.array_equal(read_image(pair.image, channels=5), image) for pair, (image, _) in zip(pairs, samples))
    with pytest.raises(UserError, match="With CHANNELS set images may be"):
        write_dataset("mine", lambda train: samples, tmp_path)
    write_dataset("mine", lambda train: [(image[..., :3], mask) for image, mask in samples], tmp_path)
    assert {path.suffix for path in images.iterdir()} == {".png"}


def test_channels_that_imagej_keeps_as_pages(tmp_path, capsys):
    array = values(2, np.uint16)
    for side in ("i", "m"):
        (tmp_path / side).mkdir()
    path = tmp_path / "i/a.tif"
    pages = dict(save_all=True, append_images=[Image.fromarray(array[..., 1])])
    Image.fromarray(array[..., 0]).save(
        path, description="ImageJ=1.53t\nimages=2\nchannels=2\nmode=composite\n", **pages
    )
    Image.fromarray(np.zeros((H, W), np.uint8)).save(tmp_path / "m/a.png")
    for channels in (2, "auto"):
        (pair,) = pair_files(tmp_path / "i", tmp_path / "m", DataSpec(channels=channels))
        assert (pair.image_page, pair.mask_page) == (0, 0)
        assert len(find_pictures([path], channels=channels)[0]) == 1
    assert np.array_equal(pixels_of(decode_image(path, channels=2), path, 2), array)
    report = audit((tmp_path / "i", tmp_path / "m"), spec=DataSpec(channels="auto"), num_workers=0)
    assert report.channels == 2 and len(report.train) == 1
    with pytest.raises(UserError, match="holds 2 pictures.*set CHANNELS"):
        pair_files(tmp_path / "i", tmp_path / "m")  # to RGB they are pages
    assert len(find_pictures([path])[0]) == 2


def test_more_pixels_than_values_do_not_count(tmp_path, monkeypatch):
    write(tmp_path / "four.tif", values(4), photometric="rgb", extrasamples=["unassalpha"])
    monkeypatch.setattr(images, "LARGEST", H * W)
    assert read_image(tmp_path / "four.tif").shape == (H, W, 3) and image_size(tmp_path / "four.tif") == (H, W)
    monkeypatch.setattr(images, "LARGEST", H * W - 1)
    with pytest.raises(UnusableFile, match="million pixels"):
        read_image(tmp_path / "four.tif", channels=4)
