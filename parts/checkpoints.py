"""Checkpoints: a run's state, saved, verified and resumed; and the weights that a run can start from.

Nothing in a file is executed: only tensors and plain types are unpickled.
"""

from __future__ import annotations

import pickle
import shlex
import urllib.error
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from parts import processes
from parts.checkpoint_keys import EXPECTED, KEYS, PREDICTED, RESUMED, check_keys, fault_of, shown
from parts.errors import UserError, list_files, printable, tell
from parts.files import Provenance, copy_whole, write_whole
from parts.masks import IGNORED, MaskRule
from parts.networks import EncoderUNet, Network, build_network, filters_for
from parts.options import plain
from parts.own import is_own, name_of_part
from parts.scores import Scores, class_columns

if TYPE_CHECKING:
    from parts.recipe import Schedule

_WEIGHT_KEYS = ("state_dict", "model_state_dict", "model")  # ours and the article's; then other programs'
_PREFIXES = ("_orig_mod.", "module.")  # torch.compile and DistributedDataParallel put these before the names
_WEIGHT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8)
_ADAM = {"step", "exp_avg", "exp_avg_sq"}
_MOMENTS = {torch.optim.Adam: _ADAM, torch.optim.AdamW: _ADAM, torch.optim.SGD: {"momentum_buffer"}}  # of a parameter

Weights = dict[str, Tensor]


# ---- a run


# These settings say where a run happens. The weights, history and scores do not depend on them.
_NOT_SAVED = (
    *("LOAD_MODEL", "SETTINGS", "DEMO", "SMALL", "OUTPUT_DIR"),
    *("NUM_WORKERS", "PIN_MEMORY", "ARRAYS", "PICTURE_BATCHES"),
)


