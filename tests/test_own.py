"""Parts of one's own: a network, loss, optimizer, schedule, metric and logger in a user's file."""

import functools
import io
import math
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, SMALL, history, same_runs
from PIL import Image
from torch import nn
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

import predict
import train
from parts import recipe
from parts.checkpoints import load_network
from parts.errors import UserError
from parts.networks import OwnNetwork, build_network, recompute_blocks
from parts.own import load_part, name_of_part
from parts.scores import load_metrics, mean_metric

MINE = '''
"""A user's file: a part of each kind, each in a few lines."""
import csv

import torch
from torch import nn
from torchvision.models.segmentation import fcn_resnet50


class Net(nn.Module):
    """Two levels; like many networks it takes multiples of its stride alone, and has no attribute that says so."""

    def __init__(self, in_channels, out_channels, features):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(in_channels, features[0], 3, 2, 1), nn.BatchNorm2d(features[0]))
        self.up = nn.ConvTranspose2d(features[0], features[0], 2, 2)
        self.head = nn.Conv2d(features[0] + in_channels, out_channels, 3, padding=1)

    def forward(self, x):
        return self.head(torch.cat([x, self.up(self.encoder(x))], 1))


def squared(logits, labels, kept):
    return (((logits.sigmoid() - labels.float()) ** 2) * kept).mean()


def momentum(groups, lr):
    return torch.optim.SGD(groups, lr=lr, momentum=0.8)


def steps(step, total):
    return 1.0 if step < total / 2 else 0.1


def specificity(tp, fp, fn, tn):
    return tn / (tn + fp) if tn + fp else float("nan")


class Table:
    """A logger that keeps what it is told."""

    def __call__(self, epoch, row, folder):
        with open(folder.parent / "told.csv", "a") as file:
            csv.writer(file).writerow([epoch, row["dice"], row["specificity"], (folder / "examples.png").exists()])
'''
OWN = dict(
    network="mine.py:Net",
    loss="0.5*bce + mine.py:squared",
    optimizer="mine.py:momentum",
    schedule="mine.py:steps",
    logger="mine.py:Table",
    metrics=("mine.py:specificity", "recall"),
)


@pytest.fixture
def own_flags(prepared):
    """The flags for every part in mine.py, beside the images in `prepared`."""
    (prepared / "mine.py").write_text(MINE)
    words = []
    for name, value in OWN.items():
        words += [f"--{name}", *(value if isinstance(value, tuple) else [value])]
    return words


@pytest.mark.slow
def test_parts_of_ones_own_train_predict_export_and_resume(prepared, own_flags, monkeypatch, capsys):
    monkeypatch.chdir(prepared)
    for epochs, folder, more in ((4, "whole", []), (2, "stopped", []), (4, "stopped", ["--load-model"])):
        # The schedule knows the number of all steps: two epochs of four are those of a run that was stopped
        if (epochs, folder) == (2, "stopped"):
            monkeypatch.setattr(train, "out_of_patience", lambda run: len(run.history) == 2)
        train.main([*SMALL, "--num-epochs", "4", *own_flags, "--output-dir", folder, *more])
        monkeypatch.undo()
        monkeypatch.chdir(prepared)
    same_runs(prepared / "whole", prepared / "stopped")
    assert "would have been" not in capsys.readouterr().out
    rows = history(prepared / "whole")
    assert "specificity" in rows[0] and "recall" in rows[0] and "precision" not in rows[0]
    told = [line.split(",") for line in (prepared / "whole" / "told.csv").read_text().splitlines()]
    assert [[line[0], line[3]] for line in told] == [[str(epoch), "True"] for epoch in range(1, 5)]
    assert [float(line[2]) for line in told] == [float(row["specificity"]) for row in rows]
    assert float(rows[-1]["learning_rate"]) == pytest.approx(0.1 * float(rows[0]["learning_rate"]))

    # What is scored is what is predicted, at a size that is no multiple of the stride
    images = sorted(Path(train.VAL_IMG_DIR).iterdir())
    odd = np.array(Image.open(images[0]))[:33, :47]
    Image.fromarray(odd).save(prepared / "odd.png")
    asked = [
        "odd.png",
        "--checkpoint",
        "whole/best.pth",
        "--device",
        "cpu",
        "--image-size",
        "own",
        "--precision",
        "float32",
    ]
    with pytest.raises(UserError, match="--network mine.py:Net"):
        predict.main(asked)
    assert predict.main([*asked, "--network", "mine.py:Net"]) == 0
    network, checkpoint = load_network("whole/best.pth", "mine.py:Net")
    assert network.stride == 2 and checkpoint["settings"]["LOSS"] == OWN["loss"]
    with torch.no_grad():
        logits = network(torch.from_numpy(odd).permute(2, 0, 1)[None] / 255)
    predicted = np.array(Image.open(prepared / "predictions" / "odd.png")) > 0
    clear = logits[0, 0].abs().numpy() > 1e-4  # BatchNorm is folded for prediction, which rounds otherwise
    assert np.array_equal(predicted[clear], logits[0, 0].numpy()[clear] > 0) and clear.mean() > 0.9
    exported = ["--export", "net.pt2", "--checkpoint", "whole/best.pth", "--network", "mine.py:Net"]
    assert predict.main(exported) == 0 and (prepared / "net.pt2").exists()


