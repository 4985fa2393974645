"""Pseudo-labels: what an ensemble is sure of in unlabelled images, as a COCO file for `extra_data`."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pycocotools import mask as mask_api

from seglib.data.coco import CocoData
from seglib.data.masks import IGNORE_INDEX
from seglib.data.pixels import resize_mask
from seglib.errors import InputError, require_known
from seglib.files import replacing
from seglib.inference.ensemble import Ensemble
from seglib.inference.postprocess import find_small
from seglib.inference.stores import Progress, argmax_planes
from seglib.inference.votes import read_mask

BINS = 1024  # of probabilities; a power of two, so that thresholds and the bins of float32 are exact
LEAST_PIXELS = 100  # labelled on validation, or a precision is chance
NEVER = 2.0  # a confidence that no probability reaches
Labelled = tuple[Any, np.ndarray, np.ndarray]  # row of the image, labels (S, S) with 255 where unsure, probability


def make_pseudo_labels(
    ensemble: Ensemble,
    path: str | Path,
    *,
    confidence: float | Mapping[str, float],
    min_pixels: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Write the classes of confident pixels as annotations of the original images, and unsure pixels as ignored ones.

    A pixel is labelled with its most probable class where that class's probability is at least its confidence. An image
    has one annotation per class, with `score`, the mean probability of its pixels, and one of all unsure pixels, with
    `"ignore": 1`. Confident background has none: it becomes 0 under `background: class`, and under `background: ignore`
    255, as in the training data's own masks. Images without any confident pixel are left out.

    All is decided at the stores' size S. Each pixel of the original then takes the label that training at S reads from
    it, so that `image_size` S trains on exactly these labels, unless a side of the original is shorter; predict at the
    size that the next run trains at. The file is there only when it is whole; memory does not grow with images.

    Parameters
    ----------
    ensemble : of the unlabelled images, as `Ensemble.predict_test` gives it.
    path : file to write, for `extra_data: [{json: <absolute path>}]`, with `data_dir` where the images are not in the
        folder of the run's own.
    confidence : of all classes, or by class name, Background included, see `choose_confidence`; above 1 never labels.
    min_pixels : components (8 neighbours) of an object class with fewer confident pixels are unsure too [px at S].
    overwrite : write over a file that is there, which stays until the new one is whole.
    progress : called with (images done, images in all).

    Returns
    -------
    DataFrame
        A row per class, Background included: `class`, `confidence`; `images` and `pixels` [px at S] labelled with it;
        `share_kept` of the pixels predicted as it, and `mean_score` of the labelled ones, NaN where there are none.

    Raises
    ------
    InputError
        There is a file already (not with `overwrite`), no pixel is confident, the stores are damaged, or images and
        confidences do not fit the ensemble. What was at `path` stays as it was.
    """
    path, images = Path(path), ensemble.images.data
    if not overwrite:
        _require_absent(path)
    rows = images.images.set_index("file_name", drop=False).loc[ensemble.stores[0].file_names]
    if unknown := rows.index[(rows["width"] == 0) | (rows["height"] == 0)].tolist():
        fix = "required width and height, got none; write them into it"
        raise InputError(f"{images.json_path} [{unknown[0]}]: {fix}")
    thresholds = _list_thresholds(confidence, images.class_names)
    counts = np.zeros((4, len(thresholds)))  # images, pixels, pixels predicted, sum of scores
    labelled = _label_all(ensemble, rows, thresholds, counts, min_pixels, progress)
    info = {
        "description": "pseudo-labels",
        "members": ensemble.sources,
        "weights": ensemble.weights.tolist(),
        "confidence": dict(zip(images.class_names, thresholds.tolist(), strict=True)),
        "min_pixels": min_pixels,
    }
    with replacing(path) as temporary:
        count = _write_coco(temporary, labelled, images, info)
        if not count:
            raise InputError(f"{path}: required a confident pixel, got none in {len(rows)} images; lower confidence")
        if not overwrite:
            _require_absent(path)  # another process may have been faster
    print(f"{path.name}: {count} images labelled, {len(rows) - count} without a confident pixel left out")
    with np.errstate(invalid="ignore"):  # 0 of 0 is NaN
        shares, scores = counts[1] / counts[2], counts[3] / counts[1]
    labels = {"images": counts[0].astype(np.int64), "pixels": counts[1].astype(np.int64)}
    columns = {"class": images.class_names, "confidence": thresholds} | labels
    return pd.DataFrame(columns | {"share_kept": shares, "mean_score": scores})


