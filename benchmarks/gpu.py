"""Everything that a GPU alone can show of this project, in one command of at most nine and a half minutes.

    python benchmarks/gpu.py --output FOLDER                  all sections, the most valuable first
    python benchmarks/gpu.py --output FOLDER --only speed     some of them again; the drawn data stay in --work
    python benchmarks/gpu.py --device cpu --small             the same lines on a CPU, in tiny sizes: a rehearsal

Each section is a process of its own with its own limit in seconds. Those that measure time run alone; the others run
side by side where there are cores for it. When --minutes are over, what is left is "not run". Needs torch,
torchvision, NumPy, Pillow, OpenCV, tqdm and matplotlib.

Prints each section's lines as they end (PASS, FAIL, "skipped: needs CUDA", or a figure) and a short table last. The
folder holds NAME.log and NAME.json of each section, table.txt and results.json. Exit status 1 where something fails.
"""

import argparse
import csv
import hashlib
import json
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from sides import Article, Ours, clocked, machine, matrix_peak, training_flops, wait_for  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import predict  # noqa: E402
import train  # noqa: E402
import utils  # noqa: E402
from parts import cars, processes  # noqa: E402
from parts.checkpoints import load_network  # noqa: E402
from parts.files import cores, write_text  # noqa: E402
from unet import UNet  # noqa: E402

NEEDS_CUDA = "skipped: needs CUDA"
LAYOUT = {"force_layout_optimization": True}  # of inductor: every convolution channels-last, whatever the size


class Report:
    """What a section has found; kept in its file after every line, so that a section which is cut off has it too."""

    def __init__(self, path):
        self.path, self.lines, self.figures, self.lock = path, [], {}, threading.Lock()

    def tell(self, status, name, words=""):
        with self.lock:  # `settings` has threads
            print(f"  {status:7} {name}: {words}", flush=True)
            self.lines.append([status, name, str(words)])
            write_text(self.path, json.dumps(dict(lines=self.lines, figures=self.figures), indent=1) + "\n")

    def check(self, name, holds, words=""):
        self.tell("PASS" if holds else "FAIL", name, words)

    def figure(self, name, words, **values):
        """A line that is neither right nor wrong, and its numbers."""
        self.figures[name] = values
        self.tell("figure", name, words)

    @contextmanager
    def part(self, name):
        """What is raised here fails this part alone."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            first = (str(error).strip().splitlines() or [""])[0][:160]
            self.tell("FAIL", name, f"{type(error).__name__}: {first}")


def sizes_of(args):
    """The sizes that sections share: of a GPU's run, or tiny ones."""
    device = processes.pick_device(args.device)
    o = SimpleNamespace(device=device, cuda=device.type == "cuda", small=args.small, work=args.work)
    o.size, o.batch, o.features = (320, 480), 16, (64, 128, 256, 512)
    o.rounds, o.steps, o.cars, o.views, o.images, o.photos = 5, 20, 20, 16, 2000, 200
    o.photo, o.large, o.few = (1280, 1918), (4000, 6000), (160, 240)
    o.few_features = (32, 64, 128, 256)
    if args.small:
        o.size, o.batch, o.features = (32, 48), 2, (8, 16)
        o.rounds, o.steps, o.cars, o.views, o.images, o.photos = 2, 2, 4, 4, 24, 4
        o.photo, o.large, o.few, o.few_features = (96, 144), (900, 1000), (32, 48), (8, 16)
    o.data, o.seconds = o.work / "data", args.seconds
    return o


# ---- what sections have in common


def flags_of(o, name, size=None, features=None, epochs=1, **constants):
    """train.py's flags for a run on the drawn cars, in a folder of its own, which is emptied."""
    shutil.rmtree(o.work / "runs" / name, ignore_errors=True)
    kinds = {"TRAIN_IMG_DIR": "train_images", "TRAIN_MASK_DIR": "train_masks", "VAL_IMG_DIR": "test_images"}
    folders = {key: o.data / f"augmented_{kind}" for key, kind in (kinds | {"VAL_MASK_DIR": "test_masks"}).items()}
    sizes = dict(IMAGE_SIZE=size or o.size, FEATURES=features or o.features, BATCH_SIZE=o.batch)
    given = folders | dict(OUTPUT_DIR=o.work / "runs" / name, DEVICE=str(o.device), NUM_EPOCHS=epochs) | sizes
    words = []
    for key, value in (given | constants).items():
        flag = key.lower().replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return words


def settings_for(o, **constants):
    """train.py's settings for steps that are run here."""
    return train.settings(flags_of(o, "none", **constants))


def run_script(o, words, before="", script="train.py", timeout=200):
    """(exit status, all that it printed) of a script of the top level, after the Python lines `before`, if any."""
    command = [sys.executable, str(ROOT / script), *words]
    if before:
        code = (
            f"import atexit, sys, torch\nsys.path.insert(0, {str(ROOT)!r})\nimport train\n"
            "from parts.errors import run\nfrom torch._dynamo.utils import counters\n"
            "atexit.register(lambda: print('graphs compiled:', counters['stats']['unique_graphs']))\n"
            f"{before}\nrun(lambda: train.main(sys.argv[1:]))\n"
        )
        command = [sys.executable, "-c", code, *words]
    environment = os.environ | {"TORCH_LOGS": "recompiles"}
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout, env=environment, cwd=ROOT
    )
    print(f"$ {script} {' '.join(words)}\n{done.stdout}", flush=True)
    return done.returncode, done.stdout