@dataclass
class Run:
    """What is trained, saved and resumed.

    Random draws need no place in it. The order of the images, the flips and a transform's draws come from generators
    made of (SEED, epoch, index), so an epoch is the same in a resumed run and in one that was never stopped.
    """

    model: Network  # the network itself, not the DistributedDataParallel around it
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    scaler: torch.amp.GradScaler
    architecture: dict[str, Any]  # the arguments of build_network
    mask_rule: MaskRule
    value_range: tuple[float, float] | None  # of 16-bit and float images
    scored_on: str  # digest of how validation data are read: where it differs, scores do not compare
    data: dict[str, Provenance]  # of "training" and "validation": from which files
    settings: SimpleNamespace
    history: list[dict[str, Any]] = field(default_factory=list)  # a row for each finished epoch
    since: int = 0  # the best epoch is one after this one: earlier ones were scored on other validation data
    scores: Scores | None = None  # of the last epoch

    @property
    def best(self) -> dict[str, Any]:
        """The history's row of the best epoch; there must be one after `since`."""
        return best_of(self.history[self.since :])

    @property
    def epochs_since_best(self) -> int:
        """How many epochs ago the best one was: 0 for the last one."""
        return len(self.history) - self.best["epoch"]

    def done(self, path: str | Path) -> str:
        """Says that all epochs of the run saved in `path` are done, and how to go on; "" where some are left."""
        epochs, planned = len(self.history), self.settings.NUM_EPOCHS
        if epochs < planned:
            return ""
        constant, count = f"NUM_EPOCHS = {planned} counts the epochs", f"--num-epochs {2 * epochs}"
        if minutes := getattr(self.settings, "MINUTES", None):
            constant, count = f"MINUTES = {minutes:g} counts minutes", f"--minutes {2 * minutes:g}"
        return (
            f"{path}: all of its {epochs} epochs are done, and {constant} of the whole run. To go on, give a larger "
            f"one ({count}). {_new_run(path)}"
        )

    def record(self, loss: float, scores: Scores) -> None:
        """Adds a finished epoch to the history, and gives its Dice to the schedule."""
        row = dict(
            epoch=len(self.history) + 1,
            loss=loss,
            val_loss=scores.loss,
            accuracy=scores.accuracy,
            dice=scores.dice,
            dice_nonempty=scores.dice_nonempty,
            iou=scores.iou,
            **scores.metrics,
            learning_rate=self.optimizer.param_groups[0]["lr"],
        )
        self.history.append(row | class_columns(scores))
        self.scores = scores
        self.schedule.after_epoch(scores.dice_nonempty)

    def state(self) -> dict[str, Any]:
        """The checkpoint's dictionary: tensors and plain types, all that `resume` needs."""
        assert self.scores is not None, "a run is saved after an epoch"
        return dict(
            state_dict=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            schedule=self.schedule.state_dict(),
            scaler=self.scaler.state_dict(),
            epoch=len(self.history),
            best_dice=self.best["dice"],
            history=self.history,
            since=self.since,
            scores=vars(self.scores),
            scored_on=self.scored_on,
            network=self.architecture | {"network": name_of_part(self.architecture.get("network", "unet"))},
            mask_rule=self.mask_rule.to_dict(),
            image_size=_list_or_none(self.settings.IMAGE_SIZE),
            crop=_list_or_none(self.settings.CROP),
            image_range=_list_or_none(self.value_range),
            settings={name: value for name, value in plain(self.settings).items() if name not in _NOT_SAVED},
            processes=processes.world_size(),
            data={side: provenance.to_dict() for side, provenance in self.data.items()},
        )

    def resume(self, path: str | Path) -> None:
        """Continues the run that saved the checkpoint `path`, as if it had never stopped.

        Prints which settings and data have changed since. Where the validation data, IMAGE_SIZE or the reading of the
        masks have changed, old scores do not compare: the best epoch is looked for among the coming ones.
        UserError: the file is unreadable, of another network or other classes, or holds what it may not hold.
        """
        # Process 0 alone needs to have the file, as it alone writes it.
        saved = check_keys(path, processes.first(lambda: read_checkpoint(path)), RESUMED)
        if difference := _class_difference(saved, self.mask_rule):
            raise UserError(
                f"{path}: {difference}. Going on needs the same ones, in the same order (CLASSES). {_new_run(path)}"
            )
        history, since = saved.get("history", []), saved.get("since", 0)
        if since >= max(1, len(history)):
            raise UserError(f"{path}: its since is {since}, and its history has {len(history)} epochs. {EXPECTED}.")
        processes.say("=> Loading checkpoint")
        load_weights(self.model, saved["state_dict"], str(path))
        self.architecture["pads"] = was_padded(saved)
        self.model.pads = self.architecture["pads"]
        if self.settings.PRECISION == "auto" and next(self.model.parameters()).device.type == "cpu":
            # What is faster was measured when the run began; another machine may choose otherwise.
            self.settings.PRECISION = saved.get("settings", {}).get("PRECISION", "auto")
        self.history, self.since = history, len(history)
        self._load_states(saved, path)
        old_data = {side: Provenance.from_dict(stored) for side, stored in saved.get("data", {}).items()}
        differences = differences_of_data(old_data, self.data)
        comparable = saved.get("scored_on", self.scored_on) == self.scored_on and "validation" not in differences
        if comparable:
            self.since = since
            if history and "scores" in saved:
                self.scores = Scores(**saved["scores"])
        self._tell_resumed(saved, differences, comparable)

    def _tell_resumed(self, saved: dict[str, Any], differences: dict[str, str], comparable: bool) -> None:
        """Prints after which epoch the run goes on, and what has changed since the checkpoint was saved."""
        old = saved.get("settings", {}) | {"PROCESSES": saved.get("processes", 1)}
        new = plain(self.settings) | {"PROCESSES": processes.world_size()}
        changes = [f"{name} {old[name]!r} -> {new[name]!r}" for name in new if name in old and old[name] != new[name]]
        if changes:
            listed = ", ".join(changes)
            processes.say(f"Not exactly the run that would have been, because these settings have changed: {listed}")
        for side, difference in differences.items():
            processes.say(f"The {side} data are not those of before ({difference}).")
        best = ""
        if self.history[self.since :]:
            best = f", best Dice {self.best['dice']:.4f}"
        processes.say(f"Going on after epoch {len(self.history)}{best}")
        if not comparable:
            processes.say(
                "The validation data, IMAGE_SIZE or the reading of the masks have changed, so the old scores do not "
                "compare: the best Dice, best.pth and PATIENCE start anew."
            )

    def _load_states(self, saved: dict[str, Any], path: str | Path) -> None:
        """Restores optimizer, schedule and scaler; one whose state does not fit starts anew, and that is printed."""
        current = [{key: group[key] for key in group if key != "params"} for group in self.optimizer.param_groups]
        for name, part in (("optimizer", self.optimizer), ("schedule", self.schedule), ("scaler", self.scaler)):
            state = saved.get(name)
            if state is None or state == {}:
                continue
            try:
                if name in KEYS and (fault := fault_of(name, state, KEYS[name])):
                    raise ValueError(fault)
                part.load_state_dict(state)
                if part is self.optimizer:
                    fit_moments(self.optimizer)
            except Exception as error:  # a state of another kind fails in many ways, all of which mean this
                tell(f"The {name} starts anew: its state in {path} does not fit ({printable(error)[:200]}).")
                if name == "optimizer":
                    self.optimizer.state.clear()
        # The states hold WEIGHT_DECAY and the like; those of now are obeyed, not the saved ones.
        for group, options in zip(self.optimizer.param_groups, current):
            group.update(options)


