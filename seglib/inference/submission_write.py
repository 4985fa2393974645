"""Write a submission, after every check."""

import hashlib
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import ArrayLike

from seglib.data.coco import CocoData
from seglib.data.masks import paint_mask
from seglib.errors import InputError, InputErrors, unknown_name
from seglib.files import hash_file, write_json
from seglib.inference.submission_file import (
    find_name_problems,
    list_names,
    parse_row,
    read_rows,
    resize_nearest,
    resize_probabilities,
    write_rows,
)

# Check a submission before it costs one of the day's: every problem found, each in one line.


FAR = 0.3  # total variation distance of the class shares: half the sum of their differences
LEFT_OVER_BY_CHANCE = 1e-3  # a run of background masks at the end that is less likely than this is an unwritten batch


@dataclass(frozen=True, eq=False)
class Verdict:
    """What is wrong with a submission, a line each.

    Attributes
    ----------
    errors : the leaderboard refuses the file, or scores it wrongly; nothing overrides them.
    doubts : the file can be read, but hardly is what was meant; `force` overrides them.
    notes : worth a look; they refuse nothing.
    shares : (num_classes,) float64, share of each class in the pixels of the masks that are right.
    """

    errors: tuple[str, ...]
    doubts: tuple[str, ...]
    notes: tuple[str, ...]
    shares: np.ndarray

    def refuse(self, where: str | Path, force: bool = False) -> None:
        """Raise InputErrors with all errors, and all doubts unless `force`."""
        doubts = () if force else tuple(f"{line}; --force (force=True) takes it as it is" for line in self.doubts)
        if lines := self.errors + doubts:
            raise InputErrors(f"{where}: {line}" for line in lines)


@dataclass
class _Tally:
    """What is kept of the rows: a few bytes each."""

    names: list[str] = field(default_factory=list)
    problems: dict[str, tuple[str, list[str]]] = field(default_factory=dict)  # kind -> words, names
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    constant: dict[str, int] = field(default_factory=dict)  # name -> the only class of its mask
    hashes: dict[bytes, list[str]] = field(default_factory=dict)  # of masks that are not constant


def validate_submission(
    source: str | Path | Iterable[tuple[str, str | np.ndarray]],
    file_names: Sequence[str],
    num_classes: int,
    *,
    size: int = 256,
    train_shares: ArrayLike | None = None,
    batch_size: int = 0,
    any_order: bool = False,
) -> Verdict:
    """Find all that is wrong with a submission, a row in memory at a time.

    Parameters
    ----------
    source : a CSV, or pairs of a file name and its PredictionString or mask (size, size) of whole numbers.
    file_names : the images that are required, in the required order.
    num_classes : with the background; ids are 0 to num_classes - 1.
    size : side of the masks [px].
    train_shares : (num_classes,) pixels, or shares of the pixels, of each class in the training masks, if known.
    batch_size : of the prediction [images], 0 where unknown: names rows that an incomplete last batch would have had.
    any_order : rows need not be in the required order.
    """
    shares = _check_shares(train_shares, num_classes)
    tally, errors = _Tally(), []
    for name, content in _read(Path(source), errors) if isinstance(source, str | Path) else source:
        _count_row(tally, name, *parse_row(content, size, num_classes))
    if tally.names or not errors:  # of a file that cannot be read, all rows are missing: no news
        errors += find_name_problems(tally.names, file_names, batch_size, any_order)
    errors += [f"{list_names(names)}: {words}" for words, names in tally.problems.values()]
    doubts, notes = _judge_masks(tally, file_names, batch_size)
    total = tally.pixels.sum()
    found = tally.pixels[:num_classes] / max(1, total)
    if shares is not None and total:
        doubts += _judge_shares(found, shares)
    return Verdict(tuple(errors), tuple(doubts), tuple(notes), found)


def count_shares(data: CocoData, max_images: int = 500) -> np.ndarray:
    """(num_classes,) float64, pixel share of each class in a COCO file, from at most so many images evenly spread."""
    rows = np.unique(np.linspace(0, len(data.images) - 1, min(max_images, len(data.images))).astype(np.int64))
    by_image, pixels = data.annotations.groupby("image_id").indices, np.zeros(256)
    for image in data.images.iloc[rows].itertuples():
        annotations = data.annotations.iloc[by_image.get(image.image_id, [])]
        mask = paint_mask(annotations, image.height, image.width, "area", "class")
        pixels += np.bincount(mask.ravel(), minlength=256) / mask.size
    return pixels[: data.num_classes] / len(rows)