def epochs_of(o, name):
    """The rows of a run's history.csv."""
    path = o.work / "runs" / name / "history.csv"
    if not path.is_file():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def last_words(printed):
    """The last line of what a script printed, for the table."""
    lines = [line for line in printed.splitlines() if line.strip() and not line.startswith("graphs compiled")]
    return lines[-1][:160] if lines else ""


def batch_for(o, size=None):
    """A random uint8 batch as the loader gives it, pinned on CUDA."""
    size, draws = size or o.size, torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (o.batch, 3, *size), dtype=torch.uint8, generator=draws)
    images = images.contiguous(memory_format=torch.channels_last)
    masks = torch.randint(0, 2, (o.batch, *size), dtype=torch.uint8, generator=draws)
    return (images.pin_memory(), masks.pin_memory()) if o.cuda else (images, masks)


def our_side(o, report, options=None, compiled=True, tries=True):
    """Ours of sides.py, compiled with inductor's `options`; not compiled in a rehearsal, where it would be long.

    A compiler that fails is told, and the side then runs as it is written.
    """
    side = Ours(o.device, settings_for(o), 1, 10**6, tries=tries)
    if compiled and o.cuda:
        side.network.compile(options=options)
        with report.part("the compiler"):
            side.steps([batch_for(o)])
            return side
        side = Ours(o.device, settings_for(o), 1, 10**6, tries=tries)
    return side


def seconds_of(o, function, repeats=20):
    """Seconds of one call, between two waits for the device; the shortest of three rounds."""
    found = []
    for _ in range(4):  # the first is the warm-up
        wait_for(o.device)
        start = time.perf_counter()
        for _ in range(repeats):
            function()
        wait_for(o.device)
        found.append((time.perf_counter() - start) / repeats)
    return min(found[1:])


# ---- sections


def ceilings(o, report):
    """Bytes and products a second: what everything else is held to."""
    report.figure("machine", machine(o.device))
    count = 2**30 if o.cuda else 2**24
    host = torch.empty(count, dtype=torch.uint8, pin_memory=o.cuda)
    one = torch.empty(count, dtype=torch.uint8, device=o.device)
    other = torch.empty_like(one)
    ways = {"on the device": (other, one, 2), "to the device": (one, host, 1), "from the device": (host, one, 1)}
    for name, (to, source, times) in ways.items():
        rate = times * count / seconds_of(o, partial(to.copy_, source, non_blocking=True), 5)
        report.figure(f"copy {name}", f"{rate / 1e9:.1f} GB/s", rate=rate)
    for dtype in (torch.bfloat16, torch.float16, torch.float32) if o.cuda else (torch.bfloat16,):
        peak = matrix_peak(o.device, dtype)
        report.figure(f"product {str(dtype)[6:]}", f"{peak / 1e12:.3g} TFLOP/s", peak=peak)


def draw(o, job):
    """One drawn car's view, written into the folders of its side of the split, with masks of three classes beside."""
    car, view = job
    side = "test" if car >= o.cars * 4 // 5 else "train"
    name = f"{hashlib.sha256(f'car 0 {car}'.encode()).hexdigest()[:12]}_{view:02d}"
    picture, mask = cars.draw_car(0, car, view, o.views, o.size)
    picture.save(o.data / f"augmented_{side}_images" / f"{name}.jpg", quality=92)
    values = np.asarray(mask)
    cv2.imwrite(str(o.data / f"augmented_{side}_masks" / f"{name}.png"), values * np.uint8(255))
    halves = np.arange(values.shape[1]) >= values.shape[1] // 2
    cv2.imwrite(str(o.data / f"classes_{side}_masks" / f"{name}.png"), (values * (1 + halves)).astype(np.uint8))


def noise(o, number):
    """A small picture of noise and its mask, which the loader enlarges into its arrays."""
    draws = np.random.default_rng(number)
    side = "test" if number >= o.images * 9 // 10 else "train"
    pixels, mask = draws.integers(0, 256, (40, 60, 3), np.uint8), draws.integers(0, 2, (40, 60), np.uint8)
    cv2.imwrite(str(o.data / f"noise_{side}_images" / f"{number:05d}.png"), pixels)
    cv2.imwrite(str(o.data / f"noise_{side}_masks" / f"{number:05d}.png"), mask * np.uint8(255))


def noise_loaders(o):
    places = [o.data / f"noise_{side}_{kind}" for side in ("train", "test") for kind in ("images", "masks")]
    return utils.get_loaders(*places, o.batch, 2, o.cuda, image_size=o.size, output_dir=o.work)


