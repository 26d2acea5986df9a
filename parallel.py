"""Several processes at a time: a function over many items on all cores, and one process at a time."""

import multiprocessing
import os
import signal
import threading
import traceback
from contextlib import contextmanager
from multiprocessing.connection import wait

import cv2

from errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def cores():
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def each(function, items, num_workers=None):
    """Yields (index, function(items[index])) for every item, in the order in which they are done.

    `num_workers` processes do it (None: one a core), or this one alone for fewer than 8 items each.
    `function` and `items` must be picklable; each process has its own copy of them, and may keep things in
    it between calls. An OSError or a UserError of `function` is raised here as it is, another exception as
    a RuntimeError with its traceback. UserError: a process was killed.
    """
    workers = min(cores() if num_workers is None else num_workers, len(items) // 8)
    if workers <= 1:
        for index, item in enumerate(items):
            yield index, function(item)
        return
    context = multiprocessing.get_context()
    taken = context.Value("q", 0)
    processes, reports = [], []
    try:
        with _signals_held():
            for _ in range(workers):
                report, sender = context.Pipe(duplex=False)
                reports.append(report)
                process = context.Process(target=_work, args=(function, items, taken, sender), daemon=True)
                processes.append(process)
                process.start()
                sender.close()
        yield from _outcomes(dict(zip(reports, processes)))
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join()


def _outcomes(running):
    """Passes on what the processes report, until all have ended."""
    while running:
        for report in wait(list(running)):
            try:
                index, outcome, failed = report.recv()
            except EOFError:
                process = running.pop(report)
                process.join()
                if process.exitcode:
                    raise UserError(
                        f"A worker process ended with status {process.exitcode}. If the machine ran out of "
                        "memory, close other programs; then start again."
                    ) from None
                continue
            if failed:
                raise outcome
            yield index, outcome


def _work(function, items, taken, sender):
    """One process: takes the next item until none is left."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process ends the others
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cv2.setNumThreads(0)  # 1 would wait, after a fork, for threads that only the parent has
    index = 0
    try:
        while True:
            with taken.get_lock():
                index = taken.value
                taken.value += 1
            if index >= len(items):
                return
            sender.send((index, function(items[index]), False))
    except OSError as error:
        sender.send((index, error, True))
    except UserError as error:
        sender.send((index, UserError(str(error)), True))
    except Exception:
        sender.send((index, RuntimeError(traceback.format_exc()), True))


def _end_with_parent():
    """Also when the parent is killed, and this process waits for it in vain."""
    multiprocessing.parent_process().join()
    os._exit(1)


@contextmanager
def _signals_held():
    """New processes inherit it: signals reach them once they have said what to do about them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def one_at_a_time(path, message):
    """Only one process at a time gets past here with the same lock file `path`; the others wait, having
    printed `message`. Gives False where the system or the file system has no locks, and nobody waits.

    The processes that `each` started share the lock: if the first is killed, it holds until they ended.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield _lock(handle, message)
    finally:
        os.close(handle)


def _lock(handle, message):
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(message)
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:
        return False
    return True
