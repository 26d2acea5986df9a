"""Everything that only a GPU can tell, in one command of at most nine and a half minutes.

    python benchmarks/gpu.py --output FOLDER                  all sections, the most telling first
    python benchmarks/gpu.py --output FOLDER --only speed     some of them again
    python benchmarks/gpu.py --output FOLDER --device cpu --small     tries the script itself, without a GPU

Each section is a process of its own with its own limit; what fails or takes too long costs only itself. FOLDER gets a
log and a JSON file of each, and the table that is printed last: PASS, FAIL with the reason, SKIP (needs CUDA), or
"not run". Needs no more than torch, torchvision, numpy, Pillow, OpenCV, tqdm and matplotlib.
"""

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
import warnings
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from crops import FOLDERS, make_cars  # noqa: E402
from PIL import Image  # noqa: E402
from sides import (  # noqa: E402  # noqa: E402
    Article,
    Ours,
    Part,
    clocked,
    endless,
    machine,
    matrix_peak,
    ours_settings,
    training_flops,
    until,
    wait_for,
)
from torch.nn import functional as F  # noqa: E402

import utils  # noqa: E402
from dataset import Arrays, ImageDataset  # noqa: E402
from parts import recipe  # noqa: E402
from parts.masks import MaskRule  # noqa: E402
from parts.processes import pick_device  # noqa: E402
from parts.reading import Pair  # noqa: E402
from unet import UNet  # noqa: E402

TOTAL = 570  # seconds, of all sections
SECTIONS = {}  # name -> (function, seconds)


class Skip(Exception):
    """This section needs CUDA."""


def section(seconds):
    """Declares a section, which gives a line of words for the table or raises."""

    def keep(function):
        SECTIONS[function.__name__] = function, seconds
        return function

    return keep


def check(condition, words):
    if not condition:
        raise AssertionError(words)


def size_of(a):
    return (32, 48) if a.small else (320, 480)


def batch_of(a, count=None):
    """uint8 (images, masks) as loaders give them, pinned on CUDA."""
    count, size = count or (2 if a.small else 16), size_of(a)
    images = torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    masks = torch.randint(0, 2, (count, *size), dtype=torch.uint8)
    return (images.pin_memory(), masks.pin_memory()) if a.device.type == "cuda" else (images, masks)


def settings(a, *flags):
    small = ["--features", "4", "8", "--batch-size", "2"] if a.small else []
    return ours_settings(a.device, [*small, "--half-size", "0", "--batch-size", "2" if a.small else "16", *flags], 0)


def run_script(a, name, *words, expect=0, seconds=150, **environment):
    """Runs a script on the drawn cars' folder; gives its output."""
    done = subprocess.run([sys.executable, ROOT / name, *map(str, words)], cwd=a.output, capture_output=True, text=True,
                          timeout=seconds, env=os.environ | environment)  # fmt: skip
    print(done.stdout[-2000:], done.stderr[-4000:], sep="\n", flush=True)
    check(done.returncode == expect, f"{name} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout + done.stderr


def product(a, *flags):
    """train.py's words for the drawn cars."""
    names = ("--train-img-dir", "--train-mask-dir", "--val-img-dir", "--val-mask-dir")
    folders = [word for pair in zip(names, (a.output / "cars" / name for name in FOLDERS)) for word in pair]
    small = ["--features", 4, 8, "--batch-size", 4] if a.small else []
    return [*folders, "--image-size", *size_of(a), "--device", a.device.type, *small, *flags]


@section(60)
def ceilings(a):
    source = torch.empty(2 ** (20 if a.small else 28), device=a.device)
    target, times = torch.empty_like(source), []
    for _ in range(6):
        start = time.perf_counter()
        target.copy_(source)
        wait_for(a.device)
        times.append(time.perf_counter() - start)
    peak = matrix_peak(a.device, torch.bfloat16)
    a.results.update(copy=8 * source.numel() / min(times), peak=peak)
    return f"copy {8 * source.numel() / min(times) / 1e12:.2f} TB/s, bfloat16 product {peak / 1e12:.1f} TFLOP/s"


@section(60)
def data(a):
    make_cars(a.output / "cars", *((6, 2, 2) if a.small else (20, 16, 4)), size=size_of(a))
    count, size, folder = (40 if a.small else 2000), size_of(a), a.output / "random"
    folder.mkdir(exist_ok=True)
    shapes = {"images": (count, *size, 3), "masks": (count, *size)}
    for name, shape in shapes.items():
        array = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.uint8, shape)
        one = np.random.default_rng(0).integers(0, 256 if name == "images" else 2, shape[1:], np.uint8)
        for row in array:
            row[:] = one
        array.flush()
    (folder / "key.json").write_text("random")
    return f"{len(list((a.output / 'cars' / FOLDERS[0]).iterdir()))} cars to train on, {count} random images"


