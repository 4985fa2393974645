"""Class specialists: a data set in which all classes but a few are background."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from seglib.data.class_names import refuse_focus
from seglib.data.coco import CocoData
from seglib.data.masks import IGNORE_INDEX
from seglib.data.pixels import Pixels
from seglib.errors import InputError


@dataclass(frozen=True, eq=False)
class MappedPixels:
    """Pairs whose class ids are looked up at each reading: `table` (256,) uint8 holds what each painted id becomes.

    Painted masks know nothing of it, so that all who look at them in their own way share one cache.
    """

    pixels: "Pixels | MappedPixels"
    table: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def image_ids(self) -> np.ndarray:
        """(N,) int64, in the order of reading."""
        return self.pixels.image_ids

    @property
    def image_size(self) -> int:
        """Side of images and masks [px]."""
        return self.pixels.image_size

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (S, S, 3) uint8 RGB and mask (S, S) uint8 of one position."""
        image, mask = self.pixels.read(index)
        return image, self.table[mask]


def fold_classes(data: CocoData, focus_classes: Sequence[str]) -> CocoData:
    """Fold all classes but the focused ones into background; without classes to focus on, nothing changes.

    Class names become Background and the focused ones, in the order of their ids; annotations of other classes are left
    out. Masks are painted with all classes first, so that what covers a focused object still hides it: see `map_pixels`.

    Raises
    ------
    InputError
        A name is unknown, the background, or there twice.
    """
    problem = refuse_focus(focus_classes, data.class_names)
    if problem:
        raise InputError(f"{data.json_path}: {problem}")
    if not focus_classes:
        return data
    kept = [class_id for class_id, name in enumerate(data.class_names) if name in focus_classes]
    annotations = data.annotations[data.annotations["class_id"].isin(kept)].reset_index(drop=True)
    return replace(
        data,
        annotations=annotations.assign(class_id=1 + np.searchsorted(kept, annotations["class_id"])),
        class_names=tuple(data.class_names[class_id] for class_id in (0, *kept)),
        category_ids=tuple(data.category_ids[class_id - 1] for class_id in kept),
        painted_class_names=data.class_names,
    )


def map_pixels(pixels: Pixels | MappedPixels, folded: CocoData) -> Pixels | MappedPixels:
    """The pairs with the class ids of `fold_classes`: those of folded classes become 0, ignored ones stay 255."""
    if not folded.painted_class_names:
        return pixels
    table = np.zeros(256, np.uint8)
    table[IGNORE_INDEX] = IGNORE_INDEX
    for class_id, name in enumerate(folded.class_names):
        table[folded.painted_class_names.index(name)] = class_id
    return MappedPixels(pixels, table)
