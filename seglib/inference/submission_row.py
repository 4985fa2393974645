"""One row of a submission: its mask, or in a few words what is wrong with it."""

import math

import numpy as np

from seglib.inference.submission_file import encode_mask

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
