"""Other sets to train on too: external ones through a map of classes, predicted labels above a confidence."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from seglib.data.class_names import IGNORE, MARKS, refuse_class_map
from seglib.data.coco import CocoData
from seglib.data.dataset import (
    Subset,
    divide_files,
    fold_classes,
    fold_pixels,
    mark_ignored,
    read_files,
    require_painted,
)
from seglib.data.masks import IGNORE_INDEX
from seglib.data.pixels import Pixels, map_pixels, open_pixels
from seglib.data.splits import drop_leaked
from seglib.data.verify import load_verified
from seglib.errors import InputError
from seglib.files import expand, hash_files


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

        Visible pixels of annotations with `"ignore": 1` are ignored, and what the training images ignore.
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
    ignored = train_images.built_from.get("ignore_classes", ())
    data, class_ids, folded = _read_set(place, train_images.data, entry, ignored)
    num_classes = len(train_images.data.painted_class_names or train_images.data.class_names)
    pixels = _paint(data, class_ids, num_classes, train_images.image_size, *policy)
    weights = np.full(len(data.images), float(entry.get("weight", 1.0)))
    return Subset(folded, fold_pixels(pixels, folded), np.arange(len(data.images)), weights)


def _read_set(
    place: int, ours: CocoData, entry: Mapping[str, Any], ignored: Sequence[str]
) -> tuple[CocoData, np.ndarray, CocoData]:
    """An extra set as it is, what each of its annotations is in our classes, and its objects in our classes in focus."""
    painted_names = ours.painted_class_names or ours.class_names
    data = load_verified(expand(entry.get("data_dir", ours.data_dir)), entry["json"])
    data = mark_ignored(data, [name for name in ignored if name in MARKS or not entry.get("classes")])
    class_ids = _translate(f"extra_data[{place}]", data, entry, painted_names)
    is_object = (class_ids > 0) & (class_ids != IGNORE_INDEX)
    objects = data.annotations[is_object].assign(class_id=class_ids[is_object]).reset_index(drop=True)
    category_ids = tuple(range(1, len(painted_names)))
    own = replace(data, annotations=objects, class_names=painted_names, category_ids=category_ids)
    folded = fold_classes(own, ours.class_names[1:] if ours.painted_class_names else ())
    require_painted(folded, np.arange(len(data.images)), f"extra_data[{place}]")
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
    ignore_classes: Sequence[str] = (),
) -> str:
    """What `open_data` and `join_extra` would refuse, a line each, without decoding images; "" where nothing is.

    What they print is printed. The parameters are those of 02_train.ipynb.
    """
    try:
        names = [train_json, val_json] if split == "given" else [train_json]
        files = read_files(data_dir, names, ignore_classes)
        folded, _ = divide_files(files, split, folds, fold, split_seed, focus_classes)
        for place, entry in enumerate(extra_data):
            _read_set(place, folded[0], entry, ignore_classes)
    except InputError as error:
        return str(error)
    return ""
