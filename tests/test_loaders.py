"""The loaders: their batches, what they say of files, where arrays lie, and what happens to their workers."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, WAIT, draw_pairs, script
from PIL import Image

from parts.endings import worker_was_killed
from parts.errors import UserError
from parts.spec import DataSpec
from unet import UNet
from utils import EpochSampler, Loader, arrays_folder, check_accuracy, get_loaders


@pytest.fixture
def folders(tmp_path):
    draw_pairs(tmp_path / "a", tmp_path / "am", 11)
    draw_pairs(tmp_path / "b", tmp_path / "bm", 5, first=50)
    return [tmp_path / name for name in ("a", "am", "b", "bm")]


@pytest.mark.parametrize("arrays", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_give_bytes_and_every_validation_image_once(folders, arrays, workers):
    train, val = get_loaders(*folders, 4, workers, True, image_size=(32, 48), arrays=arrays)
    batches = list(train)
    assert len(train) == len(batches) == 2  # 11 images: three wait for the next epoch
    images, masks = batches[0]
    assert images.dtype == torch.uint8 and images.shape == (4, 3, 32, 48) and masks.shape == (4, 32, 48)
    assert masks.unique().tolist() == [0, 1]
    assert sum(len(images) for images, _ in val) == 5


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_file_that_is_gone_is_told_by_every_loader(folders, workers):
    """A shuffling one too, whose dataset is scored in order."""
    train, val = get_loaders(*folders, 4, workers, image_size=(32, 48), arrays=False)
    for loader, folder in ((train, folders[0]), (val, folders[2])):
        for path in folder.iterdir():
            path.unlink()
        with pytest.raises(UserError, match="img_0"):
            check_accuracy(loader, UNet(features=(4,)))


HUNG_UP = """
import os, socket, sys, time
from multiprocessing import resource_sharer
import torch
from torch.utils.data import get_worker_info
import utils

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        taken = resource_sharer.DupFd(os.dup(0))  # as a tensor is handed over
        family = socket.AF_UNIX
        with socket.socket(family) as caller:
            caller.connect(taken._id[0])
            caller.recv(1)  # and who takes it goes away
        time.sleep(0.2)
        return index

