import os
import pickle
import random
import subprocess
import sys
import zipfile

import pytest
import torch
from conftest import ROOT

from checkpoints import (
    load_checkpoint,
    load_weights,
    read_checkpoint,
    save_checkpoint,
    save_run,
    sole_writer,
)
from errors import UserError
from unet import UNet


@pytest.fixture
def network():
    torch.manual_seed(0)
    return UNet(features=(4, 8))


@pytest.fixture
def saved(tmp_path, network):
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.rand(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    path = tmp_path / "checkpoint.pth"
    save_checkpoint({"state_dict": network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}, path)
    return path


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_what_was_saved_comes_back(saved, network):
    checkpoint = read_checkpoint(saved)
    assert checkpoint["epoch"] == 3 and equal(checkpoint["state_dict"], network.state_dict())
    other = UNet(features=(4, 8))
    load_checkpoint(checkpoint, other)
    assert equal(other.state_dict(), network.state_dict())
    assert equal(torch.load(saved)["state_dict"], network.state_dict())  # as the article reads it


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", None])
def test_other_layouts_are_read(tmp_path, network, prefix, key):
    weights = {prefix + name: value for name, value in network.state_dict().items()}
    torch.save({key: weights} if key else weights, tmp_path / "other.pth")
    assert equal(read_checkpoint(tmp_path / "other.pth")["state_dict"], network.state_dict())


def test_a_file_in_pytorchs_old_format_is_read(tmp_path, network):
    torch.save(network.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert equal(read_checkpoint(tmp_path / "old.pth")["state_dict"], network.state_dict())


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_hostile_file_is_refused_and_not_run(tmp_path):
    trap = tmp_path / "trap"
    torch.save({"state_dict": Hostile(trap)}, tmp_path / "hostile.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Hostile(trap), protocol=2))
    for name in ("hostile.pth", "plain.pth"):
        with pytest.raises(UserError, match=name):
            read_checkpoint(tmp_path / name)
    assert not trap.exists()
    torch.load(tmp_path / "hostile.pth", weights_only=False)  # the trap is a real one
    assert trap.exists()


def test_foreign_files_are_refused_by_name(tmp_path, saved):
    whole = saved.read_bytes()
    with zipfile.ZipFile(tmp_path / "zip.pth", "w") as archive:
        archive.writestr("readme", "hello")
    contents = {
        "empty.pth": b"",
        "text.pth": b"not a checkpoint\n",
        "short.pth": whole[: len(whole) // 2],
        "tail.pth": whole[:-40],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"epoch": 1}, tmp_path / "noweights.pth")
    for name in [*contents, "zip.pth", "list.pth", "noweights.pth", "absent.pth"]:
        with pytest.raises(UserError, match=name):
            read_checkpoint(tmp_path / name)
    with pytest.raises(UserError, match="no such checkpoint"):
        read_checkpoint(tmp_path)


def test_a_flipped_byte_is_refused_or_harmless(saved, network):
    whole = saved.read_bytes()
    expected = read_checkpoint(saved)
    draw, refused = random.Random(0), 0
    for _ in range(200):
        place = draw.randrange(len(whole))
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        saved.write_bytes(damaged)
        try:
            found = read_checkpoint(saved)
        except UserError as error:
            assert saved.name in str(error)
            refused += 1
            continue
        assert equal(found["state_dict"], expected["state_dict"]) and found["epoch"] == 3
        for index, state in expected["optimizer"]["state"].items():
            assert equal(found["optimizer"]["state"][index], state)
    assert refused > 100


def test_another_architecture_is_refused_whole(saved):
    for other in (UNet(features=(4, 16)), UNet(features=(4, 8, 8))):
        before = {key: value.clone() for key, value in other.state_dict().items()}
        with pytest.raises(UserError, match="another architecture"):
            load_weights(other, read_checkpoint(saved)["state_dict"], "checkpoint.pth")
        assert equal(other.state_dict(), before)


def test_best_and_last_are_one_file_until_one_is_replaced(tmp_path):
    last, best = tmp_path / "checkpoint.pth", tmp_path / "best.pth"
    save_run({"state_dict": {"w": torch.zeros(3)}}, last, best)
    assert last.samefile(best)
    save_run({"state_dict": {"w": torch.ones(3)}}, last)
    assert torch.load(best)["state_dict"]["w"].sum() == 0 and torch.load(last)["state_dict"]["w"].sum() == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pth", "checkpoint.pth"]


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path):
    """The size of a file is limited in the child, as a full disk would limit it."""
    path = tmp_path / "checkpoint.pth"
    save_checkpoint({"state_dict": {"w": torch.zeros(10)}}, path)
    before = path.read_bytes()
    code = (
        "import resource, signal, torch, errors, checkpoints\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        f"errors.run(lambda: checkpoints.save_checkpoint({{'state_dict': {{'w': torch.zeros(10**6)}}}}, {str(path)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "checkpoint.pth" in done.stderr and "Traceback" not in done.stderr
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_folder_takes_one_writer(tmp_path):
    hold = (
        "import sys, time, checkpoints\n"
        f"with checkpoints.sole_writer({str(tmp_path)!r}):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    other = subprocess.Popen([sys.executable, "-c", hold], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"process {other.pid}"), sole_writer(tmp_path):
            pass
    finally:
        other.kill()
        other.wait()


def test_the_lock_of_a_dead_run_is_void(tmp_path, capsys):
    (tmp_path / ".lock").write_text("process 1 on elsewhere")
    with sole_writer(tmp_path):
        assert "its lock is void" in capsys.readouterr().out
    with sole_writer(tmp_path):
        assert capsys.readouterr().out == ""
