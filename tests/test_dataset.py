"""The datasets: the article's own use, random draws that do not depend on the workers, crops and whole images."""

import dataclasses
import os
import pickle

import numpy as np
import pytest
import torch
from helpers import draw_pairs
from PIL import Image
from test_arrays import SIZES, draw_sizes
from torch.utils.data import DataLoader

from dataset import ArrayDataset, CropDataset, ImageDataset, WholeDataset, image_dataset, main, masks_of
from parts.arrays import Files
from parts.errors import UserError
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


def files_of(img_dir, mask_dir, spec=DataSpec(), image_size=None):
    pairs = pair_files(img_dir, mask_dir)
    return Files(pairs, find_mask_rule(masks_of(pairs), spec), image_size=image_size)


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
    inverted = ImageDataset(*folders, spec=DataSpec(foreground=0))
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
    spec = DataSpec(classes={"field": 7, "box": 255, "sky": 100}, ignore=200)
    of_classes = ImageDataset(*folders, spec=spec)
    mask = of_classes[8][1]
    assert mask.dtype == np.uint8 and of_classes.mask_rule.names == ("field", "box", "sky")
    for index, value in enumerate((7, 255, 100)):
        np.testing.assert_array_equal(mask == index, values == value)
    np.testing.assert_array_equal(mask == IGNORED, values == 200)
    foreground = ImageDataset(*folders, spec=DataSpec(foreground=255, ignore=(100, 200)))[8][1]
    assert set(np.unique(foreground)) == {0, 1, IGNORED}
    np.testing.assert_array_equal(foreground == IGNORED, np.isin(values, (100, 200)))
    halved = ArrayDataset(files_of(*folders, DataSpec(classes="all", ignore=200), image_size=(20, 30)))[8][1]
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


RULE = MaskRule("numbers", (0,), (255,))
CLASSES = MaskRule("numbers", (), (), classes=(0, 255), names=("a", "b"))
AT_SIZE = dict(image_size=(32, 48))


def with_pairs(change):
    """What to replace in Files, for pairs in each of which `change(its folder, its number)` is replaced."""

    def changes(files):
        pairs = [dataclasses.replace(pair, **change(pair.image.parent, n)) for n, pair in enumerate(files.pairs)]
        return AT_SIZE | dict(pairs=pairs)

    return changes


IDENTITIES = [  # what checkpoints hold that older versions of this program wrote
    ("93c4dbb2a4a9941245d36b640762227ae2a820a461176b9754294d11039b9ee4", lambda files: {}),
    ("8e1cd8546322523bc9a8e0268c0ddbfb112bc58da648bba2a7023b0a29261c72", lambda files: AT_SIZE),
    (
        "d1223843d2b083c6fbe455a88861dde35a4b1ddc743908cc9a8eaba8ee22e3a4",
        lambda f: AT_SIZE | dict(value_range=(0, 4095)),
    ),
    (
        "8fab511a36fee289b84b15bc9636c5807dea1eab5087061eb32095361d966b49",
        lambda files: AT_SIZE | dict(mask_rule=dataclasses.replace(RULE, ignored=(7,))),
    ),
    (
        "09008a3ae5f6f580bd14d3ac589dcafd80074c763e5bb7d18d77003ae0a41f46",
        lambda files: AT_SIZE | dict(mask_rule=CLASSES),
    ),
    (
        "71178dc6cb0aeedb6c822aad9851d1e3053c1e208283936fabff4f0e35ff5772",
        with_pairs(lambda folder, number: dict(image_page=1, mask_page=2)),
    ),
    (
        "e7871da9f1a063b4a5de2a5e17916d6fd3872dff300f5742991209c92259f874",
        with_pairs(lambda folder, number: dict(more=(folder / f"more_{number}.pgm",))),
    ),
    (
        "458e1c5f4519971fe9fd61512acf64f311466133e02f255c57e481f66aebb189",
        with_pairs(lambda folder, number: dict(image=folder / "none.pgm")),
    ),
]