def _read(path: Path, errors: list[str]) -> Iterator[tuple[str, str]]:
    """The rows as far as the file can be read; what ends that goes to the other problems."""
    try:
        yield from read_rows(path)
    except InputError as error:
        errors.append(str(error).removeprefix(f"{path}: "))


def _count_row(tally: _Tally, name: str, mask: np.ndarray | None, words: str) -> None:
    tally.names.append(name)
    if mask is None:
        kind = re.sub(r"\d+", "#", words)
        tally.problems.setdefault(kind, (words, []))[1].append(name)
        return
    counts = np.bincount(mask.ravel(), minlength=256)
    tally.pixels += counts
    if counts.max() == mask.size:
        tally.constant[name] = int(counts.argmax())
    else:
        digest = hashlib.blake2b(np.ascontiguousarray(mask), digest_size=16).digest()
        tally.hashes.setdefault(digest, []).append(name)


def _check_shares(train_shares: ArrayLike | None, num_classes: int) -> np.ndarray | None:
    if train_shares is None:
        return None
    shares = np.asarray(train_shares, np.float64)
    if shares.shape != (num_classes,) or not np.isfinite(shares).all() or shares.min() < 0 or not shares.any():
        raise InputError(f"train_shares: required {num_classes} numbers from 0, one a class, got {shares.tolist()}")
    return shares / shares.sum()


def _judge_masks(tally: _Tally, file_names: Sequence[str], batch_size: int) -> tuple[list[str], list[str]]:
    """Doubts and notes on masks of one class alone and on masks that come twice."""
    doubts, notes = [], []
    count, constant = len(set(tally.names)), tally.constant
    if constant:
        classes = ", ".join(f"class {k}: {n}" for k, n in sorted(Counter(constant.values()).items()))
        line = f"{len(constant)} of {count} masks hold one class alone ({classes}): {list_names(list(constant))}"
        (doubts if len(constant) > count / 2 else notes).append(line)
        if not doubts:
            doubts += _judge_end(constant, file_names, batch_size)
    twice = [name for names in tally.hashes.values() if len(names) > 1 for name in names]
    if twice:
        line = f"{len(twice)} masks are the same as another image's: {list_names(twice)}; was one batch written twice?"
        (doubts if len(twice) > max(2, 0.05 * count) else notes).append(line)
    return doubts, notes


def _judge_end(constant: dict[str, int], file_names: Sequence[str], batch_size: int) -> list[str]:
    """A last batch that never was written into an array of zeros."""
    run = 0
    while run < len(file_names) and constant.get(file_names[-1 - run]) == 0:
        run += 1
    others = list(constant.values()).count(0) - run
    chance = ((others + 1) / (len(file_names) - run + 2)) ** run
    left_over = batch_size and run and run == len(file_names) % batch_size
    if not left_over and (run < 2 or chance > LEFT_OVER_BY_CHANCE):
        return []
    return [
        f"the last {run} of {len(file_names)} masks are background alone, {others} of the others: "
        "was the last incomplete batch never written into an array of zeros?"
    ]


def _judge_shares(found: np.ndarray, train: np.ndarray) -> list[str]:
    lines = [
        f"class {k} has {found[k]:.1%} of the pixels where train has {train[k]:.1%}"
        for k in range(len(train))
        if k and found[k] > 5 * train[k] + 0.05
    ]
    if found[1:].sum() < train[1:].sum() / 5:
        lines.append(
            f"all classes but 0 have {found[1:].sum():.1%} of the pixels where train has {train[1:].sum():.1%}"
        )
    if _distance(found, train) > FAR:
        shift = next((s for s in (1, -1) if _distance(np.roll(found, s), train) < _distance(found, train) / 3), 0)
        hint = f"; with every id {shift:+d} they would match: are the ids those of the categories?" if shift else ""
        lines.append(f"class shares are far from train's (distance {_distance(found, train):.2f} of at most 1){hint}")
    return lines


def _distance(shares: np.ndarray, others: np.ndarray) -> float:
    """Total variation: 0 the same, 1 nothing in common."""
    return float(np.abs(shares - others).sum() / 2)


# Write a submission from predictions: checked first, put in place whole or not at all, with its record beside it.


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
