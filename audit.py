"""Looks at every file of a dataset before the first epoch."""

from dataclasses import dataclass, field

from errors import UserError
from masks import MaskRule, find_mask_rule
from reading import CARVANA_GROUP, pair_files


@dataclass
class Report:
    rule: MaskRule
    train: list
    val: list
    problems: list = field(default_factory=list)
    warnings: list = field(default_factory=list)
    foreground: tuple = (0.0, 0.0, 0.0)

    def text(self):
        return f"{len(self.train)} pairs to train on, {len(self.val)} to validate."

    def stop_if_spoiled(self):
        if self.problems:
            raise UserError("\n".join(self.problems))


def audit(train_img_dir, train_mask_dir, val_img_dir=None, val_mask_dir=None, mask_foreground=None,
          group=CARVANA_GROUP, sheet=None, cache=None, num_workers=None, progress=True):
    train = pair_files(train_img_dir, train_mask_dir)
    val = pair_files(val_img_dir, val_mask_dir) if val_img_dir else []
    return Report(find_mask_rule([pair.mask for pair in train + val], mask_foreground), train, val)
