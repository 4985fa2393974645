"""Read and write submissions: a CSV with a mask a row, as the leaderboard takes it."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from seglib.data.coco import load_coco
from seglib.errors import InputError
from seglib.files import replacing

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
