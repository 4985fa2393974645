"""Pseudo-labels: what an ensemble is sure of in unlabelled images, as a COCO file for `extra_data`."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from pycocotools import mask as mask_api

from seglib.data.coco import CocoData
from seglib.data.dataset import Subset
from seglib.data.masks import IGNORE_INDEX
from seglib.data.pixels import resize_mask
from seglib.errors import InputError, unknown_name
from seglib.files import replacing
from seglib.inference.ensemble import Votes, argmax_planes, average_probabilities, read_mask
from seglib.inference.stores import ProbabilityStore

BINS = 1024  # of probabilities; a power of two, so that thresholds and the bins of float32 are exact
LEAST_PIXELS = 100  # labelled on validation, or a precision is chance
NEVER = 2.0  # a confidence that no probability reaches
Labelled = tuple[Any, np.ndarray, np.ndarray]  # row of the image, labels (S, S) with 255 where unsure, probability


def make_pseudo_labels(
    stores: Sequence[ProbabilityStore],
    images: CocoData,
    path: str | Path,
    *,
    confidence: float | Mapping[str, float],
    weights: ArrayLike | None = None,
    mean: str = "arithmetic",
    min_pixels: int = 0,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Write the classes of confident pixels as annotations of the original images, and unsure pixels as ignored ones.

    A pixel is labelled with its most probable class where that class's probability is at least its confidence. An image
    has one annotation a class, with `score`, the mean probability of its pixels, and one of all unsure pixels, with
    `"ignore": 1`. Confident background has none: it becomes 0 under `background: class`, and under `background: ignore`
    255, as in the training data's own masks. Images without any confident pixel are left out.

    All is decided at the stores' size S. Each pixel of the original then takes the label that training at S reads from
    it, so that `image_size` S trains on exactly these labels, unless a side of the original is shorter; predict at the
    size that the next run trains at. The file is there only when it is whole; memory does not grow with images.

    Parameters
    ----------
    stores, weights, mean : M stores of the unlabelled images and how to average them, see
        `average_probabilities`; with specialists, what `add_specialists` returns.
    images : the images' file with the training data's categories: `load_coco(test_dir, "test.json")`, or
        `open_test_images(...).data`. It may list more images than the stores have.
    path : file to write, for `extra_data: [{json: <absolute path>}]`, with `data_dir` where the images are not in the
        folder of the run's own.
    confidence : of all classes, or by class name, Background included, see `choose_confidence`; above 1 never labels.
    min_pixels : components (8 neighbours) of an object class with fewer confident pixels are unsure too [px at S].
    overwrite : write over a file that is there, which stays until the new one is whole.
    progress : called with (images done, images in all).

    Returns
    -------
    DataFrame
        A row a class, Background included: `class`, `confidence`; `images` and `pixels` [px at S] labelled with it;
        `share_kept` of the pixels predicted as it, and `mean_score` of the labelled ones, NaN where there are none.

    Raises
    ------
    InputError
        There is a file already (not with `overwrite`), no pixel is confident, the stores are damaged, or stores, images, weights and
        confidences do not fit together. What was at `path` stays as it was.
    """
    path = Path(path)
    if not overwrite:
        _require_absent(path)
    averages = average_probabilities(stores, weights, mean=mean)
    _require_classes(stores[0], images)
    rows, thresholds = _find_rows(stores[0], images), _list_thresholds(confidence, images.class_names)
    tally = _Tally(images.class_names, thresholds)
    labelled = _label_all(averages, rows, tally, min_pixels, progress)
    with replacing(path) as temporary:
        count = _write_coco(temporary, labelled, images, _describe(stores, weights, tally, min_pixels))
        if not count:
            raise InputError(f"{path}: required a confident pixel, got none in {len(rows)} images; lower confidence")
        if not overwrite:
            _require_absent(path)  # another process may have been faster
    print(f"{path.name}: {count} images labelled, {len(rows) - count} without a confident pixel left out")
    return tally.tabulate()