def test_a_checkpoint_never_has_a_file_imported(prepared, own_flags, monkeypatch):
    """Neither predict.py nor train.py runs the code that a file names by itself."""
    monkeypatch.chdir(prepared)
    train.main([*SMALL, *own_flags, "--output-dir", "run"])
    checkpoint = torch.load("run/checkpoint.pth")
    checkpoint["network"]["network"] = "evil.py:Net"
    checkpoint["settings"] |= dict(NETWORK="evil.py:Net", LOSS="evil.py:Net")
    torch.save(checkpoint, "run/checkpoint.pth")
    Path("evil.py").write_text("open('was_run', 'w')\n" + MINE)
    with pytest.raises(UserError, match="--network evil.py:Net"):
        predict.main(["mine.png", "--checkpoint", "run/checkpoint.pth"])
    train.main([*SMALL, *own_flags, "--output-dir", "run", "--num-epochs", "2", "--load-model"])
    assert not Path("was_run").exists()


def make_network(in_channels, out_channels, side):
    network = Plain(in_channels, out_channels)
    network.layer = nn.Conv2d(in_channels, out_channels, side, padding=side // 2)
    return network


SIDE = """
import functools
from test_own import make_network
network = functools.partial(make_network, side=3)
"""


@pytest.mark.parametrize("network, name", [
    (functools.partial(make_network, side=3), "make_network"),
    (lambda in_channels, out_channels: make_network(in_channels, out_channels, 3), "lambda"),
])  # fmt: skip
def test_a_network_that_needs_more_is_a_partial_or_a_lambda(prepared, monkeypatch, network, name):
    monkeypatch.chdir(prepared)
    monkeypatch.setattr(train, "NETWORK", network)
    train.main(SMALL)
    train.main([*SMALL, "--load-model", "--num-epochs", "2"])
    assert torch.load("best.pth")["network"]["network"] == f"test_own.py:{name}"
    image = "dataset/augmented_train_images/img_000.png"
    mask = predict.Predictor("best.pth", NETWORK=network, DEVICE="cpu")(image)
    Path("mine.py").write_text(SIDE)
    predict.main([image, "--checkpoint", "best.pth", "--network", "mine.py:network", "--output-dir", "masks"])
    assert np.array_equal(np.array(Image.open("masks/img_000.png")) > 0, mask > 0)


def test_objects_are_parts_too(prepared, monkeypatch):
    """As in a notebook: train.LOSS = my_loss."""
    monkeypatch.chdir(prepared)
    monkeypatch.setattr(train, "NETWORK", Plain)
    monkeypatch.setattr(train, "LOSS", lambda logits, labels, kept: logits.square().mean())
    monkeypatch.setattr(train, "METRICS", (share_right,))
    train.main(SMALL)
    checkpoint = torch.load("best.pth")
    assert checkpoint["network"]["network"] == "test_own.py:Plain"
    assert checkpoint["settings"]["METRICS"] == ("test_own.py:share_right",)
    assert float(history(prepared)[0]["share_right"]) > 0
    load_network("best.pth", Plain)


def share_right(tp, fp, fn, tn):
    return (tp + tn) / (tp + fp + fn + tn)


class Plain(nn.Module):
    """The least that a network can be."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.layer = nn.Conv2d(in_channels, out_channels, 5, padding=2)

    def forward(self, x):
        return self.layer(x)


# ---- contracts


class Chances(Plain):
    """Gives probabilities."""

    def forward(self, x):
        return self.layer(x).sigmoid()


class Pooled(Plain):
    """Gives logits of half the size."""

    def forward(self, x):
        return self.layer(x)[:, :, ::2, ::2]


class Needs16(Plain):
    """Refuses what is no multiple of 16, as segmentation_models.pytorch does of 32."""

    def forward(self, x):
        if x.shape[2] % 16 or x.shape[3] % 16:
            raise RuntimeError("Wrong input shape")
        return self.layer(x)


class Tells(Plain):
    stride, reach = 8, 5


def test_stride_and_reach_are_asked_or_measured():
    plain, needs, tells = (OwnNetwork(kind, 3, 2, ()) for kind in (Plain, Needs16, Tells))
    assert (plain.stride, plain.reach) == (1, 2) and (needs.stride, needs.reach) == (16, 2)
    assert (tells.stride, tells.reach) == (8, 5)
    images = torch.rand(1, 3, 33, 47)
    assert plain(images).shape == needs(images).shape == (1, 2, 33, 47)
    assert set(plain.state_dict()) == {"layer.weight", "layer.bias"}


@pytest.mark.parametrize(
    "network, words",
    [
        (Chances, "ends in a sigmoid"),
        (Pooled, "expected is \\(1, 1, "),
        (lambda in_channels, out_channels: "net", "a str is no torch.nn.Module"),
        (lambda channels: None, "unexpected keyword argument"),
        ("mine.py:Missing", "has no Missing"),
        ("nowhere.py:Net", "no such file"),
        ("unett", "expected is unet, attention"),
    ],
)
def test_a_network_that_cannot_be_is_told(network, words, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words) as told:
        build_network(3, 1, (4, 8), network=network)
    assert str(told.value).startswith("NETWORK = ")


def test_an_exception_of_a_users_file_names_its_line(tmp_path):
    (tmp_path / "broken.py").write_text("import math\n\nvalue = math.sqrt(-1)\n")
    with pytest.raises(UserError, match=r"math domain error \(broken.py, line 3\)"):
        load_part("LOSS", f"{tmp_path}/broken.py:loss", {})
    (tmp_path / "train.py").write_text("loss = 7\n")  # a name that another module has
    assert load_part("LOSS", f"{tmp_path}/train.py:loss", {}) == 7 and sys.modules["train"] is train
    of_notebook = type("Net", (), dict(__module__="__main__x"))
    assert name_of_part(of_notebook) == name_of_part(functools.partial(of_notebook)) == "main__x.py:Net"
    assert name_of_part(Plain) == "test_own.py:Plain" and name_of_part("a.py:b") == "a.py:b"


@pytest.mark.parametrize(
    "part, words",
    [
        (dict(optimizer=lambda groups: None), "unexpected keyword"),
        (dict(optimizer=lambda groups, lr: lr), "is no torch.optim.Optimizer"),
        (dict(schedule=lambda step: 1.0), "positional argument"),
        (dict(schedule=lambda step, total: -1.0), "gives -1.0"),
        (dict(metric=lambda tp, fp, fn, tn: tp / (tp + fp)), "division by zero"),
        (dict(metric=lambda tp, fp: 1), "positional argument"),
        (dict(metric=lambda tp, fp, fn, tn: None), "float"),
        (dict(metric=lambda tp, fp, fn, tn: np.float64(tp) / np.float64(fn)), "gives inf of tp = 3, fp = 0, fn = 0"),
    ],
)
def test_parts_that_break_their_contract_are_told(part, words):
    optimizer, schedule = part.get("optimizer", "adam"), part.get("schedule", "linear")
    with pytest.raises(UserError, match=words) as told:
        made = recipe.make_optimizer(Plain(3, 1), optimizer, 0.1, 0.01)
        recipe.Schedule(made, schedule, 10, 1)
        load_metrics([part["metric"]])
    assert next(iter(part)).upper() in str(told.value)


def test_a_metric_that_fails_on_some_image_is_told_with_its_name(capsys):
    metric = load_metrics([share_of_many])["share_of_many"]
    assert metric(5, 5, 0, 0) == 0.5 and math.isnan(metric(0, 0, 5, 5))
    for counts in ((200, 0, 0, 0), (0, 200, 0, 0)):
        with pytest.raises(UserError, match="METRICS = 'test_own.py:share_of_many': .*(inf|division)"):
            metric(*counts)


def share_of_many(tp, fp, fn, tn):
    if tp + fp == 200:
        return tp / (200 - tp) if fp == 0 else np.float64(np.inf)
    return np.float64(tp) / (tp + fp) if tp + fp else np.nan


@pytest.mark.parametrize("rate", [0.5, 1e-4])
def test_a_schedule_of_learning_rates_is_told_from_one_of_factors(rate, capsys):
    optimizer = recipe.make_optimizer(Plain(3, 1), "adam", 0.1, 0.01)
    recipe.Schedule(optimizer, lambda step, total: rate * step / total, 40, 1, 0.15)
    assert ("If these are learning rates themselves, set LEARNING_RATE = 1" in capsys.readouterr().out) == (rate < 0.1)


def test_a_missing_part_is_told_before_the_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # an empty folder
    for name in ("network", "optimizer", "schedule", "loss", "logger", "metrics"):
        with pytest.raises(UserError, match=f"{name.upper()} = .*there is no such file"):
            train.main([f"--{name}", "mine.py:name"])


def test_metrics_are_averaged_as_dice_is():
    overlap = [[[60, 10], [70, 10], [80, 20]], [[100, 0], [100, 0], [100, 0]], [[90, 0], [95, 5], [95, 5]]]
    counts = np.array([[*rows, [100, 100]] for rows in overlap])
    precision, recall = load_metrics(["precision", "recall"]).values()
    assert mean_metric(precision, counts, [1]) == pytest.approx((1 + 0) / 2)  # the second image has nothing
    assert mean_metric(recall, counts, [1]) == pytest.approx((0.5 + 0) / 2)
    both = mean_metric(precision, counts, [0, 1])
    assert both == pytest.approx(((60 / 70 + 1 + 90 / 95) / 3 + 0.5) / 2)
    assert math.isnan(mean_metric(precision, counts[1:2], [1]))


# ---- a dataset


class Discs:
    """Bright discs on noise, made when they are asked for."""

    def __init__(self, train, count=12):
        self.names = [f"{'train' if train else 'val'}_disc_{index}" for index in range(count)]

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        draw = np.random.default_rng([index, "train" in self.names[0]])
        down, across = np.ogrid[:40, :56]
        mask = (down - draw.integers(10, 30)) ** 2 + (across - draw.integers(10, 46)) ** 2 < 64
        return draw.integers(0, 90, (40, 56, 3), np.uint8) + 150 * mask[..., None].astype(np.uint8), mask


@pytest.mark.slow
def test_a_dataset_of_ones_own_is_audited_trained_on_and_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "DATASET", Discs)
    train.main([*SMALL, "--num-epochs", "6", "--batch-size", "2"])
    assert float(history(tmp_path)[-1]["dice"]) > 0.8
    said = capsys.readouterr().out
    assert "12 pairs" in said and "What the data is" in said
    written = tmp_path / "own_dataset" / "train_images" / "train_disc_3.png"
    assert np.array_equal(np.array(Image.open(written)), Discs(True)[3][0])
    before = written.stat().st_mtime_ns
    monkeypatch.setattr(train, "DATASET", lambda train: Discs(train, 8 + 2 * train))
    train.main([*SMALL, "--num-epochs", "7", "--load-model"])
    assert written.stat().st_mtime_ns == before and len(list(written.parent.iterdir())) == 10


@pytest.mark.parametrize(
    "data, words",
    [
        (lambda: [], "positional argument"),
        (lambda train: 3, "has no len"),
        (lambda train: [(np.zeros((4, 4)), np.zeros((4, 4), np.uint8))], "the image of sample 0 is float64"),
        (lambda train: [(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5), np.uint8))], "a mask of \\(4, 5\\)"),
        (lambda train: Discs(train, 0), "its len is 0 for train"),
    ],
)
def test_a_dataset_that_cannot_be_is_told(data, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "DATASET", data)
    with pytest.raises(UserError, match=words):
        train.main(SMALL)
    hostile = Discs(True)
    hostile.names[0] = "../hostile"
    monkeypatch.setattr(train, "DATASET", lambda train: hostile)
    with pytest.raises(UserError, match="no name for a file"):
        train.main(SMALL)


# ---- what is trained, and in how much memory


def test_a_frozen_encoder_stays_as_it_is_and_learns_afterwards(prepared, monkeypatch):
    def encoder_after(epochs, *more):
        train.main([*SMALL, "--num-epochs", str(epochs), "--freeze-encoder", "1", "--output-dir", "run", *more])
        weights = torch.load("run/checkpoint.pth")["state_dict"]
        return {name: value for name, value in weights.items() if name.startswith("encoder.")}

    monkeypatch.chdir(prepared)
    frozen = encoder_after(1)
    torch.manual_seed(0)
    first = {name: value for name, value in build_network(3, 1, [4, 8]).state_dict().items() if name in frozen}
    assert all(torch.equal(frozen[name], first[name]) for name in frozen)  # BatchNorm's statistics as well
    free = encoder_after(2, "--load-model")
    assert not any(torch.equal(free[name], first[name]) for name in free)


@pytest.mark.parametrize("encoder", [None, "resnet18"])
def test_recomputed_blocks_learn_the_same(encoder):
    states = []
    for recomputed in (False, True):
        torch.manual_seed(0)
        network = build_network(3, 1, (4, 8), encoder)
        if recomputed:
            recompute_blocks(network)
        images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
        network(images).square().mean().backward()
        gradients = {name: value.grad for name, value in network.named_parameters()}
        states.append(gradients | network.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value)


# ---- docs/change-it.md

RECIPES = re.split(r"^## ", (ROOT / "docs" / "change-it.md").read_text(encoding="utf-8"), flags=re.M)[1:]


def split_channels():
    """Makes of the images of the prepared folder a file for each of two channels."""
    for folder in (train.TRAIN_IMG_DIR, train.VAL_IMG_DIR, "photos"):
        for path in list(Path(folder).iterdir()):
            for channel in range(2):
                plane = np.array(Image.open(path))[..., channel]
                Image.fromarray(plane).save(path.with_name(f"{path.stem}_000{channel}.png"))
            path.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=[text.splitlines()[0] for text in RECIPES])
def test_every_recipe_of_change_it_runs_as_it_stands(recipe, prepared, monkeypatch):
    monkeypatch.chdir(prepared)
    written = re.findall(r"^```python\n(.*?)^```$", recipe, flags=re.M | re.S)
    assert all(len(text.splitlines()) <= 20 for text in written)
    Path("mine.py").write_text("\n\n".join(written))
    for path in Path(train.VAL_IMG_DIR).iterdir():
        Path("photos").mkdir(exist_ok=True)
        (Path("photos") / path.name).write_bytes(path.read_bytes())
    if "_0000" in recipe:
        split_channels()
    if "--channels 4" in recipe:
        for path in [*Path("dataset").glob("augmented_*_images/*"), *Path("photos").iterdir()]:
            Image.open(path).convert("RGBA").save(path)
    commands = re.findall(r"python (train|predict)\.py([^`\n]*)", recipe)
    assert commands
    for script_name, words in commands:
        if script_name == "train":
            offline = ["--encoder-weights", "none"] if "--encoder " in words else []
            train.main([*SMALL, "--image-size", "64", "64", *shlex.split(words), *offline])
        else:
            assert predict.main(["--device", "cpu", *shlex.split(words)]) == 0
    if "def mask_of" in recipe:
        photo = min(Path("photos").iterdir())
        mask = Image.open(io.BytesIO(load_part("LOSS", "mine.py:mask_of", {})(photo.read_bytes())))
        assert np.array_equal(mask, predict.Predictor("best.pth")(photo))


# ---- networks of other projects


def smp_unet(in_channels, out_channels):
    smp = pytest.importorskip("segmentation_models_pytorch")
    return smp.Unet("resnet18", encoder_weights=None, in_channels=in_channels, classes=out_channels)


class Lraspp(nn.Module):
    """torchvision's, whose logits come in a dictionary."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.network = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=out_channels)

    def forward(self, x):
        return self.network(x)["out"]


@pytest.mark.slow
@pytest.mark.parametrize("network", [smp_unet, Lraspp])
def test_networks_of_other_projects_train_and_predict(network, prepared, monkeypatch):
    monkeypatch.chdir(prepared)
    monkeypatch.setattr(train, "NETWORK", network)
    train.main([*SMALL, "--image-size", "40", "56", "--encoder-weights", "none"])
    monkeypatch.setattr(predict, "NETWORK", network)
    assert predict.main([train.VAL_IMG_DIR, "--masks", train.VAL_MASK_DIR, "--device", "cpu", "--window", "64"]) == 0
