import csv
import json
import math
import unicodedata

import pytest

from seglib.runs.conditions import Comparison, summarise_conditions
from seglib.runs.leaderboard import (
    collect_runs,
    format_table,
    rank_rows,
    write_leaderboard,
)

CE, FOCAL, DICE = {"cross_entropy": 1.0}, {"cross_entropy": 0.9, "focal": 0.1}, {"dice": 1}
SCORES = {  # loss name -> (value, scores of seeds 21, 42, 63)
    "ce": (CE, [0.4111, 0.4133, 0.4120]),
    "ce0.9+focal0.1": (FOCAL, [0.4128, 0.4121, 0.4132]),
    "dice": (DICE, [0.4412, 0.4440, 0.4419]),
}


def write_run(grid_dir, run, **record):
    folder = grid_dir / run
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")
    return run


def write_ok(grid_dir, run, params, miou, **metrics):
    return write_run(grid_dir, run, status="ok", params=params, metrics={"miou": miou, **metrics})


def write_sweep(grid_dir, scores=SCORES, seeds=(21, 42, 63)):
    return [
        write_ok(grid_dir, f"loss={name},seed={seed}", {"loss": loss, "seed": seed, "lr": 1e-4}, miou)
        for name, (loss, values) in scores.items()
        for seed, miou in zip(seeds, values, strict=False)
    ]


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def columns(text):
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def test_every_planned_run_is_a_row_in_the_grids_order(tmp_path):
    runs = ["seed=3", write_ok(tmp_path, "seed=1", {"seed": 1}, 0.5), "seed=2"]
    write_ok(tmp_path, "seed=1.1", {"seed": 1}, 0.9)  # superseded
    rows = collect_runs(tmp_path, runs, ["seed"])
    assert [(row.run, row.status) for row in rows] == [("seed=3", "planned"), ("seed=1", "ok"), ("seed=2", "planned")]
    assert [row.texts for row in rows] == [{"seed": "3"}, {"seed": "1"}, {"seed": "2"}]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no record.json"),
        ('{"status": "ok", "metr', "record.json cannot be read: is truncated"),
        ("", "record.json cannot be read: is truncated"),
        ("[1, 2]", "record.json must hold an object, got list"),
    ],
)
def test_a_broken_record_is_unknown_and_says_why(tmp_path, content, reason):
    (tmp_path / "seed=1").mkdir()
    if content is not None:
        (tmp_path / "seed=1" / "record.json").write_text(content)
    (row,) = collect_runs(tmp_path, ["seed=1"], ["seed"])
    assert row.status == "unknown"
    assert row.error.startswith(reason)
    assert row.miou is None


def test_a_partial_record_leaves_the_rest_empty(tmp_path):
    write_run(tmp_path, "a", status="failed", error="RuntimeError: no")
    write_run(tmp_path, "b", status="ok", metrics=None, params=3, seconds="long")
    write_run(tmp_path, "c", status="ok", metrics={"miou": math.nan, "iou": {"can": None, "cup": True, "bag": 0.25}})
    failed, empty, nan = collect_runs(tmp_path, ["a", "b", "c"], [])
    assert (failed.status, failed.error, failed.miou) == ("failed", "RuntimeError: no", None)
    assert (empty.miou, empty.params, empty.seconds) == (None, {}, None)
    assert nan.miou is None
    assert nan.iou == {"can": None, "cup": None, "bag": 0.25}


def test_only_a_run_that_ended_well_has_a_score(tmp_path):
    runs = [write_run(tmp_path, s, status=s, metrics={"miou": 0.9}) for s in ("interrupted", "failed")]
    assert [row.miou for row in collect_runs(tmp_path, runs, [])] == [None, None]


def test_ok_runs_come_first_best_first_and_the_others_keep_their_order(tmp_path):
    write_run(tmp_path, "failed", status="failed", metrics={"miou": 0.99})
    write_ok(tmp_path, "low", {}, 0.1)
    write_ok(tmp_path, "none", {}, None)
    write_ok(tmp_path, "high", {}, 0.2)
    rows = collect_runs(tmp_path, ["planned", "failed", "low", "none", "high"], [])
    assert [row.run for row in rank_rows(rows)] == ["high", "low", "none", "planned", "failed"]


def test_csv_holds_every_number_in_full_precision(tmp_path):
    miou, focal, seconds = 1 / 3, 0.1 + 0.2, 1234.5678901234567
    write_run(
        tmp_path,
        "loss=a,seed=1",
        status="ok",
        params={"loss": FOCAL, "seed": 1},
        metrics={"miou": miou, "loss": focal, "iou": {"can": 2 / 3, "의류": None}},
        seconds=seconds,
        best_epoch=7,
    )
    (line,) = read_csv(write_leaderboard(tmp_path, collect_runs(tmp_path, ["loss=a,seed=1"], ["loss", "seed"])))
    assert [float(line[name]) for name in ("miou", "val_loss", "seconds", "iou can")] == [miou, focal, seconds, 2 / 3]
    assert json.loads(line["loss"]) == FOCAL
    assert (line["seed"], line["best_epoch"], line["iou 의류"], line["miou_image"]) == ("1", "7", "", "")