def data(o, report):
    """Drawn cars, split by car, and noise as arrays."""
    for kind, side, what in product(("augmented", "noise", "classes"), ("train", "test"), ("images", "masks")):
        if (kind, what) != ("classes", "images"):
            (o.data / f"{kind}_{side}_{what}").mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    jobs = list(product(range(o.cars), range(1, o.views + 1)))
    with ProcessPoolExecutor(cores()) as pool:
        list(pool.map(partial(draw, o), jobs, chunksize=4))
        drawn = time.perf_counter() - start
        list(pool.map(partial(noise, o), range(o.images), chunksize=64))
    loaders = noise_loaders(o)
    made = time.perf_counter() - start - drawn
    count = sum(len(loader.dataset) for loader in loaders)
    write_text(o.data / "done", "")
    report.check("drawn cars", True, f"{len(jobs)} pictures of {o.cars} cars in {drawn:.1f} s")
    words = f"{count} images as arrays in {made:.1f} s"
    report.check("noise", all(loader.dataset.arrays for loader in loaders) and count == o.images, words)


def whole_run(o, report):
    """train.py as it stands, its checkpoint on the CPU, and predict.py's masks on both devices."""
    with report.part("three epochs"):
        start = time.perf_counter()
        status, printed = run_script(o, flags_of(o, "product", epochs=3))
        rows, recompiled = epochs_of(o, "product"), printed.count("Recompiling function")
        good = status == 0 and len(rows) == 3 and all(math.isfinite(float(row["loss"])) for row in rows)
        dice = rows[-1]["dice"][:6] if rows else "none"
        seconds, told = time.perf_counter() - start, f"; {last_words(printed)}" if status else ""
        report.check("three epochs", good, f"status {status}, Dice {dice}, {seconds:.0f} s{told}")
        if o.cuda:
            report.check(
                "compiled",
                "compile failed" not in printed,
                "torch.compile has told of no failure" if "compile failed" not in printed else "torch.compile failed",
            )
            report.check("recompiles", recompiled == 0, f"{recompiled} (0 are wanted)")
        else:
            report.tell("skipped", "compiled, recompiles", NEEDS_CUDA)
    checkpoint = o.work / "runs" / "product" / "best.pth"
    with report.part("best.pth on the CPU"):
        network, saved = load_network(checkpoint)
        with torch.no_grad():
            logits = network(torch.rand(1, 3, *o.size))
        report.check("best.pth on the CPU", bool(logits.isfinite().all()), f"epoch {saved['epoch']}")
    if not o.cuda:
        report.tell("skipped", "masks on cuda against cpu", NEEDS_CUDA + "; here float32 against the CPU's own")
    with report.part("predict"):
        files = sorted(map(str, (o.data / "augmented_test_images").iterdir()))[:16]
        masks = []
        for device, precision in ((o.device, "auto"), (o.device, "float32"), ("cpu", "float32")):
            folder = o.work / "runs" / f"masks-{device}-{precision}".replace(":", "")
            words = [*files, "--checkpoint", str(checkpoint), "--output-dir", str(folder), "--device", str(device)]
            status, _ = run_script(o, [*words, "--precision", precision], script="predict.py")
            masks.append(np.stack([cv2.imread(str(folder / f"{Path(file).stem}.png"), 0) for file in files]))
        for name, found, allowed in (("auto", masks[0], 5e-3), ("float32", masks[1], 1e-3)):
            share = float((found != masks[2]).mean())
            report.check(f"masks in {name}", share <= allowed, f"{share:.1e} of the pixels differ from the CPU's")


def stop_and_resume(o, report):
    """SIGTERM in the second epoch or later, and going on to the end."""
    epochs, name = 12, "resume"
    words = flags_of(o, name, size=o.few, features=o.few_features, epochs=epochs, COMPILE=False)
    command = [sys.executable, str(ROOT / "train.py"), *words]
    with tempfile.TemporaryFile("w+") as file:
        run = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT)
        end = time.perf_counter() + 150
        while not epochs_of(o, name) and run.poll() is None and time.perf_counter() < end:
            time.sleep(0.02)
        run.send_signal(signal.SIGTERM)
        status = run.wait(60)
        file.seek(0)
        printed = file.read()
    print(printed)
    reached = len(epochs_of(o, name))
    words_ok = "--load-model" in printed and "Traceback" not in printed
    report.check("SIGTERM", status == 143 and words_ok, f"status {status} after {reached} epochs")
    status, printed = run_script(o, [*words, "--load-model"])
    rows = epochs_of(o, name)
    numbers = [int(row["epoch"]) for row in rows]
    good = status == 0 and numbers == list(range(1, epochs + 1))
    report.check("resumed", good, f"{len(rows)} epochs, " + (last_words(printed) if status else "status 0"))


