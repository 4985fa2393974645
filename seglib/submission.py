"""Submissions: the CSV that a leaderboard takes, with every problem found before it costs one of the day's."""

import csv
import io
import math
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from seglib.data.coco import CocoData, load_coco
from seglib.data.masks import paint_mask
from seglib.errors import InputError, InputErrors, unknown_name
from seglib.files import hash_file, read_file, replacing, require_file, write_json

COLUMNS = ["image_id", "PredictionString"]
RESIZINGS = {
    "nearest": "argmax at the model's size, then nearest",
    "probabilities": "probabilities resized bilinearly, then argmax",
}
BATCH_SIZES = (4, 8, 16, 32, 64, 128)  # tried where the prediction's is not known
MISSPELT: dict[str, Callable[[str], str]] = {
    "lack their folder": lambda name: PurePosixPath(name).name,
    "have backslashes": lambda name: name.replace("/", "\\"),
    "lack their extension": lambda name: str(PurePosixPath(name).with_suffix("")),
    "are in lower case": str.lower,
    "are in upper case": str.upper,
    "begin with './'": lambda name: f"./{name}",
    "end in a space": lambda name: f"{name} ",
}
SQUEEZED = "one line of a mask, which is what squeeze() on a batch of one leaves; index the batch instead"
ROWS_AT_ONCE = 16  # a row is 150 KB of text and 64 KB of mask
HEADER = 1000  # bytes that the first line of a submission has at most
EXCEL_CELL = 32_767  # characters that a spreadsheet keeps of a cell
FAR = 0.3  # total variation distance of class shares: half the sum of their differences
LEFT_OVER_BY_CHANCE = 1e-3  # a run of background masks at the end that is less likely than this is an unwritten batch
_ID_TEXTS = np.array([f"{i} " for i in range(256)], dtype="S4")  # padded with NUL


class Verdict(NamedTuple):
    """What is wrong with a submission, one line each."""

    errors: list[str]  # the leaderboard refuses the file, or scores it wrongly; nothing overrides them
    doubts: list[str]  # the file can be read, but hardly is what was meant; `force` overrides them
    notes: list[str]  # worth a look; they refuse nothing
    shares: np.ndarray  # (num_classes,) float64, of each class in the pixels of the masks that are right

    def refuse(self, where: str | Path, force: bool = False) -> None:
        """Raise InputErrors with all errors, and all doubts unless `force`."""
        doubts = [] if force else [f"{line}; --force (force=True) takes it as it is" for line in self.doubts]
        if lines := self.errors + doubts:
            raise InputErrors(f"{where}: {line}" for line in lines)


