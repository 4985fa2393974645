"""A submission's CSV: names, run-length rows, reading."""

import csv
import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import pandas as pd

from seglib.data.coco import load_coco
from seglib.errors import InputError
from seglib.files import replacing

# The file names of a submission against those required: missing, extra, twice, misspelt, out of order.


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


def find_name_problems(
    names: Sequence[str], required: Sequence[str], batch_size: int = 0, any_order: bool = False
) -> list[str]:
    """One line for each kind of problem.

    Parameters
    ----------
    names, required : in their orders
    batch_size : of the prediction [images], 0 where unknown
    """
    if not names:
        return [f"required {len(required)} rows, got none"]
    given, wanted = set(names), set(required)
    missing = [name for name in required if name not in given]
    extra = [name for name in dict.fromkeys(names) if name not in wanted]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if line := _explain_spelling(missing, extra):
        return [line]
    lines = []
    if missing:
        lines.append(_word_missing(missing, required, batch_size))
    if extra:
        lines.append(f"{_rows(len(extra))} of images that are not asked for: {list_names(extra)}; leave them out")
    if twice:
        lines.append(f"{_rows(len(twice), 'image')} with more than one row: {list_names(twice)}; keep one of each")
    if not lines and not any_order:
        lines += _word_order(names, required)
    return lines


