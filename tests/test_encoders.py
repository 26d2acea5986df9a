import pytest
import torch
import torchvision

from encoders import EncoderUNet, build_network
from errors import UserError
from unet import UNet


def test_without_an_encoder_it_is_the_plain_network():
    network = build_network(1, 2, (4, 8))
    assert isinstance(network, UNet) and network(torch.rand(1, 1, 9, 9)).shape == (1, 2, 9, 9)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "vgg11_bn", "vgg16_bn"])
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


def test_weights_of_a_file_arrive_and_those_of_another_network_are_refused(tmp_path):
    torch.manual_seed(1)
    whole = torchvision.models.resnet18(weights=None)
    torch.save(whole.state_dict(), tmp_path / "resnet18.pth")
    network = build_network(encoder="resnet18", encoder_weights=str(tmp_path / "resnet18.pth"))
    assert torch.equal(network.state_dict()["encoder.layer4.0.conv1.weight"], whole.layer4[0].conv1.weight)
    with pytest.raises(UserError, match="another architecture"):
        build_network(encoder="vgg11_bn", encoder_weights=str(tmp_path / "resnet18.pth"))


def test_normalisation_is_a_part_of_the_network():
    network = EncoderUNet("resnet18").eval()
    seen = []
    network.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    network(torch.full((1, 3, 32, 32), 0.5))
    assert seen[0][0, :, 0, 0].tolist() == pytest.approx([0.0655, 0.1964, 0.4178], abs=1e-3)
    assert {"mean", "std"} <= set(network.state_dict())


def test_weights_out_of_reach_are_told_with_their_place(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there: no network, wherever this runs
    with pytest.raises(UserError) as told:
        build_network(encoder="resnet18", encoder_weights="DEFAULT")
    assert str(tmp_path) in str(told.value) and "resnet18-" in str(told.value) and "None" in str(told.value)
    with pytest.raises(UserError, match="IMAGENET1K_V1"):
        build_network(encoder="resnet18", encoder_weights="IMAGENET99")


def test_weights_in_torchvisions_cache_are_used(tmp_path, monkeypatch):
    """A file under the name that torchvision gives its weights; its hash is checked, so a false one is refused."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    name = torchvision.models.ResNet18_Weights.DEFAULT.url.rpartition("/")[2]
    whole = torchvision.models.resnet18(weights=None)
    torch.save(whole.state_dict(), tmp_path / "hub" / "checkpoints" / name)
    network = build_network(encoder="resnet18", encoder_weights="DEFAULT")
    assert torch.equal(network.state_dict()["encoder.conv1.weight"], whole.conv1.weight)
