"""Whole files, locks and functions on all cores, by real processes that are really killed."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
from helpers import ROOT, WAIT, children_of, wait_for_end
from PIL import Image

from parts.errors import UserError
from parts.files import (
    Provenance,
    copy_whole,
    one_at_a_time,
    parallel_map,
    remove_leftovers,
    sole_writer,
    stamp,
    write_text,
    write_whole,
)


def test_a_file_is_whole_or_absent(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "first")

    def broken(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, broken)
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError) as told:
        write_text(tmp_path / "no" / "file.txt", "x")
    assert told.value.filename == str(tmp_path / "no" / "file.txt")  # the name that the reader knows


def test_an_error_of_pillows_keeps_its_words(tmp_path):
    with pytest.raises(OSError, match="cannot write mode F as PNG"):
        write_whole(tmp_path / "a.png", lambda file: Image.new("F", (2, 2)).save(file, "PNG"))


def test_permissions_are_those_that_the_system_gives(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "file.txt", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "file.txt").stat().st_mode & 0o777 == 0o640


def test_a_copy_is_the_same_file_until_one_is_replaced(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    write_text(one, "1")
    copy_whole(one, other)
    assert one.samefile(other)
    copy_whole(one, other)
    write_text(one, "2")
    assert (one.read_text(), other.read_text()) == ("2", "1") and len(list(tmp_path.iterdir())) == 2


def test_leftovers_go(tmp_path):
    for name in (".best.pth.0123456789ab.part", "mine.part"):
        (tmp_path / name).write_text("x")
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.part"]


def test_a_stamp_tells_other_bytes_of_the_same_length_and_time(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"one")
    seen = stamp(path)
    state = os.stat(path)
    time.sleep(0.02)  # the system's clock for files ticks every few milliseconds
    path.write_bytes(b"two")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert seen != stamp(path) == stamp(path) and stamp(tmp_path / "none") is None


# ---- provenance


def provenance(version=1, settings=None, **sources):
    return Provenance(version, settings or {"SIZE": (32, 48)}, sources or {"images": {"a/x.png": [1, 2, 3]}})


@pytest.mark.parametrize(
    ("new", "told"),
    [
        (provenance(), ""),
        (provenance(version=2), "another version of this program made them"),
        (provenance(settings={"SIZE": (32, 64)}), "SIZE was [32, 48], now [32, 64]"),
        (provenance(settings={"SIZE": (32, 48), "CROP": True}), "CROP was None, now True"),
        (provenance(images={"a/x.png": [1, 2, 4]}), "images: 1 file changed, e.g. x.png"),
        (provenance(images={"b/x.png": [1, 2, 3]}), "images: 1 file new, e.g. x.png; images: 1 file gone, e.g. x.png"),
        (provenance(images={"a/x.png": [1, 2, 3]}, masks={"a\n": [0], "b": [0]}), r"masks: 2 files new, e.g. a\n"),
    ],
)
def test_what_something_was_made_from_is_stored_and_its_difference_told(new, told):
    old = Provenance.from_dict(json.loads(json.dumps(provenance().to_dict())))
    assert old == provenance() and new.difference(old) == told
    assert new.difference(old, lambda name, before, after: "") == told * ("was" not in told)


@pytest.mark.parametrize("stored", [None, [], 3, {"version": 1}, {"version": 1, "settings": 3, "sources": {}}])
def test_what_is_no_provenance_is_refused(stored):
    with pytest.raises(ValueError, match="no provenance|not iterable"):
        Provenance.from_dict(stored)


def test_what_older_code_wrote_is_of_another_version():
    old = Provenance.from_dict({"layout": [3, 1], "pairs": []})
    assert provenance().difference(old) == "another version of this program made them"


# ---- locks


def holding(code, tmp_path):
    """A process that holds a lock in `tmp_path` and has said so."""
    text = f"import time\nfrom parts.files import *\nwith {code}:\n    print('held', flush=True)\n    time.sleep(60)\n"
    process = subprocess.Popen([sys.executable, "-c", text], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_folder_takes_one_writer_and_a_dead_ones_lock_is_void(tmp_path):
    other = holding(f"sole_writer({str(tmp_path)!r})", tmp_path)
    try:
        for _ in range(2):
            with pytest.raises(UserError, match=f"process {other.pid}"), sole_writer(tmp_path):
                pass
    finally:
        other.kill()
        other.wait()
    with sole_writer(tmp_path):
        pass


def test_one_at_a_time_waits_for_the_other(tmp_path, capsys):
    other = holding(f"one_at_a_time({str(tmp_path / 'lock')!r}, 'waiting')", tmp_path)
    multiprocessing.get_context("fork").Process(target=kill_soon, args=(other.pid,)).start()
    with one_at_a_time(tmp_path / "lock", "somebody is at work"):
        assert other.wait(WAIT) == -signal.SIGKILL
    assert capsys.readouterr().out == "somebody is at work\n"


def kill_soon(pid):
    time.sleep(0.3)
    os.kill(pid, signal.SIGKILL)


# ---- all cores


def square(number):
    if number == 1000:
        raise UserError("a thousand is too much")
    if number == 1001:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def test_each_is_a_map(monkeypatch):
    numbers = list(range(100))
    assert list(parallel_map(square, numbers, 2)) == list(parallel_map(square, numbers, 0)) == [n * n for n in numbers]
    with pytest.raises(UserError, match="^a thousand is too much$"):
        list(parallel_map(square, [*numbers, 1000], 2))
    with pytest.raises(UserError, match="was killed"):
        list(parallel_map(square, [*numbers, 1001], 2))


SLOW = """
import sys, time
from parts import errors
from parts.files import parallel_map
def wait(number):
    print(number, flush=True)
    time.sleep(0.2)
def main():
    for _ in parallel_map(wait, range(1000), 2):
        pass
if __name__ == "__main__":
    errors.run(main)
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_stopped_parent_leaves_no_worker(tmp_path, number, status):
    (tmp_path / "slow.py").write_text(SLOW)
    process = subprocess.Popen(
        [sys.executable, "slow.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    process.stdout.readline()
    workers = children_of(process)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal sends it: to all of them
    else:
        process.send_signal(number)
    _, err = process.communicate(timeout=WAIT)
    assert process.returncode == status and "Traceback" not in err, err
    assert len(workers) == 2
    wait_for_end(workers)
