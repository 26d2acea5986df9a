"""The article's dataset: its own use, masks of {0, 1}, and random draws that do not depend on the workers."""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from helpers import ROOT, WAIT, draw_pairs
from PIL import Image
from torch.utils.data import DataLoader
from tqdm import tqdm

from dataset import ImageDataset, image_dataset, main
from parts.arrays import POINTS, Arrays, make_arrays, points_of
from parts.errors import UserError, run
from parts.mask_rules import find_mask_rule
from parts.masks import IGNORED, MaskRule
from parts.names import Pair, pair_files
from parts.spec import DataSpec

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations as A  # noqa: E402
from albumentations.pytorch import ToTensorV2  # noqa: E402


@pytest.fixture
def folders(tmp_path):
    draw_pairs(tmp_path / "images", tmp_path / "masks", 9)
    return tmp_path / "images", tmp_path / "masks"


def test_items_are_arrays(folders):
    dataset = ImageDataset(*folders)
    assert len(dataset) == 9 and [pair.name for pair in dataset.pairs] == [f"img_{i:03d}" for i in range(9)]
    for index in range(9):
        image, mask = dataset[index]
        np.testing.assert_array_equal(image, np.asarray(Image.open(folders[0] / f"img_{index:03d}.png")))
        np.testing.assert_array_equal(mask * 255, np.asarray(Image.open(folders[1] / f"img_{index:03d}.png")))
        assert image.dtype == mask.dtype == np.uint8 and image.flags.writeable and mask.flags.writeable
    with pytest.raises(IndexError):
        dataset[9]


def test_the_articles_transform(folders):
    transform = A.Compose(
        [
            A.Resize(height=32, width=48),
            A.Normalize(mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0], max_pixel_value=255.0),
            ToTensorV2(),
        ]
    )
    image, mask = image_dataset(*folders, transform=transform)[0]
    assert image.shape == (3, 32, 48) and image.dtype == torch.float32 and image.min() >= 0 and image.max() <= 1
    assert mask.shape == (32, 48) and set(mask.unique().tolist()) == {0, 1}
    targets = mask.float().unsqueeze(0)
    assert targets.max() == 1


def draws(dataset, workers, epochs=(0, 1), persistent=False):
    """Every epoch's images, in order."""
    loader = DataLoader(dataset, batch_size=3, num_workers=workers, persistent_workers=persistent)
    found = []
    for epoch in epochs:
        dataset.set_epoch(epoch)
        found.append(torch.cat([images for images, _ in loader]))
    return found


def test_draws_depend_on_seed_epoch_and_index_alone(folders):
    transform = A.Compose([A.RandomCrop(24, 24), A.RandomBrightnessContrast(p=1)])
    dataset = ImageDataset(*folders, transform, seed=3)
    first, second = draws(dataset, 0)
    again = draws(ImageDataset(*folders, A.Compose([A.RandomCrop(24, 24), A.RandomBrightnessContrast(p=1)]), seed=3), 2)
    persistent = draws(dataset, 2, persistent=True)
    for other in (again, persistent):
        assert torch.equal(first, other[0]) and torch.equal(second, other[1])
    assert not torch.equal(first, second)
    other_seed = ImageDataset(*folders, transform, seed=4)
    assert not torch.equal(draws(other_seed, 0, [0])[0], first)


def test_image_and_mask_stay_together(folders):
    transform = A.Compose([A.HorizontalFlip(p=1)])
    plain, flipped = ImageDataset(*folders)[2], ImageDataset(*folders, transform)[2]
    np.testing.assert_array_equal(flipped[0], plain[0][:, ::-1])
    np.testing.assert_array_equal(flipped[1], plain[1][:, ::-1])


def test_foreground_and_rule(folders):
    inverted = ImageDataset(*folders, foreground=0)
    plain = ImageDataset(*folders)
    np.testing.assert_array_equal(inverted[0][1], 1 - plain[0][1])
    assert ImageDataset(*folders, mask_rule=inverted.mask_rule).mask_rule == inverted.mask_rule


