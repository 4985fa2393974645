"""Runs that stop at rungs: who goes on, in whatever order runs end; on the command line, with a stand-in for training."""

import math
import random
import re
import sys

import pandas as pd
import pytest

from seglib.evaluation.verdicts import correct_holm
from seglib.runs import local, schedule
from seglib.runs.halving import Standing, count_kept, rank_conditions, score_history

PARAMETERS = 'weight: float = 0.0\nepochs: int = 8\nseed: int = 21\nrun_dir: str = ""\n'
LOOP = "for epoch in trainer.epochs():\n    trainer.evaluate()"
# Trains one epoch in a millisecond: the mIoU of a run is its weight, the third of ten conditions is late; seed 3 fails.
STAND_IN = """
import csv, json, os, sys
from pathlib import Path
from seglib.runs.record import UNDER_RUNNER, save_result, start_record, update_record
os.environ[UNDER_RUNNER] = "1"
job = json.loads(sys.stdin.readline())
p, folder = job["parameters"], Path(job["run_dir"])
start_record(folder, job["key"], p, job["varied"])
path = folder / "history.csv"
done = sum(1 for _ in open(path)) - 1 if path.exists() else 0
goal = job["stop_after"] or p["epochs"]
with open(folder / "trained", "a") as file:
    file.write(f"{done}-{goal} ")
if p["seed"] == 3 and p["weight"] == 0.5:
    update_record(folder, status="failed", error="ValueError: asked to")
    sys.exit()
with open(path, "a") as file:
    if not done:
        file.write("epoch,train_loss,miou\\n")
    for epoch in range(done + 1, goal + 1):
        file.write(f"{epoch},1.0,{p['weight'] * epoch / p['epochs'] + p['seed'] * 1e-4}\\n")
if job["stop_after"]:
    update_record(folder, status="stopped", error=f"after epoch {goal}")
else:
    save_result(folder, metrics={"miou": p["weight"] + p["seed"] * 1e-4}, best_epoch=goal)
    update_record(folder, status="ok")
"""
STOP = "stop: {rule: halving, after: [2, 4], keep: 0.5}\n"


