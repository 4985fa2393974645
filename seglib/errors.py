"""What a user did wrong, in one line: where, what was required, what arrived, the fix."""

import difflib
import os
import sys
from collections.abc import Iterable

# What a terminal would obey: control characters but line ends and tabs, and those that turn the direction of writing.
_OBEYED = (*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_SHOWN = {code: ascii(chr(code))[1:-1] for code in _OBEYED}


def printable(text: str) -> str:
    """A text with its control characters shown, not sent: names and errors come from files of others."""
    return text.translate(_SHOWN)


def print_anything() -> None:
    """Let standard output and errors take every text, whatever the terminal's encoding: what it lacks is escaped."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


LONGEST = 2000  # characters of a line: an error's own words may be a whole file


class InputError(ValueError):
    """A mistake in a file, a parameter or a path that the user can mend; its message is one line."""

    def __init__(self, message: str):
        words = str(message)
        if words.startswith("Caught ") and "\nOriginal Traceback" in words:  # torch's, of what a loader process raised
            words = words.strip().splitlines()[-1].partition(": ")[2]
        super().__init__(_as_line(words))


class StoppedForNow(Exception):
    """A run has as many epochs as run_grid.py wants for now; last.pt has what it goes on from."""


class InputErrors(InputError):
    """Several mistakes found together; `lines` has one line each and the message is the lines."""

    def __init__(self, lines: Iterable[str]):
        self.lines = [_as_line(str(line)) for line in lines]
        Exception.__init__(self, self.lines)  # what pickle hands to __init__ when a worker process raises it

    def __str__(self) -> str:
        return "\n".join(self.lines)


def _as_line(words: str) -> str:
    line = printable(" ".join(f"{word[:150]}[...]{word[-150:]}" if len(word) > 500 else word for word in words.split()))
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} [...] {line[-LONGEST // 2 :]}"


def unknown_name(what: str, name: object, choices: Iterable[str], limit: int = 12) -> str:
    """Word the refusal of a name that is not among the choices, nearest names first.

    >>> unknown_name("loss", "focl", ["cross_entropy", "focal", "dice"])
    "unknown loss 'focl'; did you mean 'focal'? choices: cross_entropy, focal, dice"
    """
    choices = list(choices)
    lowered = {choice.lower(): choice for choice in reversed(choices)}
    near = [lowered[match] for match in difflib.get_close_matches(str(name).lower(), lowered, n=3, cutoff=0.6)]
    text = f"unknown {what} {name!r}"
    if near:
        text += "; did you mean " + " or ".join(repr(choice) for choice in near) + "?"
    if near and len(choices) > limit:
        return text
    return f"{text}{'' if near else ';'} choices: {_list_some(choices, limit)}"


def require_known(what: str, name: object, choices: Iterable[str], where: str = "", limit: int = 12) -> None:
    """Refuse a name that is not among the choices; `where` stands before the words of `unknown_name`."""
    choices = list(choices)
    if name not in choices:
        raise InputError(f"{where}{': ' if where else ''}{unknown_name(what, name, choices, limit)}")


def read_whole(variable: str, default: int) -> int:
    """A whole number from 0 in an environment variable."""
    text = os.environ.get(variable) or str(default)
    if not text.isdecimal() or len(text) > 9:
        raise InputError(
            f"{variable} must be a whole number from 0, got {text[:40]!r}; set it so, or `unset {variable}`"
        )
    return int(text)


def require_same(where: object, what: str, wanted: Iterable, got: Iterable, fix: str) -> None:
    """Refuse what is not the same as it must be, such as the classes of two runs; a dozen of each are listed."""
    wanted, got = list(wanted), list(got)
    if got != wanted:
        raise InputError(f"{where}: required {what} ({_list_some(wanted)}), got {_list_some(got)}; {fix}")


def _list_some(items: list, limit: int = 12) -> str:
    return ", ".join(map(str, items[:limit])) + (f", ... ({len(items)} in all)" if len(items) > limit else "")
