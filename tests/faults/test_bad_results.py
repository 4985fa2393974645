"""What runs, people and spreadsheets leave behind, damaged or of another kind. See `test_bad_inputs.py`."""

import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from seglib.evaluation.metrics import load_confusion, load_scene_names
from seglib.files import write_json
from seglib.ledger import COLUMNS, main, read_ledger
from seglib.models import build_model
from seglib.runs.conditions import summarise_conditions
from seglib.runs.leaderboard import collect_runs, format_table, write_leaderboard
from seglib.runs.page import write_index
from seglib.runs.record import read_history
from seglib.runs.repeat import repeat_run
from seglib.training.checkpoint import load_checkpoint


class Code:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def save(value, **options):
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def pack(**files):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/"), content)
    return file.getvalue()


def npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def header(shape, kind="<i8"):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
    return file.getvalue()


NO_FILES = {
    "missing": None, "a pipe": os.mkfifo, "a folder": Path.mkdir, "a loop": lambda path: path.symlink_to(path), "a device": lambda path: path.symlink_to("/dev/zero"),
    "2 TB": lambda path: (path.touch(), os.truncate(path, 2 << 40)), "0 bytes": b"", "NUL": b"\0" * 5000, "HTML": b"<html>", "escape": b"\x1b[31m",
}  # fmt: skip
WEIGHTS = {"model": {"a": torch.zeros(2)}, "epoch": 1}
CHECKPOINTS = NO_FILES | {
    "code": save(Code()), "code in it": save(WEIGHTS | {"epoch": Code()}), "old code": save(Code(), _use_new_zipfile_serialization=False), "pickle": pickle.dumps(Code()), "an object": save(WEIGHTS | {"epoch": Path("a")}),
    "a list": save([1]), "a tensor": save(torch.zeros(2)), "a number": save(1), "None": save(None), "no epoch": save({"model": {}}), "model None": save(WEIGHTS | {"model": None}), "model list": save(WEIGHTS | {"model": [1]}),
    "cut": save(WEIGHTS)[:-30], "half": save(WEIGHTS)[:300], "another zip": pack(a="b"), "empty zip": pack(), "zip of a pickle": pack(archive__data__pkl=pickle.dumps(Code())), "bomb": pack(archive__data="\0" * 100)[:-4] + b"\xff" * 4,
    "array": npz(a=np.zeros(2)), "text": b"epoch: 1", "safetensors of 2^63": (2**63 - 1).to_bytes(8, "little") + b"{}",
}  # fmt: skip


def lay(path, content):
    """Make a file of its bytes, or what is no file."""
    if callable(content):
        content(path)
    elif content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("content", CHECKPOINTS.values(), ids=CHECKPOINTS.keys())
