"""The audit: every problem of a dataset at once, each with its file; nothing read twice; nothing skipped."""

import io
import json
import os
import signal
import time

import numpy as np
import pytest
from helpers import draw_pairs, script
from PIL import Image

import dataset
from parts.audit import LINES, VERSION, audit
from parts.errors import UserError, printable
from parts.spec import DataSpec


@pytest.fixture
def data(tmp_path):
    """Folders of 12 good pairs for training and 4 for validation."""
    draw_pairs(tmp_path / "ti", tmp_path / "tm", 12)
    draw_pairs(tmp_path / "vi", tmp_path / "vm", 4, first=20)
    return tmp_path


def looked_at(data, image_size=None, sheet=None, cache=None, num_workers=None, **spec):
    named = dict(image_size=image_size, sheet=sheet, cache=cache, num_workers=num_workers)
    return audit((data / "ti", data / "tm"), (data / "vi", data / "vm"), DataSpec(**spec), **named)


def problems(report):
    return "\n".join(report.problems)


def as_carvana(folder, old, new):
    (folder / f"{old}.png").rename(folder / f"{new}.png")


def test_good_data(data):
    report = looked_at(data, sheet=data / "new" / "sheet.png")
    assert report.problems == [] and report.warnings == []
    assert len(report.train) == 12 and len(report.val) == 4
    shares = [(np.asarray(Image.open(pair.mask)) > 0).mean() for pair in report.train + report.val]
    words = f"least {min(shares):.2%}, median {np.median(shares):.2%}, most {max(shares):.2%} of a mask"
    assert words in report.text() and report.mask_rule.foreground == (255,)
    text = report.text()
    for words in ("12 for training, 4 for validation", "all 40x60", "PNG RGB", "255 is foreground", "sheet.png"):
        assert words in text
    report.stop_if_spoiled()
    with Image.open(data / "new" / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).reshape(-1, 3).astype(int)
    outlines = np.abs(pixels - (230, 0, 126)).max(axis=1) < 20
    assert outlines.sum() > 100


def test_what_is_not_plain_in_the_names_is_told(data):
    for mask in (data / "vm").iterdir():
        mask.rename(mask.with_name(f"{mask.stem}_segmentation.png"))
    report = looked_at(data)
    assert report.problems == [] and len(report.val) == 4
    assert 'for validation the mask of an image "{}" is taken to be "{}_segmentation"; e.g. img_020_s' in report.text()
    said = looked_at(data, mask_name="{}_segmentation")
    assert len(said.val) == 4 and "is taken to be" not in said.text() and "no image there has a mask" in problems(said)


def test_strays_are_refused_or_left_out_and_counted(data):
    (data / "tm" / "img_003.png").rename(data / "vm" / "stray.png")
    text = problems(looked_at(data))
    for words in (
        "img_003.png: has no mask",
        "stray.png: is the mask of no image",
        "SKIP_UNPAIRED = True",
        "MASK_NAME",
    ):
        assert words in text
    report = looked_at(data, skip_unpaired=True)
    assert report.problems == [] and len(report.train) == 11 and len(report.val) == 4
    assert "for training 1 image without a mask and 0 masks without an image are left out: img_003" in report.text()
    assert "for validation 0 images without a mask and 1 mask without an image are left out: stray" in report.text()
    done = script("dataset.py", data / "ti", data / "tm", "--skip-unpaired", "--sheet", "none", cwd=data)
    assert done.returncode == 0 and "img_003.png" in done.stdout, done.stderr


def test_subfolders_and_what_lies_below_the_images(data):
    for kind in "im":
        (data / f"t{kind}" / "s").mkdir()
        for number in (0, 1):
            (data / f"t{kind}" / f"img_00{number}.png").rename(data / f"t{kind}" / "s" / f"x{number}.png")
        (data / f"v{kind}").rename(data / f"t{kind}" / "val")
    run = data / "ti" / "run"
    run.mkdir()
    Image.new("RGB", (60, 40)).save(run / "curves.png")
    folders = [data / "ti", data / "tm", data / "ti" / "val", data / "tm" / "val"]
    report = audit(folders[:2], folders[2:], sheet=run / "audit.png", apart=[run])
    assert report.problems == [] and len(report.val) == 4
    assert [pair.name for pair in report.train][-2:] == ["s/x0", "s/x1"] and len(report.train) == 12


