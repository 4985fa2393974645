"""Two sets of images as one: training and validation images together, or with those of other data sets."""

import os
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from seglib.data.dataset import Subset
from seglib.errors import InputError


@dataclass(frozen=True, eq=False)
class JoinedPixels:
    """The pairs of one subset, then those of another; `image_ids` (N,) int64 are unique."""

    first: Subset
    second: Subset
    image_ids: np.ndarray

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def image_size(self) -> int:
        """Side of images and masks [px]."""
        return self.first.image_size

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (S, S, 3) uint8 RGB and mask (S, S) uint8 of one position."""
        return self.first.read(index) if index < len(self.first) else self.second.read(index - len(self.first))


def join(first: Subset, second: Subset) -> Subset:
    """The images of two subsets of the same classes and image size, such as the training and the validation images.

    Image ids of the second that the first uses too are moved up by a power of ten, so that their last digits stay.

    Raises
    ------
    InputError
        Classes or sizes differ.
    """
    for what, ours, theirs in (
        ("classes", first.data.class_names, second.data.class_names),
        ("image_size", first.image_size, second.image_size),
    ):
        if ours != theirs:
            raise InputError(
                f"{second.data.json_path}: required the {what} of {first.data.json_path}, {ours}, got {theirs}"
            )
    shift = _find_shift(first.image_ids, second.image_ids)
    tables = [_take_tables(first, 0, first.data.data_dir), _take_tables(second, shift, first.data.data_dir)]
    images, annotations = (pd.concat(parts, ignore_index=True) for parts in zip(*tables, strict=True))
    data = replace(first.data, images=images, annotations=annotations)
    pixels = JoinedPixels(first, second, images["image_id"].to_numpy(np.int64))
    return Subset(data, pixels, np.arange(len(images)), _join_weights(first, second))


def _find_shift(taken: np.ndarray, image_ids: np.ndarray) -> int:
    if not np.isin(image_ids, taken).any():
        return 0
    return 10 ** len(str(taken.max())) - min(0, int(image_ids.min()))


def _take_tables(subset: Subset, shift: int, data_dir: os.PathLike) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The subset's images, in its order, and their annotations; file names are seen from `data_dir`."""
    images = subset.data.images.iloc[subset.indices]
    annotations = subset.data.annotations[subset.data.annotations["image_id"].isin(images["image_id"])]
    if subset.data.data_dir != data_dir:
        names = [os.path.join(subset.data.data_dir, name) for name in images["file_name"]]
        images = images.assign(file_name=np.array(names, object))
    moved = [table.assign(image_id=table["image_id"] + shift) for table in (images, annotations)]
    return moved[0], moved[1]


def _join_weights(first: Subset, second: Subset) -> np.ndarray | None:
    if first.weights is None and second.weights is None:
        return None
    own = [np.full(len(part), np.nan) if part.weights is None else part.weights for part in (first, second)]
    return np.concatenate(own)