list(torch.utils.data.DataLoader(Data(), num_workers=1, worker_init_fn=eval(sys.argv[1])))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="handles are passed through a socket on Linux")
@pytest.mark.parametrize("begins, told", [("utils._begin_worker", False), ("None", True)])
def test_a_worker_does_not_tell_that_its_run_was_stopped_in_the_middle(tmp_path, begins, told):
    done = script("-c", HUNG_UP, begins, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0 and ("Traceback" in done.stderr) == told, done.stderr


LITTLE_MEMORY = """
import subprocess, sys
from pathlib import Path
from parts.errors import UserError
from utils import get_loaders
def main():
    loaders = get_loaders(*["images", "masks"] * 2, 8, 2, image_size=(256, 256), arrays=False)
    for size in ("700k", "40k"):  # for some of the batches; not even for the workers' queues
        subprocess.run(["mount", "-o", f"remount,size={size}", "/dev/shm"], check=True)
        try:
            list(loaders[0])
        except UserError as error:
            print(error)
        assert not list(Path("/dev/shm").iterdir())
if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/dev/shm is Linux's")
def test_too_little_shared_memory_for_workers_is_told(tmp_path):
    mounted = ["unshare", "-rm", "bash", "-c", 'mount -t tmpfs -o size=1m tmpfs /dev/shm && "$@"', "-"]
    if subprocess.run([*mounted, "true"], capture_output=True).returncode:
        pytest.skip("this system lets nobody else than root mount something")
    draw_pairs(tmp_path / "images", tmp_path / "masks", 40)
    command, environment = [*mounted, sys.executable, "-c", LITTLE_MEMORY], os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=WAIT)
    assert done.stdout.count("--shm-size=2g") == 2 and "Traceback" not in done.stderr, done.stderr


def test_the_order_differs_by_epoch_and_is_the_same_for_a_seed(folders):
    orders = []
    for seed in (0, 0, 1):
        train, _ = get_loaders(*folders, 4, 0, image_size=(32, 48), seed=seed)
        orders.append([train.sampler.order(epoch).tolist() for epoch in range(3)])
    assert orders[0] == orders[1] != orders[2]
    assert orders[0][0] != orders[0][1] and sorted(orders[0][0]) == list(range(11))


@pytest.mark.parametrize("other", [dict(crop=(16, 16)), dict(augment=lambda **pair: pair)])
def test_a_transform_does_not_go_together_with_what_else_makes_items(folders, other):
    with pytest.raises(UserError, match="transform"):
        get_loaders(*folders, 4, 0, transform=lambda image, mask: dict(image=image, mask=mask), **other)
    with pytest.raises(UserError, match="give image_size or crop"):
        get_loaders(*folders, 4, 0, image_size=None, augment=lambda **pair: pair)


def noisy(image, mask):
    """Noise in image and mask, of a function that has no seed of its own."""
    mask = np.where(np.random.rand(*mask.shape) < 0.1, np.uint8(255), mask)
    return dict(image=image + np.random.randint(0, 50, image.shape, np.uint8), mask=mask)


@pytest.mark.parametrize("crop", [None, (16, 24)])
def test_augmented_batches_are_the_same_with_workers_and_without_arrays_and_validation_stays(folders, crop):
    def batches_of(workers, arrays, augment):
        loaders = get_loaders(*folders, 3, workers, image_size=(32, 48), crop=crop, arrays=arrays, augment=augment)
        assert [loader.num_workers for loader in loaders] == [workers, 0 if arrays else workers]
        epochs = [torch.cat([torch.cat([i, m[:, None]], 1) for i, m in loaders[0]]) for _ in range(2)]
        return epochs, torch.cat([images for images, _ in loaders[1]]), loaders[0].dataset

    epochs, val, data = batches_of(0, True, noisy)
    _, plain_val, _ = batches_of(0, True, None)
    assert torch.equal(val, plain_val)
    assert epochs[0][:, 3].eq(255).float().mean() > 0.05
    for workers, arrays in ((2, True), (0, False)):
        others, _, _ = batches_of(workers, arrays, noisy)
        assert all(torch.equal(one, other) for one, other in zip(epochs, others))
    versions = []
    for epoch in (0, 1, 0):
        data.set_epoch(epoch)
        versions.append(data[3][0])
    assert torch.equal(versions[0], versions[2]) and not torch.equal(versions[0], versions[1])


def fails_on_some(image, mask):
    return dict(image=image / 2 if np.random.rand() < 0.3 else image, mask=mask)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_what_augment_must_not_make_is_told_before_arrays_are_made_and_later_with_its_image(folders, workers):
    with pytest.raises(UserError, match="img_000.png: AUGMENT = .*: AttributeError"):
        get_loaders(*folders, 4, workers, image_size=(32, 48), augment=lambda image, mask: image.nothing)
    assert not (folders[0].parent / ".arrays").exists()
    train, _ = get_loaders(*folders, 4, workers, image_size=(32, 48), augment=fails_on_some)
    with pytest.raises(UserError, match=r"img_0\d\d.png: AUGMENT returns an image of float64"):
        list(train)


def test_an_augment_that_does_not_reach_the_workers_is_told(folders):
    usual = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        for augment in (noisy, lambda image, mask: noisy(image, mask)):
            get_loaders(*folders, 4, 0, image_size=(32, 48), augment=augment)
        with pytest.raises(UserError, match="AUGMENT cannot be sent .* NUM_WORKERS = 0"):
            get_loaders(*folders, 4, 2, image_size=(32, 48), augment=augment)
    finally:
        multiprocessing.set_start_method(usual, force=True)


@pytest.mark.slow
def test_workers_that_are_no_forks_load_the_file_of_augment_themselves(folders, tmp_path, monkeypatch):
    """Which lies where nothing is imported from."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "brightening.py").write_text(
        "def brighter(image, mask):\n    return dict(image=image | 128, mask=mask)\n"
    )
    monkeypatch.chdir(tmp_path)
    usual = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        loader, _ = get_loaders(*folders, 4, 1, image_size=(32, 48), augment="mine/brightening.py:brighter")
        assert loader.num_workers == 1 and all(images.min() >= 128 for images, _ in loader)
    finally:
        multiprocessing.set_start_method(usual, force=True)


def test_a_mask_of_another_size_than_its_image_is_told(folders, monkeypatch):
    Image.new("L", (60, 50), 255).save(folders[1] / "img_003.png")
    for arrays in (True, False):
        with pytest.raises(UserError, match="img_003.png: is 50x60, and its image 40x60"):
            list(get_loaders(*folders, 11, 0, image_size=None, crop=(16, 16), arrays=arrays)[0])


@pytest.fixture
def open_path():
    """A folder that others may look into, which pytest's are not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_arrays_of_a_read_only_dataset_lie_in_the_output(open_path, monkeypatch, capsys):
    """Also where both sides' folders of images have one name."""
    data = open_path / "data"
    draw_pairs(data / "images", data / "masks", 4)
    folders = [data / side / kind for side in ("train", "val") for kind in ("images", "masks")]
    for first, (images, masks) in enumerate((folders[:2], folders[2:])):
        draw_pairs(images, masks, 3, first=10 * first)
    for folder in {path.parent for path in folders}:
        folder.chmod(0o555)
    (open_path / "run").mkdir()
    (open_path / "run").chmod(0o777)
    monkeypatch.chdir(open_path)
    assert arrays_folder("data/images", "run") == Path("data/.arrays")
    data.chmod(0o555)
    if os.getuid() == 0:
        os.seteuid(65534)  # nobody: root may write everywhere
    try:
        assert arrays_folder("data/images", "run") == Path("run/.arrays")
        made = [get_loaders(*folders, 2, 0, image_size=(16, 16), output_dir="run") for _ in range(2)]
        assert "made again" not in capsys.readouterr().out and all(loader.dataset.arrays for loader in made[1])
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        for folder in (data, data / "train", data / "val"):
            folder.chmod(0o755)


