"""The ledger knows a submission by its content and loses no row; the command line never shows what is secret."""

import csv
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from seglib import ledger as ledger_module
from seglib.errors import InputError
from seglib.ledger import (
    COLUMNS,
    SEND_HELP,
    add_submission,
    count_today,
    end_send,
    expand_command,
    list_sent,
    main,
    read_ledger,
    score_submission,
    start_send,
)
from seglib.submission import write_submission


@pytest.fixture
def ledger(tmp_path):
    return tmp_path / "outputs" / "submissions.csv"


@pytest.fixture
def submit(tmp_path):
    """Write a submission of its own content; return its path."""

    def make(seed, val_score=None, name="s"):
        masks = np.random.default_rng(seed).integers(0, 3, (2, 8, 8), dtype=np.uint8)
        path = tmp_path / "outputs" / "grid" / f"{name}{seed}.csv"
        sources = [{"run": "grid/seed=1", "weights_sha256": "aa"}, {"run": "grid/seed=2", "weights_sha256": "bb"}]
        rows = zip(["a.jpg", "b.jpg"], masks, strict=True)
        write_submission(path, rows, ["a.jpg", "b.jpg"], 3, size=8, sources=sources, val_score=val_score)
        return path

    return make


@pytest.fixture
def clock(monkeypatch):
    """Set what time it is."""

    def turn(text):
        monkeypatch.setattr(ledger_module, "_now", lambda: datetime.fromisoformat(text).replace(tzinfo=UTC))

    return turn


def send(path, ledger, exit_code=0, per_day=None, utc_offset=0.0, again=False):
    end_send(ledger, start_send(path, ledger, per_day, utc_offset, again), exit_code)


def test_a_row_says_what_is_behind_a_submission(ledger, submit):
    row = add_submission(submit(0, val_score=0.625), ledger)
    assert read_ledger(ledger) == [row] and list(row) == COLUMNS
    assert row["file"] == "grid/s0.csv" and row["val_score"] == "0.625"
    assert row["runs"] == "grid/seed=1; grid/seed=2" and row["weights"] == "aa; bb"
    assert row["resizing"].startswith("argmax") and row["sends"] == row["leaderboard_score"] == ""


def test_the_same_content_has_one_row(ledger, submit):
    first = add_submission(submit(0), ledger)
    copy = submit(0, name="copy")
    assert add_submission(copy, ledger) == first and len(read_ledger(ledger)) == 1


def test_a_file_that_changed_after_its_record_was_written_claims_no_runs(ledger, submit):
    path = submit(0, val_score=0.6)
    path.write_text(path.read_text() + "c.jpg,0\n")
    row = add_submission(path, ledger)
    assert row["runs"] == row["val_score"] == ""


def test_a_score_is_typed_in_once(ledger, submit):
    path = submit(0)
    assert score_submission(path, 0.5911, ledger)["leaderboard_score"] == "0.5911"
    with pytest.raises(InputError, match=r"scored 0\.5911 on \d{4}-\d\d-\d\d already \(the same content\); --correct"):
        score_submission(submit(0, name="copy"), 0.6, ledger)
    assert score_submission(path, 0.6, ledger, correct=True)["leaderboard_score"] == "0.6"
    assert len(read_ledger(ledger)) == 1


@pytest.mark.parametrize("score", [59.11, -0.1, float("nan"), float("inf")])
def test_a_score_is_a_share(ledger, submit, score):
    with pytest.raises(InputError, match=r"required a number from 0 to 1, got .* divide a percentage by 100"):
        score_submission(submit(0), score, ledger)


def test_a_score_of_a_file_that_was_written_over_goes_to_what_was_sent(ledger, submit):
    path = submit(0)
    send(path, ledger)
    content = read_ledger(ledger)[0]["hash"]
    path.write_bytes(submit(1).read_bytes())
    with pytest.raises(InputError, match=f"its content changed since it was sent on .* give the hash .* {content[:6]}"):
        score_submission(path, 0.5, ledger)
    assert score_submission(content[:6], 0.5, ledger)["hash"] == content


