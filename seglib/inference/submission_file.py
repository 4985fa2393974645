"""Read a submission: a CSV with a mask a row, as the leaderboard takes it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from seglib.errors import InputError

COLUMNS = ["image_id", "PredictionString"]
ROWS_AT_ONCE = 16  # a row is 150 KB of text and 64 KB of mask


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
    for name, text in _read_rows(Path(path)):
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


def _read_rows(path: Path) -> Iterator[tuple[str, str]]:
    try:
        with pd.read_csv(path, chunksize=ROWS_AT_ONCE, dtype=str, keep_default_na=False) as chunks:
            for chunk in chunks:
                if list(chunk.columns) != COLUMNS:
                    found = ", ".join(str(column)[:40] for column in chunk.columns[:4])
                    raise InputError(f"{path}: required the columns {', '.join(COLUMNS)}, got {found}")
                yield from chunk.itertuples(index=False, name=None)
    except FileNotFoundError:
        raise InputError(f"{path}: required a submission CSV, got no such file") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: required a submission CSV, got {error}") from None


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
