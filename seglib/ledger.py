"""Submissions on the command line: check a file, send it, type in its score, list what was sent."""

import argparse
import csv
import fcntl
import io
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path

import pandas as pd

from seglib.data.coco import load_coco
from seglib.errors import InputError
from seglib.files import FORMULA, hash_file, outputs_dir, private_folder, read_file, read_json, write_table
from seglib.submission import Verdict, count_shares, read_file_names, validate_submission
from seglib.text import align

# The ledger: one CSV row per content, what is behind it, when it was sent, what it scored.
COLUMNS = [
    "hash", "file", "written", "runs", "weights", "resizing", "val_score", "sends", "leaderboard_score", "scored"
]  # fmt: skip
RUNNING = "?"  # exit code of a send that has not ended, or never said how
MIN_HASH = 6  # hex digits that name a content
PER_DAY, UTC_OFFSET = "SEGLIB_SUBMISSIONS_PER_DAY", "SEGLIB_SUBMISSIONS_UTC_OFFSET"

LONGEST = 30 * 60  # [s] that a command may take
SEND = "SEGLIB_SEND"
SEND_HELP = (
    'split as a shell does but run without one, such as \'curl --fail -H "Authorization: Bearer $TOKEN" '
    '-F "file=@\\"{file}\\"" URL\', where the inner quotes keep curl from splitting a path at its commas; '
    "$TOKEN comes from the environment; in a header of curl it is hidden from other users of the machine, and it is never "
    f"shown (default: ${SEND})"
)
_PLACE = re.compile(r"\{file\}|\$\{(\w+)\}|\$([A-Za-z_]\w*)")

Entry = dict[str, str]


def read_ledger(ledger: Path) -> list[Entry]:
    """All rows, oldest first; none where there is no ledger yet.

    `file` is relative to the ledger's folder where it lies inside; `runs` and `weights` have `; ` between; scores are
    0..1; `sends` is `time=exit code`, `; ` between; times are ISO 8601 in UTC. Columns that people add are kept.

    Raises
    ------
    InputError
        The file has not these columns, or a score or time is none.
    """
    try:
        text = read_file(ledger).decode("utf-8-sig")  # a spreadsheet may have saved it
        reader = csv.DictReader(io.StringIO(text, newline=""))
        rows = [{name: _read_cell(cell) for name, cell in row.items()} for row in reader]
    except FileNotFoundError:
        return []
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{ledger}: required a CSV in UTF-8, got {error}; restore it from a copy") from None
    if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
        lacking = f"{', '.join(COLUMNS)}, {', '.join(missing)} missing"
        raise InputError(f"{ledger}: required the columns {lacking}; restore it")
    for number, row in enumerate(rows, start=1):
        _check_row(f"{ledger} [row {number}]", row)
    return rows


def _read_cell(cell: object) -> object:
    """Without the apostrophe that `write_table` puts before what a spreadsheet would run."""
    return cell[1:] if isinstance(cell, str) and cell[:1] == "'" and cell[1:].startswith(FORMULA) else cell


def _check_row(where: str, row: dict) -> None:
    """A row that was edited by hand must still be readable."""
    if None in row or None in row.values():
        raise InputError(f"{where}: required as many fields as the header has; restore the row")
    for name in ("val_score", "leaderboard_score"):
        if row[name] and not 0 <= _number(row[name]) <= 1:
            raise InputError(f"{where}: {name} must be a number from 0 to 1 or nothing, got {row[name]!r}; correct it")
    for time in [*list_sent(row), *filter(None, [row["scored"]])]:
        try:
            datetime.fromisoformat(time)
        except ValueError:
            example = _now().isoformat()
            raise InputError(f"{where}: required times such as {example}, got {time!r}; correct it") from None


