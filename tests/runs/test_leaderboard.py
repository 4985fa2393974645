import csv
import json
import math
import statistics
import unicodedata

import pytest
from scipy import stats

from seglib.runs.leaderboard import (
    collect_runs,
    format_table,
    noise_floor,
    rank_rows,
    summarise_conditions,
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


def summarise(grid_dir, runs, baseline=None, varied=("loss", "seed")):
    baseline = {"loss": CE} if baseline is None else baseline
    return {
        item.label: item for item in summarise_conditions(collect_runs(grid_dir, runs, [*varied]), [*varied], baseline)
    }


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
        ('{"status": "ok", "metr', "record.json cannot be read: Unterminated string"),
        ("", "record.json cannot be read: Expecting value"),
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


def test_a_condition_gathers_the_seeds(tmp_path):
    item = summarise(tmp_path, write_sweep(tmp_path))["dice"]
    scores = SCORES["dice"][1]
    assert (item.n, item.mean, item.minimum, item.maximum) == (3, statistics.fmean(scores), 0.4412, 0.4440)
    assert item.std == pytest.approx(statistics.stdev(scores))


def test_verdicts_follow_the_paired_test_and_holm(tmp_path):
    items = summarise(tmp_path, write_sweep(tmp_path))
    p = {name: stats.ttest_rel(SCORES[name][1], SCORES["ce"][1]).pvalue for name in ("dice", "ce0.9+focal0.1")}
    assert items["dice"].p_holm == pytest.approx(2 * p["dice"])
    assert items["ce0.9+focal0.1"].p_holm == pytest.approx(p["ce0.9+focal0.1"])
    assert {name: item.verdict for name, item in items.items()} == {
        "dice": "better",
        "ce0.9+focal0.1": "within noise",
        "ce": "baseline",
    }
    assert items["dice"].paired
    assert list(items) == ["dice", "ce0.9+focal0.1", "ce"]


def test_holm_can_take_back_what_one_interval_says(tmp_path):
    baseline = [0.400, 0.402, 0.404]
    steps = [0.0040, 0.0080, 0.0060]  # p = 0.035 alone
    scores = {"ce": (CE, baseline)}
    for index in range(4):
        changed = [score + step for score, step in zip(baseline, steps, strict=True)]
        scores[f"dice{index}"] = ({"dice": index + 2}, changed)
    items = summarise(tmp_path, write_sweep(tmp_path, scores))
    item = items["dice2"]
    assert item.low > 0 and item.p < 0.05
    assert (item.verdict, item.p_holm) == ("within noise", pytest.approx(4 * item.p))


def test_a_worse_condition_is_called_worse(tmp_path):
    items = summarise(tmp_path, write_sweep(tmp_path), baseline={"loss": DICE})
    assert items["ce"].verdict == "worse"
    assert items["ce"].difference == pytest.approx(-items["dice"].mean + items["ce"].mean)
    assert items["ce"].low < items["ce"].difference < items["ce"].high < 0


def test_a_lost_seed_makes_the_comparison_unpaired(tmp_path):
    runs = write_sweep(tmp_path)
    lost = tmp_path / "loss=dice,seed=63" / "record.json"
    lost.write_text(json.dumps(json.loads(lost.read_text()) | {"status": "killed"}))
    item = summarise(tmp_path, runs)["dice"]
    expected = stats.ttest_ind(SCORES["dice"][1][:2], SCORES["ce"][1], equal_var=False)
    assert (item.n, item.runs, item.paired) == (2, 3, False)
    assert (item.low, item.high) == pytest.approx(expected.confidence_interval(0.95), rel=1e-9)


def test_one_seed_has_no_noise_floor(tmp_path):
    item = summarise(tmp_path, write_sweep(tmp_path, seeds=(21,)))["dice"]
    assert (item.std, item.low, item.p, item.verdict) == (None, None, None, "one seed: no noise floor")
    assert item.difference == pytest.approx(0.4412 - 0.4111)


def test_a_condition_without_any_score_says_so(tmp_path):
    runs = write_sweep(tmp_path)
    runs.append(write_run(tmp_path, "loss=bad,seed=21", status="oom", params={"loss": "bad", "seed": 21}))
    item = summarise(tmp_path, runs)["bad"]
    assert (item.n, item.runs, item.mean, item.verdict) == (0, 1, None, "no score")


def test_a_seed_that_changes_nothing_is_no_proof(tmp_path):
    runs = write_sweep(tmp_path, {"ce": (CE, [0.4, 0.4]), "dice": (DICE, [0.5, 0.5])})
    item = summarise(tmp_path, runs)["dice"]
    assert (item.verdict, item.p) == ("no spread over seeds", None)


def test_numbers_of_the_baseline_match_however_they_are_spelled(tmp_path):
    runs = [
        write_ok(tmp_path, f"lr={lr},seed={s}", {"lr": lr, "seed": s}, lr + s / 99)
        for lr in (0.001, 1.0)
        for s in (1, 2)
    ]
    for baseline in ({"lr": "1e-3"}, {"lr": 0.001}):
        assert summarise(tmp_path, runs, baseline, ("lr", "seed"))["0.001"].verdict == "baseline"
    assert summarise(tmp_path, runs, {"lr": 1}, ("lr", "seed"))["1"].verdict == "baseline"


def test_a_partial_baseline_compares_within_the_other_values(tmp_path):
    scores = {("r18", "ce"): 0.30, ("r18", "dice"): 0.32, ("r50", "ce"): 0.40, ("r50", "dice"): 0.45}
    runs = [
        write_ok(tmp_path, f"encoder={e},loss={loss}", {"encoder": e, "loss": loss}, m)
        for (e, loss), m in scores.items()
    ]
    items = summarise(tmp_path, runs, {"loss": "ce"}, ("encoder", "loss"))
    assert items["encoder=r18, loss=dice"].difference == pytest.approx(0.02)
    assert items["encoder=r50, loss=dice"].difference == pytest.approx(0.05)
    assert [items[f"encoder={e}, loss=ce"].verdict for e in ("r18", "r50")] == ["baseline", "baseline"]


def test_without_a_baseline_nothing_is_judged(tmp_path):
    items = summarise(tmp_path, write_sweep(tmp_path), baseline={})
    assert {(item.verdict, item.difference) for item in items.values()} == {("", None)}
    assert noise_floor(list(items.values())) == pytest.approx(
        math.sqrt(statistics.fmean(statistics.variance(scores) for _, scores in SCORES.values()))
    )


def test_table_ranks_runs_and_compares_conditions(tmp_path):
    runs = [*write_sweep(tmp_path), "loss=later,seed=21"]
    rows = collect_runs(tmp_path, runs, ["loss", "seed"])
    text = format_table(rows, summarise_conditions(rows, ["loss", "seed"], {"loss": CE}), ["loss", "seed"], 100)
    lines = text.splitlines()
    assert lines[2].split() == ["1", "dice", "42", "ok", "0.4440", "-", "-", "-", "-"]
    assert any(line.split() == ["-", "later", "21", "planned", "-", "-", "-", "-", "-"] for line in lines)
    assert any(line.startswith("dice ") and line.endswith("better") for line in lines)
    assert "difference: 95 % t interval, paired by seed; verdict: Holm-corrected for 2 comparisons" in lines


def test_what_sets_a_run_apart_is_noted_beside_its_score(tmp_path):
    write_ok(tmp_path, "a", {"lr": 1.0}, 0.4)
    assert "notes" not in format_table(collect_runs(tmp_path, ["a"], ["lr"]), [], ["lr"])
    record = {"status": "ok", "params": {"lr": 2.0}, "metrics": {"miou": 0.5}}
    write_run(tmp_path, "b", **record, oom_split=4, weights="ema", deterministic=False)
    write_run(tmp_path, "c", **record, oom_split=1, weights="plain", deterministic=True)
    rows = collect_runs(tmp_path, ["a", "b", "c"], ["lr"])
    noted = "memory ran out: batch cut into 4, ema weights, not deterministic"
    assert noted in format_table(rows, [], ["lr"], width=160)
    assert {line["run"]: line["notes"] for line in read_csv(write_leaderboard(tmp_path, rows))} == {
        "a": "",
        "b": noted,
        "c": "",
    }


def test_table_has_no_conditions_where_no_seed_varies(tmp_path):
    rows = collect_runs(tmp_path, [write_ok(tmp_path, "lr=1", {"lr": 1}, 0.5)], ["lr"])
    assert "condition" not in format_table(rows, summarise_conditions(rows, ["lr"], {"lr": 1}), ["lr"], 100)


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
    assert len(format_table(rows, [], ["name"], 100).splitlines()) == 3
    assert "\x1b" not in format_table(rows, [], ["name"], 100)
