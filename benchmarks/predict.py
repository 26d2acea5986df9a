"""How fast predict.py is, beside the plain loop and the network alone; and its memory on a large image.

    python benchmarks/predict.py                          images a second, all three in turns, on this machine
    python benchmarks/predict.py --large 4000 6000        peak memory of one image in windows, whose mask is
                                                          compared with the whole image's if --compare

It draws the images itself. The weights are random: they cost what trained ones cost.
"""

import argparse
import contextlib
import io
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import predict
from parts.checkpoints import load_network
from parts.files import cores
from parts.inference import Runner, make_runner
from parts.masks import MaskRule
from parts.names import find_pictures
from parts.outputs import Masks
from parts.predictions import Decision, PictureReader, predict_pictures
from unet import UNet
from utils import save_checkpoint


def smooth_noise(size, seed):
    """A picture, uint8 (H, W, 3)."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[0] // 16, size[1] // 16, 3), dtype=np.uint8)
    return cv2.resize(noise, size[::-1], interpolation=cv2.INTER_CUBIC)


def draw(folder, number, size):
    """Pictures as JPEG."""
    folder.mkdir(parents=True)
    for index in range(number):
        Image.fromarray(smooth_noise(size, index)).save(folder / f"{index:04d}.jpg", quality=92)


def make_checkpoint(path, features, image_size):
    """Random weights, shifted so that about half of a picture is foreground."""
    torch.manual_seed(0)
    architecture = dict(in_channels=3, out_channels=1, features=list(features))
    network = UNet(**architecture).eval()
    with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        logits = network(torch.from_numpy(smooth_noise((256, 256), 0)).permute(2, 0, 1)[None] / 255)
        scale = 3 / logits.std()
        network.output_conv.bias.sub_(logits.median()).mul_(scale)
        network.output_conv.weight.mul_(scale)
        state = dict(state_dict=network.state_dict(), network=architecture, image_size=list(image_size), epoch=0)
        save_checkpoint(state, path)


def runner_of(checkpoint, precision, device, plain=False, batch_size=None):
    """The network as predict.py runs it, or as it is (`plain`)."""
    runner = make_runner(load_network(checkpoint)[0], device, precision, batch_size)
    if plain:
        network = load_network(checkpoint)[0].to(runner.device, memory_format=torch.channels_last)
        runner = Runner(network, runner.device, runner.dtype)
    return runner


def plain_loop(paths, runner, size, out):
    """Decode, network, resize, save, one after another: what one writes first."""
    out.mkdir(exist_ok=True)
    for path in paths:
        with Image.open(path) as picture:
            image = np.asarray(picture.convert("RGB"))
        height, width = image.shape[:2]
        image = torch.from_numpy(cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA))
        batch = (image.to(runner.device).permute(2, 0, 1)[None].float() / 255).contiguous(
            memory_format=torch.channels_last
        )
        with (
            torch.inference_mode(),
            torch.autocast(runner.device.type, dtype=runner.dtype, enabled=runner.dtype is not None),
        ):
            logits = runner.network(batch).float()
        mask = torch.nn.functional.interpolate(logits, (height, width), mode="bilinear")[0, 0] > 0
        Image.fromarray(mask.byte().cpu().numpy() * 255).save(out / f"{path.stem}.png")


def network_alone(number, runner, size, batch_size):
    """The network on pixels that are already in memory, its logits brought back."""
    images = np.zeros((batch_size, *size, 3), np.uint8)
    done = 0
    while done < number:
        count = min(batch_size, number - done)
        fetch = runner.logits(images[:count])
        done += count
    fetch(0)


def speed(options, folder):
    size, checkpoint = tuple(options.image_size), folder / "network.pth"
    make_checkpoint(checkpoint, options.features, size)
    draw(folder / "images", options.images, tuple(options.photo_size))
    paths = sorted((folder / "images").iterdir())
    wanted, _ = find_pictures([str(folder / "images")])
    ours = runner_of(checkpoint, options.precision, options.device, batch_size=options.batch_size)
    plain = runner_of(checkpoint, options.precision, options.device, plain=True)
    outputs, reader = [Masks(folder / "ours", MaskRule())], PictureReader(size)

    def ours_all():
        for result in predict_pictures(wanted, ours, reader, Decision(), outputs, threads=cores()):
            assert not result.problems

    contenders = {
        "predict.py": ours_all,
        "its network alone": lambda: network_alone(len(paths), ours, size, ours.batch_size),
        "the network as it is, alone": lambda: network_alone(len(paths), plain, size, 1),
        "plain loop": lambda: plain_loop(paths, plain, size, folder / "plain"),
    }
    print(f"{len(paths)} images of {options.photo_size}, network at {size} on {ours.device}, {ours.dtype}")
    seconds = {name: [] for name in contenders}
    for turn in range(options.turns + 1):  # the first turn warms up
        for name, contender in contenders.items():
            begin = time.perf_counter()
            contender()
            if turn:
                seconds[name].append(time.perf_counter() - begin)
    best = {name: min(times) for name, times in seconds.items()}
    for name, parallel_map in best.items():
        rates = ", ".join(f"{len(paths) / one:.2f}" for one in seconds[name])
        print(f"  {name:<28} {len(paths) / parallel_map:7.2f} images/s   (turns: {rates})")
    alone = best["the network as it is, alone"]
    print(f"predict.py takes {best['predict.py'] / alone:.3f} of the time of the network as it is, alone;")
    print(f"                 {best['predict.py'] / best['its network alone']:.3f} of its own network's,")
    print(f"                 {best['predict.py'] / best['plain loop']:.3f} of the plain loop's")


def large(options, folder):
    checkpoint, size = folder / "network.pth", tuple(options.large)
    make_checkpoint(checkpoint, options.features, options.image_size)
    draw(folder / "images", 1, size)
    command = [sys.executable, predict.__file__, folder / "images", "--checkpoint", checkpoint]
    command += ["--image-size", "own", "--precision", options.precision, "--device", options.device]
    command += ["--output-dir", folder / "masks", "--save-masks", "--masks", "none", "--export", "none"]
    command += ["--flips", "none", "--window", "768", "--overlap", "none", "--threshold", "0.5"]
    begin = time.perf_counter()
    subprocess.run(command, check=True)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 2**20
    print(f"{size} in windows: {time.perf_counter() - begin:.0f} s, peak memory of the process {peak:.0f} MiB")
    if options.compare:
        runner = runner_of(checkpoint, options.precision, options.device)
        runner.window = 1 << 20
        with Image.open(folder / "images" / "0000.jpg") as picture:
            whole = runner.logits(np.asarray(picture)[None])(0) > 0
        with Image.open(folder / "masks" / "0000.png") as picture:
            windows = np.asarray(picture) > 0
        print(f"Pixels that differ from the whole image's mask: {100 * (whole != windows).mean():.5f} %")
        print(f"Foreground of the whole: {100 * whole.mean():.1f} %")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--photo-size", type=int, nargs=2, default=[1280, 1918])
    parser.add_argument("--image-size", type=int, nargs=2, default=[320, 480])
    parser.add_argument("--features", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--large", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--compare", action="store_true", help="needs the memory that the windows spare")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        (large if options.large else speed)(options, Path(folder))


if __name__ == "__main__":
    main()
