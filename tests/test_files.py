"""Whole files, locks and functions on all cores, by real processes that are really killed."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from helpers import ROOT, WAIT, children_of, fresh_script, wait_for_end
from PIL import Image

from parts.errors import UserError
from parts.files import (
    DAY,
    Provenance,
    copy_whole,
    keep_only,
    one_at_a_time,
    parallel_map,
    path_inside,
    read_own,
    refuse_link,
    remove_leftovers,
    sole_writer,
    stamp,
    unfinished,
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
        write_text(tmp_path / ("long" * 100), "x")
    assert told.value.filename == str(tmp_path / ("long" * 100))  # the name that the reader knows

    def removes_the_folder(file):
        file.write(b"x")
        times.append(1)
        if len(times) == 1:
            shutil.rmtree(tmp_path / "gone")

    times = []
    write_whole(tmp_path / "gone" / "file.txt", removes_the_folder)
    assert (tmp_path / "gone" / "file.txt").read_text() == "x" and len(times) == 2


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


LONG = "long" * 20


@pytest.mark.parametrize(
    ("only", "stay"),
    [
        ({}, set()),
        ({"idle": DAY}, {"new", "at work", "link", LONG}),
        ({"name": "old"}, {"at work", "link", "new", "old folder", LONG}),
        ({"name": LONG}, {"at work", "link", "new", "old", "old folder"}),
    ],
)
def test_leftovers_go(tmp_path, only, stay):
    """Not what is being written, nor files of others; of a link the link alone."""
    mine = [tmp_path / name for name in ("mine.part", ".mine.part", ".mine.0123.part", "mine")]
    for path in mine:
        path.mkdir()
        (path / "file").write_text("x")
    parts = {name: unfinished(tmp_path / name) for name in ("new", "old", LONG, "old folder", "at work", "link")}
    for name in ("new", "old", LONG):
        parts[name].write_text("x")
    for name in ("old folder", "at work"):
        parts[name].mkdir()
        (parts[name] / "images.npy").write_text("x")
    parts["link"].symlink_to(tmp_path / "mine")
    for path in (parts["old"], parts["old folder"] / "images.npy", parts["old folder"], parts["at work"]):
        os.utime(path, (time.time() - 2 * DAY,) * 2)
    remove_leftovers(tmp_path, **only)
    assert {name for name, part in parts.items() if part.is_symlink() or part.exists()} == stay
    assert all((path / "file").exists() for path in mine)


def test_a_folder_of_its_own_keeps_what_others_have_put_there(tmp_path):
    folder = tmp_path / "own"
    old, new, mine, other_kind = (folder / name for name in ("old.png", "a/new.png", "a/mine.png", "notes.txt"))
    for kept in ([old, new], [new]):
        keep_only(folder, kept)
        for file in (*kept, other_kind):
            write_text(file, "x")
    assert not old.exists() and new.exists() and other_kind.exists()
    mine.write_text("mine")
    for kept in ([new], [mine]):  # which would remove it, or be written over it
        with pytest.raises(UserError, match="holds 1 file that this program has not written.*mine.png"):
            keep_only(folder, kept)
    mine.unlink()
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(UserError, match="link: holds 1 file"):
        keep_only(tmp_path / "link", [])
    assert new.exists()


# ---- what is read back


@pytest.mark.parametrize("junk", [b"", b"\xff\xfe\0", b"[" * 100_000, b"null", b"{", "a folder", "a pipe"])
def test_junk_in_an_own_file_counts_as_none(tmp_path, junk):
    path = tmp_path / "key.json"
    assert read_own(path, dict, "none") == "none"
    write_text(path, '{"a": 1}')
    assert read_own(path, dict, "none") == {"a": 1}
    path.unlink()
    if junk == "a folder":
        path.mkdir()
    elif junk == "a pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(junk)
    assert read_own(path, dict, "none") == "none"


def test_a_name_out_of_a_file_is_used_only_in_its_folder(tmp_path):
    (tmp_path / "out" / "images").mkdir(parents=True)
    (tmp_path / "out" / "images" / "link").symlink_to(tmp_path)
    (tmp_path / "out" / "linked").symlink_to(tmp_path)
    for name in ("images/a.png", "images/sub/b.png", "masks/c.png", "..a.png"):
        assert path_inside(tmp_path / "out", name) == tmp_path / "out" / name
    for name in ("../a", "images/../../a", str(tmp_path), "images/link/a", "", ".", "images/..", "a\0/b", 3, None):
        assert path_inside(tmp_path / "out", name) is None
    refuse_link(tmp_path / "out" / "images" / "none", tmp_path / "out")
    with pytest.raises(UserError, match="linked: a link leads from here out of .*out, to where"):
        refuse_link(tmp_path / "out" / "linked", tmp_path / "out")


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


@pytest.mark.parametrize(
    "stored",
    [
        None,
        [],
        3,
        {"version": 1},
        {"version": 1, "settings": 3, "sources": {}},
        {"version": 1, "settings": {}, "sources": {"images": [["a", 1]]}},
    ],
)
def test_what_is_no_provenance_is_refused(stored):
    with pytest.raises(ValueError, match="no provenance"):
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


@pytest.mark.parametrize("junk", [lambda path: path.write_bytes(b"\xff\x1b[31m" * 9999), os.mkfifo, None])
def test_junk_in_the_place_of_a_lock_stops_nothing(tmp_path, junk):
    (tmp_path / "precious").write_text("precious")
    if junk is None:
        (tmp_path / ".lock").symlink_to("precious")
    else:
        junk(tmp_path / ".lock")
    with one_at_a_time(tmp_path / ".lock", "waiting"):
        pass
    with sole_writer(tmp_path):
        assert f"process {os.getpid()}" in (tmp_path / ".lock").read_text()
    assert (tmp_path / "precious").read_text() == "precious"


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


FEW_FILES = """
import multiprocessing, os, resource
from parts.files import parallel_map
most = resource.getrlimit(resource.RLIMIT_NOFILE)
ends = set()
for more in range(14):
    resource.setrlimit(resource.RLIMIT_NOFILE, most)
    are_open = len(os.listdir("/proc/self/fd"))  # Python itself leaves a pipe open where it cannot start a process
    resource.setrlimit(resource.RLIMIT_NOFILE, (are_open + more, most[1]))
    try:
        ends.add(list(parallel_map(abs, range(16), 2)) == list(range(16)))
    except OSError as error:
        ends.add(error.strerror)
resource.setrlimit(resource.RLIMIT_NOFILE, most)
print(ends == {True, "Too many open files"}, multiprocessing.active_children())
"""


def test_too_few_handles_for_all_processes_leave_none_waiting(tmp_path):
    """This process would wait for them when it ends."""
    done = fresh_script("-c", FEW_FILES, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.stdout == "True []\n", done.stderr


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
