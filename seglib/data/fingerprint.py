"""What a data set contains, as one hash: the same on every machine, and quick to ask for again.

A dry run of a grid imports this file and must answer in a second, so it needs the standard library only.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from stat import S_ISREG
from typing import Any

from seglib.errors import InputError
from seglib.files import cache_dir, hash_file, hash_text, write_text

MISSING = ""  # the hash of a file that is not there
SETTLED = 2.0  # [s] a file changed more recently could change again within the clock tick of its own timestamp


def fingerprint_data(data_dir: str | Path, json_names: Sequence[str]) -> str:
    """Hash the content of a data set: its JSON files and every image that they name.

    Where the folder lies and when its files were written make no difference. An image that is missing, or whose path
    leaves the folder and is therefore not read, counts as missing.

    Parameters
    ----------
    data_dir : folder that the JSON files and their `file_name`s are relative to.
    json_names : COCO files, such as ["train.json", "val.json"]; their order counts.

    Returns
    -------
    32 hex digits.

    Raises
    ------
    InputError : a JSON file is missing, is not JSON or lists no images; an image exists and cannot be read.
    """
    data_dir = Path(data_dir)
    json_paths = [data_dir / name for name in json_names]
    names = sorted({name for path in json_paths for name in _image_names(path)})
    inside = [name for name in names if _stays_inside(data_dir, name)]
    hashes = hash_files([*json_paths, *(data_dir / name for name in inside)])
    of_image = dict(zip(inside, hashes[len(json_paths) :], strict=True))
    images = [(name, of_image.get(name, MISSING)) for name in names]
    return hash_text(json.dumps([hashes[: len(json_paths)], images]))


def fingerprint_sets(data_dir: str | Path, json_names: Sequence[str], extra_data: Sequence[Mapping[str, Any]]) -> str:
    """Hash the content of a data set and of those that join it, with how they join; see `fingerprint_data`."""
    hashes = [fingerprint_data(data_dir, json_names)]
    for entry in extra_data:
        options = {name: value for name, value in entry.items() if name not in ("data_dir", "json")}
        hashes.append([fingerprint_data(entry.get("data_dir", data_dir), [entry["json"]]), options])
    return hashes[0] if len(hashes) == 1 else hash_text(json.dumps(hashes, sort_keys=True))


def hash_files(paths: Sequence[str | Path]) -> list[str]:
    """Hash the content of files, reading only those that changed since they were last hashed.

    Hashes are remembered in `cache_dir()`/file_hashes.json for as long as a file keeps its size, times and inode.
    A file written within the last 2 s is hashed and not remembered.

    Returns
    -------
    One hash a path, in order; "" where there is no such file.

    Raises
    ------
    InputError : a file exists and cannot be read, or the cache folder cannot be written.
    """
    paths = [os.path.abspath(path) for path in paths]
    known, started = _load_known(), time.time()
    with ThreadPoolExecutor() as pool:  # hashlib and file reads let go of the interpreter lock
        entries = dict(zip(paths, pool.map(lambda path: _entry(path, known.get(path)), paths), strict=True))
    settled = {path: entry for path, entry in entries.items() if entry and _is_settled(entry, started)}
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


def _is_settled(entry: list, now: float) -> bool:
    return now - max(entry[1], entry[2]) / 1e9 > SETTLED


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


def _image_names(path: Path) -> list[str]:
    try:
        images = json.loads(path.read_bytes())["images"]
        return [str(image["file_name"]) for image in images]
    except OSError as error:
        raise InputError(
            f"{path}: a COCO file was expected, got: {error.strerror}; check data_dir and the name"
        ) from error
    except ValueError as error:
        raise InputError(f"{path}: a COCO file in JSON was expected, got: {error}; mend or export it again") from error
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{path}: `images` must be a list of objects with a `file_name`; export it again as COCO"
        ) from error


def _stays_inside(data_dir: Path, name: str) -> bool:
    """Whether a file name leads into the folder, symbolic links followed: nothing else is read, here or later."""
    if os.path.isabs(name) or "\0" in name:
        return False
    return Path(os.path.realpath(data_dir / name)).is_relative_to(os.path.realpath(data_dir))
