"""Write a submission from predictions: checked first, put in place whole or not at all, with its record beside it."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import ArrayLike

from seglib.errors import InputError, unknown_name
from seglib.files import hash_file, write_json
from seglib.inference.submission_check import validate_submission
from seglib.inference.submission_file import resize_nearest, resize_probabilities, write_rows

RESIZINGS = {
    "nearest": "argmax at the model's size, then nearest",
    "probabilities": "probabilities resized bilinearly, then argmax",
}


def write_submission(
    path: str | Path,
    predictions: Iterable[tuple[str, np.ndarray]],
    file_names: Sequence[str],
    num_classes: int,
    *,
    size: int = 256,
    resizing: str = "nearest",
    train_shares: ArrayLike | None = None,
    batch_size: int = 0,
    sources: Sequence[Mapping[str, object]] = (),
    val_score: float | None = None,
    force: bool = False,
) -> dict[str, object]:
    """Write `path` (.csv) and its record, the same path with .json; masks wait on disk, one row is in memory at a time.

    Parameters
    ----------
    predictions : file names, in any order, with a mask (H, W) of class ids, or with probabilities (C, H, W) float where
        `resizing` is "probabilities".
    file_names : the images wanted, in the order wanted; see `read_file_names`.
    num_classes, train_shares, batch_size : as `validate_submission` takes them.
    size : side of the masks in the file [px].
    resizing : {"nearest", "probabilities"}
    sources : the models behind it, each with `run` and `weights_sha256`.
    val_score : pooled mIoU on val, 0..1, if known.
    force : write in spite of doubts (not of errors).

    Returns
    -------
    The record: `file`, `hash`, `written`, `images`, `size`, `num_classes`, `resizing`, `sources`, `val_score`,
    `class_shares`, `doubts` (overridden), `notes`.

    Raises
    ------
    InputErrors
        All that is wrong with the rows, a line each; what was at `path` before stays as it was.
    """
    if resizing not in RESIZINGS:
        raise InputError(unknown_name("resizing", resizing, RESIZINGS))
    path = Path(path)
    if path.suffix.lower() != ".csv":
        raise InputError(f"{path}: required a name that ends in .csv, since the record beside it ends in .json")
    if val_score is not None and not 0 <= val_score <= 1:
        raise InputError(f"val_score: required a number from 0 to 1, or None, got {val_score}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent) as spool:
        rows = _spool(predictions, file_names, spool, size, resizing)
        verdict = validate_submission(
            rows,
            file_names,
            num_classes,
            size=size,
            train_shares=train_shares,
            batch_size=batch_size,
            any_order=True,
        )
        verdict.refuse(path, force)
        write_rows(path, _read_spool(file_names, spool, size))
    record = {
        "file": path.name,
        "hash": hash_file(path),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "images": len(file_names),
        "size": size,
        "num_classes": num_classes,
        "resizing": RESIZINGS[resizing],
        "sources": [dict(source) for source in sources],
        "val_score": val_score,
        "class_shares": verdict.shares.tolist(),
        "doubts": verdict.doubts,
        "notes": verdict.notes,
    }
    write_json(path.with_suffix(".json"), record)
    return record


def _spool(
    predictions: Iterable[tuple[str, np.ndarray]], file_names: Sequence[str], spool: BinaryIO, size: int, resizing: str
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each row for the check, and keep its mask at its place in the order."""
    places = {name: place for place, name in enumerate(file_names)}
    for name, prediction in predictions:
        mask = _resize(np.asarray(prediction), size, resizing)
        if name in places and mask.shape == (size, size) and mask.dtype.kind in "iu":
            spool.seek(places[name] * size * size)
            spool.write(np.ascontiguousarray(mask, np.uint8))  # the check refuses values that this cuts off
        yield name, mask


def _resize(prediction: np.ndarray, size: int, resizing: str) -> np.ndarray:
    """The mask at its final size; what is no mask stays as it is, for the check to name."""
    if resizing == "probabilities":
        if prediction.ndim == 3 and prediction.dtype.kind == "f" and np.isfinite(prediction).all():
            return resize_probabilities(prediction, size)
        raise InputError(
            f"resizing 'probabilities': required finite floats (C, H, W), got {prediction.dtype} {prediction.shape}"
        )
    return resize_nearest(prediction, size) if prediction.ndim == 2 and prediction.size else prediction


def _read_spool(file_names: Sequence[str], spool: BinaryIO, size: int) -> Iterator[tuple[str, np.ndarray]]:
    spool.seek(0)
    for name in file_names:
        yield name, np.frombuffer(spool.read(size * size), np.uint8).reshape(size, size)