@pytest.mark.parametrize(("digest", "changes"), IDENTITIES)
def test_an_identity_is_what_older_checkpoints_hold(tmp_path, digest, changes):
    """Another one for whatever changes what is scored; the same in every kind of dataset."""
    for number in range(3):
        for kind, value in (("image", 7), ("mask", 255), ("more", 0)):
            head = b"P5 30 %d 255\n" % (20 + number)
            (tmp_path / f"{kind}_{number}.pgm").write_bytes(head + bytes([value]) * 30 * (20 + number))
    pairs = [Pair(f"a/x_{n}", tmp_path / f"image_{n}.pgm", tmp_path / f"mask_{n}.pgm") for n in range(3)]
    files = Files(pairs, RULE)
    files = dataclasses.replace(files, **changes(files))
    assert ArrayDataset(files).identity() == WholeDataset(files).identity() == digest
    if files.image_size is None:
        assert CropDataset(files, (8, 8)).identity() == digest
        assert ImageDataset(None, None, pairs=pairs, mask_rule=RULE).identity() == digest


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


# ---- crops


def all_crops(dataset, epoch=0):
    dataset.set_epoch(epoch)
    return [tuple(part.numpy() for part in dataset[index]) for index in range(len(dataset))]


def test_crops_are_parts_of_their_images_and_padding_is_ignored(tmp_path):
    data = CropDataset(files_of(*draw_sizes(tmp_path, SIZES)), (32, 48), crop_foreground=0.5)
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
    data = CropDataset(files_of(*folders), (32, 48))
    fresh = [all_crops(data, epoch) for epoch in (0, 1)]
    assert any((one[0] != other[0]).any() for one, other in zip(*fresh))
    assert data.keep_arrays(tmp_path / "arrays", progress=False)
    again = [all_crops(pickle.loads(pickle.dumps(data)), epoch) for epoch in (0, 1)]
    for one, other in zip(fresh[0] + fresh[1], again[0] + again[1]):
        for part, same in zip(one, other):
            np.testing.assert_array_equal(part, same)
    other = CropDataset(files_of(*folders), (32, 48), seed=1)
    assert any((one[0] != another[0]).any() for one, another in zip(fresh[0], all_crops(other)))
    batch = data.__getitems__([3, 0, 7]).tensors
    for index, image, mask in zip([3, 0, 7], *batch):
        np.testing.assert_array_equal(image, fresh[1][index][0])
        np.testing.assert_array_equal(mask, fresh[1][index][1])


def test_a_share_of_the_crops_holds_foreground_where_there_is_any(tmp_path):
    folders = draw_sizes(tmp_path, [(120, 120), (120, 120), (120, 120)])
    share = {}
    for wanted in (0.0, 0.5, 1.0):
        data = CropDataset(files_of(*folders), (16, 16), crop_foreground=wanted)
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
    files = files_of(images, masks, DataSpec(ignore=255, classes=(0, 1, 2)))
    data = CropDataset(files, (8, 8), crop_foreground=1)
    crops = all_crops(data)
    held = [set(np.unique(mask).tolist()) for _, mask in crops]
    assert len(crops) == 144 and all(sum(label in it for it in held) > 30 for label in (0, 1, 2))
    corners = {tuple(image[:2, 0, 0].tolist()) for (image, _), it in zip(crops, held) if 2 in it}
    assert len(corners) > 20  # the rare pixel lies anywhere in its crops


def test_crops_of_images_that_are_shrunk_first(tmp_path):
    data = CropDataset(files_of(*draw_sizes(tmp_path, SIZES), image_size=(40, 60)), (20, 30))
    assert len(data) == 4 * len(SIZES)
    fresh = all_crops(data)
    assert data.keep_arrays(tmp_path / "arrays", progress=False)
    for one, other in zip(fresh, all_crops(data)):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


def test_whole_images_at_their_own_size_come_out_of_one_array(tmp_path, capsys):
    folders = draw_sizes(tmp_path, SIZES)
    data, plain = WholeDataset(files_of(*folders)), ImageDataset(*folders)
    fresh = [data[index] for index in range(4)]
    assert data.keep_arrays(tmp_path / "arrays")
    assert "0.00 GB of disk, for 4 images at their own size" in capsys.readouterr().out
    assert np.load(tmp_path / "arrays" / "images.npy", mmap_mode="r").shape == (sum(h * w for h, w in SIZES), 3)
    for index, (image, mask) in enumerate(fresh):
        for one, other in ((image, data[index][0]), (mask, data[index][1])):
            assert torch.equal(one, other)
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), plain[index][0])
        np.testing.assert_array_equal(mask.numpy(), plain[index][1])
    crops = CropDataset(files_of(*folders), (8, 8))
    assert crops.keep_arrays(tmp_path / "arrays", progress=False)
    assert "made again, because CROP was False, now True" in capsys.readouterr().out
