"""train.py as a user runs it: real files, processes and signals."""

import inspect
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import helpers
import numpy as np
import pytest
import torch
from helpers import (
    ROOT,
    SMALL,
    TRAIN,
    WAIT,
    assert_same,
    children_of,
    draw_pairs,
    history,
    same_runs,
    script,
    start,
    wait_for_end,
    wait_for_epochs,
)
from PIL import Image

import train
from parts import recipe, run_folder
from parts.errors import UserError
from unet import UNet

ARTEFACTS = {"checkpoint.pth", "best.pth", "history.csv", "curves.png", "saved_images"}


def run_here(monkeypatch, folder, *words):
    """train.py's main in this process, in `folder`: spares the imports."""
    monkeypatch.chdir(folder)
    train.main([*SMALL, *map(str, words)])


def begin(*words, cwd):
    return start("train.py", *SMALL, *words, cwd=cwd)


def test_a_run_leaves_every_artefact_and_learns(prepared):
    done = script("train.py", *SMALL, "--num-epochs", 12, "--batch-size", 2, cwd=prepared)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in prepared.iterdir()} >= ARTEFACTS
    lines = history(prepared)
    assert [int(line["epoch"]) for line in lines] == list(range(1, 13))
    assert float(lines[-1]["dice"]) > 0.8 and float(lines[-1]["loss"]) < float(lines[0]["loss"])
    drawn = {path.name for path in (prepared / "saved_images").iterdir()}
    assert {"0.png", "pred_0.png", "examples.png", "worst.png", "strip.png"} <= drawn
    assert "NUM_EPOCHS" in done.stdout and "Best Dice" in done.stdout
    best = torch.load(prepared / "best.pth")
    assert best["best_dice"] == max(float(line["dice"]) for line in lines) and best["network"]["features"] == [4, 8]


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        ["--half-size", "0.3", "--num-workers", "2"],
        ["--schedule", "plateau", "--plateau-patience", "1", "--accumulate", "2", "--no-arrays"],
        ["--schedule", "cosine", "--optimizer", "adam", "--loss", "bce", "--clip-gradient", "0"],
        ["--image-size", "none", "--crop", "16", "24", "--scale", "0.7", "1.4", "--rotate", "20"],
    ],
    ids=["growing images and workers", "plateau and accumulation", "cosine", "crops"],
)
def test_a_run_stopped_and_resumed_is_the_run_never_stopped(prepared, monkeypatch, capsys, flags):
    flags = ["--num-epochs", "4", *flags]
    whole, stopped = prepared / "whole", prepared / "stopped"
    run_here(monkeypatch, prepared, *flags, "--output-dir", whole)
    process = begin(*flags, "--output-dir", stopped, cwd=prepared)
    wait_for_epochs(stopped, 2, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=WAIT)
    assert process.returncode == 130, err
    assert "--load-model" in err and "Traceback" not in err
    capsys.readouterr()
    run_here(monkeypatch, prepared, *flags, "--output-dir", stopped, "--load-model")
    said = capsys.readouterr().out
    assert "Going on after epoch" in said and "would have been" not in said
    same_runs(whole, stopped)


def with_noise(image, mask):
    noise = np.random.randint(0, 60, image.shape, np.uint8)
    return dict(image=image + noise, mask=np.where(noise[..., 0] < 5, np.uint8(255), mask))


@pytest.mark.slow
def test_an_augmented_run_goes_on_exactly_and_shows_what_it_does(prepared, monkeypatch):
    """With other workers than before; the constant is obeyed, and so is its absence."""
    monkeypatch.chdir(prepared)
    constants = dict(SCHEDULE="constant", WARMUP=0.0, SCALE=(0.7, 1.4), ROTATE=20)

    def run(folder, epochs, workers, *words):
        flags = helpers.flags(**constants, NUM_EPOCHS=epochs, NUM_WORKERS=workers, OUTPUT_DIR=folder)
        train.main([*flags, *words])

    run("plain", 2, 0)
    monkeypatch.setattr(train, "AUGMENT", with_noise)
    run("whole", 2, 0)
    run("parts", 1, 2)
    run("parts", 2, 2, "--load-model")
    run("unmoved", 1, 0, "--scale", "none", "--rotate", "0")
    assert 0 < float(history(prepared / "unmoved")[0]["loss"]) < 3  # 255 is ignored, and no target
    same_runs(prepared / "whole", prepared / "parts")
    sheets = [(prepared / name / "saved_images/augmented.png").read_bytes() for name in ("plain", "whole")]
    assert sheets[0] != sheets[1]
    plain, whole = (torch.load(prepared / name / "checkpoint.pth")["state_dict"] for name in ("plain", "whole"))
    assert not all(torch.equal(plain[key], whole[key]) for key in whole)
    with pytest.raises(UserError, match="AUGMENT = 'noise'"):
        run("other", 1, 0, "--augment", "noise")


def test_a_changed_setting_is_said_on_resuming(prepared, monkeypatch, capsys):
    run_here(monkeypatch, prepared, "--num-epochs", 1)
    run_here(monkeypatch, prepared, "--num-epochs", 2, "--no-flip", "--load-model")
    said = capsys.readouterr().out
    assert "NUM_EPOCHS 1 -> 2" in said and "FLIP True -> False" in said
    assert [line["epoch"] for line in history(prepared)] == ["1", "2"]


