"""How a script ends, with real signals, and lists and counts in words."""

import ast
import pickle
import subprocess
import sys

import pytest
from helpers import ROOT, WAIT

from parts.errors import UnusableFile, counted, list_files, tell

DROPPED = """
import os, signal
from parts import errors
class Deaf:
    def __del__(self):  # what a handler raises in here is dropped by Python
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass
def main():
    Deaf()
    print("still running", flush=True)
    errors.stop_if_asked()
    print("never reached")
errors.run(main)
"""


def ended(code):
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=WAIT)


def test_a_signal_that_python_drops_still_ends_the_loop():
    done = ended(DROPPED)
    assert done.returncode == 130 and "still running" in done.stdout and "never reached" not in done.stdout
    assert done.stderr == "\nStopped.\n"


@pytest.mark.parametrize(
    "body, status, message",
    [
        ("raise errors.UserError('mend this')", 2, "\nmend this\n"),
        ("raise errors.UserError('')", 2, ""),
        ("raise errors.UserError('a\\x1b[31m\\n\\x9bb')", 2, "\na\\x1b[31m\n\\x9bb\n"),
        ("open('/dev/full', 'w').write('x' * 10**6)", 2, "disk is full"),
        ("os.mkdir('/proc/self/x')", 2, "\n/proc/self/x: there is no such file or folder"),
        ("os.readlink('/proc')", 2, "\n/proc: Invalid argument.\n"),  # the system's words, where we have none
        ("raise MemoryError", 2, "There is too little memory. Close other programs"),
        (
            "resource.setrlimit(resource.RLIMIT_NOFILE, (9, 9)); [os.dup(0) for _ in range(9)]",
            2,
            "too many files are open",
        ),
        ("signal.raise_signal(signal.SIGTERM)", 143, "SIGTERM"),
        ("signal.raise_signal(signal.SIGINT)", 130, "\nStopped.\n"),
        ("return 1", 1, ""),
        ("pass", 0, ""),
    ],
)
def test_each_end_has_its_status_and_no_traceback(body, status, message):
    done = ended(
        f"import os, resource, signal\nfrom parts import errors\ndef main():\n    {body}\nerrors.run(main)\nprint('on')"
    )
    assert done.returncode == status and message in done.stderr and bool(message) == bool(done.stderr)
    assert "Traceback" not in done.stderr
    assert ("on" in done.stdout) == (status == 0)  # a notebook's kernel goes on


HALF_MADE = """
from parts import errors
from torch.utils.data import dataloader
def main():
    dataloader._MultiProcessingDataLoaderIter.__new__(dataloader._MultiProcessingDataLoaderIter)
    raise OSError(24, "Too many open files")
errors.run(main)
"""


@pytest.mark.slow
def test_workers_that_could_not_be_started_are_told_once():
    done = ended(HALF_MADE)
    assert (done.returncode, done.stderr.count("\n")) == (2, 2), done.stderr


def test_what_is_printed_is_escaped_in_one_place(capsys):
    tell("a\x1b]0;owned\x07\nb\r\u202e \udce9 ×")
    assert capsys.readouterr().out == "a\\x1b]0;owned\\x07\nb\\r\\u202e \\udce9 ×\n"
    places = []
    for path in [*ROOT.glob("*.py"), *ROOT.glob("parts/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "print",
                "sys.stdout.write",
                "sys.stderr.write",
            ):
                places.append((path.name, ast.unparse(node)))
    assert places == [("errors.py", "print(escaped(text), file=file)")]


def test_an_unusable_file_names_its_problem_and_cure_and_travels_between_processes():
    error = UnusableFile("a\n.png", "is empty", "Copy it again")
    assert str(error) == "a\\n.png: is empty. Copy it again."
    other = pickle.loads(pickle.dumps(error))
    assert str(other) == str(error) and (other.path, other.problem, other.cure) == (
        "a\n.png",
        "is empty",
        "Copy it again",
    )
    assert str(UnusableFile(str(error))) == str(error)  # as a DataLoader makes it again


def test_lists_and_counts_in_words():
    assert [counted(*count) for count in ((1, "file"), (0, "file"), (2, "class"), (1, "class"), (1234, "copy"))] == [
        "1 file", "0 files", "2 classes", "1 class", "1,234 copies"]  # fmt: skip
    assert list_files(["a", "b\t"]) == "a, b\\t" and list_files(list("abcde")) == "a, b, c and 2 more"
