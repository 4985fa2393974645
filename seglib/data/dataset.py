"""Data sets of images and masks: opened, divided, joined with others, narrowed to some classes."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from seglib.data.class_names import IGNORE, refuse_class_map, refuse_focus
from seglib.data.coco import CocoData, load_coco, refuse_errors, resolve_image, verify_coco
from seglib.data.fingerprint import hash_files
from seglib.data.masks import IGNORE_INDEX
from seglib.data.pixels import Pixels, open_pixels
from seglib.data.splits import drop_leaked, make_split
from seglib.data.synthetic import open_synthetic
from seglib.errors import InputError

# Class specialists: a data set in which all classes but a few are background.


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


# The files that a notebook names as one collection, and which of its images train and which validate.


def pool_files(files: Sequence[CocoData]) -> CocoData:
    """The images and annotations of several files of one folder as one; of entries with one image id the first stays.

    Where a file uses image ids of an earlier one, its own are moved up. `images` gets a column `file`, from 0.

    Raises
    ------
    InputError
        The files' categories differ.
    """
    first = files[0]
    images, annotations = [], []
    for number, data in enumerate(files):
        if (data.class_names, data.category_ids) != (first.class_names, first.category_ids):
            raise InputError(
                f"{data.json_path}: required the categories of {first.json_path.name} "
                f"({', '.join(first.class_names[1:])}), got {', '.join(data.class_names[1:])}"
            )
        own = data.images.drop_duplicates("image_id")
        taken = {image_id for table in images for image_id in table["image_id"]}
        shift = max(taken) + 1 - own["image_id"].min() if taken & set(own["image_id"]) else 0
        images.append(own.assign(image_id=own["image_id"] + shift, file=number))
        annotations.append(data.annotations.assign(image_id=data.annotations["image_id"] + shift))
    return CocoData(
        json_path=first.json_path,
        data_dir=first.data_dir,
        images=pd.concat(images, ignore_index=True),
        annotations=pd.concat(annotations, ignore_index=True),
        class_names=first.class_names,
        category_ids=first.category_ids,
    )


def hash_images(data: CocoData) -> list[str]:
    """Content hash of each image; "" where there is no such file, or its name leads out of the folder."""
    paths = []
    for name in data.images["file_name"]:
        try:
            paths.append(resolve_image(data.data_dir, name))
        except InputError:
            paths.append(data.data_dir)  # a folder has no hash
    return hash_files(paths)


def assign_subsets(
    data: CocoData, content_hashes: Sequence[str], present: np.ndarray, split: str, folds: int, fold: int, seed: int
) -> np.ndarray:
    """(N,) "train" or "val" for each image: as `make_split` divides them, or with "given" as the files do.

    Unlike in training, copies that two given files share stay in: they are what is looked for.

    Parameters
    ----------
    data : of `pool_files`
    content_hashes : N texts, of `hash_images`
    present : (N, C) bool, of `find_present`
    """
    subset = np.full(len(data.images), "train")
    if split == "given":
        return np.where(data.images["file"] == 0, subset, "val")
    groups = data.images["group"].tolist()
    subset[make_split(split, content_hashes, groups, present, folds, fold, seed, data.images)[1]] = "val"
    return subset


# The training and the validation set: a folder read, verified, split, and opened as pixels.


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
        train, val = make_split(
            split, hash_images(data), data.images["group"].tolist(), present, folds, fold, seed, data.images
        )
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


# Two sets of images as one: training and validation images together, or with those of other data sets.


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


# Other COCO sets to train on too: external ones through a map of classes, predicted labels above a confidence.


def join_extra(
    train_images: Subset,
    val_images: Subset,
    extra_data: Sequence[Mapping[str, Any]],
    *,
    paint_order: str,
    background: str,
    cache: bool,
    debug: bool = False,
) -> Subset:
    """Join the training images with those of other data sets; without any they are returned as they are.

    Parameters
    ----------
    val_images : images of which an exact copy in an extra set is left out.
    extra_data : for each set `json`, `data_dir` where its images lie elsewhere than the own ones, and where wanted

        - `weight`: how often, on average, each of its images stands in an epoch; 1 by default, below 1 other images are
          drawn in each epoch, whatever `expand` makes of the own images.
        - `classes`: their category -> class of the training data before any focus on some of them, "Background" or
          "ignore"; categories that it leaves out are ignored. Without it their names must be those of the training data.
        - `min_confidence`: visible pixels of annotations with a lower `score` are ignored; 0 by default.

        Visible pixels of annotations with `"ignore": 1` are ignored.
    paint_order, background : as in `paint_mask`. Where the highest class id wins, ignored annotations win over all.
    debug : take five percent of each set.

    Raises
    ------
    InputError
        Files with errors, classes that do not fit, scores outside 0..1.
    """
    options = {"paint_order": paint_order, "background": background, "cache": cache}
    sets = [_open_set(place, train_images, entry, options) for place, entry in enumerate(extra_data)]
    sets = [_leave_out_copies(subset, val_images) for subset in sets]
    if debug:
        sets = [subset.take_debug_share() for subset in sets]
    for subset, entry in zip(sets, extra_data, strict=True):
        often = f"each {entry.get('weight', 1.0):g} times an epoch"
        print(f"{subset.data.json_path.name}: {len(subset)} more images to train on, {often}")
    return reduce(join, sets, train_images)


def _open_set(place: int, train_images: Subset, entry: Mapping[str, Any], options: Mapping[str, Any]) -> Subset:
    """An extra set in the classes of the training images, its focus included."""
    ours = train_images.data
    painted_names = ours.painted_class_names or ours.class_names
    data = load_verified(Path(entry.get("data_dir", ours.data_dir)).expanduser(), entry["json"])
    class_ids = _translate(f"extra_data[{place}]", data, entry, painted_names)
    pixels = _paint(data, class_ids, len(painted_names), train_images.image_size, **options)
    is_object = (class_ids > 0) & (class_ids != IGNORE_INDEX)
    objects = data.annotations[is_object].assign(class_id=class_ids[is_object]).reset_index(drop=True)
    data = replace(
        data, annotations=objects, class_names=painted_names, category_ids=tuple(range(1, len(painted_names)))
    )
    folded = fold_classes(data, ours.class_names[1:] if ours.painted_class_names else ())
    weights = np.full(len(data.images), float(entry.get("weight", 1.0)))
    return Subset(folded, map_pixels(pixels, folded), np.arange(len(data.images)), weights)


def _translate(where: str, data: CocoData, entry: Mapping[str, Any], class_names: Sequence[str]) -> np.ndarray:
    """(annotations,) int64, what each annotation is painted as: an id of ours, 0 for background, 255 for ignored."""
    classes, theirs = entry.get("classes") or {}, data.class_names[1:]
    problem = refuse_class_map(where, classes, theirs, class_names)
    if problem:
        raise InputError(f"{data.json_path}: {problem}")
    scores = data.annotations["score"].to_numpy()
    unsound = ~((scores >= 0) & (scores <= 1))  # NaN too
    if unsound.any():
        row = data.annotations[unsound].iloc[0]
        raise InputError(
            f"{data.json_path} [annotation {row['annotation_id']}]: `score` must be 0 to 1, got {row['score']:g}; correct it"
        )
    ids = {name: class_id for class_id, name in enumerate(class_names)} | {IGNORE: IGNORE_INDEX}
    targets = [classes.get(name, IGNORE) if classes else name for name in theirs]
    class_ids = np.array([0, *(ids[target] for target in targets)], np.int64)[data.annotations["class_id"]]
    is_unsure = (scores < entry.get("min_confidence", 0.0)) | (data.annotations["ignore"].to_numpy() == 1)
    return np.where(is_unsure, IGNORE_INDEX, class_ids)


def _paint(
    data: CocoData,
    class_ids: np.ndarray,
    num_classes: int,
    image_size: int,
    *,
    paint_order: str,
    background: str,
    cache: bool,
) -> MappedPixels:
    """Paint our ids moved up by one, so that annotations of background are painted too, below all, and ignored ones above
    all; the cache's key holds these ids, so map and confidence need no key of their own."""
    ignored = num_classes + 1
    if ignored >= IGNORE_INDEX:
        raise InputError(
            f"extra_data: the training data may have 252 categories at most, got {num_classes - 1}; merge some"
        )
    painted_ids = np.where(class_ids == IGNORE_INDEX, ignored, class_ids + 1)
    painted = replace(data, annotations=data.annotations.assign(class_id=painted_ids))
    table = np.zeros(256, np.uint8)
    table[1:ignored] = np.arange(num_classes)
    table[[ignored, IGNORE_INDEX]] = IGNORE_INDEX
    return MappedPixels(open_pixels(painted, image_size, paint_order, background, cache), table)


def _leave_out_copies(subset: Subset, val_images: Subset) -> Subset:
    val_hashes = np.array(hash_images(val_images.data))[val_images.indices]
    kept = drop_leaked(hash_images(subset.data), val_hashes)
    if len(kept) < len(subset):
        name, count = subset.data.json_path.name, len(subset) - len(kept)
        print(f"{name}: {count} images are copies of validation images; left out of training")
    return Subset(subset.data, subset.pixels, subset.indices[kept], subset.weights[kept])