def test_items_of_classes_and_ignored_pixels(folders):
    for path in sorted(folders[1].iterdir()):
        values = np.asarray(Image.open(path)).copy()
        values[values == 0] = 7
        values[:4], values[:, :2] = 100, 200
        Image.fromarray(values).save(path)
    values = np.asarray(Image.open(path))
    of_classes = ImageDataset(*folders, classes={"field": 7, "box": 255, "sky": 100}, ignore=200)
    mask = of_classes[8][1]
    assert mask.dtype == np.uint8 and of_classes.mask_rule.names == ("field", "box", "sky")
    for index, value in enumerate((7, 255, 100)):
        np.testing.assert_array_equal(mask == index, values == value)
    np.testing.assert_array_equal(mask == IGNORED, values == 200)
    foreground = ImageDataset(*folders, foreground=255, ignore=(100, 200))[8][1]
    assert set(np.unique(foreground)) == {0, 1, IGNORED}
    np.testing.assert_array_equal(foreground == IGNORED, np.isin(values, (100, 200)))
    halved = ImageDataset(*folders, classes="all", ignore=200, image_size=(20, 30))[8][1]
    assert set(halved.unique().tolist()) == {0, 1, 2, IGNORED}


def test_it_pickles_and_keeps_its_epoch(folders):
    dataset = ImageDataset(*folders)
    dataset.set_epoch(5)
    copy = pickle.loads(pickle.dumps(dataset))
    assert int(copy._epoch) == 5 and copy.mask_rule == dataset.mask_rule and copy.pairs == dataset.pairs


def test_mistakes_are_told_at_once(folders):
    with pytest.raises(UserError, match="no such folder"):
        ImageDataset(folders[0], folders[1] / "nothing")
    (folders[1] / "img_000.png").unlink()
    (folders[1] / "img_001.png").unlink()
    with pytest.raises(UserError) as caught:
        ImageDataset(*folders)
    assert "img_000" in str(caught.value) and "img_001" in str(caught.value)


def test_a_file_that_goes_bad_in_a_worker_is_named(folders):
    dataset = ImageDataset(*folders)
    (folders[0] / "img_004.png").write_bytes(b"")
    with pytest.raises(UserError, match="img_004.png: is empty"):
        draws(dataset, 1, [0])


# ---- arrays, by real processes that are really killed

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
    mask_rule = rule_of(pairs, foreground)
    return make_arrays(pairs, mask_rule, size, folder, num_workers=num_workers, progress=progress)


def dataset_of(pairs, arrays=None, size=SIZE):
    """The pairs' ImageDataset; without arrays it decodes whenever it is asked."""
    data = ImageDataset(None, None, image_size=size, pairs=pairs, mask_rule=rule_of(tuple(pairs)))
    data.arrays = arrays
    return data


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


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


def damage_the_arrays(root):
    os.truncate(root / "arrays" / "images.npy", 1000)
    return "damaged"


def damage_the_key(root):
    (root / "arrays" / "key.json").write_text('{"layout": ')
    return "damaged"


def come_from_another_version(root):
    key = json.loads((root / "arrays" / "key.json").read_text())
    (root / "arrays" / "key.json").write_text(json.dumps({**key, "layout": [0, 0]}))
    return "another version of this program"


CHANGES = [
    change_a_file,
    touch_two_masks,
    add_a_pair,
    remove_a_pair,
    add_a_name_that_is_no_unicode,
    damage_the_arrays,
    damage_the_key,
    come_from_another_version,
]


@pytest.mark.parametrize("change", CHANGES)
def test_made_again_and_the_reason_said(tmp_path, capsys, change):
    make(draw(tmp_path), tmp_path / "arrays")
    reason = change(tmp_path)
    capsys.readouterr()
    pairs = pair_files(tmp_path / "images", tmp_path / "masks")
    kept = make(pairs, tmp_path / "arrays")
    (line,) = capsys.readouterr().out.splitlines()
    assert "made again" in line and reason in line
    assert torch.equal(
        torch.from_numpy(kept.rows([0, 9])[0]), dataset_of(pairs).__getitems__([0, 9]).tensors[0].permute(0, 2, 3, 1)
    )
    assert make(pairs, tmp_path / "arrays") and not capsys.readouterr().out