@pytest.fixture
def write(write_grid, write_notebook, tmp_path, monkeypatch):
    """Write a grid over a notebook that seems to train; a script trains in its place."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setattr(local, "COMMAND", (sys.executable, str(tmp_path / "stand_in.py")))
    monkeypatch.setattr(local, "is_possible", lambda: False)  # a warm start runs no script of ours
    monkeypatch.setattr(schedule, "POLL", 0.02)
    notebook = write_notebook(tmp_path / "training.ipynb", LOOP, PARAMETERS)
    return lambda text, notebook=notebook: write_grid(text, notebook)


@pytest.fixture
def trained(grid_folder):
    """What each run trained, by its weight (and seed): "0-2 2-4 4-8" stopped twice and went on."""
    return lambda: {path.parent.name: path.read_text().strip() for path in sorted(grid_folder.glob("*/trained"))}


def test_the_best_of_each_rung_go_on_and_the_others_are_out():
    scores = {name: [value, value if value > 2 else None] for name, value in {"a": 1, "b": 4, "c": 3, "d": 2}.items()}
    assert rank_conditions(scores, 0.5) == {
        "a": Standing(0, 4, True), "b": Standing(2), "c": Standing(1, 2, True), "d": Standing(0, 3, True),
    }  # fmt: skip
    assert rank_conditions(scores, 0.5, {"a"})["a"] == Standing(2), "the baseline goes on wherever it stands"
    assert [count_kept(count, 0.5, 3) for count in (16, 5, 1)] == [[8, 4, 2], [3, 2, 1], [1, 1, 1]]
    assert count_kept(10, 0.1, 1) == [1], "0.1 * 10 is a little more than 1 in binary"


def test_a_condition_goes_on_as_soon_as_that_is_certain_and_waits_before():
    scores = {"a": [5.0], "b": [4.0], "c": [3.0], "d": [None]}
    assert rank_conditions(scores, 0.5) == {
        "a": Standing(1), "b": Standing(0, 2, False), "c": Standing(0, 3, True), "d": Standing(0),
    }  # fmt: skip


@pytest.mark.parametrize("keep", [0.34, 0.5, 0.7])
def test_who_goes_on_does_not_depend_on_the_order_in_which_runs_end(keep):
    draw = random.Random(1)
    for _ in range(200):
        final = {name: [draw.choice([1, 2, 3, 4, -math.inf]) for _ in range(2)] for name in range(draw.randint(1, 9))}
        places = [(name, rung) for name in final for rung in range(2)]
        draw.shuffle(places)
        known, passed = {name: [None, None] for name in final}, dict.fromkeys(final, 0)
        out = set()
        while places:  # a score is told only of a condition that was let on so far
            name, rung = next(each for each in places if each[0] in out or passed[each[0]] >= each[1])
            places.remove((name, rung))
            known[name][rung] = final[name][rung] if name not in out else known[name][rung]
            standings = rank_conditions(known, keep)
            assert all(standings[each].passed >= count for each, count in passed.items()), "nobody is called back"
            assert out <= {each for each, standing in standings.items() if standing.is_out}
            passed = {each: standing.passed for each, standing in standings.items()}
            out = {each for each, standing in standings.items() if standing.is_out}
        assert passed == {each: standing.passed for each, standing in rank_conditions(final, keep).items()}
        assert sum(count == 2 for count in passed.values()) == count_kept(len(final), keep, 2)[-1]


def test_a_run_is_scored_by_the_best_it_would_keep_so_far():
    rows = [{"epoch": 1, "miou": 0.2, "miou_image": 0.9}, {"epoch": 2, "miou": 0.1, "ema_miou": 0.3}, {"epoch": 3}]
    assert [score_history(rows, epoch, False) for epoch in (1, 2, 3, 4)] == [0.2, 0.3, 0.3, None]
    assert score_history(rows, 4, True) == 0.3 and score_history([], 4, True) == -math.inf


def test_four_of_eight_go_on_then_two_and_the_same_command_leaves_the_others_stopped(call, write, records, trained):
    path = write(f"{STOP}grid: {{weight: [0.1, 0.8, 0.3, 0.4, 0.5, 0.6, 0.7, 0.2]}}")
    plan = call(path, "--dry-run").out
    assert "halving: 8 conditions, 4 on from epoch 2, 2 on from epoch 4: at most 50% of the epochs" in plan
    first = call(path)
    assert first.code == 0, first
    assert trained() == {
        f"weight={weight / 10:g}": "0-2" if weight < 5 else "0-2 2-4" if weight < 7 else "0-2 2-4 4-8"
        for weight in range(1, 9)
    }
    statuses = {name: record["status"] for name, record in records().items()}
    assert [name for name, status in statuses.items() if status == "ok"] == ["weight=0.7", "weight=0.8"]
    assert {*statuses.values()} == {"ok", "stopped"}
    line = "stopped after epoch 4: mIoU 0.2521, place 4; the best 2 go on, and so does this one without `stop`"
    assert records()["weight=0.5"]["error"] == line
    again, before = call(path), trained()
    assert again.code == 0 and "2 runs, 2 done before, 0 to go, 6 stay stopped" in again.out
    assert trained() == before


def test_without_stop_the_same_grid_trains_them_on(call, write, trained, records):
    grid = "grid: {weight: [0.1, 0.2, 0.3]}"
    call(write(STOP + grid))
    assert call(write(grid)).code == 0
    assert trained()["weight=0.1"] == "0-2 2-8" and {each["status"] for each in records().values()} == {"ok"}


def test_a_better_condition_that_comes_later_and_more_room_change_who_goes_on(call, write, trained):
    call(write(f"{STOP}grid: {{weight: [0.1, 0.2]}}"))
    assert trained() == {"weight=0.1": "0-2", "weight=0.2": "0-2 2-4 4-8"}
    call(write(f"{STOP}grid: {{weight: [0.1, 0.2, 0.05, 0.01]}}"))
    assert trained() == {
        "weight=0.01": "0-2", "weight=0.05": "0-2", "weight=0.1": "0-2 2-4", "weight=0.2": "0-2 2-4 4-8",
    }  # fmt: skip


def test_a_condition_is_compared_by_its_mean_its_seeds_go_on_together_and_the_baseline_always(call, write, trained):
    text = f"{STOP}seeds: [1, 2]\ngrid: {{weight: [0.1, 0.2, 0.3, 0.4]}}\nbaseline: {{weight: 0.1}}"
    result = call(write(text), "--workers", 3)
    whole, to_two, to_four = "0-8", "0-2", "0-2 2-4"
    assert result.code == 0 and trained() == {
        "weight=0.1,seed=1": whole, "weight=0.1,seed=2": whole,
        "weight=0.2,seed=1": to_two, "weight=0.2,seed=2": to_two,
        "weight=0.3,seed=1": to_four, "weight=0.3,seed=2": to_four,
        "weight=0.4,seed=1": "0-2 2-4 4-8", "weight=0.4,seed=2": "0-2 2-4 4-8",
    }, result  # fmt: skip


def test_stopped_runs_have_no_score_and_their_conditions_no_verdict_but_count_as_comparisons(
    call, write, grid_folder, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "120")  # the table is cut to the terminal
    text = f"{STOP}seeds: [1, 2]\ngrid: {{weight: [0.1, 0.2, 0.3, 0.4]}}\nbaseline: {{weight: 0.1}}"
    out = " ".join(call(write(text)).out.split())
    assert "95 % for 3 comparisons together (Holm), those that were stopped among them" in out
    assert re.search(r"0\.2 0 - - stopped", out) and "0.3 2 stopped - - - - - stopped after epoch 4: mean mIoU" in out
    table = (grid_folder / "leaderboard.csv").read_text()
    assert table.count(",stopped,") == 4 and table.count(",ok,") == 4
    page = (grid_folder / "index.html").read_text()
    assert "4 stopped" in page and "<h2>Errors</h2>" not in page


def test_a_seed_that_fails_is_1_and_nobody_waits_for_it(call, write, trained):
    path = write(f"{STOP}seeds: [1, 3]\ngrid: {{weight: [0.1, 0.2, 0.5, 0.4]}}")
    assert call(path, "--workers", 2).code == 1
    assert trained()["weight=0.5,seed=3"] == "0-2" and trained()["weight=0.5,seed=1"] == "0-2 2-4 4-8"
    assert call(path).code == 1, "it is tried again"
    assert trained()["weight=0.5,seed=3"] == "0-2 0-2"


def test_after_a_kill_of_the_runner_the_same_command_goes_on(call, write, trained, records, grid_folder, monkeypatch):
    path = write(f"{STOP}grid: {{weight: [0.1, 0.2, 0.3, 0.4]}}")
    poll, calls = schedule._describe, []

    def interrupt(*arguments):
        calls.append(1)
        if len(trained()) == 3:
            raise KeyboardInterrupt
        return poll(*arguments)

    monkeypatch.setattr(schedule, "_describe", interrupt)
    assert call(path).code == 130
    monkeypatch.setattr(schedule, "_describe", poll)
    assert call(path).code == 0
    assert [record["status"] for record in records().values()] == ["stopped", "stopped", "stopped", "ok"]
    assert all("stopped after epoch" in each["error"] for each in records().values() if each["status"] == "stopped")


def test_stopped_conditions_count_as_comparisons_of_p_1():
    corrected, steps = correct_holm(pd.Series([0.001, 0.02, 0.6]), others=2)
    whole, whole_steps = correct_holm(pd.Series([0.001, 0.02, 0.6, 1.0, 1.0]))
    assert [*corrected] == [*whole[:3]] and [*steps] == [*whole_steps[:3]]


@pytest.mark.parametrize(
    ("stop", "words"),
    [
        ("5", "`stop` must be a mapping, such as {rule: halving, after: [5, 10], keep: 0.5}, got 5"),
        ("{rule: halving, after: [2], keep: 0.5, epoch: 3}", "unknown key 'epoch'"),
        ("{rule: median, after: [2], keep: 0.5}", "rule must be halving, got 'median'"),
        ("{rule: halving, after: [4, 2], keep: 0.5}", "after must be a rising list of epochs, such as [5, 10, 20]"),
        ("{rule: halving, after: [2], keep: 1.0}", "keep must be the share that goes on, between 0 and 1, got 1.0"),
        ("{rule: halving, after: [2, 8], keep: 0.5}", "after must be below the 8 epochs of the runs, got 8"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(call, write, stop, words):
    result = call(write(f"grid: {{weight: [1, 2]}}\nstop: {stop}"), "--dry-run")
    assert result.code == 2 and words in result.err and result.err.count("\n") == 1, result


def test_what_halving_does_not_go_with_is_refused(call, write, write_notebook, tmp_path):
    auto = call(write(f"{STOP}seeds: auto\nbaseline: {{weight: 1}}\ngrid: {{weight: [1, 2]}}"), "--dry-run")
    assert auto.code == 2 and "`stop` must have its seeds given, got `seeds: auto`" in auto.err
    ranks = write_notebook(tmp_path / "ranks.ipynb", f"trainer = Trainer()\n{LOOP}", PARAMETERS)
    several = call(write(f"{STOP}grid: {{weight: [1, 2]}}\ngpus_per_run: 2", ranks), "--dry-run")
    assert several.code == 2 and "`stop` must have runs of one process, got gpus_per_run: 2" in several.err
    plain = write_notebook(tmp_path / "plain.ipynb", "", PARAMETERS)
    other = call(write(f"{STOP}grid: {{weight: [1, 2]}}", plain), "--dry-run")
    assert other.code == 2 and "train in `for epoch in trainer.epochs():`" in other.err


def test_a_notebook_that_is_stopped_for_now_is_stopped_not_failed(call, write_grid, stopping_notebook, records):
    stop = "stop: {rule: halving, after: [1], keep: 0.5}\n"
    result = call(write_grid(f"{stop}grid: {{weight: [0.1, 0.2]}}", stopping_notebook))
    assert result.code == 0 and "after epoch 1, mIoU 0.5" in result.out, result
    assert [record["status"] for record in records().values()] == ["stopped", "ok"]
