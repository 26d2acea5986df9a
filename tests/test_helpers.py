"""A script that is run by tests/warm.py is as one in a process of its own."""

import os
import signal

import pytest
from helpers import ROOT, fresh_script, script

PROBE = """
import atexit, os, signal, sys, threading, time
print(sorted(name for name in sys.modules if name.partition(".")[0] in ("parts", "train", "dataset", "helpers")))
print(__name__, sys.modules["__main__"].__dict__ is globals(), sys.argv, sys.path[0], os.getcwd())
print(os.environ.get("PROBE"), os.environ.get("HOME"), [path for path in sys.path if "probe" in path])
print(signal.getsignal(signal.SIGINT) is signal.default_int_handler, signal.getsignal(signal.SIGTERM))
print(sys.stdout.isatty(), sys.stdin.read(), sys.flags.interactive, os.path.exists("/proc/self/fd/9"))
print("half a line\\rand more", end="")
print("to stderr", file=sys.stderr)
atexit.register(lambda: print("at exit"))
threading.Thread(target=lambda: (time.sleep(0.2), print("a thread"))).start()
"""
ENDS = {
    "": 0,
    "raise SystemExit(3)": 3,
    "sys.exit('in words')": 1,
    "1 / 0": 1,
    "signal.raise_signal(signal.SIGTERM)": -signal.SIGTERM,
    "os.kill(os.getpid(), signal.SIGKILL)": -signal.SIGKILL,
    "signal.signal(signal.SIGINT, signal.default_int_handler)\nsignal.raise_signal(signal.SIGINT)": -signal.SIGINT,
    "from parts.errors import UserError, run\nrun(lambda: 7)": 7,
}


def test_the_same_as_a_process_of_its_own(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "HOME"} | {"PROBE": "is set"}
    environment["PYTHONPATH"] = str(tmp_path / "probe")
    (tmp_path / "probe.py").write_text(PROBE)
    for words in ((tmp_path / "probe.py", "a b", 3), ("-c", PROBE, "a b")):
        warm, fresh = (run(*words, cwd=tmp_path, env=environment) for run in (script, fresh_script))
        assert (warm.returncode, warm.stdout, warm.stderr) == (0, fresh.stdout, fresh.stderr)
        assert "at exit" in warm.stdout and "is set None" in warm.stdout and warm.stdout.startswith("[]\n")


@pytest.mark.parametrize("end", ENDS)
def test_it_ends_alike(tmp_path, end):
    done = script("-c", f"import os, signal, sys\n{end}", cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == ENDS[end]
    assert ("ZeroDivisionError" in done.stderr) == (end == "1 / 0") and ("in words" in done.stderr) == ("words" in end)
