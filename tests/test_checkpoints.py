"""Checkpoints: what is saved comes back, what is damaged or foreign is refused, and a run goes on where it stopped."""

import copy
import functools
import itertools
import os
import pickle
import random
import zipfile
from functools import partial

import numpy as np
import pytest
import torch
import torchvision
from helpers import ROOT, flags, script

import train
from parts import checkpoints, recipe
from parts.checkpoints import (
    Run,
    best_of,
    load_encoder_weights,
    load_network,
    load_pretrained,
    read_checkpoint,
    save,
    snapshot,
)
from parts.errors import UserError
from parts.files import Provenance
from parts.masks import MaskRule, encode_mask
from parts.networks import build_network
from parts.predictions import PictureReader
from parts.scores import Scores
from unet import UNet
from utils import load_checkpoint, save_checkpoint


@pytest.fixture
def network():
    torch.manual_seed(0)
    return UNet(features=(4, 8))


@pytest.fixture
def saved(tmp_path, network):
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.rand(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    path = tmp_path / "checkpoint.pth"
    save_checkpoint({"state_dict": network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}, path)
    return path


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# ---- files


def test_what_was_saved_comes_back(saved, network):
    checkpoint = read_checkpoint(saved)
    assert checkpoint["epoch"] == 3 and equal(checkpoint["state_dict"], network.state_dict())
    other = UNet(features=(4, 8))
    load_checkpoint(checkpoint, other)
    assert equal(other.state_dict(), network.state_dict())
    assert equal(torch.load(saved)["state_dict"], network.state_dict())  # as the article reads it


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", None])
def test_other_layouts_are_read(tmp_path, network, prefix, key):
    weights = {prefix + name: value for name, value in network.state_dict().items()}
    content = weights
    if key:
        content = {key: weights}
    torch.save(content, tmp_path / "other.pth")
    assert equal(read_checkpoint(tmp_path / "other.pth")["state_dict"], network.state_dict())


def test_a_file_in_pytorchs_old_format_is_read(tmp_path, network):
    torch.save(network.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert equal(read_checkpoint(tmp_path / "old.pth")["state_dict"], network.state_dict())


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_hostile_file_is_refused_and_not_run(tmp_path):
    trap = tmp_path / "trap"
    torch.save({"state_dict": Hostile(trap)}, tmp_path / "hostile.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Hostile(trap), protocol=2))
    for name in ("hostile.pth", "plain.pth"):
        with pytest.raises(UserError, match=name):
            read_checkpoint(tmp_path / name)
    assert not trap.exists()
    torch.load(tmp_path / "hostile.pth", weights_only=False)  # the trap is a real one
    assert trap.exists()


def test_foreign_files_are_refused_by_name(tmp_path, saved):
    whole = saved.read_bytes()
    with zipfile.ZipFile(tmp_path / "zip.pth", "w") as archive:
        archive.writestr("readme", "hello")
    contents = {
        "empty.pth": b"",
        "text.pth": b"not a checkpoint\n",
        "short.pth": whole[: len(whole) // 2],
        "tail.pth": whole[:-40],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"epoch": 1}, tmp_path / "noweights.pth")
    for name in [*contents, "zip.pth", "list.pth", "noweights.pth", "absent.pth"]:
        with pytest.raises(UserError, match=name):
            read_checkpoint(tmp_path / name)
    with pytest.raises(UserError, match="no such checkpoint"):
        read_checkpoint(tmp_path)


def test_a_flipped_byte_is_refused_or_harmless(saved):
    whole = saved.read_bytes()
    expected = read_checkpoint(saved)
    draw, refused = random.Random(0), 0
    for _ in range(200):
        place = draw.randrange(len(whole))
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        saved.write_bytes(damaged)
        try:
            checkpoint = read_checkpoint(saved)
        except UserError as error:
            assert saved.name in str(error)
            refused += 1
            continue
        assert equal(checkpoint["state_dict"], expected["state_dict"]) and checkpoint["epoch"] == 3
        for index, state in expected["optimizer"]["state"].items():
            assert equal(checkpoint["optimizer"]["state"][index], state)
    assert refused > 100


def test_another_architecture_is_refused_whole(saved):
    for other in (UNet(features=(4, 16)), UNet(features=(4, 8, 8))):
        before = {key: value.clone() for key, value in other.state_dict().items()}
        with pytest.raises(UserError, match="another architecture"):
            load_checkpoint(read_checkpoint(saved), other)
        assert equal(other.state_dict(), before)


def test_best_and_last_are_one_file_until_one_is_replaced(tmp_path):
    last, best = tmp_path / "checkpoint.pth", tmp_path / "best.pth"
    save({"state_dict": {"w": torch.zeros(3)}}, best, also=last)
    assert last.samefile(best)
    save_checkpoint({"state_dict": {"w": torch.ones(3)}}, last)
    assert torch.load(best)["state_dict"]["w"].sum() == 0 and torch.load(last)["state_dict"]["w"].sum() == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pth", "checkpoint.pth"]


@pytest.mark.slow
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path):
    """The size of a file is limited in the child, as a full disk would limit it."""
    path = tmp_path / "checkpoint.pth"
    save_checkpoint({"state_dict": {"w": torch.zeros(10)}}, path)
    before = path.read_bytes()
    code = (
        "import resource, signal, torch, utils\nfrom parts import errors\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        f"errors.run(lambda: utils.save_checkpoint({{'state_dict': {{'w': torch.zeros(10**6)}}}}, {str(path)!r}))"
    )
    done = script("-c", code, cwd=ROOT)
    assert done.returncode == 2 and "checkpoint.pth" in done.stderr and "Traceback" not in done.stderr
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_network_comes_back_as_what_it_was(tmp_path, saved, network):
    loaded, checkpoint = load_network(saved)  # a file that does not say what network it is of
    assert equal(loaded.state_dict(), network.state_dict()) and not loaded.training and checkpoint["epoch"] == 3
    other = build_network(encoder="resnet18")
    torch.save({"state_dict": other.state_dict(), "network": {"encoder": "resnet18"}}, tmp_path / "encoder.pth")
    assert equal(load_network(tmp_path / "encoder.pth")[0].state_dict(), other.state_dict())
    torch.save({"state_dict": {"backbone.w": torch.zeros(2), "head.w": torch.zeros(2)}}, tmp_path / "others.pth")
    with pytest.raises(UserError, match="the first are called 'backbone.w', 'head.w'. If another program has saved it"):
        load_network(tmp_path / "others.pth")


# ---- runs


def classes_rule(*names):
    """The MaskRule of classes of the values 0, 1, ...; that of one foreground without names."""
    if not names:
        return MaskRule()
    return MaskRule(background=(), foreground=(), classes=tuple(range(len(names))), names=names)


def scores_of(mask_rule):
    """Scores of two images; the last class is in none of them."""
    classes = None
    if mask_rule.names:
        count = len(mask_rule.names)
        columns = dict(dice=[0.5] * (count - 1) + [None], iou=[0.4] * (count - 1) + [None], share=[0.5] * count)
        classes = dict(names=list(mask_rule.names), confusion=[[1] * count] * count, **columns)
    return Scores(0.75, 0.5, 0.4, 0.3, 0.6, 0.7, per_image=[0.25, 0.75], classes=classes)


SIDES = ("training", "validation")


def make_run(mask_rule, scored_on="same"):
    """A Run of four epochs as train.py has it."""
    architecture = dict(in_channels=3, out_channels=mask_rule.channels, features=[4, 8])
    model = build_network(**architecture)
    optimizer = recipe.make_optimizer(model, "adamw", 0.01, 0.0)
    schedule = recipe.Schedule(optimizer, "linear", 2, 4)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    s = copy.copy(four_epochs())
    data = {side: Provenance(1, {}, {"images": {"a.png": "12"}, "masks": {"a.png": "34"}}) for side in SIDES}
    return Run(model, optimizer, schedule, scaler, architecture, mask_rule, None, scored_on, data, s)


@functools.cache
def four_epochs():
    return train.settings(flags(NUM_EPOCHS=4))


def saved_run(path, mask_rule):
    """A Run whose first epoch is saved in `path`."""
    run = make_run(mask_rule)
    run.record(0.5, scores_of(mask_rule))
    save_checkpoint(run.state(), path)
    return run


@pytest.fixture
def class_run(tmp_path):
    """A Run on three classes, saved in classes.pth."""
    return saved_run(tmp_path / "classes.pth", classes_rule("sky", "road", "car"))


def test_a_run_on_classes_goes_on_with_its_scores(tmp_path, class_run):
    run = make_run(class_run.mask_rule)
    run.resume(tmp_path / "classes.pth")
    assert run.scores == class_run.scores and equal(run.model.state_dict(), class_run.model.state_dict())
    assert run.history == class_run.history and run.since == 0 and run.best["dice_road"] == 0.5
    assert run.history[0]["dice_car"] is None and run.epochs_since_best == 0
    other = make_run(class_run.mask_rule, scored_on="another")
    other.resume(tmp_path / "classes.pth")
    assert (other.since, other.scores, len(other.history)) == (1, None, 1)


# Whoever has a checkpoint goes on with it: its keys, and the types of their values.
OLD_KEYS = dict(
    state_dict=dict,
    optimizer=dict,
    schedule=dict,
    scaler=dict,
    epoch=int,
    best_dice=float,
    history=list,
    since=int,
    scores=dict,
    scored_on=str,
    network=dict,
    mask_rule=dict,
    image_size=list,
    crop=type(None),
    image_range=type(None),
    settings=dict,
    processes=int,
    data=dict,
)


def test_a_checkpoint_has_the_keys_that_it_always_had(tmp_path):
    run = saved_run(tmp_path / "run.pth", MaskRule())
    state = torch.load(tmp_path / "run.pth")
    assert list(state) == list(OLD_KEYS)
    assert all(isinstance(state[name], kind) for name, kind in OLD_KEYS.items())
    columns = ["epoch", "loss", "val_loss", "accuracy", "dice", "dice_nonempty", "iou", "learning_rate"]
    assert list(state["history"][0]) == columns
    assert state["scores"] == vars(run.scores) and state["best_dice"] == 0.5
    assert "NUM_EPOCHS" in state["settings"] and "OUTPUT_DIR" not in state["settings"]


def test_a_run_from_before_there_were_classes_goes_on(tmp_path):
    path = tmp_path / "old.pth"
    before = saved_run(path, MaskRule())
    old = torch.load(path)
    del old["scores"]["classes"]
    for name in ("ignored", "classes", "names", "colours"):
        del old["mask_rule"][name]
    torch.save(old, path)
    run = make_run(MaskRule())
    run.resume(path)
    assert run.scores == before.scores
    assert load_network(path)[1]["mask_rule"] == old["mask_rule"]


def test_the_articles_checkpoint_is_gone_on_from(saved):
    """It has no history, and an optimizer whose state does not fit: that starts anew."""
    run = make_run(MaskRule())
    run.resume(saved)
    assert equal(run.model.state_dict(), torch.load(saved)["state_dict"])
    assert (run.history, run.since, run.scores) == ([], 0, None)


def test_a_checkpoint_keeps_the_name_of_an_object_of_the_users(tmp_path):
    run = make_run(MaskRule())
    run.settings.TRANSFORM, run.settings.CLASSES = torch.nn.Identity(), {"road": (3, 4)}
    run.record(0.5, scores_of(MaskRule()))
    save_checkpoint(run.state(), tmp_path / "run.pth")
    settings = read_checkpoint(tmp_path / "run.pth")["settings"]
    assert settings["TRANSFORM"] == "linear.py:Identity" and settings["CLASSES"] == {"road": (3, 4)}


@pytest.mark.parametrize("names", [("sky", "road"), ("road", "sky", "car"), ("sky", "road", "bus"), ()])
def test_a_run_on_other_classes_is_refused_in_words(tmp_path, class_run, names):
    run = make_run(classes_rule(*names))
    before = {key: value.clone() for key, value in run.model.state_dict().items()}
    with pytest.raises(UserError) as told:
        run.resume(tmp_path / "classes.pth")
    message = str(told.value)
    assert "has the classes sky, road, car" in message and (", ".join(names) or "one foreground") in message
    assert "CLASSES" in message and "--pretrained" in message and equal(run.model.state_dict(), before)


@pytest.mark.parametrize("names", [("sky", "road", "car"), ("sky", "road", "bus"), ("sky", "road"), ()])
def test_weights_of_other_classes_keep_all_but_the_output_layer(tmp_path, class_run, names, capsys):
    mask_rule = classes_rule(*names)
    fresh = build_network(in_channels=3, out_channels=mask_rule.channels, features=[4, 8])
    before = fresh.state_dict()["output_conv.weight"].clone()
    load_pretrained(tmp_path / "classes.pth", fresh, mask_rule)
    own, saved = fresh.state_dict(), class_run.model.state_dict()
    assert torch.equal(own["middle.conv.0.weight"], saved["middle.conv.0.weight"])
    same = names == class_run.mask_rule.names
    expected = before
    if same:
        expected = saved["output_conv.weight"]
    assert torch.equal(own["output_conv.weight"], expected)
    assert ("the output layer starts anew" in capsys.readouterr().out) != same


@pytest.mark.parametrize(("there", "here", "filters"), [
    (3, 1, lambda rgb: rgb.sum(1, keepdim=True)),
    (3, 4, lambda rgb: rgb[:, [0, 1, 2, 0]] * 0.75),
    (1, 3, lambda grey: grey.expand(-1, 3, -1, -1) / 3),
    (3, 3, lambda rgb: rgb),
])  # fmt: skip
@pytest.mark.parametrize("network", [{}, dict(network="attention"), dict(encoder="resnet18")])
def test_weights_for_other_channels_are_adapted_in_the_first_layer(tmp_path, network, there, here, filters, capsys):
    old, new = (build_network(channels, 1, [4, 8], pads=True, **network) for channels in (there, here))
    torch.save(dict(state_dict=old.state_dict()), tmp_path / "old.pth")
    load_pretrained(tmp_path / "old.pth", new)
    saved, loaded = old.state_dict(), new.state_dict()
    first = [name for name in saved if saved[name].shape[1:2] == (there,) and saved[name].dim() == 4]
    normalised = [name for name in first if name in ("mean", "std")]
    assert len(first) - len(normalised) == 1 + bool(normalised)  # of an encoder, and beside it at full size
    for name in saved:
        wanted = filters(saved[name]) if name in first else saved[name]
        assert name in normalised or torch.allclose(loaded[name], wanted), name
    told = f"its images have {there} channels, and these {here}: the first layer's filters are adapted."
    assert (told in capsys.readouterr().out) == (there != here)
    new.eval()(torch.rand(1, here, 32, 32))


def test_a_network_of_classes_comes_back_with_their_names(tmp_path, class_run):
    loaded, checkpoint = load_network(tmp_path / "classes.pth")
    assert equal(loaded.state_dict(), class_run.model.state_dict())
    assert MaskRule.from_dict(checkpoint["mask_rule"]) == class_run.mask_rule
    torch.save(class_run.model.state_dict(), tmp_path / "foreign.pth")  # says nothing of its classes
    loaded, checkpoint = load_network(tmp_path / "foreign.pth")
    foreign = MaskRule.from_dict(checkpoint["mask_rule"])
    assert loaded.output_conv.out_channels == foreign.channels == 3
    assert (foreign.classes, foreign.names) == ((0, 1, 2), ("0", "1", "2"))


def test_a_network_whose_channels_are_not_its_classes_is_refused(tmp_path, class_run):
    spoilt = tmp_path / "wrong.pth"
    for mask_rule, expected in (
        (MaskRule().to_dict(), "wrong.pth.* 3 channels out"),
        (classes_rule("a", "b").to_dict(), "wrong.pth.* 3 channels out"),
        ({"of": "another program"}, "wrong.pth.*not understood"),
    ):
        torch.save(class_run.state() | {"mask_rule": mask_rule}, spoilt)
        with pytest.raises(UserError, match=expected):
            load_network(spoilt)
    torch.save(UNet(3, 300, (2, 2)).state_dict(), tmp_path / "many.pth")
    with pytest.raises(UserError, match="many.pth.* 300 channels out"):
        load_network(tmp_path / "many.pth")


# ---- values that a file may not hold


WRONG = (None, -1, 1.5, 10**9, 10**400, "x", [], [None], [-4, 8], {"a": 1}, {5: 1}, torch.zeros(2), True)


def spoilt(content, place, value):
    """The same dictionary with another value at a place such as ("network", "features", 0); the rest is shared."""
    if not place:
        return value
    other = copy.copy(content)
    other[place[0]] = spoilt(content[place[0]], place[1:], value)
    return other


def places(content, before=()):
    """All places in a checkpoint but those of weights, and of most of what repeats itself."""
    if isinstance(content, dict):
        names = [name for name in content if name not in ("state_dict", "optimizer")]
        if before == ("settings",):
            names = ["PRECISION", "CLASSES"]
    elif isinstance(content, list):
        names = list(range(len(content)))[-1:]
    else:
        return
    for name in names:
        yield (*before, name)
        yield from places(content[name], (*before, name))


def used_by_predict(path):
    """What predict.py does with a checkpoint, without a picture."""
    loaded, checkpoint = load_network(path)
    if loaded.output_conv.out_channels > 1:
        mask_rule = MaskRule.from_dict(checkpoint["mask_rule"])
        encode_mask(np.zeros((2, 2), np.uint8), mask_rule)
        assert mask_rule.describe()
    height, width = checkpoint.get("image_size") or (1, 1)
    assert 0 < height * width <= 10**8
    PictureReader((height, width), checkpoint.get("image_range"))
    assert all(name.upper() for name in checkpoint["settings"]) and f"{checkpoint.get('epoch')}"


def gone_on_from(path, mask_rule):
    """What train.py does with a checkpoint: it goes on for an epoch."""
    run = make_run(mask_rule)
    run.resume(path)
    run.model(torch.rand(2, 3, 8, 8)).sum().backward()
    run.optimizer.step()
    run.record(0.5, scores_of(mask_rule))
    assert run.state() and run.epochs_since_best == len(run.history) - run.best["epoch"]


def load_for_a_new_run(path, mask_rule):
    network = build_network(in_channels=3, out_channels=mask_rule.channels, features=[4, 8])
    load_pretrained(path, network, mask_rule)


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_a_value_of_another_kind_is_refused_with_the_file_or_does_no_harm(tmp_path, monkeypatch, every):
    """Every key, and what is in it, with each of the WRONG values; without a file, which would take time."""
    mask_rule = classes_rule("sky", "road", "car")
    whole = saved_run(tmp_path / "run.pth", mask_rule).state()
    content = {}
    monkeypatch.setattr(checkpoints, "read_checkpoint", lambda *_: dict(content, history=copy.copy(content["history"])))
    everywhere = [used_by_predict, partial(gone_on_from, mask_rule=mask_rule)]
    refused, tracebacks = 0, []
    cases = list(itertools.product(places(whole), WRONG))
    for place, value in cases[::every]:
        content = spoilt(whole, place, value)
        uses = everywhere
        if place[0] == "mask_rule":
            uses = [*everywhere, partial(load_for_a_new_run, mask_rule=mask_rule)]
        for use in uses:
            try:
                use("spoilt.pth")
            except UserError as error:
                refused += 1
                assert "spoilt.pth" in str(error)
            except Exception as error:
                tracebacks.append((use, place, value, error))
    assert refused > len(cases) // every // 2 and not tracebacks


@pytest.mark.parametrize("value", [1.5, {"a": 1.5}])
@pytest.mark.parametrize(
    "name", ["CHANNELS", "CLASSES", "FIT", "IMAGE_NAME", "MASK_FOREGROUND", "MASK_IGNORE", "PICTURE_BANDS"]
)
def test_a_constant_that_predict_takes_from_a_file_is_refused_with_the_file(tmp_path, network, name, value):
    torch.save(dict(state_dict=network.state_dict(), settings={name: value}), tmp_path / "odd.pth")
    with pytest.raises(UserError, match=f"odd.pth: its settings.*{name}"):
        load_network(tmp_path / "odd.pth")


def repeated(tensor):
    return tensor.as_strided(tensor.shape, [0] * tensor.dim())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state["state_dict"].update({5: torch.zeros(1)}), "weights hold 5"),
        (lambda state: change_weights(state, torch.Tensor.to_sparse), "no dense tensor"),
        (lambda state: change_weights(state, lambda value: value.to("meta")), "no dense tensor"),
        (lambda state: change_weights(state, repeated), "no dense tensor"),
        (lambda state: change_weights(state, lambda value: value.to(torch.complex64)), "no dense tensor"),
        (lambda state: state["network"].update(features=[10**6, 10**6]), "another architecture"),
        (lambda state: state["network"].update(features=[10**9, 10**9]), "from 1 to"),
        (lambda state: state["network"].update(features=[4] * 40), "1 to 16 entries"),
        (lambda state: state["network"].update(in_channels=10**9), "from 1 to"),
        (lambda state: state.update(image_size=[10**6, 10**6]), "100,000,000 pixels"),
        (lambda state: state["network"].update(encoder="resnet18", in_channels=1), "another architecture"),
    ],
)
def test_memory_that_a_file_does_not_have_is_not_taken(tmp_path, change, message):
    state = saved_run(tmp_path / "run.pth", MaskRule()).state()
    change(state)
    torch.save(state, tmp_path / "spoilt.pth")
    with pytest.raises(UserError, match=message) as told:
        load_network(tmp_path / "spoilt.pth")
    assert "spoilt.pth" in str(told.value)