def choose_confidence(
    stores: Sequence[ProbabilityStore],
    truth: Subset,
    weights: ArrayLike | None = None,
    *,
    precision: float = 0.9,
    mean: str = "arithmetic",
) -> dict[str, float]:
    """Lowest probability by class name from which on the predicted pixels have a wanted precision on validation images.

    Thresholds are multiples of 1/1024. A class that reaches the precision nowhere, or only with fewer than 100 pixels,
    gets 2.0, which no probability reaches, and is printed. One pass; memory does not grow with images.

    Parameters
    ----------
    stores, weights, mean : as for `make_pseudo_labels`, of validation images that no member has seen.
    truth : these images with their masks; ignored pixels do not count. See `predict_validation`.
    precision : share of a class's labelled pixels that are right, above 0 and at most 1.

    Raises
    ------
    InputError
        Stores, truth and weights that do not fit together, or another precision.
    """
    if not 0 < precision <= 1:
        raise InputError(f"precision: required above 0 and at most 1, got {precision}")
    averages = average_probabilities(stores, weights, mean=mean)
    _require_classes(stores[0], truth.data)
    if stores[0].image_ids.tolist() != truth.image_ids.tolist():
        got = f"{len(stores[0])} or others; score stores with the images that they were made of"
        raise InputError(f"{stores[0].folder}: required the {len(truth)} images of the truth, got {got}")
    right, predicted = _count_by_probability(averages, truth)
    right, predicted = (counts[:, ::-1].cumsum(1)[:, ::-1] for counts in (right, predicted))  # from each bin on
    reached = (predicted >= LEAST_PIXELS) & (right >= precision * predicted)
    found = np.where(reached.any(1), reached.argmax(1) / BINS, NEVER)
    confidence = dict(zip(truth.data.class_names, found.tolist(), strict=True))
    if never := [name for name, value in confidence.items() if value == NEVER]:
        print(f"never labelled: {', '.join(never)} (nowhere a precision of {precision:g} on {LEAST_PIXELS} px or more)")
    return confidence


def _count_by_probability(averages: Votes, truth: Subset) -> np.ndarray:
    """(2, C, BINS) int64: right pixels, and all, by predicted class and its probability."""
    classes = truth.data.num_classes
    counts = np.zeros((2, classes * BINS), np.int64)
    for position, (probabilities,) in averages:
        mask = read_mask(truth, position, probabilities.shape[-1])
        valid = mask != IGNORE_INDEX
        pred, bins = argmax_planes(probabilities)[valid], np.int64(probabilities.max(0)[valid] * BINS)
        cells = pred.astype(np.int64) * BINS + np.minimum(bins, BINS - 1)
        for count, chosen in zip(counts, (cells[pred == mask[valid]], cells), strict=True):
            count += np.bincount(chosen, minlength=classes * BINS)
    return counts.reshape(2, classes, BINS)


def _label_all(
    averages: Votes, rows: pd.DataFrame, tally: "_Tally", min_pixels: int, progress: Callable[[int, int], None] | None
) -> Iterator[Labelled]:
    for (position, (probabilities,)), row in zip(averages, rows.itertuples(), strict=True):
        pred, probability = argmax_planes(probabilities), probabilities.max(0)
        labels = np.where(probability >= tally.thresholds[pred], pred, np.uint8(IGNORE_INDEX))
        for class_id in np.unique(labels[(labels > 0) & (labels != IGNORE_INDEX)]) if min_pixels > 1 else ():
            labels[_find_small(labels == class_id, min_pixels)] = IGNORE_INDEX
        tally.add(labels, pred, probability)
        yield row, labels, probability
        if progress:
            progress(position + 1, len(rows))


def _find_small(is_class: np.ndarray, min_pixels: int) -> np.ndarray:
    _, components, stats, _ = cv2.connectedComponentsWithStats(is_class.view(np.uint8), connectivity=8)
    return is_class & (stats[:, cv2.CC_STAT_AREA] < min_pixels)[components]


def _write_coco(path: Path, labelled: Iterable[Labelled], images: CocoData, info: Mapping[str, Any]) -> int:
    """Stream the annotations, then list the images that have a confident pixel; return how many these are."""
    kept, count = [], 0
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write('{"annotations": [')
        for row, labels, probability in labelled:
            if (labels == IGNORE_INDEX).all():
                continue
            kept.append({"id": row.image_id, "file_name": row.file_name, "width": row.width, "height": row.height})
            for annotation in _annotate(row, labels, probability, images.category_ids):
                count += 1
                file.write((",\n" if count > 1 else "\n") + json.dumps({"id": count, **annotation}))
        named = zip(images.category_ids, images.class_names[1:], strict=True)
        categories = [{"id": number, "name": name} for number, name in named]
        rest = {"images": kept, "categories": categories, "info": info}
        file.write("\n], " + json.dumps(rest, ensure_ascii=False)[1:] + "\n")
    return len(kept)


