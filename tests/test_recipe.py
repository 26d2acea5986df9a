import errno
import math
import re
from types import SimpleNamespace

import cv2
import pytest
import torch
import torch._dynamo
from torch import nn

from parts import recipe
from parts.endings import out_of_memory_message
from parts.errors import UserError, ran_out_of_memory
from parts.masks import IGNORED, MaskRule
from unet import UNet

CPU = torch.device("cpu")
FLIPS, JITTER = recipe.Variation(flip=True), recipe.Variation(color_jitter=0.3)


def test_the_dtype_follows_the_constant():
    assert recipe.autocast_dtype(CPU, "float32") is None and recipe.autocast_dtype(CPU, "bfloat16") == torch.bfloat16
    assert recipe.choose_precision(torch.device("mps")) == "float32"
    with pytest.raises(UserError, match="float16"):
        recipe.autocast_dtype(CPU, "float16")


@pytest.mark.parametrize("listed, bfloat16, chosen", [
    (True, 0.5, "bfloat16"), (True, 0.95, "float32"), (True, 2.0, "float32"), (False, 0.5, "float32"),
])  # fmt: skip
def test_a_cpu_computes_in_what_is_faster_there(monkeypatch, capsys, listed, bfloat16, chosen):
    monkeypatch.setattr(recipe, "cpu_lists_bfloat16", lambda: listed)
    monkeypatch.setattr(recipe, "convolution_times", lambda: recipe.ConvolutionTimes(1.0, bfloat16, 1.0))
    s = SimpleNamespace(PRECISION="auto")
    assert recipe.settle_precision(s, CPU, recipe.choose_precision(CPU)) == recipe.PRECISIONS[chosen]
    assert chosen == s.PRECISION and (f"{bfloat16:.2f} times as long" in capsys.readouterr().out) == listed
    assert recipe.autocast_dtype(CPU) == recipe.PRECISIONS[chosen]


def test_a_convolution_is_timed_and_threads_are_left_as_they_were():
    threads = torch.get_num_threads()
    times = recipe.convolution_times()
    assert times.float32 > 0 and times.bfloat16 > 0 and times.slowdown_by_threads > 0
    assert torch.get_num_threads() == threads


def test_an_overflow_leaves_a_step_out_and_halves_the_scale():
    scaler = torch.amp.GradScaler("cpu")
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scaler.scale((weight * 2).sum()).backward()
    scaler.unscale_(optimizer)
    assert torch.equal(weight.grad, torch.full((2, 2), 2.0))
    scaler.step(optimizer)
    scaler.update()
    weight.grad.fill_(math.inf)  # an overflow: the step is left out and the scale halved
    before, scale = weight.detach().clone(), scaler.get_scale()
    scaler.scale(torch.zeros(1, requires_grad=True).sum())
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(weight, before) and scaler.get_scale() < scale


def test_the_label_that_is_ignored_is_the_masks():
    assert recipe.IGNORED == IGNORED


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_the_optimizer_decays_weights_alone(name):
    network = UNet(features=(2, 2))
    optimizer = recipe.make_optimizer(network, name, 1e-3, 0.1)
    decayed, free = optimizer.param_groups
    assert decayed["weight_decay"] == 0.1 and free["weight_decay"] == 0
    assert all(p.dim() == 4 for p in decayed["params"]) and all(p.dim() == 1 for p in free["params"])
    assert len(decayed["params"]) + len(free["params"]) == len(list(network.parameters()))
    assert isinstance(optimizer, torch.optim.AdamW) == (name == "adamw")


def factors_of(schedule, warmup=0.0, total=100):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    made = recipe.Schedule(optimizer, schedule, total, 1, warmup)
    return [made.factor_of(step) for step in range(total)]


def test_schedules_rise_and_fall():
    linear = factors_of("linear", 0.2)
    assert linear[:20] == sorted(linear[:20]) and linear[20] == 1 and linear[20:] == sorted(linear[20:], reverse=True)
    assert linear[60] == 0.5 and 0 < linear[99] < 0.02
    cosine = factors_of("cosine")
    assert cosine[0] == 1 and cosine[50] == pytest.approx(0.5) and cosine[99] < 0.001
    assert set(factors_of("constant")) == {1}


