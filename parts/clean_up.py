"""What predict.py removes from predicted masks, and fills in, by connected areas of one label."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np

# Neighbours: an area goes on across corners, and what surrounds it does not, or both could pass through each other.
_AREA, _AROUND = 8, 4


@dataclass(frozen=True)
class CleanUp:
    """Removes areas of a label that are small, or not its largest one, and fills holes of background in areas.

    A pixel of a removed area takes the label of the nearest pixel that stays.
    """

    largest: bool = False  # of each label only its largest area stays
    min_pixels: int = 0  # areas of fewer pixels are removed
    fill_holes: bool = False  # background that an area of one label encloses becomes that label
    background: int | None = 0  # the label whose areas are neither removed nor filled; None: there is none
    overlapping: int = 0  # classes that overlap, each of which is cleaned up as one foreground; 0: none do

    @property
    def does_nothing(self) -> bool:
        """Whether masks stay as they are."""
        return not (self.largest or self.min_pixels > 1 or self.fill_holes)

    def __call__(self, mask: np.ndarray) -> np.ndarray:
        """The mask after it: uint8 (H, W) of labels, another array unless there is nothing to do."""
        if self.does_nothing:
            return mask
        if self.overlapping:
            alone = replace(self, overlapping=0)
            cleaned = np.zeros_like(mask)
            for channel in range(self.overlapping):
                cleaned |= alone(mask >> channel & 1) << channel
            return cleaned
        removed = np.zeros(mask.shape, bool)
        for _, region in self._regions(mask):
            removed |= self._removed(region)
        cleaned = mask.copy()
        if removed.all():
            cleaned[:] = self.background or 0
        elif removed.any():
            _, nearest = cv2.distanceTransformWithLabels(
                removed.view(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
            )
            labels = np.zeros(nearest.max() + 1, np.uint8)  # of each pixel that stays, by its number
            labels[nearest[~removed]] = mask[~removed]
            cleaned[removed] = labels[nearest[removed]]
        if self.fill_holes and self.background is not None:
            for label, region in self._regions(cleaned):
                cleaned[_holes(region, cleaned == self.background)] = label
        return cleaned

    def _regions(self, mask: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Each label but the background, and where it is, bool (H, W)."""
        for label in np.unique(mask).tolist():
            if label != self.background:
                yield label, mask == label

    def _removed(self, region: np.ndarray) -> np.ndarray:
        """Where a region (H, W) has areas that do not stay."""
        _, areas, stats, _ = cv2.connectedComponentsWithStats(region.view(np.uint8), connectivity=_AREA)
        pixels = stats[:, cv2.CC_STAT_AREA]
        is_removed = pixels < self.min_pixels
        if self.largest:
            is_removed[pixels < pixels[1:].max()] = True
        is_removed[0] = False  # what is not of this label
        return is_removed[areas]


NOTHING = CleanUp()


def _holes(region: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Where a region encloses nothing but background: bool (H, W), as both parameters."""
    count, areas = cv2.connectedComponents((~region).view(np.uint8), connectivity=_AROUND)
    is_hole = np.ones(count, bool)
    is_hole[0] = False  # the region itself
    for edge in (areas[0], areas[-1], areas[:, 0], areas[:, -1], areas[~region & ~background]):
        is_hole[edge] = False
    return is_hole[areas]
