"""Checkpoints: what a run saves, verified when it is read, and resumed.

Nothing in a file is executed.
"""

import pickle
import urllib.error
import zipfile
from pathlib import Path

import torch

from parts import processes
from parts.errors import UserError
from parts.masks import IGNORED, MaskRule
from parts.networks import build_network
from parts.options import plain
from parts.scores import Scores

_WEIGHT_KEYS = ("state_dict", "model_state_dict", "model")  # ours and the article's; then other layouts
_PREFIXES = ("_orig_mod.", "module.")  # torch.compile and DistributedDataParallel put these before keys


def set_aside(output):
    """A new run in an old one's folder leaves the old one's work under another name, until the next new one."""
    for name in ("checkpoint.pth", "best.pth", "history.csv"):
        old = output / name
        if old.exists():
            kept = old.replace(output / f"{old.stem}.previous{old.suffix}")
            print(f"{old} of an earlier run is now {kept}")


def read_checkpoint(filename, device="cpu"):
    """The dictionary in `filename`, its weights under `state_dict` without a wrapper's prefixes.

    Every record's CRC is checked first, so a damaged file is refused rather than loaded wrong, and
    only tensors and plain types are unpickled. Files of the article's code, bare state dicts and
    those of torch.compile or DistributedDataParallel are read too. UserError names what is wrong.
    """
    expected = "Expected a file that train.py saved, or another PyTorch file with a state_dict"
    path = Path(filename)
    if not path.is_file():
        raise UserError(f"{path}: there is no such checkpoint. Train first, or name another file.")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged:
                raise UserError(f"{path}: damaged (checksum of {damaged}). Use another checkpoint.")
        checkpoint = torch.load(path, map_location=device, weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: refused, because it is damaged or holds more than tensors and plain values, "
            f"which could run code. {expected}."  # PyTorch's own words tell how to run it
        ) from error
    except Exception as error:  # a truncated or foreign file fails in many ways, all of them meaning this
        raise UserError(f"{path}: not a readable checkpoint ({_first_line(error)}). {expected}.") from error
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path}: holds a {type(checkpoint).__name__}. {expected}.")
    key = next((key for key in _WEIGHT_KEYS if isinstance(checkpoint.get(key), dict)), None)
    weights = checkpoint.pop(key) if key else checkpoint
    if not key:  # bare weights; some programs keep a list or two beside them
        weights = {name: value for name, value in weights.items() if isinstance(value, torch.Tensor)}
    if not weights or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise UserError(f"{path}: holds no weights. {expected}.")
    return (checkpoint if key else {}) | {"state_dict": without_prefixes(weights)}


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def without_prefixes(weights):
    """The same state dict, its keys as the bare network has them."""
    for prefix in _PREFIXES * 2:  # either wrapper may be the outer one
        if weights and all(key.startswith(prefix) for key in weights):
            weights = {key[len(prefix) :]: value for key, value in weights.items()}
    return weights


def load_checkpoint(checkpoint, model, source="the checkpoint"):
    """Puts the weights of `checkpoint` (a dictionary with `state_dict`) into `model`, all or nothing.

    UserError: they are of another network.
    """
    print("=> Loading checkpoint")
    load_weights(model, without_prefixes(checkpoint["state_dict"]), source)


def load_weights(model, weights, source):
    own = model.state_dict()
    missing = [key for key in own if key not in weights]
    foreign = [key for key in weights if key not in own]
    shapes = [
        f"{key} is {tuple(weights[key].shape)} there and {tuple(own[key].shape)} here"
        for key in own
        if key in weights and own[key].shape != weights[key].shape
    ]
    if missing or foreign or shapes:
        words = [f"{source} belongs to another architecture (FEATURES, ENCODER or the channels differ):"]
        for label, items in (("lacks", missing), ("has, unknown here,", foreign), ("misfit:", shapes)):
            if items:
                more = f" and {len(items) - 3} more" if len(items) > 3 else ""
                words.append(f"  {label} {', '.join(items[:3])}{more}")
        raise UserError("\n".join(words))
    model.load_state_dict(weights)


# These settings change where a run happens, not what becomes of it.
_OUTSIDE = ["LOAD_MODEL", "DEMO", "OUTPUT_DIR", "NUM_WORKERS", "PIN_MEMORY", "ARRAYS", "PICTURE_BATCHES"]


def run_state(
    model, optimizer, schedule, scaler, history, since, scores, s, architecture, mask_rule, scored_on, value_range=None
):
    """The checkpoint of a run with the settings `s`, in tensors and plain types: all that `resume` needs.

    Random draws need no place here: the order of the images, the flips and a transform's draws come from
    generators made of (SEED, epoch, index), so that an epoch is the same whoever reaches it.
    """
    return dict(
        state_dict=model.state_dict(),
        optimizer=optimizer.state_dict(),
        schedule=schedule.state_dict(),
        scaler=scaler.state_dict(),
        epoch=len(history),
        best_dice=best_of(history[since:])["dice"],
        history=history,
        since=since,
        scores=vars(scores),
        scored_on=scored_on,
        network=architecture,
        mask_rule=mask_rule.to_dict(),
        image_size=s.IMAGE_SIZE and list(s.IMAGE_SIZE),
        crop=s.CROP and list(s.CROP),
        image_range=value_range and list(value_range),
        settings={name: value for name, value in plain(s).items() if name not in _OUTSIDE},
        processes=processes.world_size(),
    )