def test_the_plateau_schedule_waits_for_its_patience_and_resumes():
    def made():
        optimizer = recipe.make_optimizer(UNet(features=(2,)), "adam", 1.0, 0)
        return optimizer, recipe.Schedule(optimizer, "plateau", 10, 10, plateau_patience=1)

    def rate(optimizer, schedule, dice):
        schedule.before_step(0)
        schedule.after_epoch(dice)
        schedule.before_step(1)
        return optimizer.param_groups[0]["lr"]

    optimizer, schedule = made()
    assert [rate(optimizer, schedule, dice) for dice in (0.5, 0.6, 0.6)] == [1, 1, 1]
    other, resumed = made()
    resumed.load_state_dict(schedule.state_dict())
    for pair in ((optimizer, schedule), (other, resumed)):
        assert [rate(*pair, dice) for dice in (0.6, 0.7)] == pytest.approx([0.1, 0.1])
    optimizer.param_groups[0]["lr"] = 5.0  # LEARNING_RATE is another one now
    lower = recipe.Schedule(optimizer, "plateau", 10, 10, plateau_patience=1)
    lower.load_state_dict(schedule.state_dict())
    assert rate(optimizer, lower, 0.8) == pytest.approx(0.5)


def test_flips_take_the_mask_along_and_repeat_by_name():
    images = torch.arange(8 * 3 * 2 * 4, dtype=torch.float32).reshape(8, 3, 2, 4)
    images = images.contiguous(memory_format=torch.channels_last)
    masks = images[:, :1].clone()
    flipped, along = recipe.vary_batch(images, masks, FLIPS, recipe.named_generator(0, 1, 2))
    assert torch.equal(flipped[:, :1], along) and flipped.is_contiguous(memory_format=torch.channels_last)
    kinds = [torch.equal(one, other) for one, other in zip(flipped, images)]
    assert True in kinds and False in kinds
    for one, other, same in zip(flipped, images, kinds):
        assert torch.equal(one, other if same else other.flip(2))
    again, _ = recipe.vary_batch(images, masks, FLIPS, recipe.named_generator(0, 1, 2))
    assert torch.equal(again, flipped)
    others = [recipe.vary_batch(images, masks, FLIPS, recipe.named_generator(0, 1, n))[0] for n in range(3, 7)]
    assert any(not torch.equal(other, flipped) for other in others)


