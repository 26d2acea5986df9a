"""What arrays on disk were made from: exactly which files, by which rules. And how that has changed."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from errors import UserError
from masks import MaskRule
from reading import shown

LAYOUT = 1  # raise it when the arrays are laid out in another way
RESIZE_RULE = 1  # raise it when read_image or read_mask begin to give other pixels


@dataclass(frozen=True)
class Origin:
    pairs: list
    rule: MaskRule
    size: tuple  # height, width
    facts: list  # of each pair: what `fact` says of its image and of its mask
    text: str  # JSON of all that the arrays depend on


def origin(pairs, rule, image_size, folder):
    """The Origin of arrays in `folder`; UserError names the files that are gone."""
    pairs, size = list(pairs), tuple(int(side) for side in image_size)
    facts = [(fact(pair.image), fact(pair.mask)) for pair in pairs]
    files = [(path, it) for pair, two in zip(pairs, facts) for path, it in zip((pair.image, pair.mask), two)]
    gone = [path for path, it in files if it is None]
    if gone:
        raise UserError("\n".join(f"{path}: has just gone. Put it back, or start again." for path in gone))
    text = json.dumps(
        {
            "layout": LAYOUT,
            "resize_rule": RESIZE_RULE,
            "image_size": size,
            "mask_rule": rule.to_dict(),
            "images": _named(files[0::2], folder),
            "masks": _named(files[1::2], folder),
        }
    )
    return Origin(pairs, rule, size, facts, text)


def fact(path):
    """(bytes, modification time in ns) of a file, None where there is none."""
    try:
        state = os.stat(path)
    except OSError:
        return None
    return state.st_size, state.st_mtime_ns


def _named(files, folder):
    """[name seen from `folder`, bytes, time] of each file: a dataset may be moved together with its arrays."""
    folders, named = {}, []
    for path, (size, time) in files:
        parent, name = os.path.split(path)
        if parent not in folders:
            try:
                folders[parent] = Path(os.path.relpath(parent or ".", folder)).as_posix()
            except ValueError:  # Windows: on another drive
                folders[parent] = Path(parent).absolute().as_posix()
        named.append([f"{folders[parent]}/{name}", size, time])
    return named


def difference(old, new):
    """In words, what has changed from the text of one Origin to that of another."""
    old, new = json.loads(old), json.loads(new)
    if (old["layout"], old["resize_rule"]) != (new["layout"], new["resize_rule"]):
        return "another version of this program made them"
    reasons = []
    if old["image_size"] != new["image_size"]:
        reasons.append("IMAGE_SIZE was {}x{}".format(*old["image_size"]))
    if old["mask_rule"] != new["mask_rule"]:
        reasons.append(f"the mask rule was: {MaskRule.from_dict(old['mask_rule']).describe()}")
    for kind in ("images", "masks"):
        before, after = ({name: it for name, *it in key[kind]} for key in (old, new))
        changes = {
            "changed": [name for name in after if name in before and after[name] != before[name]],
            "new": [name for name in after if name not in before],
            "gone": [name for name in before if name not in after],
        }
        for change, names in changes.items():
            if names:
                files = "1 file" if len(names) == 1 else f"{len(names)} files"
                reasons.append(f"{kind}: {files} {change}, e.g. {shown(os.path.basename(names[0]))}")
    return "; ".join(reasons) or "the files come in another order"