def test_a_resumed_run_has_the_optimizer_settings_of_now(prepared, monkeypatch):
    run_here(monkeypatch, prepared, "--num-epochs", 1)
    run_here(monkeypatch, prepared, "--num-epochs", 2, "--weight-decay", 0.3, "--load-model")
    groups = torch.load(prepared / "checkpoint.pth")["optimizer"]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.3, 0]


@pytest.mark.slow
def test_a_run_stopped_before_its_first_epoch_does_not_claim_an_earlier_runs(prepared, monkeypatch):
    run_here(monkeypatch, prepared, "--num-epochs", 1)
    process = begin("--num-epochs", 500, "--seed", 1, cwd=prepared)
    for line in process.stdout:
        if "Settings" in line:
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=WAIT)
    goes_on = (prepared / "history.previous.csv").exists() and len(history(prepared)) > 0
    assert ("--load-model" in err) == goes_on, err


@pytest.mark.slow
def test_sigterm_ends_cleanly_and_leaves_no_worker(prepared):
    process = begin("--num-epochs", 500, "--num-workers", 2, "--no-arrays", cwd=prepared)
    wait_for_epochs(prepared, 1, process)
    children = children_of(process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=WAIT)
    assert process.returncode == 143 and "--load-model" in err and "Traceback" not in err
    wait_for_end(children)
    torch.load(prepared / "checkpoint.pth")