@section(120)
def speed(a):
    shape, rounds = (2 if a.small else 16, 3, *size_of(a)), 5
    layout, plain = recipe._layout, lambda: None
    makers = {"article's": lambda: Article(a.device), "eager": lambda: Ours(a.device, settings(a), 1, 10**6)}
    if a.device.type == "cuda":
        makers["compiled"] = lambda: Ours(a.device, settings(a), 1, 10**6, shape)
        makers["compiled, layout"] = makers["compiled"]
    sides, memory, steps = {}, {}, [batch_of(a)] * (2 if a.small else 20)
    for name, make in makers.items():
        recipe._layout = plain if name == "compiled" else layout
        before = torch.cuda.memory_allocated() if a.device.type == "cuda" else 0
        sides[name] = make()
        if a.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        clocked(sides[name], steps[:3], a.device)
        memory[name] = (torch.cuda.max_memory_allocated() - before) / 2**30 if a.device.type == "cuda" else 0.0
    speeds = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            seconds, count = clocked(side, steps, a.device)
            speeds[name].append(count * shape[0] / seconds)
    peak = matrix_peak(a.device, torch.bfloat16)
    flops = training_flops(size_of(a))
    lines = []
    for name, found in speeds.items():
        median = statistics.median(found)
        share = "" if a.small else f", {100 * median * flops / peak:.0f} % of the product"
        lines.append(f"{name} {median:.0f} images/s{share}, {memory[name]:.1f} GiB")
    a.results.update(speeds=speeds, peak=peak, memory=memory)
    return "; ".join(lines)


