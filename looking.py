"""What the audit sees in a pair of files, and remembers until one of them changes."""

import hashlib
import json
import os
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
from tqdm import tqdm

from decoding import decode, rgb
from errors import UserError
from files import write_text
from mask_values import Observation, observe_mask
from parallel import each
from reading import UnusableFile

VERSION = 2  # raise it when something else is seen in the same files


def look(pairs, cache=None, num_workers=None, progress=True):
    """(facts of each image, facts of each mask), in order; UnusableFiles stand in for those of bad files.

    Facts of an image are a dictionary of plain values; of a mask, its Observation. Files are decoded in
    `num_workers` processes (None: one a core). `cache` is a JSON file of what was seen before; a file
    of the same path, size, modification and change times is not read again.
    """
    # At an eighth of their size JPEGs decode in half the time, and are compared all the same. Among
    # other formats they must be decoded wholly, to be told from or equalled to those.
    eighths = all(pair.image.suffix.lower() in (".jpg", ".jpeg") for pair in pairs)
    memory = Memory(cache, eighths)
    unseen = [(pair, *(memory.get(*file) is None for file in _files(pair))) for pair in pairs]
    unseen = [it for it in unseen if it[1] or it[2]]
    faults = {}
    with closing(each(_Look(eighths), unseen, num_workers)) as work:
        try:
            for index, outcomes in tqdm(work, "looking at", len(unseen), unit=" pairs", disable=_bar(progress, unseen)):
                for file, outcome in zip(_files(unseen[index][0]), outcomes):
                    if isinstance(outcome, UnusableFile):
                        faults[file] = outcome
                    elif outcome is not None:
                        memory.put(*file, outcome)
        except BaseException:
            memory.save()  # what has been seen need not be seen again
            raise
    images = [faults.get(file) or memory.get(*file) for file in (_files(pair)[0] for pair in pairs)]
    _tell_twins(pairs, images, memory, num_workers)
    memory.save()
    masks = [faults.get(file) or _observation(file[1], memory) for file in (_files(pair)[1] for pair in pairs)]
    return images, masks


def _files(pair):
    return ("image", pair.image), ("mask", pair.mask)


def _observation(path, memory):
    return Observation(str(path), **memory.get("mask", path))


def _bar(progress, unseen):
    return None if progress and unseen else True  # None: shown on a terminal


class _Look:
    """Called with (pair, whether its image, whether its mask is wanted), decodes these."""

    def __init__(self, eighths):
        self.eighths = eighths

    def __call__(self, item):
        pair, image, mask = item
        return image and self._image(pair.image) or None, mask and self._mask(pair.mask) or None

    def _image(self, path):
        try:
            return image_facts(path, self.eighths)
        except UnusableFile as fault:
            return fault

    def _mask(self, path):
        try:
            facts = dict(vars(observe_mask(path)))
        except UnusableFile as fault:
            return fault
        del facts["path"]
        return facts


def image_facts(path, eighths=False):
    """Plain facts of an image. `digest` is equal for equal pixels, and nearly always another for others."""
    decoded = decode(path, (1, 1) if eighths else None)
    picture = decoded.picture
    pixels = rgb(picture, path)
    step = 1 if eighths else 8
    brightest = int(np.asarray(picture).max()) if picture.mode.startswith("I") else None
    return {
        "size": list(decoded.size),
        "format": decoded.format,
        "mode": picture.mode,
        "frames": decoded.frames,
        "turned": decoded.turned,
        "brightest": brightest,  # of 16 bits
        "digest": _digest(decoded.size, pixels[::step]),
    }


def _digest(size, pixels):
    summary = hashlib.blake2b(repr(size).encode(), digest_size=12)
    summary.update(np.ascontiguousarray(pixels))
    return summary.hexdigest()


def exact_digest(path):
    """The digest of all pixels, or None for a file that has gone bad meanwhile."""
    try:
        decoded = decode(path)
        return _digest(decoded.size, rgb(decoded.picture, path))
    except UserError:
        return None


def _tell_twins(pairs, images, memory, num_workers):
    """Decodes those with equal digests wholly, and gives them an `exact` digest."""
    paths, alike = {}, {}
    for pair, facts in zip(pairs, images):
        if isinstance(facts, dict):
            paths.setdefault(facts["digest"], {})[pair.image] = facts
    for twins in paths.values():
        if len(twins) > 1:
            alike.update({path: facts for path, facts in twins.items() if "exact" not in facts})
    names = sorted(alike)
    for index, exact in each(exact_digest, names, num_workers):
        alike[names[index]]["exact"] = exact
        memory.changed = True


class Memory:
    """Facts of files by kind, path, size, modification and change times, kept in a JSON file (or nowhere: None)."""

    def __init__(self, place, eighths):
        self.place, self.head = place and Path(place), [VERSION, eighths]
        self.old, self.known, self.stamps, self.changed = {}, {}, {}, False
        with suppress(OSError, ValueError, KeyError, TypeError):  # none yet, or not ours: look again
            found = json.loads(self.place.read_text()) if place else {"head": None}
            self.old = found["files"] if found["head"] == self.head else {}

    def get(self, kind, path):
        """The facts of a file, or None where it must be looked at."""
        key = f"{kind} {os.path.abspath(path)}"
        if key not in self.stamps:  # taken before the file is read
            self.stamps[key] = _stamp(path)
            if key in self.old and self.old[key][0] == self.stamps[key]:
                self.known[key] = self.old[key]
        return self.known[key][1] if key in self.known else None

    def put(self, kind, path, facts):
        key = f"{kind} {os.path.abspath(path)}"
        self.known[key] = [self.stamps[key], facts]
        self.changed = True

    def save(self):
        """Remembers what this audit needed and forgets other files; nothing where nothing can be written."""
        if not self.place or not (self.changed or len(self.known) != len(self.old)):
            return
        with suppress(OSError):
            self.place.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.place, json.dumps({"head": self.head, "files": self.known}, separators=(",", ":")))


def _stamp(path):
    try:
        state = os.stat(path)
    except OSError:
        return None
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns]  # the last changes where a copy keeps its time
