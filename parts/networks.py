"""The network that a run trains: the plain U-Net, another one of the table, or one of the user's own.

Every network takes images (N, in_channels, H, W) in [0, 1], gives logits (N, out_channels, H, W), and has these
attributes:
    in_channels, out_channels
    stride   H and W of what it computes are multiples of this; it is the least height and width that it is trained on
    pads     whether other sizes are padded to the stride and logits cut again: one geometry for training, scoring and
             prediction at any size. Networks of the article's checkpoints stretch instead (see UNet)
    reach    how far from a pixel it sees, by which windows overlap

A pretrained encoder starts from features learnt on ImageNet, as in Iglovikov and Shvets: TernausNet,
2018, https://arxiv.org/abs/1801.05746, with VGG-11.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from parts.errors import UserError
from parts.own import faults_of, is_own, load_part, name_of_part
from unet import DoubleConv, UNet, checked_input, cut, decode

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of channels in [0, 1]
CONTRACT = (
    "A network is made by NETWORK(in_channels, out_channels), with features where it takes them, and gives logits "
    "(N, out_channels, H, W) of images (N, in_channels, H, W)."
)
_STRIDES = (1, 2, 4, 8, 16, 32, 64, 128)  # that are tried on a network of one's own which does not tell its own
_REACH_SIDE = 384  # pixels of the image on which its reach is measured

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
    network: Any = "unet",
) -> Network:
    """The network that NETWORK, FEATURES and ENCODER name, with random weights.

    `network`: a word of NETWORKS, or one's own, as "FILE.py:NAME" or the object itself. `pads`: see above; a network of
    one's own always does. UserError: there is no such network or encoder, or it is not what the contract says.
    """
    if encoder is not None:
        if network != "unet":
            raise UserError(f'ENCODER = {encoder!r} is for NETWORK = "unet", not for {name_of_part(network)!r}.')
        return EncoderUNet(encoder, out_channels, pads, in_channels)
    make = load_part("NETWORK", network, NETWORKS)
    if not is_own(network):
        return make(in_channels, out_channels, features, pads)
    with faults_of("NETWORK", network, CONTRACT):
        return OwnNetwork(make, in_channels, out_channels, features)


class AttentionUNet(UNet):
    """UNet with attention gates, which weigh each pixel of a skip by what comes up from the level below.

    Oktay et al.: Attention U-Net: Learning Where to Look for the Pancreas, 2018, https://arxiv.org/abs/1804.03999,
    section 2.2; the gates work at the skip's own size, on what has been upsampled already.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 1,
        features: Sequence[int] = (64, 128, 256, 512),
        pads: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, features, pads)
        for level, channels in enumerate(reversed(features)):
            self.decoder[2 * level + 1] = GatedDoubleConv(channels)


