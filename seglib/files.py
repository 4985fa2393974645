"""Files that are never half written and checked when read, hashes of content, numbered folders, arrays on disk.

A dry run of a grid imports this file and must answer in a second: NumPy is imported where an array is written.
"""

import csv
import errno
import fcntl
import hashlib
import io
import itertools
import json
import math
import os
import platform
import shutil
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any

import psutil

from seglib.errors import InputError

PROJECT = Path(__file__).resolve().parents[1]
RUNS_AT_ONCE = "SEGLIB_RUNS_AT_ONCE"  # in a run's environment: how many run_grid.py executes on this machine at a time
STOP_AFTER = "SEGLIB_STOP_AFTER"  # the same: the epoch at which it stops for now; 0 for its last
MISSING = ""  # the hash of a file that is not there
KNOWN = "file_hashes.json"  # in `cache_dir()`
CHECKSUM = "checksum"  # the last entry of the JSON objects that `write_json` writes
_LARGE = 2**26  # bytes of a file from which on it is compared with the memory that is free
SETTLED = 2.0  # [s] a file changed more recently could change again within the clock tick of its own timestamp


def outputs_dir() -> Path:
    """The folder of all results, one folder per grid: in a checkout its own, elsewhere in the folder one stands in.

    `SEGLIB_OUTPUTS` names another one.
    """
    if os.environ.get("SEGLIB_OUTPUTS"):
        return expand(os.environ["SEGLIB_OUTPUTS"]).resolve()
    return (PROJECT if (PROJECT / "run_grid.py").is_file() else Path.cwd()) / "outputs"


def cache_dir() -> Path:
    """What can be made again: decoded images, the synthetic data set. `SEGLIB_CACHE` moves it to another disk."""
    return expand(os.environ.get("SEGLIB_CACHE") or outputs_dir() / ".cache").resolve()


def expand(path: str | Path) -> Path:
    """A path with `~` as the home folder; of a user who is not known it stays as it is."""
    return Path(os.path.expanduser(path))  # which raises nothing


@contextmanager
def replacing(path: str | Path, make: Callable[..., str] | None = None, mode: int = 0o666) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to `path` when the block ends without an error.

    A reader sees the old file or the whole new one, a killed process leaves the old one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _held(make or _make_file, f".{path.name[:40]}.", ".part", path.parent) as temporary:
        yield temporary
        temporary.chmod(mode & ~_umask())  # mkstemp makes files for the owner alone
        os.replace(temporary, path)


def replacing_folder(folder: str | Path) -> AbstractContextManager[Path]:
    """The same for a folder, which may be there only if it is empty."""
    return replacing(folder, tempfile.mkdtemp, 0o777)


def private_folder(parent: str | Path | None = None) -> AbstractContextManager[Path]:
    """A temporary folder for the owner alone, in the usual place for such or in another; it goes when the block ends."""
    return _held(tempfile.mkdtemp, "", "", parent)


def private_file(folder: str | Path) -> AbstractContextManager[Path]:
    """The same for an empty file."""
    return _held(_make_file, ".", ".part", folder)


@contextmanager
def _held(make: Callable[..., str], prefix: str, suffix: str, parent: str | Path | None) -> Iterator[Path]:
    """What `make` makes under a name that `sweep` knows, locked for as long as this process uses it."""
    while True:
        path = Path(make(suffix, f"{prefix}{_mark()}", parent))
        handle = os.open(path, os.O_RDONLY)
        with suppress(OSError):  # a disk that cannot lock: nothing is swept there either
            fcntl.flock(handle, fcntl.LOCK_SH)
        if path.exists():  # not swept in the moment before it was locked
            break
        os.close(handle)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        os.close(handle)


def _make_file(suffix: str, prefix: str, parent: str | Path) -> str:
    handle, path = tempfile.mkstemp(suffix, prefix, parent)
    os.close(handle)
    return path


def _mark() -> str:
    """In the names of what is temporary: a lock may not reach the other hosts that share a folder."""
    return f"seglib-{hash_text(platform.node())[:6]}-"