def speed(o, report, tries=True):
    """Training steps, the sides in turn; each with its share of the bfloat16 product.

    `tries`: whether cuDNN tries its kernels for ours. What it has chosen it keeps, so each way has its own process.
    """
    repeats = [batch_for(o)] * o.steps
    makers = {"article": lambda: Article(o.device)} if tries else {}
    makers["eager"] = lambda: our_side(o, report, compiled=False, tries=tries)
    if o.cuda:
        makers["compiled"] = lambda: our_side(o, report, tries=tries)
        makers["compiled, layout"] = lambda: our_side(o, report, LAYOUT, tries=tries)
    sides, own = {}, {}
    for name, make in makers.items():
        with report.part(name):
            before, start = torch.cuda.memory_allocated() if o.cuda else 0, time.perf_counter()
            side = make()
            clocked(side, repeats[:3], o.device)
            sides[name], own[name] = side, (torch.cuda.memory_allocated() if o.cuda else 0) - before
            print(f"  {name}: ready after {time.perf_counter() - start:.1f} s", flush=True)
    speeds, memory, peak = {name: [] for name in sides}, {}, 0.0
    for lap in range(-1, o.rounds):  # the first does not count
        for name, side in sides.items():
            if o.cuda:
                torch.cuda.reset_peak_memory_stats()
                others = torch.cuda.memory_allocated() - own[name]
            seconds, count = clocked(side, repeats, o.device)
            memory[name] = (torch.cuda.max_memory_allocated() - others) / 2**30 if o.cuda else 0.0
            if lap >= 0:
                speeds[name].append(count * o.batch / seconds)
        peak = max(peak, matrix_peak(o.device, torch.bfloat16))
    flops = training_flops(o.size) if not o.small else 0.0
    report.figure("ceiling", f"bfloat16 product {peak / 1e12:.3g} TFLOP/s", peak=peak)
    for name, found in speeds.items():
        rate = statistics.median(found)
        share, span = rate * flops / peak, f"{min(found):.3g} to {max(found):.3g}"
        words = f"{rate:.4g} images/s ({span}), {100 * share:.1f} % of the ceiling, {memory[name]:.1f} GiB"
        report.figure(name, words, rate=rate, rounds=found, share=share, gib=memory[name])
    if not o.cuda:
        report.tell("skipped", "torch.compile, memory, cuDNN", NEEDS_CUDA)


def hidden_waits(o, report):
    """Synchronisations in 40 steps, slow copies, the device's idle share and its longest kernels."""
    side, batches = our_side(o, report, LAYOUT), [batch_for(o)] * (40 if o.cuda else 4)
    clocked(side, batches, o.device)
    if o.cuda:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            side.steps(batches)
            torch.cuda.set_sync_debug_mode("default")
        calls = [it for it in caught if "called a synchronizing" in str(it.message)]
        waits = [f"{Path(it.filename).name}:{it.lineno}" for it in calls]
        words = f"{len(waits)} in 40 steps (2 are allowed): {', '.join(sorted(set(waits))[:6])}"
        report.check("synchronisations", len(waits) <= 2, words)
    else:
        report.tell("skipped", "synchronisations", NEEDS_CUDA)
    kinds = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * o.cuda
    with torch.profiler.profile(activities=kinds) as profile:
        side.steps(batches[:20])
        wait_for(o.device)
    timed, every = "self_device_time_total" if o.cuda else "self_cpu_time_total", profile.key_averages()
    every = [it for it in every if not o.cuda or on_device(it)]  # an operation has its kernels' time as well
    total = sum(getattr(it, timed) for it in every) or 1
    longest = sorted(every, key=lambda it: -getattr(it, timed))[:25]
    kept = [[it.key[:100], it.count, getattr(it, timed) / 1000] for it in longest]
    for name, count, milliseconds in kept:
        print(f"  {milliseconds:9.2f} ms {count:6d} x  {name}")
    words = "; ".join(f"{name[:40]} {100000 * ms / total:.0f} %" for name, _, ms in kept[:4])
    report.figure("longest kernels" if o.cuda else "longest operations", words, longest=kept)
    if o.cuda:
        idle_and_copies(profile.events(), report)
    else:
        report.tell("skipped", "idle share, host copies", NEEDS_CUDA)


def on_device(event):
    """Whether a profile's event is a kernel or a copy, rather than a call or a name that somebody gave."""
    return event.device_type == torch.autograd.DeviceType.CUDA and not getattr(event, "is_user_annotation", False)


def idle_and_copies(events, report):
    """Of a profile's events: the share of time in which nothing ran on the device; copies that held up the host."""
    spans = sorted((it.time_range.start, it.time_range.end) for it in events if on_device(it))
    if not spans:
        return report.check("idle share", False, "the profiler saw nothing on the device")
    busy, reached = 0.0, spans[0][0]
    for start, end in spans:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    idle = 1 - busy / (reached - spans[0][0])
    report.check("idle share", idle <= 0.05, f"{100 * idle:.1f} % of 20 steps (5 are allowed; profiled)")
    slow = [it for it in events if it.name.startswith("cudaMemcpy") and it.time_range.elapsed_us() > 100]
    printable = ", ".join(f"{it.time_range.elapsed_us():.0f}" for it in slow[:8])
    # Each reading of the loss waits for its step in such a copy
    report.check("host copies over 100 us", len(slow) <= 2, f"{len(slow)} in 20 steps, in us: {printable}")


