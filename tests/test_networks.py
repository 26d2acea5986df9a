import copy

import numpy as np
import pytest
import torch
from torch import nn

from parts.errors import UserError
from parts.inference import BatchPredictor, make_runner
from parts.masks import MaskRule
from parts.networks import IMAGENET_MEAN, EncoderUNet, build_network, filters_for
from unet import UNet


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def test_without_an_encoder_it_is_the_plain_network():
    network = build_network(1, 2, (4, 8))
    assert isinstance(network, UNet) and network(torch.rand(1, 1, 9, 9)).shape == (1, 2, 9, 9)


@pytest.mark.parametrize("name", ["resnet18", slow("resnet34"), slow("resnet50"), "vgg11_bn", slow("vgg16_bn")])
def test_an_encoder_learns_at_odd_sizes(name):
    network = build_network(encoder=name)
    logits = network(torch.rand(2, 3, 65, 97))
    assert logits.shape == (2, 1, 65, 97)
    logits.mean().backward()
    without = [key for key, p in network.named_parameters() if p.grad is None]
    assert not without


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_an_encoder_takes_other_channels_than_rgb(channels):
    torch.manual_seed(0)
    network = build_network(channels, encoder="resnet18", pads=True).eval()
    assert network(torch.rand(1, channels, 40, 33)).shape == (1, 1, 40, 33)
    # An image whose channels are all alike gets the answer that a grey RGB image had.
    even, grey = torch.rand(4, 1, 7, 7).repeat(1, 3, 1, 1), torch.rand(1, 1, 9, 9)
    answers = [
        nn.functional.conv2d(grey.expand(-1, weight.shape[1], -1, -1), weight)
        for weight in (even, filters_for(even, channels))
    ]
    assert torch.allclose(*answers, rtol=1e-4)
    assert torch.equal(network.mean[0, :, 0, 0], torch.tensor(IMAGENET_MEAN).repeat(2)[:channels])


def test_too_small_or_unknown_is_refused_in_words():
    with pytest.raises(ValueError, match="at least 32x32"):
        build_network(encoder="resnet18")(torch.rand(1, 3, 31, 64))
    with pytest.raises(UserError, match="resnet34"):
        build_network(encoder="resnet1")


def test_normalisation_is_a_part_of_the_network():
    network = EncoderUNet("resnet18").eval()
    seen = []
    network.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    network(torch.full((1, 3, 32, 32), 0.5))
    assert seen[0][0, :, 0, 0].tolist() == pytest.approx([0.0655, 0.1964, 0.4178], abs=1e-3)
    assert {"mean", "std"} <= set(network.state_dict())


@pytest.mark.parametrize("name, deepest", [("resnet34", 512), slow("resnet50", 2048), slow("vgg13_bn", 512)])
def test_every_scale_has_a_skip_and_the_classifier_is_gone(name, deepest):
    network = build_network(encoder=name)
    assert [block.in_channels for block in network.decoder[::2]][0] == deepest and len(network.decoder) == 2 * 5
    assert not [key for key in network.state_dict() if "fc." in key or "classifier." in key]


@pytest.mark.parametrize("name", ["resnet34", slow("vgg16_bn")])
def test_a_checkpoints_network_is_rebuilt_without_its_weights_file(name):
    first = build_network(encoder=name).eval()
    first.mean.fill_(0.25)  # what is saved counts, not what the constants say by then
    again = build_network(encoder=name).eval()
    again.load_state_dict(first.state_dict())
    images = torch.rand(1, 3, 33, 50)
    with torch.no_grad():
        assert torch.equal(again(images), first(images))


# ---- one geometry for training, scoring and prediction


@pytest.mark.parametrize("encoder", [None, slow("resnet18")])
@pytest.mark.parametrize("size", [(33, 57), (60, 80), (75, 112)])
def test_what_is_scored_is_what_is_predicted(encoder, size):
    """At sizes that are no multiples of the stride, after a short training."""
    torch.manual_seed(0)
    network = build_network(features=(4, 8, 8), encoder=encoder, pads=True)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.5  # its statistics follow at once
    optimizer, loss_fn = torch.optim.Adam(network.parameters(), lr=0.01), torch.nn.BCEWithLogitsLoss()
    images = torch.randint(0, 256, (4, 3, *size), dtype=torch.uint8)
    images[:, :, size[0] // 3 :, size[1] // 3 :] //= 4
    truths = (images.float().mean(1, keepdim=True) < 40).float()
    for _ in range(8):
        optimizer.zero_grad()
        loss_fn(network(images / 255), truths).backward()
        optimizer.step()
    device = torch.device("cpu")
    scored = BatchPredictor(network, MaskRule(), device).labels(images)[:, 0].numpy()
    whole = BatchPredictor(network, MaskRule(), device, in_windows=True).labels(images)[:, 0].numpy()
    program = torch.export.export(network.eval(), (images[:1] / 255,)).module()
    exported = torch.cat([program(image[None] / 255) for image in images])[:, 0] > 0
    runner = make_runner(copy.deepcopy(network), "cpu", "float32")
    fetch = runner.logits(images.permute(0, 2, 3, 1).numpy())
    predicted = np.stack([fetch(index)[0] > 0 for index in range(4)])
    assert 0.01 < scored.mean() < 0.99, "something is to be told apart"
    assert (scored == predicted).all() and (scored == whole).all() and (scored == exported.numpy()).all()


def test_padding_is_of_the_stride_and_cut_again():
    network = build_network(features=(4, 8), pads=True).eval()
    images = torch.rand(1, 3, 10, 13)
    padded = torch.nn.functional.pad(images, (0, 3, 0, 2), mode="replicate")
    assert torch.equal(network(images), network(padded)[..., :10, :13])
    assert network(images[..., :1, :2]).shape == (1, 1, 1, 2)  # smaller than the stride as well


def test_the_articles_network_stretches_as_it_always_did():
    padding, stretching = build_network(features=(4, 8), pads=True).eval(), UNet(features=(4, 8)).eval()
    stretching.load_state_dict(padding.state_dict())
    even, odd = torch.rand(1, 3, 12, 16), torch.rand(1, 3, 13, 18)
    assert torch.equal(padding(even), stretching(even)) and not torch.equal(padding(odd), stretching(odd))
