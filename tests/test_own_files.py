"""Whatever the program's own files hold, it goes on or says in words what is wrong; files of others stay."""

import json
import os
import random
import shutil
import signal

import numpy as np
import pytest
from helpers import draw_pairs, flags

import augment
import dataset
import predict
import train
from parts.errors import UserError, describe

CASES = dict(augment=24, dataset=3, train=8, predict=8)
OUTSIDE = ["../precious.txt", "notes.txt", "augmented_train_images/../notes.txt", "augmented_test_masks/link/notes.txt"]
PRECIOUS = ["precious.txt", "out/notes.txt", "ti/*", "tm/*", "vi/*", "vm/*"]


def places_in(node):
    """Each (container, key) of a JSON value."""
    places = []
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        places += [(node, key), *places_in(value)]
    return places


def other_types(data, draw):
    """JSON in which a few values are of another type, or names that lead elsewhere."""
    stored = [json.loads(data)]  # in a list, so that the whole has a place too
    for _ in range(draw.randint(1, 3)):
        container, key = draw.choice(places_in(stored))
        junk = [None, 3, -1.5, "x", "\0", [], {}, [[1, 2]], {"a": []}, [1], 10**400, True, *OUTSIDE]
        container[key] = draw.choice(junk)
    return json.dumps(stored[0]).encode()


def spoil(path, draw, precious, kind=None):
    """Puts junk, of a `kind` or of any, in the place of a file; says which."""
    data = path.read_bytes()
    kinds = ["random", "cut", "changed", "nested", "zeros", "gone", "folder", "pipe", "link"]
    if path.suffix == ".json":
        kinds += ["types"] * 9
    kind = kind or draw.choice(kinds)
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(precious)
    elif kind != "gone":
        place = draw.randrange(len(data) + 1)
        written = {
            "random": lambda: draw.randbytes(draw.randrange(300)),
            "cut": lambda: data[:place],
            "changed": lambda: data[:place] + draw.randbytes(3) + data[place + 3 :],
            "nested": lambda: b"[" * 100_000,
            "zeros": lambda: bytes(len(data)),
            "types": lambda: other_types(data, draw),
        }
        path.write_bytes(written[kind]())
    return f"{path.name} {kind}"


class Hangs(BaseException):
    """A script has taken too long; no exception of those that the program waits for."""


def told_of(main, argv):
    """What a script ends with that is neither right nor told in words; "" where there is nothing of the kind."""

    def hangs(number, frame):
        raise Hangs("after 30 s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(30)
    try:
        main(list(map(str, argv)))
    except UserError:
        pass
    except (Exception, Hangs) as error:
        if not isinstance(error, OSError) or describe(error) is None:
            return f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return ""


SCRIPTS = {
    "augment": (augment.main, ["--img-dir", "ti", "--mask-dir", "tm", "--output-dir", "out", "--val-images", 1]),
    "dataset": (dataset.main, ["ti", "tm", "--sheet", "out/audit.png"]),
    "train": (
        train.main,
        ["--train-img-dir", "ti", "--train-mask-dir", "tm", "--val-img-dir", "vi", "--val-mask-dir", "vm"]
        + ["--output-dir", "out", *flags(PICTURE_BATCHES=1)],
    ),
    "predict": (predict.main, ["vi", "--checkpoint", "best.pth", "--output-dir", "out", "--device", "cpu"]),
}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """{script: a folder in which it has run}."""
    here, folders = os.getcwd(), {}
    for name, (main, argv) in SCRIPTS.items():
        folder = folders[name] = tmp_path_factory.mktemp(name)
        draw_pairs(folder / "ti", folder / "tm", 4)
        draw_pairs(folder / "vi", folder / "vm", 1, first=50)
        if name == "predict":
            shutil.copy(folders["train"] / "out" / "best.pth", folder)
        os.chdir(folder)
        main(list(map(str, argv)))
        (folder / "precious.txt").write_text("precious")
        (folder / "out" / "notes.txt").write_text("precious")
        os.chdir(here)
    return folders


def own_files(folder):
    """What the script keeps for itself, and reads back."""
    places = ("out/.*", "out/history.csv", "out/saved_images/strip/*", ".arrays/*", ".arrays/*/*")
    return [path for place in places for path in sorted(folder.glob(place)) if path.is_file()]


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_junk_in_own_files_is_made_anew_or_told_in_words(pristine, tmp_path, monkeypatch, name):
    main, argv = SCRIPTS[name]
    wrong = []
    for seed in range(CASES[name]):
        draw, folder = random.Random(seed), tmp_path / str(seed)
        shutil.copytree(pristine[name], folder)
        monkeypatch.chdir(folder)
        if name == "augment":
            (folder / "out" / "augmented_test_masks" / "link").symlink_to("..")
        if name == "train":  # a copy has other times
            main(list(map(str, argv)))
        files = own_files(folder)
        precious = {path: path.read_bytes() for place in PRECIOUS for path in folder.glob(place)}
        arrays = {path: np.load(path) for path in folder.rglob("*.npy")}
        chosen = draw.sample(files, min(len(files), draw.randint(1, 3)))
        kind = None
        if seed == 0:  # a pipe, which nobody writes to, in the place of every file
            chosen, kind = files, "pipe"
        spoilt = [spoil(path, draw, folder / "precious.txt", kind) for path in chosen]
        fault = told_of(main, argv)
        lost = [path.name for path, data in precious.items() if not path.is_file() or path.read_bytes() != data]
        if not fault and any(not np.array_equal(np.load(path), array) for path, array in arrays.items()):
            fault = "arrays are believed"
        if fault or lost:
            wrong.append(f"{seed} {spoilt}: {fault}, lost {lost}")
        shutil.rmtree(folder)
    assert not wrong, f"{len(wrong)} of {CASES[name]}\n" + "\n".join(wrong)
