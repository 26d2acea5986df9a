import pytest
import torch
from torch import nn

import unet
from unet import DoubleConv, UNet


def test_the_default_network_is_the_articles():
    network = UNet()
    assert sum(parameter.numel() for parameter in network.parameters()) == 31_037_633
    keys = set(network.state_dict())
    assert {"encoder.0.conv.0.weight", "middle.conv.4.running_var", "decoder.0.bias", "output_conv.bias"} <= keys
    assert unet.unet is UNet and unet.doubleConv is DoubleConv
    assert network.decoder[0].weight.shape == (1024, 512, 2, 2)


@pytest.mark.parametrize("size", [(16, 16), (161, 241), (33, 16), (47, 63)])
def test_any_size_comes_out_as_it_went_in_and_learns(size):
    network = UNet(features=(4, 8, 8, 8))
    logits = network(torch.rand(2, 3, *size))
    assert logits.shape == (2, 1, *size)
    nn.functional.binary_cross_entropy_with_logits(logits, torch.ones_like(logits)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_carvanas_full_size():
    with torch.no_grad():
        assert UNet(features=(2, 2, 2, 2)).eval()(torch.rand(1, 3, 1280, 1918)).shape == (1, 1, 1280, 1918)


def test_other_channels_and_levels():
    assert UNet(1, 5, (4, 8))(torch.rand(1, 1, 10, 12)).shape == (1, 5, 10, 12)


def test_what_does_not_fit_is_refused_in_words():
    network = UNet(features=(4, 4, 4, 4))
    with pytest.raises(ValueError, match="at least 16x16"):
        network(torch.rand(1, 3, 15, 40))
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\)"):
        network(torch.rand(1, 1, 32, 32))


def test_every_skip_reaches_the_output():
    network = UNet(features=(4, 4)).eval()
    image = torch.rand(1, 3, 16, 16)
    before = network(image)
    for block in network.encoder:  # an encoder level that only the skip carries on
        kept = block.conv[0].weight.data.clone()
        block.conv[0].weight.data.mul_(-1)
        assert not torch.equal(network(image), before)
        block.conv[0].weight.data.copy_(kept)


def test_channels_last_survives_the_network():
    network = UNet(features=(8, 8)).to(memory_format=torch.channels_last)
    seen = []
    network.decoder[1].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    network(torch.rand(1, 3, 17, 19).contiguous(memory_format=torch.channels_last))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