def snapshot(state):
    """A copy of a checkpoint's dictionary on the CPU, which training that goes on does not change."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: snapshot(it) for key, it in state.items()}
    return type(state)(map(snapshot, state)) if isinstance(state, (list, tuple)) else state


def resume(path, model, optimizer, schedule, scaler, s, scored_on, mask_rule=None):
    """Goes on from the checkpoint `path`, exactly: (history, since, the last Scores).

    `mask_rule`, the masks' MaskRule, must be of the classes that the checkpoint's network has.

    `history` has a dictionary for each epoch. Where other validation images, another IMAGE_SIZE or another
    reading of the masks are `scored_on`, old scores do not compare: the best epoch is looked for after `since`,
    and the last Scores are None. Says that, and which settings were others when it was saved.
    UserError: it is of another network or other classes, unreadable, or has all its epochs behind it.
    """
    saved = read_checkpoint(path, next(model.parameters()).device)
    if other := _other_classes(saved, mask_rule):
        raise UserError(
            f"{path}: {other}. Going on needs the same ones, in the same order (CLASSES). To start a new run from "
            f"these weights, leave LOAD_MODEL off and set PRETRAINED (--pretrained {path})."
        )
    load_checkpoint(saved, model, str(path))
    history = saved.get("history", [])
    if len(history) >= s.NUM_EPOCHS:
        raise UserError(
            f"{path}: has all of its {len(history)} epochs behind it, and NUM_EPOCHS = {s.NUM_EPOCHS} counts those of "
            f"the whole run. To go on, give a larger one (--num-epochs {2 * len(history)}); to start a new run from "
            f"these weights, leave LOAD_MODEL off and set PRETRAINED (--pretrained {path})."
        )
    own = [{key: it for key, it in group.items() if key != "params"} for group in optimizer.param_groups]
    for name, part in dict(optimizer=optimizer, schedule=schedule, scaler=scaler).items():
        if saved.get(name):
            try:
                part.load_state_dict(saved[name])
            except (ValueError, KeyError, RuntimeError) as error:
                print(f"The {name} starts anew: its state in {path} does not fit ({error}).")
    for group, kept in zip(optimizer.param_groups, own):
        group.update(kept)  # WEIGHT_DECAY and the like are those of now, not the saved ones
    before = saved.get("settings", {}) | {"PROCESSES": saved.get("processes", 1)}
    now = vars(s) | {"PROCESSES": processes.world_size()}
    changed = [f"{name} {before[name]!r} -> {now[name]!r}" for name in now if before.get(name, now[name]) != now[name]]
    same = saved.get("scored_on", scored_on) == scored_on
    since = saved.get("since", 0) if same else len(history)
    if processes.rank() == 0:
        if changed:
            print("Not the run that would have been, for these have changed: " + ", ".join(changed))
        best = f", best Dice {best_of(history[since:])['dice']:.4f}" if history[since:] else ""
        print(f"Going on after epoch {len(history)}{best}")
        if not same:
            print(
                "The validation images, IMAGE_SIZE or what the masks mean are not those of before, so the old scores "
                "do not compare: the best Dice, best.pth and PATIENCE start anew."
            )
    return history, since, Scores(**saved["scores"]) if same and "scores" in saved else None


def best_of(history):
    """The epoch that is chosen, the first of several: see selection_dice."""
    return max(history, key=lambda row: row.get("dice_nonempty", row["dice"]))


def _other_classes(checkpoint, mask_rule):
    """In words, that the checkpoint's network has other classes than masks read by `mask_rule`; None where it has not.

    Files of other programs do not say which classes they have: None.
    """
    saved = checkpoint.get("mask_rule")
    if mask_rule is None or not isinstance(saved, dict):
        return None
    old, new = list(saved.get("names", ())), list(mask_rule.names)
    return f"its network has {_listed_classes(old)}, and the masks have {_listed_classes(new)}" if old != new else None


def _listed_classes(names):
    """The names of classes in words, the first of very many."""
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return f"the classes {', '.join(names[:12])}{more}" if names else "one foreground"


def load_pretrained(path, model, mask_rule=None):
    """Puts the weights of a checkpoint into `model`, for a new run on masks that are read by `mask_rule` (MaskRule).

    An output layer for other classes stays as it is, random, and this is said. UserError: it is of another network.
    """
    saved = read_checkpoint(path)
    weights, own = saved["state_dict"], model.state_dict()
    head = [key for key in weights if key.startswith("output_conv.") and key in own]
    other = _other_classes(saved, mask_rule)
    if not other and any(weights[key].shape != own[key].shape for key in head):
        shapes = weights["output_conv.weight"].shape[0], own["output_conv.weight"].shape[0]
        other = f"has {shapes[0]} output channels, and {shapes[1]} are needed"
    if other:
        print(f"{path}: {other}: the output layer starts anew.")
        weights = {**weights, **{key: own[key] for key in head}}
    load_weights(model, weights, f"PRETRAINED = {str(path)!r}")
    print(f"Starting from the weights in {path}")


def load_network(path):
    """(network, checkpoint) of a file that train.py or the article's code saved; the network is in eval mode.

    It takes images (N, 3, H, W) in [0, 1] and gives logits (N, 1, H, W), or (N, C, H, W) of the C classes of
    checkpoint["mask_rule"], a dictionary as of MaskRule. Where a file does not say what its channels are, they are
    classes of the values 0 to C - 1. UserError: it is of another network than that.
    """
    checkpoint = read_checkpoint(path)
    for key in ("network", "settings"):  # another's file may hold none, or something else
        if not isinstance(checkpoint.get(key), dict):
            checkpoint[key] = {}
    architecture = checkpoint["network"] or _plain_architecture(checkpoint["state_dict"])
    if architecture is None:
        raise UserError(f"{path}: neither says what network it is of, nor are its weights those of the plain one.")
    try:
        network = build_network(**architecture)
        mask_rule = (
            MaskRule.from_dict(checkpoint["mask_rule"]) if isinstance(checkpoint.get("mask_rule"), dict) else None
        )
    except TypeError as error:
        raise UserError(f"{path}: says of its network what is not understood here ({error}).") from error
    inputs, outputs = network.in_channels, network.output_conv.out_channels
    if mask_rule is None and 1 < outputs < IGNORED:
        values = tuple(range(outputs))
        mask_rule = MaskRule(background=(), foreground=(), classes=values, names=tuple(map(str, values)))
        checkpoint["mask_rule"] = mask_rule.to_dict()
    channels = mask_rule.channels if mask_rule else 1
    if (inputs, outputs) != (3, channels):
        one_each = f"{channels}, one for each class," if channels > 1 else "one for the mask"
        raise UserError(
            f"{path}: its network has {inputs} channels in and {outputs} out. RGB (3) and {one_each} are needed."
        )
    load_weights(network, checkpoint.pop("state_dict"), str(path))  # popped: its memory is free again
    return network.eval(), checkpoint


def _plain_architecture(weights):
    """The plain network that has these weights, for build_network, or None."""
    try:
        features = []
        while f"encoder.{len(features)}.conv.0.weight" in weights:
            features.append(weights[f"encoder.{len(features)}.conv.0.weight"].shape[0])
        channels = weights["encoder.0.conv.0.weight"].shape[1], weights["output_conv.weight"].shape[0]
    except (KeyError, IndexError):
        return None
    return dict(in_channels=channels[0], out_channels=channels[1], features=features)


def load_encoder_weights(network, name, weights):
    """Puts torchvision's weights of its network `name` into the encoder of `network`.

    `weights`: torchvision's word for them ("DEFAULT", "IMAGENET1K_V1"), or the path of a state dict. The
    classifier's are left out, and the counters that BatchNorm had not in the days of some of torchvision's
    files may be missing. UserError: they cannot be had, or are of another network.
    """
    found = _encoder_weights(name, weights)
    counters = {key: it for key, it in network.encoder.state_dict().items() if key.endswith("num_batches_tracked")}
    features = {key: it for key, it in found.items() if not key.startswith(("fc.", "classifier."))}
    load_weights(network.encoder, counters | features, f"ENCODER_WEIGHTS = {weights!r}")


def _encoder_weights(name, weights):
    if Path(weights).is_file():
        return read_checkpoint(weights)["state_dict"]
    from torchvision.models import get_model_weights  # here, because it takes a second or two to load

    known = get_model_weights(name)
    if weights not in known.__members__:
        names = ", ".join(["DEFAULT", *(member.name for member in known)])
        raise UserError(f"ENCODER_WEIGHTS = {weights!r} is neither a file nor among {names}. None trains from scratch.")
    entry = known[weights]
    file = Path(torch.hub.get_dir()) / "checkpoints" / entry.url.rpartition("/")[2]
    if file.is_file():
        return read_checkpoint(file)["state_dict"]  # a damaged one is told by its name
    try:
        return entry.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"The weights {entry} could not be fetched ({error}).\nOn a machine with a network fetch\n  {entry.url}\n"
            f"and put it at\n  {file}\n"
            "or name its place in ENCODER_WEIGHTS; ENCODER_WEIGHTS = None trains from scratch."
        ) from error
