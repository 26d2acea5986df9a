import pytest
import torch
import torchvision

from encoders import EncoderUNet, build_network
from errors import UserError
from recipe import WeightAverage
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


def test_weights_in_torchvisions_cache_are_used_and_damaged_ones_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    name = torchvision.models.ResNet18_Weights.DEFAULT.url.rpartition("/")[2]
    file = tmp_path / "hub" / "checkpoints" / name
    file.parent.mkdir(parents=True)
    whole = torchvision.models.resnet18(weights=None)
    torch.save(whole.state_dict(), file)
    network = build_network(encoder="resnet18", encoder_weights="DEFAULT")
    assert torch.equal(network.state_dict()["encoder.conv1.weight"], whole.conv1.weight)
    file.write_bytes(file.read_bytes()[:100_000])
    with pytest.raises(UserError, match=name):
        build_network(encoder="resnet18", encoder_weights="DEFAULT")


def test_files_without_batchnorms_counters_or_with_another_classifier_load(tmp_path):
    whole = torchvision.models.resnet18(weights=None, num_classes=7)
    old = {key: value for key, value in whole.state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    network = build_network(encoder="resnet18", encoder_weights=str(tmp_path / "old.pth"))
    assert torch.equal(network.state_dict()["encoder.layer1.0.conv1.weight"], whole.layer1[0].conv1.weight)


@pytest.mark.parametrize("name, deepest", [("resnet34", 512), ("resnet50", 2048), ("vgg13_bn", 512)])
def test_every_scale_has_a_skip_and_the_classifier_is_gone(name, deepest):
    network = build_network(encoder=name)
    assert [block.in_channels for block in network.decoder[::2]][0] == deepest and len(network.decoder) == 2 * 5
    assert not [key for key in network.state_dict() if "fc." in key or "classifier." in key]


@pytest.mark.parametrize("name", ["resnet34", "vgg16_bn"])
def test_a_checkpoints_network_is_rebuilt_without_its_weights_file(name):
    first = build_network(encoder=name).eval()
    first.mean.fill_(0.25)  # what is saved counts, not what the constants say by then
    again = build_network(encoder=name, encoder_weights=None).eval()
    again.load_state_dict(first.state_dict())
    images = torch.rand(1, 3, 33, 50)
    with torch.no_grad():
        assert torch.equal(again(images), first(images))


def test_the_average_and_the_memory_format_go_with_an_encoder():
    network = build_network(encoder="resnet18").to(memory_format=torch.channels_last)
    average = WeightAverage(network, 0.9)
    with torch.no_grad():
        network.output_conv.bias.add_(1)
    average.update(network)
    assert network.output_conv.bias.item() - average.network.output_conv.bias.item() == pytest.approx(2 / 11)
    weight = average.network.get_parameter("encoder.layer1.0.conv1.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)
    images = torch.rand(1, 3, 40, 56).contiguous(memory_format=torch.channels_last)
    assert average.network(images).shape == (1, 1, 40, 56)
