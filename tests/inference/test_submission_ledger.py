"""The ledger knows a submission by its content, counts the day, and loses no row."""

import csv
import subprocess
import sys
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from seglib.errors import InputError
from seglib.inference import submission_ledger
from seglib.inference.submission_ledger import (
    COLUMNS,
    add_submission,
    correlate_scores,
    count_today,
    end_send,
    list_sent,
    read_ledger,
    score_submission,
    start_send,
)
from seglib.inference.submission_write import write_submission


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
        monkeypatch.setattr(submission_ledger, "_now", lambda: datetime.fromisoformat(text).replace(tzinfo=UTC))

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
    assert count_today(read_ledger(ledger), 0.0) == 0
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
    assert count_today(read_ledger(ledger), 0.0) == 1


@pytest.mark.parametrize(("offset", "used"), [(0.0, 1), (9.0, 2), (5.5, 2), (-8.0, 3)])
def test_a_day_begins_at_the_leaderboards_midnight(ledger, submit, clock, offset, used):
    for seed, time in enumerate(["2026-11-20T14:00:00", "2026-11-20T20:00:00", "2026-11-21T01:00:00"]):
        clock(time)
        send(submit(seed), ledger)
    assert count_today(read_ledger(ledger), offset) == used


def test_one_that_was_sent_by_hand_counts_when_it_is_scored(ledger, submit, clock):
    clock("2026-11-21T10:00:00")
    score_submission(submit(0), 0.5, ledger)
    send(submit(1), ledger)
    score_submission(submit(1), 0.5, ledger)
    assert count_today(read_ledger(ledger), 0.0) == 2


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
        "import sys; from pathlib import Path; from seglib.inference.submission_ledger import *\n"
        "for path in sys.argv[2:]: score_submission(path, 0.5, Path(sys.argv[1]))"
    )
    workers = [subprocess.Popen([sys.executable, "-c", code, str(ledger), *own]) for own in paths]
    assert [worker.wait(60) for worker in workers] == [0, 0, 0]
    rows = read_ledger(ledger)
    assert len({row["hash"] for row in rows}) == len(rows) == 15
    assert {row["leaderboard_score"] for row in rows} == {"0.5"}


def test_the_rank_correlation_is_that_of_scipy():
    val, board = np.random.default_rng(0).random((2, 9)).round(1)
    rows = [{"val_score": str(v), "leaderboard_score": str(b)} for v, b in zip(val, board, strict=True)]
    rank, count = correlate_scores([*rows, {"val_score": "0.5", "leaderboard_score": ""}])
    assert count == 9 and rank == pytest.approx(spearmanr(val, board).statistic)


@pytest.mark.parametrize("pairs", [[], [(0.1, 0.2), (0.3, 0.4)], [(0.5, 0.2), (0.5, 0.3), (0.5, 0.4)]])
def test_scores_that_cannot_be_ranked_have_no_correlation(pairs):
    rank, count = correlate_scores([{"val_score": str(v), "leaderboard_score": str(b)} for v, b in pairs])
    assert np.isnan(rank) and count == len(pairs)


def test_the_ledger_is_plain_csv(ledger, submit):
    add_submission(submit(0), ledger)
    with open(ledger, newline="") as file:
        assert next(csv.reader(file)) == COLUMNS
