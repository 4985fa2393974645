"""Which submissions were sent and what they scored; sending."""

import csv
import fcntl
import json
import math
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from pathlib import Path

import numpy as np
import pandas as pd

from seglib.errors import InputError
from seglib.files import hash_file, outputs_dir, replacing

# The ledger of submissions, one CSV row for each content: what is behind it, when it was sent, what it scored.


COLUMNS = ["hash", "file", "written", "runs", "weights", "resizing", "val_score"]  # what the submission is
COLUMNS += ["sends", "leaderboard_score", "scored"]  # what became of it
RUNNING = "?"  # exit code of a send that has not ended, or never said how
MIN_HASH = 6  # hex digits that name a content
MIN_SCORES = 3  # a rank correlation of two is always 1 or -1

Row = dict[str, str]


def ledger_path() -> Path:
    """Where the ledger is, if nobody says otherwise."""
    return outputs_dir() / "submissions.csv"


def read_ledger(ledger: Path) -> list[Row]:
    """All rows, oldest first; none where there is no ledger yet.

    `file` is relative to the ledger's folder where it lies inside; `runs` and `weights` have `; ` between, and are
    file names and hashes where submissions voted; scores are 0..1; `sends` is `time=exit code`, `; ` between; times are ISO 8601 in UTC. Columns that people add are kept.

    Raises
    ------
    InputError
        The file has not these columns, or a score or time is none.
    """
    try:
        with open(ledger, encoding="utf-8-sig", newline="") as file:  # a spreadsheet may have saved it
            reader = csv.DictReader(file)
            rows = list(reader)
    except FileNotFoundError:
        return []
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{ledger}: required a CSV in UTF-8, got {error}; restore it from a copy") from None
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise InputError(
            f"{ledger}: required the columns {', '.join(COLUMNS)}, {', '.join(missing)} missing; restore it"
        )
    for number, row in enumerate(rows, start=1):
        _check_row(f"{ledger} [row {number}]", row)
    return rows


def add_submission(path: str | Path, ledger: Path | None = None) -> Row:
    """Enter a submission with what its record says, and return its row; a content that is there already stays as it is."""
    with _editing(ledger or ledger_path()) as rows:
        return dict(_row_of(rows, Path(path), ledger or ledger_path()))