def list_names(names: Sequence[str]) -> str:
    """At most three names, and how many more."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _explain_spelling(missing: Sequence[str], extra: Sequence[str]) -> str:
    """Names that are all the required ones, written in another way."""
    if not missing or len(extra) != len(missing):
        return ""
    where = f"got {extra[0]!r} where {missing[0]!r} is required"
    if all(name.strip().isdecimal() for name in extra):
        return f"{len(extra)} image_ids are numbers: {where}; write the file_name of the test set's images"
    for words, change in MISSPELT.items():
        if set(map(change, missing)) == set(extra):
            return f"{len(extra)} image_ids {words}: {where}; write each file_name as the test set has it"
    if all(any(name.endswith(f"/{right}") for name in extra) for right in missing):
        return f"{len(extra)} image_ids have a folder before them: {where}; write each file_name as the test set has it"
    return ""


def _word_missing(missing: Sequence[str], required: Sequence[str], batch_size: int) -> str:
    count, of = len(missing), len(required)
    fitting = [size for size in ([batch_size] if batch_size else BATCH_SIZES) if of % size == count]
    batches = f"batches of {' or '.join(map(str, fitting))}"
    if list(missing) != list(required[-count:]):
        cause = f"; {count} is what {batches} leave over: a shuffled loader with drop_last=True?" if fitting else ""
        return f"{_rows(count)} missing: {list_names(missing)}{cause}"
    line = f"the last {_rows(count)} of {of} missing, from {missing[0]} on"
    if fitting:
        return f"{line}: what {batches} leave over, the last incomplete batch (drop_last=True?)"
    return f"{line}: did the prediction stop early?"


def _word_order(names: Sequence[str], required: Sequence[str]) -> list[str]:
    wrong = [row for row, (name, right) in enumerate(zip(names, required, strict=True)) if name != right]
    if not wrong:
        return []
    how = " (sorted by name)" if list(names) == sorted(names) else ""
    first = wrong[0]
    return [
        f"{len(wrong)} of {len(required)} rows are out of order{how}: row {first + 1} is {names[first]} where "
        f"{required[first]} is required; write them in the sample's order"
    ]


def _rows(count: int, what: str = "row") -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


# One row of a submission: its mask, or in a few words what is wrong with it.


SQUEEZED = "one line of a mask, which is what squeeze() on a batch of one leaves; index the batch instead"
EXCEL_CELL = 32_767  # characters that a spreadsheet keeps of a cell


def parse_row(content: str | np.ndarray, size: int, num_classes: int) -> tuple[np.ndarray | None, str]:
    """The mask (size, size) uint8 of a PredictionString or of an array, and "", or None and what is wrong."""
    if isinstance(content, np.ndarray):
        return _parse_array(content, size, num_classes)
    ids = _parse_ids(content)
    words = _word_text(content) if ids is None else _word_length(ids.size, size) or _word_range(ids, num_classes)
    if ids is None or words:
        if len(content) == EXCEL_CELL:
            words = (
                f"a text cut at {EXCEL_CELL} characters, as spreadsheets do; write the file again, do not save it there"
            )
        return None, words
    mask = ids.astype(np.uint8).reshape(size, size)
    if encode_mask(mask) != content.encode():
        return None, "more between, before or after the ids than one space, or zeros before a number; write '0 0 11'"
    return mask, ""


def _parse_array(array: np.ndarray, size: int, num_classes: int) -> tuple[np.ndarray | None, str]:
    if array.dtype.kind not in "iu":
        return None, f"{array.dtype} values where whole numbers are required; take the argmax, then cast to uint8"
    if array.ndim == 3 and array.shape[0] == 1 and array.size == size * size:
        return None, f"a mask of shape {array.shape}, with the batch's axis; write mask[0]"
    if array.ndim == 1 and array.size < size * size:
        return None, f"a mask of shape {array.shape}: {SQUEEZED}"
    words = _word_length(array.size, size)
    if not words and array.shape != (size, size):
        words = f"a mask of shape {array.shape} where {(size, size)} is required"
    words = words or _word_range(array, num_classes)
    return (None, words) if words else (array.astype(np.uint8), "")


def _parse_ids(text: str) -> np.ndarray | None:
    """Int64 ids, or None where the text has something else in it."""
    if not text.strip():
        return None  # np.fromstring would give -1
    try:
        return np.fromstring(text, sep=" ", dtype=np.int64)
    except ValueError:
        return None


def _word_text(text: str) -> str:
    tokens = text.replace(",", " ").split()
    if not tokens:
        return "an empty PredictionString"
    if "[" in text or "..." in text:
        return "brackets or dots of a printed array; write ' '.join(map(str, mask.ravel()))"
    odd = next((token for token in tokens if not token.isascii() or not token.isdigit()), "")
    if not odd:
        return "commas between the ids where one space is required"
    if odd.lower() in ("nan", "none", "null", "<na>"):
        return f"{odd} where a whole number is required: a prediction that was never made"
    try:
        float(odd)
    except ValueError:
        return f"{odd[:20]!r} where a whole number is required"
    return f"{odd[:20]} where a whole number is required; take the argmax, then cast to uint8"


def _word_length(count: int, size: int) -> str:
    required = f"{count} ids where {size * size} are required"
    side = math.isqrt(count)
    if count == size * size:
        return ""
    if count == size:
        return f"{required}: {SQUEEZED}"
    if side * side == count:
        return f"{required}: {side} x {side} px, not resized to {size} x {size}"
    if count and count % (size * size) == 0:
        return f"{required}: {count // (size * size)} masks in one row, or probabilities without the argmax"
    return f"{required} ({size} x {size} px){': the text stops early' if count < size * size else ''}"


def _word_range(ids: np.ndarray, num_classes: int) -> str:
    low, high = int(ids.min()), int(ids.max())
    if low >= 0 and high < num_classes:
        return ""
    ignored = "; 255 marks ignored pixels in training masks, and is no prediction" if high == 255 else ""
    return f"ids from {low} to {high} where 0 to {num_classes - 1} are required{ignored}"


# Read and write submissions: a CSV with one mask per row, as the leaderboard takes it.


COLUMNS = ["image_id", "PredictionString"]
ROWS_AT_ONCE = 16  # a row is 150 KB of text and 64 KB of mask
_ID_TEXTS = np.array([f"{i} " for i in range(256)], dtype="S4")  # padded with NUL


def read_submission(
    path: str | Path, size: int = 256, file_names: Sequence[str] | None = None
) -> tuple[list[str], np.ndarray]:
    """Read the masks of a submission, a few rows of text at a time.

    Parameters
    ----------
    path : CSV with columns image_id (a file name) and PredictionString (size * size ids, row by row, spaces between).
    size : side of the masks [px].
    file_names : the images wanted, in this order; all rows in the file's order where None.

    Returns
    -------
    file names, and class ids (N, size, size) uint8

    Raises
    ------
    InputError
        The file is missing or no such CSV, a mask is not size x size ids from 0 to 255, an image comes twice or not.
    """
    masks: dict[str, np.ndarray] = {}
    for name, text in read_rows(Path(path)):
        if name in masks:
            raise InputError(f"{path}: required one row an image, got {name} twice; keep one of them")
        masks[name] = _parse_mask(f"{path} [{name}]", text, size)
    if not masks:
        raise InputError(f"{path}: required at least one row, got only the header")
    names = list(masks) if file_names is None else list(file_names)
    missing = [name for name in names if name not in masks]
    if missing:
        raise InputError(f"{path}: required a row for each image, {len(missing)} missing: {', '.join(missing[:3])}")
    return names, np.stack([masks[name] for name in names])


def read_rows(path: Path) -> Iterator[tuple[str, str]]:
    """File names and PredictionStrings as they are, a few rows in memory at a time.

    Raises
    ------
    InputError
        The file is missing, not text, or no CSV of these two columns.
    """
    try:
        with pd.read_csv(path, chunksize=ROWS_AT_ONCE, dtype=str, keep_default_na=False, index_col=False) as chunks:
            for chunk in chunks:
                if list(chunk.columns) != COLUMNS:
                    found = ", ".join(str(column)[:40] for column in chunk.columns[:4])
                    raise InputError(f"{path}: required the columns {', '.join(COLUMNS)}, got {found}")
                yield from chunk.itertuples(index=False, name=None)
    except FileNotFoundError:
        raise InputError(f"{path}: required a submission CSV, got no such file") from None
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
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{path}: required each image once, got {twice} twice; download the file again")
    return names


def write_rows(path: str | Path, rows: Iterable[tuple[str, np.ndarray]]) -> None:
    """Write file names and masks (S, S) uint8, one row in memory at a time; whole or not at all."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(",".join(COLUMNS).encode() + b"\n")
        for name, mask in rows:
            file.writelines((_quote(name), b",", encode_mask(mask), b"\n"))