@pytest.mark.slow
def test_ten_kills_at_random_moments_lose_nothing(tmp_path):
    done = script("benchmarks/faults.py", "--kills", 10, "--saves", 0, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("10 kills"), done.stderr


def test_going_on_at_another_size_keeps_the_epoch_and_starts_the_best_anew(prepared, monkeypatch, capsys):
    """The old network scored what is not compared with any more; its pictures in the strip are resized."""
    run_here(monkeypatch, prepared, "--num-epochs", 2, "--image-size", 24, 32)
    before = torch.load(prepared / "best.pth")
    larger = ["--image-size", 48, 64, "--load-model"]
    run_here(monkeypatch, prepared, "--num-epochs", 3, *larger, "--learning-rate", "1e-9")
    said = capsys.readouterr().out
    assert "the best Dice, best.pth and PATIENCE start anew" in said
    best = torch.load(prepared / "best.pth")
    assert best["epoch"] == 3 > before["epoch"] and best["best_dice"] == best["history"][2]["dice"]
    assert f"Best Dice {best['best_dice']:.4f}, of epoch {best['epoch']} of 3" in said
    assert len(list((prepared / "saved_images/strip").iterdir())) == 3
    run_here(monkeypatch, prepared, "--num-epochs", 4, *larger)
    assert "start anew" not in capsys.readouterr().out and torch.load(prepared / "checkpoint.pth")["since"] == 2


def test_going_on_with_other_validation_images_starts_the_best_anew(prepared, monkeypatch, capsys):
    run_here(monkeypatch, prepared, "--num-epochs", 2)
    data = prepared / "dataset"
    draw_pairs(data / "augmented_test_images", data / "augmented_test_masks", 1, first=80)
    run_here(monkeypatch, prepared, "--num-epochs", 3, "--load-model", "--learning-rate", "1e-9")
    assert "start anew" in capsys.readouterr().out and torch.load(prepared / "best.pth")["epoch"] == 3


def test_data_that_were_replaced_are_said_on_resuming(prepared, monkeypatch, capsys):
    """Under the same names. Other validation masks, which have as many bytes, start the best anew."""
    images, masks = (prepared / "dataset" / f"augmented_{name}" for name in ("train_images", "test_masks"))
    with Image.open(masks / "img_050.png") as mask:
        mask.save(masks / "img_050.png", "BMP")
        other = Image.fromarray(255 - np.array(mask))

    def said(epochs, *words):
        capsys.readouterr()
        run_here(monkeypatch, prepared, "--num-epochs", epochs, "--learning-rate", "1e-9", "--no-arrays", *words)
        return capsys.readouterr().out

    said(1)
    assert "not those of before" not in said(2, "--load-model")
    Image.new("RGB", (60, 40), "red").save(images / "img_004.png")
    told = said(3, "--load-model")
    assert "The training data are not those of before (images: 1 file changed, e.g. img_004.png)" in told
    assert "start anew" not in told
    other.save(masks / "img_050.png", "BMP")
    told = said(4, "--load-model")
    assert "The validation data are not those of before (masks: 1 file changed, e.g. img_050.png)" in told
    assert "start anew" in told and torch.load(prepared / "best.pth")["epoch"] == 4


def test_the_checkpoint_stands_before_the_pictures_and_a_resumed_run_draws_them(prepared, monkeypatch):
    """A disk that fills up, or a kill, between the two costs no epoch."""
    (prepared / "saved_images").mkdir()
    (prepared / "saved_images" / "pred_0.png").mkdir()  # where a picture is to be written
    with pytest.raises(OSError):
        run_here(monkeypatch, prepared)
    assert torch.load(prepared / "checkpoint.pth")["epoch"] == 1
    (prepared / "saved_images" / "pred_0.png").rmdir()
    run_here(monkeypatch, prepared, "--num-epochs", 2, "--load-model")
    names = sorted(path.name[:4] for path in (prepared / "saved_images/strip").iterdir())
    assert names == ["0001", "0002"]


def test_a_run_with_all_its_epochs_finishes_what_is_behind(prepared, monkeypatch, capsys):
    """It was killed after its last checkpoint: the history lacks an epoch, and pictures are old or not there."""
    run_here(monkeypatch, prepared, "--num-epochs", 2)
    made = {path: path.read_bytes() for path in prepared.rglob("*") if path.is_file() and "audit" not in path.name}
    (prepared / "history.csv").write_text("epoch\n1\n")
    (prepared / "curves.png").unlink()
    shutil.rmtree(prepared / "saved_images")
    capsys.readouterr()
    run_here(monkeypatch, prepared, "--num-epochs", 2, "--load-model")
    told = capsys.readouterr().out
    assert re.search("all of its 2 epochs are done.*--num-epochs 4.*--pretrained", told)
    behind = {path for path in made if path.parent.name == "strip" and path.name.startswith("0001")}
    changed = [path for path in made if path not in behind and path.read_bytes() != made[path]]
    assert [path.name for path in changed] == ["strip.png"]  # of the epochs that are still there


def test_a_best_network_that_is_gone_is_not_promised(prepared, monkeypatch, capsys):
    run_here(monkeypatch, prepared)
    assert "the network is in best.pth" in capsys.readouterr().out
    (prepared / "best.pth").unlink()
    run_here(monkeypatch, prepared, "--num-epochs", 2, "--load-model", "--learning-rate", "1e-30")
    told = capsys.readouterr().out
    exists = (prepared / "best.pth").exists()
    assert exists != ("best.pth, of epoch 1, is gone" in told) and exists == ("--checkpoint best.pth" in told)


REMOVER = """
import shutil, time
def remove(epoch, row, folder):
    while epoch == 1 and folder.exists():
        if (folder.parent / "curves.png").exists():  # the last file of an epoch
            shutil.rmtree(folder.parent)
        time.sleep(0.01)
"""


def test_a_folder_that_is_removed_while_it_trains_is_made_again(prepared, monkeypatch):
    (prepared / "mine.py").write_text(REMOVER)
    run_here(monkeypatch, prepared, "--output-dir", "run", "--num-epochs", 2, "--logger", "mine.py:remove")
    assert torch.load(prepared / "run" / "checkpoint.pth")["epoch"] == 2
    assert len(history(prepared / "run")) == 2 and (prepared / "run" / "saved_images" / "examples.png").exists()


def test_what_killed_runs_left_goes_and_nothing_is_written_through_links(prepared, monkeypatch):
    strip = prepared / "saved_images" / "strip"
    strip.mkdir(parents=True)
    for folder in (prepared, strip.parent, strip):
        (folder / ".worst.png.0123456789ab.part").write_text("x")
    run_here(monkeypatch, prepared)
    assert not list(prepared.rglob("*.part"))
    strip.rename(prepared / "elsewhere")
    strip.symlink_to(prepared.parent)
    with pytest.raises(UserError, match="saved_images/strip: a link leads from here"):
        run_here(monkeypatch, prepared)


@pytest.mark.parametrize("name", ["train.py", "predict.py", "augment.py", "dataset.py"])
def test_ctrl_c_while_modules_are_loaded_ends_in_silence(tmp_path, name):
    for module in ("albumentations", "cv2", "torch"):  # in the place of those that take seconds
        (tmp_path / f"{module}.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    done = helpers.fresh_script(name, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_fine_tuning_starts_a_new_run_from_the_weights_alone(prepared, monkeypatch, capsys):
    run_here(monkeypatch, prepared, "--num-epochs", 2, "--output-dir", "first")
    weights = torch.load(prepared / "first/best.pth")["state_dict"]
    flags = ["--pretrained", "first/best.pth", "--learning-rate", "1e-12", "--weight-decay", 0, "--output-dir", "tuned"]
    run_here(monkeypatch, prepared, *flags)
    tuned = torch.load(prepared / "tuned/best.pth")
    assert len(tuned["history"]) == 1 and "Starting from the weights" in capsys.readouterr().out
    trained = [key for key in weights if "running" not in key and "batches" not in key]
    assert all(torch.allclose(weights[key], tuned["state_dict"][key], atol=1e-6) for key in trained)
    torch.save(UNet(out_channels=5, features=(4, 8)).state_dict(), prepared / "five.pth")
    run_here(monkeypatch, prepared, "--pretrained", "five.pth", "--output-dir", "other")
    assert "has 5 output channels, and 1 are needed" in capsys.readouterr().out
    with pytest.raises(UserError, match="another architecture"):
        run_here(monkeypatch, prepared, "--pretrained", "first/best.pth", "--features", 4, 16)


def test_small_is_one_word_for_what_suits_a_cpu_and_flags_win():
    small = train.settings(["--small", "--batch-size", "2"])
    assert small.FEATURES == (16, 32, 64, 128, 256) and small.BATCH_SIZE == 2 and small.LEARNING_RATE == 1e-3
    assert train.settings([]).FEATURES == (64, 128, 256, 512)


@pytest.mark.parametrize("half", [0, 0.5])
def test_the_smallest_size_that_is_advised_trains(prepared, monkeypatch, half):
    """Also a batch of one image, of whose lowest level BatchNorm could not normalise a single pixel."""
    few = ["--batch-size", 1, "--half-size", half]
    with pytest.raises(UserError, match=r"\(4, 4\) is too small: .* at least (\d+) (\d+)") as told:
        run_here(monkeypatch, prepared, *few, "--image-size", 4, 4)
    advised = re.search(r"at least (\d+) (\d+)", str(told.value)).groups()
    run_here(monkeypatch, prepared, *few, "--image-size", *advised)


@pytest.mark.slow
def test_two_runs_do_not_share_a_folder(prepared):
    process = begin("--num-epochs", 500, cwd=prepared)
    wait_for_epochs(prepared, 1, process)
    done = script("train.py", *SMALL, "--num-epochs", 1, cwd=prepared)
    process.kill()
    process.communicate()
    assert done.returncode == 2 and f"process {process.pid}" in done.stderr


def test_no_data_is_told_in_one_message(tmp_path):
    done = script("train.py", *SMALL, cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "augmented_train_images" in done.stderr and "--demo" in done.stderr and "carvana" in done.stderr.lower()


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--batch-size", "0"], "BATCH_SIZE = 0"),
        (["--image-size", "32"], "IMAGE_SIZE"),
        (["--clip-gradient", "-1"], "CLIP_GRADIENT = -1"),
        (["--seed", "-1"], "SEED = -1"),
        (["--plateau-patience", "-1"], "PLATEAU_PATIENCE = -1"),
        (["--num-epochs", "2.5"], "NUM_EPOCHS = 2.5"),
        (["--num-epochs", "none"], "NUM_EPOCHS = None"),
        (["--precision", "int4"], "int4"),
        (["--loss", "hinge"], "hinge"),
        (["--schedule", "stairs"], "stairs"),
        (["--optimizer", "magic"], "magic"),
        (["--encoder", "resnet1"], "resnet1"),
        (["--device", "tpu"], "tpu"),
        (["--load-model"], "checkpoint.pth"),
        (["--image-size", "3", "48"], r"IMAGE_SIZE = \(3, 48\) is too small"),
        (["--image-size", "none"], "IMAGE_SIZE = None: height and width, or None with CROP"),
        (["--crop", "3", "16"], r"CROP = \(3, 16\) is too small"),
        (["--crop", "16", "16", "--half-size", "0.5"], "CROP with HALF_SIZE"),
        (["--crop-foreground", "2"], "CROP_FOREGROUND = 2"),
        (["--scale", "1.4", "0.7"], r"SCALE = \(1.4, 0.7\): two numbers above 0, the smaller one first, or None"),
        (["--rotate", "270"], "ROTATE = 270: a number, 0 or more, at most 180"),
        (["--crop", "16"], "CROP = "),
        (["--train-mask-dir", "nowhere"], "nowhere"),
        (
            ["--val-img-dir", "nowhere", "--val-mask-dir", "nowhere"],
            r"Split some off:\n  python augment.py --img-dir \S+ --mask-dir \S+ --output-dir split --val-images 0.1",
        ),
    ],
)
def test_mistakes_are_told_in_words(prepared, monkeypatch, flags, words):
    with pytest.raises(UserError, match=words):
        run_here(monkeypatch, prepared, "--num-epochs", "1", *flags)
    if "too small" in words:  # before anything is decoded
        assert not list(prepared.glob("dataset/.arrays/*/images.npy"))


def edited(folder, *edits):
    """train.py in a copy of the repository, with lines like these in the place of its constants', or added."""
    import shutil

    clone = folder / "clone"
    shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns(".git", "demo", "dataset", "tests", ".venv", ".*cache"))
    text = (clone / "train.py").read_text()
    for edit in edits:
        name = re.match(r"\w+", edit)[0]
        text, found = re.subn(rf"^{name}\b.*$", lambda _, edit=edit: edit, text, count=1, flags=re.M)
        if not found:
            text = text.replace("\n_PRESETS", f"\n{edit}\n\n_PRESETS", 1)
    (clone / "train.py").write_text(text)
    return clone