def test_labels_stay_labels_when_they_are_flipped():
    labels = torch.randint(0, 256, (8, 1, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = (labels / 255).expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
    seen, along = recipe.vary_batch(images, labels, FLIPS, recipe.named_generator(0, 1, 2))
    assert along.dtype == torch.uint8 and torch.equal(along / 255, seen[:, :1]) and not torch.equal(along, labels)


def discs(count, size=(96, 160), radius=16.0):
    """Images of a white disc on grey, here and there, and their masks of a class 7 on 3, with some ignored."""
    draw = torch.rand(count, 2, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    rows, columns = torch.arange(size[0])[:, None], torch.arange(size[1])
    centre = (draw - 0.5) * torch.tensor([size[0] / 3, size[1] / 3]).view(2, 1, 1, 1)
    inside = (rows - size[0] / 2 - centre[:, 0]) ** 2 + (columns - size[1] / 2 - centre[:, 1]) ** 2 < radius**2
    labels = torch.where(inside, 7, 3).byte()
    labels[:, :, :4] = IGNORED
    return (0.2 + 0.8 * inside.float()).expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last), labels


@pytest.mark.parametrize(
    "scale, rotate, factors", [((0.7, 1.4), 0, (0.7, 1.4)), (None, 45, (1, 1)), ((0.5, 0.8), 180, (0.5, 0.8))]
)
def test_images_are_scaled_and_rotated_with_their_masks(scale, rotate, factors):
    """A disc stays one, of a radius that the factors allow, in the mask where it is in the image."""
    images, labels = discs(64)
    variation = recipe.Variation(scale=scale, rotate=rotate)
    moved, along = recipe.vary_batch(images, labels, variation, recipe.named_generator(0, 1, 2))
    again = recipe.vary_batch(images, labels, variation, recipe.named_generator(0, 1, 2))
    assert torch.equal(moved, again[0]) and torch.equal(along, again[1])
    assert moved.shape == images.shape and moved.is_contiguous(memory_format=torch.channels_last)
    assert along.shape == labels.shape and along.dtype == torch.uint8 and set(along.unique().tolist()) <= {3, 7, 255}
    differing = ((moved[:, :1] > 0.6) != (along == 7)) & (along != IGNORED)
    near = nn.functional.max_pool2d((along == 7).float(), 3, 1, 1) + nn.functional.max_pool2d(
        (along != 7).float(), 3, 1, 1
    )
    assert not differing[near < 2].any() and differing.float().mean() < 0.002  # its rim alone
    radii, centres = [], []
    for mask in along[:, 0] == 7:
        if mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any():
            continue  # cut off
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        assert abs((rows[-1] - rows[0]) - (columns[-1] - columns[0])) <= 2  # as high as wide, in an image that is not
        radii.append(float(mask.sum() / math.pi) ** 0.5 / 16)
        centres.append((rows.float().mean(), columns.float().mean()))
    radii = torch.tensor(radii)
    assert len(radii) > 30 and radii.min() > factors[0] - 0.03 and radii.max() < factors[1] + 0.03
    assert (radii.std() > 0.05) == (factors[0] < factors[1]) and torch.tensor(centres).std(0).min() > 5
    outside = (along == IGNORED).float().mean((1, 2, 3))
    assert outside.max() > 0.1  # and no hole is left in the image there
    assert moved.min() > 0.19


def test_an_image_that_is_not_moved_stays_as_it_is_and_the_other_draws_do():
    """Flips and colours of a run do not change with SCALE; one foreground becomes labels."""
    images, masks = torch.rand(8, 3, 20, 30, generator=torch.Generator().manual_seed(0)), torch.zeros(8, 1, 20, 30)
    masks[:, :, 5:9, :7] = 1
    results = [
        recipe.vary_batch(images, masks, recipe.Variation(True, 0.3, scale), recipe.named_generator(5))
        for scale in (None, (1.0, 1.0))
    ]
    assert torch.allclose(results[0][0], results[1][0], atol=1e-4)
    assert results[1][1].dtype == torch.uint8 and torch.equal(results[0][1], results[1][1].float())


def test_jitter_changes_each_image_by_its_own_factors():
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images = images.contiguous(memory_format=torch.channels_last)
    jittered = recipe.vary_batch(images, images, JITTER, recipe.named_generator(0, 1, 2))[0]
    assert jittered.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(jittered, recipe.vary_batch(images, images, JITTER, recipe.named_generator(0, 1, 2))[0])
    spread = (jittered.std((2, 3)) / images.std((2, 3))).flatten()  # contrast times a channel's balance
    assert spread.min() >= 0.7**1.5 - 1e-4 and spread.max() <= 1.3**1.5 + 1e-4 and spread.std() > 0.1
    light = jittered.mean((1, 2, 3)) / images.mean((1, 2, 3))
    assert light.std() > 0.05 and light.min() >= 0.7**1.5 - 0.01 and light.max() <= 1.3**1.5 + 0.01
    for one, other in zip(jittered.flatten(2).transpose(0, 1), images.flatten(2).transpose(0, 1)):
        assert all(torch.corrcoef(torch.stack(pair))[0, 1] > 0.9999 for pair in zip(one, other))  # straight lines


def test_images_grow_from_half_their_size_and_masks_stay_binary():
    factors = [recipe.size_factor(step / 100, 0.6) for step in range(100)]
    assert factors[:61] == [0.5] * 61 and factors[95:] == [1.0] * 5 and factors == sorted(factors)
    assert 0.74 < factors[77] < 0.76 and {recipe.size_factor(step / 9, 0.0) for step in range(9)} == {1.0}
    rows = torch.arange(32.0).reshape(1, 1, 32, 1)
    images, masks = rows.expand(1, 3, 32, 64).contiguous(), (rows < 11).float().expand(1, 1, 32, 64)
    small, along = recipe.shrink_batch(images, masks, 0.5, 4)
    assert small.shape == (1, 3, 16, 32) and small.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(small[0, 1, 2:14, 5], 2 * torch.arange(2.0, 14.0) + 0.5)  # a mean, not every second row
    assert along.unique().tolist() == [0.0, 1.0] and along.sum().item() / 32 in (5, 6)
    assert recipe.shrink_batch(images, masks, 0.6, 16)[0].shape == (1, 3, 16, 32)
    assert recipe.shrink_batch(images, masks, 1.0, 16)[0] is images


def labels_of(*images):
    """Labels (N, 1, H, W) of images that are lists of rows."""
    return torch.tensor(images, dtype=torch.uint8)[:, None]


def test_labels_shrink_to_what_most_of_a_pixel_has():
    images = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    blocks = labels_of([[3, 3, 7, 9], [3, 0, 9, 9], [255, 5, 1, 2], [255, 255, 6, 4]])
    labels = torch.cat([blocks, blocks.flip(3)]).repeat(1, 1, 2, 3)
    _, half = recipe.shrink_batch(images, labels, 0.5, 1)
    assert half.dtype == torch.uint8 and half.shape == (2, 1, 4, 6)
    assert half[0, 0, :2, :2].tolist() == [[3, 9], [255, 4]]  # ignored as a class of its own; the last: its centre's
    assert half[1, 0, :2, :2].tolist() == [[9, 3], [6, 255]]
    corners = labels_of([[1, 0, 2], [0, 9, 0], [3, 0, 4]]), labels_of([[1, 0, 2], [0, 9, 0], [3, 0, 1]])
    for block, most in zip(corners, (9, 1)):
        third = recipe.shrink_batch(images[:1, :, :3, :3], block, 1 / 3, 1)[1]
        assert third.tolist() == [[[[most]]]]  # the centre where all differ, and outvoted by two that agree
    values = torch.tensor([0, 11, 200, 255], dtype=torch.uint8)
    labels = values[torch.randint(0, 4, (2, 1, 8, 12), generator=torch.Generator().manual_seed(1))]
    for factor in (0.3, 0.5, 0.7, 0.9):  # no value that was not there, at any size
        small, along = recipe.shrink_batch(images, labels, factor, 1)
        assert along.shape[2:] == small.shape[2:] and set(along.unique().tolist()) == set(values.tolist())
    assert recipe.shrink_batch(images, labels, 1.0, 1)[1] is labels


@pytest.mark.parametrize("factor", [0.5, 0.6, 0.75, 0.9])
def test_labels_shrink_where_their_images_do(factor):
    """A circle's area, centre and outline are those of its picture, not moved to a side."""
    rows, columns = torch.arange(160.0)[:, None], torch.arange(240.0)
    inside = ((rows - 70) ** 2 + (columns - 130) ** 2 < 50**2)[None, None]
    images, labels = inside.float().expand(1, 3, -1, -1), inside.byte() * 8
    small, along = recipe.shrink_batch(images, labels, factor, 8)
    expected, found = small[0, 0], (along[0, 0] == 8).float()
    for weights in (torch.ones(1), torch.arange(found.shape[0])[:, None], torch.arange(found.shape[1])):
        centre, other = ((weights * it).sum() / it.sum() for it in (expected, found))
        assert abs(centre - other) < 0.15  # pixels; the nearest one's label would be off by a quarter
    assert found.sum() / expected.sum() == pytest.approx(1, abs=0.01)


def test_out_of_memory_names_the_constants_with_numbers():
    s = SimpleNamespace(CROP=None, IMAGE_SIZE=(320, 480), BATCH_SIZE=16, ACCUMULATE=1)
    words = out_of_memory_message(RuntimeError("CUDA out of memory. Tried to allocate"), s)
    assert "BATCH_SIZE = 16" in words and "--batch-size 8 --accumulate 2" in words and "--image-size 240 352" in words
    s = SimpleNamespace(CROP=(32, 32), BATCH_SIZE=1)
    assert out_of_memory_message(MemoryError(), s).endswith(
        "at CROP = (32, 32).\n  FEATURES with fewer channels: a smaller network\n(MemoryError)"
    )  # it has no words, and there is no smaller crop


@pytest.mark.parametrize(
    "error, is_so",
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), True),
        (RuntimeError("FIND was unable to find an engine to execute this computation"), True),
        (RuntimeError("GET was unable to find an engine to execute this computation"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (cv2.error("error: (-4:Insufficient memory) Failed to allocate 3000000000000 bytes"), True),
        (MemoryError(), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOENT, "No such file or directory"), False),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (RuntimeError("Expected all tensors to be on the same device"), False),
    ],
)
def test_memory_that_has_run_out_is_known_by_its_words_too(error, is_so):
    assert ran_out_of_memory(error) == is_so