def test_one_folder_pair_alone(data):
    report = audit((data / "ti", data / "tm"))
    assert report.problems == [] and report.val == []


def test_all_problems_at_once(data):
    Image.new("RGB", (60, 40)).save(data / "ti" / "lonely.png")
    Image.new("L", (60, 40)).save(data / "vm" / "orphan_mask.png")
    for name in ("x.png", "x.jpg"):
        Image.new("RGB", (60, 40)).save(data / "ti" / name)
    (data / "ti" / "img_001.png").write_bytes(b"")
    mask = (data / "tm" / "img_002.png").read_bytes()
    (data / "tm" / "img_002.png").write_bytes(mask[: len(mask) // 2])
    (data / "ti" / "img_003.png").write_text("not a picture")
    Image.new("RGB", (61, 40), 9).save(data / "ti" / "img_004.png")
    Image.open(data / "ti" / "img_005.png").transpose(Image.Transpose.ROTATE_90).save(data / "ti" / "img_005.png")
    Image.open(data / "ti" / "img_006.png").save(data / "vi" / "img_020.png")
    Image.fromarray(np.asarray(Image.open(data / "tm" / "img_007.png")) // 255).save(data / "tm" / "img_007.png")
    for folder, view in (("ti", "01"), ("vi", "02")):
        masks = folder.replace("i", "m")
        for place in (folder, masks):
            as_carvana(data / place, "img_008" if folder == "ti" else "img_021", f"00087a6bd4dc_{view}")
    report = looked_at(data)
    text = problems(report)
    for words in (
        "lonely.png: has no mask",
        "orphan_mask.png: is the mask of no image",
        "x.jpg, ",
        "img_001.png: is empty (0 bytes)",
        "img_002.png: is damaged or cut short",
        "img_003.png: is no picture",
        "img_004.png is 40x61",
        "height and width are swapped",
        "img_020.png is ",
        "{0, 1} in 1",
        "00087a6bd4dc: ",
    ):
        assert words in text, words
    assert report.mask_rule is None
    with pytest.raises(UserError) as caught:
        report.stop_if_spoiled()
    assert text.split("\n")[0] in str(caught.value)
    # unusable files come first, leaks last
    assert text.index("img_001.png") < text.index("lonely.png") < text.index("{0, 1}") < text.index("00087a6bd4dc: ")


@pytest.mark.parametrize("gone", ["ti", "tm", "vi"])
def test_a_missing_folder_is_a_problem_among_others(data, gone):
    (data / gone).rename(data / "elsewhere")
    (data / "vm" / "img_020.png").write_bytes(b"")
    report = looked_at(data)
    assert f"{data / gone}: there is no such folder" in problems(report)
    if gone != "vi":
        assert "img_020.png: is empty" in problems(report)


def test_no_pair_at_all(data):
    for index, path in enumerate(sorted((data / "vm").iterdir())):
        path.rename(path.with_name(f"other{index}.png"))
    assert "no image there has a mask" in problems(looked_at(data))


def test_rules_of_training_and_validation_must_agree(data):
    for path in (data / "vm").iterdir():
        Image.fromarray(np.asarray(Image.open(path)) // 255).save(path)
    assert "{0, 255} in 12" in problems(looked_at(data)) and "{0, 1} in 4" in problems(looked_at(data))
    assert looked_at(data, foreground=(1, 255)).problems == []


def test_classes_are_refused_and_one_is_taken(data):
    for folder in ("tm", "vm"):
        for path in (data / folder).iterdir():
            mask = np.asarray(Image.open(path))
            rows = np.arange(len(mask), dtype=np.uint8)[:, None] // 8
            Image.fromarray(np.where(mask, 8, rows).astype(np.uint8)).save(path)
    report = looked_at(data)
    assert "several classes" in problems(report) and report.mask_rule is None
    report = looked_at(data, foreground=8)
    assert report.problems == [] and report.mask_rule.foreground == (8,)


def test_cut_outs_and_instance_numbers_are_read_by_a_word(data):
    """What a cut-out's alpha says is remembered, too."""
    shares = {}
    for folder in ("tm", "vm"):
        for path in (data / folder).iterdir():
            mask = np.asarray(Image.open(path)) > 0
            photograph = np.random.default_rng(mask.sum()).integers(0, 256, (*mask.shape, 3), np.uint8)
            Image.fromarray(np.dstack([photograph, mask * np.uint8(255)])).save(path)
            shares[path] = mask.mean()
    assert "16 files cannot be used" in problems(looked_at(data)) and "alpha" in problems(looked_at(data))
    for _ in range(2):
        report = looked_at(data, foreground="alpha", cache=data / "seen.json")
        assert report.problems == [] and report.warnings == []
        assert f"median {np.median(list(shares.values())):.2%}" in report.text() and "opaque" in report.text()
    assert "16 files cannot be used" in problems(looked_at(data, cache=data / "seen.json"))
    for path in shares:
        numbers = np.cumsum(np.asarray(Image.open(path))[..., 3] > 0, axis=1) // 5 + (path.parent.name == "vm")
        Image.fromarray((numbers * (np.asarray(Image.open(path))[..., 3] > 0)).astype(np.uint16)).save(path)
    assert looked_at(data, foreground="nonzero").problems == []
    assert "several classes" in problems(looked_at(data))


@pytest.mark.parametrize("word", ["nonzero", "alpha"])
def test_the_script_takes_the_words(data, word, capsys):
    flags = [*(str(data / name) for name in ("ti", "tm")), "--sheet", "none", "--mask-foreground", word]
    if word == "alpha":
        with pytest.raises(UserError, match="img_000.png: has no alpha channel"):
            dataset.main(flags)
    else:
        dataset.main(flags)
        assert "every value but 0 is foreground" in capsys.readouterr().out


def test_exif_mismatch_is_called_a_rotation(data):
    exif = Image.Exif()
    exif[274] = 6
    Image.open(data / "ti" / "img_000.png").save(data / "ti" / "img_000.png", exif=exif)
    report = looked_at(data)
    assert "img_000.png is 60x40" in problems(report) and "EXIF tag" in problems(report)
    Image.open(data / "tm" / "img_000.png").save(data / "tm" / "img_000.png", exif=exif)
    report = looked_at(data)
    assert report.problems == [] and "1 image set upright" in report.text()


def test_same_pixels_and_same_groups_on_both_sides(data):
    Image.open(data / "ti" / "img_000.png").save(data / "vi" / "img_020.png", compress_level=1)
    report = looked_at(data)
    assert len(report.problems) == 1 and "img_020.png is " in problems(report) and "img_000.png" in problems(report)
    report = looked_at(data, group=r"(img)_")
    assert "1 group of images on both sides" in problems(report) and len(report.problems) == 2
    with pytest.raises(UserError, match="GROUP"):
        looked_at(data, group="(")


def test_flips_belong_to_the_group_of_their_original(data):
    for folder in ("ti", "tm"):
        as_carvana(data / folder, "img_000", "00087a6bd4dc_01_hflip")
    for folder in ("vi", "vm"):
        as_carvana(data / folder, "img_020", "00087a6bd4dc_02")
    assert "00087a6bd4dc: " in problems(looked_at(data))


def test_equal_numbers_are_only_a_warning(data):
    for folder in ("vi", "vm"):
        as_carvana(data / folder, "img_020", "img_003")
    report = looked_at(data)
    assert report.problems == [] and "numbered alike" in "\n".join(report.warnings)


def test_duplicates_are_compared_by_all_their_pixels(data):
    """Files equal in the rows that are summed up at first, and in an eighth of their size, are not equal."""
    one = np.asarray(Image.open(data / "ti" / "img_000.png")).copy()
    Image.fromarray(one).save(data / "ti" / "img_001.png", compress_level=0)
    one[3, 3] ^= 1
    Image.fromarray(one).save(data / "ti" / "img_002.png")
    report = looked_at(data)
    (warning,) = report.warnings
    assert "2 images for training" in warning and "img_000.png" in warning and "img_001.png" in warning
    assert "img_002.png" not in warning
    for folder in ("ti", "vi"):
        for path in (data / folder).iterdir():
            picture = Image.open(path).convert("RGB").resize((64, 48))
            picture.save(path.with_suffix(".jpg"), quality=90)
            path.unlink()
    for folder in ("tm", "vm"):
        for path in (data / folder).iterdir():
            Image.open(path).resize((64, 48), Image.Resampling.NEAREST).save(path)
    (data / "ti" / "img_005.jpg").write_bytes((data / "vi" / "img_020.jpg").read_bytes() + b"more")
    text = problems(looked_at(data))
    assert text.count(" is ") == 1 and "img_005.jpg" in text and "img_020.jpg" in text


def test_what_is_odd_but_usable_is_a_warning(data):
    Image.fromarray(np.zeros((40, 60), np.uint8)).save(data / "tm" / "img_000.png")
    Image.fromarray(np.full((40, 60), 255, np.uint8)).save(data / "tm" / "img_001.png")
    for name in ("Thumbs.db", ".hidden.png", "notes.txt"):
        (data / "ti" / name).write_text("x")
    (data / "ti" / "deeper.png").mkdir()
    report = looked_at(data)
    assert report.problems == []
    text = report.text()
    assert "1 masks empty, 1 all foreground" in text
    assert "4 that are no pictures" in text and "Thumbs.db" in text


def test_soft_masks_are_said(data):
    for path in (data / "tm").iterdir():
        Image.open(path).save(path.with_suffix(".jpg"), quality=80)
        path.unlink()
    report = looked_at(data)
    assert report.problems == [] and report.mask_rule.soft and "JPEG edges" in report.text()


def test_nothing_but_empty_masks_is_a_problem(data):
    for path in (data / "vm").iterdir():
        Image.fromarray(np.zeros((40, 60), np.uint8)).save(path)
    assert "Every mask for validation is empty" in problems(looked_at(data))


def test_sixteen_bits_that_use_twelve(data):
    draw = np.random.default_rng(0)
    for path in (data / "ti").iterdir():
        Image.fromarray(draw.integers(0, 4000, (40, 60), np.uint16)).save(path)
    assert "12 images of 16 bits that use only the lowest 12" in problems(looked_at(data))
    Image.fromarray(draw.integers(0, 60000, (40, 60), np.uint16)).save(data / "ti" / "img_000.png")
    report = looked_at(data)
    assert report.problems == [] and "11 images of 16 bits" in report.text()


def test_long_lists_are_cut_and_counts_are_exact(tmp_path):
    draw_pairs(tmp_path / "ti", tmp_path / "tm", 3)
    for index in range(LINES + 7):
        Image.new("L", (4, 4)).save(tmp_path / "ti" / f"more{index}.png")
    report = audit((tmp_path / "ti", tmp_path / "tm"))
    (problem,) = report.problems
    assert f"{LINES + 7} files for training" in problem and "and 7 more" in problem
    assert problem.count("has no mask") == LINES


def test_unchanged_files_are_not_read_again(data):
    cache = data / "seen" / "audit.json"
    before = looked_at(data, cache=cache)
    cache.write_text(cache.read_text().replace('"mode":"L"', '"mode":"remembered"'))
    after = looked_at(data, cache=cache)
    assert after.problems == before.problems == []
    assert before.text().replace("mode L", "mode remembered") == after.text() != before.text()
    for name in ("ti/img_003.png", "tm/img_004.png"):  # other bytes, of the same length and time
        stamp = os.stat(data / name)
        (data / name).write_bytes(bytes(stamp.st_size))
        os.utime(data / name, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    (data / "vm" / "img_021.png").write_bytes(b"x")
    text = problems(looked_at(data, cache=cache))
    assert all(name in text for name in ("img_003.png", "img_004.png", "img_021.png", "3 files cannot be used"))
    assert "img_005.png" not in text


def test_a_stopped_audit_remembers_what_it_has_seen(tmp_path):
    folders = tmp_path / "i", tmp_path / "m"
    draw_pairs(*folders, 20, size=(300, 450))
    for _ in range(2):  # the first one loads what Pillow needs
        start = time.perf_counter()
        audit(folders, num_workers=0)
        took = time.perf_counter() - start
    cache = tmp_path / "audit.json"
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, took / 3)
            audit(folders, cache=cache, num_workers=0)
            signal.pause()
    finally:
        signal.signal(signal.SIGALRM, before)
    seen = json.loads(cache.read_text())["facts"]
    assert 0 < len(seen) < 40
    cache.write_text(cache.read_text().replace('"mode":"RGB"', '"mode":"remembered"'))
    report = audit(folders, cache=cache, num_workers=0)
    assert report.problems == [] and "PNG remembered" in report.text()
    assert len(json.loads(cache.read_text())["facts"]) == 40


def test_a_sheet_that_cannot_be_written_costs_only_itself(data):
    (data / "file").write_text("")
    report = looked_at(data, sheet=data / "file" / "audit.png")
    assert report.problems == [] and "could not be written" in report.text() and "Look at" not in report.text()
    for sheet, words in ((data / "overlays", r"\.png"), (data / "vi" / "audit.png", "taken for one of the images")):
        with pytest.raises(UserError, match=words):
            looked_at(data, sheet=sheet)


def test_a_group_that_is_no_pattern_is_told_before_the_looking(data):
    with pytest.raises(UserError, match="no regular expression"):
        looked_at(data, group="(", cache=data / "audit.json")
    assert not (data / "audit.json").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", f'{{"head": [{VERSION}, false], "files": []}}', "null", "\x00"])
def test_a_damaged_memory_is_not_believed(data, content):
    cache = data / "audit.json"
    cache.write_text(content)
    assert looked_at(data, cache=cache).problems == []
    assert len(json.loads(cache.read_text())["facts"]) == 32


def test_memory_that_cannot_be_kept_stops_nothing(data):
    (data / "file").write_text("")
    assert looked_at(data, cache=data / "file" / "audit.json").problems == []


def test_bad_files_are_not_remembered(data):
    """A file that had no permission, or was being copied, is looked at again."""
    cache, path = data / "audit.json", data / "ti" / "img_000.png"
    good, stamp = path.read_bytes(), os.stat(path)
    path.write_bytes(bytes(len(good)))
    os.utime(path, ns=(1, 1))
    assert "img_000.png" in problems(looked_at(data, cache=cache))
    path.write_bytes(good)
    os.utime(path, ns=(1, 1))
    assert os.stat(path).st_size == stamp.st_size and looked_at(data, cache=cache).problems == []


def test_several_processes_see_the_same(data):
    Image.open(data / "ti" / "img_000.png").save(data / "ti" / "img_001.png", compress_level=1)
    (data / "ti" / "img_002.png").write_bytes(b"x")
    texts = []
    for workers in (0, 2):
        report = looked_at(data, num_workers=workers, cache=data / f"{workers}.json")
        texts.append((report.text(), report.problems))
    assert texts[0] == texts[1] and (data / "0.json").read_text() == (data / "2.json").read_text()


def test_every_fault_at_once(data):
    file = io.BytesIO()
    Image.open(data / "ti" / "img_000.png").save(file, "JPEG")
    faults = {
        "zero.png": b"",
        "text.png": b"hello",
        "cut.jpg": file.getvalue()[:-200],
        "name with space [x].png": b"\x89PNG\r\n\x1a\n",
        "日本 é.png": b"GIF89a",
        os.fsdecode(b"byte-\xff.png"): b"x",
    }
    for name, content in faults.items():
        (data / "ti" / name).write_bytes(content)
        Image.new("L", (60, 40)).save((data / "tm" / name).with_suffix(".png"))
    (data / "ti" / "loop.png").symlink_to(data / "ti" / "loop.png")
    Image.new("L", (60, 40)).save(data / "tm" / "loop.png")
    os.mkfifo(data / "ti" / "pipe.png")
    Image.new("L", (60, 40)).save(data / "tm" / "pipe.png")
    (data / "ti" / "folder.png").mkdir()
    with pytest.raises(UserError, match="8 files cannot be used") as caught:
        dataset.main([str(data / "ti"), str(data / "tm"), "--sheet", "none"])
    for name in (*faults, "loop.png", "pipe.png"):
        assert printable(name) in str(caught.value)


@pytest.mark.slow
def test_the_script_on_good_data_and_bad(data):
    folders = [data / name for name in ("ti", "tm", "vi", "vm")]
    done = script("dataset.py", *folders, cwd=data)
    assert done.returncode == 0, done.stderr
    assert "No problems." in done.stdout and (data / "audit.png").is_file()
    for name in ("img_001.png", "img_002.png"):
        (data / "ti" / name).write_bytes(b"x")
    done = script("dataset.py", *folders, cwd=data)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "2 files cannot be used" in done.stderr and "img_001.png" in done.stderr and "img_002.png" in done.stderr


def test_the_scripts_flags(data, capsys):
    plain = ["--sheet", "none", "--mask-foreground", "none", "--group", "(x)", "--image-size", "none"]
    folders = [str(data / name) for name in ("ti", "tm")]
    with pytest.raises(UserError, match="VAL_MASK_DIR"):
        dataset.main([*folders, str(data / "vi"), *plain])
    with pytest.raises(UserError, match="there is no such folder"):
        dataset.main([folders[0], str(data / "nothing"), *plain])
    for path in (data / "tm").iterdir():
        mask = np.asarray(Image.open(path))
        Image.fromarray(np.where(mask, 8, np.arange(40, dtype=np.uint8)[:, None] // 8).astype(np.uint8)).save(path)
    with pytest.raises(UserError, match="several classes.*\n?.*--mask-foreground"):
        dataset.main([*folders, *plain])
    dataset.main([*folders, *plain, "--mask-foreground", "8"])
    assert "8 is foreground, every other value is background" in capsys.readouterr().out


def small_things(folder, count, first=0, size=9):
    """Squares of 9 pixels in pictures of 512x768, as cells, lesions or cars from above are."""
    for index in range(first, first + count):
        draw = np.random.default_rng(index)
        mask = np.zeros((512, 768), bool)
        top, left = draw.integers(20, 480, 3), draw.integers(20, 740, 3)
        for y, x in zip(top, left):
            mask[y : y + size, x : x + size] = True
        for place, values in (
            (folder[0], draw.integers(0, 40, (512, 768, 3)) + mask[..., None] * 99),
            (folder[1], mask * 255),
        ):
            place.mkdir(exist_ok=True)
            Image.fromarray(values.astype(np.uint8)).save(place / f"s{index}.png")


def test_what_vanishes_when_masks_are_shrunk_is_told(tmp_path):
    folders = [tmp_path / name for name in ("ti", "tm", "vi", "vm")]
    small_things(folders[:2], 4)
    small_things(folders[2:], 2, first=10)
    report = audit(folders[:2], folders[2:], image_size=(32, 48))
    assert "No mask for training has any foreground left at IMAGE_SIZE 32x48" in problems(report)
    assert "6 masks are emptied" in problems(report) and "--image-size" in problems(report)
    small_things(folders[:2], 1, first=3, size=90)  # one that stays
    small_things(folders[2:], 1, first=11, size=90)
    report = audit(folders[:2], folders[2:], image_size=(32, 48))
    assert report.problems == [] and "4 masks are emptied at IMAGE_SIZE 32x48, and 0 others" in report.text()
    assert audit(folders[:2], folders[2:], image_size=(512, 768)).warnings == []
    assert audit(folders[:2], folders[2:]).warnings == []


def test_lines_that_are_thin_are_told_too(tmp_path):
    for place in ("ti", "tm"):
        (tmp_path / place).mkdir()
    for index in range(4):
        mask = np.zeros((400, 600), np.uint8)
        mask[5 + index :: 12] = 255  # a twelfth of the picture, one pixel thick
        Image.fromarray(mask).save(tmp_path / "tm" / f"{index}.png")
        Image.fromarray(np.random.default_rng(index).integers(0, 255, (400, 600, 3), np.uint8)).save(
            tmp_path / "ti" / f"{index}.png"
        )
    report = audit((tmp_path / "ti", tmp_path / "tm"), image_size=(100, 150))
    assert "4 masks are emptied at IMAGE_SIZE 100x150" in problems(report)


def test_blank_tiles_on_both_sides_are_no_leak(data):
    for side in ("t", "v"):
        Image.new("RGB", (60, 40)).save(data / f"{side}i" / f"{side}blank.png")
        Image.new("L", (60, 40)).save(data / f"{side}m" / f"{side}blank.png")
    assert looked_at(data).problems == []


def test_learning_by_heart_on_purpose_is_a_warning(data):
    report = audit((data / "ti", data / "tm"), (data / "ti", data / "tm"))
    assert report.problems == [] and "learnt by heart" in report.text()


# ---- ignored pixels, classes, pages, several masks, images of more than 8 bits


def draw_classes(data, values=(0, 1, 2), void=None):
    """The masks of `data` hold classes in stripes, and `void` in a corner; the images stay."""
    for folder in ("tm", "vm"):
        for path in (data / folder).iterdir():
            mask = np.repeat(np.array(values, np.uint8), [60 // len(values)] * len(values))[None].repeat(40, axis=0)
            mask = np.ascontiguousarray(np.roll(mask, int(path.stem[-2:]), axis=1))
            if void is not None:
                mask[:4, :6] = void
            Image.fromarray(mask).save(path)


def test_ignored_pixels_are_told_and_left_out_of_the_shares(data):
    for folder in ("tm", "vm"):
        for path in (data / folder).iterdir():
            mask = np.asarray(Image.open(path)) // 255
            mask[:10] = 2
            Image.fromarray(mask).save(path)
    assert "--mask-foreground" in problems(looked_at(data))
    report = looked_at(data, ignore=2, sheet=data / "new" / "sheet.png")
    assert report.problems == [] and report.mask_rule.ignored == (2,)
    assert "25.00% of all pixels are neither trained on nor scored" in report.text()
    shares = [(np.asarray(Image.open(pair.mask))[10:] == 1).mean() for pair in report.train + report.val]
    assert f"least {min(shares):.2%}" in report.text()
    assert "MASK_IGNORE: no mask holds that" in looked_at(data, ignore=9, foreground=1).text()
    assert "Every pixel of the masks for training is ignored" in problems(looked_at(data, ignore=(0, 1, 2)))


def test_classes_are_counted_and_drawn(data):
    draw_classes(data, void=255)
    text = problems(looked_at(data))
    assert "--mask-foreground" in text and "--classes" in text
    report = looked_at(data, ignore=255, classes={"sky": 0, "road": 1, "car": 2}, sheet=data / "new" / "sheet.png")
    assert report.problems == [] and report.mask_rule.channels == 3
    assert "class / training / validation: sky / 3" in report.text() and "1.00% of all pixels" in report.text()
    text = problems(looked_at(data, classes=(0, 1)))
    assert "img_000.png" in text and "CLASSES" in text and "255" in text
    with pytest.raises(UserError, match="CLASSES = 'all' and MASK_FOREGROUND = 2"):  # before anything is looked at
        looked_at(data, classes="all", foreground=2)


def test_a_class_that_one_side_lacks_or_hardly_has_is_told(data):
    draw_classes(data)
    for path in (data / "vm").iterdir():
        Image.fromarray(np.minimum(np.asarray(Image.open(path)), 1)).save(path)
    one = data / "tm" / "img_003.png"
    mask = np.asarray(Image.open(one)).copy()
    mask[0, 0] = 7
    Image.fromarray(mask).save(one)
    text = looked_at(data, classes={"sky": 0, "road": 1, "car": 2, "sign": 7, "boat": 9}).text()
    assert "no mask for training holds, so that they cannot be learnt: boat." in text
    assert "no mask for validation holds, so that they are not scored: car, sign, boat." in text
    assert "hardly any pixel for training has: sign (" in text
    for path in (data / "vm").iterdir():
        Image.fromarray(np.zeros((40, 60), np.uint8)).save(path)
    assert "for validation hold one of the classes alone, 0," in problems(looked_at(data, classes=(0, 1, 2, 7)))


def test_a_class_that_vanishes_when_masks_are_shrunk_is_told(tmp_path):
    for side, count in (("t", 6), ("v", 2)):
        draw_pairs(tmp_path / f"{side}i", tmp_path / f"{side}m", count, size=(160, 240), first=10 * count)
        for path in (tmp_path / f"{side}m").iterdir():
            mask = np.asarray(Image.open(path)) // 255
            mask[::16] = 2  # lines of one pixel
            Image.fromarray(mask).save(path)
    report = looked_at(tmp_path, classes={"sky": 0, "box": 1, "line": 2}, image_size=(40, 60))
    assert "1 class loses more than half of the pixels at IMAGE_SIZE 40x60" in report.text()
    assert "line: 6.250% -> 0.000%" in report.text() and "box:" not in report.text().split("being small")[1]


def test_each_page_is_an_image(data):
    for kind, pages in (("ti", range(3)), ("tm", range(3)), ("vi", range(20, 22)), ("vm", range(20, 22))):
        files = [data / kind / f"img_{page:03d}.png" for page in pages]
        first, *rest = [Image.open(file).copy() for file in files]
        first.save(data / kind / "stack.tif", save_all=True, append_images=rest)
        for file in files:
            file.unlink()
    cache = data / "memory.json"
    report = looked_at(data, cache=cache, sheet=data / "new" / "sheet.png")
    assert report.problems == [] and "each of 2 files is an image with a mask of its own" in report.text()
    assert [(pair.name, pair.image_page) for pair in report.train[-3:]] == [(f"stack_{n}", n) for n in range(3)]
    assert len(report.val) == 4
    again = looked_at(data, cache=cache)
    assert again.train == report.train and again.text() == report.text().replace(
        f"\nLook{report.text().split('Look')[1]}", ""
    )
    Image.open(data / "tm" / "stack.tif").save(data / "tm" / "stack.tif")  # its first page alone
    text = problems(looked_at(data))
    assert "1 file for training with pages that have no partner" in text and "stack.tif" in text


def test_several_masks_of_an_image_are_united(data):
    for folder in ("tm", "vm"):
        for path in list((data / folder).iterdir()):
            mask = np.asarray(Image.open(path))
            for number, half in enumerate((slice(None, 30), slice(30, None))):
                part = np.zeros_like(mask)
                part[:, half] = mask[:, half]
                Image.fromarray(part).save(path.with_name(f"{path.stem}_{number}.png"))
            path.unlink()
    report = looked_at(data, mask_name="{}_*", sheet=data / "new" / "sheet.png")
    assert report.problems == [] and len(report.train) == 12 and len(report.train[0].masks) == 2
    assert "16 images with 2 to 2 masks" in report.text()
    assert "CLASSES with several masks of one image" in problems(looked_at(data, mask_name="{}_*", classes="all"))


def deepen(folder, factor, dtype=np.uint16):
    for path in folder.iterdir():
        grey = np.asarray(Image.open(path).convert("L")).astype(dtype) * dtype(factor)
        Image.fromarray(grey).save(path.with_suffix(".tif"))
        path.unlink()


def test_what_deep_images_lose_is_told_unless_a_range_is_given(data):
    for folder in ("ti", "vi"):
        deepen(data / folder, 8)
    assert "of 16 bits that use only the lowest 12" in problems(looked_at(data)) and "IMAGE_RANGE" in problems(
        looked_at(data)
    )
    report = looked_at(data, image_range="auto")
    assert report.problems == [] and report.warnings == [] and "IMAGE_RANGE" in report.text()
    low, high = report.value_range
    assert 0 <= low < 200 and 1000 < high < 255 * 8
    assert looked_at(data, image_range=(0, 2040)).value_range == (0, 2040)
    assert "all values outside of that range" in problems(looked_at(data, image_range=(3000, 4000)))
    with pytest.raises(UserError, match="IMAGE_RANGE"):
        looked_at(data, image_range=(5, 5))


def test_float_images_need_a_range(data):
    for folder in ("ti", "vi"):
        deepen(data / folder, 0.01, np.float32)
    text = problems(looked_at(data))
    assert "with fractions" in text and "img_000.tif" in text and "IMAGE_RANGE" in text
    report = looked_at(data, image_range="auto", sheet=data / "new" / "sheet.png")
    assert report.problems == [] and 0 <= report.value_range[0] < report.value_range[1] < 2.6


def test_a_fourth_channel_that_says_something_is_told(data):
    path = data / "ti" / "img_002.png"
    colours = np.asarray(Image.open(path))
    for alpha, told in ((np.full(colours.shape[:2], 255, np.uint8), False), (colours[..., 0], True)):
        Image.fromarray(np.dstack([colours, alpha])).save(path)
        assert ("it is dropped" in looked_at(data).text()) == told


def test_swapped_folders_and_photographs_as_masks_are_told(data):
    for folder in ("ti", "vi"):
        for path in (data / folder).iterdir():
            noise = np.random.default_rng(int(path.stem[-3:])).integers(0, 256, (40, 60, 3), np.uint8)
            Image.fromarray(noise).save(path)
    swapped = audit((data / "tm", data / "ti"), (data / "vm", data / "vi"))
    assert "seem to be swapped" in problems(swapped) and "--train-img-dir" in problems(swapped)
    for path in (data / "tm").iterdir():
        (data / "ti" / path.name).replace(path)
    draw_pairs(data / "ti", data / "others", 12)
    photographs = audit((data / "ti", data / "tm"))
    assert "seem to be photographs" in problems(photographs) and "img_000.png" in problems(photographs)


def test_a_range_is_chosen_by_the_training_images_where_they_are_deep(data):
    deepen(data / "ti", 8)
    deepen(data / "vi", 200)
    assert 1000 < looked_at(data, image_range="auto").value_range[1] < 255 * 8
    for path in (data / "ti").iterdir():
        Image.fromarray((np.asarray(Image.open(path)) // 8).astype(np.uint8)).save(path)
    assert looked_at(data, image_range="auto").value_range[1] > 255 * 8
