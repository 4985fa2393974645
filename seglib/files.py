"""Files that are never half written, content hashes, and where the project keeps what it makes."""

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]


def outputs_dir() -> Path:
    """The folder of all results, one folder per grid: in a checkout its own, elsewhere in the folder one stands in.

    `SEGLIB_OUTPUTS` names another one.
    """
    if os.environ.get("SEGLIB_OUTPUTS"):
        return Path(os.environ["SEGLIB_OUTPUTS"]).expanduser().resolve()
    return (PROJECT if (PROJECT / "run_grid.py").is_file() else Path.cwd()) / "outputs"


def cache_dir() -> Path:
    """What can be made again: decoded images, the synthetic data set. `SEGLIB_CACHE` moves it to another disk."""
    return Path(os.environ.get("SEGLIB_CACHE") or outputs_dir() / ".cache").expanduser().resolve()


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to `path` when the block ends without an error.

    A reader sees the old file or the whole new one, a killed process leaves the old one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes files for the owner alone
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def clear_parts(folder: str | Path) -> None:
    """Delete what `replacing` left half written in a folder when its process was killed; nobody else may write there."""
    for path in Path(folder).rglob(".*.part"):
        if path.is_file():
            path.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: object) -> None:
    """Write JSON (NaN as null, so that every reader can parse it), whole or not at all."""
    write_text(path, json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def hash_file(path: str | Path) -> str:
    """Hex digest of a file's content (BLAKE2b, 16 bytes)."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def hash_text(text: str) -> str:
    """Hex digest of a text (BLAKE2b, 16 bytes)."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