def fit_moments(optimizer: torch.optim.Optimizer) -> None:
    """Gives a loaded optimizer's moments the strides of their parameters, where they have others.

    Fused Adam looks at neither shapes nor strides: it reads and writes each moment as if its memory were laid out as
    the parameter's, beyond its end if need be. ValueError: the state is not of this optimizer, or has other shapes.
    """
    names = _MOMENTS.get(type(optimizer))  # None: one of the user's own, which looks after its state itself
    for parameter, state in optimizer.state.items():
        if state and names is not None and state.keys() != names:
            raise ValueError(f"it holds {', '.join(map(str, state))}")
        for name, value in state.items():
            if value is None or (names is None and not isinstance(value, Tensor)):
                continue
            if _is_foreign(value) or (names is not None and not _is_moment(name, value, parameter)):
                raise ValueError(f"{name} is not what it is of a parameter of shape {tuple(parameter.shape)}")
            if value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter).copy_(value)


def _is_moment(name: str, value: Tensor, parameter: Tensor) -> bool:
    """Whether a tensor can be a moment of a parameter, or the number of its steps."""
    if name == "step":
        return value.dim() == 0 and 0 <= value.item() < 2**53
    return value.shape == parameter.shape


def differences_of_data(old: dict[str, Provenance], new: dict[str, Provenance]) -> dict[str, str]:
    """For each of "training" and "validation" in what its files are not the old ones, in words, where they are not."""
    texts = {side: new[side].difference(old[side]) for side in old}
    return {side: text for side, text in texts.items() if text}


def _new_run(path: str | Path) -> str:
    return f"To start a new run from these weights, leave LOAD_MODEL off and set PRETRAINED (--pretrained {path})."


def _list_or_none(values: Any) -> list | None:
    """A tuple as a list, as checkpoints hold it; None stays None."""
    return None if values is None else list(values)


def best_of(history: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of the epoch with the highest Dice of images that are not empty, the first of several."""
    return max(history, key=lambda row: row.get("dice_nonempty", row["dice"]))


def snapshot(state: Any) -> Any:
    """A copy of a checkpoint's dictionary on the CPU, which training that goes on does not change."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: snapshot(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(map(snapshot, state))
    return state


def set_aside(output: Path) -> None:
    """Renames the files of an earlier run in the folder of a new one; the next new run replaces them."""
    for name in ("checkpoint.pth", "best.pth", "history.csv"):
        old = output / name
        if old.exists():
            kept = old.replace(output / f"{old.stem}.previous{old.suffix}")
            tell(f"{old} of an earlier run is now {kept}")


def save(state: dict[str, Any], path: str | Path, also: Path | None = None) -> None:
    """Writes a dictionary of tensors and plain types to a file, whole and flushed.

    A process killed at any moment, a full disk or a power cut leaves the old file or the new one.
    `also` becomes the same file, after it.
    """

    def write(file: IO[bytes]) -> None:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # a full disk: the archive's own message hides the cause
                raise error.__context__ from None
            raise

    write_whole(path, write)
    if also:
        copy_whole(path, also)


# ---- reading a checkpoint


def read_checkpoint(filename: str | Path) -> dict[str, Any]:
    """The dictionary in a checkpoint, on the CPU, its weights under `state_dict` without a wrapper's prefixes.

    The CRC of every record is checked first, so a damaged file is refused rather than loaded wrong. Files of the
    article's code, bare state dicts and those of torch.compile or DistributedDataParallel are read too.
    UserError: there is no such file, or it is damaged, or it holds no weights or more than plain types.
    """
    path = Path(filename)
    if not path.is_file():
        earlier = path.with_stem(f"{path.stem}.previous")
        cure = "Train first, or name another file"
        if earlier.is_file():
            cure = f"{earlier.name} beside it is that of the run before the last one: rename it to go on with that"
        raise UserError(f"{path}: there is no such checkpoint. {cure}.")
    checkpoint = _unpickle(path)
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path}: holds a {type(checkpoint).__name__}. {EXPECTED}.")
    for key in _WEIGHT_KEYS:
        if isinstance(checkpoint.get(key), dict):
            weights = checkpoint.pop(key)
            break
    else:  # bare weights; some programs keep a list or two beside them
        weights = {name: value for name, value in checkpoint.items() if isinstance(value, Tensor)}
        checkpoint = {}
    if not weights or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"{path}: holds no weights. {EXPECTED}.")
    _refuse_foreign_weights(path, weights)
    return checkpoint | {"state_dict": without_prefixes(weights)}