def test_other_settings(shared, tmp_path, capsys):
    folder = tmp_path / "arrays"
    before = make(shared, folder)
    assert not capsys.readouterr().out  # the first time has no reason, and progress=False nothing to tell
    kept = make(shared, folder, size=(48, 32))
    assert "IMAGE_SIZE was 32x48" in capsys.readouterr().out and kept.open()[0].shape[1:3] == (48, 32)
    make(shared, folder)
    capsys.readouterr()
    kept = make(shared, folder, foreground=(128, 255))
    assert "the mask rule was" in capsys.readouterr().out and kept.open()[1].sum() > before.open()[1].sum()
    kept = make(shared[::-1], folder, foreground=(128, 255))
    assert "order" in capsys.readouterr().out
    assert np.array_equal(kept.rows([0])[0], before.rows([len(shared) - 1])[0])


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
    fresh = ImageDataset(None, None, pairs=pairs, mask_rule=spanned.mask_rule, value_range=(0, 1000), image_size=SIZE)
    kept = ImageDataset(None, None, pairs=pairs, mask_rule=spanned.mask_rule, value_range=(0, 1000), image_size=SIZE)
    assert kept.keep_arrays(tmp_path / "arrays", progress=False) and not fresh.arrays
    for ours, theirs in zip(kept.__getitems__([2, 0, 1]).tensors, fresh.__getitems__([2, 0, 1]).tensors):
        assert torch.equal(ours, theirs)
    assert len({image.numpy().tobytes() for image, _ in kept}) == len({mask.numpy().tobytes() for _, mask in kept}) == 3
    assert kept.keep_arrays(tmp_path / "arrays", progress=False) and not capsys.readouterr().out
    for value_range, words in (((0, 2000), "IMAGE_RANGE was (0, 1000)"), (None, "(0, 2000)"), ((0, 1000), "was None")):
        other = ImageDataset(
            None, None, pairs=pairs, mask_rule=spanned.mask_rule, value_range=value_range, image_size=SIZE
        )
        assert other.keep_arrays(tmp_path / "arrays", progress=False)
        assert words in capsys.readouterr().out
        expected = ImageDataset(
            None, None, pairs=pairs, mask_rule=spanned.mask_rule, value_range=value_range, image_size=SIZE
        )[0][0]
        assert torch.equal(other[0][0], expected)
    swapped = [dataclasses.replace(pair, mask_page=2 - pair.mask_page) for pair in pairs]
    make_arrays(swapped, spanned.mask_rule, SIZE, tmp_path / "arrays", progress=False, value_range=(0, 1000))
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
    np.testing.assert_array_equal(united[1][1], alone[1][1] | (objects.max(axis=0) > 0))
    np.testing.assert_array_equal(united[0][1], alone[0][1])
    make_arrays(alone.pairs, united.mask_rule, (40, 60), tmp_path / "arrays", progress=False)
    arrays = make_arrays(pairs, united.mask_rule, (40, 60), tmp_path / "arrays", progress=False)
    assert "made again, because masks: 2 files new, e.g. object_0.png" in capsys.readouterr().out
    np.testing.assert_array_equal(arrays.rows([1])[1][0], united[1][1])
    moved = [dataclasses.replace(pairs[0], more=pairs[1].more), dataclasses.replace(pairs[1], more=()), pairs[2]]
    arrays = make_arrays(moved, united.mask_rule, (40, 60), tmp_path / "arrays", progress=False)
    assert "belong together in another way" in capsys.readouterr().out and arrays.rows([0])[1][0][0, 0] == 1
    pairs[1].more[1].unlink()
    with pytest.raises(UserError, match="object_1.png: has just gone"):
        make_arrays(pairs, united.mask_rule, SIZE, tmp_path / "arrays", progress=False)
    with pytest.raises(UserError, match=r"CLASSES with several masks of one image, e.g. .*object_0.png"):
        ImageDataset(None, None, pairs=pairs, mask_rule=MaskRule("numbers", (), (), classes=(0, 255), names=("a", "b")))