def without(words, *names):
    """The command line without the flags of these constants."""
    left = []
    for word in words:
        if word.startswith("--"):
            skipping = word.removeprefix("--").removeprefix("no-").upper().replace("-", "_") in names
        left += [] if skipping else [word]
    return left


def test_constants_are_edited_as_python(prepared):
    """The edits that people make, all at once: expressions, another type of number, a path, a name of one's own."""
    edits = [
        'DEVICE = "cuda" if torch.cuda.is_available() else "cpu"',
        "LEARNING_RATE = 5e-3 * 2  # twice as fast",
        "IMAGE_SIZE = [1280 // 40, 1918 // 40]",
        'TRAIN_IMG_DIR = Path("dataset") / "augmented_train_images"',
        "WEIGHT_DECAY = 0",
        "FEATURES = tuple(4 * 2**level for level in range(2))",
        'MY_NOTE = "of my own"  # with a comment behind it',
        "HALVES = torch.ones(2) / 2  # which is no plain value",
    ]
    clone = edited(prepared, *edits)
    left = without(SMALL, *(edit.split()[0] for edit in edits))
    done = script(clone / "train.py", *left, "--weight-decay", "0.5", cwd=prepared)
    assert done.returncode == 0, done.stderr
    saved = torch.load(prepared / "checkpoint.pth")
    kept = saved["settings"]
    assert kept["IMAGE_SIZE"] == (32, 47) and kept["LEARNING_RATE"] == 0.01 and kept["FEATURES"] == (4, 8)
    assert saved["optimizer"]["param_groups"][0]["weight_decay"] == 0.5 and kept["MY_NOTE"] == "of my own"
    assert kept["TRAIN_IMG_DIR"] == "dataset/augmented_train_images"