def _refuse_foreign_weights(path: Path, weights: dict[Any, Tensor]) -> None:
    """UserError where a state dict holds other tensors than a network's, or takes more memory than its file."""
    for name, value in weights.items():
        if not isinstance(name, str) or _is_foreign(value):
            raise UserError(f"{path}: its weights hold {shown(name)}, which is no dense tensor of numbers. {EXPECTED}.")
    if sum(value.nbytes for value in weights.values()) > path.stat().st_size:
        raise UserError(f"{path}: its weights share numbers, and are larger than the file. {EXPECTED}.")


def _is_foreign(value: Any) -> bool:
    """Whether it is anything but a tensor with a number of its own in each place; a stride of 0 repeats one."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_nested or value.is_meta:
        return True
    if any(step == 0 and side > 1 for step, side in zip(value.stride(), value.shape)):
        return True
    return value.dtype not in _WEIGHT_TYPES or value.nbytes > value.untyped_storage().nbytes()


def _unpickle(path: Path) -> Any:
    """What torch.save has put into a file. UserError: it is damaged, or holds more than tensors and plain types."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                _refuse_compressed(path, archive.infolist())
                damaged = archive.testzip()
            if damaged:
                raise UserError(f"{path}: damaged (checksum of {damaged}). Use another checkpoint.")
        return torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:  # PyTorch's own message says how to run the code in it: not repeated
        raise UserError(
            f"{path}: refused, because it is damaged or holds more than tensors and plain values, "
            f"which could run code. {EXPECTED}."
        ) from error
    except Exception as error:  # a truncated or foreign file fails in many ways, all of which mean this
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{path}: not a readable checkpoint ({lines[0][:200]}). {EXPECTED}.") from error


def _refuse_compressed(path: Path, records: list[zipfile.ZipInfo]) -> None:
    """UserError where a file's records are compressed, as torch.save's never are, or larger than the file."""
    stored = all(record.compress_type == zipfile.ZIP_STORED for record in records)
    if not stored or sum(record.file_size for record in records) > path.stat().st_size:
        raise UserError(f"{path}: its records are compressed, or larger than the file. {EXPECTED}.")


def without_prefixes(weights: Weights) -> Weights:
    """The same state dict with the names that the bare network gives them."""
    for prefix in _PREFIXES * 2:  # either wrapper may be the outer one
        if weights and all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def load_weights(model: nn.Module, weights: Weights, source: str) -> None:
    """Puts a state dict into a network: all of it, or, with a UserError, nothing.

    UserError: it belongs to another network. `source` tells in the message where the weights come from.
    """
    own = model.state_dict()
    common = [name for name in own if name in weights]
    differences = {
        "lacks": [name for name in own if name not in weights],
        "has, unknown here,": [name for name in weights if name not in own],
        "misfit:": [
            f"{name} is {tuple(weights[name].shape)} there and {tuple(own[name].shape)} here"
            for name in common
            if own[name].shape != weights[name].shape
        ],
    }
    lines = [f"  {label} {list_files(names)}" for label, names in differences.items() if names]
    if lines:
        heading = f"{source} belongs to another architecture (NETWORK, FEATURES, ENCODER or the channels differ):"
        raise UserError("\n".join([heading, *lines]))
    on_meta = any(value.is_meta for value in own.values())
    if on_meta:  # it has no memory yet; copies have the strides of a new network, by which convolutions are chosen
        weights = {
            name: torch.empty(value.shape, dtype=value.dtype).copy_(weights[name]) for name, value in own.items()
        }
    model.load_state_dict(weights, assign=on_meta)


# ---- a network from a checkpoint