def test_csv_columns_stand_in_the_promised_order(tmp_path):
    write_ok(tmp_path, "a", {"seed": 1}, 0.1, iou={"can": 0.1})
    write_ok(tmp_path, "b", {"seed": 2}, 0.2, iou={"cup": 0.1, "can": 0.2})
    lines = read_csv(write_leaderboard(tmp_path, collect_runs(tmp_path, ["a", "b", "c"], ["seed"])))
    metrics = ["miou", "miou_image", "miou_batch", "accuracy", "val_loss", "best_epoch", "seconds", "peak_memory_mb"]
    origin = ["notes", "key", "weights_sha256", "git_commit", "error"]
    assert list(lines[0]) == ["run", "status", "seed", *metrics, "iou can", "iou cup", *origin]
    assert [(line["run"], line["status"]) for line in lines] == [("b", "ok"), ("a", "ok"), ("c", "planned")]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)"])
def test_csv_texts_that_look_like_formulas_stay_texts(tmp_path, text):
    write_run(tmp_path, "a", status="failed", params={"name": text}, error=text)
    (line,) = read_csv(write_leaderboard(tmp_path, collect_runs(tmp_path, ["a"], ["name"])))
    assert line["error"] == line["name"] == "'" + text


def test_csv_negative_numbers_stay_numbers(tmp_path):
    write_ok(tmp_path, "a", {"gamma": -0.5}, 0.1, loss=-1.25)
    (line,) = read_csv(write_leaderboard(tmp_path, collect_runs(tmp_path, ["a"], ["gamma"])))
    assert (line["gamma"], line["val_loss"]) == ("-0.5", "-1.25")


def test_table_ranks_runs_and_compares_conditions(tmp_path):
    runs = [*write_sweep(tmp_path), "loss=later,seed=21"]
    rows = collect_runs(tmp_path, runs, ["loss", "seed"])
    text = format_table(rows, summarise_conditions(rows, ["loss", "seed"], {"loss": CE}), ["loss", "seed"], 200)
    lines = text.splitlines()
    assert lines[2].split() == ["1", "dice", "42", "ok", "0.4440", "-", "-", "-", "-"]
    assert any(line.split() == ["-", "later", "21", "planned", "-", "-", "-", "-", "-"] for line in lines)
    assert any(line.startswith("dice ") and line.endswith("better") for line in lines)
    assert lines[-3].startswith("Noise between seeds: standard deviation 0.00") and "Differences from 0.0" in lines[-3]
    assert lines[-2].startswith(
        "The interval is the one that the verdict goes by: 95 % for 2 comparisons together (Holm)"
    )
    assert lines[-1].startswith("Best of 3: dice, mean 0.4424; without the luck of being the best, 0.44")


def test_what_sets_a_run_apart_is_noted_beside_its_score(tmp_path):
    write_ok(tmp_path, "a", {"lr": 1.0}, 0.4)
    assert "notes" not in format_table(collect_runs(tmp_path, ["a"], ["lr"]), Comparison(), ["lr"])
    record = {"status": "ok", "params": {"lr": 2.0}, "metrics": {"miou": 0.5}}
    write_run(tmp_path, "b", **record, oom_split=4, weights="ema", deterministic=False)
    write_run(tmp_path, "c", **record, oom_split=1, weights="plain", deterministic=True)
    rows = collect_runs(tmp_path, ["a", "b", "c"], ["lr"])
    noted = "memory ran out: batch cut into 4, ema weights, not deterministic"
    assert noted in format_table(rows, Comparison(), ["lr"], width=160)
    head, _, line, *_ = format_table(rows, Comparison(), ["lr"], width=80).splitlines()
    assert line[head.index("notes") :].startswith("memory ran") and line.split()[1] == "2", "a long note gives way"
    assert {line["run"]: line["notes"] for line in read_csv(write_leaderboard(tmp_path, rows))} == {
        "a": "",
        "b": noted,
        "c": "",
    }


def test_table_has_no_conditions_where_nothing_is_compared(tmp_path):
    rows = collect_runs(tmp_path, [write_ok(tmp_path, "lr=1", {"lr": 1}, 0.5)], ["lr"])
    assert "condition" not in format_table(rows, summarise_conditions(rows, ["lr"], None), ["lr"], 100)


@pytest.mark.parametrize("width", [60, 80, 100])
def test_table_fits_the_width_with_korean_and_long_names(tmp_path, width):
    names = ["한국어 이름이 아주 긴 증강 설정 " * 4, "short", unicodedata.normalize("NFD", "가나다"), "x" * 200]
    runs = [write_ok(tmp_path, str(i), {"augmentation": n, "seed": i}, i / 10, loss=1.0) for i, n in enumerate(names)]
    rows = collect_runs(tmp_path, runs, ["augmentation", "seed"])
    text = format_table(
        rows, summarise_conditions(rows, ["augmentation", "seed"], None), ["augmentation", "seed"], width
    )
    assert max(map(columns, text.splitlines())) <= width
    assert "…" in text
    head, _, *lines = text.split("\n\n")[0].splitlines()
    ends = {columns(line[: line.index(" ok")]) for line in lines}
    assert ends == {columns(head[: head.index(" status")])}


def test_table_shows_no_control_characters(tmp_path):
    rows = collect_runs(tmp_path, [write_ok(tmp_path, "a", {"name": "x\x1b[31m\ny"}, 0.5)], ["name"])
    assert len(format_table(rows, Comparison(), ["name"], 100).splitlines()) == 3
    assert "\x1b" not in format_table(rows, Comparison(), ["name"], 100)