@pytest.mark.parametrize("which", ["nothing.csv", "zzzzzz", ""])
def test_what_is_neither_file_nor_hash_is_refused(ledger, submit, which):
    add_submission(submit(0), ledger)
    with pytest.raises(InputError, match="required a file, or a hash's first 6 digits"):
        score_submission(which, 0.5, ledger)


def test_a_content_is_sent_once(ledger, submit):
    send(submit(0), ledger)
    with pytest.raises(InputError, match=r"sent on .* UTC already \(the same content\); --again"):
        send(submit(0, name="copy"), ledger)
    send(submit(0), ledger, again=True)
    assert len(list_sent(read_ledger(ledger)[0])) == 2


def test_a_send_that_failed_may_be_tried_again_and_uses_up_nothing(ledger, submit):
    send(submit(0), ledger, exit_code=22)
    assert count_today(read_ledger(ledger), 0.0)[0] == 0
    send(submit(0), ledger, per_day=1)
    assert [send.rpartition("=")[2] for send in read_ledger(ledger)[0]["sends"].split("; ")] == ["22", "0"]


def test_a_send_without_word_of_its_end_counts(ledger, submit):
    start_send(submit(0), ledger, 1, 0.0)
    with pytest.raises(InputError, match="already"):
        start_send(submit(0), ledger, 5, 0.0)
    with pytest.raises(InputError, match="none left today"):
        start_send(submit(1), ledger, 1, 0.0)


def test_the_day_has_its_limit(ledger, submit, clock):
    clock("2026-11-21T20:00:00")
    send(submit(0), ledger, per_day=2)
    send(submit(1), ledger, per_day=2)
    with pytest.raises(InputError, match=r"none left today \(since midnight at UTC\+0\), 2 of 2 sent; .* --per-day"):
        send(submit(2), ledger, per_day=2)
    clock("2026-11-22T00:01:00")
    send(submit(2), ledger, per_day=2)
    assert count_today(read_ledger(ledger), 0.0)[0] == 1


@pytest.mark.parametrize(("offset", "used"), [(0.0, 1), (9.0, 2), (5.5, 2), (-8.0, 3)])
def test_a_day_begins_at_the_leaderboards_midnight(ledger, submit, clock, offset, used):
    for seed, time in enumerate(["2026-11-20T14:00:00", "2026-11-20T20:00:00", "2026-11-21T01:00:00"]):
        clock(time)
        send(submit(seed), ledger)
    assert count_today(read_ledger(ledger), offset)[0] == used


def test_one_that_was_sent_by_hand_counts_when_it_is_scored(ledger, submit, clock):
    clock("2026-11-21T10:00:00")
    score_submission(submit(0), 0.5, ledger)
    send(submit(1), ledger)
    score_submission(submit(1), 0.5, ledger)
    assert count_today(read_ledger(ledger), 0.0)[0] == 2


def test_columns_that_people_add_are_kept(ledger, submit):
    add_submission(submit(0), ledger)
    table = pd.read_csv(ledger, dtype=str, keep_default_na=False).assign(note="first, and best")
    table.to_csv(ledger, index=False, encoding="utf-8-sig")
    add_submission(submit(1), ledger)
    assert [row["note"] for row in read_ledger(ledger)] == ["first, and best", ""]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace("hash,file", "hash,path", 1), "required the columns .*, file missing"),
        (lambda text: text.replace(",0.625,", ",62%,"), r"\[row 1\]: val_score must be a number .* got '62%'"),
        (lambda text: text.replace(",0.625,", ",62.5,"), r"\[row 1\]: val_score must be a number .* got '62\.5'"),
        (
            lambda text: text.replace(",,,\n", ",yesterday=0,,\n"),
            r"\[row 1\]: required times such as .* got 'yesterday'",
        ),
        (lambda text: text.replace(",,,\n", ",,,,\n"), r"\[row 1\]: required as many fields as the header"),
    ],
)
def test_a_ledger_that_was_broken_by_hand_is_not_written_over(ledger, submit, change, words):
    add_submission(submit(0, val_score=0.625), ledger)
    broken = change(ledger.read_text())
    ledger.write_text(broken)
    with pytest.raises(InputError, match=words):
        add_submission(submit(1), ledger)
    assert ledger.read_text() == broken


