"""What one training consists of, and a resumed one must find again.

Random draws need no place here: the order of the images, the flips and a transform's draws come from
generators made of (SEED, epoch, index), so that an epoch is the same whoever reaches it.
"""

import torch

import processes
import recipe
from checkpoints import load_weights, read_checkpoint
from encoders import build_network
from settings import plain

# These settings change where a run happens, not what becomes of it.
OUTSIDE = ["load_model", "demo", "output_dir", "num_workers", "pin_memory", "arrays", "picture_batches"]


class Training:
    """The network and everything that changes it; `state` and `restore` are exact.

    `network` is what the optimizer changes, `model` what the loop calls (the network, or its wrapper
    for several processes), `scored` what is scored, drawn and saved as the checkpoint's state_dict.
    """

    def __init__(self, settings, device, total_steps):
        self.device, self.seed = device, settings.seed
        self.dtype = recipe.autocast_dtype(device, settings.precision)
        torch.manual_seed(settings.seed)
        self.architecture = dict(
            in_channels=3, out_channels=1, features=list(settings.features), encoder=settings.encoder
        )
        weights = None if settings.load_model else settings.encoder_weights
        self.network = build_network(**self.architecture, encoder_weights=weights).to(device)
        if device.type != "mps":
            self.network.to(memory_format=torch.channels_last)
        self.loss_fn = recipe.Loss(settings.loss)
        self.optimizer = recipe.make_optimizer(
            self.network, settings.optimizer, settings.learning_rate, settings.weight_decay
        )
        self.schedule = recipe.Schedule(
            self.optimizer, settings.schedule, total_steps, settings.warmup, settings.plateau_patience
        )
        self.scaler = recipe.make_scaler(device, self.dtype)
        self.average = recipe.WeightAverage(self.network, settings.ema_decay) if settings.ema_decay else None
        self.epoch, self.best_dice, self.history = 0, -1.0, []
        self.model = self.network  # what is called in training: the network, or its distributed wrapper

    @property
    def scored(self):
        """The network that is scored and drawn: the average where there is one."""
        return self.average.network if self.average else self.network

    def state(self, settings, rule):
        """The checkpoint: tensors and plain types."""
        kept = {name: value for name, value in plain(settings).items() if name not in OUTSIDE}
        return dict(
            state_dict=self.scored.state_dict(),
            training_state_dict=self.network.state_dict() if self.average else None,
            optimizer=self.optimizer.state_dict(),
            schedule=self.schedule.state_dict(),
            average=self.average.state_dict() if self.average else None,
            scaler=self.scaler.state_dict(),
            epoch=self.epoch,
            best_dice=self.best_dice,
            history=self.history,
            network=self.architecture,
            mask_rule=rule.to_dict(),
            image_size=list(settings.image_size),
            settings=kept,
            processes=processes.world_size(),
        )

    def restore(self, path, settings):
        """Goes on from the checkpoint `path`; says what was set otherwise when it was saved."""
        saved = read_checkpoint(path, self.device)
        load_weights(self.network, saved.get("training_state_dict") or saved["state_dict"], str(path))
        if self.average:
            self.average.load_state_dict(saved.get("average"), saved["state_dict"])
        own = [{key: it for key, it in group.items() if key != "params"} for group in self.optimizer.param_groups]
        parts = dict(optimizer=self.optimizer, schedule=self.schedule, scaler=self.scaler)
        for name, part in parts.items():
            if saved.get(name):
                try:
                    part.load_state_dict(saved[name])
                except (ValueError, KeyError, RuntimeError) as error:
                    print(f"The {name} starts anew: its state in {path} does not fit ({error}).")
        for group, kept in zip(self.optimizer.param_groups, own):
            group.update(kept)  # WEIGHT_DECAY and the like are those of now, not the saved ones
        self.epoch = saved.get("epoch", 0)
        self.best_dice = saved.get("best_dice", -1.0)
        self.history = saved.get("history", [])
        before = saved.get("settings", {}) | {"processes": saved.get("processes", 1)}
        now = plain(settings) | {"processes": processes.world_size()}
        changed = [
            f"{name.upper()} {before[name]!r} -> {now[name]!r}"
            for name in now
            if name in before and before[name] != now[name]
        ]
        if processes.rank():
            return
        if changed:
            print("Not the run that would have been, for these have changed: " + ", ".join(changed))
        print(f"Going on after epoch {self.epoch}, best Dice {self.best_dice:.4f}")