def test_identities(tmp_path):
    """Another one for whatever changes what is scored; that of one foreground stays what older checkpoints hold."""
    pairs, _, _ = draw_pages(tmp_path / "pictures")
    draw_pairs(tmp_path / "images", tmp_path / "masks", 2)
    plain = pair_files(tmp_path / "images", tmp_path / "masks")
    mask_rule = MaskRule("numbers", (0,), (255,))
    names = [[pair.name, os.stat(path).st_size] for pair in plain for path in (pair.image, pair.mask)]
    old = {"kind": "numbers", "background": [0], "foreground": [255], "soft": False, "rest": False}
    before = hashlib.sha256(json.dumps([names, (20, 30), old]).encode()).hexdigest()

    def identity(pairs, mask_rule=mask_rule, **keywords):
        return ImageDataset(None, None, pairs=pairs, mask_rule=mask_rule, image_size=(20, 30), **keywords).identity()

    assert identity(plain) == before
    several = [dataclasses.replace(plain[0], more=(plain[1].mask,)), plain[1]]
    others = [
        identity(several),
        identity(plain, value_range=(0, 1000)),
        identity(plain, value_range=(0, 2000)),
        identity(plain, dataclasses.replace(mask_rule, ignored=(7,))),
        identity(plain, MaskRule("numbers", (), (), classes=(0, 255), names=("a", "b"))),
        identity(pairs),
        identity([dataclasses.replace(pair, mask_page=2 - pair.mask_page) for pair in pairs]),
    ]
    assert len({before, *others}) == 1 + len(others)
    assert identity(plain, value_range=(0, 1000)) == identity(plain, value_range=(0.0, 1000.0))


def test_the_script_hands_its_constants_on(tmp_path, monkeypatch):
    asked = {}

    def audit(train_folders, val_folders, spec, **keywords):
        asked.update(vars(spec))
        raise UserError("seen")

    monkeypatch.setattr("dataset.audit", audit)
    flags = ["--mask-ignore", "255", "--classes", "0", "3", "--image-range", "0", "4095", "--mask-name", "{}_*"]
    with pytest.raises(UserError, match="seen"):
        main([str(tmp_path), str(tmp_path), *flags])
    assert asked["ignore"] == 255 and asked["classes"] == (0, 3) and asked["image_range"] == (0, 4095)
    assert asked["mask_name"] == "{}_*"


# ---- what can go wrong


def test_files_that_cannot_be_decoded_are_all_named(tmp_path):
    pairs = draw(tmp_path)
    os.truncate(pairs[3].image, 300)
    pairs[20].mask.write_text("no picture")
    for num_workers in (0, 2):
        with pytest.raises(UserError) as mistake:
            make_arrays(pairs, rule_of(pairs[:3]), SIZE, tmp_path / "arrays", num_workers=num_workers, progress=False)
        assert str(pairs[3].image) in str(mistake.value) and str(pairs[20].mask) in str(mistake.value)
        assert not (tmp_path / "arrays").exists()
        assert not list(tmp_path.glob(".arrays*.part"))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_file_that_goes_while_epochs_decode(tmp_path, num_workers):
    pairs = draw(tmp_path)
    loader = DataLoader(dataset_of(pairs), batch_size=8, num_workers=num_workers, collate_fn=as_it_is)
    pairs[20].image.unlink()
    with pytest.raises(UserError) as mistake:
        list(loader)
    assert str(pairs[20].image) in str(mistake.value)


def test_files_that_are_gone(tmp_path):
    pairs = draw(tmp_path)
    mask_rule = rule_of(pairs)
    pairs[2].image.unlink()
    pairs[4].mask.unlink()
    with pytest.raises(UserError) as mistake:
        make_arrays(pairs, mask_rule, SIZE, tmp_path / "arrays", progress=False)
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
        make_arrays(pairs, mask_rule, SIZE, tmp_path / "arrays", num_workers=0, progress=False)
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
    (tmp_path / ".arrays.0123456789ab.part").mkdir()
    make(shared, tmp_path / "arrays")
    assert not (tmp_path / ".arrays.0123456789ab.part").exists()
    assert len(list(tmp_path.glob("*.part"))) == 3