def change_weights(state, function):
    state["state_dict"] = {name: function(value) for name, value in state["state_dict"].items()}


def test_numbers_that_weights_share_are_counted(tmp_path):
    """A network of many levels could be made of the same few numbers, and be larger than the file many times."""
    numbers = torch.zeros(10**5)
    torch.save({str(index): numbers for index in range(30)}, tmp_path / "shared.pth")
    with pytest.raises(UserError, match="shared.pth.*larger than the file"):
        read_checkpoint(tmp_path / "shared.pth")


def test_compressed_records_are_refused_before_they_are_read(tmp_path, saved, monkeypatch):
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(tmp_path / "small.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    monkeypatch.setattr(zipfile.ZipFile, "testzip", None)
    with pytest.raises(UserError, match="small.pth.*compressed"):
        read_checkpoint(tmp_path / "small.pth")


def test_moments_of_another_shape_start_anew(tmp_path, capsys):
    """Fused Adam would read and write beyond their ends."""
    run = make_run(MaskRule())
    run.model(torch.rand(2, 3, 8, 8)).sum().backward()
    run.optimizer.step()
    run.record(0.5, scores_of(MaskRule()))
    whole = snapshot(run.state())
    moments = whole["optimizer"]["state"][0]
    for name, value in (
        ("exp_avg", torch.zeros(2)),
        ("exp_avg", "x"),
        ("exp_avg", repeated(moments["exp_avg"])),
        ("step", torch.zeros(3)),
        ("step", torch.tensor(float("inf"))),
        ("step", torch.tensor(-1.0)),
        ("max", 1),
    ):
        torch.save(spoilt(whole, ("optimizer", "state", 0), moments | {name: value}), tmp_path / "moments.pth")
        gone_on_from(tmp_path / "moments.pth", MaskRule())
        assert "The optimizer starts anew" in capsys.readouterr().out


def test_moments_have_the_strides_of_their_parameters(tmp_path, capsys):
    """Whatever theirs were on another device, and where they overlap."""
    run = make_run(MaskRule())
    run.model(torch.rand(2, 3, 8, 8)).sum().backward()
    run.optimizer.step()
    run.record(0.5, scores_of(MaskRule()))
    state = run.state()
    for moments in state["optimizer"]["state"].values():
        if moments["exp_avg"].dim() == 4:
            moments["exp_avg"] = moments["exp_avg"].to(memory_format=torch.channels_last)
    torch.save(state, tmp_path / "moments.pth")
    other = make_run(MaskRule())
    other.resume(tmp_path / "moments.pth")
    for parameter, expected in zip(other.model.parameters(), run.model.parameters()):
        moment = other.optimizer.state[parameter]["exp_avg"]
        assert moment.stride() == parameter.stride() and torch.equal(moment, run.optimizer.state[expected]["exp_avg"])
    assert "anew" not in capsys.readouterr().out


@pytest.mark.parametrize("key", [key for key in OLD_KEYS if key != "state_dict"])
def test_a_key_may_be_missing(tmp_path, class_run, key):
    """As in files of older versions and of other programs. Without a history its scores say nothing."""
    state = class_run.state()
    del state[key]
    torch.save(state, tmp_path / "less.pth")
    used_by_predict(tmp_path / "less.pth")
    gone_on_from(tmp_path / "less.pth", class_run.mask_rule)
    run = make_run(class_run.mask_rule)
    run.resume(tmp_path / "less.pth")
    assert (run.scores is None) == (key in ("history", "scores"))


def test_what_another_program_keeps_under_our_names_is_left_out(tmp_path, network):
    other = dict(network="unet", settings=[1], mask_rule=7, epoch="last", state_dict=network.state_dict())
    torch.save(other, tmp_path / "other.pth")
    checkpoint = load_network(tmp_path / "other.pth")[1]
    assert checkpoint == dict(network={}, settings={})


def test_the_best_epoch_is_not_one_that_predicts_nothing():
    """On a mostly empty set such an epoch has the higher mean; the first of several equal ones is the best."""
    nothing, something = dict(epoch=1, dice=0.83, dice_nonempty=0.0), dict(epoch=2, dice=0.66, dice_nonempty=0.5)
    assert best_of([nothing, something, something | dict(epoch=3)]) is something
    assert best_of([dict(dice=0.2), dict(dice=0.4)]) == dict(dice=0.4)  # of a checkpoint from before there were two


def test_a_snapshot_does_not_change_when_training_goes_on():
    network = UNet(3, 1, (4, 8))
    optimizer = recipe.make_optimizer(network, "adamw", 0.01, 0.0)
    network(torch.rand(2, 3, 16, 16)).sum().backward()
    optimizer.step()
    history = [dict(epoch=1)]
    state = dict(weights=network.state_dict(), optimizer=optimizer.state_dict(), history=history, pair=(1, None))
    kept, weights = snapshot(state), {key: value.clone() for key, value in network.state_dict().items()}
    moments = kept["optimizer"]["state"][0]["exp_avg"].clone()
    optimizer.step()
    history.append(dict(epoch=2))
    assert equal(kept["weights"], weights)
    assert torch.equal(kept["optimizer"]["state"][0]["exp_avg"], moments)
    assert not torch.equal(optimizer.state_dict()["state"][0]["exp_avg"], moments)
    assert kept["history"] == [dict(epoch=1)] and kept["pair"] == (1, None)


# ---- weights of encoders


def with_weights(name, weights):
    network = build_network(encoder=name)
    load_encoder_weights(network, name, weights)
    return network


def test_weights_of_a_file_arrive_and_those_of_another_network_are_refused(tmp_path):
    torch.manual_seed(1)
    whole = torchvision.models.resnet18(weights=None)
    torch.save(whole.state_dict(), tmp_path / "resnet18.pth")
    network = with_weights("resnet18", str(tmp_path / "resnet18.pth"))
    assert torch.equal(network.state_dict()["encoder.layer4.0.conv1.weight"], whole.layer4[0].conv1.weight)
    with pytest.raises(UserError, match="another architecture"):
        with_weights("vgg11_bn", str(tmp_path / "resnet18.pth"))
    other = build_network(4, encoder="resnet18")
    load_encoder_weights(other, "resnet18", str(tmp_path / "resnet18.pth"))
    repeated = whole.conv1.weight[:, [0, 1, 2, 0]] * 0.75
    assert torch.allclose(other.state_dict()["encoder.conv1.weight"], repeated), "filters for RGB, repeated"


def test_weights_out_of_reach_are_told_with_their_place(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there: no network, wherever this runs
    with pytest.raises(UserError) as told:
        with_weights("resnet18", "DEFAULT")
    assert str(tmp_path) in str(told.value) and "resnet18-" in str(told.value) and "None" in str(told.value)
    with pytest.raises(UserError, match="IMAGENET1K_V1"):
        with_weights("resnet18", "IMAGENET99")


def test_weights_in_torchvisions_cache_are_used_and_damaged_ones_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    name = torchvision.models.ResNet18_Weights.DEFAULT.url.rpartition("/")[2]
    file = tmp_path / "hub" / "checkpoints" / name
    file.parent.mkdir(parents=True)
    whole = torchvision.models.resnet18(weights=None)
    torch.save(whole.state_dict(), file)
    network = with_weights("resnet18", "DEFAULT")
    assert torch.equal(network.state_dict()["encoder.conv1.weight"], whole.conv1.weight)
    file.write_bytes(file.read_bytes()[:100_000])
    with pytest.raises(UserError, match=name):
        with_weights("resnet18", "DEFAULT")


def test_files_without_batchnorms_counters_or_with_another_classifier_load(tmp_path):
    whole = torchvision.models.resnet18(weights=None, num_classes=7)
    old = {key: value for key, value in whole.state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    network = with_weights("resnet18", str(tmp_path / "old.pth"))
    assert torch.equal(network.state_dict()["encoder.layer1.0.conv1.weight"], whole.layer1[0].conv1.weight)