@pytest.fixture
def compiler():
    """inductor's configuration, with nothing of other tests: no graphs, no caches."""
    import torch._inductor.config as inductor

    torch._dynamo.reset()
    with inductor.patch(force_disable_caches=True):
        yield inductor
    torch._dynamo.reset()
    torch.compiler.set_stance("default")


def graphs():
    """How many graphs have been compiled in this process."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:dynamo_pgo")
def test_compiling_falls_back_and_leaves_the_network_as_it_was(compiler, capsys):
    network = UNet(out_channels=3, features=(2,))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with compiler.patch({"cpp.cxx": ("no-such-compiler",)}):
        assert not recipe.compile_or_not(network, (1, 3, 8, 8), None, half_size=0.5)
    words = capsys.readouterr().out
    assert re.search(r"torch.compile failed, training goes on without it \(\w+: .*no-such-compiler", words), words
    assert words.count("\n") == 1
    after = network.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert network(torch.rand(1, 3, 8, 8)).shape == (1, 3, 8, 8)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:dynamo_pgo")
def test_two_graphs_serve_every_size_of_half_size_and_a_later_failure_is_no_end(compiler, capsys):
    """Small enough that none of the CPU's own rules about sizes comes in."""
    network = UNet(features=(2,))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    first = graphs()
    assert recipe.compile_or_not(network, (2, 3, 32, 48), None, half_size=0.5)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    images = torch.rand(2, 3, 32, 48).contiguous(memory_format=torch.channels_last)
    sizes = set()
    for step in (40, 62, 74, 86, 99):
        batch = recipe.shrink_batch(images, images, recipe.size_factor(step / 100, 0.5), network.stride)[0]
        network(batch).sum().backward()
        sizes.add(batch.shape)
    assert len(sizes) == 5 and graphs() == first + 2

    network.zero_grad()
    with compiler.patch({"cpp.cxx": ("no-such-compiler",)}):
        loss = network.double()(images.double()).sum()  # which the graphs do not serve
        loss.backward()
    assert loss.dtype == torch.float64 and all(parameter.grad is not None for parameter in network.parameters())
    assert "Error" not in capsys.readouterr().out