@section(120)
def trained(a):
    """train.py and predict.py themselves: recompiles, SIGTERM and resume, the other device."""
    words = product(a, "--output-dir", "run", "--num-epochs", 3)
    said = run_script(a, "train.py", *words, TORCH_LOGS="recompiles")
    recompiles = len(re.findall(r"Recompiling function", said))
    command = [sys.executable, ROOT / "train.py", *map(str, product(a, "--output-dir", "stopped", "--num-epochs", 4))]
    process = subprocess.Popen(command, cwd=a.output, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    history, end = a.output / "stopped" / "history.csv", time.monotonic() + 90
    while not history.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    check(process.wait(30) in (143, 0), f"SIGTERM ended it with {process.returncode}")
    if process.returncode:
        run_script(a, "train.py", *product(a, "--output-dir", "stopped", "--num-epochs", 4, "--load-model"))
    network, checkpoint = utils.load_network(a.output / "run" / "best.pth")
    check(next(network.parameters()).device.type == "cpu", "best.pth did not open on the CPU")
    masks = {}
    for device in {a.device.type, "cpu"}:
        images = a.output / "cars" / FOLDERS[2]
        run_script(a, "predict.py", images, "--checkpoint", "run/best.pth", "--output-dir", device, "--device", device)
        files = sorted((a.output / device).glob("*.png"))[:16]
        masks[device] = np.concatenate([np.asarray(Image.open(file)).ravel() for file in files])
    apart = float((masks[a.device.type] != masks["cpu"]).mean())
    check(apart < 2e-3, f"{100 * apart:.3f} % of the masks' pixels differ from the CPU's")
    dice = float(history.read_text().splitlines()[-1].split(",")[3])
    return (
        f"{recompiles} recompiles; Dice {dice:.3f} after 4 epochs; masks differ from the CPU's in {100 * apart:.4f} %"
    )


@section(60)
def numbers(a):
    """Logits and gradients of a step beside float64 on the CPU."""
    torch.manual_seed(0)
    features = (4, 8) if a.small else (64, 128, 256, 512)
    network, images = UNet(features=features), torch.rand(2, 3, 64, 96)
    truth = (torch.rand(2, 1, 64, 96) > 0.5).float()

    def step(model, images, truth, dtype=None):
        model.zero_grad(set_to_none=True)
        with torch.autocast(a.device.type, dtype=dtype, enabled=dtype is not None):
            logits = model(images)
        recipe.Loss("bce+dice")(logits if images.dtype == torch.float64 else logits.float(), truth).backward()
        gradient = torch.cat([parameter.grad.flatten().double().cpu() for parameter in model.parameters()])
        return logits.detach().double().cpu(), gradient

    weights, lines = network.state_dict(), []
    reference = UNet(features=features)
    reference.load_state_dict(weights)
    exact = step(reference.double(), images.double(), truth.double())
    ways = [("float32", None, False), ("bfloat16", torch.bfloat16, False)]
    ways += [("compiled", torch.bfloat16, True)] if a.device.type == "cuda" else []
    for name, dtype, compiled in ways:
        model = UNet(features=features)
        model.load_state_dict(weights)
        model = model.to(a.device, memory_format=torch.channels_last)
        if compiled:
            check(recipe.compile_or_not(model, tuple(images.shape), dtype), "torch.compile failed; see the log")
        there = images.to(a.device).contiguous(memory_format=torch.channels_last)
        found = step(model, there, truth.to(a.device), dtype)
        off = [float((one - other).norm() / other.norm()) for one, other in zip(found, exact)]
        lines.append(f"{name} off by {off[0]:.1e} (logits), {off[1]:.1e} (gradients)")
        check(max(off) < (0.02 if dtype is None else 0.3), lines[-1])
    return "; ".join(lines)


@section(60)
def waiting(a):
    """What makes the CPU wait for the device in 40 steps, and what the device does meanwhile."""
    if a.device.type != "cuda":
        raise Skip
    side, steps = Ours(a.device, settings(a), 1, 10**6, (16, 3, *size_of(a))), [batch_of(a)] * 40
    clocked(side, steps[:5], a.device)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        side.steps(steps)
        torch.cuda.set_sync_debug_mode("default")
    waits = [str(it.message) + f" {it.filename}:{it.lineno}" for it in seen if "synchroniz" in str(it.message)]
    print("\n".join(waits))
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profile:
        seconds, _ = clocked(side, steps[:20], a.device)
    kernels = [it for it in profile.events() if it.device_type == torch.autograd.DeviceType.CUDA]
    busy = sum(it.time_range.elapsed_us() for it in kernels) / 1e6
    copies = [it for it in kernels if "Memcpy HtoD" in it.name and it.time_range.elapsed_us() > 100]
    print(profile.key_averages().table(sort_by="self_device_time_total", row_limit=25, max_name_column_width=60))
    check(len(waits) <= 2, f"{len(waits)} synchronisations in 40 steps")
    return f"{len(waits)} synchronisations, {len(copies)} long copies, idle {100 * max(0, 1 - busy / seconds):.0f} %"


@section(45)
def epoch(a):
    """An epoch over arrays beside the bare step; then scoring, pictures and the checkpoint."""
    shape = (2 if a.small else 16, 3, *size_of(a))
    side = Ours(a.device, settings(a), 1, 10**6, shape if a.device.type == "cuda" else None)
    bare, count = clocked(side, [batch_of(a)] * (4 if a.small else 40), a.device)
    bare, count = clocked(side, [batch_of(a)] * (4 if a.small else 40), a.device)
    images = len(np.load(a.output / "random" / "images.npy", mmap_mode="r"))
    pairs = [Pair(str(number), Path(f"{number}.png"), Path(f"{number}.png")) for number in range(images)]
    random = ImageDataset(None, None, pairs=pairs, rule=MaskRule(), image_size=size_of(a))
    random.arrays = Arrays(a.output / "random", "random")
    sampler, pinned = utils.EpochSampler(random, shuffle=True), a.device.type == "cuda"
    loader = utils.Loader(random, batch_size=shape[0], sampler=sampler, pin_memory=pinned, drop_last=True)
    seconds, steps = clocked(side, loader, a.device)
    times = {}
    in_order = utils.EpochSampler(random, shuffle=False)
    val = utils.Loader(random, batch_size=shape[0], sampler=in_order, pin_memory=pinned)
    for name, act in {
        "scoring": lambda: utils.check_accuracy(val, side.network, a.device, side.dtype),
        "pictures": lambda: utils.save_predictions(val, side.network, a.output / "pictures", a.device, side.dtype, 4),
        "checkpoint": lambda: utils.save_checkpoint(utils.snapshot(side.network.state_dict()), a.output / "x.pth"),
    }.items():
        start = time.perf_counter()
        with redirect_stdout(StringIO()):
            act()
        wait_for(a.device)
        times[name] = time.perf_counter() - start
    a.results.update(times)
    told = ", ".join(f"{name} {value:.2f} s" for name, value in times.items())
    return f"a step over arrays takes {seconds / steps / (bare / count):.2f} of a bare one; {told} ({images} images)"


@section(150)
def settings_of_all_kinds(a):
    """train.py for an epoch under each; out of memory must end in words."""
    runs = {
        "float32": ["--precision", "float32", "--no-compile"],
        "accumulate": ["--accumulate", 2, "--no-compile"],
        "odd size": ["--image-size", 50, 70, "--no-compile"],
        "encoder": ["--encoder", "resnet18", "--encoder-weights", "none", "--no-compile", "--image-size", 64, 96],
        "classes": ["--classes", 0, 255, "--no-compile"],
        "crops": ["--image-size", "none", "--crop", *(side // 2 for side in size_of(a)), "--no-compile"],
    }
    for name, flags in runs.items():
        run_script(a, "train.py", *product(a, "--num-epochs", 1, "--output-dir", "s", *flags), seconds=60)
        print(f"{name}: passed")
    if a.device.type == "cuda":
        flags = ["--half-size", 0.5, "--num-epochs", 3, "--output-dir", "s"]
        said = run_script(a, "train.py", *product(a, *flags), seconds=120, TORCH_LOGS="recompiles")
        graphs = 1 + len(re.findall(r"Recompiling function forward", said))
        check(graphs <= 2, f"{graphs} graphs for HALF_SIZE")
        huge = ["--image-size", 1280, 1920, "--batch-size", 64, "--no-compile", "--output-dir", "s"]
        said = run_script(a, "train.py", *product(a, *huge), expect=2, seconds=120)
        check("run out of memory" in said, "out of memory was not told in words")
    return f"{', '.join(runs)} passed" + ("; HALF_SIZE, out of memory too" if a.device.type == "cuda" else "")


@section(45)
def float16(a):
    """An overflow is skipped, and the scale comes down."""
    if a.device.type != "cuda":
        raise Skip
    side = Ours(a.device, settings(a, "--precision", "float16"), 1, 10**6)
    optimizer, loss, _, schedule = side.parts
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**60)
    side.parts = optimizer, loss, scaler, schedule
    side.steps([batch_of(a)] * 60)
    finite = all(torch.isfinite(parameter).all() for parameter in side.network.parameters())
    check(finite and scaler.get_scale() < 2.0**60, f"scale {scaler.get_scale():g}, weights finite: {finite}")
    return f"scale 2^60 -> 2^{np.log2(scaler.get_scale()):.0f}, weights finite"


@section(45)
def nccl(a):
    """A group of one, with the network wrapped and compiled as processes.wrap and train.py do."""
    if a.device.type != "cuda":
        raise Skip
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    dist.init_process_group("cpu:gloo,cuda:nccl", init_method=f"file://{a.output / 'rendezvous'}", rank=0, world_size=1)
    network = UNet().to(a.device, memory_format=torch.channels_last)
    model = DistributedDataParallel(network, device_ids=[a.device.index or 0])
    with model.no_sync():
        check(recipe.compile_or_not(model, (4, 3, 64, 96), torch.bfloat16), "torch.compile failed; see the log")
    images = torch.rand(4, 3, 64, 96, device=a.device).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = model(images).float().square().mean()
    loss.backward()
    check(all(parameter.grad is not None for parameter in network.parameters()), "gradients are missing")
    dist.destroy_process_group()
    return f"one step, loss {loss.item():.3f}"


@section(45)
def convolutions(a):
    """Each distinct convolution of the network, in three directions."""
    dtype = torch.bfloat16 if a.device.type == "cuda" else torch.float32
    network, seen = UNet(features=(4, 8) if a.small else (64, 128, 256, 512)).to(a.device), {}

    def note(module, given, made):
        key = module.in_channels, module.out_channels, module.kernel_size[0], tuple(given[0].shape[2:])
        seen[key] = seen.get(key, 0) + 1

    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(note)
    count = 2 if a.small else 16
    with torch.no_grad():
        network(torch.zeros(1, 3, *size_of(a), device=a.device))
    totals = {}
    for tries in (False, True):
        torch.backends.cudnn.benchmark = tries
        total = 0.0
        for (inside, outside, kernel, size), times in seen.items():
            x = torch.randn(count, inside, *size, device=a.device, dtype=dtype, requires_grad=True)
            x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
            w = torch.randn(outside, inside, kernel, kernel, device=a.device, dtype=dtype)
            w = w.contiguous(memory_format=torch.channels_last).requires_grad_()
            for _ in range(2 if a.small else 4):
                start = time.perf_counter()
                F.conv2d(x, w, padding=kernel // 2).sum().backward()
                wait_for(a.device)
                seconds = time.perf_counter() - start
            total += times * seconds
            print(f"{inside}->{outside} {kernel}x{kernel} at {size}, benchmark {tries}: {1000 * seconds:.2f} ms")
        totals[tries] = total
    return f"all of a step: {1000 * totals[False]:.1f} ms, {1000 * totals[True]:.1f} ms with cudnn.benchmark"


@section(90)
def prediction(a):
    draw, folder = np.random.default_rng(0), a.output / "photos"
    folder.mkdir(exist_ok=True)
    size = (96, 144) if a.small else (1280, 1918)
    first = Image.fromarray(draw.integers(0, 256, (*size, 3), np.uint8))
    for number in range(6 if a.small else 200):
        first.save(folder / f"{number}.jpg", quality=90)
    large = (300, 400, 3) if a.small else (4000, 6000, 3)
    Image.fromarray(draw.integers(0, 256, large, np.uint8)).save(a.output / "large.jpg")
    common = ["--checkpoint", "run/best.pth", "--device", a.device.type]
    times = []
    for words in ([folder, "--output-dir", "p"], ["large.jpg", "--image-size", "own", "--output-dir", "p"]):
        start = time.perf_counter()
        run_script(a, "predict.py", *words, *common)
        times.append(time.perf_counter() - start)
    run_script(a, "predict.py", "--export", "model.pt2", "--checkpoint", "run/best.pth")
    return f"photographs {times[0]:.1f} s, one of {large[0]}x{large[1]} {times[1]:.1f} s, starts included; exported"


@section(260)
def dice(a):
    """Dice of held-out cars after two minutes of each side."""
    minutes, lines = (0.05 if a.small else 2.0), []
    s = settings(a)
    places = [a.output / "cars" / name for name in FOLDERS]
    for name in ("the article's", "ours"):
        with redirect_stdout(StringIO()):
            loader, val = utils.get_loaders(*places, s.BATCH_SIZE, 0, image_size=size_of(a), output_dir=a.output)
        loader.sampler.set_epoch(0)
        source = endless(loader)
        if name == "ours":
            shape = (s.BATCH_SIZE, 3, *size_of(a)) if a.device.type == "cuda" else None
            trial = Ours(a.device, s, 10**6, 1, shape)
            clocked(trial, Part(source, 4), a.device)
            seconds, count = clocked(trial, Part(source, 4 if a.small else 40), a.device)
            steps = max(1, int(0.9 * 60 * minutes / (seconds / count)))
            side = Ours(a.device, s, steps, 1, shape)
            seconds, count = clocked(side, Part(source, steps), a.device)
        else:
            side = Article(a.device)
            seconds, count = clocked(side, until(source, 60 * minutes), a.device)
        with redirect_stdout(StringIO()):
            found = utils.check_accuracy(val, side.network, a.device, side.dtype).dice
        lines.append(f"{name} {found:.4f} in {seconds:.0f} s ({count * s.BATCH_SIZE} images)")
    return "; ".join(lines)


# The most telling first. Together they may take longer than there is time: --only runs the rest.
ORDER = ["ceilings", "data", "speed", "numbers", "waiting", "trained", "dice", "epoch", "settings_of_all_kinds"]
ORDER += ["float16", "nccl", "convolutions", "prediction"]


def run_section(a, name):
    """One section in this process; its outcome becomes a JSON file."""
    try:
        outcome = dict(status="PASS", words=SECTIONS[name][0](a))
    except Skip:
        outcome = dict(status="SKIP", words="needs CUDA")
    (a.output / f"{name}.json").write_text(json.dumps(outcome | dict(results=a.results, machine=machine(a.device))))
    print(outcome["words"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="gets logs, JSON files and what is made meanwhile")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the script itself")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    a = parser.parse_args()
    a.output = a.output.resolve()
    a.output.mkdir(parents=True, exist_ok=True)
    if a.section:
        a.device, a.results = pick_device(a.device), {}
        return run_section(a, a.section)
    end, rows = time.monotonic() + TOTAL, []
    for name in a.only or ORDER:
        left, outcome = min(SECTIONS[name][1], end - time.monotonic()), a.output / f"{name}.json"
        if left < 5:
            rows.append((name, "not run", "no time was left", 0.0))
            continue
        outcome.unlink(missing_ok=True)
        words = [sys.executable, __file__, "--section", name, "--output", a.output, "--device", a.device]
        start, why = time.monotonic(), ""
        with open(a.output / f"{name}.log", "w") as log:
            try:
                subprocess.run([*words, *["--small"] * a.small], stdout=log, stderr=subprocess.STDOUT, timeout=left)
            except subprocess.TimeoutExpired:
                why = f"took more than {left:.0f} s"
        if outcome.exists():
            found = json.loads(outcome.read_text())
            status, why = found["status"], found["words"]
        else:
            status, lines = "FAIL", (a.output / f"{name}.log").read_text().strip().splitlines()
            why = why or (lines[-1][:300] if lines else "no output")
        rows.append((name, status, why, time.monotonic() - start))
        print(f"{name}: {status} ({rows[-1][3]:.0f} s) {why}", flush=True)
    table = "\n".join(f"| {name} | {status} | {seconds:.0f} s | {why} |" for name, status, why, seconds in rows)
    (a.output / "table.md").write_text(f"| section | | | |\n|---|---|---|---|\n{table}\n")
    print(f"\n{table}")
    return 1 if any(status == "FAIL" for _, status, *_ in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
