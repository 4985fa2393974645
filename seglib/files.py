"""Files that are never half written, hashes of content, numbered folders, arrays on disk, and where all of it is kept.

A dry run of a grid imports this file and must answer in a second: NumPy is imported where an array is written.
"""

import errno
import hashlib
import io
import itertools
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISREG

from seglib.errors import InputError

PROJECT = Path(__file__).resolve().parents[1]
RUNS_AT_ONCE = "SEGLIB_RUNS_AT_ONCE"  # in a run's environment: how many run_grid.py executes on this machine at a time
MISSING = ""  # the hash of a file that is not there
SETTLED = 2.0  # [s] a file changed more recently could change again within the clock tick of its own timestamp


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


def find_free_folder(folder: Path, is_taken: Callable[[Path], bool] = Path.exists, first: int = 2) -> Path:
    """`folder`, or else `folder.2`, `folder.3`, ...: the first that is not taken; numbers start from `first`."""
    numbered = (folder.with_name(f"{folder.name}.{number}") for number in itertools.count(first))
    return next(path for path in itertools.chain([folder], numbered) if not is_taken(path))


@contextmanager
def require_space(folder: Path, needed: int, what: str, fix: str) -> Iterator[None]:
    """Refuse a disk on which fewer than `needed` bytes are free, or which gets full while the block writes.

    Parameters
    ----------
    folder : where the block writes.
    what, fix : for the words, such as "the pixel cache needs" and "delete old caches".
    """
    try:
        if needed > shutil.disk_usage(folder).free:
            raise OSError(errno.ENOSPC, "too little space")
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(folder).free
        raise InputError(f"{folder}: {what} {needed / 1e9:.2f} GB, got {free / 1e9:.2f} GB free; {fix}") from error


def array_header(shape: Sequence[int], descr: str) -> bytes:
    """The first bytes of a .npy file, behind which the rows of an array are written one by one.

    Parameters
    ----------
    descr : the type as NumPy spells it, `np.dtype("uint8").str`.
    """
    from numpy.lib.format import write_array_header_1_0

    header = io.BytesIO()
    write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": tuple(shape)})
    return header.getvalue()


def hash_file(path: str | Path) -> str:
    """Hex digest of a file's content (BLAKE2b, 16 bytes)."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def hash_text(text: str) -> str:
    """Hex digest of a text (BLAKE2b, 16 bytes)."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def hash_files(paths: Sequence[str | Path]) -> list[str]:
    """Hash the content of files, reading only those that changed since they were last hashed.

    Hashes are remembered in `cache_dir()`/file_hashes.json for as long as a file keeps its size, times and inode.
    A file written within the last 2 s is hashed and not remembered.

    Returns
    -------
    One hash per path, in order; "" where there is no such file.

    Raises
    ------
    InputError : a file exists and cannot be read, or the cache folder cannot be written.
    """
    paths = [os.path.abspath(path) for path in paths]
    known, started = _load_known(), time.time()
    with ThreadPoolExecutor() as pool:  # hashlib and file reads let go of the interpreter lock
        entries = dict(zip(paths, pool.map(lambda path: _entry(path, known.get(path)), paths), strict=True))
    settled = {path: entry for path, entry in entries.items() if entry and started - max(entry[1:3]) / 1e9 > SETTLED}
    if any(known.get(path) != entry for path, entry in settled.items()):
        _save_known(settled)
    return [entries[path][-1] if entries[path] else MISSING for path in paths]


def _entry(path: str, known: list | None) -> list | None:
    """[size, mtime_ns, ctime_ns, inode, hash] of a file, None where there is none."""
    try:
        stat = os.stat(path)
        stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]  # ctime sees what `cp -p` hides
        if known and known[:-1] == stamp:
            return known
        return [*stamp, hash_file(path)] if S_ISREG(stat.st_mode) else None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(f"{path}: the file cannot be read ({error.strerror}); mend its permissions") from error


def _known_path() -> Path:
    return cache_dir() / "file_hashes.json"


def _load_known() -> dict[str, list]:
    """Entries by absolute path; a file that is damaged is as good as none, everything is hashed again."""
    try:
        entries = json.loads(_known_path().read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(entries, dict):
        return {}
    return {path: entry for path, entry in entries.items() if isinstance(entry, list) and len(entry) == 5}


def _save_known(entries: dict[str, list]) -> None:
    """Add entries to what is known by now: two writers at once may lose an entry, never the file."""
    try:
        write_text(_known_path(), json.dumps(_load_known() | entries))
    except OSError as error:
        raise InputError(
            f"{_known_path()}: the cache folder must be writable, got {error.strerror}; set SEGLIB_CACHE to one that is"
        ) from error


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
