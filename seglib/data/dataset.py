"""Data sets of images and masks: opened at one size, divided, joined with others, narrowed to some classes."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from seglib.data.class_names import MARKS, refuse_focus, refuse_ignored
from seglib.data.coco import CocoData
from seglib.data.masks import IGNORE_INDEX
from seglib.data.pixels import Pair, Pixels, Progress, map_pixels, open_pixels
from seglib.data.splits import drop_leaked, make_split
from seglib.data.verify import describe_unpainted, find_areas, load_verified, refuse_unpainted, tabulate_painted
from seglib.errors import InputError, InputErrors, require_same
from seglib.files import expand, hash_files

DEBUG_SHARE = 0.05


@dataclass(frozen=True)
class Subset:
    """Some images of a data set: `indices` (N,) int64 are positions in `pixels` and rows of `data.images`.

    `weights` (N,) float64: how often, on average, each image of an extra set stands in an epoch, NaN for own images,
    which stand in it as often as `expand` says; None where all are own. `a + b` has the images of both. `built_from` are
    the parameters that it was opened with.
    """

    data: CocoData
    pixels: Pixels
    indices: np.ndarray
    weights: np.ndarray | None = None
    built_from: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def image_ids(self) -> np.ndarray:
        """(N,) int64."""
        return self.pixels.image_ids[self.indices]

    @property
    def images(self) -> pd.DataFrame:
        """One row per image, as in `CocoData.images`."""
        return self.data.images.iloc[self.indices]

    @property
    def image_size(self) -> int:
        """Side of images and masks [px]."""
        return self.pixels.image_size

    def read(self, position: int) -> Pair:
        """Image (S, S, 3) uint8 RGB and mask (S, S) uint8."""
        return self.pixels.read(int(self.indices[position]))

    def take(self, positions: np.ndarray) -> "Subset":
        """The images at these positions, in this order."""
        weights = None if self.weights is None else self.weights[positions]
        return replace(self, indices=self.indices[positions], weights=weights)

    def take_debug_share(self) -> "Subset":
        """Five percent of the images, evenly spread, at least eight: enough to see whether a loss falls."""
        count = min(len(self), max(8, round(DEBUG_SHARE * len(self))))
        return self.take(np.linspace(0, len(self) - 1, count).astype(np.int64))

    def count_painted(self) -> dict[str, dict[str, int]]:
        """Of each class its annotations, those that paint a pixel (objects), and these pixels at the images' own sizes."""
        return tabulate_painted(self.data, self.image_ids).to_dict("index")

    def choose_batch_size(self, batch_size: int, debug: bool) -> int:
        """The batch size of a run that trains on these images, see the function of this name."""
        return choose_batch_size(batch_size, len(self), debug)

    def __add__(self, other: "Subset") -> "Subset":
        """The images of two subsets of the same classes and image size, such as the training and the validation images.

        Image ids of the other that this one uses too are moved up by a power of ten, so that their last digits stay.
        """
        own, fix = self.data.json_path, "open both with the same parameters"
        classes = self.data.class_names, other.data.class_names
        require_same(other.data.json_path, f"the classes of {own}", *classes, fix)
        sizes = [self.image_size], [other.image_size]
        require_same(other.data.json_path, f"the image_size of {own}", *sizes, fix)
        own, theirs = _take_tables(self), _take_tables(other)
        theirs = _move_ids(own[0]["image_id"], *theirs)
        images, annotations = (pd.concat(pair, ignore_index=True) for pair in zip(own, theirs, strict=True))
        ids = images["image_id"].to_numpy(np.int64)
        pixels = Pixels(ids, self.image_size, partial(_read_joined, self, other))
        data = replace(self.data, images=images, annotations=annotations, ignored=None)  # painted by each of the two
        return Subset(data, pixels, np.arange(len(ids)), _join_weights(self, other), self.built_from)


