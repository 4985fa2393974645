"""The training and the validation set: a folder read, verified, split, and opened as pixels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from seglib.data.coco import CocoData, load_coco
from seglib.data.focus import MappedPixels, fold_classes, map_pixels
from seglib.data.pixels import Pixels, open_pixels
from seglib.data.pooled import hash_images
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
    pixels: Pixels | MappedPixels
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
    focus_classes: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Subset, Subset]:
    """Read, check and split a data set; return its training and validation images.

    Parameters
    ----------
    data_dir : a COCO folder, or "synthetic" (made on first use).
    split : "given" validates on `val_json`; the other kinds split `train_json` into `folds` and validate on `fold`.
    image_size : side of the square images and masks [px].
    focus_classes : class names of a specialist, see `fold_classes`; empty for all classes.

    Raises
    ------
    InputErrors
        One line for each error that `verify_coco` finds.
    """
    folder = open_synthetic() if data_dir == "synthetic" else Path(data_dir).expanduser()
    files = [load_verified(folder, name) for name in ([train_json, val_json] if split == "given" else [train_json])]
    data, val_data = files[0], files[-1]
    _require_same_classes(data, val_data)
    folded = [fold_classes(file, focus_classes) for file in files]
    painted = [open_pixels(file, image_size, paint_order, background, cache, progress) for file in files]
    pixels = [map_pixels(*pair) for pair in zip(painted, folded, strict=True)]
    if split == "given":
        train, val = drop_leaked(hash_images(data), hash_images(val_data)), np.arange(len(val_data.images))
        if len(train) < len(data.images):
            print(
                f"{len(data.images) - len(train)} training images are copies of validation images; left out of training"
            )
    else:
        # All classes count, those of no interest to a specialist too: it must hold out the images that the other models
        # of the same split hold out, or the ensemble of both would be scored on images that one was trained on.
        present = find_classes_present(data)
        train, val = make_split(split, hash_images(data), data.images["group"].tolist(), present, folds, fold, seed)
    return Subset(folded[0], pixels[0], train), Subset(folded[-1], pixels[-1], val)


def load_verified(folder: Path, json_name: str) -> CocoData:
    """Read a COCO file, refuse its errors and print how many warnings there are.

    Raises
    ------
    InputErrors
        One line for each error that `verify_coco` finds.
    """
    data = load_coco(folder, json_name)
    problems = verify_coco(data)
    refuse_errors(problems, data.json_path)
    for problem, count in problems["problem"].value_counts().items():
        print(f"{data.json_path.name}: warning: {problem} ({count} times)")
    return data


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


def _require_same_classes(train: CocoData, val: CocoData) -> None:
    if train.class_names != val.class_names:
        raise InputError(
            f"{val.json_path}: required the categories of {train.json_path.name} ({', '.join(train.class_names[1:])}),"
            f" got {', '.join(val.class_names[1:])}"
        )
