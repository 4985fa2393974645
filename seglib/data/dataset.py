"""Data sets of images and masks: opened at one size, divided, joined with others, narrowed to some classes."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from seglib.data.class_names import IGNORE, refuse_class_map, refuse_focus
from seglib.data.coco import CocoData
from seglib.data.masks import IGNORE_INDEX
from seglib.data.pixels import Pair, Pixels, Progress, map_pixels, open_pixels
from seglib.data.splits import drop_leaked, make_split
from seglib.data.synthetic import open_synthetic
from seglib.data.verify import describe_unpainted, find_areas, load_verified, refuse_unpainted, tabulate_painted
from seglib.errors import InputError, InputErrors
from seglib.files import hash_files

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
        for what, ours, theirs in (
            ("classes", self.data.class_names, other.data.class_names),
            ("image_size", self.image_size, other.image_size),
        ):
            if ours != theirs:
                raise InputError(
                    f"{other.data.json_path}: required the {what} of {self.data.json_path}, {ours}, got {theirs}"
                )
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

    Raises
    ------
    InputErrors
        One line for each error that `verify_coco` finds.
    """
    names = [train_json, val_json] if split == "given" else [train_json]
    files = _read_files(data_dir, names)
    folded, indices = _divide(files, split, folds, fold, seed, focus_classes)
    painted = [open_pixels(file, image_size, paint_order, background, cache, progress) for file in files]
    pixels = [_fold_pixels(*pair) for pair in zip(painted, folded, strict=True)]
    opened = {"data_dir": data_dir, "train_json": train_json, "split": split, "image_size": image_size}
    opened |= {"paint_order": paint_order, "background": background, "focus_classes": list(focus_classes)}
    opened |= {"val_json": val_json} if split == "given" else {"folds": folds, "fold": fold, "split_seed": seed}
    return tuple(
        Subset(folded[i], pixels[i], each, built_from=opened) for i, each in zip((0, -1), indices, strict=True)
    )


def find_refusal(
    data_dir: str,
    train_json: str,
    val_json: str,
    split: str,
    folds: int,
    fold: int,
    split_seed: int,
    focus_classes: Sequence[str],
    extra_data: Sequence[Mapping[str, Any]],
) -> str:
    """What `open_data` and `join_extra` would refuse, a line each, without decoding images; "" where nothing is.

    What they print is printed. The parameters are those of 02_train.ipynb.
    """
    try:
        files = _read_files(data_dir, [train_json, val_json] if split == "given" else [train_json])
        folded, _ = _divide(files, split, folds, fold, split_seed, focus_classes)
        for place, entry in enumerate(extra_data):
            _read_set(place, folded[0], entry)
    except InputError as error:
        return str(error)
    return ""


def _read_files(data_dir: str, json_names: Sequence[str]) -> list[CocoData]:
    """Verified files of the same classes; the errors of all of them are refused together."""
    folder, files, lines = open_synthetic() if data_dir == "synthetic" else Path(data_dir).expanduser(), [], []
    for name in dict.fromkeys(json_names):
        try:
            files.append(load_verified(folder, name))
        except InputError as error:
            lines += str(error).splitlines()
    if lines:
        raise InputErrors(lines)
    _require_same_classes(files[0], files[-1])
    return files