@pytest.mark.slow
def test_made_by_spawned_processes(tmp_path):
    pairs = draw(tmp_path / "pictures", count=16)
    spawning = tmp_path / "make.py"
    spawning.write_text(
        "import multiprocessing, sys\n"
        f"sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
        "from pathlib import Path\n"
        "from test_dataset import make, pair_files\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.set_start_method('spawn')\n"
        "    root = Path(sys.argv[1])\n"
        "    pairs = pair_files(root / 'pictures/images', root / 'pictures/masks')\n"
        "    make(pairs, root / 'spawned', num_workers=2)\n"
    )
    subprocess.run([sys.executable, spawning, tmp_path], check=True, timeout=WAIT)
    assert isinstance(make(pairs, tmp_path / "here"), Arrays)
    assert contents(tmp_path / "spawned") == contents(tmp_path / "here")
    assert not list(tmp_path.glob("*.part"))


# ---- crops


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


def all_crops(dataset, epoch=0):
    dataset.set_epoch(epoch)
    return [tuple(part.numpy() for part in dataset[index]) for index in range(len(dataset))]


def test_crops_are_parts_of_their_images_and_padding_is_ignored(tmp_path):
    data = ImageDataset(*draw_sizes(tmp_path, SIZES), crop=(32, 48), crop_foreground=0.5)
    assert len(data) == 2 * 2 + 3 * 1 + 1 * 3 + 2 * 2  # as many as cover each image
    masks = [np.asarray(Image.open(path)) // 255 for path in sorted((tmp_path / "masks").iterdir())]
    places = set()
    for index, (image, mask) in enumerate(all_crops(data)):
        assert image.shape == (3, 32, 48) and mask.shape == (32, 48) and image.dtype == mask.dtype == np.uint8
        top, left, number = image[:, 0, 0]
        height, width = (min(own, side) for own, side in zip(SIZES[number], (32, 48)))
        assert data.pair_of(index).name == f"img_{number}"
        np.testing.assert_array_equal(image[0, :height], np.arange(top, top + height)[:, None].repeat(48, axis=1))
        np.testing.assert_array_equal(image[1, :, :width], np.arange(left, left + width)[None].repeat(32, axis=0))
        np.testing.assert_array_equal(mask[:height, :width], masks[number][top:, left:][:height, :width])
        assert (mask[height:] == IGNORED).all() and (mask[:, width:] == IGNORED).all()
        if height < 32:  # the rows go back as they came, without the last one twice
            np.testing.assert_array_equal(image[0, height:, 0], np.arange(height - 2, height - 2 - (32 - height), -1))
        places.add((int(number), int(top), int(left)))
    assert len(places) > 10


def test_crops_are_drawn_by_seed_epoch_and_index_with_and_without_arrays(tmp_path):
    folders = draw_sizes(tmp_path, SIZES)
    data = ImageDataset(*folders, crop=(32, 48))
    fresh = [all_crops(data, epoch) for epoch in (0, 1)]
    assert any((one[0] != other[0]).any() for one, other in zip(*fresh))
    assert data.keep_arrays(tmp_path / "arrays", progress=False)
    again = [all_crops(pickle.loads(pickle.dumps(data)), epoch) for epoch in (0, 1)]
    for one, other in zip(fresh[0] + fresh[1], again[0] + again[1]):
        for part, same in zip(one, other):
            np.testing.assert_array_equal(part, same)
    other = ImageDataset(*folders, crop=(32, 48), seed=1)
    assert any((one[0] != another[0]).any() for one, another in zip(fresh[0], all_crops(other)))
    batch = data.__getitems__([3, 0, 7]).tensors
    for index, image, mask in zip([3, 0, 7], *batch):
        np.testing.assert_array_equal(image, fresh[1][index][0])
        np.testing.assert_array_equal(mask, fresh[1][index][1])


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 3000])
def test_places_of_a_class_are_spread_evenly_over_its_pixels(count):
    mask = np.zeros(3000, np.uint8)
    mask[np.random.default_rng(0).permutation(3000)[:count]] = 1
    found, (places,) = np.flatnonzero(mask), points_of(mask.reshape(50, 60), MaskRule())
    spread = found[np.linspace(0, count - 1, min(count, POINTS)).astype(int)]
    assert places[: len(spread)].tolist() == spread.tolist() and (places[len(spread) :] == -1).all()


