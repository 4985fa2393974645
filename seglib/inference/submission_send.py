"""Send a submission with a command that the user sets; what it takes from the environment is never shown."""

import os
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

from seglib.errors import InputError
from seglib.inference.submission_ledger import end_send, start_send

_PLACE = re.compile(r"\{file\}|\$\{(\w+)\}|\$([A-Za-z_]\w*)")


def send_submission(
    path: Path,
    template: str,
    ledger: Path,
    *,
    per_day: int | None,
    utc_offset: float | None,
    again: bool,
    show: Callable[[str], None],
) -> int:
    """Run the command without a shell, enter that in the ledger, and return its exit code.

    Parameters
    ----------
    template : such as `curl --fail -H "Authorization: Bearer $TOKEN" -F 'file=@"{file}"' https://...`: split as a shell
        would, then `{file}` and environment variables are put in; nothing in them is interpreted.
    per_day, utc_offset, again : as `start_send` takes them.
    show : takes what the command printed, the variables' values taken out.

    Raises
    ------
    InputError
        The template is no command or lacks a variable, or the ledger refuses the send.
    """
    command, secrets = expand(template, path)
    started = start_send(path, ledger, per_day, utc_offset, again)
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    except OSError as error:  # its own text could hold the expanded command
        end_send(ledger, started, 127)
        raise InputError(
            f"--send: required a command that can be run, got {error.strerror}: {_first(template)}"
        ) from None
    end_send(ledger, started, done.returncode)
    show(hide(done.stdout + done.stderr, secrets))
    return done.returncode


def expand(template: str, path: Path) -> tuple[list[str], dict[str, str]]:
    """The command's arguments, and the values by name of the variables in it."""
    try:
        words = shlex.split(template)
    except ValueError as error:
        raise InputError(f"--send: required a command, got a text with {str(error).lower()}") from None
    if "{file}" not in template or not words:
        raise InputError("--send: required a command with {file} in it, got one without; such as -F 'file=@\"{file}\"'")
    names = {name for word in words for match in _PLACE.finditer(word) if (name := match[1] or match[2])}
    missing = sorted(name for name in names if not os.environ.get(name))
    if missing:
        raise InputError(f"--send: required the environment variable {missing[0]}, got none; export {missing[0]}=...")
    values = {name: os.environ[name] for name in names}
    file = str(path.resolve())
    return [_PLACE.sub(lambda m: values.get(m[1] or m[2] or "", file), word) for word in words], values


def hide(text: str, secrets: dict[str, str]) -> str:
    """A text with each variable's value replaced by its name, longest values first."""
    for name, value in sorted(secrets.items(), key=lambda item: -len(item[1])):
        text = text.replace(value, f"${name}")
    return text.strip()


def _first(template: str) -> str:
    return shlex.split(template)[0]