NOTEBOOK = """
import sys
sys.argv = ["ipykernel_launcher.py", "-f", "kernel-1.json"]
import train
for name, value in {constants!r}.items():
    setattr(train, name, value)
train.NUM_EPOCHS = 2
train.main({arguments})
print("the kernel goes on")
"""
CELL = """
import sys
sys.argv = ["ipykernel_launcher.py", "-f", "kernel-1.json"]
exec(compile(open({path!r}).read(), "<cell>", "exec"), {{"__name__": "__main__"}})
print("the kernel goes on")
"""


@pytest.mark.parametrize("arguments", ["[]", pytest.param("", marks=pytest.mark.slow)])
def test_a_notebook_imports_it_and_sets_constants(prepared, arguments):
    code = NOTEBOOK.format(constants=TRAIN, arguments=arguments)
    done = script("-c", code, cwd=prepared, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0 and "the kernel goes on" in done.stdout, done.stderr
    assert len(history(prepared)) == 2


@pytest.mark.slow
def test_its_text_runs_in_a_notebooks_cell(prepared):
    clone = edited(prepared, *(f"{name} = {value!r}" for name, value in TRAIN.items()))
    code = CELL.format(path=str(clone / "train.py"))
    done = script("-c", code, cwd=prepared, env=os.environ | {"PYTHONPATH": str(clone)})
    assert done.returncode == 0 and "the kernel goes on" in done.stdout, done.stderr
    assert len(history(prepared)) == 1


def test_what_is_tried_once_is_set(prepared, monkeypatch):
    """cuDNN looks for its fastest kernels where a size comes up often; of two steps, the last has one between once."""
    for half_size, tries in ((0, True), (0.5, True), (0.2, False)):
        run_here(monkeypatch, prepared, "--half-size", half_size)
        assert torch.backends.cudnn.benchmark is tries


def test_a_checkpoint_of_another_architecture_is_refused(prepared, monkeypatch):
    run_here(monkeypatch, prepared, "--num-epochs", 1)
    before = (prepared / "checkpoint.pth").read_bytes()
    with pytest.raises(UserError, match="another architecture"):
        run_here(monkeypatch, prepared, "--features", 4, 16, "--load-model")
    assert (prepared / "checkpoint.pth").read_bytes() == before


def test_a_loss_that_is_not_finite_names_the_files(prepared):
    flags = ["--learning-rate", "1e30", "--clip-gradient", "0", "--optimizer", "adam", "--warmup", "0"]
    done = script("train.py", *SMALL, "--num-epochs", 4, *flags, cwd=prepared)
    assert done.returncode == 2 and "The loss is" in done.stderr and "img_" in done.stderr, done.stderr


OTHERWISE = {  # constants of training -> another value than that of SMALL or the default
    "IMAGE_SIZE": [40, 48],
    "CROP": [16, 24],
    "FEATURES": [4, 6],
    "BATCH_SIZE": [3],
    "ACCUMULATE": [2],
    "LEARNING_RATE": [0.02],
    "OPTIMIZER": ["adam"],
    "WEIGHT_DECAY": [0.1],
    "SCHEDULE": ["cosine"],
    "WARMUP": [0.6],
    "LOSS": ["bce"],
    "CLIP_GRADIENT": [0.01],
    "HALF_SIZE": [0.5],
    "SCALE": [0.7, 1.4],
    "ROTATE": [20],
    "COLOR_JITTER": [0.3],
    "PRECISION": ["bfloat16"],
    "SEED": [1],
    "ENCODER": ["resnet18", "--encoder-weights", "none"],
}


@pytest.mark.slow
def test_no_constant_of_training_is_ignored(prepared, monkeypatch):
    for module, drawing in ((train, "save_predictions"), (train, "save_examples"), (run_folder, "write_history")):
        monkeypatch.setattr(module, drawing, lambda *given, **named: None)  # which takes ten times as long

    def weights(name, *flags):
        base = ["--num-epochs", 1, "--batch-size", 2, "--precision", "float32", "--output-dir", name]
        run_here(monkeypatch, prepared, *base, *flags)
        return torch.load(prepared / name / "best.pth")["state_dict"]

    def same(one, other):
        return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)

    usual = weights("usual")
    assert same(weights("again"), usual)
    flags = {name: [f"--{name.lower().replace('_', '-')}", *values] for name, values in OTHERWISE.items()}
    flags["FLIP"] = ["--no-flip"]
    assert [name for name in flags if same(weights(name, *flags[name]), usual)] == []