def test_checkpoints(judge, tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    lay(tmp_path / "best.pt", content)
    judge(tmp_path, lambda: load_checkpoint(tmp_path / "best.pt", ("model", "epoch")), "best.pt: ")
    assert not (tmp_path / "pwned").exists()


STATES = CHECKPOINTS | {
    "numbers for names": save({1: torch.zeros(2)}), "names for weights": save({"a": "b"}), "one weight": save({"conv1.weight": torch.zeros(2)}), "nothing": save({}), "state_dict None": save({"state_dict": None}), "of a list": save({"model": [torch.zeros(1)]}),
    "half precision": save({"conv1.weight": torch.zeros(64, 3, 7, 7, dtype=torch.float16)}), "sparse": save({"conv1.weight": torch.zeros(2, 2).to_sparse()}),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("content", STATES.values(), ids=STATES.keys())
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_encoder_weights(judge, tmp_path, monkeypatch, content, suffix):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"w{suffix}"
    lay(path, content)
    ask = lambda: build_model("Linknet", "tu-test_resnet", 2, encoder_weights=str(path), image_size=64)  # noqa: E731
    judge(tmp_path, ask, f"encoder_weights {path}")
    assert not (tmp_path / "pwned").exists()


COUNTS, IDS, NAMES = np.zeros((2, 3, 3), np.int64), np.arange(2), np.array(["Background", "Can", "Bag"])
SOUND = {"confusion": COUNTS, "image_ids": IDS, "class_names": NAMES}
CONFUSIONS = NO_FILES | {
    "objects": npz(**SOUND | {"confusion": np.array([Code(), None], object)}), "names are objects": npz(**SOUND | {"class_names": np.array(["a", Code()], object)}), "no names": npz(confusion=COUNTS, image_ids=IDS), "two axes": npz(**SOUND | {"confusion": COUNTS[0]}),
    "not square": npz(**SOUND | {"confusion": COUNTS[:, :2]}), "other number": npz(**SOUND | {"image_ids": np.arange(3)}), "names of 2": npz(**SOUND | {"class_names": NAMES[:2]}), "floats": npz(**SOUND | {"confusion": COUNTS + 0.5}), "negative": npz(**SOUND | {"confusion": COUNTS - 1}),
    "names are numbers": npz(**SOUND | {"class_names": np.arange(3)}), "names twice": npz(**SOUND | {"class_names": np.array(["a", "a", "b"])}), "one number": npz(**SOUND | {"confusion": np.int64(1)}), "ids of floats": npz(**SOUND | {"image_ids": np.array([0.5, 1.5])}), "ids twice": npz(**SOUND | {"image_ids": np.array([1, 1])}),
    "a huge header": pack(**{"confusion.npy": header((10**9, 100, 100)), "image_ids.npy": header((2,)), "class_names.npy": header((2,))}), "a negative header": pack(**{"confusion.npy": header((-1, 3, 3))}), "no magic": pack(**{"confusion.npy": b"abc"}), "cut": npz(**SOUND)[:-40], "one array": header((2,)), "checkpoint": save(WEIGHTS),
}  # fmt: skip


@pytest.mark.parametrize("content", CONFUSIONS.values(), ids=CONFUSIONS.keys())
def test_confusions(judge, tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "confusion.npz"
    lay(path, content)
    judge(tmp_path, lambda: load_confusion(path), "confusion.npz: ")
    judge(tmp_path, lambda: (load_confusion(path), load_scene_names(path)), "confusion.npz: ")
    assert not (tmp_path / "pwned").exists()


OK = {
    "status": "ok",
    "params": {"seed": 1, "lr": 0.1},
    "metrics": {"miou": 0.5, "iou": {"Can": 0.5}},
    "best_epoch": 1,
    "seconds": 1.0,
}
RECORDS = {
    "null": "null", "a list": "[1]", "a list of lists": json.dumps([OK]), "a text": '"ok"', "a number": "3", "cut": json.dumps(OK)[:-5], "deep": "[" * 100_000, "deep objects": '{"a":' * 100_000, "deep in it": f'{{"status": "ok", "params": {"[" * 900}{"]" * 900}}}',
    "1e308": json.dumps(OK | {"metrics": {"miou": 1e308}}), "1e999": '{"status": "ok", "metrics": {"miou": 1e999}}', "-1e308": json.dumps(OK | {"metrics": {"miou": -1e308, "loss": 1e308}, "seconds": 1e308}), "NaN": '{"status": "ok", "metrics": {"miou": NaN}, "seconds": NaN}', "10^400": f'{{"status": "ok", "metrics": {{"miou": {10**400}}}}}', "5,000 digits": f'{{"status": {"9" * 5000}}}',
    "status list": json.dumps(OK | {"status": ["ok"]}), "status map": json.dumps(OK | {"status": {}}), "status null": json.dumps(OK | {"status": None}), "status new": json.dumps(OK | {"status": "\x1b[31m<b>"}), "params list": json.dumps(OK | {"params": [1]}), "params null": json.dumps(OK | {"params": None}), "params deep": json.dumps(OK | {"params": {"seed": {"a": [{"b": None}]}}}),
    "params text": json.dumps(OK | {"params": "x"}), "metrics list": json.dumps(OK | {"metrics": [1]}), "metrics null": json.dumps(OK | {"metrics": None}), "metrics text": json.dumps(OK | {"metrics": {"miou": "0.5", "iou": [1]}}), "miou bool": json.dumps(OK | {"metrics": {"miou": True}}), "iou list": json.dumps(OK | {"metrics": {"miou": 0.5, "iou": {"Can": [1]}}}),
    "best_epoch text": json.dumps(OK | {"best_epoch": "x"}), "seconds list": json.dumps(OK | {"seconds": [1]}), "seconds -1": json.dumps(OK | {"seconds": -1}), "error list": json.dumps(OK | {"error": [1, {"a": 2}]}), "key list": json.dumps(OK | {"key": [1]}), "oom_split text": json.dumps(OK | {"oom_split": "x"}), "painted list": json.dumps(OK | {"painted": [1]}),
    "painted of texts": json.dumps(OK | {"painted": {"train": {"Can": "x", "Bag": {"annotations": "x"}}}}), "averaging list": json.dumps(OK | {"params": {"averaging": ["ema"]}}), "averaging of lists": json.dumps(OK | {"params": {"averaging": [["ema"]]}}), "select_by list": json.dumps(OK | {"params": {"select_by": ["miou"]}}), "history_hash list": json.dumps(OK | {"history_hash": [1]}),
    "running by a list": json.dumps(OK | {"status": "running", "process": [1]}), "running by a text": json.dumps(OK | {"status": "running", "process": {"pid": "x", "started": "y"}}), "running by -1": json.dumps(OK | {"status": "running", "process": {"pid": -1, "started": 0}}), "running by 10^30": json.dumps(OK | {"status": "running", "process": {"pid": 10**30, "started": 0}}), "running elsewhere": json.dumps(OK | {"status": "running", "process": {"pid": 1, "host": ["x"]}}),
    "half a character": '{"status": "ok", "params": {"seed": "\\ud800"}, "error": "\\ud800"}', "of before": json.dumps({"status": "ok", "config": {"seed": 1}, "miou": 0.5}), "latin-1": '{"é": 1}'.encode("latin-1"), "UTF-16": json.dumps(OK).encode("utf-16"), "keys twice": '{"status": "ok", "status": "failed"}', "conditions": json.dumps(OK | {"conditions_changed": [[[]]], "deterministic": "no", "weights": [1]}),
}  # fmt: skip


@pytest.mark.parametrize("content", (RECORDS | NO_FILES).values(), ids=(RECORDS | NO_FILES).keys())
def test_records(judge, tmp_path, capsys, content):
    """A record that cannot be read is a row of the leaderboard that says so; the other runs stay as they are."""
    for name in ("a", "b"):
        (tmp_path / "grid" / name).mkdir(parents=True)
    write_json(tmp_path / "grid/a/record.json", OK)
    lay(tmp_path / "grid/b/record.json", content)

    def ask():
        rows = collect_runs(tmp_path / "grid", ["a", "b"], ["seed", "averaging"])
        summary = summarise_conditions(rows, ["seed"], {})
        text = format_table(rows, summary, ["seed"], 100)
        write_leaderboard(tmp_path / "grid", rows)
        write_index(tmp_path / "grid", rows, summary, ["seed"], "grid", "02_train")
        assert rows[0].miou == 0.5 and "\x1b" not in text and len(text.splitlines()) > 3
        assert rows[1].error or rows[1].status

    judge(tmp_path, ask, "")
    judge(tmp_path, lambda: repeat_run(tmp_path / "grid/b", print, print), "--repeat")


HISTORIES = {"binary": b"\xff\xfe\0", "no header": "1,2\n", "header only": "epoch,miou\n", "text": "epoch,miou\nx,y\n", "short": "epoch,miou\n1\n", "long": "epoch,miou\n1,2,3\n", "inf": "epoch,miou\ninf,1e999\n", "quotes": 'epoch,"miou\n1,2\n', "NUL": "epoch,miou\n1,\0\n", "1e308": "epoch,miou\n1e308,1e308\n", "twice": "epoch,epoch\n1,2\n"}  # fmt: skip


@pytest.mark.parametrize("content", (HISTORIES | NO_FILES).values(), ids=(HISTORIES | NO_FILES).keys())
def test_histories(judge, tmp_path, content):
    (tmp_path / "a").mkdir()
    write_json(tmp_path / "a/record.json", OK | {"params": {"averaging": {"ema": {}}}})
    lay(tmp_path / "a/history.csv", content)

    def ask():
        rows = collect_runs(tmp_path, ["a"], [])
        write_index(tmp_path, rows, summarise_conditions(rows, [], {}), [], "grid", "02_train")
        assert isinstance(read_history(tmp_path / "a/history.csv"), list) and rows[0].miou == 0.5

    judge(tmp_path, ask, "")


ROW = dict(zip(COLUMNS, ("ab" * 16, "a.csv", "2026-01-01T00:00:00+00:00", "", "", "", "0.5", "", "", ""), strict=True))


def ledger(**changes):
    return f"{','.join(COLUMNS)}\n{','.join((ROW | changes).values())}\n"


LEDGERS = {  # the ledger; what `list` must say
    "a list of words": ("a,b\n1,2\n", "required the columns"), "binary": (b"\xff\xfe\0\1", "required a CSV in UTF-8"), "NUL": (ledger() + "\0", "submissions.csv"), "short row": (ledger() + "a,b\n", "as many fields"), "long row": (ledger() + "a," * 30 + "\n", "as many fields"),
    "score text": (ledger(val_score="x"), "val_score must be a number"), "score 2": (ledger(leaderboard_score="2"), "leaderboard_score must be"), "score nan": (ledger(val_score="nan"), "val_score must be"), "time": (ledger(scored="yesterday"), "required times"), "sends": (ledger(sends="x=0"), "required times"),
    "fields of 10^6": (ledger(runs="x" * 1_000_000), "submissions.csv"), "quote": (ledger() + '"', "submissions.csv"), "0 bytes": ("", "required the columns"), "BOM": ("\ufeff" + ledger(), ""), "CRLF": (ledger().replace("\n", "\r\n"), ""), "escape": (ledger(runs="\x1b[31m"), ""), "formula": (ledger(runs="=cmd|'/C calc'!A0"), ""),
    "a pipe": (os.mkfifo, "got a pipe"), "a folder": (Path.mkdir, "directory"), "a loop": (lambda path: path.symlink_to(path), "symbolic links"), "a device": (lambda path: path.symlink_to("/dev/zero"), "got a pipe or a device"), "2 TB": (NO_FILES["2 TB"], "fits into memory"), "naive time": (ledger(scored="2026-01-01T00:00:00"), ""), "year 9999": (ledger(scored="9999-12-31T23:59:59+00:00"), ""),
}  # fmt: skip


@pytest.fixture
def submit(capsys):
    """The command line of submissions: (code, what was printed)."""

    def ask(*arguments):
        try:
            code = main([*map(str, arguments)])
        except SystemExit as error:
            code = error.code
        out, err = capsys.readouterr()
        assert "\x1b" not in out + err
        return (code, err) if code else (0, "")

    return ask


@pytest.mark.parametrize(("content", "words"), LEDGERS.values(), ids=LEDGERS.keys())
def test_ledgers(judge, tmp_path, submit, content, words):
    lay(tmp_path / "submissions.csv", content)
    judge(tmp_path, lambda: submit("list", "--ledger", tmp_path / "submissions.csv"), words)


HEAD, MASK = "image_id,PredictionString\n", " ".join(["0"] * 16)
SUBMISSIONS = {  # a submission of a.jpg and b.jpg, 4 x 4 px and 3 classes; what is wrong with it
    "header": (f"id,mask\na.jpg,{MASK}\nb.jpg,{MASK}\n", "required the columns"), "no header": (f"a.jpg,{MASK}\nb.jpg,{MASK}\n", "required the columns"), "BOM": (f"\ufeff{HEAD}a.jpg,{MASK}\nb.jpg,{MASK}\n", ""), "UTF-16": (f"{HEAD}a.jpg,{MASK}\n".encode("utf-16"), "required a submission CSV"),
    "semicolons": (f"{HEAD}a.jpg,{MASK}\n".replace(",", ";"), "required the columns"), "tabs": (f"{HEAD}a.jpg,{MASK}\n".replace(",", "\t"), "required the columns"), "one row": (f"{HEAD}a.jpg,{MASK}\n", "b.jpg"), "a row twice": (f"{HEAD}a.jpg,{MASK}\na.jpg,{MASK}\nb.jpg,{MASK}\n", "a.jpg"), "short row": (f"{HEAD}a.jpg\nb.jpg,{MASK}\n", "a.jpg"),
    "long row": (f"{HEAD}a.jpg,{MASK},1\nb.jpg,{MASK}\n", "rows with more fields"), "a longer row": (f"{HEAD}a.jpg,{MASK}\nb.jpg,{MASK},1\n", "required a submission CSV"), "3 ids": (f"{HEAD}a.jpg,0 0 0\nb.jpg,{MASK}\n", "3 ids where 16"), "class 3": (f"{HEAD}a.jpg,{MASK[:-1]}3\nb.jpg,{MASK}\n", "ids from 0 to 3"), "class -1": (f"{HEAD}a.jpg,{MASK[:-1]}-1\nb.jpg,{MASK}\n", "ids from -1"), "class 10^30": (f"{HEAD}a.jpg,{MASK[:-1]}{10**30}\nb.jpg,{MASK}\n", "a.jpg"),
    "class text": (f"{HEAD}a.jpg,{MASK[:-1]}x\nb.jpg,{MASK}\n", "'x' where a whole number"), "class 1.0": (f"{HEAD}a.jpg,{MASK[:-1]}1.0\nb.jpg,{MASK}\n", "1.0 where a whole number"), "class nan": (f"{HEAD}a.jpg,nan\nb.jpg,{MASK}\n", "nan where a whole number"), "empty": ("", "required a submission CSV"), "header only": (HEAD, "required 2 rows"), "HTML": ("<html>", "required the columns"),
    "NUL": (f"{HEAD}a.jpg,{MASK}\0\nb.jpg,{MASK}\n", "a.jpg"), "binary": (b"\xff\xd8\xff\0", "required a submission CSV"), "10^6 columns": ("a," * 1_000_000 + "\n", "required the columns"), "a row of 10^7": (f"{HEAD}a.jpg,{'0 ' * 5_000_000}\nb.jpg,{MASK}\n", "ids where 16"), "quote": (f'{HEAD}"a.jpg,{MASK}\nb.jpg,{MASK}\n', "required a submission CSV"), "escape": (f"{HEAD}\x1b[31m.jpg,{MASK}\n", "\\x1b[31m"),
    "Arabic digits": (f"{HEAD}a.jpg,{MASK[:-1]}٣\nb.jpg,{MASK}\n", "where a whole number"), "a pipe": (os.mkfifo, "got a pipe"), "a folder": (Path.mkdir, "directory"), "a loop": (lambda path: path.symlink_to(path), "symbolic links"), "a device": (lambda path: path.symlink_to("/dev/zero"), "got a pipe or a device"), "missing": (None, "no such file"),
    "zip": (pack(a="b"), "required"), "gzip by its name": (b"\x1f\x8b\x08\0", "required a submission CSV"), "twice": (f"image_id,image_id\na.jpg,{MASK}\n", "required the columns"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "words"), SUBMISSIONS.values(), ids=SUBMISSIONS.keys())
def test_submissions(judge, tmp_path, submit, content, words):
    """As what is sent; where it is no such table, also as the sample that says what is wanted."""
    paths = {each: tmp_path / f"{each}.csv" for each in ("bad", "sound")}
    lay(paths["bad"], content)
    lay(paths["sound"], f"{HEAD}a.jpg,{MASK}\nb.jpg,{MASK}\n")
    arguments = "--num-classes", 3, "--size", 4, "--force", "--sample"
    judge(tmp_path, lambda: submit("check", paths["bad"], *arguments, paths["sound"]), words)
    if words.startswith(("required a", "required the", "got a", "directory", "symbolic", "no such")):
        judge(tmp_path, lambda: submit("check", paths["sound"], *arguments, paths["bad"]), words)


COMMANDS = {
    "no file": ([], "required"), "size 0": (["--size", "0"], "--size"), "size ²": (["--size", "²"], "--size"), "classes 10^30": (["--num-classes", "9" * 30], "16 ids"), "train missing": (["--train", "/nowhere.json"], "nowhere"), "train /dev/zero": (["--train", "/dev/zero"], "/dev/zero"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "words"), COMMANDS.values(), ids=COMMANDS.keys())
def test_options_of_submissions(judge, tmp_path, submit, arguments, words):
    (tmp_path / "a.csv").write_text(f"{HEAD}a.jpg,{MASK}\n")
    judge(tmp_path, lambda: submit("check", tmp_path / "a.csv", "--sample", tmp_path / "a.csv", *arguments), words)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SEGLIB_SUBMISSIONS_PER_DAY", "abc"),
        ("SEGLIB_SUBMISSIONS_PER_DAY", "-1"),
        ("SEGLIB_SUBMISSIONS_UTC_OFFSET", "abc"),
        ("SEGLIB_SUBMISSIONS_UTC_OFFSET", "99"),
    ],
)
def test_variables_of_submissions(judge, tmp_path, submit, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    judge(tmp_path, lambda: submit("list", "--ledger", tmp_path / "l.csv"), value)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("'", "--send: required a command"),
        ("curl", "{file}"),
        ("nope {file}", "can be run"),
        ("cat {file} $NO_SUCH", "NO_SUCH"),
        ("sh -c 'touch pwned; exit 3' {file}", ""),
        ("/dev/null {file}", "can be run"),
    ],
)
def test_commands_that_send(tmp_path, submit, monkeypatch, template, words):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a;touch pwned2.csv"
    path.write_text(f"{HEAD}a.jpg,{MASK}\n")
    given = "--sample", path, "--num-classes", 3, "--size", 4, "--force", "--ledger", tmp_path / "l.csv"
    code, text = submit("send", path, *given, "--send", template)
    assert code and words in text and not (tmp_path / "pwned2.csv").exists() and not (tmp_path / "pwned2").exists()


def test_no_formula_is_in_the_ledger_and_its_row_is_found_again(tmp_path, submit):
    path, ledger = tmp_path / "=cmd|' !A0.csv", tmp_path / "submissions.csv"
    path.write_text(f"{HEAD}a.jpg,{MASK}\n")
    for score in ("0.5", "0.6"):
        assert submit("score", path, score, "--ledger", ledger, "--correct") == (0, "")
    (row,) = read_ledger(ledger)
    assert row["file"] == path.name and row["leaderboard_score"] == "0.6" and ",'=cmd" in ledger.read_text()