def _annotate(
    row: Any, labels: np.ndarray, probability: np.ndarray, category_ids: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """One annotation a labelled class, and one of the ignored pixels; other tools leave those out as a crowd."""
    large = _enlarge(labels, row.height, row.width)
    for class_id in np.unique(large[large > 0]):
        ignored = class_id == IGNORE_INDEX
        rle = mask_api.encode((large == class_id).view(np.uint8))
        score = probability[labels == class_id].mean(dtype=np.float64)
        yield {
            "image_id": row.image_id,
            "category_id": category_ids[0 if ignored else class_id - 1],
            "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
            "area": int(mask_api.area(rle)),
            "iscrowd": int(ignored),
            "ignore": int(ignored),
            **({} if ignored else {"score": round(float(score), 4)}),
        }


def _enlarge(labels: np.ndarray, height: int, width: int) -> np.ndarray:
    """(S, S) -> (height, width), laid out by columns, of which `resize_mask` to S gives the labels back."""
    rows, columns = (_find_readers(len(labels), side) for side in (height, width))
    return labels.T[np.ix_(columns, rows)].T


def _find_readers(size: int, side: int) -> np.ndarray:
    """(side,) for each pixel of a side, the last of `size` pixels that is read from it or from one before it."""
    read = resize_mask(np.arange(side, dtype=np.float32)[None], size)[0]  # asked, since it rounds in its own way
    return np.searchsorted(read, np.arange(side), side="right") - 1


class _Tally:
    """Counts by class, of pixels at the stores' size."""

    def __init__(self, class_names: Sequence[str], thresholds: np.ndarray):
        self.class_names, self.thresholds = class_names, thresholds
        self.images, self.pixels, self.predicted, self.scores = np.zeros((4, len(class_names)))

    def add(self, labels: np.ndarray, pred: np.ndarray, probability: np.ndarray) -> None:
        classes = len(self.class_names)
        pixels = np.bincount(labels.ravel(), minlength=256)[:classes]
        self.images += pixels > 0
        self.pixels += pixels
        self.predicted += np.bincount(pred.ravel(), minlength=classes)
        self.scores += np.bincount(labels.ravel(), probability.ravel(), minlength=256)[:classes]

    def tabulate(self) -> pd.DataFrame:
        with np.errstate(invalid="ignore"):  # 0 of 0 is NaN
            shares, scores = self.pixels / self.predicted, self.scores / self.pixels
        return pd.DataFrame({
            "class": self.class_names, "confidence": self.thresholds, "images": self.images.astype(np.int64),
            "pixels": self.pixels.astype(np.int64), "share_kept": shares, "mean_score": scores,
        })  # fmt: skip


def _describe(stores: Sequence[ProbabilityStore], weights: ArrayLike | None, tally: _Tally, min_pixels: int) -> dict:
    """Where the labels come from, for people."""
    return {
        "description": "pseudo-labels",
        "members": [{name: store.facts.get(name) for name in ("run", "weights_sha256")} for store in stores],
        "weights": None if weights is None else np.asarray(weights).tolist(),
        "confidence": dict(zip(tally.class_names, tally.thresholds.tolist(), strict=True)),
        "min_pixels": min_pixels,
    }


def _list_thresholds(confidence: float | Mapping[str, float], class_names: Sequence[str]) -> np.ndarray:
    """(C,) float64."""
    given = confidence if isinstance(confidence, Mapping) else dict.fromkeys(class_names, confidence)
    for name, value in given.items():
        if name not in class_names:
            raise InputError(f"confidence: {unknown_name('class', name, class_names)}")
        if not isinstance(value, Real) or not value >= 0:
            raise InputError(f"confidence: required a number of at least 0 for {name}, got {value!r}")
    if missing := [name for name in class_names if name not in given]:
        raise InputError(f"confidence: required one a class, got none for {', '.join(missing)}; above 1 never labels")
    return np.array([given[name] for name in class_names], np.float64)


def _find_rows(store: ProbabilityStore, images: CocoData) -> pd.DataFrame:
    """Rows of the store's images, in its order. By name: ids may be alike by chance."""
    rows = images.images.set_index("file_name", drop=False)
    if missing := [name for name in store.file_names if name not in rows.index]:
        fix = "pass the file that was predicted"
        raise InputError(f"{store.folder}: required images of {images.json_path}, got {missing[0]}; {fix}")
    rows = rows.loc[store.file_names]
    if unknown := rows.index[(rows["width"] == 0) | (rows["height"] == 0)].tolist():
        raise InputError(f"{images.json_path} [{unknown[0]}]: required width and height, got none; write them into it")
    return rows


def _require_classes(store: ProbabilityStore, data: CocoData) -> None:
    if store.class_names != list(data.class_names):
        raise InputError(
            f"{store.folder}: required the classes of {data.json_path} ({', '.join(data.class_names)}), got"
            f" {', '.join(store.class_names)}"
        )


def _require_absent(path: Path) -> None:
    if path.exists():
        raise InputError(f"{path}: required a new file, got one that is there already; delete it, or name another")
