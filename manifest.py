"""What a folder of made files was made from, so that the next run finishes it, or makes it anew and says why.

The manifest stands on disk before the first of its files, and files of an older one are removed before
a new one stands there. So a file that the manifest lists, if it exists, was made from exactly that
source by exactly those settings, wherever a run was killed.
"""

import json
import os
from pathlib import Path

from errors import UserError
from files import write_text
from reading import SUFFIXES, shown

VERSION = 1  # raise it when the same sources and settings begin to give other files
NAME = ".augmented.json"


def source_facts(*paths):
    """[name, bytes, modification time in ns] of files; a folder may move, its files may not change."""
    facts = []
    for path in paths:
        state = os.stat(path)
        facts += [path.name, state.st_size, state.st_mtime_ns]
    return facts


def load(folder):
    """The manifest in `folder`: {"settings": {...}, "items": {name: {"from": [...], "files": [...]}}}."""
    try:
        manifest = json.loads((Path(folder) / NAME).read_text(encoding="utf-8"))
        if manifest["version"] == VERSION:
            return manifest
        return {**manifest, "settings": {"version of this program": manifest["version"]}}
    except FileNotFoundError:
        return {"settings": {}, "items": {}}
    except (OSError, ValueError, KeyError, TypeError):
        # its files are unknown now: they will count as somebody else's, and stay
        return {"settings": {}, "items": {}}


def store(folder, settings, items):
    """Puts the manifest of what is about to be made into `folder`."""
    write_text(Path(folder) / NAME, json.dumps({"version": VERSION, "settings": settings, "items": items}))


def refuse_foreign(folder, subfolders, manifest):
    """UserError if `subfolders` hold pictures that no run has listed: they would be trained on."""
    ours = {file for item in manifest["items"].values() for file in item["files"]}
    foreign = []
    for subfolder in subfolders:
        if (Path(folder) / subfolder).is_dir():
            for entry in sorted(os.scandir(Path(folder) / subfolder), key=lambda entry: entry.name):
                picture = Path(entry.name).suffix.lower() in SUFFIXES and not entry.name.startswith(".")
                if picture and f"{subfolder}/{entry.name}" not in ours:
                    foreign.append(entry.path)
    if foreign:
        names = "\n".join(f"  {shown(path)}" for path in foreign[:10])
        more = f"\n  and {len(foreign) - 10} others" if len(foreign) > 10 else ""
        raise UserError(
            f"{shown(folder)}: holds {len(foreign)} pictures that augment.py did not write, and that training would "
            f"take for its own:\n{names}{more}\nMove or delete them, or give another OUTPUT_DIR (--output-dir)."
        )


def remove_stale(folder, manifest, settings, items):
    """Removes the files of `manifest` that are not to be made, or not like that; returns why, in words."""
    old = manifest["items"]
    if not old:
        return ""
    stale = [name for name in old if manifest["settings"] != settings or items.get(name) != old[name]]
    kept = {file for name, item in old.items() if name not in set(stale) for file in item["files"]}
    for name in stale:
        for file in old[name]["files"]:
            if file not in kept:
                (Path(folder) / file).unlink(missing_ok=True)
    return _reasons(manifest, settings, items)


def _reasons(manifest, settings, items):
    before, old = manifest["settings"], manifest["items"]
    if before != settings:
        changed = [key for key in {**before, **settings} if before.get(key) != settings.get(key)]
        words = "; ".join(
            f"{key} was {before[key]}, now {settings[key]}" if key in before and key in settings else key
            for key in changed
        )
        return f"other settings ({words})"
    groups = {
        "new": [name for name in items if name not in old],
        "gone": [name for name in old if name not in items],
        "changed": [name for name in items if name in old and items[name]["from"] != old[name]["from"]],
        "now on the other side of the split": [
            name
            for name in items
            if name in old and items[name]["from"] == old[name]["from"] and items[name] != old[name]
        ],
    }
    return "; ".join(
        f"{len(names)} source{'s' * (len(names) > 1)} {what}, e.g. {shown(names[0])}"
        for what, names in groups.items()
        if names
    )


def is_complete(folder, item):
    """Whether every file of an item is there. A power cut may leave a name whose bytes never arrived."""
    try:
        return all(os.stat(Path(folder) / file).st_size > 0 for file in item["files"])
    except OSError:
        return False