def numbers(o, report):
    """Logits and gradients against float64 on the CPU."""
    size = (32, 48) if o.small else (96, 144)
    draws = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, *size, generator=draws)
    targets = F.interpolate(torch.rand(2, 1, 4, 6, generator=draws), size).round()
    torch.manual_seed(0)
    weights = UNet(features=o.features).state_dict()

    def measured(device, dtype, autocast=None, options=None, compiled=False, tf32=False):
        torch.backends.cudnn.allow_tf32 = tf32
        network = UNet(features=o.features)
        network.load_state_dict(weights)
        network.to(device, dtype, memory_format=torch.channels_last)
        if compiled:
            network.compile(options=options)
        there = images.to(device, dtype).contiguous(memory_format=torch.channels_last)
        with torch.autocast(torch.device(device).type, dtype=autocast, enabled=autocast is not None):
            logits = network(there)
        loss = F.binary_cross_entropy_with_logits(logits.to(dtype), targets.to(device, dtype))
        loss.backward()
        gradients = torch.cat([it.grad.flatten() for it in network.parameters()])
        return logits.detach().cpu().double(), gradients.cpu().double()

    exact = measured("cpu", torch.float64)
    ways = {"float32": {}, "bfloat16 eager": dict(autocast=torch.bfloat16)}
    # On a CPU the default network has 8e-6 and 7e-3 in float32 (where rounding turns a ReLU over), 0.02 and 0.28 in
    # bfloat16.
    allowed = {"float32": (1e-4, 3e-2), "float32, TF32": (1e-2, 0.2)}
    if o.cuda:
        ways["float32, TF32"] = dict(tf32=True)
        ways["float16 eager"] = dict(autocast=torch.float16)
        ways["compiled"] = dict(autocast=torch.bfloat16, compiled=True)
        ways["compiled, layout"] = dict(autocast=torch.bfloat16, compiled=True, options=LAYOUT)
    else:
        report.tell("skipped", "float16, compiled", NEEDS_CUDA)
    for name, way in ways.items():
        with report.part(name):
            found = measured(o.device, torch.float32, **way)
            wrong = [float((one - other).norm() / other.norm()) for one, other in zip(found, exact)]
            report.figures[name] = wrong
            words = f"relative errors: logits {wrong[0]:.1e}, gradients {wrong[1]:.1e}"
            report.check(name, all(it <= most for it, most in zip(wrong, allowed.get(name, (0.1, 0.6)))), words)


