"""Arrays on disk: their bytes, when they are made again, and processes that are really killed meanwhile."""

import contextlib
import dataclasses
import functools
import io
import json
import multiprocessing
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, WAIT, draw_pairs
from PIL import Image
from torch.utils.data import DataLoader
from tqdm import tqdm

from dataset import ArrayDataset, CropDataset, ImageDataset
from parts.arrays import POINTS, Arrays, Files, make_arrays, points_of
from parts.errors import UserError, ran_out_of_memory, run
from parts.files import stamp
from parts.mask_rules import find_mask_rule
from parts.masks import MaskRule
from parts.names import Pair, pair_files
from parts.spec import DataSpec

SIZE = (32, 48)
forking = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")


def draw(root, count=24, size=(120, 200)):
    """Pairs of photographs and masks of {0, 128, 255} with `root`/images and `root`/masks."""
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    for index in range(count):
        rng = np.random.default_rng(index)
        small = Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8))
        kind = "jpg" if index % 3 else "png"
        small.resize(size[::-1], Image.Resampling.BICUBIC).save(root / f"images/car {index:03d}.{kind}")
        areas = Image.fromarray(rng.choice([0, 128, 255], (5, 7)).astype(np.uint8))
        areas.resize(size[::-1], Image.Resampling.NEAREST).save(root / f"masks/car {index:03d}.png")
    return pair_files(root / "images", root / "masks")


def rule_of(pairs, foreground=255):
    return _rule(tuple(pair.mask for pair in pairs), foreground)


@functools.cache
def _rule(masks, foreground):
    return find_mask_rule(masks, DataSpec(foreground=foreground), num_workers=0)


def make(pairs, folder, size=SIZE, foreground=255, num_workers=None, progress=False):
    files = Files(pairs, rule_of(pairs, foreground), image_size=size)
    return make_arrays(files, folder, num_workers, progress)


def dataset_of(pairs, arrays=None, size=SIZE):
    """The pairs' ArrayDataset; without arrays it decodes whenever it is asked."""
    data = ArrayDataset(Files(pairs, rule_of(pairs), image_size=size))
    data.arrays = arrays
    return data


def contents(folder):
    """What arrays hold: all but the times of their files, which key.json keeps."""
    held = {file.name: file.read_bytes() for file in folder.iterdir()}
    held["key.json"] = re.sub(rb'("(?:images|masks|points|sizes)\.npy": \[\d+), \d+, \d+', rb"\1", held["key.json"])
    return held


def assert_clean(folder):
    """Nothing lies beside the arrays except the lock's file."""
    assert {item.name for item in folder.parent.iterdir()} <= {folder.name, f".{folder.name}.lock"}


def start(function):
    """Runs function() in a process group of its own, a fork of this process. Gives (process, reports):
    reports has what it printed, and its result or the message of its UserError."""
    reports, sender = multiprocessing.get_context("fork").Pipe(duplex=False)

    def body():
        os.setpgid(0, 0)
        tqdm.set_lock(threading.RLock())  # the default one is shared by forks: killed with it, we would block all
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                result = function()
        except UserError as mistake:
            result = mistake
        sender.send((printed.getvalue(), result))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # on forking: no thread of ours holds a lock here
        process = multiprocessing.get_context("fork").Process(target=body)
        process.start()
    sender.close()
    return process, reports