def read_record(path: Path) -> dict | None:
    """The record beside a submission; None where there is none, or the CSV changed since."""
    try:
        record = json.loads(path.with_suffix(".json").read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("hash") == hash_file(path) else None


def score_submission(which: str | Path, score: float, ledger: Path, correct: bool = False) -> Row:
    """Type in the leaderboard's score, 0..1, of a file, or of a content by the first digits of its hash.

    Raises
    ------
    InputError
        The content has a score (not with `correct`), the file is not the one that was sent, or there is no such hash.
    """
    if not 0 <= score <= 1:
        raise InputError(f"score: required a number from 0 to 1, got {score:g}; divide a percentage by 100")
    with _editing(ledger) as rows:
        row = _find_row(rows, which, ledger)
        if row["leaderboard_score"] and not correct:
            raise InputError(
                f"{which}: scored {row['leaderboard_score']} on {row['scored'][:10]} already (the same content); "
                "--correct replaces that score"
            )
        row.update(leaderboard_score=repr(float(score)), scored=_now().isoformat(timespec="milliseconds"))
        return dict(row)


def start_send(
    path: Path, ledger: Path, per_day: int | None, utc_offset: float | None, again: bool = False
) -> tuple[str, str]:
    """Take one of the day's submissions before sending, so that no two people send the last one.

    Returns
    -------
    The content's hash and the time, for `end_send`.

    Raises
    ------
    InputError
        The content was sent before (not with `again`), or none is left today.
    """
    with _editing(ledger) as rows:
        row = _row_of(rows, path, ledger)
        before = list_sent(row)
        if before and not again:
            raise InputError(
                f"{path}: sent on {before[-1][:16]} UTC already (the same content); --again sends it again"
            )
        used = count_today(rows, utc_offset)
        if per_day is not None and used >= per_day:
            raise InputError(
                f"{path}: none left today ({describe_day(utc_offset)}), {used} of {per_day} sent; "
                "wait until tomorrow, or --per-day allows more"
            )
        time = _now().isoformat(timespec="milliseconds")
        row["sends"] = "; ".join(filter(None, [row["sends"], f"{time}={RUNNING}"]))
        return row["hash"], time


def end_send(ledger: Path, started: tuple[str, str], exit_code: int) -> None:
    """Say how a send that `start_send` began ended; one that failed gives its place in the day back."""
    content, time = started
    with _editing(ledger) as rows:
        for row in rows:
            if row["hash"] == content:
                row["sends"] = row["sends"].replace(f"{time}={RUNNING}", f"{time}={exit_code}")


def list_sent(row: Row) -> list[str]:
    """Times at which a content was sent: with exit code 0, or without word of how that ended."""
    sends = (send.rpartition("=") for send in row["sends"].split("; ") if send)
    return [time for time, _, code in sends if code in ("0", RUNNING)]


def count_today(rows: Sequence[Row], utc_offset: float | None) -> int:
    """Submissions sent today; one that was sent by hand counts on the day its score was typed in.

    Parameters
    ----------
    utc_offset : of the leaderboard's midnight [h]; this machine's own midnight where None.
    """
    today = _day(_now().isoformat(), utc_offset)
    times = [time for row in rows for time in (list_sent(row) or filter(None, [row["scored"]]))]
    return sum(_day(time, utc_offset) == today for time in times)


def describe_day(utc_offset: float | None) -> str:
    """When a day begins, in words."""
    return "since midnight here" if utc_offset is None else f"since midnight at UTC{utc_offset:+g}"


def correlate_scores(rows: Sequence[Row]) -> tuple[float, int]:
    """Spearman's rank correlation of val and leaderboard scores, and of how many rows.

    NaN for fewer than three rows, or where all scores of a side are the same.
    """
    pairs = [
        (row["val_score"], row["leaderboard_score"]) for row in rows if row["val_score"] and row["leaderboard_score"]
    ]
    ranks = pd.DataFrame(pairs, columns=["val", "leaderboard"], dtype="float64").rank()
    if len(ranks) < MIN_SCORES or (ranks.min() == ranks.max()).any():
        return math.nan, len(ranks)
    return float(np.corrcoef(ranks.to_numpy().T)[0, 1]), len(ranks)  # Pearson's of the ranks; scipy.stats loads for 1 s


@contextmanager
def _editing(ledger: Path) -> Iterator[list[Row]]:
    """Rows to change in place, by one process at a time; written when the block ends without an error."""
    ledger.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(ledger.with_name(f".{ledger.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        rows = read_ledger(ledger)
        yield rows
        if not rows:
            return
        with replacing(ledger) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    finally:
        os.close(handle)


def _row_of(rows: list[Row], path: Path, ledger: Path) -> Row:
    """The row of a file's content, entered where there is none yet."""
    if not path.is_file():
        raise InputError(f"{path}: required a submission CSV, got no such file")
    content = hash_file(path)
    for row in rows:
        if row["hash"] == content:
            return row
    record = read_record(path) or {}
    sources, val_score = record.get("sources", []), record.get("val_score")
    known = {
        "hash": content,
        "file": _relative(path, ledger),
        "written": record.get("written")
        or datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds"),
        "runs": "; ".join(str(source.get("run", "")) for source in sources),
        "weights": "; ".join(str(source.get("weights_sha256") or source.get("hash", "")) for source in sources),
        "resizing": record.get("resizing", ""),
        "val_score": "" if val_score is None else repr(float(val_score)),
    }
    rows.append({name: known.get(name, "") for name in (rows[0] if rows else COLUMNS)})
    return rows[-1]


def _find_row(rows: list[Row], which: str | Path, ledger: Path) -> Row:
    path = Path(which)
    if path.is_file():
        content, name = hash_file(path), _relative(path, ledger)
        sent = [row for row in rows if row["file"] == name and list_sent(row)]
        if sent and content not in {row["hash"] for row in rows}:
            raise InputError(
                f"{path}: its content changed since it was sent on {list_sent(sent[-1])[-1][:16]} UTC; "
                f"give the hash of what was sent, {sent[-1]['hash'][:MIN_HASH]}"
            )
        return _row_of(rows, path, ledger)
    found = [row for row in rows if len(str(which)) >= MIN_HASH and row["hash"].startswith(str(which))]
    if len(found) != 1:
        raise InputError(
            f"{which}: required a file, or a hash's first {MIN_HASH} digits as `list` shows them, got neither"
        )
    return found[0]


def _relative(path: Path, ledger: Path) -> str:
    path, folder = path.resolve(), ledger.resolve().parent
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def _check_row(where: str, row: dict) -> None:
    """A row that was edited by hand must still be readable."""
    if None in row or None in row.values():
        raise InputError(f"{where}: required as many fields as the header has; restore the row")
    for name in ("val_score", "leaderboard_score"):
        if row[name] and not _is_share(row[name]):
            raise InputError(f"{where}: {name} must be a number from 0 to 1 or nothing, got {row[name]!r}; correct it")
    for time in [*list_sent(row), *filter(None, [row["scored"]])]:
        try:
            _day(time, 0)
        except ValueError:
            raise InputError(
                f"{where}: required times such as {_now().isoformat()}, got {time!r}; correct it"
            ) from None


def _day(time: str, utc_offset: float | None) -> object:
    zone: tzinfo | None = None if utc_offset is None else timezone(timedelta(hours=utc_offset))
    return datetime.fromisoformat(time).astimezone(zone).date()


def _is_share(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False


def _now() -> datetime:
    return datetime.now(UTC)


# Send a submission with a command that the user sets; what it takes from the environment is never shown.


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