def choose_confidence(ensemble: Ensemble, precision: float = 0.9) -> dict[str, float]:
    """Lowest probability by class name from which on the predicted pixels have a wanted precision on validation images.

    Thresholds are multiples of 1/1024. A class that reaches the precision nowhere, or only with fewer than 100 pixels,
    gets 2.0, which no probability reaches, and is printed. One pass; memory does not grow with images.

    Parameters
    ----------
    ensemble : of validation images that no member has seen; ignored pixels do not count.
    precision : share of a class's labelled pixels that are right, above 0 and at most 1.

    Raises
    ------
    InputError
        Another precision.
    """
    if not 0 < precision <= 1:
        raise InputError(f"precision: required above 0 and at most 1, got {precision}")
    names = ensemble.images.data.class_names
    counts = np.zeros((2, len(names) * BINS), np.int64)  # right pixels, and all, by predicted class and its probability
    for position, probabilities in enumerate(ensemble.average()):
        mask = read_mask(ensemble.images, position, probabilities.shape[-1])
        valid = mask != IGNORE_INDEX
        pred, bins = argmax_planes(probabilities)[valid], np.int64(probabilities.max(0)[valid] * BINS)
        cells = pred.astype(np.int64) * BINS + np.minimum(bins, BINS - 1)
        counts += [np.bincount(each, minlength=counts.shape[1]) for each in (cells[pred == mask[valid]], cells)]
    right, predicted = counts.reshape(2, -1, BINS)[..., ::-1].cumsum(-1)[..., ::-1]  # from each bin on
    reached = (predicted >= LEAST_PIXELS) & (right >= precision * predicted)
    found = np.where(reached.any(1), reached.argmax(1) / BINS, NEVER)
    if never := [name for name, value in zip(names, found, strict=True) if value == NEVER]:
        print(f"never labelled: {', '.join(never)} (nowhere a precision of {precision:g} on {LEAST_PIXELS} px or more)")
    return dict(zip(names, found.tolist(), strict=True))


def _label_all(
    ensemble: Ensemble, rows: pd.DataFrame, thresholds: np.ndarray, counts: np.ndarray, min_pixels: int, progress
) -> Iterator[Labelled]:
    """Label one image after another; `counts` (4, C) grow."""
    for done, (probabilities, row) in enumerate(zip(ensemble.average(), rows.itertuples(), strict=True), 1):
        pred, probability = argmax_planes(probabilities), probabilities.max(0)
        labels = np.where(probability >= thresholds[pred], pred, np.uint8(IGNORE_INDEX))
        for class_id in np.unique(labels[(labels > 0) & (labels != IGNORE_INDEX)]) if min_pixels > 1 else ():
            labels[find_small(labels == class_id, min_pixels)] = IGNORE_INDEX
        pixels, classes = np.bincount(labels.ravel(), minlength=256), len(thresholds)
        scores = np.bincount(labels.ravel(), probability.ravel(), minlength=256)
        predicted = np.bincount(pred.ravel(), minlength=256)
        counts += [each[:classes] for each in (pixels > 0, pixels, predicted, scores)]
        yield row, labels, probability
        if progress:
            progress(done, len(rows))


def _write_coco(path: Path, labelled: Iterable[Labelled], images: CocoData, info: Mapping[str, Any]) -> int:
    """Stream the annotations, then list the images that have a confident pixel; return how many these are."""
    kept, count = [], 0
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write('{"annotations": [')
        for row, labels, probability in labelled:
            if (labels == IGNORE_INDEX).all():
                continue
            name = row.file_name  # as seen from the data folder, from where another file's images are looked up
            if not (images.data_dir / name).is_file():
                name = os.path.relpath(row.path, os.path.realpath(images.data_dir))
            kept.append({"id": row.image_id, "file_name": name, "width": row.width, "height": row.height})
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
    """One annotation per labelled class, and one of the ignored pixels; other tools leave those out as a crowd."""
    rows, columns = (_find_readers(len(labels), side) for side in (row.height, row.width))
    large = labels.T[np.ix_(columns, rows)].T  # laid out by columns; `resize_mask` to S gives the labels back
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


def _find_readers(size: int, side: int) -> np.ndarray:
    """(side,) for each pixel of a side, the last of `size` pixels that is read from it or from one before it."""
    read = resize_mask(np.arange(side, dtype=np.float32)[None], size)[0]  # asked, since it rounds in its own way
    return np.searchsorted(read, np.arange(side), side="right") - 1


def _list_thresholds(confidence: float | Mapping[str, float], class_names: Sequence[str]) -> np.ndarray:
    """(C,) float64."""
    given = confidence if isinstance(confidence, Mapping) else dict.fromkeys(class_names, confidence)
    for name, value in given.items():
        require_known("class", name, class_names, "confidence")
        if not isinstance(value, Real) or not value >= 0:
            raise InputError(f"confidence: required a number of at least 0 for {name}, got {value!r}")
    if missing := [name for name in class_names if name not in given]:
        raise InputError(f"confidence: required one per class, got none for {', '.join(missing)}; above 1 never labels")
    return np.array([given[name] for name in class_names], np.float64)


def _require_absent(path: Path) -> None:
    if path.exists():
        raise InputError(f"{path}: required a new file, got one that is there already; delete it, or name another")
