import pytest
import torch

from parts.errors import UserError
from parts.networks import EncoderUNet, build_network
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


def test_too_small_or_unknown_is_refused_in_words():
    with pytest.raises(ValueError, match="at least 32x32"):
        build_network(encoder="resnet18")(torch.rand(1, 3, 31, 64))
    with pytest.raises(UserError, match="resnet34"):
        build_network(encoder="resnet1")
    with pytest.raises(UserError, match="3 channels"):
        build_network(in_channels=1, encoder="resnet18")


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