def sweep(folder: str | Path) -> None:
    """Delete what this user's processes on this host were writing into a folder when they were killed.

    What a process that lives holds stays, as does what cannot be told.
    """
    try:
        with os.scandir(folder) as entries:
            named = [entry for entry in entries if _mark() in entry.name]
            mine = [entry for entry in named if entry.stat(follow_symlinks=False).st_uid == os.geteuid()]
    except OSError:  # no such folder, or another user's
        return
    for entry in mine:
        is_folder = entry.is_dir(follow_symlinks=False)
        with suppress(OSError):  # held; gone by now; on a disk that cannot lock
            handle = os.open(entry.path, (os.O_RDONLY if is_folder else os.O_RDWR) | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(entry.path) if is_folder else os.unlink(entry.path)
            finally:
                os.close(handle)


def clear_parts(folder: str | Path) -> None:
    """Delete what `replacing` left half written in a folder when its process was killed; nobody else may write there."""
    for path in Path(folder).rglob(".*.part"):
        if path.is_file():
            path.unlink()


def sign(path: str | Path) -> tuple[int, int, int] | None:
    """What another file of this name, or another content, would have otherwise; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all; half a surrogate, which UTF-8 cannot hold, as its escape."""
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))


FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a text begins that a spreadsheet would run


def write_table(path: str | Path, table: Any) -> None:
    """Write a pandas table as CSV, without an index that only counts; formulas get an apostrophe in front."""
    rows = csv.reader(io.StringIO(table.to_csv(index=type(table.index).__name__ != "RangeIndex")))
    coding = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
    with replacing(path) as temporary, open(temporary, "w", **coding) as file:
        csv.writer(file, lineterminator="\n").writerows([_defuse(cell) for cell in row] for row in rows)


def _defuse(cell: str) -> str:
    with suppress(ValueError):
        float(cell)
        return cell
    return f"'{cell}" if cell.startswith(FORMULA) else cell


def write_json(path: str | Path, value: object, indent: int | None = 2) -> None:
    """Write JSON (NaN as null, so that every reader can parse it), whole or not at all; an object with its checksum."""
    value = _finite(value)
    if isinstance(value, dict):
        rest = {name: item for name, item in value.items() if name != CHECKSUM}
        value = rest | {CHECKSUM: hash_text(json.dumps(rest))}
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read JSON; of an object that carries a checksum, as `write_json` writes it, the rest, checked.

    Raises
    ------
    InputError
        What is there is no JSON, or another content than was written.
    OSError
        There is no such file, or it cannot be read.
    """
    content = read_file(path)
    try:
        value = json.loads(content)
    except json.JSONDecodeError as error:
        cut = error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated")
        raise InputError(f"{path}: {'is truncated' if cut else f'is no JSON: {error}'}") from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: is no JSON: {error}") from None
    if not isinstance(value, dict) or not value:
        return value
    *rest, (name, found) = value.items()
    rest = dict(rest)
    if found == hash_text(json.dumps(rest)):  # whatever it is called: its name may be what is damaged
        return rest
    if name == CHECKSUM:
        raise InputError(f"{path}: is not what was written; if you changed it, delete its {CHECKSUM}")
    return value


def keep_json(path: Path, value: object) -> None:
    """Write JSON into the cache; where that cannot be written the work goes on without, and one line says so."""
    try:
        write_json(path, value, indent=None)
    except OSError as error:
        report_no_cache(cache_dir(), error.strerror)


_reported: dict[Path, object] = {}


def report_no_cache(folder: Path, why: str) -> None:
    """Say once that nothing is kept in the cache, however many threads find it."""
    mine = object()
    if _reported.setdefault(folder, mine) is mine:
        print(
            f"{folder}: cannot be written to ({why}), so nothing is cached; set SEGLIB_CACHE to a folder that can",
            flush=True,
        )


def leave_report_to_parent() -> None:
    """Of a process that writes into the cache less than its parent, which says it."""
    _reported[cache_dir()] = True


def read_file(path: str | Path, most: int = -1) -> bytes:
    """The content of a file, at most so many bytes; see `require_file`."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        require_file(path, 4 if most < 0 else 0, os.fstat(file.fileno()))
        return file.read(most)


