"""Submissions on the command line: check a file, send it, type in its score, list what was sent."""

import argparse
import math
import os
import shutil
import sys
from pathlib import Path

from seglib.data.coco import load_coco
from seglib.errors import InputError
from seglib.inference.submission_file import read_file_names
from seglib.inference.submission_ledger import (
    MIN_HASH,
    Row,
    correlate_scores,
    count_today,
    describe_day,
    ledger_path,
    list_sent,
    read_ledger,
    read_record,
    score_submission,
    send_submission,
)
from seglib.inference.submission_write import Verdict, count_shares, validate_submission
from seglib.runs.leaderboard import align

PER_DAY, UTC_OFFSET, SEND = "SEGLIB_SUBMISSIONS_PER_DAY", "SEGLIB_SUBMISSIONS_UTC_OFFSET", "SEGLIB_SEND"
SEND_HELP = (
    'split as a shell does but run without one, such as \'curl --fail -H "Authorization: Bearer $TOKEN" '
    '-F "file=@\\"{file}\\"" URL\', where the inner quotes keep curl from splitting a path at its commas; '
    f"$TOKEN comes from the environment and is never shown (default: ${SEND})"
)


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line asks; return 0, 1 where a submission is refused or a send failed, 2 for a wrong option."""
    options = parse_arguments(arguments)
    try:
        return options.action(options)
    except InputError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:  # a disk that is full, a folder without permission
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; a send that had begun counts as sent", file=sys.stderr)
        return 130


def check(options: argparse.Namespace) -> int:
    """Print all problems of a file."""
    if options.sample is None:
        raise InputError("--sample: required the sample submission, or the test set's JSON, got none")
    verdict = judge(options)
    for line in verdict.notes:
        print(f"note: {line}")
    verdict.refuse(options.file, options.force)
    print(f"{options.file}: valid; class shares {' '.join(f'{share:.3f}' for share in verdict.shares)}")
    return 0


def judge(options: argparse.Namespace) -> Verdict:
    """Read what is required, and check the file against it."""
    shares, num_classes = None, options.num_classes
    if options.train is not None:
        train = load_coco(options.train.parent, options.train.name)
        shares, num_classes = count_shares(train), train.num_classes
    if num_classes is None:
        raise InputError(
            "required --train TRAIN.json, or --num-classes with the background, to know which ids there are"
        )
    return validate_submission(
        options.file,
        read_file_names(options.sample),
        num_classes,
        size=options.size,
        train_shares=shares,
        batch_size=options.batch_size,
    )


def score(options: argparse.Namespace) -> int:
    """Type in a leaderboard score."""
    row = score_submission(options.file, options.score, options.ledger, options.correct)
    print(
        f"{row['file']} ({row['hash'][:MIN_HASH]}): leaderboard {row['leaderboard_score']}, val {row['val_score'] or '-'}"
    )
    return 0


def send(options: argparse.Namespace) -> int:
    """Check a file unless its record says that this was done, then send it."""
    if not options.send:
        raise InputError(f"--send: required a command with {{file}} in it, or {SEND} in the environment, got none")
    path = Path(options.file)
    if not path.is_file():
        raise InputError(f"{path}: required a submission CSV, got no such file")
    if options.sample is not None:
        judge(options).refuse(path, options.force)
    elif read_record(path) is None:
        raise InputError(
            f"{path}: required a record beside it that says it was checked, got none for this content; "
            "--sample SAMPLE.csv and --num-classes N check it now"
        )
    code = send_submission(
        path,
        options.send,
        options.ledger,
        per_day=options.per_day,
        utc_offset=options.utc_offset,
        again=options.again,
        show=print,
    )
    left = describe_left(read_ledger(options.ledger), options)
    print(
        f"{path}: sent; {left}" if code == 0 else f"{path}: not sent, the command ended with exit code {code}; {left}"
    )
    return 0 if code == 0 else 1


def list_submissions(options: argparse.Namespace) -> int:
    """Print the ledger, how many are left today, and how val follows the leaderboard."""
    rows = read_ledger(options.ledger)
    if rows:
        header = ["hash", "file", "written", "runs", "sent", "val", "leaderboard", "difference"]
        width = shutil.get_terminal_size((120, 24)).columns
        print(align([header, *map(describe_row, rows)], shrinking={1, 3}, left={0, 1, 2, 3, 4}, width=width))
    print(f"{len(rows)} submissions; {describe_left(rows, options)}")
    rank, count = correlate_scores(rows)
    if count:
        said = "three different scores are needed" if math.isnan(rank) else f"{rank:.3f}"
        print(f"val score against leaderboard score, Spearman's rank correlation: {said} (n = {count})")
    return 0


def describe_row(row: Row) -> list[str]:
    """A row of the ledger as texts of the table."""
    val, board = (float(row[name]) if row[name] else math.nan for name in ("val_score", "leaderboard_score"))
    sent = (list_sent(row) or [""])[-1][:16].replace("T", " ")
    numbers = [f"{val:.4f}", f"{board:.4f}", f"{board - val:+.4f}"]
    texts = [row["hash"][:MIN_HASH], row["file"], row["written"][:16].replace("T", " "), row["runs"], sent]
    return [text or "-" for text in texts] + ["-" if "nan" in number else number for number in numbers]


def describe_left(rows: list[Row], options: argparse.Namespace) -> str:
    """How many were sent today, and how many are left."""
    used = count_today(rows, options.utc_offset)
    day = describe_day(options.utc_offset)
    if options.per_day is None:
        return f"{used} sent today ({day}); --per-day N says how many are left"
    return f"{max(0, options.per_day - used)} of {options.per_day} left today ({day})"


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Options of each command; `action` is the function that does it."""
    parser = argparse.ArgumentParser(prog="python -m seglib submission", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="check | send | score | list")

    checking = commands.add_parser("check", help="find all that is wrong with a file")
    checking.set_defaults(action=check)
    _add_check(checking)

    sending = commands.add_parser("send", help="send a valid file with a command of yours")
    sending.set_defaults(action=send)
    _add_check(sending)
    sending.add_argument("--send", default=os.environ.get(SEND, ""), metavar="COMMAND", help=SEND_HELP)
    sending.add_argument("--again", action="store_true", help="send a content that was sent before")

    scoring = commands.add_parser("score", help="type in the leaderboard's score")
    scoring.set_defaults(action=score)
    scoring.add_argument("file", metavar="FILE", help="a submission, or the first digits of its hash")
    scoring.add_argument("score", type=float, metavar="SCORE", help="0 to 1")
    scoring.add_argument("--correct", action="store_true", help="replace a score that was typed in before")

    listing = commands.add_parser("list", help="what was sent and scored, and how many are left today")
    listing.set_defaults(action=list_submissions)

    for command in (sending, listing):
        _add_day(command)
    for command in (sending, scoring, listing):
        command.add_argument(
            "--ledger", type=Path, default=ledger_path(), metavar="CSV", help="outputs/submissions.csv"
        )
    return parser.parse_args(arguments)


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="a submission CSV")
    parser.add_argument("--sample", type=Path, metavar="FILE", help="the sample submission, or the test set's JSON")
    parser.add_argument("--train", type=Path, metavar="JSON", help="the training set: its classes and their shares")
    parser.add_argument("--num-classes", type=_count, metavar="N", help="without --train: classes with the background")
    parser.add_argument("--size", type=_count, default=256, metavar="PX", help="side of the masks (default 256)")
    parser.add_argument("--batch-size", type=_count, default=0, metavar="N", help="of the prediction, if known")
    parser.add_argument("--force", action="store_true", help="take a readable file in spite of doubts about its masks")


def _add_day(parser: argparse.ArgumentParser) -> None:
    per_day, offset = os.environ.get(PER_DAY) or None, os.environ.get(UTC_OFFSET) or None
    parser.add_argument(
        "--per-day", type=_count, default=per_day, metavar="N", help=f"allowed a day (default: ${PER_DAY})"
    )
    parser.add_argument(
        "--utc-offset",
        type=_hours,
        default=offset,
        metavar="HOURS",
        help=f"of the leaderboard's midnight, such as 9 (default: ${UTC_OFFSET}, or this machine's midnight)",
    )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"required a whole number from 1, got {text!r}")
    return int(text)


def _hours(text: str) -> float:
    try:
        hours = float(text)
    except ValueError:
        hours = math.nan
    if not -12 <= hours <= 14:
        raise argparse.ArgumentTypeError(f"required hours from -12 to 14, got {text!r}")
    return hours


if __name__ == "__main__":
    print("python -m seglib.inference.submission is now: python -m seglib submission", file=sys.stderr)
    sys.exit(main())