def encode_mask(mask: np.ndarray) -> bytes:
    """The PredictionString of a mask (S, S) uint8: ids row by row, one space between."""
    return _ID_TEXTS[mask].tobytes().translate(None, b"\0")[:-1]


def resize_nearest(mask: np.ndarray, size: int) -> np.ndarray:
    """A mask (H, W) at (size, size): pixel i shows the source's pixel floor(i * H / size), as torch's "nearest".

    From 512 to 256 this is `mask[::2, ::2]`; a mask of this size stays as it is.
    """
    rows, columns = (np.arange(size) * side // size for side in mask.shape)
    return mask[np.ix_(rows, columns)]


def resize_probabilities(probabilities: np.ndarray, size: int) -> np.ndarray:
    """The mask (size, size) uint8 of probabilities (C, H, W): resized first, bilinearly between pixel centres, then argmax.

    From 512 to 256 each pixel takes the mean of four, where `resize_nearest` takes their upper left one.
    """
    resized = [cv2.resize(np.asarray(p, np.float32), (size, size)) for p in probabilities]  # bilinear
    return np.argmax(resized, axis=0).astype(np.uint8)


def _quote(name: str) -> bytes:
    """A name as a CSV field; csv's own writer decides which need quotes."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow([name])
    return text.getvalue().encode()


def _parse_mask(where: str, text: str, size: int) -> np.ndarray:
    try:
        ids = np.fromstring(text, sep=" ", dtype=np.int64)
    except ValueError:
        raise InputError(f"{where}: PredictionString must be whole numbers with spaces between") from None
    if len(ids) != size * size:
        raise InputError(f"{where}: required {size * size} ids ({size} x {size} px), got {len(ids)}; resize the masks")
    if ids.min() < 0 or ids.max() > 255:
        raise InputError(f"{where}: required ids from 0 to 255, got {ids.min()} to {ids.max()}")
    return ids.astype(np.uint8).reshape(size, size)