class GatedDoubleConv(nn.Module):
    """A gate on the skip, then a DoubleConv: (N, 2 * channels, H, W), skip first -> (N, channels, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        middle = max(1, channels // 2)
        self.mix = nn.Conv2d(2 * channels, middle, 1)
        self.gate = nn.Conv2d(middle, 1, 1)
        self.block = DoubleConv(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.gate(self.mix(x).relu()).sigmoid()  # (N, 1, H, W)
        skip, below = x.chunk(2, dim=1)
        return self.block(torch.cat([skip * weights, below], dim=1))


NETWORKS: dict[str, Callable[..., UNet]] = {"unet": UNet, "attention": AttentionUNet}


class EncoderUNet(nn.Module):
    """torchvision's network `name` up to its last feature map, under U-Net's decoder; its weights are random.

    The input normalisation that the encoder was trained with is a part of the network; further channels than RGB have
    that of red, green and blue in turn. A ResNet has no features at full size: a DoubleConv on the image stands in, so
    that edges stay sharp.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, out_channels: int = 1, pads: bool = False, in_channels: int = 3) -> None:
        super().__init__()
        if name not in NODES:
            raise UserError(f"ENCODER = {name!r}: choose {', '.join(NODES)}, or None for the plain U-Net.")
        # Imported here, because it takes a second or two to load, and the plain U-Net does without
        from torchvision.models import get_model
        from torchvision.models.feature_extraction import create_feature_extractor

        self.in_channels, self.out_channels, self.pads = in_channels, out_channels, pads
        for key, of_rgb in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(key, repeated(torch.tensor(of_rgb).reshape(1, 3, 1, 1), in_channels))
        self.encoder = create_feature_extractor(get_model(name, weights=None), NODES[name])
        if in_channels != 3:
            _replace_first_layer(self.encoder, in_channels)
        side = 64  # pixels of a trial image, which shows the channels and the size of each feature map
        with torch.no_grad():
            maps = list(self.encoder.eval()(torch.zeros(1, in_channels, side, side)).values())
        self.encoder.train()
        *channels, below = [feature_map.shape[1] for feature_map in maps]
        self.stem: DoubleConv | None = None
        if maps[0].shape[2] < side:
            self.stem = DoubleConv(in_channels, 32)
            channels = [32, *channels]
        self.stride: int = side // maps[-1].shape[2]
        self.reach = 11 * self.stride  # the plain U-Net's; with more layers it sees further, ever fainter
        self.decoder = nn.ModuleList()
        for skip in reversed(channels):
            self.decoder.append(nn.ConvTranspose2d(below, skip, 2, stride=2))
            self.decoder.append(DoubleConv(2 * skip, skip))
            below = skip
        self.output_conv = nn.Conv2d(channels[0], out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        x = checked_input(x, self.in_channels, self.stride, self.pads)
        x = (x - self.mean) / self.std
        *skips, deepest = self.encoder(x).values()
        if self.stem is not None:
            skips.insert(0, self.stem(x))
        return cut(decode(self.decoder, self.output_conv, deepest, skips, self.pads), height, width)


def repeated(values: Tensor, channels: int) -> Tensor:
    """A tensor (N, C, H, W) as (N, channels, H, W): those of its channels, such as red, green and blue, in turn."""
    return values.repeat(1, -(-channels // values.shape[1]), 1, 1)[:, :channels].contiguous()


def filters_for(filters: Tensor, channels: int) -> Tensor:
    """Filters (N, C, H, W), such as those for RGB, as filters for images of `channels`, with answers as strong.

    They are repeated and rescaled, as timm does it (adapt_input_conv); for greys they are added up.
    """
    if channels == 1:
        return filters.sum(1, keepdim=True)
    return repeated(filters, channels) * (filters.shape[1] / channels)


def _replace_first_layer(encoder: nn.Module, channels: int) -> None:
    """Has the first convolution of an encoder take images of `channels`; its filters are made of those it had."""
    first = next(module for module in encoder.modules() if isinstance(module, nn.Conv2d))
    with torch.no_grad():
        weight = filters_for(first.weight, channels)
    first.in_channels, first.weight = channels, nn.Parameter(weight)


class OwnNetwork(nn.Module):
    """A network of the user's own, made by `make(in_channels, out_channels)`, with what all networks here have.

    `features` is handed on where `make` takes it. The network's attributes `stride` and `reach` are taken where it has
    them, and measured otherwise. Its weights keep the names that it gives them. Any exception: it is not what CONTRACT
    says.
    """

    pads = True

    def __init__(self, make: Callable[..., nn.Module], in_channels: int, out_channels: int, features: Sequence[int]):
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        arguments: dict[str, Any] = {}
        if "features" in inspect.signature(make).parameters:
            arguments["features"] = list(features)
        self.network = make(in_channels=in_channels, out_channels=out_channels, **arguments)
        if not isinstance(self.network, nn.Module):
            raise TypeError(f"a {type(self.network).__name__} is no torch.nn.Module")
        self.network.eval()
        self.stride: int = self._find_stride()
        self._refuse_probabilities()
        self.network.train()

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        return cut(self.network(checked_input(x, self.in_channels, self.stride, self.pads)), height, width)

    def state_dict(self, *arguments: Any, **keywords: Any) -> dict[str, Any]:  # type: ignore[override]
        return self.network.state_dict(*arguments, **keywords)

    def load_state_dict(self, *arguments: Any, **keywords: Any) -> Any:
        return self.network.load_state_dict(*arguments, **keywords)

    @torch.no_grad()
    def _find_stride(self) -> int:
        """The network's own `stride`, or the least power of two whose odd multiples it takes as they are."""
        if isinstance(own := getattr(self.network, "stride", None), int):
            self._try_size(own)
            return own
        for stride in _STRIDES[:-1]:
            with suppress(Exception):  # of whatever kind: it does not take this size
                self._try_size(stride)
                return stride
        self._try_size(_STRIDES[-1])
        return _STRIDES[-1]

    @torch.enable_grad()
    def _refuse_probabilities(self) -> None:
        """ValueError: the last layer is a sigmoid or softmax, which the losses apply themselves."""
        last = type(self.network(torch.zeros(1, self.in_channels, *_trial_size(self.stride))).grad_fn).__name__
        if last.startswith(("Sigmoid", "Softmax", "LogSoftmax")):
            raise ValueError("it ends in a sigmoid or softmax; leave that out, as logits are wanted")

    def _try_size(self, stride: int) -> None:
        """Any exception: the network does not take images of odd multiples of `stride`, or gives no logits of them."""
        height, width = _trial_size(stride)
        images = torch.zeros(1, self.in_channels, height, width)
        logits = self.network(images)
        wanted = (1, self.out_channels, height, width)
        trial = f"of a trial image {tuple(images.shape)} it gives"
        if not isinstance(logits, Tensor):
            raise TypeError(f"{trial} a {type(logits).__name__} instead of a tensor {wanted}")
        if tuple(logits.shape) != wanted:
            raise ValueError(f"{trial} {tuple(logits.shape)}, and expected is {wanted}")

    @cached_property
    def reach(self) -> int:
        """The network's own `reach`, or how far from a pixel its logits depend on the image noticeably."""
        if isinstance(own := getattr(self.network, "reach", None), int):
            return own
        side = -(-_REACH_SIDE // self.stride) * self.stride
        place = next(self.network.parameters())
        images = torch.rand(1, self.in_channels, side, side, device=place.device, requires_grad=True)
        training = self.network.training
        with torch.enable_grad():
            logits = self.network.eval()(images)
            (gradient,) = torch.autograd.grad(logits[0, :, side // 2, side // 2].sum(), images)
        self.network.train(training)
        strength = gradient[0].abs().amax(0)
        rows, columns = torch.nonzero(strength > 1e-5 * strength.max(), as_tuple=True)
        return int(torch.cat([rows, columns]).sub(side // 2).abs().max())


def _trial_size(stride: int) -> tuple[int, int]:
    """Height and width of a trial image: odd multiples of the stride."""
    return stride * (64 // stride | 1), stride * (96 // stride | 1)


Network = UNet | EncoderUNet | OwnNetwork


# ---- what is trained of it, and in how much memory


def freeze_encoder(network: Network, frozen: bool) -> None:
    """Freezes the weights of a network's `encoder`, or frees them. UserError: it has none."""
    encoder = getattr(getattr(network, "network", network), "encoder", None)
    if not isinstance(encoder, nn.Module):
        raise UserError("FREEZE_ENCODER needs a network with a part called `encoder`. Set it to 0.")
    encoder.requires_grad_(not frozen)


def keep_frozen_statistics(model: nn.Module) -> None:
    """Leaves the statistics of BatchNorm layers alone whose weights are frozen."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)) and not module.weight.requires_grad:
            module.eval()


def recompute_blocks(network: Network) -> None:
    """Has each block of a network computed once more for its gradients, instead of keeping what it computes in memory.

    Chen, Xu, Zhang, Guestrin: Training Deep Nets with Sublinear Memory Cost, 2016, section 4. BatchNorm's statistics
    learn from the first time alone. Blocks are DoubleConvs and ResNet's; of a network of one's own its direct children.
    """
    blocks = [module for module in network.modules() if type(module).__name__ in _BLOCKS]
    if isinstance(network, OwnNetwork):
        blocks = list(network.network.children())
    for block in blocks:
        block.forward = partial(_recomputed, block, block.forward)  # type: ignore[method-assign]


_BLOCKS = ("DoubleConv", "BasicBlock", "Bottleneck")


def _recomputed(block: nn.Module, forward: Callable[..., Any], *inputs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs)

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:  # of the first computation, and the second
        return nullcontext(), _statistics_kept(block)

    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts)


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    before = [buffer.clone() for buffer in block.buffers()]
    try:
        yield
    finally:  # also where the second computation ends early, as soon as all is there that gradients need
        with torch.no_grad():
            for buffer, value in zip(block.buffers(), before):
                buffer.copy_(value)
