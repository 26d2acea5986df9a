"""Which files belong together by their names, and which files a folder gives."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from parts.errors import UserError
from parts.images import pages_of, read_image
from parts.names import (
    Pair,
    Picture,
    by_pages,
    find_masks,
    find_pictures,
    group_of,
    list_both,
    list_pictures,
    match,
    pair_files,
    source_stem,
    tell_groups,
    walk,
)
from parts.spec import AUTO, DataSpec


def touch(folder, *names):
    """Files of these names in `folder`, which are no pictures inside; names may have subfolders."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def stack(path, count, value=0):
    """A TIFF of `count` pages, each of one value, from `value` on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pages = [Image.fromarray(np.full((4, 5), value + number, np.uint8)) for number in range(count)]
    pages[0].save(path, save_all=True, append_images=pages[1:])


def pairs_of(folder, capsys, images, masks, **spec):
    """({image: mask}, what is printed), where these files are in i/ and m/ of `folder`; paths below their folders."""
    touch(folder / "i", *images)
    touch(folder / "m", *masks)
    pairs = pair_files(folder / "i", folder / "m", DataSpec(**spec))
    names = {str(pair.image.relative_to(folder / "i")): str(pair.mask.relative_to(folder / "m")) for pair in pairs}
    return names, capsys.readouterr().out


# ---- pairs


def test_pairs_by_exact_stem(tmp_path):
    names = ["1.jpg", "10.jpg", "a.JPG", "b.png", "c.bmp", "d d.png", "e.v2.png", "f_mask.png"]
    masks = ["1.png", "10_mask.gif", "a.png", "b_mask.PNG", "c.mask.png", "d d_mask.png", "e.v2.mask.gif", "f_mask.gif"]
    images, masks = touch(tmp_path / "i", *names), touch(tmp_path / "m", *masks)
    pairs = [(pair.name, pair.image.name, pair.mask.name) for pair in pair_files(images, masks)]
    assert pairs == [
        ("1", "1.jpg", "1.png"),
        ("10", "10.jpg", "10_mask.gif"),
        ("a", "a.JPG", "a.png"),
        ("b", "b.png", "b_mask.PNG"),
        ("c", "c.bmp", "c.mask.png"),
        ("d d", "d d.png", "d d_mask.png"),
        ("e.v2", "e.v2.png", "e.v2.mask.gif"),
        ("f_mask", "f_mask.png", "f_mask.gif"),
    ]


def test_every_misfit_is_named_together(tmp_path):
    images = touch(tmp_path / "i", "1.jpg", "2.jpg", "3.jpg", "3.png", "4.jpg", "ok.jpg")
    masks = touch(tmp_path / "m", "10.png", "2.png", "2_mask.png", "3.png", "5_mask.gif", "ok.png")
    with pytest.raises(UserError) as caught:
        pair_files(images, masks)
    lines = str(caught.value).splitlines()
    assert all(name in lines[-1] for name in ("MASK_NAME", "IMAGE_NAME", "CLASSES", "SKIP_UNPAIRED"))
    del lines[-1]
    assert len(lines) == 6 and not any("ok" in Path(line.split(":")[0]).name for line in lines)
    for file in ("i/1.jpg", "i/2.jpg", "i/3.jpg", "i/4.jpg", "m/10.png", "m/5_mask.gif"):
        assert sum(line.startswith(f"{tmp_path}/{file}: ") for line in lines) == 1
    assert "2.png" in lines[1] and "2_mask.png" in lines[1]


def test_accents_in_one_or_two_characters_are_the_same_name(tmp_path):
    images, masks = touch(tmp_path / "i", "caf\u00e9.jpg"), touch(tmp_path / "m", "cafe\u0301.png")
    assert len(pair_files(images, masks)) == 1


def test_images_and_masks_in_one_folder(tmp_path):
    both = touch(tmp_path / "both", "a.jpg", "a_mask.png", "b.jpg", "b_mask.png")
    assert [(pair.image.name, pair.mask.name) for pair in pair_files(both, both)] == [
        ("a.jpg", "a_mask.png"),
        ("b.jpg", "b_mask.png"),
    ]
    named = touch(tmp_path / "named", "a.jpg", "a_seg.png")
    assert [pair.mask.name for pair in pair_files(named, named, DataSpec(mask_name="{}_seg"))] == ["a_seg.png"]
    alone = touch(tmp_path / "alone", "a.jpg", "b.jpg")
    with pytest.raises(UserError, match="given both for images and for masks"):
        pair_files(alone, alone)


# what images and their masks are called, and whether it is told
SCHEMES = {
    "segmentation": ("ISIC_{:07}.jpg", "ISIC_{:07}_segmentation.png", True),
    "prefix": ("img_{:04}.jpg", "mask_{:04}.png", True),
    "both": ("a_{:04}.jpg", "a_{:04}_L.png", True),
    "double": ("{:04}.jpg", "{:04}.jpg.png", False),
    "double and mask": ("{:04}.jpg", "{:04}.jpg_mask.png", False),
    "drive": ("{:02}_training.tif", "{:02}_manual1.gif", True),
    "case": ("IMG_{}.JPG", "img_{}.png", False),
    "case of the ending": ("p{}.jpg", "p{}_MASK.png", False),
    "plural": ("p{}.jpg", "p{}_masks.png", True),
    "dash": ("p{}.jpg", "p{}-mask.png", True),
    "channel": ("c_{:03}_0000.png", "c_{:03}.png", True),
    "zeros": ("{}.jpg", "{:04}.png", True),
    "zeros and prefix": ("img_{}.jpg", "mask_{:04}.png", True),
    "in folders": ("{0}/img_{0}.jpg", "{0}/seg_{0}.png", True),
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_other_ways_to_name_masks(tmp_path, capsys, scheme):
    image, mask, told = SCHEMES[scheme]
    wanted = {image.format(k): mask.format(k) for k in range(8, 12)}
    pairs, printed = pairs_of(tmp_path, capsys, wanted, wanted.values())
    assert pairs == wanted
    if told:  # with an example
        assert Path(mask.format(8)).name in printed or Path(mask.format(10)).name in printed
    else:
        assert printed == ""


@pytest.mark.parametrize(
    "images, masks",
    [
        (["10.jpg", "11.jpg"], ["20.png", "21.png"]),  # a number would be cut in two
        (["1.jpg", "2.jpg"], ["1001.png", "1002.png"]),
        (["x.jpg"], ["y.png"]),
        (["1.jpg"], ["10.png"]),
        (["a.jpg", "b.jpg"], ["a_seg.png", "b_seg.png", "c_seg.png"]),  # not every file
        (["a.jpg", "b.jpg", "c.jpg"], ["a.png", "b_seg.png", "c_seg.png"]),  # plain names pair something
        (["1.jpg", "01.jpg"], ["001.png", "0001.png"]),
        (["IMG.jpg", "img.png"], ["Img.png"]),
    ],
)
def test_names_that_do_not_pair_every_file_are_no_scheme(tmp_path, capsys, images, masks):
    with pytest.raises(UserError) as caught:
        pairs_of(tmp_path, capsys, images, masks)
    text = str(caught.value)
    assert "MASK_NAME" in text and "SKIP_UNPAIRED" in text
    alone = {name for name in [*images, *masks] if name not in ("a.jpg", "a.png")}
    assert all(f"{name}: " in text for name in alone)


def test_the_same_case_comes_before_another(tmp_path, capsys):
    images = ["a.jpg", "A.jpg", "b_mask.jpg", "b.jpg"]
    masks = ["A.png", "a.png", "b_mask.png", "B.png"]
    pairs, _ = pairs_of(tmp_path, capsys, images, masks)
    assert pairs == {"a.jpg": "a.png", "A.jpg": "A.png", "b_mask.jpg": "b_mask.png", "b.jpg": "B.png"}


@pytest.mark.parametrize("mask_name", ["{}_seg", "{}_SEG.png"])
def test_mask_name_says_it_by_hand(tmp_path, capsys, mask_name):
    wanted = {"a.jpg": "a_seg.png", "s/b.jpg": "s/b_seg.png", "c_seg.jpg": "c_seg_seg.png"}
    assert pairs_of(tmp_path, capsys, wanted, wanted.values(), mask_name=mask_name) == (wanted, "")
    with pytest.raises(UserError, match="d.png: is the mask of no image. Name it as MASK_NAME") as caught:
        pairs_of(tmp_path, capsys, ["d.jpg"], ["d.png"], mask_name=mask_name)
    assert "d.jpg: has no mask" in str(caught.value)


def test_what_has_no_partner_is_left_out_where_that_is_asked_for(tmp_path, capsys):
    images, masks = ["a.jpg", "b.jpg", "c.jpg"], ["a.png", "x.png", "y.png", "c.png"]
    pairs, printed = pairs_of(tmp_path, capsys, images, masks, skip_unpaired=True)
    assert pairs == {"a.jpg": "a.png", "c.jpg": "c.png"}
    assert "1 image without a mask and 2 masks without an image are left out: b.jpg, x.png, y.png" in printed
    with pytest.raises(UserError, match="c_mask.png"):  # two masks of one image are not left out
        pairs_of(tmp_path, capsys, [], ["c_mask.png"], skip_unpaired=True)
    with pytest.raises(UserError, match="no image there has a mask"):
        pairs_of(tmp_path / "none", capsys, ["a.jpg"], ["b.png"], skip_unpaired=True)


SEVERAL = {  # MASK_NAME -> image: its masks
    "{}_*": {"a.jpg": ["a_1.png", "a_2.png", "a_10.png"], "b.jpg": ["b_1.png"], "s/a.jpg": ["s/a_x.png", "s/a_y.png"]},
    "{}-*_mask.png": {"a.jpg": ["a-1_mask.png", "a-b-2_MASK.png"], "a-c.jpg": ["a-c-1_mask.png"]},
    "obj*-{}": {"7.jpg": ["obj1-7.png", "obj22-7.png"], "1-7.jpg": ["obj3-1-7.png"]},
    "*_{}": {"a_b.jpg": ["1_a_b.png"], "b.jpg": ["x_b.png", "y_B.png"]},
    "{}*": {"1.jpg": ["1.png", "1b.png"], "10.jpg": ["10.png", "10_1.png"]},
}


@pytest.mark.parametrize("mask_name", SEVERAL)
def test_several_masks_of_one_image(tmp_path, capsys, mask_name):
    wanted = SEVERAL[mask_name]
    names = [mask for masks in wanted.values() for mask in masks]
    pairs, printed = pairs_of(tmp_path, capsys, wanted, names, mask_name=mask_name)
    assert pairs == {image: sorted(masks)[0] for image, masks in wanted.items()} and printed == ""
    pairs = pair_files(tmp_path / "i", tmp_path / "m", DataSpec(mask_name=mask_name))
    for pair in pairs:
        masks = [tmp_path / "m" / mask for mask in sorted(wanted[str(pair.image.relative_to(tmp_path / "i"))])]
        assert [pair.mask, *pair.more] == masks
        assert pair.masks == (tuple(masks) if len(masks) > 1 else masks[0])


def test_several_masks_beside_their_images_or_not_told_or_of_none(tmp_path, capsys):
    both = touch(tmp_path / "both", "img_1.jpg", "img_2.jpg", "img_1_1.png", "img_1_2.png", "img_2_1.png")
    pairs = pair_files(both, both, DataSpec(mask_name="{}_*"))
    assert [(pair.image.name, len(pair.more)) for pair in pairs] == [("img_1.jpg", 1), ("img_2.jpg", 0)]
    close = touch(tmp_path / "close", "a.jpg", "a1.png", "b.jpg", "b2.png")
    assert [pair.mask.name for pair in pair_files(close, close, DataSpec(mask_name="{}*"))] == ["a1.png", "b2.png"]
    masks = ["a_1.png", "a_2.png", "b_1.png"]
    with pytest.raises(UserError) as caught:
        pairs_of(tmp_path, capsys, ["a.jpg", "b.jpg"], masks)
    assert str(caught.value).count("MASK_NAME = '{}_*' (--mask-name), which unites them") == 3
    with pytest.raises(UserError, match="c_1_2.png: is the mask of no image. Add the image c_1, or"):
        pairs_of(tmp_path, capsys, [], ["c_1_2.png"], mask_name="{}_*")
    with pytest.raises(UserError, match="it is not clear which belong together: .*a.png"):
        pairs_of(tmp_path, capsys, ["a.png"], [], mask_name="{}_*")


@pytest.mark.parametrize(
    "ends, image_name",
    [
        (["_0000", "_0001"], "{}_000*"),
        ([f"_{channel:04d}" for channel in range(12)], "{}_00*"),
        (["_red", "_nir"], "{}_*"),
        (["_0000"], None),
    ],
)
def test_channels_in_files_of_their_own_are_told_with_the_flags_that_unite_them(tmp_path, capsys, ends, image_name):
    cases = ["case_000", "s/case_001"]
    images = [f"{case}{end}.png" for case in cases for end in ends]
    masks = [f"{case}_mask.png" for case in cases]
    with pytest.raises(UserError) as caught:
        pairs_of(tmp_path, capsys, [*images, "other.png"], masks)
    told, cure = str(caught.value), f"(--image-name '{image_name}' --channels auto), which make one image of them"
    assert told.count(cure) == (len(images) + len(masks) if image_name else 0)
    assert "other.png: has no mask. Add other.png or the like" in told
    if image_name:
        (tmp_path / "i" / "other.png").unlink()
        spec = DataSpec(image_name=image_name, channels=AUTO)
        pairs = pair_files(tmp_path / "i", tmp_path / "m", spec)
        assert [(pair.name, 1 + len(pair.bands)) for pair in pairs] == [(case, len(ends)) for case in cases]


def test_pages_of_an_image_and_its_mask_are_paired(tmp_path):
    for name, count in (("a", 12), ("b", 1), ("s/c", 2)):
        stack(tmp_path / "i" / f"{name}.tif", count)
        stack(tmp_path / "m" / f"{name}.tif", count, 100)
    pairs = pair_files(tmp_path / "i", tmp_path / "m")
    assert [pair.name for pair in pairs] == [*(f"a_{number}" for number in range(12)), "b", "s/c_0", "s/c_1"]
    for pair in pairs:
        image, mask = read_image(pair.image, page=pair.image_page), read_image(pair.mask, page=pair.mask_page)
        assert (mask == image + 100).all() and image[0, 0, 0] == int((pair.name.split("_") + ["0"])[1])


def test_pages_that_do_not_fit_are_told(tmp_path):
    for name, count, other in (("a", 3, 2), ("b", 1, 2), ("c", 2, 1), ("d", 2, 2), ("d_1", 1, 1), ("e", 2, 2)):
        stack(tmp_path / "i" / f"{name}.tif", count)
        stack(tmp_path / "m" / f"{name}.tif", other)
    with pytest.raises(UserError) as caught:
        pair_files(tmp_path / "i", tmp_path / "m")
    lines = str(caught.value).splitlines()
    assert [Path(line.split(":")[0]).name for line in lines] == ["a.tif", "b.tif", "c.tif", "d.tif"]
    assert f"holds 3 pictures (pages or frames), and its mask {tmp_path}/m/a.tif 2. Save both" in lines[0]
    assert "called like another image: d_1" in lines[3]
    stack(tmp_path / "m2" / "e_1.tif", 2)
    stack(tmp_path / "m2" / "e_2.tif", 3)
    pairs = [Pair("e", tmp_path / "i/e.tif", tmp_path / "m2/e_1.tif", more=(tmp_path / "m2/e_2.tif",))]
    assert len(by_pages(pairs, pages_of)[1]) == 1
    assert by_pages(pairs, lambda path: None) == (pairs, [])
    files = tmp_path / "i/e.tif", tmp_path / "m/e.tif"
    assert by_pages([Pair("e", *files)], lambda path: [1]) == ([Pair("e", *files, 1, 1)], [])


def test_kinds_that_are_not_read_are_named_with_what_to_do(tmp_path, capsys):
    images = touch(tmp_path / "i", "a.jpg", "b.HEIC", "c.jpg", "d.jpg", "clip.mp4", "f.dng", ".g.heic")
    masks = touch(tmp_path / "m", "a.png", "b_mask.png", "c.npy", "d_mask.nii.gz")
    with pytest.raises(UserError) as caught:
        pair_files(images, masks)
    lines = str(caught.value).splitlines()
    assert [Path(line.split(":")[0]).name for line in lines[:-1]] == ["c.jpg", "d.jpg", "b_mask.png"]
    printed = capsys.readouterr().out
    assert "4 pictures of a kind that is not read: b.HEIC, f.dng, c.npy, d_mask.nii.gz. To use files of" in printed
    assert "1 video: clip.mp4. To use such, cut into frames (mkdir frames; ffmpeg -i clip.mp4 frames/" in printed


def test_folders_of_kinds_that_are_not_read(tmp_path):
    for names, message in (
        (["a.mp4", "b.MOV"], r"2 videos: a.mp4, b.MOV. .*ffmpeg -i a.mp4 frames/%05d.png\).$"),
        (["x.zip"], "Archives are not read: unzip .*/x/x.zip -d .*/x/x$"),
        (["rows.csv"], "If rows.csv holds annotations: .*of run lengths in a table docs/change-it.md"),
        (["p0.xml", "p1.xml"], "If p0.xml holds annotations: .*Export others as one of these, or as masks in PNG"),
        (["s/a.heic", "notes.txt"], r"\(2 others are left out\). 1 picture of a kind that is not read: a.heic. To use"),
    ):
        folder = tmp_path / names[0][:1]
        touch(folder, *names)
        with pytest.raises(UserError, match=f"holds no pictures.*{message}"):
            list_pictures(folder)


def test_subfolders(tmp_path, capsys):
    wanted = {"a/x.jpg": "a/x.png", "b/c/x.jpg": "b/c/x_mask.gif", "x.jpg": "x.png"}
    assert pairs_of(tmp_path, capsys, [*wanted, ".hidden/x.jpg"], wanted.values()) == (wanted, "")
    (tmp_path / "i/a/again").symlink_to(tmp_path / "i")
    assert [pair.name for pair in pair_files(tmp_path / "i", tmp_path / "m")] == ["a/x", "b/c/x", "x"]
    with pytest.raises(UserError, match="d/x.png: is the mask of no image. Add the image d/x,"):
        pairs_of(tmp_path, capsys, [], ["d/x.png"])


TREES = {  # IMAGE_NAME and MASK_NAME, the files of one folder -> the name, image and masks of each pair
    "suffixes": ("{}_left", "{}_labelIds", ["t/x_left.png", "t/x_labelIds.png", "t/x_color.png"],
                 [("t/x", "t/x_left.png", ["t/x_labelIds.png"])]),
    "Cityscapes": (
        *("{}_leftImg8bit", "{}_gtFine_labelIds"),
        ["t/x_leftImg8bit.png", "t/x_gtFine_color.png", "t/x_gtFine_instanceIds.png", "t/x_gtFine_labelIds.png"],
        [("t/x", "t/x_leftImg8bit.png", ["t/x_gtFine_labelIds.png"])],
    ),
    "a folder each": ("{}/images/*", "{}/masks/*", ["s/7/images/q.png", "s/7/masks/b.png", "s/7/masks/a.gif"],
                      [("s/7", "s/7/images/q.png", ["s/7/masks/a.gif", "s/7/masks/b.png"])]),
    "sides": ("images/{}", "LABELS/{}", ["images/a/x.jpg", "images/y.jpg", "labels/a/x.png", "labels/y.png", "z.png"],
              [("a/x", "images/a/x.jpg", ["labels/a/x.png"]), ("y", "images/y.jpg", ["labels/y.png"])]),
}  # fmt: skip


@pytest.mark.parametrize("image_name, mask_name, files, expected", TREES.values(), ids=TREES)
def test_trees_by_the_names_of_images_and_masks(tmp_path, image_name, mask_name, files, expected):
    folder, spec = touch(tmp_path, *files), DataSpec(image_name=image_name, mask_name=mask_name)
    matches = match(*list_both(folder, folder, spec), spec)
    assert not matches.faults
    taken = [[path.relative_to(folder).as_posix() for path, _ in pair.sources] for pair in matches.pairs]
    assert [(pair.name, files[0], files[1:]) for pair, files in zip(matches.pairs, taken)] == expected
    pictures, _ = find_pictures([folder], mask_dir=folder, image_name=image_name)
    pairs = find_masks(pictures, folder, spec).values()
    assert sorted((pair.image, pair.mask, pair.more) for pair in pairs) == [
        (pair.image, pair.mask, pair.more) for pair in matches.pairs
    ]
    unfit = {path for path in files if not any(path in paths for paths in taken)}
    assert [note.label for note in matches.notes] == ["other names"] * bool(unfit)
    assert all(Path(path).name in matches.notes[0].text for path in unfit)


def test_names_that_no_picture_has(tmp_path):
    folder = touch(tmp_path, "a_left.png", "a_seg.png")
    for image_name, mask_name, wrong in (("{}_right", "{}_seg", "{}_right"), ("{}_left", "m/{}", "m/{}")):
        with pytest.raises(UserError, match=f"(no picture is named as '{wrong}'|no file there ends in _mask)"):
            list_both(folder, folder, DataSpec(image_name=image_name, mask_name=mask_name))


def test_folders_below_one_another_keep_their_own(tmp_path):
    images = touch(tmp_path / "i", "a.jpg", "b.jpg")
    touch(images / "masks", "a.png", "b.png")
    touch(images / "made", "c.jpg")
    pairs = pair_files(images, images / "masks", apart=[images / "made"])
    assert [pair.name for pair in pairs] == ["a", "b"]
    both = touch(tmp_path / "both", "a.jpg", "a_mask.png")
    touch(both / "s", "a.jpg", "a_MASK.png")
    assert [(pair.name, pair.mask.name) for pair in pair_files(both, both)] == [
        ("a", "a_mask.png"),
        ("s/a", "a_MASK.png"),
    ]


def test_what_is_no_picture_is_left_out_and_counted(tmp_path):
    folder = touch(tmp_path / "i", "b.jpg", "a.PNG", ".hidden.png", "Thumbs.db", "notes.txt", "no-suffix", "._b.jpg")
    (folder / "folder.png").mkdir()
    (folder / "loop.png").symlink_to(folder / "loop.png")
    listing = list_pictures(folder)
    assert [path.name for path in listing.pictures] == ["a.PNG", "b.jpg", "loop.png"]
    assert len(listing.left_out) == 6


def test_each_folder_is_listed_once(tmp_path):
    """Also where links lead in circles; folders that are kept apart and hidden ones are left out as a whole."""
    folder = touch(tmp_path / "i", "b.png", "s/a.png", "s/x.txt", "apart/c.png", ".git/d.png")
    for link, target in (("one", "."), ("s/two", "."), ("z", "s"), ("to_apart", "apart")):
        (folder / link).symlink_to(folder / target)
    listing = walk(folder, apart=[folder / "apart", folder])
    assert listing.pictures == [folder / "b.png", folder / "s/a.png"] and not listing.errors
    assert [path.relative_to(folder).as_posix() for path in listing.left_out] == [
        *(".git", "apart", "s/x.txt", "to_apart"),
    ]


def test_unusable_folders(tmp_path):
    touch(tmp_path, "file", "my data.zip", "only others/notes.txt")
    (tmp_path / "empty").mkdir()
    for name, problem in (
        ("missing", "there is no such folder"),
        ("file", "is a file. Give the folder that the pictures lie in."),
        ("my data.zip", f"is a file. Archives are not read: unzip '{tmp_path}/my data.zip' -d '{tmp_path}/my data'"),
        ("empty", "holds no pictures. Put some there"),
        ("only others", "holds no pictures (1 others are left out). Put some there"),
    ):
        with pytest.raises(UserError) as caught:
            list_pictures(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: {problem}")


VERSIONS = {  # a name, and its group by GROUP = "auto"
    "00087a6bd4dc_01": "00087a6bd4dc",
    "IMG_4_jpg.rf.0a1b5c6d7e8f": "IMG_4_jpg",
    "s/IMG_4_jpg.rf.Zk3_not_a_hash": "s/IMG_4_jpg.rf.Zk3_not_a_hash",
    "scene_r0_c12": "scene",
    "a/north_row_3_col_4": "a/north",
    "scene r01 c02_hflip": "scene",
    "ortho_x512_y0": "ortho",
    "slide 7 [x=0,y=512,w=512,h=512]": "slide 7",
    "slide [d=2,x=0,y=0]": "slide",
    **{name: name for name in ("img_001", "0001TP_006690", "a_street_07", "car_r5", "x5_y6", "b_r2_c3d", "a [1]")},
}


@pytest.mark.parametrize("stem", VERSIONS)
def test_names_of_versions_and_tiles(stem):
    assert group_of(stem) == VERSIONS[stem] and group_of(stem, None) == stem.removesuffix("_hflip")


def test_what_tells_groups_is_told():
    told = "views of Carvana's cars (1 image), versions by Roboflow (1 image), tiles by row and column (3 images)"
    assert tell_groups(list(VERSIONS)[:6], AUTO) == told
    assert tell_groups(VERSIONS, "x") == tell_groups(VERSIONS, None) == tell_groups(["a"], AUTO) == ""


def test_groups_and_copies():
    assert group_of("00087a6bd4dc_01") == group_of("00087a6bd4dc_16_hflip") == "00087a6bd4dc"
    assert group_of("img_001") == "img_001" and group_of("img_001_grid") == "img_001"
    assert group_of("0001TP_006690", r"(.*)_") == "0001TP" and group_of("0001TP_006690", r"\d+") == "0001"
    assert group_of("s/00087a6bd4dc_01") == "00087a6bd4dc" and group_of("p1/x_grid", r"p\d+") == "p1"
    assert source_stem("a_vflip") == "a" and source_stem("a_flip") == "a_flip"
    with pytest.raises(UserError, match="GROUP"):
        group_of("a", "(")


# ---- what predict.py is given


PHOTOS = ["a.jpg", "sub/b.c.png", "grey.png", "palette.gif", "turned.jpg"]


def test_the_runs_own_folders_are_no_inputs_however_they_are_asked_for(tmp_path, monkeypatch, capsys):
    """By a folder, a link to one, and the names that the shell makes of *."""
    photos = touch(tmp_path / "photos", *PHOTOS, "notes.txt", "predictions/a.png", "masks/a.png")
    (tmp_path / "link").symlink_to(photos)
    monkeypatch.chdir(photos)
    for inputs in (["."], [str(tmp_path / "link")], sorted(os.listdir())):
        pictures, missing = find_pictures([text for text in inputs if text != "notes.txt"], "predictions", "masks")
        assert {picture.path.name for picture in pictures} == {Path(name).name for name in PHOTOS} and not missing
    assert "predictions: left out" in capsys.readouterr().err
    assert len(find_pictures(["predictions/a.png"], "predictions")[0]) == 1, "by its own name it may be asked for"
    assert len(find_pictures(["predictions"], "predictions")[0]) == 1


def test_a_folder_that_gives_nothing_is_told(tmp_path, monkeypatch):
    touch(tmp_path / "open", "a.png").chmod(0o755)
    (tmp_path / "open" / "empty").mkdir()
    (tmp_path / "open" / "closed").mkdir(mode=0)
    monkeypatch.chdir(tmp_path / "open")
    if os.getuid() == 0:
        os.seteuid(65534)  # nobody: root may read everything
    try:
        pictures, missing = find_pictures([".", "empty"])
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
    assert len(pictures) == 1 and len(missing) == 2
    assert "closed: cannot be read" in missing[0] and missing[1] == "empty: there is no image in it."


def test_inputs_given_twice_and_what_is_not_there(tmp_path):
    photos = touch(tmp_path / "photos", *PHOTOS)
    inputs = [photos, photos / "a.jpg", *photos.glob("*.png"), photos / "sub"]
    pictures, missing = find_pictures([*map(str, inputs), "no*.jpg"], tmp_path / "out")
    assert len(pictures) == 5 and missing == ["no*.jpg: there is no such file or folder."]


def test_true_masks_are_found_by_place_first_and_then_by_name(tmp_path):
    masks = touch(
        tmp_path / "masks", "left/a.png", "a_mask.gif", "only_mask.png", "a_seg.png", "b.jpg.png", "IMG_1.png"
    )

    def masks_of(*names, **spec):
        pictures = [Picture(Path("x.jpg"), Path(name)) for name in names]
        pairs = find_masks(pictures, masks, DataSpec(**spec))
        return {str(picture.name): pair.mask.name for picture, pair in pairs.items()}

    assert masks_of("left/a", "a", "right/only", "none") == {
        "left/a": "a.png",
        "a": "a_mask.gif",
        "right/only": "only_mask.png",
    }
    assert masks_of("b", "img_1") == {"b": "b.jpg.png", "img_1": "IMG_1.png"}
    assert masks_of("a", "b", "img_1", mask_name="{}_seg") == {"a": "a_seg.png"}
    assert masks_of("s/a_cam", image_name="{}_cam", mask_name="{}_seg") == {"s/a_cam": "a_seg.png"}
    assert masks_of("right/a", image_name="right/{}", mask_name="left/{}") == {"right/a": "a.png"}
    with pytest.raises(UserError, match="More than one mask fits these pictures.*\n  x.jpg: .*a.png"):
        masks_of("right/a")
    with pytest.raises(UserError, match="no mask there fits any of the pictures"):
        masks_of("none")


def test_true_masks_of_pages(tmp_path):
    """By the page's own name first; else the page of that number, if the file has as many."""
    stack(tmp_path / "i/a.tif", 3)
    stack(tmp_path / "i/b.tif", 2)
    stack(tmp_path / "m/a.tif", 3)
    stack(tmp_path / "m/b.tif", 3)
    touch(tmp_path / "m", "a_1.png")
    pictures, _ = find_pictures([tmp_path / "i"])
    assert [str(picture.name) for picture in pictures] == ["a_0", "a_1", "a_2", "b_0", "b_1"]
    pairs = find_masks(pictures, tmp_path / "m").values()
    assert [(pair.name, pair.image_page, pair.mask.name, pair.mask_page) for pair in pairs] == [
        ("a_0", 0, "a.tif", 0),
        ("a_1", 1, "a_1.png", 0),
        ("a_2", 2, "a.tif", 2),
    ]


def test_a_prefix_is_found_in_any_case(tmp_path):
    for name in ("Scan_A1.jpg", "scan_B2.jpg"):
        touch(tmp_path / "i", name)
    for name in ("LABEL_a1.png", "label_b2.png"):
        touch(tmp_path / "m", name)
    pairs = pair_files(tmp_path / "i", tmp_path / "m")
    assert [(pair.image.name, pair.mask.name) for pair in pairs] == [
        ("Scan_A1.jpg", "LABEL_a1.png"), ("scan_B2.jpg", "label_b2.png"),
    ]  # fmt: skip