def test_writers_at_the_same_time_lose_no_row(ledger, submit):
    paths = [[str(submit(10 * worker + i)) for i in range(5)] for worker in range(3)]
    code = (
        "import sys; from pathlib import Path; from seglib.ledger import *\n"
        "for path in sys.argv[2:]: score_submission(path, 0.5, Path(sys.argv[1]))"
    )
    workers = [subprocess.Popen([sys.executable, "-c", code, str(ledger), *own]) for own in paths]
    assert [worker.wait(60) for worker in workers] == [0, 0, 0]
    rows = read_ledger(ledger)
    assert len({row["hash"] for row in rows}) == len(rows) == 15
    assert {row["leaderboard_score"] for row in rows} == {"0.5"}


def test_the_ledger_is_plain_csv(ledger, submit):
    add_submission(submit(0), ledger)
    with open(ledger, newline="") as file:
        assert next(csv.reader(file)) == COLUMNS


NAMES = ["a.jpg", "b.jpg", "c.jpg"]
SAVE = f"{sys.executable} -c 'import sys; open(sys.argv[2], \"w\").write(repr(sys.argv[1:]))' {{file}} "


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("SEGLIB_SUBMISSIONS_PER_DAY", "SEGLIB_SUBMISSIONS_UTC_OFFSET", "SEGLIB_SEND"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sample.csv").write_text("image_id,PredictionString\n" + "".join(f"{name},0\n" for name in NAMES))
    return tmp_path


@pytest.fixture
def save(folder):
    def make(seed=0, val_score=None):
        masks = np.random.default_rng(seed).integers(0, 3, (3, 8, 8), dtype=np.uint8)
        path = folder / f"s{seed}.csv"
        write_submission(path, zip(NAMES, masks, strict=True), NAMES, 3, size=8, val_score=val_score)
        return path

    return make


@pytest.fixture
def call(folder, capsys):
    """Run a command; return its exit code, output and errors."""

    def run(command, *arguments):
        ledger = [] if command == "check" else ["--ledger", str(folder / "submissions.csv")]
        code = main([command, *map(str, arguments), *ledger])
        return code, *capsys.readouterr()

    return run


def test_check_says_that_a_file_is_valid(call, save, folder):
    options = ["--sample", folder / "sample.csv", "--num-classes", 3, "--size", 8]
    code, out, err = call("check", save(), *options)
    assert code == 0 and "valid; class shares 0." in out and not err


def test_check_prints_every_problem_in_a_line(call, save, folder):
    path = save()
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[2].replace(" 1 ", " 9 ", 1), lines[1]]) + "\n")
    code, out, err = call("check", path, "--sample", folder / "sample.csv", "--num-classes", 3, "--size", 8)
    assert code == 1 and not out
    assert err.splitlines() == [
        f"{path}: the last 1 row of 3 missing, from c.jpg on: did the prediction stop early?",
        f"{path}: b.jpg: ids from 0 to 9 where 0 to 2 are required",
    ]


def test_check_takes_classes_and_their_shares_from_the_training_set(call, tmp_path, small_data):
    masks = np.random.default_rng(0).integers(0, 2, (3, 8, 8), dtype=np.uint8)
    (tmp_path / "sample.csv").write_text("image_id,PredictionString\n" + "".join(f"{name},0\n" for name in NAMES))
    write_submission(tmp_path / "s.csv", zip(NAMES, masks, strict=True), NAMES, 3, size=8)
    options = ["--sample", tmp_path / "sample.csv", "--size", 8, "--train", small_data / "train.json"]
    code, _, err = call("check", tmp_path / "s.csv", *options)
    assert code == 1 and "class 1 has" in err and "where train has" in err and "--force" in err
    assert call("check", tmp_path / "s.csv", *options, "--force")[0] == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "--sample: required the sample submission"),
        (["--sample", "sample.csv"], "required --train TRAIN.json, or --num-classes"),
        (["--sample", "none.csv", "--num-classes", 3], "none.csv: required a submission CSV, got no such file"),
        (["--sample", "none.json", "--num-classes", 3], "unknown JSON file 'none.json'"),
    ],
)
def test_check_needs_to_know_what_is_required(call, save, folder, monkeypatch, options, words):
    monkeypatch.chdir(folder)
    code, _, err = call("check", save(), *options)
    assert code == 1 and words in err and len(err.splitlines()) == 1


