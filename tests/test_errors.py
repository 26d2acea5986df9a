"""How scripts end, with real signals."""

import subprocess
import sys

from conftest import ROOT

DROPPED = """
import os, signal, errors
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


def test_a_signal_that_python_drops_still_ends_the_loop():
    done = subprocess.run([sys.executable, "-c", DROPPED], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 130 and "still running" in done.stdout and "never reached" not in done.stdout
    assert done.stderr == "\nStopped.\n"


def test_each_end_has_its_status_and_no_traceback():
    for body, status, words in (
        ("raise errors.UserError('mend this')", 2, "mend this"),
        ("open('/dev/full', 'w').write('x' * 10**6)", 2, "disk is full"),
        ("signal.raise_signal(signal.SIGTERM)", 143, "SIGTERM"),
        ("pass", 0, ""),
    ):
        code = f"import errors, signal\ndef main():\n    {body}\nerrors.run(main)"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == status and words in done.stderr and "Traceback" not in done.stderr
