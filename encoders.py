"""The network that a run trains: the plain U-Net, or torchvision's encoder under the same decoder.

A pretrained encoder starts from features learnt on ImageNet, as in Iglovikov and Shvets: TernausNet,
2018, https://arxiv.org/abs/1801.05746, with VGG-11.
"""

import urllib.error
from pathlib import Path

import torch
from torch import nn

from checkpoints import load_weights, read_checkpoint
from errors import UserError
from unet import DoubleConv, UNet, check_input, decode

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of channels in [0, 1]

CLASSIFIERS = ("fc.", "classifier.")  # where torchvision's networks keep what comes after the features
_RESNET = ["relu", "layer1", "layer2", "layer3", "layer4"]  # at 1/2 ... 1/32
# What follows each pooling's input, at full size ... 1/16, and at last the deepest layer.
NODES = {
    **{f"resnet{depth}": _RESNET for depth in (18, 34, 50, 101, 152)},
    "vgg11_bn": [f"features.{i}" for i in (2, 6, 13, 20, 27, 28)],
    "vgg13_bn": [f"features.{i}" for i in (5, 12, 19, 26, 33, 34)],
    "vgg16_bn": [f"features.{i}" for i in (5, 12, 22, 32, 42, 43)],
    "vgg19_bn": [f"features.{i}" for i in (5, 12, 25, 38, 51, 52)],
}


def build_network(
    in_channels=3, out_channels=1, features=(64, 128, 256, 512), encoder=None, encoder_weights=None
):
    """UNet(in_channels, out_channels, features), or an EncoderUNet where `encoder` names one.

    Both take images (N, in_channels, H, W) in [0, 1] and give logits (N, out_channels, H, W).
    To rebuild a network for a checkpoint's weights, leave `encoder_weights` None.
    """
    if encoder is None:
        return UNet(in_channels, out_channels, features)
    if in_channels != 3:
        raise UserError(f"ENCODER = {encoder!r} takes images of 3 channels, not {in_channels}.")
    return EncoderUNet(encoder, encoder_weights, out_channels)


def load_network(path):
    """(network, checkpoint) of a file that train.py or the article's code saved; the network is in eval mode.

    It takes images (N, 3, H, W) in [0, 1] and gives logits (N, 1, H, W); UserError where it would not.
    """
    checkpoint = read_checkpoint(path)
    for key in ("network", "settings"):  # another's file may hold none, or something else
        if not isinstance(checkpoint.get(key), dict):
            checkpoint[key] = {}
    architecture = checkpoint["network"] or architecture_of(checkpoint["state_dict"])
    if architecture is None:
        raise UserError(f"{path}: neither says what network it is of, nor are its weights those of the plain one.")
    try:
        network = build_network(**{**architecture, "encoder_weights": None})
    except TypeError as error:
        raise UserError(f"{path}: says of its network what is not understood here ({error}).") from error
    channels = network.in_channels, network.output_conv.out_channels
    if channels != (3, 1):
        raise UserError(
            f"{path}: its network has {channels[0]} channels in and {channels[1]} out. RGB (3) and one mask are needed."
        )
    load_weights(network, checkpoint.pop("state_dict"), str(path))  # popped: its memory is free again
    return network.eval(), checkpoint


def architecture_of(weights):
    """The plain network that has these weights, for build_network, or None."""
    try:
        features = []
        while f"encoder.{len(features)}.conv.0.weight" in weights:
            features.append(weights[f"encoder.{len(features)}.conv.0.weight"].shape[0])
        channels = weights["encoder.0.conv.0.weight"].shape[1], weights["output_conv.weight"].shape[0]
    except (KeyError, IndexError):
        return None
    return dict(in_channels=channels[0], out_channels=channels[1], features=features)


class EncoderUNet(nn.Module):
    """torchvision's network `name` up to its last feature map, under U-Net's decoder.

    `weights` are torchvision's by name ("DEFAULT", "IMAGENET1K_V1"), the path of a state dict, or None.
    The input normalisation that the encoder was trained with is a part of the network. A ResNet has no
    features at full size: a DoubleConv on the image stands in, so that edges stay sharp.
    """

    def __init__(self, name, weights=None, out_channels=1):
        super().__init__()
        if name not in NODES:
            raise UserError(f"ENCODER = {name!r}: choose {', '.join(NODES)}, or None for the plain U-Net.")
        # here, because it takes a second or two to load, and the plain U-Net does without
        from torchvision.models import get_model
        from torchvision.models.feature_extraction import create_feature_extractor

        self.in_channels = 3
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).reshape(1, 3, 1, 1))
        whole = get_model(name, weights=None)
        self.encoder = create_feature_extractor(whole, NODES[name])
        if weights is not None:
            load_encoder(self.encoder, encoder_weights_of(name, weights), f"ENCODER_WEIGHTS = {weights!r}")
        with torch.no_grad():
            maps = list(self.encoder.eval()(torch.zeros(1, 3, 64, 64)).values())
        self.encoder.train()
        *channels, below = [feature.shape[1] for feature in maps]
        self.stem = None
        if maps[0].shape[2] < 64:
            self.stem = DoubleConv(3, 32)
            channels = [32, *channels]
        self.smallest = 64 // maps[-1].shape[2]
        self.decoder = nn.ModuleList()
        for skip in reversed(channels):
            self.decoder.append(nn.ConvTranspose2d(below, skip, 2, stride=2))
            self.decoder.append(DoubleConv(2 * skip, skip))
            below = skip
        self.output_conv = nn.Conv2d(channels[0], out_channels, 1)

    def forward(self, x):
        check_input(x, self.in_channels, self.smallest)
        x = (x - self.mean) / self.std
        *skips, deepest = self.encoder(x).values()
        if self.stem is not None:
            skips.insert(0, self.stem(x))
        return decode(self.decoder, self.output_conv, deepest, skips)


def load_encoder(encoder, weights, source):
    """Puts torchvision's state dict `weights` into `encoder`; UserError where it is of another network.

    The classifier's weights are left out, and the counters that BatchNorm had not in the days of some
    of torchvision's files may be missing.
    """
    counters = {key: value for key, value in encoder.state_dict().items() if key.endswith("num_batches_tracked")}
    features = {key: value for key, value in weights.items() if not key.startswith(CLASSIFIERS)}
    load_weights(encoder, counters | features, source)


def encoder_weights_of(name, weights):
    """The state dict that `weights` means for torchvision's network `name`, from a file or by its name."""
    if Path(weights).is_file():
        return read_checkpoint(weights)["state_dict"]
    from torchvision.models import get_model_weights

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