@contextmanager
def _editing(ledger: Path) -> Iterator[list[Entry]]:
    """Rows to change in place, by one process at a time; written when the block ends without an error."""
    ledger.parent.mkdir(parents=True, exist_ok=True)
    with open(ledger.with_name(f".{ledger.name}.lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        rows = read_ledger(ledger)
        yield rows
        if rows:
            write_table(ledger, pd.DataFrame(rows))


def add_submission(path: str | Path, ledger: Path | None = None) -> Entry:
    """Enter a submission with what its record says, and return its row; a content that is there already stays as it is."""
    ledger = ledger or outputs_dir() / "submissions.csv"
    with _editing(ledger) as rows:
        return dict(_row_of(rows, Path(path), ledger))


def score_submission(which: str | Path, score: float, ledger: Path, correct: bool = False) -> Entry:
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
            before = f"scored {row['leaderboard_score']} on {row['scored'][:10]} already (the same content)"
            raise InputError(f"{which}: {before}; --correct replaces that score")
        row.update(leaderboard_score=repr(float(score)), scored=_now().isoformat(timespec="milliseconds"))
        return dict(row)


def _row_of(rows: list[Entry], path: Path, ledger: Path) -> Entry:
    """The row of a file's content, entered where there is none yet."""
    if not path.is_file():
        raise InputError(f"{path}: required a submission CSV, got no such file")
    content = hash_file(path)
    for row in (row for row in rows if row["hash"] == content):
        return row
    record = _read_record(path) or {}
    sources, val_score = record.get("sources", []), record.get("val_score")
    changed = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
    weights = [str(source.get("weights_sha256") or source.get("hash", "")) for source in sources]
    known = {"hash": content, "file": _relative(path, ledger), "written": record.get("written") or changed}
    known |= {"runs": "; ".join(str(source.get("run", "")) for source in sources), "weights": "; ".join(weights)}
    known |= {"resizing": record.get("resizing", ""), "val_score": "" if val_score is None else repr(float(val_score))}
    rows.append({name: known.get(name, "") for name in (rows[0] if rows else COLUMNS)})
    return rows[-1]


def _find_row(rows: list[Entry], which: str | Path, ledger: Path) -> Entry:
    path = Path(which)
    if not path.is_file():
        found = [row for row in rows if len(str(which)) >= MIN_HASH and row["hash"].startswith(str(which))]
        if len(found) == 1:
            return found[0]
        digits = f"a hash's first {MIN_HASH} digits as `list` shows them"
        raise InputError(f"{which}: required a file, or {digits}, got neither")
    content, name = hash_file(path), _relative(path, ledger)
    sent = [row for row in rows if row["file"] == name and list_sent(row)]
    if sent and content not in {row["hash"] for row in rows}:
        when, what = list_sent(sent[-1])[-1][:16], sent[-1]["hash"][:MIN_HASH]
        changed = f"its content changed since it was sent on {when} UTC"
        raise InputError(f"{path}: {changed}; give the hash of what was sent, {what}")
    return _row_of(rows, path, ledger)


def _read_record(path: Path) -> dict | None:
    """The record beside a submission; None where there is none, or the CSV changed since."""
    try:
        record = read_json(path.with_suffix(".json"))
    except (FileNotFoundError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("hash") == hash_file(path) else None


def _relative(path: Path, ledger: Path) -> str:
    path, folder = path.resolve(), ledger.resolve().parent
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def send_submission(path: Path, template: str, ledger: Path, **limits) -> tuple[int, str]:
    """Run a command without a shell, enter that in the ledger; return its exit code and what it printed, variables hidden.

    Parameters
    ----------
    template : such as `curl --fail -H "Authorization: Bearer $TOKEN" -F 'file=@"{file}"' https://...`: split as a shell
        would, then `{file}` and environment variables are put in; nothing in them is interpreted.
    limits : per_day, utc_offset and again, as `start_send` takes them.

    Raises
    ------
    InputError
        The template is no command or lacks a variable, the ledger refuses the send, or it does not end: then it counts.
    """
    options = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "errors": "replace"}
    with expand_command(template, path) as (command, secrets):
        started = start_send(path, ledger, **limits)
        try:
            done = subprocess.run(command, timeout=LONGEST, **options)
        except OSError as error:  # its own text could hold the expanded command
            end_send(ledger, started, 127)
            got = f"{error.strerror}: {shlex.split(template)[0]}"
            raise InputError(f"--send: required a command that can be run, got {got}") from None
        except subprocess.TimeoutExpired:
            raise InputError(
                f"--send: required a command that ends, got none within {LONGEST / 60:.0f} minutes; it was stopped and"
                " counts as sent, since it may have arrived: look there, then --again"
            ) from None
    end_send(ledger, started, done.returncode)
    printed = (done.stdout + done.stderr).strip()
    for name, value in sorted(secrets.items(), key=lambda item: -len(item[1])):  # the longest first
        printed = printed.replace(value, f"${name}")
    if seen := [f"${name}" for name, value in sorted(secrets.items()) if any(value in word for word in command)]:
        printed += f"\n{', '.join(seen)}: other users of this machine could list it; put it into a header of curl (-H)"
    return done.returncode, printed.strip()


@contextmanager
def expand_command(template: str, path: Path) -> Iterator[tuple[list[str], dict[str, str]]]:
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


def start_send(
    path: Path, ledger: Path, per_day: int | None, utc_offset: float | None, again: bool = False
) -> tuple[str, str]:
    """Take one of the day's submissions before sending, so that no two people send the last one.

    Returns the content's hash and the time, for `end_send`; InputError where the content was sent before (not with
    `again`), or none is left today.
    """
    with _editing(ledger) as rows:
        row = _row_of(rows, path, ledger)
        if (before := list_sent(row)) and not again:
            when = f"sent on {before[-1][:16]} UTC already (the same content)"
            raise InputError(f"{path}: {when}; --again sends it again")
        used, day = count_today(rows, utc_offset)
        if per_day is not None and used >= per_day:
            none = f"none left today ({day}), {used} of {per_day} sent"
            raise InputError(f"{path}: {none}; wait until tomorrow, or --per-day allows more")
        time = _now().isoformat(timespec="milliseconds")
        row["sends"] = "; ".join(filter(None, [row["sends"], f"{time}={RUNNING}"]))
        return row["hash"], time


def end_send(ledger: Path, started: tuple[str, str], exit_code: int) -> None:
    """Say how a send that `start_send` began ended; one that failed gives its place in the day back."""
    content, time = started
    with _editing(ledger) as rows:
        for row in (row for row in rows if row["hash"] == content):
            row["sends"] = row["sends"].replace(f"{time}={RUNNING}", f"{time}={exit_code}")


def list_sent(row: Entry) -> list[str]:
    """Times at which a content was sent: with exit code 0, or without word of how that ended."""
    sends = (send.rpartition("=") for send in row["sends"].split("; ") if send)
    return [time for time, _, code in sends if code in ("0", RUNNING)]


def count_today(rows: list[Entry], utc_offset: float | None) -> tuple[int, str]:
    """Submissions sent today, and when a day begins, in words; one that was sent by hand counts on the day it was scored.

    utc_offset : of the leaderboard's midnight [h]; this machine's own midnight where None.
    """
    zone = None if utc_offset is None else timezone(timedelta(hours=utc_offset))
    times = [time for row in rows for time in (list_sent(row) or filter(None, [row["scored"]]))]
    days = [datetime.fromisoformat(time).astimezone(zone).date() for time in times]
    words = "since midnight here" if utc_offset is None else f"since midnight at UTC{utc_offset:+g}"
    return days.count(_now().astimezone(zone).date()), words


def _number(text: str) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _now() -> datetime:
    return datetime.now(UTC)


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line asks; return 0, 1 where a submission is refused or a send failed, 2 for a wrong option."""
    options = _parse_arguments(arguments)
    try:
        return options.action(options)
    except (InputError, OSError) as error:  # OSError: a disk that is full, a folder without permission
        print(error if isinstance(error, InputError) else f"stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; a send that had begun counts as sent", file=sys.stderr)
        return 130


def _check(options: argparse.Namespace) -> int:
    if options.sample is None:
        raise InputError("--sample: required the sample submission, or the test set's JSON, got none")
    verdict = _judge(options)
    for line in verdict.notes:
        print(f"note: {line}")
    verdict.refuse(options.file, options.force)
    print(f"{options.file}: valid; class shares {' '.join(f'{share:.3f}' for share in verdict.shares)}")
    return 0


def _judge(options: argparse.Namespace) -> Verdict:
    """Read what is required, and check the file against it."""
    shares, num_classes = None, options.num_classes
    if options.train is not None:
        train = load_coco(options.train.parent, options.train.name)
        shares, num_classes = count_shares(train), train.num_classes
    if num_classes is None:
        given = "--train TRAIN.json, or --num-classes with the background"
        raise InputError(f"required {given}, to know which ids there are")
    checks = {"size": options.size, "train_shares": shares, "batch_size": options.batch_size}
    return validate_submission(options.file, read_file_names(options.sample), num_classes, **checks)


def _send(options: argparse.Namespace) -> int:
    """Check a file unless its record says that this was done, then send it."""
    path = options.file
    if not options.send:
        raise InputError(f"--send: required a command with {{file}} in it, or {SEND} in the environment, got none")
    if not path.is_file():
        raise InputError(f"{path}: required a submission CSV, got no such file")
    if options.sample is not None:
        _judge(options).refuse(path, options.force)
    elif _read_record(path) is None:
        raise InputError(
            f"{path}: required a record beside it that says it was checked, got none for this content; "
            "--sample SAMPLE.csv and --num-classes N check it now"
        )
    limits = {"per_day": options.per_day, "utc_offset": options.utc_offset, "again": options.again}
    code, printed = send_submission(path, options.send, options.ledger, **limits)
    outcome = "sent" if code == 0 else f"not sent, the command ended with exit code {code}"
    print(f"{printed}\n{path}: {outcome}; {_describe_left(options)}")
    return 0 if code == 0 else 1


def _score(options: argparse.Namespace) -> int:
    row = score_submission(options.file, options.score, options.ledger, options.correct)
    came, expected = row["leaderboard_score"], row["val_score"] or "-"
    print(f"{row['file']} ({row['hash'][:MIN_HASH]}): leaderboard {came}, val {expected}")
    return 0


def _list(options: argparse.Namespace) -> int:
    """Print the ledger, how many are left today, and what the scores that came say of those that were expected."""
    rows = read_ledger(options.ledger)
    if rows:
        header = ["hash", "file", "written", "runs", "sent", "expected", "leaderboard", "difference"]
        width = shutil.get_terminal_size((120, 24)).columns
        print(align([header, *map(_describe_row, rows)], shrinking={1, 3}, left={0, 1, 2, 3, 4}, width=width))
    print(f"{len(rows)} submissions; {_describe_left(options)}")
    from seglib.evaluation.verdicts import describe_submissions  # scipy takes a second, and sending needs none

    known = [row for row in rows if row["leaderboard_score"] or not list_sent(row)]  # others are on their way
    scores = [(row["file"], _number(row["val_score"]), _number(row["leaderboard_score"])) for row in known]
    for line in describe_submissions(pd.DataFrame(scores, columns=["name", "expected", "came"])):
        print(line)
    return 0


def _describe_row(row: dict[str, str]) -> list[str]:
    val, board = (_number(row[name]) for name in ("val_score", "leaderboard_score"))
    written, sent = (time[:16].replace("T", " ") for time in (row["written"], (list_sent(row) or [""])[-1]))
    texts = [row["hash"][:MIN_HASH], row["file"], written, row["runs"], sent]
    numbers = [f"{val:.4f}", f"{board:.4f}", f"{board - val:+.4f}"]
    return [text or "-" for text in texts] + ["-" if "nan" in number else number for number in numbers]


def _describe_left(options: argparse.Namespace) -> str:
    """How many were sent today, and how many are left."""
    used, day = count_today(read_ledger(options.ledger), options.utc_offset)
    if options.per_day is None:
        return f"{used} sent today ({day}); --per-day N says how many are left"
    return f"{max(0, options.per_day - used)} of {options.per_day} left today ({day})"


def _parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Options of each command; `action` is the function that does it."""
    parser = argparse.ArgumentParser(prog="python -m seglib submission", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="check | send | score | list")
    check = commands.add_parser("check", help="find all that is wrong with a file", allow_abbrev=False)
    send = commands.add_parser("send", help="send a valid file with a command of yours", allow_abbrev=False)
    score = commands.add_parser("score", help="type in the leaderboard's score", allow_abbrev=False)
    listing = commands.add_parser("list", help="what was sent and scored, and what is left today", allow_abbrev=False)
    for command, action in ((check, _check), (send, _send), (score, _score), (listing, _list)):
        command.set_defaults(action=action)
    for command in (check, send):
        option = command.add_argument
        option("file", metavar="FILE", type=Path, help="a submission CSV")
        option("--sample", type=Path, metavar="FILE", help="the sample submission, or the test set's JSON")
        option("--train", type=Path, metavar="JSON", help="the training set: its classes and their shares")
        option("--num-classes", type=_count, metavar="N", help="without --train: classes with the background")
        option("--size", type=_count, default=256, metavar="PX", help="side of the masks (default 256)")
        option("--batch-size", type=_count, default=0, metavar="N", help="of the prediction, if known")
        option("--force", action="store_true", help="take a readable file in spite of doubts about its masks")
    send.add_argument("--send", default=os.environ.get(SEND, ""), metavar="COMMAND", help=SEND_HELP)
    send.add_argument("--again", action="store_true", help="send a content that was sent before")
    score.add_argument("file", metavar="FILE", help="a submission, or the first digits of its hash")
    score.add_argument("score", type=float, metavar="SCORE", help="0 to 1")
    score.add_argument("--correct", action="store_true", help="replace a score that was typed in before")
    midnight = f"of the leaderboard's midnight, such as 9 (default: ${UTC_OFFSET}, or this machine's midnight)"
    for command in (send, listing):
        option, get = command.add_argument, os.environ.get
        allowed = f"allowed per day (default: ${PER_DAY})"
        option("--per-day", type=_count, default=get(PER_DAY) or None, metavar="N", help=allowed)
        option("--utc-offset", type=_hours, default=get(UTC_OFFSET) or None, metavar="HOURS", help=midnight)
    path = outputs_dir() / "submissions.csv"
    for command in (send, score, listing):
        command.add_argument("--ledger", type=Path, default=path, metavar="CSV", help="default: %(default)s")
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"required a whole number from 1, got {text!r}")
    return int(text)


def _hours(text: str) -> float:
    if not -12 <= _number(text) <= 14:
        raise argparse.ArgumentTypeError(f"required hours from -12 to 14, got {text!r}")
    return float(text)