def wait_for_end_of_group(group):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.005)
    raise AssertionError("a worker process is left")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Pairs that no test changes."""
    return draw(tmp_path_factory.mktemp("pictures"))


def draw_sizes(folder, sizes):
    """Images of these sizes, whose pixels tell where they are, and masks with a few pixels of foreground."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number, (height, width) in enumerate(sizes):
        y, x = np.mgrid[:height, :width]
        image = np.stack([y, x, np.full_like(y, number)], axis=2).astype(np.uint8)
        mask = np.zeros((height, width), np.uint8)
        mask[height // 3, width // 4 : width // 4 + 3] = 255 * (number != 1)
        Image.fromarray(image).save(folder / "images" / f"img_{number}.png")
        Image.fromarray(mask).save(folder / "masks" / f"img_{number}.png")
    return folder / "images", folder / "masks"


SIZES = [(50, 70), (90, 33), (20, 100), (64, 64)]


# ---- what batches are


@pytest.mark.parametrize("num_workers", [0, 2])
def test_equal_a_fresh_decode_bit_for_bit(shared, tmp_path, num_workers):
    arrays = make(shared, tmp_path / "a" / "b", num_workers=num_workers)
    kept, fresh = dataset_of(shared, arrays), dataset_of(shared)
    assert len(kept) == len(fresh) == len(shared) and kept.pairs == fresh.pairs == shared
    indices = [5, 0, 11, 5]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for images, masks in (kept.__getitems__(indices).tensors, fresh.__getitems__(indices).tensors):
            assert images.shape == (4, 3, *SIZE) and images.dtype == torch.uint8
            assert images.is_contiguous(memory_format=torch.channels_last)
            assert masks.shape == (4, *SIZE) and masks.dtype == torch.uint8 and set(masks.unique().tolist()) == {0, 1}
    for index in range(len(shared)):
        for ours, theirs in zip(kept[index], fresh[index]):
            assert torch.equal(ours, theirs)
    for ours, theirs in zip(kept.__getitems__(indices).tensors, fresh.__getitems__(indices).tensors):
        assert torch.equal(ours, theirs)
    assert len({image.numpy().tobytes() for image, _ in kept}) == len(shared)
    assert all(isinstance(array, np.memmap) and not array.flags.writeable for array in arrays.open())
    assert_clean(tmp_path / "a" / "b")


def as_it_is(batch):
    return batch.tensors


@pytest.mark.parametrize(
    "method, num_workers",
    [
        (None, 0),
        ("fork", 2),
        pytest.param("spawn", 1, marks=pytest.mark.slow),
        pytest.param("forkserver", 1, marks=pytest.mark.slow),
    ],
)
def test_loader(shared, tmp_path, method, num_workers):
    if method and method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    arrays = make(shared, tmp_path / "arrays")
    datasets = [dataset_of(shared, arrays)] + [dataset_of(shared)] * (method in (None, "fork"))
    for dataset in datasets:
        loader = DataLoader(
            dataset,
            batch_size=5,
            num_workers=num_workers,
            collate_fn=as_it_is,
            multiprocessing_context=method,
        )
        batches = list(loader)
        assert [len(images) for images, _ in batches] == [5, 5, 5, 5, 4]
        assert batches[0][0].is_contiguous(memory_format=torch.channels_last)
        assert np.array_equal(torch.cat([images for images, _ in batches]).permute(0, 2, 3, 1), arrays.open()[0])
        assert np.array_equal(torch.cat([masks for _, masks in batches]), arrays.open()[1])


def test_a_pickle_holds_no_arrays(shared, tmp_path):
    pairs = (shared * 5)[:100]
    arrays = make(pairs, tmp_path / "arrays", size=(160, 240))
    kept = dataset_of(pairs, arrays, (160, 240))
    pickled = pickle.dumps(kept)
    assert len(pickled) < 100_000 < arrays.open()[0].nbytes
    assert torch.equal(pickle.loads(pickled)[99][0], kept[99][0])


def test_arrays_replaced_while_in_use(shared, tmp_path):
    kept = dataset_of(shared, make(shared, tmp_path / "arrays"))
    first, pickled = kept[0][0].clone(), pickle.dumps(kept)
    make(shared, tmp_path / "arrays", foreground=(128, 255))
    assert torch.equal(kept[0][0], first)  # those that are open stay
    with pytest.raises(UserError, match="replaced"):
        pickle.loads(pickled)[0]
    shutil.rmtree(tmp_path / "arrays")
    with pytest.raises(UserError, match="removed"):
        pickle.loads(pickled)[0]


# ---- when they are made again


def change_a_file(root):
    with open(root / "images" / "car 004.jpg", "ab") as file:
        file.write(b"\0")
    return "images: 1 file changed, e.g. car 004.jpg"


def touch_two_masks(root):
    for index in (3, 5):
        os.utime(root / "masks" / f"car {index:03d}.png", ns=(1, 1))
    return "masks: 2 files changed, e.g. car 003.png"


def add_a_pair(root):
    shutil.copy(root / "images" / "car 001.jpg", root / "images" / "new.jpg")
    shutil.copy(root / "masks" / "car 001.png", root / "masks" / "new.png")
    return "images: 1 file new, e.g. new.jpg; masks: 1 file new, e.g. new.png"


def remove_a_pair(root):
    (root / "images" / "car 001.jpg").unlink()
    (root / "masks" / "car 001.png").unlink()
    return "images: 1 file gone, e.g. car 001.jpg; masks: 1 file gone, e.g. car 001.png"


def add_a_name_that_is_no_unicode(root):
    shutil.copy(root / "images" / "car 001.jpg", root / "images" / os.fsdecode(b"caf\xe9.jpg"))
    shutil.copy(root / "masks" / "car 001.png", root / "masks" / os.fsdecode(b"caf\xe9.png"))
    return r"images: 1 file new, e.g. caf\udce9.jpg; masks"


def cut_the_arrays(root):
    os.truncate(root / "arrays" / "images.npy", 1000)
    return "arrays: 1 file changed, e.g. images.npy"


def zero_a_row(root):
    with open(root / "arrays" / "masks.npy", "r+b") as file:
        file.seek(5000)
        file.write(bytes(100))
    return "arrays: 1 file changed, e.g. masks.npy"


def put_a_file_in_their_place(root):
    shutil.rmtree(root / "arrays")
    (root / "arrays").write_text("x")
    return None


def damage_the_key(root):
    (root / "arrays" / "key.json").write_text('{"layout": ')
    return "damaged"


def change_types_in_the_key(root):
    key = json.loads((root / "arrays" / "key.json").read_text())
    key["settings"]["IMAGE_SIZE"] = [1]
    (root / "arrays" / "key.json").write_text(json.dumps(key))
    return "IMAGE_SIZE was [1], now"


def come_from_another_version(root):
    key = json.loads((root / "arrays" / "key.json").read_text())
    (root / "arrays" / "key.json").write_text(json.dumps({**key, "version": [0, 0]}))
    return "another version of this program"


def come_from_a_version_with_another_key(root):
    (root / "arrays" / "key.json").write_text(json.dumps({"layout": [3, 1], "image_size": SIZE, "pairs": []}))
    return "another version of this program"


CHANGES = [
    change_a_file,
    touch_two_masks,
    add_a_pair,
    remove_a_pair,
    add_a_name_that_is_no_unicode,
    cut_the_arrays,
    zero_a_row,
    put_a_file_in_their_place,
    damage_the_key,
    change_types_in_the_key,
    come_from_another_version,
    come_from_a_version_with_another_key,
]


@pytest.mark.parametrize("change", CHANGES)
def test_made_again_and_the_reason_said(tmp_path, capsys, change):
    make(draw(tmp_path), tmp_path / "arrays")
    reason = change(tmp_path)
    capsys.readouterr()
    pairs = pair_files(tmp_path / "images", tmp_path / "masks")
    kept = make(pairs, tmp_path / "arrays")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == (reason is not None) and all("made again" in line and reason in line for line in lines)
    assert not list(tmp_path.glob(".*.part"))
    assert torch.equal(
        torch.from_numpy(kept.batch([0, 9])[0]), dataset_of(pairs).__getitems__([0, 9]).tensors[0].permute(0, 2, 3, 1)
    )
    assert make(pairs, tmp_path / "arrays") and not capsys.readouterr().out


def test_other_settings(shared, tmp_path, capsys):
    folder = tmp_path / "arrays"
    before = make(shared, folder)
    assert not capsys.readouterr().out  # the first time has no reason, and progress=False nothing to tell
    kept = make(shared, folder, size=(48, 32))
    assert "IMAGE_SIZE was [32, 48], now [48, 32]" in capsys.readouterr().out and kept.open()[0].shape[1:3] == (48, 32)
    make(shared, folder)
    capsys.readouterr()
    kept = make(shared, folder, foreground=(128, 255))
    assert "the mask rule was" in capsys.readouterr().out and kept.open()[1].sum() > before.open()[1].sum()
    kept = make(shared[::-1], folder, foreground=(128, 255))
    assert "order" in capsys.readouterr().out
    assert np.array_equal(kept.batch([0])[0], before.batch([len(shared) - 1])[0])


def test_kept_when_nothing_changed(tmp_path, capsys):
    root = tmp_path / "here"
    pairs = draw(root)
    made = make(pairs, root / "arrays").folder.stat().st_ino
    assert make(pairs, root / "arrays").folder.stat().st_ino == made
    root.rename(tmp_path / "there")  # a dataset moved as a whole
    pairs = pair_files(tmp_path / "there" / "images", tmp_path / "there" / "masks")
    assert make(pairs, tmp_path / "there" / "arrays").folder.stat().st_ino == made
    assert not capsys.readouterr().out


# ---- pages, several masks of one image, images of more than 8 bits


def draw_pages(root, count=3, size=(60, 90)):
    """The Pairs of a TIFF of 16-bit greys, up to 1000, and of its masks; the values and the masks of the pages."""
    root.mkdir(parents=True)
    draw = np.random.default_rng(0)
    values = draw.integers(0, 1001, (count, *size), np.uint16)
    masks = np.zeros((count, *size), np.uint8)
    for page in range(count):
        masks[page, 10 * page : 10 * page + 9, 5:40] = 255
    for name, pages in (("x.tif", values), ("x_mask.tif", masks)):
        first, *rest = map(Image.fromarray, pages)
        first.save(root / name, save_all=True, append_images=rest)
    pairs = [Pair(f"x_{page}", root / "x.tif", root / "x_mask.tif", page, page) for page in range(count)]
    return pairs, values, masks


def test_pages_by_a_span_of_their_values(tmp_path, capsys):
    pairs, values, masks = draw_pages(tmp_path / "pictures")
    spanned = ImageDataset(None, None, pairs=pairs, value_range=(0, 1000))
    for page in range(3):
        image, mask = spanned[page]
        expected = np.rint(values[page] * 0.255)
        assert image.shape == (60, 90, 3) and np.abs(image - expected[..., None]).max() <= 1
        np.testing.assert_array_equal(mask * 255, masks[page])
    files = Files(pairs, spanned.mask_rule, (0, 1000), SIZE)
    fresh, kept = ArrayDataset(files), ArrayDataset(files)
    assert kept.keep_arrays(tmp_path / "arrays", progress=False) and not fresh.arrays
    for ours, theirs in zip(kept.__getitems__([2, 0, 1]).tensors, fresh.__getitems__([2, 0, 1]).tensors):
        assert torch.equal(ours, theirs)
    assert len({image.numpy().tobytes() for image, _ in kept}) == len({mask.numpy().tobytes() for _, mask in kept}) == 3
    assert kept.keep_arrays(tmp_path / "arrays", progress=False) and not capsys.readouterr().out
    for value_range, words in (((0, 2000), "was [0.0, 1000.0]"), (None, "now None"), ((0, 1000), "was None")):
        other_range = dataclasses.replace(files, value_range=value_range)
        other = ArrayDataset(other_range)
        assert other.keep_arrays(tmp_path / "arrays", progress=False)
        assert words in capsys.readouterr().out
        assert torch.equal(other[0][0], ArrayDataset(other_range)[0][0])
    swapped = [dataclasses.replace(pair, mask_page=2 - pair.mask_page) for pair in pairs]
    make_arrays(dataclasses.replace(files, pairs=swapped), tmp_path / "arrays", progress=False)
    assert "belong together in another way" in capsys.readouterr().out


def test_several_masks_of_one_image(tmp_path, capsys):
    draw_pairs(tmp_path / "images", tmp_path / "masks", 3)
    objects = np.zeros((2, 40, 60), np.uint8)
    objects[0, :9, :9] = objects[1, 30:, 50:] = 255
    for number, values in enumerate(objects):
        Image.fromarray(values).save(tmp_path / f"object_{number}.png")
    pairs = pair_files(tmp_path / "images", tmp_path / "masks")
    alone = ImageDataset(None, None, pairs=pairs)
    pairs[1] = dataclasses.replace(pairs[1], more=tuple(tmp_path / f"object_{number}.png" for number in (0, 1)))
    united = ImageDataset(None, None, pairs=pairs)
    files = Files(pairs, united.mask_rule, image_size=(40, 60))
    np.testing.assert_array_equal(united[1][1], alone[1][1] | (objects.max(axis=0) > 0))
    np.testing.assert_array_equal(united[0][1], alone[0][1])
    make_arrays(dataclasses.replace(files, pairs=alone.pairs), tmp_path / "arrays", progress=False)
    arrays = make_arrays(files, tmp_path / "arrays", progress=False)
    assert "made again, because masks: 2 files new, e.g. object_0.png" in capsys.readouterr().out
    np.testing.assert_array_equal(arrays.batch([1])[1][0], united[1][1])
    moved = [dataclasses.replace(pairs[0], more=pairs[1].more), dataclasses.replace(pairs[1], more=()), pairs[2]]
    arrays = make_arrays(dataclasses.replace(files, pairs=moved), tmp_path / "arrays", progress=False)
    assert "belong together in another way" in capsys.readouterr().out and arrays.batch([0])[1][0][0, 0] == 1
    pairs[1].more[1].unlink()
    with pytest.raises(UserError, match="object_1.png: has just gone"):
        make_arrays(files, tmp_path / "arrays", progress=False)
    with pytest.raises(UserError, match=r"CLASSES with several masks of one image, e.g. .*object_0.png"):
        ImageDataset(None, None, pairs=pairs, mask_rule=MaskRule("numbers", (), (), classes=(0, 255), names=("a", "b")))


# ---- what can go wrong


def test_files_that_cannot_be_decoded_are_all_named(tmp_path):
    pairs = draw(tmp_path)
    os.truncate(pairs[3].image, 300)
    pairs[20].mask.write_text("no picture")
    for num_workers in (0, 2):
        with pytest.raises(UserError) as mistake:
            make_arrays(Files(pairs, rule_of(pairs[:3]), image_size=SIZE), tmp_path / "arrays", num_workers, False)
        assert str(pairs[3].image) in str(mistake.value) and str(pairs[20].mask) in str(mistake.value)
        assert not (tmp_path / "arrays").exists()
        assert not list(tmp_path.glob(".arrays*.part"))


def other_pixels(path):
    """A mask of as many bytes as before."""
    Image.fromarray(255 - np.array(Image.open(path))).save(path, "BMP")


@pytest.mark.parametrize("num_workers, change", [(0, Path.unlink), (1, Path.unlink), (0, other_pixels)])
def test_a_file_that_goes_or_changes_while_epochs_decode(tmp_path, num_workers, change):
    pairs = draw(tmp_path)
    Image.open(pairs[20].mask).save(pairs[20].mask, "BMP")
    loader = DataLoader(dataset_of(pairs), batch_size=8, num_workers=num_workers, collate_fn=as_it_is)
    pairs[4].image.rename(tmp_path / "away")
    (tmp_path / "away").rename(pairs[4].image)  # which changes nothing
    change(pairs[20].mask)
    with pytest.raises(UserError) as mistake:
        list(loader)
    assert str(pairs[20].mask) in str(mistake.value)


def test_files_that_are_gone(tmp_path):
    pairs = draw(tmp_path)
    mask_rule = rule_of(pairs)
    pairs[2].image.unlink()
    pairs[4].mask.unlink()
    with pytest.raises(UserError) as mistake:
        make_arrays(Files(pairs, mask_rule, image_size=SIZE), tmp_path / "arrays", progress=False)
    assert str(pairs[2].image) in str(mistake.value) and str(pairs[4].mask) in str(mistake.value)


@pytest.mark.slow
@pytest.mark.parametrize("change", [lambda path: os.utime(path), lambda path: path.unlink(missing_ok=True)])
def test_a_file_that_changes_while_it_is_decoded(tmp_path, change):
    pairs = draw(tmp_path, count=40, size=(300, 500))
    mask_rule = rule_of(pairs)

    def once_it_has_begun():
        while not list(tmp_path.glob(".arrays.*.part")):
            time.sleep(0.001)
        change(pairs[-1].image)

    threading.Thread(target=once_it_has_begun, daemon=True).start()
    with pytest.raises(UserError, match="changed, or went") as mistake:
        make_arrays(Files(pairs, mask_rule, image_size=SIZE), tmp_path / "arrays", 0, progress=False)
    assert str(pairs[-1].image) in str(mistake.value)
    assert not (tmp_path / "arrays").exists()


def test_a_disk_without_room(shared, tmp_path, capsys):
    make(shared, tmp_path / "arrays")
    assert make(shared, tmp_path / "arrays", size=(10**6, 10**6)) is None
    assert "of disk" in capsys.readouterr().out
    assert_clean(tmp_path / "arrays")
    make(shared, tmp_path / "arrays")
    assert not capsys.readouterr().out  # those in place were left alone


@forking
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_disk_that_turns_out_to_have_no_room(shared, tmp_path, num_workers):
    import resource

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
        return make(shared * 3, tmp_path / "arrays", num_workers=num_workers)

    process, reports = start(limited)
    printed, result = reports.recv()
    process.join()
    assert result is None and "no arrays" in printed and "decodes the files" in printed
    assert not (tmp_path / "arrays").exists() and not list(tmp_path.glob(".*.part"))


def test_a_folder_that_cannot_be_written(shared, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert make(shared, tmp_path / "file" / "arrays") is None
    assert "no arrays" in capsys.readouterr().out


# ---- processes that are killed, stopped, and started at once


@pytest.mark.slow
@forking
def test_killed_at_any_moment(tmp_path):
    pairs = draw(tmp_path / "pictures", count=48, size=(240, 400))
    folder = tmp_path / "data" / "arrays"
    times = []
    for _ in range(3):  # one alone may have been slow, and then nearly all kills would come too late
        shutil.rmtree(folder, ignore_errors=True)
        started = time.monotonic()
        make(pairs, folder, num_workers=2)
        times.append(time.monotonic() - started)
    whole = contents(folder)
    draws = random.Random(0)
    unfinished, groups = 0, []
    for _ in range(20):
        shutil.rmtree(folder)
        process, _ = start(lambda: make(pairs, folder, num_workers=2) and None)
        time.sleep(draws.uniform(0, min(times)))
        process.kill()
        process.join()
        unfinished += not folder.exists()
        if folder.exists():
            assert contents(folder) == whole  # what has the name is whole
        make(pairs, folder, num_workers=2)
        assert contents(folder) == whole
        assert_clean(folder)
        groups.append(process.pid)
    assert unfinished > 5
    for group in groups:
        wait_for_end_of_group(group)


@forking
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_by_a_signal_it_leaves_nothing(tmp_path, capfd, number, status):
    pairs = draw(tmp_path / "pictures", count=60, size=(400, 600))
    folder = tmp_path / "arrays"
    process, _ = start(lambda: run(lambda: make(pairs, folder, num_workers=2) and None))
    while not any(file.stat().st_blocks > 8 for file in tmp_path.glob(".arrays.*.part/images.npy")):
        time.sleep(0.001)  # until the first rows are written
    os.killpg(process.pid, number)
    process.join()
    assert process.exitcode == status
    wait_for_end_of_group(process.pid)
    assert not list(tmp_path.glob(".arrays.*.part")) and not folder.exists()
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
@forking
def test_several_at_once(tmp_path):
    pairs = draw(tmp_path / "pictures", size=(240, 400))
    folder = tmp_path / "data" / "arrays"
    make(pairs, folder, foreground=(128, 255))
    others = [start(lambda: make(pairs, folder, num_workers=2, progress=True).open()[0].sum()) for _ in range(3)]
    printed, sums = zip(*(reports.recv() for _, reports in others))
    assert [process.join() or process.exitcode for process, _ in others] == [0, 0, 0]
    assert set(sums) == {make(pairs, folder).open()[0].sum()}
    assert sum("made again" in text for text in printed) >= 1
    assert sum("decoded once" in text for text in printed) == 1
    assert_clean(folder)


@forking
def test_what_others_are_making_is_left_alone(shared, tmp_path):
    """Also when another folder's name begins like this one's."""
    for name in ("arrays.x.0123456789ab.part", ".arrays.x.0123456789ab.part", ".arrays-2.0123456789ab.part"):
        (tmp_path / name).mkdir()
    for name in (".arrays.0123456789ab.part", ".arrays-3.0123456789ab.part"):
        (tmp_path / name).mkdir()
    os.utime(tmp_path / ".arrays-3.0123456789ab.part", (0, 0))  # nobody is at work there any more
    make(shared, tmp_path / "arrays")
    assert len(list(tmp_path.glob("*.part"))) == 3


@forking
def test_too_little_memory_is_not_taken_for_arrays_that_are_gone(shared, tmp_path):
    import resource

    pickled = pickle.dumps(make(shared, tmp_path / "arrays"))

    def limited():
        resource.setrlimit(resource.RLIMIT_AS, (2**20, 2**20))  # what is there stays; nothing is added
        try:
            pickle.loads(pickled).open()
        except Exception as error:
            return ran_out_of_memory(error)

    process, reports = start(limited)
    assert reports.recv() == ("", True)
    process.join()


@pytest.mark.slow
def test_made_by_spawned_processes(tmp_path):
    pairs = draw(tmp_path / "pictures", count=16)
    spawning = tmp_path / "make.py"
    spawning.write_text(
        "if __name__ == '__main__':\n"  # the spawned ones need none of this
        "    import multiprocessing, sys\n"
        f"    sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
        "    from pathlib import Path\n"
        "    from test_arrays import make, pair_files\n"
        "    multiprocessing.set_start_method('spawn')\n"
        "    root = Path(sys.argv[1])\n"
        "    pairs = pair_files(root / 'pictures/images', root / 'pictures/masks')\n"
        "    make(pairs, root / 'spawned', num_workers=2)\n"
    )
    subprocess.run([sys.executable, spawning, tmp_path], check=True, timeout=WAIT)
    assert isinstance(make(pairs, tmp_path / "here"), Arrays)
    assert contents(tmp_path / "spawned") == contents(tmp_path / "here")
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 3000])
def test_places_of_a_class_are_spread_evenly_over_its_pixels(count):
    mask = np.zeros(3000, np.uint8)
    mask[np.random.default_rng(0).permutation(3000)[:count]] = 1
    found, (places,) = np.flatnonzero(mask), points_of(mask.reshape(50, 60), MaskRule())
    spread = found[np.linspace(0, count - 1, min(count, POINTS)).astype(int)]
    assert places[: len(spread)].tolist() == spread.tolist() and (places[len(spread) :] == -1).all()


def test_an_image_that_is_not_as_large_as_its_head_says_is_named(tmp_path):
    images, masks = draw_sizes(tmp_path, SIZES)
    pairs = pair_files(images, masks)
    data = CropDataset(Files(pairs, rule_of(pairs)), crop=(8, 8))
    Image.new("RGB", (30, 30)).save(images / "img_2.png")
    Image.new("L", (30, 30)).save(masks / "img_2.png")
    data.files.stamps.update((path, stamp(path)) for path in list(data.files.stamps))  # as if they had always been so
    with pytest.raises(UserError, match="img_2.png: is 20x100 by its head, and 30x30"):
        data.keep_arrays(tmp_path / "arrays", progress=False)