def test_a_submission_is_sent_with_the_users_command(call, save, folder, monkeypatch):
    monkeypatch.setenv("TOKEN", "s3cret; touch broken `date` $HOME {file}")
    path, saved = save(), folder / "saved.txt"
    command = SAVE + f'{saved} "-H X: $TOKEN" ${{TOKEN}}x @{{file}} $5'
    code, out, _ = call("send", path, "--send", command)
    assert code == 0 and "sent; 1 sent today" in out
    token = "s3cret; touch broken `date` $HOME {file}"
    assert saved.read_text() == repr([str(path), str(saved), f"-H X: {token}", f"{token}x", f"@{path}", "$5"])
    assert read_ledger(folder / "submissions.csv")[0]["sends"].endswith("=0")


def test_the_recommended_quotes_reach_curl_around_a_path_with_commas(folder):
    assert '-F "file=@\\"{file}\\"" URL' in SEND_HELP
    path = folder / "loss=ce0.9,seed=1;2" / "s.csv"
    for written in ('-F "file=@\\"{file}\\""', "-F 'file=@\"{file}\"'"):
        with expand_command(f"curl {written} URL", path) as (command, _):
            assert command == ["curl", "-F", f'file=@"{path}"', "URL"]


def test_a_token_in_a_header_of_curl_is_not_among_the_arguments(folder, monkeypatch):
    monkeypatch.setenv("TOKEN", "s3cret")
    template = 'curl -H "Authorization: Bearer $TOKEN" -H "Accept: */*" -F file=@{file} URL'
    with expand_command(template, folder / "s.csv") as (command, _):
        header = Path(command[2][1:])
        assert command[2][0] == "@" and header.read_text() == "Authorization: Bearer s3cret"
        assert header.parent.stat().st_mode & 0o077 == 0 and "s3cret" not in " ".join(command)
        assert command[3:5] == ["-H", "Accept: */*"]
    assert not header.exists()


def test_a_token_elsewhere_is_said_to_be_seen(call, save, monkeypatch):
    monkeypatch.setenv("TOKEN", "s3cret")
    code, out, _ = call("send", save(), "--send", f"{sys.executable} -c 0 {{file}} $TOKEN")
    assert code == 0 and "$TOKEN: other users of this machine could list it" in out and "s3cret" not in out


def test_a_command_that_does_not_end_is_stopped_and_counts(call, save, folder, monkeypatch):
    monkeypatch.setattr(ledger_module, "LONGEST", 0.5)
    code, _, err = call("send", save(), "--send", f"{sys.executable} -c 'import time; time.sleep(60)' {{file}}")
    assert code == 1 and "counts as sent" in err
    assert read_ledger(folder / "submissions.csv")[0]["sends"].endswith("=?")


def test_what_a_command_prints_is_shown_without_the_token(call, save, folder, monkeypatch):
    monkeypatch.setenv("TOKEN", "s3cret")
    monkeypatch.setenv("LONGER", "s3cret-too")
    code = "import sys; print(sys.argv[1:]); print(sys.argv[2], file=sys.stderr); sys.exit(22)"
    command = f"{sys.executable} -c '{code}' {{file}} $TOKEN $LONGER"
    code, out, err = call("send", save(), "--send", command)
    assert code == 1 and "not sent, the command ended with exit code 22" in out
    assert "'$TOKEN', '$LONGER'" in out and "s3cret" not in out + err
    assert "s3cret" not in (folder / "submissions.csv").read_text()
    assert read_ledger(folder / "submissions.csv")[0]["sends"].endswith("=22")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("curl https://host", "required a command with {file} in it"),
        ("curl '{file}", "got a text with no closing quotation"),
        ("curl -F @{file} $NO_SUCH_TOKEN", "required the environment variable NO_SUCH_TOKEN, got none; export"),
        ("", "required a command with {file} in it, or SEGLIB_SEND"),
        ("no-such-program-$TOKEN {file}", "got No such file or directory: no-such-program-$TOKEN"),
    ],
)
def test_a_command_that_cannot_be_run_is_refused(call, save, monkeypatch, command, words):
    monkeypatch.setenv("TOKEN", "s3cret")
    code, out, err = call("send", save(), "--send", command)
    assert code == 1 and words in err and len(err.splitlines()) == 1 and "s3cret" not in out + err