def settings(o, report):
    """Short runs of train.py with other constants."""
    few = dict(size=o.few, features=o.few_features)
    forced = "torch.amp.GradScaler = __import__('functools').partial(torch.amp.GradScaler, init_scale=2.0**40)"
    memory = "torch.cuda.set_per_process_memory_fraction(0.01)"
    masks = {f"{key}_MASK_DIR": o.data / f"classes_{side}_masks" for key, side in (("TRAIN", "train"), ("VAL", "test"))}
    odd, other = (tuple(side + more for side in o.few) for more in (7, 16))
    runs = {
        "float16, overflow": (few | dict(PRECISION="float16"), forced),
        "float32": (few | dict(PRECISION="float32"), ""),
        "ACCUMULATE": (few | dict(ACCUMULATE=3), ""),
        "HALF_SIZE": (few | dict(HALF_SIZE=0.5, epochs=3), "pass"),
        "encoder": (dict(size=(64, 96), ENCODER="resnet18", ENCODER_WEIGHTS="none"), ""),
        "odd size": (few | dict(size=odd), "pass"),
        "no compile": (few | dict(COMPILE=False), ""),
        "no arrays": (few | dict(ARRAYS=False), ""),
        "out of memory": (dict(BATCH_SIZE=64), memory),
        "classes": (few | dict(size=other, CLASSES="all") | masks, ""),  # other arrays than its neighbours'
    }

    def one(name):
        constants, before = runs[name]
        if name == "out of memory" and not o.cuda:
            return report.tell("skipped", name, NEEDS_CUDA)
        with report.part(name):
            folder = re.sub(r"\W+", "-", name)
            found = run_script(o, flags_of(o, folder, **constants), before)
            judge_setting(o, report, name, folder, constants.get("epochs", 1), *found)

    side_by_side = max(1, min(4, cores() // 4))
    with ThreadPoolExecutor(side_by_side) as pool:
        list(pool.map(one, runs))


def judge_setting(o, report, name, folder, epochs, status, printed):
    """PASS or FAIL of one run of `settings`."""
    told = "Traceback" not in printed
    if name == "out of memory":
        return report.check(name, status == 2 and told and "--batch-size" in printed, f"status {status}, in words")
    if name.startswith("float16") and not o.cuda:
        return report.check(name, status == 2 and told, f"refused on a CPU: {last_words(printed)}")
    rows = epochs_of(o, folder)
    good = status == 0 and told and len(rows) == epochs and all(math.isfinite(float(row["loss"])) for row in rows)
    words = f"status {status}, Dice {rows[-1]['dice'][:6] if rows else 'none'}"
    if name.startswith("float16") and good:
        saved = torch.load(o.work / "runs" / folder / "checkpoint.pth", weights_only=True)
        good, words = saved["scaler"]["scale"] < 2.0**40, f"{words}, scale 2^{math.log2(saved['scaler']['scale']):.0f}"
    graphs = re.search(r"graphs compiled: (\d+)", printed)
    if graphs and o.cuda:
        count = int(graphs[1])
        most = 2 if name == "HALF_SIZE" else 1
        good, words = good and count <= most, f"{words}, {count} graphs ({most} are allowed)"
    if o.cuda and "compile failed" in printed:
        good, words = False, f"{words}, the compiler failed"
    report.check(name, good, f"{words}; {last_words(printed)}" if status else words)


def group_of_one(o, report):
    """DistributedDataParallel as train.py wraps it, over NCCL with one member, beside the network alone.

    torchrun with one process sets WORLD_SIZE = 1, for which the project makes no group. So the group is made here,
    and parts.processes is told that there are two: sums and averages are then over the one that there is.
    """
    import torch._dynamo  # noqa: F401 (before the group: see parts/processes.py)

    with tempfile.TemporaryDirectory() as folder:
        backend = "cpu:gloo,cuda:nccl" if o.cuda else "gloo"
        torch.distributed.init_process_group(backend, init_method=f"file://{folder}/group", rank=0, world_size=1)
        if not o.cuda:
            report.tell("skipped", "NCCL", f"{NEEDS_CUDA}, as does compiling; gloo here")
        batches, found, one = [batch_for(o, o.few)] * 4, {}, processes.world_size
        ways = [("alone", 1, False), ("wrapped", 2, False), *[("wrapped, compiled", 2, True)] * o.cuda]
        for name, members, compiled in ways:
            with report.part(name):
                processes.world_size = lambda members=members: members
                s = settings_for(o, size=o.few, features=o.few_features, PRECISION="float32", ACCUMULATE=2)
                s.SYNC_BATCHNORM = o.cuda and members > 1 and not compiled
                torch.manual_seed(0)
                shape = (o.batch, 3, *o.few) if compiled else None
                side = Ours(o.device, s, 2, 10, shape)
                side.steps(batches)
                processes.same_everywhere(side.network)
                found[name] = torch.cat([it.detach().flatten() for it in side.trained.parameters()])
                kind = type(side.trained).__name__
                off = float((found[name] - found["alone"]).norm() / found["alone"].norm())
                report.check(name, (members == 1) == (kind == "UNet") and off < 1e-2, f"{kind}, weights {off:.1e} off")
        processes.world_size = one
        torch.distributed.destroy_process_group()


def epoch(o, report):
    """An epoch over arrays beside the same number of bare steps; then what an epoch ends with."""
    train_loader, val_loader = noise_loaders(o)
    side = our_side(o, report, LAYOUT)
    repeats = [batch_for(o)] * len(train_loader)
    clocked(side, repeats[:25], o.device)
    bare, whole = [], []
    for _ in range(2):
        bare.append(clocked(side, repeats, o.device)[0])
        whole.append(clocked(side, train_loader, o.device)[0])
    start = time.perf_counter()
    count = sum(1 for _ in train_loader)
    gathered, step = (1000 * it / count for it in (time.perf_counter() - start, min(bare)))
    words = f"{gathered:.2f} ms of the CPU's a batch, gathered and pinned, while a step takes {step:.2f}"
    report.figure("loader", words, gathered=gathered, step=step)
    ratio = min(whole) / min(bare)
    words = f"{min(whole):.2f} s over arrays, {min(bare):.2f} s of bare steps: {ratio:.3f}"
    report.figures["epoch"] = dict(arrays=whole, bare=bare)
    report.check("an epoch's time", not o.cuda or ratio <= 1.05, words)
    folder, network, kept = o.work / "runs" / "epoch", side.network, []
    state = dict(state_dict=network.state_dict(), optimizer=side.parts[0].state_dict())
    keywords = dict(device=o.device, dtype=side.dtype)
    parts = {
        "scoring": lambda: kept.append(utils.check_accuracy(val_loader, network, o.device, side.dtype)),
        "pred_N.png": lambda: utils.save_predictions(val_loader, network, folder, limit=4, **keywords),
        "examples.png": lambda: utils.save_examples(val_loader, network, kept[-1], 1, folder, **keywords),
        "checkpoint": lambda: utils.save_checkpoint(state, folder / "checkpoint.pth"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, function in parts.items():
        with report.part(name):
            found = []
            for _ in range(2):  # the first is slower
                wait_for(o.device)
                start = time.perf_counter()
                function()
                wait_for(o.device)
                found.append(time.perf_counter() - start)
            report.figure(name, f"{found[1]:.3f} s (at first {found[0]:.3f})", seconds=found)


def convolutions(o, report):
    """Each distinct convolution of the network in three directions, bfloat16, channels-last, cudnn.benchmark."""
    shapes = {}
    with torch.device("meta"):
        network = UNet(features=o.features)
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                module.register_forward_hook(lambda it, x, y: shapes.setdefault((it, x[0].shape, y.shape)))
        network(torch.zeros(o.batch, 3, *o.size))
    torch.backends.cudnn.benchmark = True
    dtype, total, done = torch.bfloat16, 0.0, {}
    for module, entering, leaving in shapes:
        transposed, weight_shape = isinstance(module, nn.ConvTranspose2d), tuple(module.weight.shape)
        key = (tuple(entering), weight_shape, transposed)
        if key not in done:
            make = partial(torch.randn, device=o.device, dtype=dtype)
            x, w, g = (
                make(it).contiguous(memory_format=torch.channels_last) for it in (entering, weight_shape, leaving)
            )
            how = (module.stride, module.padding, module.dilation, transposed, module.output_padding, module.groups)
            forward = partial(torch.ops.aten.convolution, x, w, None, *how)
            back = partial(torch.ops.aten.convolution_backward, g, x, w, None, *how)
            calls = [forward, partial(back, [True, False, False]), partial(back, [False, True, False])]
            times = [seconds_of(o, call) for call in calls]
            outside = leaving if not transposed else entering
            flops = 2 * math.prod(weight_shape) * outside[0] * outside[2] * outside[3]
            done[key] = (times, flops)
            rates = "  ".join(f"{1000 * it:7.3f} ms {flops / it / 1e12:6.1f} TFLOP/s" for it in times)
            print(f"  {entering[1]:5d} -> {leaving[1]:5d} at {entering[2]}x{entering[3]}: {rates}", flush=True)
        total += sum(done[key][0])
    kept = [[*map(str, key), times, flops] for key, (times, flops) in done.items()]
    report.figure(
        "all", f"{1000 * total:.2f} ms a step, {len(done)} distinct of {len(shapes)}", seconds=total, kept=kept
    )
    spent = sorted(((sum(times), key) for key, (times, _) in done.items()), key=lambda it: -it[0])
    for seconds, key in spent[:4]:
        rates = ", ".join(f"{done[key][1] / it / 1e12:.0f}" for it in done[key][0])
        words = f"{1000 * seconds:.2f} ms; forward, input, weight: {rates} TFLOP/s"
        report.figure(f"{key[0][1:]} by {key[1][:2]}", words)


def predicting(o, report):
    """predict.py on photographs, on a very large one, and its export."""
    folder, checkpoint = o.work / "photos", o.work / "random.pth"
    (folder / "many").mkdir(parents=True, exist_ok=True)
    drawn = sorted((o.data / "augmented_test_images").iterdir())
    torch.manual_seed(0)
    utils.save_checkpoint(dict(state_dict=UNet(features=o.features).state_dict(), image_size=list(o.size)), checkpoint)

    def enlarge(path, number, size):
        image = cv2.resize(cv2.imread(str(drawn[number % len(drawn)])), size[::-1], interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(path), image)

    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(lambda i: enlarge(folder / "many" / f"{i:03d}.jpg", i, o.photo), range(o.photos)))
    enlarge(folder / "large.jpg", 0, o.large)
    common = ["--checkpoint", str(checkpoint), "--device", str(o.device), "--output-dir", str(o.work / "predicted")]
    jobs = {f"{o.photos} photographs": ([str(folder / "many")], o.photos), "one by windows": (None, 1)}
    for name, (words, count) in jobs.items():
        with report.part(name):
            if o.cuda:
                torch.cuda.reset_peak_memory_stats()
            words = words or [str(folder / "large.jpg"), "--image-size", "own"]
            times = []
            for _ in range(2):  # the first is slower
                start = time.perf_counter()
                status = predict.main([*words, *common])
                times.append(time.perf_counter() - start)
            room = f", {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB" if o.cuda else ""
            rates = f"{count / times[1]:.3g} images/s (at first {count / times[0]:.3g}){room}"
            report.check(name, status == 0, rates)
    with report.part("export to .pt2"):
        start, path = time.perf_counter(), o.work / "network.pt2"
        status = predict.main(["--checkpoint", str(checkpoint), "--export", str(path)])
        report.check("export to .pt2", status == 0 and path.is_file(), f"{time.perf_counter() - start:.1f} s")


def race(o, report):
    """Time to Dice on the drawn cars: two minutes of each side, or what is left of the time."""
    minutes = min(120, max(20, (o.seconds - 110) / 2)) / 60 if not o.small else 0.02
    flags = ["--features", *map(str, o.features), *["--batch-size", "2"] * o.small]
    for side in ("article", "whole"):
        with report.part(side):
            results = o.work / f"race-{side}.json"
            results.unlink(missing_ok=True)
            words = ["--parts", "race", "--data", str(o.data), "--only", side, "--seed", "0", "--device", str(o.device)]
            words += ["--minutes", f"{minutes:.4f}", "--points", "4", "--results", str(results)]
            words += ["--image-size", *map(str, o.size), "--", *flags]
            status, _ = run_script(o, words, script="benchmarks/train.py", timeout=400)
            curve = json.loads(results.read_text())[0]["curve"]
            words = ", ".join(f"{dice:.4f} after {60 * spent:.0f} s" for spent, _, dice in curve)
            report.figure(side, words, curve=curve)
            report.check(f"{side} ran", status == 0, f"planned for {60 * minutes:.0f} s")


# Section, its limit in seconds, and whether it must be alone on the machine because it measures time.
SECTIONS = {
    "ceilings": (ceilings, 60, True),
    "data": (data, 90, True),
    "product": (whole_run, 200, True),  # alone, so that it fills the compiler's cache for the others
    "settings": (settings, 240, False),
    "numbers": (numbers, 200, False),
    "resume": (stop_and_resume, 200, False),
    "group": (group_of_one, 150, False),
    "speed": (speed, 200, True),
    "waits": (hidden_waits, 100, True),
    "epoch": (epoch, 100, True),
    "convolutions": (convolutions, 60, True),
    "predict": (predicting, 100, True),
    "untried": (partial(speed, tries=False), 100, True),
    "race": (race, 420, True),
}


# ---- the sections' processes, and the table


def run_section(args, name, end):
    """Runs one section in a process of its own, within its limit and what is left; returns its record."""
    limit = min(SECTIONS[name][1], end - time.perf_counter())
    path, log = args.output / f"{name}.json", args.output / f"{name}.log"
    path.unlink(missing_ok=True)
    if limit < 15:
        return dict(status="not run", seconds=0, lines=[], figures={})
    command = [sys.executable, __file__, "--section", name, "--output", str(args.output), "--device", args.device]
    command += ["--work", str(args.work.parent), "--seconds", f"{limit:.0f}", *["--small"] * args.small]
    start, ended = time.perf_counter(), ""
    # One thread, where it is only a rehearsal: several wait for each other on a CPU that is busy otherwise
    environment = os.environ | {"PYTHONUNBUFFERED": "1"} | ({"OMP_NUM_THREADS": "1"} if args.small else {})
    with open(log, "w") as file:
        child = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, env=environment
        )
        try:
            if status := child.wait(limit):
                ended = f"the process ended with status {status}: {last_words(log.read_text())}"
        except subprocess.TimeoutExpired:
            ended = f"cut off after {limit:.0f} s"
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)  # its own children too
                child.wait()
    found = json.loads(path.read_text()) if path.is_file() else dict(lines=[], figures={})
    if ended:
        found["lines"].append(["FAIL", "section", ended])
    failed = not found["lines"] or any(line[0] == "FAIL" for line in found["lines"])
    found |= dict(status="FAIL" if failed else "PASS", seconds=time.perf_counter() - start)
    print(f"{name}: {found['status']}, {found['seconds']:.0f} s", flush=True)
    print("".join(f"  {status:7} {what}: {words[:200]}\n" for status, what, words in found["lines"]), flush=True)
    return found


def run_all(args, names):
    """The records of all sections: those that measure time one by one, neighbours that do not side by side."""
    end, records = time.perf_counter() + 60 * args.minutes, {}
    together = max(1, min(5, cores() // 3))
    while names:
        group = names[:1]
        while not SECTIONS[group[0]][2] and len(group) < len(names) and not SECTIONS[names[len(group)]][2]:
            group = names[: len(group) + 1]
        with ThreadPoolExecutor(together) as pool:
            records |= zip(group, pool.map(lambda name: run_section(args, name, end), group))
        names = names[len(group) :]
    return records


def table_of(records):
    """The table: of each section how it ended, and its lines, cut so that all of it fits in 12,000 characters."""
    lines = [f"{'section':13} {'result':8} seconds"]
    for name, found in records.items():
        lines.append(f"{name:13} {found['status']:8} {found['seconds']:7.0f}")
        lines += [f"  {status:7} {what}: {words}"[:120] for status, what, words in found["lines"]]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "demo" / "gpu", help="folder of logs and JSON")
    parser.add_argument("--work", type=Path, default=ROOT / "demo" / "gpu", help="folder of data and runs, some GB")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="these sections alone")
    parser.add_argument("--device", default="auto", help="cuda, or cpu for a rehearsal")
    parser.add_argument("--small", action="store_true", help="tiny sizes and few steps")
    parser.add_argument("--minutes", type=float, default=9.5, help="for all sections together")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=600, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.output, args.work = args.output.absolute(), args.work.absolute() / ("small" if args.small else "full")
    for folder in (args.output, args.work):
        folder.mkdir(parents=True, exist_ok=True)
    if args.section:
        report = Report(args.output / f"{args.section}.json")
        with report.part("section"):
            SECTIONS[args.section][0](sizes_of(args), report)
        return 0
    names = [name for name in SECTIONS if not args.only or name in args.only]
    if "data" not in names and not (args.work / "data" / "done").is_file():
        names.insert(0, "data")
    records = run_all(args, names)
    table = table_of(records)
    write_text(args.output / "table.txt", table + "\n")
    write_text(args.output / "results.json", json.dumps(records, indent=1) + "\n")
    print(f"\n{table}")
    return int(any(found["status"] == "FAIL" for found in records.values()))


if __name__ == "__main__":
    sys.exit(main())