def load_network(path: str | Path, own: Any = None) -> tuple[Network, dict[str, Any]]:
    """The network of a file that train.py or the article's code saved, in eval mode, and the rest of its checkpoint.

    `own`: NETWORK of a run that trained a network of the user's own, as "FILE.py:NAME" or the object itself. A file's
    word alone imports nothing.

    The network takes images (N, C, H, W) in [0, 1] and gives logits (N, 1, H, W), or (N, C, H, W) of the C classes of
    checkpoint["mask_rule"], a dictionary as of MaskRule. Where a file does not say what its channels are, they are
    classes of the values 0 to C - 1. UserError: it is of another network.
    """
    checkpoint = check_keys(path, read_checkpoint(path), PREDICTED)
    checkpoint.setdefault("settings", {})
    architecture = checkpoint.setdefault("network", {}) or _plain_architecture(checkpoint["state_dict"])
    if architecture is None:
        keys = ", ".join(map(repr, list(checkpoint["state_dict"])[:3]))
        raise UserError(
            f"{path}: does not say what network it is of, and its weights are not those of the plain one: the first "
            f"are called {keys}. If another program has saved it, predict there, or train here (train.py --network "
            "mine.py:Net trains a network of your own)."
        )
    check_keys(path, {"network": architecture}, ["network"])  # where the weights alone say it
    architecture = {"pads": was_padded(checkpoint), **architecture, "network": _chosen_network(path, architecture, own)}
    try:
        if is_own(architecture["network"]):
            network = build_network(**architecture)
        else:  # without memory: the weights may be of a smaller network than the one that is named
            with torch.device("meta"):
                network = build_network(**architecture)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    _complete_mask_rule(checkpoint, network.out_channels)
    channels = MaskRule.from_dict(checkpoint["mask_rule"]).channels if "mask_rule" in checkpoint else 1
    _refuse_channels(path, network, channels)
    load_weights(network, checkpoint.pop("state_dict"), str(path))  # popped: its memory is free again
    return network.eval(), checkpoint


def _chosen_network(path: str | Path, architecture: dict[str, Any], own: Any) -> Any:
    """NETWORK of a checkpoint: the word of the project that it names, or `own`. UserError: which of both is unclear."""
    name = architecture.get("network", "unet")
    if own is None and is_own(name):
        raise UserError(
            f"{path}: its network is one of its author's own, {name}. Files that a checkpoint names are not run by "
            f"themselves: if you trust it, name it, --network {shlex.quote(name)} (Predictor(..., NETWORK=...))."
        )
    if own is not None and not is_own(name):
        raise UserError(f"{path}: its network is {name!r}, one of this project's. Leave NETWORK = None (--network).")
    return name if own is None else own


def was_padded(checkpoint: dict[str, Any]) -> bool:
    """Whether the images that a checkpoint's network was trained on were padded to its stride (see UNet).

    Older files do not say it. Their networks stretched what pooling had dropped, and learnt that where the size of
    training was not a multiple of the stride; elsewhere there was nothing to stretch, and padding is right for all
    other sizes.
    """
    network = checkpoint.get("network") or {}
    if "pads" in network:
        return bool(network["pads"])
    stride = 2 ** len(network.get("features", (64, 128, 256, 512)))
    if network.get("encoder"):
        stride = 32
    size = checkpoint.get("crop") or checkpoint.get("image_size") or ()
    return all(side % stride == 0 for side in size)


def _complete_mask_rule(checkpoint: dict[str, Any], channels: int) -> None:
    """Gives a checkpoint that says nothing of its masks the rule that its number of channels suggests."""
    if "mask_rule" not in checkpoint and 1 < channels < IGNORED:
        values = tuple(range(channels))
        mask_rule = MaskRule(background=(), foreground=(), classes=values, names=tuple(map(str, values)))
        checkpoint["mask_rule"] = mask_rule.to_dict()


def _refuse_channels(path: str | Path, network: Network, needed: int) -> None:
    """UserError where a network has other channels out than its masks need; it takes images of any."""
    if network.out_channels != needed:
        purpose = "one for the mask is"
        if needed > 1:
            purpose = f"{needed}, one for each class, are"
        raise UserError(f"{path}: its network has {network.out_channels} channels out, and {purpose} needed.")


def _plain_architecture(weights: Weights) -> dict[str, Any] | None:
    """The arguments of build_network for the plain network that has these weights, or None."""
    try:
        features: list[int] = []
        while f"encoder.{len(features)}.conv.0.weight" in weights:
            features.append(weights[f"encoder.{len(features)}.conv.0.weight"].shape[0])
        in_channels = weights["encoder.0.conv.0.weight"].shape[1]
        out_channels = weights["output_conv.weight"].shape[0]
    except (KeyError, IndexError):
        return None
    return dict(in_channels=in_channels, out_channels=out_channels, features=features)