def choose_batch_size(batch_size: int, count: int, debug: bool) -> int:
    """The batch size of a run on `count` training images: in a debug trial, one that leaves a few steps an epoch."""
    return min(batch_size, max(2, count // 4)) if debug else batch_size


def _read_joined(first: Subset, second: Subset, index: int) -> Pair:
    return first.read(index) if index < len(first) else second.read(index - len(first))


def _take_tables(subset: Subset) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The subset's images, in its order, and their annotations."""
    images = subset.data.images.iloc[subset.indices]
    return images, subset.data.annotations[subset.data.annotations["image_id"].isin(images["image_id"])]


def _move_ids(taken: pd.Series, images: pd.DataFrame, *tables: pd.DataFrame) -> list[pd.DataFrame]:
    """Tables whose image ids are none of the taken ones."""
    if not images["image_id"].isin(taken).any():
        return [images, *tables]
    shift = 10 ** len(str(taken.max())) - min(0, int(images["image_id"].min()))
    if shift + int(images["image_id"].max()) >= 2**63:  # ids that a hash gave
        free = (number for number in itertools.count(1) if number not in set(taken))
        moved = {image_id: next(free) for image_id in images["image_id"]}
        return [table.assign(image_id=table["image_id"].map(moved)) for table in (images, *tables)]
    return [table.assign(image_id=table["image_id"] + shift) for table in (images, *tables)]


def _join_weights(first: Subset, second: Subset) -> np.ndarray | None:
    if first.weights is None and second.weights is None:
        return None
    own = [np.full(len(part), np.nan) if part.weights is None else part.weights for part in (first, second)]
    return np.concatenate(own)


def count_pixels(subset: Subset) -> pd.Series:
    """Pixels of each class over the subset's masks, by class name; ignored pixels under "(ignored)"."""
    counts = np.zeros(256, np.int64)
    for position in range(len(subset)):
        counts += np.bincount(subset.read(position)[1].ravel(), minlength=256)
    names = subset.data.class_names
    return pd.Series([*counts[: len(names)], counts[IGNORE_INDEX]], index=[*names, "(ignored)"], name="pixels")


# The training and the validation set: a folder read, verified, split, and opened as pixels.


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
    ignore_classes: Sequence[str] = (),
    progress: Progress | None = None,
) -> tuple[Subset, Subset]:
    """Read, check and split a data set; return its training and validation images.

    Parameters
    ----------
    data_dir : a COCO folder, or "synthetic" (made on first use).
    split : "given" validates on `val_json`; the other kinds split `train_json` into `folds` and validate on `fold`.
    seed : the other kinds deal the images from it; the parameter `split_seed`, apart from that of the training.
    image_size : side of the square images and masks [px].
    focus_classes : class names of a specialist: all others become background; empty for all classes.
    ignore_classes : class names, "iscrowd" and "ignore", see `ignore_annotations`.

    Raises
    ------
    InputErrors
        One line for each error that `verify_coco` finds.
    """
    names = [train_json, val_json] if split == "given" else [train_json]
    files = read_files(data_dir, names, ignore_classes)
    folded, indices = divide_files(files, split, folds, fold, seed, focus_classes)
    painted = [open_pixels(file, image_size, paint_order, background, cache, progress) for file in files]
    pixels = [fold_pixels(*pair) for pair in zip(painted, folded, strict=True)]
    opened = {"data_dir": data_dir, "train_json": train_json, "split": split, "image_size": image_size}
    opened |= {"paint_order": paint_order, "background": background, "focus_classes": list(focus_classes)}
    opened |= {"ignore_classes": list(ignore_classes)}
    opened |= {"val_json": val_json} if split == "given" else {"folds": folds, "fold": fold, "split_seed": seed}
    return tuple(
        Subset(folded[i], pixels[i], each, built_from=opened) for i, each in zip((0, -1), indices, strict=True)
    )


def read_files(data_dir: str, json_names: Sequence[str], ignore_classes: Sequence[str] = ()) -> list[CocoData]:
    """Verified files of the same classes, less the ignored ones; the errors of all of them are refused together."""
    if data_dir == "synthetic":
        from seglib.data.synthetic import open_synthetic
    folder, files, lines = open_synthetic() if data_dir == "synthetic" else expand(data_dir), [], []
    for name in dict.fromkeys(json_names):
        try:
            files.append(load_verified(folder, name))
        except InputError as error:
            lines += str(error).splitlines()
    if lines:
        raise InputErrors(lines)
    _require_same_classes(files[0], files[-1])
    return [ignore_annotations(file, ignore_classes) for file in files]


def divide_files(
    files: Sequence[CocoData], split: str, folds: int, fold: int, seed: int, focus_classes: Sequence[str]
) -> tuple[list[CocoData], tuple[np.ndarray, np.ndarray]]:
    """The files with the classes in focus, and the rows of the first and of the last that train and validate."""
    data, val_data = files[0], files[-1]
    folded = [fold_classes(file, focus_classes) for file in files]
    if split == "given":
        hashes = [hash_files(file.images["path"]) for file in (data, val_data)]
        train, val = drop_leaked(*hashes), np.arange(len(val_data.images))
        if not len(train):
            raise InputError(
                f"{data.json_path}: must have images that are no copies of validation images, got {len(data.images)} that"
                f" all are in {val_data.json_path.name}; validate on others, or set split to holdout"
            )
        if len(train) < len(data.images):
            copies = len(data.images) - len(train)
            print(f"{copies} training images are copies of validation images; left out of training")
    else:
        # All classes count, those of no interest to a specialist too: it must hold out the images that the other models
        # of the same split hold out, or the ensemble of both would be scored on images that one was trained on.
        hashes, present = hash_files(data.images["path"]), find_classes_present(data)
        train, val = make_split(split, hashes, data.images["group"].tolist(), present, folds, fold, seed, data.images)
    require_painted(folded[0], train, "training", may_be_empty=False)
    require_painted(folded[-1], val, "validation")
    return folded, (train, val)


def require_painted(data: CocoData, indices: np.ndarray, use: str, may_be_empty: bool = True) -> None:
    """Refuse annotations that paint nothing, and say how many do where others paint."""
    table, where = tabulate_painted(data, data.images["image_id"].iloc[indices]), f"{data.json_path} ({use})"
    if not (may_be_empty or table["annotations"].any()):
        raise InputError(f"{where}: must have annotations of objects, got none; export them, or check train_json")
    refuse_unpainted(table, where)
    if line := describe_unpainted(table):
        print(f"{where}: warning: {line}")
    if not table["objects"].any():
        print(f"{where}: warning: no object is annotated")


def find_classes_present(data: CocoData) -> np.ndarray:
    """(images, classes) bool: which classes are annotated in each image, by annotations that paint a pixel."""
    present = np.zeros((len(data.images), data.num_classes), bool)
    painted = data.annotations[find_areas(data) > 0]
    rows = pd.Index(data.images["image_id"]).get_indexer(painted["image_id"])
    present[rows, painted["class_id"]] = True
    return present


def pool_files(files: Sequence[CocoData]) -> CocoData:
    """The images and annotations of several files of one folder as one; of entries with one image id the first stays.

    Where a file uses image ids of an earlier one, its own are moved up. `images` gets a column `file`, from 0.

    Raises
    ------
    InputError
        The files' categories differ.
    """
    images, annotations, ignored = [], [], []
    for number, data in enumerate(files):
        _require_same_classes(files[0], data)
        own = data.images.drop_duplicates("image_id").assign(file=number)
        taken = pd.concat([own["image_id"].iloc[:0], *(table["image_id"] for table in images)])
        none = data.annotations.iloc[:0] if data.ignored is None else data.ignored
        moved = _move_ids(taken, own, data.annotations, none)
        for tables, table in zip((images, annotations, ignored), moved, strict=True):
            tables.append(table)
    images, annotations, ignored = (pd.concat(tables, ignore_index=True) for tables in (images, annotations, ignored))
    return replace(files[0], images=images, annotations=annotations, ignored=ignored if len(ignored) else None)


def assign_subsets(
    data: CocoData, content_hashes: Sequence[str], present: np.ndarray, split: str, folds: int, fold: int, seed: int
) -> np.ndarray:
    """(N,) "train" or "val" for each image: as `open_data` divides them, or with "given" as the files do.

    Unlike in training, copies that two given files share stay in: they are what is looked for.

    Parameters
    ----------
    data : of `pool_files`
    content_hashes : N texts, of `hash_files`
    present : (N, C) bool, of `find_present`
    """
    if split == "given":
        return np.where(data.images["file"] == 0, "train", "val")
    groups, subset = data.images["group"].tolist(), np.full(len(data.images), "train")
    subset[make_split(split, content_hashes, groups, present, folds, fold, seed, data.images)[1]] = "val"
    return subset


def _require_same_classes(first: CocoData, second: CocoData) -> None:
    names = first.class_names[1:], second.class_names[1:]
    fix = "name the categories alike, or map those of an extra set"
    require_same(second.json_path, f"the categories of {first.json_path.name}", *names, fix)


def ignore_annotations(data: CocoData, ignore_classes: Sequence[str]) -> CocoData:
    """Leave the pixels of some classes out of loss and scores: they are painted 255, above all, and are no classes any more.

    Parameters
    ----------
    ignore_classes : class names; "iscrowd" and "ignore" stand for the annotations that have this field, 1, whatever their
        class, beside a class that is called so. Without any of them nothing changes: these are painted like the rest.

    Raises
    ------
    InputError
        A name is unknown, the background, or there twice, or no class is left.
    """
    if problem := refuse_ignored(ignore_classes, data.class_names):
        raise InputError(f"{data.json_path}: {problem}")
    return mark_ignored(data, ignore_classes)


def mark_ignored(data: CocoData, ignore_classes: Sequence[str]) -> CocoData:
    """The same, names that are no classes being left out."""
    if not ignore_classes:
        return data
    kept = [class_id for class_id, name in enumerate(data.class_names) if not class_id or name not in ignore_classes]
    ids = {class_id: place for place, class_id in enumerate(kept)} | {-1: -1}  # -1: of no known category
    class_ids = data.annotations["class_id"].map(lambda class_id: ids.get(class_id, IGNORE_INDEX))
    is_marked = data.annotations[[name for name in MARKS if name in ignore_classes]].eq(1).any(axis=1)
    annotations = data.annotations.assign(class_id=class_ids.mask(is_marked, IGNORE_INDEX).astype("int64"))
    is_ignored = annotations["class_id"] == IGNORE_INDEX
    ignored = [*([] if data.ignored is None else [data.ignored]), annotations[is_ignored]]
    return replace(
        data,
        annotations=annotations[~is_ignored].reset_index(drop=True),
        ignored=pd.concat(ignored, ignore_index=True) if is_ignored.any() else data.ignored,
        class_names=tuple(data.class_names[class_id] for class_id in kept),
        category_ids=tuple(data.category_ids[class_id - 1] for class_id in kept[1:]),
    )


# Class specialists: a data set in which all classes but a few are background. Masks are painted with all classes, so that
# what covers a focused object still hides it, and all who look at them in their own way share one cache.


def fold_classes(data: CocoData, focus_classes: Sequence[str]) -> CocoData:
    """Fold all classes but the focused ones into background; without classes to focus on, nothing changes.

    Class names become Background and the focused ones, in the order of their ids; annotations of other classes are left
    out.

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


def fold_pixels(pixels: Pixels, folded: CocoData) -> Pixels:
    """The pairs with the class ids of `fold_classes`: those of folded classes become 0, ignored ones stay 255."""
    if not folded.painted_class_names:
        return pixels
    ids = {folded.painted_class_names.index(name): class_id for class_id, name in enumerate(folded.class_names)}
    return map_pixels(pixels, ids | {IGNORE_INDEX: IGNORE_INDEX})
