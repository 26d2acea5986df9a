"""U-Net: images in, logits out, at any size that survives the pooling.

Ronneberger, Fischer, Brox: U-Net: Convolutional Networks for Biomedical Image Segmentation, 2015,
https://arxiv.org/abs/1505.04597, figure 1; with padded convolutions and batch normalisation, so that
the mask is as large as the image.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DoubleConv(nn.Module):
    """Two 3x3 convolutions, each normalised and rectified: (N, in, H, W) -> (N, out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (in_channels, out_channels):
            layers += [
                nn.Conv2d(channels, out_channels, 3, padding=1, bias=False),  # BatchNorm brings the bias
                nn.BatchNorm2d(out_channels),
                nn.ReLU(inplace=True),
            ]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class UNet(nn.Module):
    """The network of figure 1: `features` gives the channels of each encoder level, top down.

    Input (N, in_channels, H, W), output logits (N, out_channels, H, W). H and W need not be multiples of the stride,
    2 ** len(features). With `pads` the last row and column are repeated up to the next multiple, and the logits are cut
    again, so that each level is exactly half of the one above: train.py's networks. Without it, as in the article, what
    comes up is stretched by the row or column that a pooling has dropped; H and W must be at least the stride then, or
    a ValueError says so. The default has 31,037,633 parameters.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 1,
        features: Sequence[int] = (64, 128, 256, 512),
        pads: bool = False,
    ) -> None:
        super().__init__()
        features = list(features)
        self.in_channels, self.out_channels, self.pads = in_channels, out_channels, pads
        self.stride = 2 ** len(features)  # pixels of the image that one of the deepest level stands for
        # How far from a pixel it sees: two 3x3 convolutions a level reach 2 * 2**level on the way down and as far on
        # the way up, the two in the middle 2 * stride, and the poolings add up to stride - 1
        self.reach = 4 * (self.stride - 1) + 2 * self.stride + self.stride - 1
        self.encoder = nn.ModuleList()
        self.decoder = nn.ModuleList()
        self.pool = nn.MaxPool2d(2)
        for channels_in, channels in zip([in_channels] + features, features):
            self.encoder.append(DoubleConv(channels_in, channels))
        below = 2 * features[-1]
        for channels in reversed(features):
            self.decoder.append(nn.ConvTranspose2d(below, channels, 2, stride=2))
            self.decoder.append(DoubleConv(2 * channels, channels))
            below = channels
        self.middle = DoubleConv(features[-1], 2 * features[-1])
        self.output_conv = nn.Conv2d(features[0], out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        x = checked_input(x, self.in_channels, self.stride, self.pads)
        skips = []
        for block in self.encoder:
            x = block(x)
            skips.append(x)
            x = self.pool(x)
        return cut(decode(self.decoder, self.output_conv, self.middle(x), skips, self.pads), height, width)


def checked_input(x: Tensor, in_channels: int, stride: int, pads: bool) -> Tensor:
    """Images as the encoder takes them: with `pads` their last row and column repeated up to a multiple of `stride`.

    ValueError: they are not (N, in_channels, H, W), or smaller than the stride and not padded.
    """
    if x.dim() != 4 or x.shape[1] != in_channels:
        raise ValueError(f"the network takes images of shape (N, {in_channels}, H, W), got {tuple(x.shape)}")
    if pads:
        below, beside = -x.shape[2] % stride, -x.shape[3] % stride
        if torch.compiler.is_exporting() or below or beside:  # an exported network must find out when it runs
            x = F.pad(x, (0, beside, 0, below), mode="replicate")
    elif min(x.shape[2:]) < stride:
        raise ValueError(
            f"images of {x.shape[2]}x{x.shape[3]} are too small: the poolings of this network "
            f"need at least {stride}x{stride} (fewer FEATURES need less)"
        )
    return x


def cut(logits: Tensor, height: int, width: int) -> Tensor:
    """The logits of the images themselves, without those of the padding."""
    if torch.compiler.is_exporting():
        # A view of free sizes is contiguous or not, which the exported network would hold to; padding by less copies.
        return F.pad(logits, (0, width - logits.shape[3], 0, height - logits.shape[2]))
    return logits[..., :height, :width]


def decode(decoder: nn.ModuleList, output_conv: nn.Conv2d, x: Tensor, skips: list[Tensor], even: bool) -> Tensor:
    """The way up, from the deepest feature map `x` to the logits.

    `decoder` alternates upsampling and DoubleConv. `skips`, the encoder's feature maps from top to bottom, is emptied.
    `even`: each of them is exactly twice as large as the next one, as where images are padded.
    """
    for upsample, block in zip(decoder[::2], decoder[1::2]):
        x, skip = upsample(x), skips.pop()
        # The pooling drops an odd row or column; an exported network must find out when it runs.
        if not even and (torch.compiler.is_exporting() or x.shape[2:] != skip.shape[2:]):
            x = F.interpolate(x, size=skip.shape[2:], mode="bilinear", antialias=False)
        x = torch.cat([skip, x], dim=1)
        del skip  # without gradients its memory is free from here on
        x = block(x)
    return output_conv(x)


unet, doubleConv = UNet, DoubleConv  # the article's spellings
