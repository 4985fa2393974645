"""The user's own command that sends a submission: run without a shell, its secrets hidden."""

import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from seglib.errors import InputError
from seglib.files import private_folder

LONGEST = 30 * 60  # [s] that a command may take
SEND = "SEGLIB_SEND"
SEND_HELP = (
    'split as a shell does but run without one, such as \'curl --fail -H "Authorization: Bearer $TOKEN" '
    '-F "file=@\\"{file}\\"" URL\', where the inner quotes keep curl from splitting a path at its commas; '
    "$TOKEN comes from the environment; in a header of curl it is hidden from other users of the machine, and it is never "
    f"shown (default: ${SEND})"
)
_PLACE = re.compile(r"\{file\}|\$\{(\w+)\}|\$([A-Za-z_]\w*)")


@contextmanager
def expand(template: str, path: Path) -> Iterator[tuple[list[str], dict[str, str]]]:
    """The command's arguments, and the values by name of the variables in it.

    Headers of curl that have a variable stand in files that nobody else may read, as long as the context lasts: every
    user of a machine can list the arguments of its processes.
    """
    try:
        words = shlex.split(template)
    except ValueError as error:
        raise InputError(f"--send: required a command, got a text with {str(error).lower()}") from None
    if "{file}" not in template or not words:
        raise InputError("--send: required a command with {file} in it, got one without; such as -F 'file=@\"{file}\"'")
    names = {name for word in words for match in _PLACE.finditer(word) if (name := match[1] or match[2])}
    for name in sorted(names):
        if not os.environ.get(name):
            raise InputError(f"--send: required the environment variable {name}, got none; export {name}=...")
    values, file = {name: os.environ[name] for name in names}, str(path.resolve())
    command = [_PLACE.sub(lambda m: values.get(m[1] or m[2] or "", file), word) for word in words]
    with private_folder() as private:
        for place, (option, header) in enumerate(pairwise(words), 1):
            if Path(words[0]).name == "curl" and option in ("-H", "--header") and _PLACE.search(header):
                kept = Path(private, str(place))
                kept.write_text(command[place], encoding="utf-8")
                command[place] = f"@{kept}"
        yield command, values


def run_hidden(command: Sequence[str], secrets: Mapping[str, str]) -> tuple[int, str]:
    """Run a command; return its exit code and what it printed, with the variables' names for their values.

    Raises
    ------
    OSError
        It cannot be run.
    InputError
        It did not end in time; what it was to send may have arrived.
    """
    options = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "errors": "replace"}
    try:
        done = subprocess.run(command, timeout=LONGEST, **options)
    except subprocess.TimeoutExpired:
        raise InputError(
            f"--send: required a command that ends, got none within {LONGEST / 60:.0f} minutes; it was stopped and counts as"
            " sent, since it may have arrived: look there, then --again"
        ) from None
    printed = (done.stdout + done.stderr).strip()
    for name, value in sorted(secrets.items(), key=lambda item: -len(item[1])):  # the longest first
        printed = printed.replace(value, f"${name}")
    if seen := [f"${name}" for name, value in sorted(secrets.items()) if any(value in word for word in command)]:
        printed += f"\n{', '.join(seen)}: other users of this machine could list it; put it into a header of curl (-H)"
    return done.returncode, printed.strip()