def test_the_sampler_counts_epochs_by_itself():
    sampler = EpochSampler(range(20), shuffle=True)
    first, second = list(sampler), list(sampler)
    sampler.set_epoch(0)
    assert first != second and list(sampler) == first


# ---- workers that are killed


FATAL = """
import os, signal
import torch
from parts.endings import worker_was_killed
from utils import Loader

class Fatal(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(2)

try:
    list(Loader(Fatal(), num_workers=1))
except Exception as error:
    print("killed" if worker_was_killed(error) else repr(error), flush=True)
    os._exit(0)  # PyTorch's signal handler would tell it again, wherever this process is
"""


def test_a_killed_worker_is_told_by_pytorchs_error(tmp_path):
    done = script("-c", FATAL, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.stdout == "killed\n", done


@pytest.mark.parametrize("broken", [ConnectionResetError("reset by peer"), EOFError()])
def test_a_pipe_that_breaks_is_a_killed_worker_too(monkeypatch, broken):
    def fail(loader):
        raise broken
        yield

    monkeypatch.setattr("torch.utils.data.DataLoader.__iter__", fail)
    with pytest.raises(RuntimeError) as told:
        list(Loader([0]))
    assert worker_was_killed(told.value)
    assert not worker_was_killed(RuntimeError("CUDA error")) and not worker_was_killed(broken)


# ---- what DataSpec says, where there is no audit's report


def test_loaders_without_a_report_go_by_the_spec(folders):
    for path in [*folders[1].iterdir(), *folders[3].iterdir()]:
        path.rename(path.with_name(f"{path.stem}_segmentation.png"))
    (folders[0] / "img_000.png").rename(folders[0] / "other.png")
    spec = DataSpec(mask_name="{}_segmentation", skip_unpaired=True, image_range=(0, 1000))
    train, _ = get_loaders(*folders, 4, 0, image_size=(32, 48), spec=spec)
    assert len(train.dataset) == 10 and train.dataset.files.value_range == (0, 1000)
    with pytest.raises(UserError, match="IMAGE_RANGE = 'auto' .* decided by an audit"):
        get_loaders(*folders, 4, 0, spec=DataSpec(mask_name="{}_segmentation", skip_unpaired=True, image_range="auto"))


# ---- crops, and whole images


def test_loaders_of_crops_and_of_whole_images(tmp_path, capsys):
    folders = [tmp_path / name for name in ("ti", "tm", "vi", "vm")]
    draw_pairs(*folders[:2], 6, size=(60, 90))
    draw_pairs(*folders[2:], 2, size=(50, 40), first=10)
    train_loader, val_loader = get_loaders(*folders, 4, 0, image_size=None, crop=(32, 48))
    assert len(train_loader.dataset) == 6 * 4 and len(train_loader) == 6
    images, masks = next(iter(train_loader))
    assert images.shape == (4, 3, 32, 48) and masks.shape == (4, 32, 48)
    sizes = [images.shape for images, _ in val_loader]
    assert sizes == [(1, 3, 50, 40)] * 2 and "are scored" not in capsys.readouterr().out
    get_loaders(*folders, 4, 0, image_size=None, crop=(60, 120))
    assert "25% of what is trained on is padding" in capsys.readouterr().out
    fixed, whole = get_loaders(*folders, 4, 0, image_size=(64, 96), crop=(32, 48))
    assert len(fixed.dataset) == 24 and next(iter(whole))[0].shape[2:] == (64, 96)


def test_validation_that_would_take_long_is_thinned_and_still_holds_something(tmp_path, capsys):
    """Thirty images, 29 of whose masks are empty, beside an epoch of twelve crops; and a class of one image."""
    folders = [tmp_path / name for name in ("ti", "tm", "vi", "vm")]
    draw_pairs(*folders[:2], 3, size=(60, 90))
    draw_pairs(*folders[2:], 30, size=(64, 64), first=10)
    for path in sorted(folders[3].iterdir())[:-1]:
        Image.new("L", (64, 64)).save(path)
    train_loader, few = get_loaders(*folders, 4, 0, image_size=None, crop=(32, 48))
    assert "all 30 validation images" in (words := capsys.readouterr().out) and "4 of them are scored" in words
    assert "img_039" in {pair.name for pair in few.dataset.pairs} and len(few.dataset) == 4
    assert len(train_loader.dataset) == 12
    mask = np.zeros((64, 64), np.uint8)
    mask[10:20] = 100
    Image.fromarray(mask).save(folders[3] / "img_020.png")
    _, few = get_loaders(*folders, 4, 0, image_size=None, crop=(32, 48), spec=DataSpec(classes=(0, 100, 255)))
    assert {"img_020", "img_039"} <= {pair.name for pair in few.dataset.pairs} and len(few.dataset) == 4
    Image.new("L", (64, 64)).save(folders[3] / "img_020.png")
    draw_pairs(*folders[:2], 3, size=(600, 900), first=100)
    _, every = get_loaders(*folders, 4, 0, image_size=None, crop=(32, 48))
    assert len(every.dataset) == 30
