"""The network that a run trains: the plain U-Net, or torchvision's encoder under the same decoder.

A pretrained encoder starts from features learnt on ImageNet, as in Iglovikov and Shvets: TernausNet,
2018, https://arxiv.org/abs/1801.05746, with VGG-11.

Every network takes images (N, in_channels, H, W) in [0, 1], gives logits (N, out_channels, H, W), and has these
attributes: `smallest`, its stride, which is the least height and width that it is trained on; `pads` (see UNet);
`decoder`, two modules a level; `output_conv`, the last convolution, whose out_channels are the network's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from parts.errors import UserError
from unet import DoubleConv, UNet, checked_input, cut, decode

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of channels in [0, 1]

# The layers of torchvision's networks whose feature maps are used: the last at full size (if there is one), at 1/2,
# ..., and the deepest at 1/32.
_RESNET = ["relu", "layer1", "layer2", "layer3", "layer4"]
NODES = {
    **{f"resnet{depth}": _RESNET for depth in (18, 34, 50, 101, 152)},
    "vgg11_bn": [f"features.{index}" for index in (2, 6, 13, 20, 27, 28)],
    "vgg13_bn": [f"features.{index}" for index in (5, 12, 19, 26, 33, 34)],
    "vgg16_bn": [f"features.{index}" for index in (5, 12, 22, 32, 42, 43)],
    "vgg19_bn": [f"features.{index}" for index in (5, 12, 25, 38, 51, 52)],
}


def build_network(
    in_channels: int = 3,
    out_channels: int = 1,
    features: Sequence[int] = (64, 128, 256, 512),
    encoder: str | None = None,
    pads: bool = False,
) -> UNet | EncoderUNet:
    """UNet(in_channels, out_channels, features), or an EncoderUNet where `encoder` names one.

    `pads`: images are padded to the network's stride, and logits cut again (see UNet): one geometry for training,
    scoring and prediction at any size. UserError: there is no such encoder, or it takes other channels.
    """
    if encoder is None:
        return UNet(in_channels, out_channels, features, pads)
    if in_channels != 3:
        raise UserError(f"ENCODER = {encoder!r} takes images of 3 channels, not {in_channels}.")
    return EncoderUNet(encoder, out_channels, pads)


class EncoderUNet(nn.Module):
    """torchvision's network `name` up to its last feature map, under U-Net's decoder; its weights are random.

    The input normalisation that the encoder was trained with is a part of the network. A ResNet has no
    features at full size: a DoubleConv on the image stands in, so that edges stay sharp.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, name: str, out_channels: int = 1, pads: bool = False) -> None:
        super().__init__()
        if name not in NODES:
            raise UserError(f"ENCODER = {name!r}: choose {', '.join(NODES)}, or None for the plain U-Net.")
        # Imported here, because it takes a second or two to load, and the plain U-Net does without
        from torchvision.models import get_model
        from torchvision.models.feature_extraction import create_feature_extractor

        self.in_channels, self.pads = 3, pads
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).reshape(1, 3, 1, 1))
        self.encoder = create_feature_extractor(get_model(name, weights=None), NODES[name])
        side = 64  # pixels of a trial image, which shows the channels and the size of each feature map
        with torch.no_grad():
            maps = list(self.encoder.eval()(torch.zeros(1, 3, side, side)).values())
        self.encoder.train()
        *channels, below = [feature_map.shape[1] for feature_map in maps]
        self.stem: DoubleConv | None = None
        if maps[0].shape[2] < side:
            self.stem = DoubleConv(3, 32)
            channels = [32, *channels]
        self.smallest: int = side // maps[-1].shape[2]
        self.decoder = nn.ModuleList()
        for skip in reversed(channels):
            self.decoder.append(nn.ConvTranspose2d(below, skip, 2, stride=2))
            self.decoder.append(DoubleConv(2 * skip, skip))
            below = skip
        self.output_conv = nn.Conv2d(channels[0], out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2:]
        x = checked_input(x, self.in_channels, self.smallest, self.pads)
        x = (x - self.mean) / self.std
        *skips, deepest = self.encoder(x).values()
        if self.stem is not None:
            skips.insert(0, self.stem(x))
        return cut(decode(self.decoder, self.output_conv, deepest, skips, self.pads), height, width)
