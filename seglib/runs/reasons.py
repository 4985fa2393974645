"""Why a run ended, in a line: the first error of a log, and what of the machine was used up, by its name with the fix."""

import os
import re
import resource
import shutil
import tempfile
from itertools import islice
from pathlib import Path

from seglib.files import cache_dir, format_bytes

BEGIN = "--- begins "  # of what an attempt at a run writes into its run.log
_SHARED = "/dev/shm"
_OUT_OF_MEMORY = ("OutOfMemoryError", "MemoryError", "can't allocate memory", "out of memory", "_STATUS_ALLOC_FAILED")
_ERROR = re.compile(
    r"(?:[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit)\b(?::|$)"
    r"|Fatal Python error|Segmentation fault|Bus error|Killed\b|terminate called|(?:\S+: )?(?:fatal )?[Ee]rror: )"
)
_FRAME = re.compile(r"\s|(Exception ignored|Traceback|During handling|The above exception)\b|\W*$|.*\bWARN")


def find_first_error(log: Path, or_last: bool = True) -> str:
    """The first error that the last attempt wrote into a log, else (`or_last`) its last line that is no warning, or ""."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    lines = [line.rstrip() for line in f"\n{text}".rpartition(f"\n{BEGIN}")[2].splitlines()[BEGIN in text :]]
    found = next((line for line in lines if _ERROR.match(line)), "")
    last = (line.strip() for line in reversed(lines) if or_last and not _FRAME.match(line))
    return (found or next(last, ""))[:300]


def explain(words: str, run_dir: Path) -> tuple[str, str]:
    """(status, error) of a run by the words of what stopped it: `oom` for memory, else `failed`; the fix behind them."""
    is_memory = any(sign in words for sign in _OUT_OF_MEMORY) or "could not create a primitive" in words
    fix = _name_resource(words, run_dir)
    return ("oom" if is_memory else "failed"), f"{words.strip()[:1600].removesuffix(':')}{'; ' if fix else ''}{fix}"


def _name_resource(words: str, run_dir: Path) -> str:
    if "could not create a primitive" in words:
        return (
            "oneDNN, which computes on CPUs, found no memory or no room for threads: lower batch_size or image_size, or"
            " run fewer at a time (--workers)"
        )
    if "Bus error" in words or "shared memory" in words or "</torch_" in words:
        return _name_shared_memory()
    if "Errno 28" in words or "No space left on device" in words:
        return _name_full_disk(words, run_dir)
    if "Errno 23" in words:
        return "the file handles of the whole machine are used up: end other programs, or raise fs.file-max"
    if "Errno 24" in words or "Too many open files" in words or "items of ancdata" in words:
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return (
            f"the file handles of a process, {most} here, are used up: raise them (ulimit -n 8192) or lower num_workers"
        )
    if words.strip().rstrip(":").endswith("MemoryError"):
        return "memory of the machine ran out: lower batch_size, image_size or num_workers, or run fewer at a time (--workers)"
    return ""


def _name_shared_memory() -> str:
    return (
        f"{_SHARED}, through which loader processes hand over batches, is full ({_say_free(_SHARED)}): set num_workers: 0,"
        " or make it larger (docker run --shm-size=8g)"
    )


def _name_full_disk(words: str, run_dir: Path) -> str:
    """Which of the folders that a run writes to is full, and of what."""
    outputs = next(str(each) for each in (run_dir, *run_dir.parents) if each.is_dir())
    temporary = os.environ.get("TMPDIR") or tempfile.gettempdir()  # which leaves out a folder that is full
    folders = {outputs: "--outputs", str(cache_dir()): "SEGLIB_CACHE", temporary: "TMPDIR"}
    there = {folder: name for folder, name in folders.items() if os.path.isdir(folder)}
    for folder, name in there.items():
        found = os.statvfs(folder)
        if found.f_files and not found.f_favail and found.f_bavail:
            return (
                f"{folder} has no inode left for a new file, though {_say_free(folder)}: delete small files there"
                f" (df -i), or move it to another disk ({name})"
            )
    named = max((folder for folder in there if folder in words), key=len, default="")
    # To 64 MB: of folders on one disk the first is meant, though others write between two questions.
    full = named or min(there, key=lambda folder: shutil.disk_usage(folder).free // 2**26)
    if not named and not is_full(Path(full)) and is_full(Path(_SHARED)):
        return _name_shared_memory()
    needed = _say_needed(run_dir) if full == outputs else ""
    verb = "is" if is_full(Path(full)) else "was"
    return (
        f"{full} {verb} full ({_say_free(full)}{needed}): make room there, or move it to another disk ({folders[full]})"
    )


def is_full(folder: Path) -> bool:
    """Whether hardly anything can be written there."""
    return folder.is_dir() and shutil.disk_usage(folder).free < 1e5


def _say_needed(run_dir: Path) -> str:
    """What this run, and some of those beside it, have on the disk."""
    runs = [path.parent for path in islice(run_dir.parent.glob("*/record.json"), 20)]
    sizes = [sum(path.stat().st_size for path in run.rglob("*") if path.is_file()) for run in runs]
    return f", a run there takes up to {format_bytes(max(sizes))}" if max(sizes, default=0) > 1e5 else ""


def _say_free(folder: str) -> str:
    try:
        return f"{format_bytes(shutil.disk_usage(folder).free)} are free"
    except OSError:
        return "it is not there"