def test_a_share_of_the_crops_holds_foreground_where_there_is_any(tmp_path):
    folders = draw_sizes(tmp_path, [(120, 120), (120, 120), (120, 120)])
    share = {}
    for wanted in (0.0, 0.5, 1.0):
        data = ImageDataset(*folders, crop=(16, 16), crop_foreground=wanted)
        held = [(data.pair_of(i).name, (mask == 1).any()) for i, (_, mask) in enumerate(all_crops(data))]
        assert not any(there for name, there in held if name == "img_1")  # which has none
        share[wanted] = np.mean([there for name, there in held if name != "img_1"])
    assert share[0.0] < 0.15 and 0.35 < share[0.5] < 0.7 and share[1.0] == 1


def test_every_class_comes_up_in_crops_and_their_places_differ(tmp_path):
    images, masks = draw_sizes(tmp_path, [(96, 96)])
    mask = np.zeros((96, 96), np.uint8)
    mask[:, 50:] = 1
    mask[40, 20], mask[80, 90] = 2, 255
    Image.fromarray(mask).save(masks / "img_0.png")
    mask_rule = find_mask_rule([masks / "img_0.png"], DataSpec(ignore=255, classes=(0, 1, 2)))
    data = ImageDataset(images, masks, mask_rule=mask_rule, crop=(8, 8), crop_foreground=1)
    crops = all_crops(data)
    held = [set(np.unique(mask).tolist()) for _, mask in crops]
    assert len(crops) == 144 and all(sum(label in it for it in held) > 30 for label in (0, 1, 2))
    corners = {tuple(image[:2, 0, 0].tolist()) for (image, _), it in zip(crops, held) if 2 in it}
    assert len(corners) > 20  # the rare pixel lies anywhere in its crops


def test_crops_of_images_that_are_shrunk_first(tmp_path):
    data = ImageDataset(*draw_sizes(tmp_path, SIZES), image_size=(40, 60), crop=(20, 30))
    assert len(data) == 4 * len(SIZES)
    fresh = all_crops(data)
    assert data.keep_arrays(tmp_path / "arrays", progress=False)
    for one, other in zip(fresh, all_crops(data)):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


def test_whole_images_at_their_own_size_come_out_of_one_array(tmp_path, capsys):
    folders = draw_sizes(tmp_path, SIZES)
    data, plain = ImageDataset(*folders, whole=True), ImageDataset(*folders)
    fresh = [data[index] for index in range(4)]
    assert data.keep_arrays(tmp_path / "arrays")
    assert "0.00 GB of disk, for 4 images at their own size" in capsys.readouterr().out
    assert np.load(tmp_path / "arrays" / "images.npy", mmap_mode="r").shape == (sum(h * w for h, w in SIZES), 3)
    for index, (image, mask) in enumerate(fresh):
        for one, other in ((image, data[index][0]), (mask, data[index][1])):
            assert torch.equal(one, other)
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), plain[index][0])
        np.testing.assert_array_equal(mask.numpy(), plain[index][1])
    crops = ImageDataset(*folders, crop=(8, 8))
    assert crops.keep_arrays(tmp_path / "arrays", progress=False)
    assert "made again, because CROP was None" in capsys.readouterr().out


def test_an_image_that_is_not_as_large_as_its_head_says_is_named(tmp_path, monkeypatch):
    images, masks = draw_sizes(tmp_path, SIZES)
    data = ImageDataset(images, masks, crop=(8, 8))
    Image.new("RGB", (30, 30)).save(images / "img_2.png")
    Image.new("L", (30, 30)).save(masks / "img_2.png")
    with pytest.raises(UserError, match="img_2.png: is 20x100 by its head, and 30x30"):
        data.keep_arrays(tmp_path / "arrays", progress=False)
