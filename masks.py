"""What a mask's pixels mean: found once for a whole dataset, and used wherever a mask is read."""

from dataclasses import asdict, dataclass

import numpy as np

from errors import UserError
from parallel import each
from reading import UnusableFile, decode, resize_image, shown


@dataclass(frozen=True)
class MaskRule:
    """A pixel is foreground if its value is one of `foreground`."""

    background: tuple = (0,)
    foreground: tuple = (255,)

    def to_dict(self):
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, plain):
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()})

    def describe(self):
        return f"{self.foreground} is foreground"


def _values(path):
    picture = decode(path).picture
    return np.asarray(picture if picture.mode in ("L", "I;16", "I") else picture.convert("L"))


def observe_mask(path):
    values, counts = np.unique(_values(path), return_counts=True)
    return {"path": str(path), "values": values.tolist(), "counts": counts.tolist()}


def decide_mask_rule(observations, foreground=None):
    if foreground is not None:
        return MaskRule((), tuple(np.atleast_1d(foreground).tolist()))
    seen = sorted({value for it in observations for value in it["values"]} - {0})
    if len(seen) > 1:
        raise UserError(f"Masks hold the values {seen}. Set MASK_FOREGROUND.")
    return MaskRule((0,), tuple(seen) or (255,))


def find_mask_rule(mask_paths, foreground=None, num_workers=None):
    paths = list(mask_paths)
    return decide_mask_rule([seen for _, seen in sorted(each(observe_mask, paths, num_workers))], foreground)


def read_mask(path, rule, size=None):
    mask = np.isin(_values(path), rule.foreground).astype(np.uint8)
    return mask if size is None else resize_mask(mask, size)


def resize_mask(mask, size):
    return (resize_image(mask * 255, size) > 127).astype(np.uint8)