# ---- weights that a new run starts from


def load_pretrained(path: str | Path, model: nn.Module, mask_rule: MaskRule | None = None) -> None:
    """Puts the weights of a checkpoint into the network of a new run, whose masks are read by `mask_rule`.

    An output layer for other classes stays random, the first layer's filters become filters for the images' channels,
    and both are printed. UserError: the weights are of another network.
    """
    saved = check_keys(path, read_checkpoint(path), ["mask_rule"])
    weights, own = saved["state_dict"], model.state_dict()
    there, here = channels_of(weights), channels_of(own)
    if there != here:
        weights = for_channels(weights, own)
        tell(f"{path}: its images have {there} channels, and these {here}: the first layer's filters are adapted.")
    output_layer = [name for name in weights if name.startswith("output_conv.") and name in own]
    difference = _class_difference(saved, mask_rule)
    shapes = [(weights[name].shape, own[name].shape) for name in output_layer]
    if not difference and any(there[:1] != here[:1] and there[1:] == here[1:] for there, here in shapes):
        there, here = shapes[0]
        difference = f"has {there[0]} output channels, and {here[0]} are needed"
    if difference:
        tell(f"{path}: {difference}: the output layer starts anew.")
        weights = weights | {name: own[name] for name in output_layer}
    load_weights(model, weights, f"PRETRAINED = {str(path)!r}")
    tell(f"Starting from the weights in {path}")


def channels_of(weights: Weights) -> int:
    """How many channels the images have whose network has these weights; 0 of one without convolutions."""
    return next((value.shape[1] for value in weights.values() if value.dim() == 4), 0)


def for_channels(weights: Weights, own: Weights) -> Weights:
    """The weights with filters for as many channels as those of the network `own` take, where they are for others.

    What it normalises images with stays its own.
    """
    there, here = channels_of(weights), channels_of(own)
    adapted = dict(weights)
    for name, value in weights.items():
        wanted = (*value.shape[:1], here, *value.shape[2:])
        if there != here and value.shape[1:2] == (there,) and name in own and own[name].shape == wanted:
            adapted[name] = own[name] if name in ("mean", "std") else filters_for(value, here)
    return adapted


def _class_difference(checkpoint: dict[str, Any], mask_rule: MaskRule | None) -> str:
    """Says in which classes the checkpoint's network and masks read by `mask_rule` differ; "" where they agree.

    Files of other programs do not say which classes they have: they agree with all.
    """
    saved = checkpoint.get("mask_rule")
    if mask_rule is None or saved is None:
        return ""
    old, new = list(saved.get("names", ())), list(mask_rule.names)
    if old == new:
        return ""
    return f"its network has {_listed_classes(old)}, and the masks have {_listed_classes(new)}"


def _listed_classes(names: list[str]) -> str:
    """The names of classes in a sentence, the first of very many."""
    if not names:
        return "one foreground"
    return f"the classes {list_files(names, 12)}"


def load_encoder_weights(network: EncoderUNet, name: str, weights: str) -> None:
    """Puts torchvision's weights of its network `name` into the encoder of `network`.

    `weights`: torchvision's name of them ("DEFAULT", "IMAGENET1K_V1"), or the path of a state dict. The classifier's
    are left out; the filters of the first layer, for RGB, become filters for the network's channels. BatchNorm's
    counters, which are missing in torchvision's oldest files, stay those of the network.
    UserError: the weights are out of reach, or are of another network.
    """
    state = _encoder_weights(name, weights)
    own = network.encoder.state_dict()
    counters = {key: value for key, value in own.items() if key.endswith("num_batches_tracked")}
    features = {key: value for key, value in state.items() if not key.startswith(("fc.", "classifier."))}
    features = for_channels(features, own)
    load_weights(network.encoder, counters | features, f"ENCODER_WEIGHTS = {weights!r}")


def _encoder_weights(name: str, weights: str) -> Weights:
    """The state dict of torchvision's network `name`: from a file, from torchvision's cache, or downloaded."""
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
        return read_checkpoint(file)["state_dict"]  # the message about a damaged one names it
    try:
        return entry.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"The weights {entry} could not be fetched ({error}).\nOn a machine with a network fetch\n  {entry.url}\n"
            f"and put it at\n  {file}\n"
            "or name its place in ENCODER_WEIGHTS; ENCODER_WEIGHTS = None trains from scratch."
        ) from error