def _divide(
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
    _require_painted(folded[0], train, "training", may_be_empty=False)
    _require_painted(folded[-1], val, "validation")
    return folded, (train, val)


def _require_painted(data: CocoData, indices: np.ndarray, use: str, may_be_empty: bool = True) -> None:
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
    if first.class_names != second.class_names:
        raise InputError(
            f"{second.json_path}: required the categories of {first.json_path.name} "
            f"({', '.join(first.class_names[1:])}), got {', '.join(second.class_names[1:])}"
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


def _fold_pixels(pixels: Pixels, folded: CocoData) -> Pixels:
    """The pairs with the class ids of `fold_classes`: those of folded classes become 0, ignored ones stay 255."""
    if not folded.painted_class_names:
        return pixels
    ids = {folded.painted_class_names.index(name): class_id for class_id, name in enumerate(folded.class_names)}
    return map_pixels(pixels, ids | {IGNORE_INDEX: IGNORE_INDEX})


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
    if train_images.built_from.get("extra_data"):
        raise InputError("extra_data: the training images are joined already; run the cell that opens the data again")
    sets = [
        _open_set(place, train_images, entry, paint_order, background, cache) for place, entry in enumerate(extra_data)
    ]
    sets = [_leave_out_copies(subset, val_images) for subset in sets]
    if debug:
        sets = [subset.take_debug_share() for subset in sets]
    for subset, entry in zip(sets, extra_data, strict=True):
        often = f"each {entry.get('weight', 1.0):g} times an epoch"
        print(f"{subset.data.name}: {len(subset)} more images to train on, {often}")
    if not sets:
        return train_images
    joined = sum(sets, start=train_images)
    return replace(joined, built_from=train_images.built_from | {"extra_data": list(extra_data)})


def _open_set(place: int, train_images: Subset, entry: Mapping[str, Any], *policy: Any) -> Subset:
    """An extra set in the classes of the training images, its focus included; `policy` as `open_pixels` takes it."""
    data, class_ids, folded = _read_set(place, train_images.data, entry)
    num_classes = len(train_images.data.painted_class_names or train_images.data.class_names)
    pixels = _paint(data, class_ids, num_classes, train_images.image_size, *policy)
    weights = np.full(len(data.images), float(entry.get("weight", 1.0)))
    return Subset(folded, _fold_pixels(pixels, folded), np.arange(len(data.images)), weights)


def _read_set(place: int, ours: CocoData, entry: Mapping[str, Any]) -> tuple[CocoData, np.ndarray, CocoData]:
    """An extra set as it is, what each of its annotations is in our classes, and its objects in our classes in focus."""
    painted_names = ours.painted_class_names or ours.class_names
    data = load_verified(Path(entry.get("data_dir", ours.data_dir)).expanduser(), entry["json"])
    class_ids = _translate(f"extra_data[{place}]", data, entry, painted_names)
    is_object = (class_ids > 0) & (class_ids != IGNORE_INDEX)
    objects = data.annotations[is_object].assign(class_id=class_ids[is_object]).reset_index(drop=True)
    category_ids = tuple(range(1, len(painted_names)))
    own = replace(data, annotations=objects, class_names=painted_names, category_ids=category_ids)
    folded = fold_classes(own, ours.class_names[1:] if ours.painted_class_names else ())
    _require_painted(folded, np.arange(len(data.images)), f"extra_data[{place}]")
    return data, class_ids, folded


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
        where = f"{data.json_path} [annotation {row['annotation_id']}]"
        raise InputError(f"{where}: `score` must be 0 to 1, got {row['score']:g}; correct it")
    ids = {name: class_id for class_id, name in enumerate(class_names)} | {IGNORE: IGNORE_INDEX}
    targets = [classes.get(name, IGNORE) if classes else name for name in theirs]
    class_ids = np.array([0, *(ids[target] for target in targets)], np.int64)[data.annotations["class_id"]]
    is_unsure = (scores < entry.get("min_confidence", 0.0)) | (data.annotations["ignore"].to_numpy() == 1)
    return np.where(is_unsure, IGNORE_INDEX, class_ids)


def _paint(data: CocoData, class_ids: np.ndarray, num_classes: int, image_size: int, *policy: Any) -> Pixels:
    """Paint our ids moved up by one, so that annotations of background are painted too, below all, and ignored ones above
    all; the cache's key holds these ids, so map and confidence need no key of their own."""
    ignored = num_classes + 1
    if ignored >= IGNORE_INDEX:
        got = f"got {num_classes - 1}; merge some"
        raise InputError(f"extra_data: the training data may have 252 categories at most, {got}")
    painted_ids = np.where(class_ids == IGNORE_INDEX, ignored, class_ids + 1)
    painted = replace(data, annotations=data.annotations.assign(class_id=painted_ids))
    ids = {class_id + 1: class_id for class_id in range(num_classes)}
    ids |= dict.fromkeys((ignored, IGNORE_INDEX), IGNORE_INDEX)
    return map_pixels(open_pixels(painted, image_size, *policy), ids)


def _leave_out_copies(subset: Subset, val_images: Subset) -> Subset:
    hashes = [hash_files(each.data.images["path"]) for each in (subset, val_images)]
    kept = drop_leaked(hashes[0], np.array(hashes[1])[val_images.indices])
    if len(kept) < len(subset):
        name, count = subset.data.name, len(subset) - len(kept)
        print(f"{name}: {count} images are copies of validation images; left out of training")
    return subset.take(kept)
