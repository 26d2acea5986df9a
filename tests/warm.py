"""A process that has imported what takes seconds to load, and runs each script in a fork of itself: helpers.script.

Nothing of this repository is imported before the fork. A fork differs from a process of its own in this: all of them
have the same hash seed (that of helpers.fresh_script is another one each time).
"""

import gc
import json
import os
import signal
import socket
import struct
import sys
import types

import albumentations  # noqa: F401
import cv2  # noqa: F401
import matplotlib.backends.backend_agg  # noqa: F401
import matplotlib.figure  # noqa: F401
import torch  # noqa: F401
import torch.utils.data  # noqa: F401
import torchvision  # noqa: F401
import tqdm  # noqa: F401


def serve(connection):
    """Forks for each request and sends its process id, then its exit status. Returns the request, in the fork."""
    while True:
        _, files, _, _ = socket.recv_fds(connection, 1, 3)
        if not files:  # the tests have ended
            os._exit(0)
        child = os.fork()
        if child == 0:
            connection.close()
            return files
        for file in files:
            os.close(file)
        connection.sendall(struct.pack("i", child))
        connection.sendall(struct.pack("i", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))


def become(request, out, err):
    """Makes this process the one that was asked for; returns its code, and the module to run that in."""
    with open(request) as file:
        asked = json.load(file)
    for file, number in ((out, 1), (err, 2)):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["cwd"])
    sys.argv = asked["argv"]
    added = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    module = types.ModuleType("__main__")
    if sys.argv[0] == "-c":
        code, place, file_name = sys.argv.pop(1), "", "<string>"
    else:
        place, file_name = os.path.dirname(sys.argv[0]), sys.argv[0]
        module.__file__ = file_name
        with open(file_name, encoding="utf-8") as file:
            code = file.read()
    sys.path[:] = [place, *added, *PATH]
    sys.modules["__main__"] = module
    signal.signal(signal.SIGINT, ON_CTRL_C)
    return compile(code, file_name, "exec"), module.__dict__


PATH = [path for path in sys.path[1:] if path not in os.environ.get("PYTHONPATH", "").split(os.pathsep)]
ON_CTRL_C = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the script; this process ends with its parent
gc.collect()
gc.freeze()  # or each fork, when it ends, copies the memory of all these modules to look for garbage
exec(*become(*serve(socket.socket(fileno=int(sys.argv[1])))))  # ... and ends as the script does