@pytest.mark.slow
def test_the_plateau_schedule_follows_dice_with_its_patience(prepared, monkeypatch):
    for patience, falls_in in ((0, 3), (2, 5)):  # the first epoch is the best: nothing can be learnt at this rate
        flags = ["--learning-rate", "1e-6", "--schedule", "plateau", "--warmup", 0, "--num-epochs", 5]
        run_here(monkeypatch, prepared, *flags, "--plateau-patience", patience, "--output-dir", f"{patience}")
        rates = [float(line["learning_rate"]) for line in history(prepared / f"{patience}")]
        assert [epoch for epoch, rate in enumerate(rates, 1) if rate < 5e-7][:1] == [falls_in]


def test_a_step_is_made_of_accumulated_batches(prepared, monkeypatch):
    """11 images are 5 batches of 2: three steps of 2, 2 and 1 of them."""
    run_here(monkeypatch, prepared, "--batch-size", 2, "--accumulate", 2)
    steps = {int(state["step"]) for state in torch.load(prepared / "best.pth")["optimizer"]["state"].values()}
    assert steps == {3}


def test_patience_ends_the_run(prepared, monkeypatch, capsys):
    run_here(monkeypatch, prepared, "--learning-rate", "1e-12", "--num-epochs", 30, "--patience", 2)
    assert "(PATIENCE)" in capsys.readouterr().out and len(history(prepared)) < 10


def test_foreground_never_predicted_is_said(prepared, monkeypatch, capsys):
    run_here(monkeypatch, prepared, "--num-epochs", 1, "--learning-rate", "1e-12")
    assert "is predicted as foreground, though" in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_worker_is_told_and_the_checkpoint_stands(prepared):
    data = prepared / "dataset"
    draw_pairs(data / "augmented_train_images", data / "augmented_train_masks", 200, first=100)  # a longer epoch
    process = begin("--num-epochs", 500, "--num-workers", 2, "--no-arrays", cwd=prepared)
    wait_for_epochs(prepared, 1, process)
    end = time.monotonic() + WAIT
    while process.poll() is None and time.monotonic() < end:  # a worker that has fetched all its batches is not missed
        for worker in children_of(process)[:1]:
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        time.sleep(0.3)
    _, err = process.communicate(timeout=WAIT)
    assert process.returncode == 2 and "A worker that fetches batches was killed" in err, err
    torch.load(prepared / "checkpoint.pth")


@pytest.mark.slow
def test_a_file_that_vanishes_while_training_is_named(prepared):
    process = begin("--num-epochs", 500, "--no-arrays", "--num-workers", 2, cwd=prepared)
    wait_for_epochs(prepared, 1, process)
    (prepared / "dataset/augmented_train_images/img_004.png").unlink()
    _, err = process.communicate(timeout=WAIT)
    assert process.returncode == 2 and "img_004.png" in err and "Traceback" not in err, err
    torch.load(prepared / "checkpoint.pth")


@pytest.mark.slow
def test_a_read_only_or_missing_place_is_told(prepared):
    (prepared / "file").write_text("")
    done = script("train.py", *SMALL, "--output-dir", "file/run", cwd=prepared)
    assert done.returncode == 2 and "Traceback" not in done.stderr and "file" in done.stderr, done.stderr


@pytest.mark.slow
def test_more_pictures_change_the_arrays(prepared, monkeypatch, capsys):
    run_here(monkeypatch, prepared, "--num-epochs", 1)
    draw_pairs(prepared / "dataset/augmented_train_images", prepared / "dataset/augmented_train_masks", 2, first=90)
    capsys.readouterr()
    before = torch.load(prepared / "best.pth")
    run_here(monkeypatch, prepared, "--num-epochs", 1)
    assert "3 steps an epoch" in capsys.readouterr().out
    assert_same(torch.load(prepared / "best.previous.pth"), before, "the earlier run's")


def test_crops_are_the_same_with_arrays_and_without(prepared, monkeypatch, capsys):
    flags = ["--num-epochs", 1, "--image-size", "none", "--crop", 16, 24]
    run_here(monkeypatch, prepared, *flags, "--output-dir", "with")
    assert "Crops of 16x24 are cut out of images at their own size." in capsys.readouterr().out
    run_here(monkeypatch, prepared, *flags, "--output-dir", "without", "--no-arrays")
    same_runs(prepared / "with", prepared / "without")
    saved = torch.load(prepared / "with" / "best.pth")
    assert saved["image_size"] is None and saved["crop"] == [16, 24]
    with_size = ["--num-epochs", 1, "--image-size", 32, 48, "--crop", 16, 24, "--output-dir", "shrunk"]
    run_here(monkeypatch, prepared, *with_size)
    assert "of 32x48 (IMAGE_SIZE; set it to None" in capsys.readouterr().out
    assert torch.load(prepared / "shrunk" / "best.pth")["image_size"] == [32, 48]
    run_here(monkeypatch, prepared, "--num-epochs", 1, "--crop", 32, 48, "--output-dir", "edited")
    assert "at their own size (IMAGE_SIZE = (32, 48) leaves nothing to cut)." in capsys.readouterr().out


