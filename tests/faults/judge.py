"""Judges what becomes of a bad input: one clear line, no traceback, no hang, nothing lost, nothing half-written."""

import faulthandler
import hashlib
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISREG

from seglib.errors import InputError

LIMIT = 10  # [s] for one input
TOTALS = Counter()
_MACHINE = re.compile(r"Traceback|\x1b|Input should be|<(class|module|function) |object at 0x|Caught .*worker process")


def judge(folder: Path, ask: Callable, words: str) -> None:
    """Ask about what lies in `folder`, and look at the answer and at the folder.

    Parameters
    ----------
    ask : raises InputError, or returns the exit code and what was printed; anything else is "it works".
    words : what the line must hold; "" where the input is to be taken.
    """
    before = _look(folder)
    code, text, error = _ask(ask)
    after = _look(folder)
    found = {
        "lost": sorted(path for path in before if after.get(path) != before[path]),
        "half-written": sorted(path for path in {*after} - {*before} if _is_half(folder / path)),
        "traceback": error or ("Traceback" in text and text),
        "unclear": _find_unclear(code, text, words),
    }
    TOTALS["tried"] += 1
    TOTALS.update(name for name, what in found.items() if what)
    assert not any(found.values()), f"{ ({name: what for name, what in found.items() if what}) }\n{code}: {text}"


def _ask(ask: Callable) -> tuple[int, str, str]:
    """(exit code, what was said, an error that is no InputError)."""
    try:
        with _limited():
            said = ask()
        code, text = said if isinstance(said, tuple) and isinstance(said[0], int) else (0, "")
        return code, text, ""
    except InputError as error:
        return 2, str(error), ""
    except Exception as error:
        return 2, "", f"{type(error).__name__}: {error}"[:500]


@contextmanager
def _limited() -> Iterator[None]:
    def stop(*_):
        raise TimeoutError(f"hangs: no answer within {LIMIT} s")

    before = signal.signal(signal.SIGALRM, stop)
    faulthandler.dump_traceback_later(2 * LIMIT, exit=True, file=sys.__stderr__)  # where no signal is heard
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


def _find_unclear(code: int, text: str, words: str) -> str:
    if not words:
        return f"refused: {text}" if code else ""
    if not code:
        return f"taken, and {words!r} was to be said"
    lines = text.strip().splitlines()
    if not lines or words not in text:
        return f"lacks {words!r}"
    return next((line for line in lines if len(line) > 2100 or _MACHINE.search(line)), "")


def _look(folder: Path) -> dict[str, tuple]:
    """Path -> what it is; of files their content."""
    found = {}
    for path in folder.rglob("*"):
        state = path.lstat()
        big = state.st_size > 10_000_000
        content = b"" if big or not S_ISREG(state.st_mode) else hashlib.sha1(path.read_bytes()).digest()
        if not path.is_dir():
            found[str(path.relative_to(folder))] = state.st_mode, state.st_size, content
    return found


def _is_half(path: Path) -> bool:
    is_lock = "lock" in path.suffix or path.name in (".lock", ".running")
    return path.suffix == ".part" or (path.is_file() and not path.stat().st_size and not is_lock)