def test_a_network_with_synchronised_batchnorm_is_not_compiled(capsys, monkeypatch):
    network = nn.SyncBatchNorm.convert_sync_batchnorm(UNet(features=(2,)))
    monkeypatch.setattr(nn.Module, "compile", lambda *_, **__: pytest.fail("compiled"))
    assert not recipe.compile_or_not(network, (1, 3, 8, 8), None)
    assert "Not compiled" in capsys.readouterr().out


@torch.library.custom_op("test_recipe::too_large", mutates_args=())
def too_large(images: torch.Tensor) -> torch.Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


@too_large.register_fake
def _(images):
    return torch.empty_like(images)


too_large.register_autograd(lambda context, gradient: gradient)


class TooLarge(UNet):
    def forward(self, images):
        return super().forward(too_large(images))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:dynamo_pgo")
def test_memory_that_runs_out_in_the_trial_is_no_failure_of_the_compiler(compiler, capsys):
    with pytest.raises(torch.OutOfMemoryError, match="20.00 GiB"):
        recipe.compile_or_not(TooLarge(features=(2,)), (1, 3, 8, 8), None)
    assert "torch.compile failed" not in capsys.readouterr().out


# ---- masks of a batch


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.int64, torch.float32])
@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 1, 3, 4)])
def test_labels_arrive_whole_whatever_a_transform_made_of_them(kind, shape):
    masks = torch.tensor([0, 1, 11, 255]).repeat(6).reshape(shape)
    targets = recipe.targets_of(masks.to(kind), torch.device("cpu"), labels=True)
    assert targets.dtype == torch.uint8 and targets.shape == (2, 1, 3, 4)
    assert torch.equal(targets.long().reshape(shape), masks)


def test_labels_that_a_transform_has_spoiled_are_refused():
    for masks in (torch.tensor([[[0, 1, -100]]]), torch.tensor([[[0, 0.5]]]), torch.tensor([[[0, 3 / 255]]])):
        with pytest.raises(UserError, match="The transform has changed the values"):
            recipe.targets_of(masks, torch.device("cpu"), labels=True)


@pytest.mark.parametrize(
    "mask_rule, masks, expected",
    [
        (MaskRule(), [[0, 1], [1, 0]], [[0, 1], [1, 0]]),
        (MaskRule(), [[0.0, 1.0], [0.6, 0.5]], [[0, 1], [1, 0]]),  # of the article's transform, blurred
        (MaskRule(ignored=(7,)), [[0, 1], [1, 255]], [[0, 1], [1, 255]]),
        (MaskRule(classes=(0, 5, 9), names=("a", "b", "c")), [[0, 1], [2, 255]], [[0, 1], [2, 255]]),
    ],
)
@pytest.mark.parametrize("shape", [(1, 2, 2), (1, 1, 2, 2)])
def test_what_is_scored_are_labels(mask_rule, masks, expected, shape):
    labels = recipe.true_labels(torch.tensor(masks).reshape(shape), CPU, mask_rule)
    assert labels.dtype == torch.uint8 and labels.tolist() == [[expected]]


def test_the_learning_rate_rises_from_above_zero_to_its_height():
    factors = factors_of("linear", 0.2, total=20)
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[-1] == pytest.approx(1 / 16)