def write_submission(
    path: str | Path,
    predictions: Iterable[tuple[str, np.ndarray]],
    file_names: Sequence[str],
    num_classes: int,
    *,
    size: int = 256,
    resizing: str = "nearest",
    sources: Sequence[Mapping[str, object]] = (),
    val_score: float | None = None,
    force: bool = False,
    **checks: Any,
) -> dict[str, object]:
    """Check predictions, then write `path` (.csv) and its record, the same path with .json; masks wait on disk.

    Parameters
    ----------
    predictions : file names, in any order, with a mask (H, W) of class ids, or with probabilities (C, H, W) float where
        `resizing` is "probabilities".
    file_names : the images wanted, in the order wanted; see `read_file_names`.
    num_classes : with the background.
    size : side of the masks in the file [px].
    resizing : {"nearest", "probabilities"}
    sources : the models behind it, each with `run` and `weights_sha256`.
    val_score : pooled mIoU on val, 0..1, if known.
    force : write in spite of doubts (not of errors).
    checks : train_shares and batch_size, as `validate_submission` takes them.

    Returns
    -------
    The record: all of these, `hash` of the file, `class_shares`, `doubts` (overridden) and `notes`.

    Raises
    ------
    InputErrors
        All that is wrong with the rows, one line each; what was at `path` before stays as it was.
    """
    path = Path(path)
    if resizing not in RESIZINGS:
        raise InputError(unknown_name("resizing", resizing, RESIZINGS))
    if path.suffix.lower() != ".csv":
        raise InputError(f"{path}: required a name that ends in .csv, since the record beside it ends in .json")
    if val_score is not None and not 0 <= val_score <= 1:
        raise InputError(f"val_score: required a number from 0 to 1, or None, got {val_score}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent) as file:
        masks = np.memmap(file, np.uint8, "w+", shape=(max(1, len(file_names)), size, size))
        rows = _place(predictions, file_names, masks, resizing)
        verdict = validate_submission(rows, file_names, num_classes, size=size, any_order=True, **checks)
        verdict.refuse(path, force)
        write_rows(path, zip(file_names, masks, strict=True))
    record = {
        "file": path.name, "hash": hash_file(path), "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "images": len(file_names), "size": size, "num_classes": num_classes, "resizing": RESIZINGS[resizing],
        "sources": [dict(source) for source in sources], "val_score": val_score,
        "class_shares": verdict.shares.tolist(), "doubts": verdict.doubts, "notes": verdict.notes,
    }  # fmt: skip
    write_json(path.with_suffix(".json"), record)
    return record


def _place(
    predictions: Iterable[tuple[str, np.ndarray]], file_names: Sequence[str], masks: np.ndarray, resizing: str
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each row for the check, and keep its mask at its place in the order; what is no mask is for the check to name."""
    places, size = {name: place for place, name in enumerate(file_names)}, masks.shape[1]
    for name, prediction in predictions:
        mask = np.asarray(prediction)
        if resizing == "probabilities":
            if mask.ndim != 3 or mask.dtype.kind != "f" or not np.isfinite(mask).all():
                got = f"{mask.dtype} {mask.shape}"
                raise InputError(f"resizing 'probabilities': required finite floats (C, H, W), got {got}")
            mask = resize_probabilities(mask, size)
        elif mask.ndim == 2 and mask.size:
            mask = resize_nearest(mask, size)
        if name in places and mask.shape == (size, size) and mask.dtype.kind in "iu":
            masks[places[name]] = mask.astype(np.uint8)  # the check refuses values that this cuts off
        yield name, mask


def write_rows(path: str | Path, rows: Iterable[tuple[str, np.ndarray]]) -> None:
    """Write file names and masks (S, S) uint8, one row in memory at a time; whole or not at all."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(",".join(COLUMNS).encode() + b"\n")
        for name, mask in rows:
            quoted = io.StringIO()
            csv.writer(quoted, lineterminator="").writerow([name])
            file.writelines((quoted.getvalue().encode(), b",", encode_mask(mask), b"\n"))


def encode_mask(mask: np.ndarray) -> bytes:
    """The PredictionString of a mask (S, S) uint8: ids row by row, one space between."""
    return _ID_TEXTS[mask].tobytes().translate(None, b"\0")[:-1]


def resize_nearest(mask: np.ndarray, size: int) -> np.ndarray:
    """A mask (H, W), or an image (H, W, 3), at (size, size), as torch's "nearest": from 512 to 256 it is `mask[::2, ::2]`."""
    rows, columns = (np.arange(size) * side // size for side in mask.shape[:2])
    return mask[np.ix_(rows, columns)]


def resize_probabilities(probabilities: np.ndarray, size: int) -> np.ndarray:
    """The mask (size, size) uint8 of probabilities (C, H, W): resized bilinearly between pixel centres, then argmax."""
    resized = [cv2.resize(np.asarray(p, np.float32), (size, size)) for p in probabilities]  # bilinear
    return np.argmax(resized, axis=0).astype(np.uint8)


def read_rows(path: Path) -> Iterator[tuple[str, str]]:
    """File names and PredictionStrings as they are, a few rows in memory at a time; InputError for what is no such CSV."""
    try:
        require_file(path, times=0)
        if len(header := read_file(path, HEADER).partition(b"\n")[0]) == HEADER:  # a million columns take a minute
            raise InputError(
                f"{path}: required the columns {', '.join(COLUMNS)}, got {header[:80].decode(errors='replace')}..."
            )
        with pd.read_csv(path, chunksize=ROWS_AT_ONCE, dtype=str, keep_default_na=False) as chunks:
            for chunk in chunks:
                if list(chunk.columns) != COLUMNS:
                    found = ", ".join(str(column)[:40] for column in chunk.columns[:4])
                    raise InputError(f"{path}: required the columns {', '.join(COLUMNS)}, got {found}")
                if not isinstance(chunk.index, pd.RangeIndex):
                    raise InputError(f"{path}: required the columns {', '.join(COLUMNS)}, got rows with more fields")
                yield from chunk.itertuples(index=False, name=None)
    except FileNotFoundError:
        raise InputError(f"{path}: required a submission CSV, got no such file") from None
    except OSError as error:
        raise InputError(f"{path}: required a submission CSV, got: {error.strerror or error}") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: required a submission CSV, got {error}") from None


def read_file_names(path: str | Path) -> list[str]:
    """The images that a leaderboard wants, in its order: of its sample submission (.csv) or of the test set's COCO file.

    Raises
    ------
    InputError
        The file cannot be read, lists no image, or one twice.
    """
    path = Path(path)
    if path.suffix.lower() == ".csv":
        names = [name for name, _ in read_rows(path)]
    else:
        names = load_coco(path.parent, path.name).images["file_name"].tolist()
    if not names:
        raise InputError(f"{path}: required at least one image, got none")
    (twice, count), *_ = Counter(names).most_common(1)
    if count > 1:
        raise InputError(f"{path}: required each image once, got {twice} twice; download the file again")
    return names


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
    """Find all that is wrong with a submission, one row in memory at a time; the options of `write_submission`.

    Parameters
    ----------
    source : a CSV, or pairs of a file name and its PredictionString or mask (size, size) of whole numbers.
    any_order : rows need not be in the order of `file_names`.
    """
    shares = None if train_shares is None else np.asarray(train_shares, np.float64)
    if shares is not None and not (shares.shape == (num_classes,) and shares.min() >= 0 and 0 < shares.sum() < np.inf):
        raise InputError(f"train_shares: required {num_classes} numbers from 0, one per class, got {shares.tolist()}")
    errors: list[str] = []
    rows = source if not isinstance(source, str | Path) else _read(Path(source), errors)
    found, pixels = [], np.zeros(256, np.int64)
    for name, content in rows:
        mask, words = parse_row(content, size, num_classes)
        counts = np.bincount(mask.ravel(), minlength=256)
        pixels += counts
        only = counts.argmax() if mask.size and counts.max() == mask.size else -1
        found.append((name, words, only, hash(mask.tobytes())))
    table = pd.DataFrame(found, columns=["name", "words", "only", "hash"])  # a few bytes of each row
    if found or not errors:  # of a file that cannot be read, all rows are missing: no news
        errors += find_name_problems(table["name"].tolist(), file_names, batch_size, any_order)
    broken = table[table["words"] != ""]
    for _, alike in broken.groupby(broken["words"].str.replace(r"\d+", "#", regex=True), sort=False):
        errors.append(f"{list_names(alike['name'].tolist())}: {alike['words'].iloc[0]}")
    doubts, notes = _judge_masks(table, file_names, batch_size)
    found = pixels[:num_classes] / max(1, pixels.sum())
    if shares is not None and pixels.any():
        doubts += _judge_shares(found, shares / shares.sum())
    return Verdict(errors, doubts, notes, found)


def _read(path: Path, errors: list[str]) -> Iterator[tuple[str, str]]:
    """The rows as far as the file can be read; what ends that goes to the other problems."""
    try:
        yield from read_rows(path)
    except InputError as error:
        errors.append(str(error).removeprefix(f"{path}: "))


def parse_row(content: str | np.ndarray, size: int, num_classes: int) -> tuple[np.ndarray, str]:
    """The mask (size, size) uint8 of a PredictionString or of an array, and ""; or an empty one, and what is wrong."""
    ids, words = (content, _word_array(content, size)) if isinstance(content, np.ndarray) else _parse_text(content)
    words = words or _word_length(ids.size, size)
    if not words and (ids.min() < 0 or ids.max() >= num_classes):
        words = f"ids from {ids.min()} to {ids.max()} where 0 to {num_classes - 1} are required"
        words += "; 255 marks ignored pixels in training masks, and is no prediction" * bool(ids.max() == 255)
    if not words and ids is content and ids.shape != (size, size):
        words = f"a mask of shape {ids.shape} where {(size, size)} is required"
    if words and len(content) == EXCEL_CELL:
        words = f"a text cut at {EXCEL_CELL} characters, as spreadsheets do; write the file again, do not save it there"
    mask = np.zeros((0, 0), np.uint8) if words else ids.astype(np.uint8).reshape(size, size)
    if isinstance(content, str) and not words and encode_mask(mask) != content.encode():
        words = "more between, before or after the ids than one space, or zeros before a number; write '0 0 11'"
    return mask, words


def _word_array(array: np.ndarray, size: int) -> str:
    if array.dtype.kind not in "iu":
        return f"{array.dtype} values where whole numbers are required; take the argmax, then cast to uint8"
    if array.ndim == 3 and array.shape[0] == 1 and array.size == size * size:
        return f"a mask of shape {array.shape}, with the batch's axis; write mask[0]"
    return f"a mask of shape {array.shape}: {SQUEEZED}" if array.ndim == 1 and len(array) < size * size else ""


def _parse_text(text: str) -> tuple[np.ndarray, str]:
    """The ids (P,) int64 of a PredictionString and "", or none and what is wrong."""
    try:
        if text.strip():  # of "" numpy would make -1
            return np.fromstring(text, sep=" ", dtype=np.int64), ""
    except ValueError:
        pass  # what is wrong is looked for below
    tokens = text.replace(",", " ").split()
    odd = next((token for token in tokens if not token.isascii() or not token.isdigit()), "")
    if not tokens:
        words = "an empty PredictionString"
    elif "[" in text or "..." in text:
        words = "brackets or dots of a printed array; write ' '.join(map(str, mask.ravel()))"
    elif not odd:
        words = "commas between the ids where one space is required"
    elif odd.lower() in ("nan", "none", "null", "<na>"):
        words = f"{odd} where a whole number is required: a prediction that was never made"
    elif re.fullmatch(r"[-+.e\d]+", odd, re.IGNORECASE):
        words = f"{odd[:20]} where a whole number is required; take the argmax, then cast to uint8"
    else:
        words = f"{odd[:20]!r} where a whole number is required"
    return np.zeros(0, np.int64), words


def _word_length(count: int, size: int) -> str:
    required, side = f"{count} ids where {size * size} are required", math.isqrt(count)
    if count == size * size:
        return ""
    if count == size:
        return f"{required}: {SQUEEZED}"
    if side * side == count:
        return f"{required}: {side} x {side} px, not resized to {size} x {size}"
    if count and count % (size * size) == 0:
        return f"{required}: {count // (size * size)} masks in one row, or probabilities without the argmax"
    return f"{required} ({size} x {size} px){': the text stops early' if count < size * size else ''}"


def find_name_problems(
    names: Sequence[str], required: Sequence[str], batch_size: int = 0, any_order: bool = False
) -> list[str]:
    """One line for each kind of problem of a submission's file names: missing, extra, twice, misspelt, out of order."""
    if not names:
        return [f"required {len(required)} rows, got none"]
    given, wanted = Counter(names), set(required)
    missing = [name for name in required if name not in given]
    extra = [name for name in given if name not in wanted]
    twice = [name for name, count in given.items() if count > 1]
    if line := _explain_spelling(missing, extra):
        return [line]
    lines = [_word_missing(missing, required, batch_size)] if missing else []
    if extra:
        lines.append(f"{_rows(len(extra))} of images that are not asked for: {list_names(extra)}; leave them out")
    if twice:
        lines.append(f"{_rows(len(twice), 'image')} with more than one row: {list_names(twice)}; keep one of each")
    wrong = [] if lines or any_order else [row for row, name in enumerate(names) if name != required[row]]
    if wrong:
        how, row = " (sorted by name)" if list(names) == sorted(names) else "", wrong[0]
        lines.append(
            f"{len(wrong)} of {len(required)} rows are out of order{how}: row {row + 1} is {names[row]} where "
            f"{required[row]} is required; write them in the sample's order"
        )
    return lines


def _explain_spelling(missing: Sequence[str], extra: Sequence[str]) -> str:
    """Names that are all the required ones, written in another way."""
    if not missing or len(extra) != len(missing):
        return ""
    where = f"got {extra[0]!r} where {missing[0]!r} is required"
    if all(name.strip().isdecimal() for name in extra):
        return f"{len(extra)} image_ids are numbers: {where}; write the file_name of the test set's images"
    how = [words for words, change in MISSPELT.items() if set(map(change, missing)) == set(extra)]
    if all(any(name.endswith(f"/{right}") for name in extra) for right in missing):
        how.append("have a folder before them")
    return f"{len(extra)} image_ids {how[0]}: {where}; write each file_name as the test set has it" if how else ""


def _word_missing(missing: Sequence[str], required: Sequence[str], batch_size: int) -> str:
    count, of = len(missing), len(required)
    fitting = [size for size in ([batch_size] if batch_size else BATCH_SIZES) if of % size == count]
    batches = f"batches of {' or '.join(map(str, fitting))} leave over"
    if list(missing) != list(required[-count:]):
        cause = f"; {count} is what {batches}: a shuffled loader with drop_last=True?" if fitting else ""
        return f"{_rows(count)} missing: {list_names(missing)}{cause}"
    cause = (
        f"what {batches}, the last incomplete batch (drop_last=True?)" if fitting else "did the prediction stop early?"
    )
    return f"the last {_rows(count)} of {of} missing, from {missing[0]} on: {cause}"


def list_names(names: Sequence[str]) -> str:
    """At most three names, and how many more."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _rows(count: int, what: str = "row") -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _judge_masks(table: pd.DataFrame, file_names: Sequence[str], batch_size: int) -> tuple[list[str], list[str]]:
    """Doubts and notes on masks of one class alone and on masks that come twice."""
    doubts, notes, count = [], [], table["name"].nunique()
    constant = table[table["only"] >= 0].set_index("name")["only"].to_dict()
    if constant:
        classes = ", ".join(f"class {k}: {n}" for k, n in sorted(Counter(constant.values()).items()))
        line = f"{len(constant)} of {count} masks hold one class alone ({classes}): {list_names(list(constant))}"
        if len(constant) > count / 2:
            doubts.append(line)
        else:
            notes.append(line)
            doubts += _judge_end(constant, file_names, batch_size)
    others = table[(table["only"] < 0) & (table["words"] == "")]
    twice = others.loc[others["hash"].duplicated(keep=False), "name"].tolist()
    if twice:
        line = f"{len(twice)} masks are the same as another image's: {list_names(twice)}; was one batch written twice?"
        (doubts if len(twice) > max(2, 0.05 * count) else notes).append(line)
    return doubts, notes


def _judge_end(constant: dict[str, int], file_names: Sequence[str], batch_size: int) -> list[str]:
    """A last batch that never was written into an array of zeros."""
    empty = [constant.get(name) == 0 for name in reversed(file_names)]
    run = empty.index(False) if False in empty else len(empty)
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
    much = [k for k in range(1, len(train)) if found[k] > 5 * train[k] + 0.05]
    lines = [f"class {k} has {found[k]:.1%} of the pixels where train has {train[k]:.1%}" for k in much]
    here, there = found[1:].sum(), train[1:].sum()
    if here < there / 5:
        lines.append(f"all classes but 0 have {here:.1%} of the pixels where train has {there:.1%}")
    distances = {shift: float(np.abs(np.roll(found, shift) - train).sum() / 2) for shift in (0, 1, -1)}
    if distances[0] > FAR:
        fits = next((shift for shift in (1, -1) if distances[shift] < distances[0] / 3), 0)
        hint = f"; with every id {fits:+d} they would match: are the ids those of the categories?" if fits else ""
        lines.append(f"class shares are far from train's (distance {distances[0]:.2f} of at most 1){hint}")
    return lines


def count_shares(data: CocoData, max_images: int = 500) -> np.ndarray:
    """(num_classes,) float64, pixel share of each class in a COCO file, from at most so many images evenly spread."""
    rows = np.unique(np.linspace(0, len(data.images) - 1, min(max_images, len(data.images))).astype(np.int64))
    by_image, pixels = data.annotations.groupby("image_id").indices, np.zeros(256)
    for image in data.images.iloc[rows].itertuples():
        annotations = data.annotations.iloc[by_image.get(image.image_id, [])]
        mask = paint_mask(annotations, image.height, image.width, "area", "class")
        pixels += np.bincount(mask.ravel(), minlength=256) / mask.size
    return pixels[: data.num_classes] / len(rows)