def test_the_same_content_is_not_sent_twice(call, save):
    command = ["--send", f"{sys.executable} -c 0 {{file}}"]
    assert call("send", save(), *command)[0] == 0
    code, _, err = call("send", save(), *command)
    assert code == 1 and "already (the same content); --again" in err and len(err.splitlines()) == 1
    assert call("send", save(), *command, "--again")[0] == 0


def test_nothing_is_sent_when_none_is_left(call, save, monkeypatch):
    monkeypatch.setenv("SEGLIB_SUBMISSIONS_PER_DAY", "1")
    monkeypatch.setenv("SEGLIB_SEND", f"{sys.executable} -c 0 {{file}}")
    code, out, _ = call("send", save(0))
    assert code == 0 and "0 of 1 left today" in out
    code, _, err = call("send", save(1))
    assert code == 1 and "none left today" in err and len(err.splitlines()) == 1
    code, out, _ = call("send", save(1), "--per-day", 2, "--utc-offset", 9)
    assert code == 0 and "0 of 2 left today (since midnight at UTC+9)" in out


def test_a_file_that_nobody_checked_is_not_sent(call, save, folder):
    path = save()
    path.write_text(path.read_text().replace(" 1 ", " 9 ", 1))
    command = ["--send", f"{sys.executable} -c 0 {{file}}"]
    code, _, err = call("send", path, *command)
    assert code == 1 and "required a record beside it that says it was checked" in err and "--sample" in err
    code, _, err = call("send", path, *command, "--sample", folder / "sample.csv", "--num-classes", 3, "--size", 8)
    assert code == 1 and "ids from 0 to 9" in err
    assert not (folder / "submissions.csv").exists()


def test_scores_are_typed_in_and_listed(call, save, folder):
    for seed, (val, board) in enumerate([(0.61, 0.55), (0.58, 0.53), (0.64, 0.56)]):
        code, out, _ = call("score", save(seed, val), board)
        assert code == 0 and f"leaderboard {board}, val {val}" in out
    code, out, _ = call("list", "--per-day", 5, "--utc-offset", 0)
    assert code == 0 and "3 submissions; 2 of 5 left today (since midnight at UTC+0)" in out
    assert "s0.csv" in out and "0.6100" in out and "0.5500" in out and "-0.0600" in out
    assert "leaderboard minus expected: -0.0633 on average, 95 % interval -0.1013 to -0.0254 (n = 3)" in out
    assert "(Spearman): cannot be told from fewer than 5 scores (n = 3)" in out and "Worth" not in out
    assert call("score", save(3, 0.7), 0.62)[0] == 0
    add_submission(save(4, 0.9), folder / "submissions.csv")
    out = call("list")[1]
    assert "s4.csv: 0.8" in out and out.count("Worth a submission? yes") == 1
    code, _, err = call("score", save(0), 0.7)
    assert code == 1 and "scored 0.55 on" in err and "--correct" in err
    assert call("score", save(0), 0.7, "--correct")[0] == 0


def test_an_empty_ledger_is_listed(call):
    code, out, _ = call("list")
    assert (
        code == 0 and out == "0 submissions; 0 sent today (since midnight here); --per-day N says how many are left\n"
    )


@pytest.mark.parametrize("arguments", [["--per-day", "0"], ["--utc-offset", "KST"], ["--utc-offset", "30"]])
def test_options_that_make_no_sense_are_refused(call, arguments):
    with pytest.raises(SystemExit) as caught:
        call("list", *arguments)
    assert caught.value.code == 2
