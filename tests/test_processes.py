"""Two gloo processes on one machine."""

import json
import os
import platform
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers import (
    ROOT,
    SMALL,
    WAIT,
    children_of,
    draw_pairs,
    history,
    same_runs,
    script,
    wait_for_end,
    wait_for_epochs,
)
from PIL import Image
from torch.distributed import TCPStore

import train
from parts import processes
from parts.errors import UserError
from unet import UNet

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
ALONE = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
ALONE["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])


def start(*flags, cwd):
    return subprocess.Popen(
        [*TORCHRUN, *map(str, flags)],
        cwd=cwd,
        env=ALONE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def together(*words, cwd):
    """(largest exit status, output, errors) of a script in two processes, with torchrun's variables and its store.

    Forks of processes that have imported torch; what torchrun itself does needs `start`.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = dict(MASTER_ADDR=store.host, MASTER_PORT=str(store.port), TORCHELASTIC_USE_AGENT_STORE="True")

    def run(rank):
        which = dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
        return script(*words, cwd=cwd, env=ALONE | place | which, beside=rank)

    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(run, range(2)))
    return max(one.returncode for one in done), "".join(one.stdout for one in done), "".join(one.stderr for one in done)


ONE_STEP = """
import json, sys, torch
from parts import processes
from unet import UNet
from utils import check_accuracy, get_loaders
PARTS = ("train_images", "train_masks", "test_images", "test_masks")
with processes.together("cpu") as device:
    torch.manual_seed(0)
    network = UNet(features=(4, 8)).eval()  # BatchNorm frozen: each process sees half of the batch
    images, masks = torch.rand(4, 3, 16, 16), (torch.rand(4, 1, 16, 16) > 0.5).float()
    rank, world = processes.rank(), processes.world_size()
    model = processes.wrap(network, device)
    halves = [(images[i], masks[i]) for i in (slice(0, 2), slice(2, 4))]
    for index, (x, y) in enumerate(halves):  # accumulation: synchronised at the last alone
        x, y = x[rank::world], y[rank::world]
        with processes.synchronised(model, index == 1):
            loss = torch.nn.functional.binary_cross_entropy_with_logits(model(x), y) / 2
            loss.backward()
    if rank == 0:
        torch.save([p.grad for p in network.parameters()], sys.argv[1])
    counts = processes.sum_over_all(torch.tensor([rank + 1.0]))
    assert counts.item() == world * (world + 1) / 2
    assert processes.first(lambda: rank) == 0
    try:
        processes.wrap(network, device, sync_batchnorm=True)
        assert world == 1
    except processes.UserError as error:
        assert world == 2 and "SYNC_BATCHNORM" in str(error)
    folders = [f"{sys.argv[2]}/dataset/augmented_{part}" for part in PARTS]
    shuffled, loader = get_loaders(*folders[2:], *folders[:2], 2, 0, image_size=(32, 48))
    for sampler, count in ((loader.sampler, 11), (shuffled.sampler, 5)):  # each image falls to a process
        taken = torch.zeros(count)
        taken[sampler.order(0)] = 1
        assert (processes.sum_over_all(taken) > 0).all() and len(sampler) == len(sampler.order(0))
    scores = check_accuracy(loader, network)
    assert check_accuracy(shuffled, network).per_image == check_accuracy(shuffled, network).per_image
    if rank == 1 or world == 1:
        with open(sys.argv[1] + ".json", "w") as file:
            json.dump([scores.dice, scores.iou, scores.accuracy, scores.per_image], file)
"""


@pytest.mark.slow
def test_gradients_and_scores_of_two_processes_are_those_of_one(prepared):
    """Of one step, to rounding; of 11 validation images, exactly."""
    (prepared / "step.py").write_text(ONE_STEP)
    code, _, err = together(prepared / "step.py", prepared / "two", prepared, cwd=prepared)
    assert code == 0, err
    assert "Warning" not in err
    one = script(prepared / "step.py", prepared / "one", prepared, cwd=prepared, env=ALONE)
    assert one.returncode == 0, one.stderr
    for alone, shared in zip(torch.load(prepared / "one"), torch.load(prepared / "two"), strict=True):
        torch.testing.assert_close(alone, shared, rtol=1e-4, atol=1e-6)
    assert len(json.loads((prepared / "one.json").read_text())[3]) == 11
    assert (prepared / "one.json").read_text() == (prepared / "two.json").read_text()


CLASS_SCORES = """
import json, sys, torch
from torch.utils.data import DataLoader, TensorDataset
from parts import processes
from parts.masks import MaskRule
from parts.scores import load_metrics
from utils import check_accuracy
torch.manual_seed(0)
images = torch.randint(0, 256, (7, 3, 20, 30), dtype=torch.uint8)
masks = torch.randint(0, 6, (7, 20, 30), dtype=torch.uint8)
masks[masks == 5] = 255
masks[2] = 255
names = ("sky", "road", "car", "pole", "sign")
classes = MaskRule(background=(), foreground=(), ignored=(9,), classes=(0, 1, 2, 3, 4), names=names)
found = []
with processes.together("cpu"):
    for rule, truths in ((classes, masks), (MaskRule(ignored=(9,)), torch.where(masks < 255, masks % 2, masks))):
        network = torch.nn.Conv2d(3, rule.channels, 1)
        network.bias.data = -network.weight.data.sum((1, 2, 3)) / 2  # each class is predicted somewhere
        for count in (7, 1):  # of one image, another process has none
            data = TensorDataset(images[:count], truths[:count])
            data.mask_rule = rule
            found.append(vars(check_accuracy(DataLoader(data, 2), network, metrics=load_metrics(["boundary"]))))
    if processes.rank() == processes.world_size() - 1:
        with open(sys.argv[1], "w") as file:
            json.dump(found, file)
"""


@pytest.mark.slow
def test_scores_of_classes_and_with_ignored_pixels_are_those_of_one_process(tmp_path):
    """Exactly; those of one are compared with torchmetrics by test_scores.py."""
    (tmp_path / "scores.py").write_text(CLASS_SCORES)
    code, out, err = together(tmp_path / "scores.py", tmp_path / "two.json", cwd=tmp_path)
    assert code == 0, err
    one = script(tmp_path / "scores.py", tmp_path / "one.json", cwd=tmp_path, env=ALONE)
    assert one.returncode == 0, one.stderr
    assert one.stdout == out, "process 0 alone prints"
    assert (tmp_path / "one.json").read_text() == (tmp_path / "two.json").read_text()
    classes, _, ignoring, _ = json.loads((tmp_path / "one.json").read_text())
    assert len(classes["per_image"]) == 7 and min(classes["classes"]["dice"]) > 0
    assert classes["metrics"]["boundary"] > 0
    assert 0 < ignoring["dice_nonempty"] < ignoring["dice"] < 1


COMPILED = """
import sys, torch
from parts import processes, recipe
from unet import UNet
with processes.together("cpu") as device:
    torch.manual_seed(processes.rank())  # wrapping makes the weights those of process 0
    network = UNet(features=(2, 4))
    model = processes.wrap(network, device)
    for index in range(2):  # the trial exchanges nothing: process 1 has none in the second round
        if not (index and processes.rank()):
            with processes.synchronised(model, last=False):
                assert recipe.compile_or_not(model, (2, 3, 16, 16), None)
        assert all(it.grad is None for it in network.parameters())
        torch.distributed.barrier()
    torch.manual_seed(processes.rank())
    with processes.synchronised(model, last=True):
        model(torch.rand(2, 3, 16, 16)).sum().backward()
    grads = torch.cat([it.grad.flatten() for it in network.parameters()])
    both = [torch.empty_like(grads) for _ in range(2)]
    torch.distributed.all_gather(both, grads)
    assert torch.equal(*both) and grads.any()
    assert set(torch.load(sys.argv[1])) == set(network.state_dict())
"""


@pytest.mark.slow
def test_a_wrapped_network_is_compiled_and_its_trial_exchanges_nothing(tmp_path):
    (tmp_path / "compiled.py").write_text(COMPILED)
    torch.save(UNet(features=(2, 4)).state_dict(), tmp_path / "plain.pth")
    code, out, err = together(tmp_path / "compiled.py", tmp_path / "plain.pth", cwd=tmp_path)
    assert code == 0, err
    assert "torch.compile failed" not in out


FAULTS = """
import resource, torch
from parts import processes
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(16 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for keep in (lambda: None, processes.keep_freed_memory):
    keep()
    faults()
    print(faults())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc can be told to keep its memory")
def test_freed_memory_is_kept_for_the_next_tensor(tmp_path):
    (tmp_path / "faults.py").write_text(FAULTS)
    done = script(tmp_path / "faults.py", cwd=tmp_path, env=ALONE)
    given_back, kept = map(int, done.stdout.split())
    assert given_back > 100_000 > 2 * kept, "10 times 64 MiB are 163,840 pages of 4 KiB"


FLAGS = [*SMALL, "--batch-size", "2", "--num-epochs", "3", "--accumulate", "2", "--picture-batches", "1"]


# A thread of gloo that lives when the interpreter ends may abort it, one time in a hundred.
TRAIN_AND_LOOK = """
import atexit, os, sys, train
from pathlib import Path
from parts import errors
def look():
    threads = [(task / "comm").read_text() for task in Path("/proc/self/task").glob("*")]
    if any("gloo_runloop" in name for name in threads):
        print("gloo's threads have outlived their group:", threads, file=sys.stderr, flush=True)
        os._exit(1)
atexit.register(look)  # registered before all others, called after them
errors.run(lambda: train.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_interrupted_and_resumed_is_uninterrupted_and_one_process_goes_on(prepared, monkeypatch, capsys):
    whole, stopped = prepared / "whole", prepared / "stopped"
    (prepared / "look.py").write_text(TRAIN_AND_LOOK)
    code, out, err = together(prepared / "look.py", *FLAGS, "--output-dir", whole, cwd=prepared)
    assert code == 0, err
    assert out.count("Best Dice") == 1, "process 0 alone prints"
    process = start(ROOT / "train.py", *FLAGS, "--output-dir", stopped, cwd=prepared)
    wait_for_epochs(stopped, 1, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=WAIT)
    code, _, err = together(ROOT / "train.py", *FLAGS, "--output-dir", stopped, "--load-model", cwd=prepared)
    assert code == 0, err
    same_runs(whole, stopped)
    flags = [*FLAGS, "--num-epochs", "4", "--output-dir", stopped, "--load-model"]
    monkeypatch.chdir(prepared)
    train.main(list(map(str, flags)))
    assert "PROCESSES 2 -> 1" in capsys.readouterr().out
    assert len(history(stopped)) == 4


@pytest.mark.slow
def test_one_killed_ends_the_other_and_both_go_on_where_torchrun_restarts_them(prepared):
    (prepared / "checkpoint.pth").write_text("an earlier run's")
    process = start("--max-restarts=1", ROOT / "train.py", *SMALL, "--num-epochs", 500, cwd=prepared)
    for epochs in (2, 4):
        wait_for_epochs(prepared, epochs, process)
        children = children_of(process)
        assert len(children) == 2
        os.kill(children[1], signal.SIGKILL)
        wait_for_end(children)
    out, err = process.communicate(timeout=WAIT)
    assert process.returncode != 0
    assert re.search("Going on after epoch [23],", out) and out.count("of an earlier run") == 1, err
    epochs = torch.load(prepared / "checkpoint.pth")["history"]
    assert [row["epoch"] for row in epochs] == list(range(1, len(epochs) + 1))


HANGING = """
import sys, train
from datetime import timedelta
from parts import errors, processes
processes.MISSING_AFTER, processes.ROLL_CALL = timedelta(seconds=8), timedelta(seconds=1)
errors.run(lambda: train.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_one_that_hangs_is_named(prepared):
    (prepared / "hanging.py").write_text(HANGING)
    process = start(prepared / "hanging.py", *SMALL, "--num-epochs", 5000, "--picture-batches", 0, cwd=prepared)
    wait_for_epochs(prepared, 1, process)
    children = children_of(process)
    os.kill(children[1], signal.SIGSTOP)
    wait_for_end(children[:1], seconds=60)
    os.kill(children[1], signal.SIGKILL)
    _, err = process.communicate(timeout=WAIT)
    assert re.search(r"Process 0 has waited \d+ s for process 1, which does not answer", err), err


@pytest.mark.slow
def test_a_mistake_of_one_process_in_the_middle_is_told_and_the_others_say_so_in_a_line(prepared):
    """A picture that vanishes while it is trained on: one of them meets it."""
    process = start(ROOT / "train.py", *SMALL, "--num-epochs", 500, "--no-arrays", cwd=prepared)
    wait_for_epochs(prepared, 1, process)
    (prepared / "dataset/augmented_train_images/img_004.png").unlink()
    _, err = process.communicate(timeout=WAIT)
    assert process.returncode != 0 and "img_004.png" in err
    assert "Traceback" not in err.partition("torch/distributed")[0]


def test_one_gpu_for_several_processes_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match='DEVICE = "cuda:1": with torchrun'), processes.together("cuda:1"):
        pass


@pytest.mark.slow
@pytest.mark.parametrize(("flags", "words"), [
    (("--train-mask-dir", "nowhere"), "nowhere: "), (("--folds", 3), "train one fold at a time"),
])  # fmt: skip
def test_a_mistake_is_told_once(prepared, flags, words):
    (prepared / "look.py").write_text(TRAIN_AND_LOOK)
    code, _, err = together(prepared / "look.py", *SMALL, *flags, cwd=prepared)
    assert code != 0 and err.count(words) == 1
    assert "gloo" not in err


AGREED = """
import json, os, torch, train
from parts import processes
from parts.audit import Report
from utils import get_loaders
told = []
def tell(function):
    try:
        function()
    except processes.UserError as error:
        told.append(str(error))
with processes.together("cpu"):
    rank = processes.rank()
    network = torch.nn.BatchNorm2d(3)
    network.running_mean.fill_(1.0 + rank)
    processes.same_everywhere(network)
    told.append(network.running_mean.tolist())
    os.environ["LOCAL_RANK"] = "0"  # as on two machines
    folders = ["--train-img-dir", "0/images", "--train-mask-dir", "0/masks"]
    folders += [word.replace("train", "val") for word in folders]
    for words in (["--seed", str(rank)], ["--output-dir", str(rank)]):
        tell(lambda: train.tell_settings(train.settings([*folders, *words])))
    for folder in (str(rank), "0"):
        data = f"{folder}/images", f"{folder}/masks"
        tell(lambda: train.data_of(*get_loaders(*data, *data, 2, 0, arrays=False), Report([], [])))
with open(f"{rank}.json", "w") as file:
    json.dump(told, file)
"""


@pytest.mark.slow
def test_machines_with_other_settings_or_data_are_refused_and_statistics_are_those_of_process_0(tmp_path):
    """What must not differ, and what may; of BatchNorm."""
    for folder in "01":
        draw_pairs(tmp_path / folder / "images", tmp_path / folder / "masks", 2)
    Image.new("RGB", (60, 40)).save(tmp_path / "1/images/img_001.png")
    (tmp_path / "agreed.py").write_text(AGREED)
    code, _, err = together(tmp_path / "agreed.py", cwd=tmp_path)
    assert code == 0, err
    statistics, *told = json.loads((tmp_path / "0.json").read_text())
    assert statistics == [1.0, 1.0, 1.0]
    assert [text.partition("\n")[0] for text in told] == [
        "Process 1: SEED = 1 (process 0: 0).",
        "Process 1: its training data are not those of process 0 (images: 1 file changed, e.g. img_001.png), its "
        "validation data are not those of process 0 (images: 1 file changed, e.g. img_001.png).",
    ]
    assert (tmp_path / "1.json").read_text() == (tmp_path / "0.json").read_text()
