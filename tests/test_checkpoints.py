"""Checkpoints: what is saved comes back, what is damaged or foreign is refused, and a run goes on where it stopped."""

import os
import pickle
import random
import zipfile

import pytest
import torch
import torchvision
from helpers import ROOT, flags, script

import train
from parts import recipe
from parts.checkpoints import (
    Run,
    best_of,
    load_encoder_weights,
    load_network,
    load_pretrained,
    read_checkpoint,
    snapshot,
)
from parts.errors import UserError
from parts.masks import MaskRule
from parts.networks import build_network
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
    save_checkpoint({"state_dict": {"w": torch.zeros(3)}}, best, also=last)
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


def make_run(mask_rule, scored_on="same"):
    """A Run of four epochs as train.py has it."""
    architecture = dict(in_channels=3, out_channels=mask_rule.channels, features=[4, 8])
    model = build_network(**architecture)
    optimizer = recipe.make_optimizer(model, "adamw", 0.01, 0.0)
    schedule = recipe.Schedule(optimizer, "linear", 2, 4)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    s = train.settings(flags(NUM_EPOCHS=4))
    return Run(model, optimizer, schedule, scaler, architecture, mask_rule, None, scored_on, s)


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
)


def test_a_checkpoint_has_the_keys_that_it_always_had(tmp_path):
    run = saved_run(tmp_path / "run.pth", MaskRule())
    state = torch.load(tmp_path / "run.pth")
    assert list(state) == list(OLD_KEYS)
    assert all(isinstance(state[name], kind) for name, kind in OLD_KEYS.items())
    assert list(state["history"][0]) == ["epoch", "loss", "accuracy", "dice", "dice_nonempty", "iou", "learning_rate"]
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


def test_an_object_of_the_users_is_no_part_of_a_checkpoint(tmp_path):
    run = make_run(MaskRule())
    run.settings.TRANSFORM, run.settings.CLASSES = torch.nn.Identity(), {"road": (3, 4)}
    run.record(0.5, scores_of(MaskRule()))
    save_checkpoint(run.state(), tmp_path / "run.pth")
    settings = read_checkpoint(tmp_path / "run.pth")["settings"]
    assert "TRANSFORM" not in settings and settings["CLASSES"] == {"road": (3, 4)}


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
        (MaskRule().to_dict(), "wrong.pth.* 3 out"),
        (classes_rule("a", "b").to_dict(), "wrong.pth.* 3 out"),
        ({"of": "another program"}, "wrong.pth.*not understood"),
    ):
        torch.save(class_run.state() | {"mask_rule": mask_rule}, spoilt)
        with pytest.raises(UserError, match=expected):
            load_network(spoilt)
    torch.save(UNet(3, 300, (2, 2)).state_dict(), tmp_path / "many.pth")
    with pytest.raises(UserError, match="many.pth.* 300 out"):
        load_network(tmp_path / "many.pth")


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