def require_file(path: str | Path, times: int = 4, state: os.stat_result | None = None) -> None:
    """Refuse what cannot be read to its end: a pipe waits for a writer, a device may have none, memory is bounded.

    Parameters
    ----------
    times : the memory that what is made of the file takes, in its sizes.
    state : of the file, where it is open already.
    """
    state = state or os.stat(path)
    if S_ISDIR(state.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not S_ISREG(state.st_mode):
        raise InputError(f"{path}: required a file, got a pipe or a device")
    size = state.st_size
    if size > _LARGE and times * size > (free := psutil.virtual_memory().available):
        got = f"got {size / 1e9:.1f} GB where {free / 1e9:.1f} GB are free"
        raise InputError(f"{path}: required a file that fits into memory, {got}")


def require_folder(folder: Path) -> None:
    """Refuse a folder for results that cannot be one, since a file is in its way."""
    try:
        why = "" if S_ISDIR(os.stat(folder).st_mode) else "a file"
    except OSError as error:
        why = "" if isinstance(error, FileNotFoundError | PermissionError) else error.strerror
    if why:
        raise InputError(f"{folder}: required a folder to write to, got {why}; choose --outputs")


def check_zip(path: str | Path) -> None:
    """Raise zipfile.BadZipFile where a .pt or .npz file is not what was written: its readers do not look at its CRCs."""
    require_file(path, times=1)
    try:
        with zipfile.ZipFile(path) as file:
            # torch reads nothing of what is marked as a folder
            as_folders = (each.filename for each in file.infolist() if each.external_attr & 0x10)
            damaged = file.testzip() or next(as_folders, None)
    except (zlib.error, RuntimeError, EOFError, ValueError) as error:  # OSError says more by itself
        raise zipfile.BadZipFile(str(error)) from None
    if damaged:
        raise zipfile.BadZipFile(f"{damaged} is not what was written")


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
        raise InputError(f"{folder}: {what} {format_bytes(needed)}, got {format_bytes(free)} free; {fix}") from error


def format_bytes(count: float) -> str:
    """In GB, little in MB."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


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


def checksums(rows: Any) -> Any:
    """(N, ...) -> (N,) uint64: sums of 64-bit words, which find what is cut, missing or changed at the speed of memory."""
    import numpy as np

    flat = np.ascontiguousarray(rows).reshape(len(rows), -1).view(np.uint8)
    whole = flat.shape[1] // 8 * 8
    words = np.ascontiguousarray(flat[:, :whole]).view(np.uint64)
    return words.sum(1, dtype=np.uint64) + flat[:, whole:].sum(1, dtype=np.uint64)


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
    InputError : a file exists and cannot be read.
    """
    paths = [os.path.abspath(path) for path in paths]
    known, started = _load_known(), time.time()
    with ThreadPoolExecutor() as pool:  # hashlib and file reads let go of the interpreter lock
        entries = dict(zip(paths, pool.map(lambda path: _entry(path, known.get(path)), paths), strict=True))
    settled = {path: entry for path, entry in entries.items() if entry and started - max(entry[1:3]) / 1e9 > SETTLED}
    if any(known.get(path) != entry for path, entry in settled.items()):
        keep_json(cache_dir() / KNOWN, _load_known() | settled)  # two writers at once may lose an entry, never the file
    return [entries[path][-1] if entries[path] else MISSING for path in paths]


def _entry(path: str, known: list | None) -> list | None:
    """[size, mtime_ns, ctime_ns, inode, hash] of a file, None where there is none."""
    try:
        stat = os.stat(path)
        stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]  # ctime sees what `cp -p` hides
        if known and known[:-1] == stamp:
            return known
        return [*stamp, hash_file(path)] if S_ISREG(stat.st_mode) else None
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
            return None
        raise InputError(f"{path}: the file cannot be read ({error.strerror}); mend its permissions") from error


def _load_known() -> dict[str, list]:
    """Entries by absolute path; a file that is damaged is as good as none, everything is hashed again."""
    try:
        entries = read_json(cache_dir() / KNOWN)
    except (OSError, ValueError):
        return {}
    if not isinstance(entries, dict):
        return {}
    return {path: entry for path, entry in entries.items() if isinstance(entry, list) and len(entry) == 5}


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