@pytest.mark.parametrize("crop, left", [((32, 24), (32, 48)), ((32, 49), None), ((16, 24), (32, 48)), ((32, 48), None)])
def test_a_crop_as_high_as_its_image_is_a_crop_still(crop, left):
    s = train.settings(helpers.flags(CROP=crop))
    train.settle_crop(s)
    assert left == s.IMAGE_SIZE


@pytest.mark.parametrize("flags", [["--classes", "all"], ["--classes", "sky=0", "road=127", "car=255"]])
def test_several_classes_train_with_their_pictures_and_columns(prepared, monkeypatch, flags):
    for side in ("train", "test"):
        for path in (prepared / "dataset" / f"augmented_{side}_masks").iterdir():
            mask = np.array(Image.open(path))
            mask[: len(mask) // 3][mask[: len(mask) // 3] == 0] = 127
            Image.fromarray(mask).save(path)
    with pytest.raises(UserError, match="--classes all"):
        run_here(monkeypatch, prepared, "--num-epochs", 1)
    run_here(monkeypatch, prepared, "--num-epochs", 2, *flags)
    names = ["0", "127", "255"] if "all" in flags else ["sky", "road", "car"]
    lines = history(prepared)
    assert [name for name in lines[0] if name.startswith("dice_")] == ["dice_nonempty", *(f"dice_{n}" for n in names)]
    saved = prepared / "saved_images"
    assert (saved / "confusion.png").stat().st_size > 1000
    rows = (saved / "confusion.csv").read_text().splitlines()
    assert rows[0].endswith("," + ",".join(names))
    assert [row.split(",")[0] for row in rows[1:]] == names
    best = torch.load(prepared / "best.pth")
    assert best["mask_rule"]["names"] == names and best["network"]["out_channels"] == 3
    run_here(monkeypatch, prepared, "--num-epochs", 3, *flags, "--load-model")
    assert len(history(prepared)) == 3
    with pytest.raises(UserError, match="the same ones, in the same order"):
        run_here(monkeypatch, prepared, "--num-epochs", 4, "--mask-foreground", 255, "--load-model")


def test_ignored_pixels_are_neither_trained_on_nor_scored(prepared, monkeypatch, capsys):
    for side in ("train", "test"):
        for path in (prepared / "dataset" / f"augmented_{side}_masks").iterdir():
            mask = np.array(Image.open(path))
            mask[:20] = 7  # half of it
            Image.fromarray(mask).save(path)
    run_here(monkeypatch, prepared, "--num-epochs", 1, "--mask-ignore", 7, "--output-dir", "ignored")
    said = capsys.readouterr().out
    assert "50.00% of all pixels are neither trained on nor scored" in said
    run_here(monkeypatch, prepared, "--num-epochs", 1, "--mask-foreground", 255, "--output-dir", "background")
    one, other = (torch.load(prepared / name / "best.pth")["state_dict"] for name in ("ignored", "background"))
    assert any(not torch.equal(one[key], other[key]) for key in one)


SMALL_MEMORY = """
import re, resource, sys
from pathlib import Path
import train
from parts.errors import run
used = 1024 * int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
resource.setrlimit(resource.RLIMIT_AS, (used + (400 << 20), resource.RLIM_INFINITY))
run(lambda: train.main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the size of a process is read from Linux's /proc")
def test_memory_that_runs_out_is_told_with_what_to_turn(prepared):
    words = [*SMALL, "--image-size", 512, 768, "--features", 64, 64]
    done = script("-c", SMALL_MEMORY, *words, cwd=prepared, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "has run out of memory with BATCH_SIZE = 4" in done.stderr and "--batch-size 2 --accumulate 2" in done.stderr


PRETENDED = ROOT.parent / "shared" / "tools" / "pretend_cuda.py"


needs_pretended = pytest.mark.skipif(
    not PRETENDED.is_file(), reason=f"needs {PRETENDED.name}, which is not part of the repository"
)


def pretend(*words):
    """(what train.py prints, {what a pretended GPU counts: lines with the number and place of each})."""
    command = [sys.executable, PRETENDED, "train.py", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=WAIT)
    assert done.returncode == 0, done.stderr
    printed, *counts = re.split("^(copies to the device|pinned|synchronisations): ", done.stdout, flags=re.M)
    return printed, dict(zip(counts[::2], counts[1::2]))


@needs_pretended
@pytest.mark.slow
def test_nothing_is_pinned_for_a_cpu_and_tf32_is_told(prepared):
    places = [f"--{kind}-{what}-dir" for kind in ("train", "val") for what in ("img", "mask")]
    kinds = ("train_images", "train_masks", "test_images", "test_masks")
    folders = [prepared / "dataset" / f"augmented_{kind}" for kind in kinds]
    words = [word for pair in zip(places, folders) for word in pair] + ["--output-dir", prepared]
    assert pretend(*SMALL, *words)[1]["pinned"].startswith("0\n")
    printed, counts = pretend(*SMALL, *words, "--device", "cuda", "--no-compile", "--precision", "float32")
    assert "on cuda:0, float32 (convolutions in TF32" in printed and not counts["pinned"].startswith("0\n")


@needs_pretended
@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--classes", "all", "--mask-ignore", 50],
        ["--crop", 16, 32, "--half-size", 0, "--scale", 0.7, 1.4, "--rotate", 20],
    ],
)
def test_the_loop_waits_for_the_device_once_in_twenty_steps(tmp_path, flags):
    """On a pretended one, that tells copies to it and reads from it by their place: three copies a batch."""
    folders = [tmp_path / name for name in ("ti", "tm", "vi", "vm")]
    for images, masks, count, first in ((*folders[:2], 50, 0), (*folders[2:], 4, 100)):
        draw_pairs(images, masks, count, first=first)
        for path in masks.iterdir():
            mask = np.array(Image.open(path))
            mask[-8:] = 50 if "--classes" in flags else 0
            Image.fromarray(mask).save(path)
    places = zip(("train-img-dir", "train-mask-dir", "val-img-dir", "val-mask-dir"), folders)
    words = helpers.flags(DEVICE="cuda", COMPILE=False, BATCH_SIZE=2, HALF_SIZE=0.5)
    words += [str(word) for name, folder in places for word in (f"--{name}", folder)]
    printed, counts = pretend(*words, "--output-dir", tmp_path, *flags)
    steps = int(re.search(r"(\d+) steps an epoch", printed)[1])
    assert steps > 20
    text, first = inspect.getsourcelines(train.train_fn)
    within = {f"train.py:{line}" for line in range(first, first + len(text))}
    of_loop = [
        [int(line.split()[0]) for line in counts[what].splitlines() if within & set(line.split())]
        for what in ("copies to the device", "synchronisations")
    ]
    assert of_loop[0] == [steps] * 3 and sum(of_loop[1]) == -(-steps // 20), counts


def test_a_run_goes_on_in_the_precision_that_it_began_with(prepared, monkeypatch, capsys):
    """Also on a machine that would choose another one: resuming is exact."""
    monkeypatch.chdir(prepared)
    monkeypatch.setattr(recipe, "cpu_lists_bfloat16", lambda: True)

    def times(bfloat16):
        monkeypatch.setattr(recipe, "convolution_times", lambda: recipe.ConvolutionTimes(1.0, bfloat16, 1.0))

    same = dict(SCHEDULE="constant", WARMUP=0.0, PRECISION="auto")
    times(0.5)
    train.main(helpers.flags(**same, NUM_EPOCHS=2, OUTPUT_DIR="whole"))
    train.main(helpers.flags(**same, NUM_EPOCHS=1, OUTPUT_DIR="parts"))
    assert "PRECISION = bfloat16: a convolution in bfloat16 takes 0.50 times as long" in capsys.readouterr().out
    times(2.0)
    train.main(helpers.flags(**same, NUM_EPOCHS=2, OUTPUT_DIR="other"))
    assert "on cpu, float32" in capsys.readouterr().out
    train.main([*helpers.flags(**same, NUM_EPOCHS=2, OUTPUT_DIR="parts"), "--load-model"])
    output = capsys.readouterr().out
    assert "on cpu, bfloat16" in output and "PRECISION '" not in output
    whole, parts, other = (torch.load(f"{name}/checkpoint.pth")["state_dict"] for name in ("whole", "parts", "other"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert not all(torch.equal(whole[key], other[key]) for key in whole)


def test_the_best_checkpoint_stays_where_a_later_epoch_is_worse(prepared, monkeypatch):
    """With a learning rate that ruins the network once it has learnt something."""
    monkeypatch.chdir(prepared)
    train.main(helpers.flags(NUM_EPOCHS=4, SCHEDULE="constant", WARMUP=0.0, PATIENCE=0))
    train.main([*helpers.flags(NUM_EPOCHS=5, SCHEDULE="constant", WARMUP=0.0, LEARNING_RATE=3.0), "--load-model"])
    best, last = torch.load("best.pth"), torch.load("checkpoint.pth")
    rows = last["history"]
    assert rows[-1]["dice_nonempty"] < max(row["dice_nonempty"] for row in rows), "else nothing is shown"
    assert best["epoch"] == max(rows, key=lambda row: row["dice_nonempty"])["epoch"] < last["epoch"]


def test_an_error_after_an_epoch_ends_with_the_command_that_goes_on(tmp_path):
    s = train.settings([*SMALL, "--output-dir", str(tmp_path)])
    with pytest.raises(UserError, match="^a.png: went.$"), train.ending_in_words(s, []):
        raise UserError("a.png: went.")
    continued = "a.png: went.\nGo on after the last finished epoch with:\n  python train.py --seed 3 --load-model$"
    with pytest.raises(UserError, match=continued), train.ending_in_words(s, ["--seed", "3"]):
        (tmp_path / "checkpoint.pth").write_bytes(b"of an epoch")
        raise UserError("a.png: went.")
