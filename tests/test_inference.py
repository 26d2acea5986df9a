"""A network over pictures: windows, mirrored copies, folding."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from predicting import blobs

from parts.errors import UserError
from parts.inference import Runner, fold_batchnorm, make_runner
from unet import UNet

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network():
    """A U-Net with random weights and statistics, of whose logits half are above 0."""
    torch.manual_seed(0)
    network = UNet(features=(8, 16), pads=True).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.8, 1.6)
    with torch.no_grad():
        logits = alone(network, blobs(96, 128))
        scale = 3 / logits.std()
        network.output_conv.bias.sub_(float(np.median(logits))).mul_(float(scale))
        network.output_conv.weight.mul_(float(scale))
    return network


@pytest.fixture(scope="module")
def classes(network):
    """A network of three classes: the first layer is the one of `network`, and each class is the best somewhere."""
    torch.manual_seed(1)
    several = UNet(features=(8, 16), out_channels=3, pads=True).eval()
    weights = network.state_dict()
    for key in ("output_conv.weight", "output_conv.bias"):
        weights[key] = torch.cat([weights[key], *(torch.randn_like(weights[key]) for _ in range(2))])
    several.load_state_dict(weights)
    with torch.no_grad():
        logits = several(torch.from_numpy(blobs(96, 128)).permute(2, 0, 1)[None] / 255)[0].flatten(1)
        several.output_conv.bias -= logits.median(1).values
        for parameter in several.output_conv.parameters():
            parameter.mul_((3 / logits.std(1)).reshape(-1, *[1] * (parameter.ndim - 1)))
    return several


def alone(network, image):
    """The network as it is, on one picture: (C, H, W)."""
    with torch.no_grad():
        return network(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)[0].numpy()


# ---- one picture


@pytest.mark.parametrize("size", [(300, 420), (301, 423), (130, 500)])
def test_windows_give_the_whole_pictures_mask(network, size):
    image = blobs(*size)
    runner = Runner(network, CPU, window=128)
    assert runner.shared >= 2 * network.reach and not runner.fits(size)
    told = []
    whole = runner.logits(image[None])(0)
    windows = runner.logits_in_windows(image, lambda number, total: told.append((number, total)))
    assert windows.shape == (1, *size) and windows.dtype == np.float32
    assert ((windows > 0) != (whole > 0)).mean() < 1e-4
    assert np.abs(windows - whole).max() < 1e-3
    assert len(told) > 1 and told == [(number + 1, len(told)) for number in range(len(told))]


def test_windows_with_too_little_overlap_differ_only_near_seams(network):
    image = blobs(300, 420)
    whole = Runner(network, CPU).logits(image[None])(0)
    windows = Runner(network, CPU, window=128, overlap=16).logits_in_windows(image)
    assert np.abs(windows - whole).max() > 1e-3, "this is what the default overlap is for"
    assert ((windows > 0) != (whole > 0)).mean() < 0.05


def test_weights_of_all_windows_sum_to_one(network):
    for window, overlap, length in ((128, None, 1000), (128, 16, 1000), (100, 40, 101), (64, 0, 333), (128, None, 90)):
        runner = Runner(network, CPU, window=window, overlap=overlap)
        total = np.zeros(2000)
        for span in runner.windows_along(length):
            assert span.start % runner.stride == 0
            total[span.pixels] += span.weights
        assert np.allclose(total[:length], 1, atol=1e-6)


def test_nothing_beyond_its_reach_changes_a_logit(network):
    runner, image = Runner(network, CPU), blobs(96, 96)
    reach = network.reach
    other = image.copy()
    other[:, 50:] = 255 - other[:, 50:]
    apart = np.abs(runner.logits(image[None])(0) - runner.logits(other[None])(0)).max(axis=(0, 1))
    assert (apart[: 50 - reach] == 0).all() and apart[50 - 8 : 50].max() > 0


def test_sizes_that_pool_evenly_are_run_as_the_network_alone(network):
    images = np.stack([blobs(96, 128, seed) for seed in range(3)])
    fetch = Runner(network, CPU).logits(images)
    for index, image in enumerate(images):
        assert np.allclose(fetch(index), alone(network, image), atol=1e-5)


def test_folding_changes_nothing(network):
    folded = fold_batchnorm(deepcopy(network))
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    assert np.allclose(alone(folded, blobs(96, 128)), alone(network, blobs(96, 128)), atol=1e-4)


def test_a_runner_is_made_by_the_words_of_the_constants(network):
    image = blobs(96, 128)
    runner = make_runner(deepcopy(network), "cpu", "float32", mirrors="h", window=100)
    assert runner.device == CPU and runner.dtype is None and runner.mirrors == "h" and runner.window == 100
    exact = alone(network, image)
    for precision, apart in (("float32", 1e-4), ("bfloat16", 1.0)):
        logits = make_runner(deepcopy(network), "cpu", precision).logits(image[None])(0)
        assert logits.dtype == np.float32 and np.abs(logits - exact).max() < apart
        assert ((logits > 0) != (exact > 0)).mean() < 0.03
    with pytest.raises(UserError, match="PRECISION"):
        make_runner(deepcopy(network), "cpu", "float16")
    with pytest.raises(UserError, match="DEVICE"):
        make_runner(deepcopy(network), "abacus")


def test_several_channels_come_as_planes(classes):
    images = np.stack([blobs(96, 128, seed) for seed in range(3)])
    fetch = Runner(classes, CPU).logits(images)
    for index, image in enumerate(images):
        logits = fetch(index)
        assert logits.shape == (3, 96, 128) and logits.dtype == np.float32 and logits.flags.c_contiguous
        assert np.allclose(logits, alone(classes, image), atol=1e-4)
    assert len(np.unique(fetch(0).argmax(0))) == 3
    image = blobs(301, 423)
    whole, windows = (Runner(classes, CPU, window=window) for window in (768, 128))
    logits = whole.logits(image[None])(0)
    assert np.abs(windows.logits_in_windows(image) - logits).max() < 1e-3
    averaged = Runner(classes, CPU, mirrors="h").logits(images)(0)
    turned = Runner(classes, CPU).logits(np.ascontiguousarray(images[:, :, ::-1]))(0)[..., ::-1]
    assert np.allclose(averaged, (fetch(0) + turned) / 2, atol=1e-4) and not np.allclose(averaged, turned, atol=1e-2)


@pytest.mark.parametrize("mirrors, kind", [(None, "network"), ("hv", "classes")])
@pytest.mark.parametrize("size, overlap", [((301, 423), None), ((301, 423), 0), ((90, 500), None), ((500, 90), None)])
def test_bands_are_the_windows_logits_and_a_strip_is_all_that_is_kept(request, size, overlap, mirrors, kind):
    image = blobs(*size)
    runner = Runner(request.getfixturevalue(kind), CPU, window=128, overlap=overlap, mirrors=mirrors)
    bands, end = np.full((runner.channels, *size), np.nan, np.float32), 0

    for top, logits in runner.bands(image):
        assert top == end and 0 < logits.shape[1] <= 128
        assert logits.untyped_storage().nbytes() <= 4 * runner.channels * 128 * size[1]
        end += logits.shape[1]
        bands[:, top:end] = logits
    assert end == size[0] and (bands == runner.logits_in_windows(image)).all()


@pytest.mark.parametrize("mirrors, axes", [("h", 1), ("v", 0), ("hv", (0, 1))])  # of the image
def test_mirrored_runs_make_the_mask_blind_to_mirroring(network, mirrors, axes):
    image = blobs(96, 128)
    runner, plain = Runner(network, CPU, mirrors=mirrors), Runner(network, CPU)
    turned = np.ascontiguousarray(np.flip(image, axes))
    first, second = runner.logits(image[None])(0)[0], np.flip(runner.logits(turned[None])(0)[0], axes)
    assert np.allclose(first, second, atol=1e-4)
    assert not np.allclose(plain.logits(image[None])(0)[0], first, atol=1e-2)
