"""The training and the validation set: a folder read, verified, split, and opened as pixels."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from seglib.data.coco import CocoData, load_coco, resolve_image
from seglib.data.fingerprint import hash_files
from seglib.data.pixels import Pixels, open_pixels
from seglib.data.splits import drop_leaked, make_split
from seglib.data.synthetic import open_synthetic
from seglib.data.verify import refuse_errors, verify_coco
from seglib.errors import InputError

DEBUG_SHARE = 0.05


@dataclass(frozen=True)
class Subset:
    """Some images of a data set: `indices` (N,) int64 are positions in `pixels` and rows of `data.images`.

    `weights` (N,) float64: how often, on average, each image of an extra set stands in an epoch, NaN for own images,
    which stand in it as often as `expand` says; None where all are own.
    """

    data: CocoData
    pixels: Pixels
    indices: np.ndarray
    weights: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def image_ids(self) -> np.ndarray:
        """(N,) int64."""
        return self.pixels.image_ids[self.indices]

    @property
    def image_size(self) -> int:
        """Side of images and masks [px]."""
        return self.pixels.image_size

    def read(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (S, S, 3) uint8 RGB and mask (S, S) uint8."""
        return self.pixels.read(int(self.indices[position]))

    def take_debug_share(self) -> "Subset":
        """Five percent of the images, evenly spread, at least eight: enough to see whether a loss falls."""
        count = min(len(self), max(8, round(DEBUG_SHARE * len(self))))
        chosen = np.linspace(0, len(self) - 1, count).astype(np.int64)
        weights = None if self.weights is None else self.weights[chosen]
        return Subset(self.data, self.pixels, self.indices[chosen], weights)


def open_data(
    data_dir: str,
    train_json: str,
    val_json: str,
    *,
    split: str,
    folds: int,
    fold: int,
    seed: int,
    paint_order: str,
    background: str,
    image_size: int,
    cache: bool,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Subset, Subset]:
    """Read, check and split a data set; return its training and validation images.

    Parameters
    ----------
    data_dir : a COCO folder, or "synthetic" (made on first use).
    split : "given" validates on `val_json`; the other kinds split `train_json` into `folds` and validate on `fold`.
    image_size : side of the square images and masks [px].

    Raises
    ------
    InputErrors
        One line for each error that `verify_coco` finds.
    """
    folder = open_synthetic() if data_dir == "synthetic" else Path(data_dir).expanduser()
    opened = [
        _open(folder, name, paint_order, background, image_size, cache, progress)
        for name in ([train_json, val_json] if split == "given" else [train_json])
    ]
    data, pixels = opened[0]
    if split == "given":
        val_data, val_pixels = opened[1]
        _require_same_classes(data, val_data)
        kept = drop_leaked(_hash_images(data), _hash_images(val_data))
        if len(kept) < len(data.images):
            print(f"{len(data.images) - len(kept)} training images are copies of validation images; left out of training")
        return Subset(data, pixels, kept), Subset(val_data, val_pixels, np.arange(len(val_data.images)))
    train, val = make_split(
        split, _hash_images(data), data.images["group"].tolist(), find_classes_present(data), folds, fold, seed
    )
    return Subset(data, pixels, train), Subset(data, pixels, val)


def find_classes_present(data: CocoData) -> np.ndarray:
    """(images, classes) bool: which classes are annotated in each image."""
    present = np.zeros((len(data.images), data.num_classes), bool)
    rows = pd.Index(data.images["image_id"]).get_indexer(data.annotations["image_id"])
    present[rows, data.annotations["class_id"]] = True
    return present


def count_pixels(subset: Subset, ignore_index: int = 255) -> pd.Series:
    """Pixels of each class over the subset's masks, by class name; ignored pixels under "(ignored)"."""
    counts = np.zeros(256, np.int64)
    for position in range(len(subset)):
        counts += np.bincount(subset.read(position)[1].ravel(), minlength=256)
    names = subset.data.class_names
    return pd.Series([*counts[: len(names)], counts[ignore_index]], index=[*names, "(ignored)"], name="pixels")


def _open(folder, json_name, paint_order, background, image_size, cache, progress) -> tuple[CocoData, Pixels]:
    data = load_coco(folder, json_name)
    problems = verify_coco(data)
    refuse_errors(problems, data.json_path)
    for problem, count in problems["problem"].value_counts().items():
        print(f"{data.json_path.name}: warning: {problem} ({count} times)")
    return data, open_pixels(data, image_size, paint_order, background, cache, progress)


def _require_same_classes(train: CocoData, val: CocoData) -> None:
    if train.class_names != val.class_names:
        raise InputError(
            f"{val.json_path}: required the categories of {train.json_path.name} ({', '.join(train.class_names[1:])}),"
            f" got {', '.join(val.class_names[1:])}"
        )


def _hash_images(data: CocoData) -> list[str]:
    return hash_files([resolve_image(data.data_dir, name) for name in data.images["file_name"]])
