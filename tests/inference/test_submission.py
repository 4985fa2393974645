"""The command line of submissions: what it refuses, sends, shows, and never shows."""

import sys

import numpy as np
import pytest

from seglib.inference.submission import SEND_HELP, main
from seglib.inference.submission_ledger import expand, read_ledger
from seglib.inference.submission_write import write_submission

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
def submit(folder):
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


def test_check_says_that_a_file_is_valid(call, submit, folder):
    options = ["--sample", folder / "sample.csv", "--num-classes", 3, "--size", 8]
    code, out, err = call("check", submit(), *options)
    assert code == 0 and "valid; class shares 0." in out and not err


def test_check_prints_every_problem_in_a_line(call, submit, folder):
    path = submit()
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
def test_check_needs_to_know_what_is_required(call, submit, folder, monkeypatch, options, words):
    monkeypatch.chdir(folder)
    code, _, err = call("check", submit(), *options)
    assert code == 1 and words in err and len(err.splitlines()) == 1


def test_a_submission_is_sent_with_the_users_command(call, submit, folder, monkeypatch):
    monkeypatch.setenv("TOKEN", "s3cret; touch broken `date` $HOME {file}")
    path, saved = submit(), folder / "saved.txt"
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
        assert expand(f"curl {written} URL", path)[0] == ["curl", "-F", f'file=@"{path}"', "URL"]


def test_what_a_command_prints_is_shown_without_the_token(call, submit, folder, monkeypatch):
    monkeypatch.setenv("TOKEN", "s3cret")
    monkeypatch.setenv("LONGER", "s3cret-too")
    code = "import sys; print(sys.argv[1:]); print(sys.argv[2], file=sys.stderr); sys.exit(22)"
    command = f"{sys.executable} -c '{code}' {{file}} $TOKEN $LONGER"
    code, out, err = call("send", submit(), "--send", command)
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
def test_a_command_that_cannot_be_run_is_refused(call, submit, monkeypatch, command, words):
    monkeypatch.setenv("TOKEN", "s3cret")
    code, out, err = call("send", submit(), "--send", command)
    assert code == 1 and words in err and len(err.splitlines()) == 1 and "s3cret" not in out + err


def test_the_same_content_is_not_sent_twice(call, submit):
    command = ["--send", f"{sys.executable} -c 0 {{file}}"]
    assert call("send", submit(), *command)[0] == 0
    code, _, err = call("send", submit(), *command)
    assert code == 1 and "already (the same content); --again" in err and len(err.splitlines()) == 1
    assert call("send", submit(), *command, "--again")[0] == 0


def test_nothing_is_sent_when_none_is_left(call, submit, monkeypatch):
    monkeypatch.setenv("SEGLIB_SUBMISSIONS_PER_DAY", "1")
    monkeypatch.setenv("SEGLIB_SEND", f"{sys.executable} -c 0 {{file}}")
    code, out, _ = call("send", submit(0))
    assert code == 0 and "0 of 1 left today" in out
    code, _, err = call("send", submit(1))
    assert code == 1 and "none left today" in err and len(err.splitlines()) == 1
    code, out, _ = call("send", submit(1), "--per-day", 2, "--utc-offset", 9)
    assert code == 0 and "0 of 2 left today (since midnight at UTC+9)" in out


def test_a_file_that_nobody_checked_is_not_sent(call, submit, folder):
    path = submit()
    path.write_text(path.read_text().replace(" 1 ", " 9 ", 1))
    command = ["--send", f"{sys.executable} -c 0 {{file}}"]
    code, _, err = call("send", path, *command)
    assert code == 1 and "required a record beside it that says it was checked" in err and "--sample" in err
    code, _, err = call("send", path, *command, "--sample", folder / "sample.csv", "--num-classes", 3, "--size", 8)
    assert code == 1 and "ids from 0 to 9" in err
    assert not (folder / "submissions.csv").exists()


def test_scores_are_typed_in_and_listed(call, submit):
    for seed, (val, board) in enumerate([(0.61, 0.55), (0.58, 0.53), (0.64, 0.56)]):
        code, out, _ = call("score", submit(seed, val), board)
        assert code == 0 and f"leaderboard {board}, val {val}" in out
    code, out, _ = call("list", "--per-day", 5, "--utc-offset", 0)
    assert code == 0 and "3 submissions; 2 of 5 left today (since midnight at UTC+0)" in out
    assert "s0.csv" in out and "0.6100" in out and "0.5500" in out and "-0.0600" in out
    assert "Spearman's rank correlation: 1.000 (n = 3)" in out
    code, _, err = call("score", submit(0), 0.7)
    assert code == 1 and "scored 0.55 on" in err and "--correct" in err
    assert call("score", submit(0), 0.7, "--correct")[0] == 0


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
