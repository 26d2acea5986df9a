"""The network that a run trains: the plain U-Net, or torchvision's encoder under the same decoder.

A pretrained encoder starts from features learnt on ImageNet, as in Iglovikov and Shvets: TernausNet,
2018, https://arxiv.org/abs/1801.05746, with VGG-11.
"""

import torch
from torch import nn

from parts.errors import UserError
from unet import DoubleConv, UNet, check_input, decode

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of channels in [0, 1]
_RESNET = ["relu", "layer1", "layer2", "layer3", "layer4"]  # at 1/2 ... 1/32


# What follows each pooling's input, at full size ... 1/16, and at last the deepest layer.
NODES = {
    **{f"resnet{depth}": _RESNET for depth in (18, 34, 50, 101, 152)},
    "vgg11_bn": [f"features.{i}" for i in (2, 6, 13, 20, 27, 28)],
    "vgg13_bn": [f"features.{i}" for i in (5, 12, 19, 26, 33, 34)],
    "vgg16_bn": [f"features.{i}" for i in (5, 12, 22, 32, 42, 43)],
    "vgg19_bn": [f"features.{i}" for i in (5, 12, 25, 38, 51, 52)],
}


def build_network(in_channels=3, out_channels=1, features=(64, 128, 256, 512), encoder=None):
    """UNet(in_channels, out_channels, features), or an EncoderUNet where `encoder` names one.

    Both take images (N, in_channels, H, W) in [0, 1] and give logits (N, out_channels, H, W).
    """
    if encoder is None:
        return UNet(in_channels, out_channels, features)
    if in_channels != 3:
        raise UserError(f"ENCODER = {encoder!r} takes images of 3 channels, not {in_channels}.")
    return EncoderUNet(encoder, out_channels)


class EncoderUNet(nn.Module):
    """torchvision's network `name` up to its last feature map, under U-Net's decoder; its weights are random.

    The input normalisation that the encoder was trained with is a part of the network. A ResNet has no
    features at full size: a DoubleConv on the image stands in, so that edges stay sharp.
    """

    def __init__(self, name, out_channels=1):
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
