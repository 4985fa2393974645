"""What a grid will be able to see, and the seeds that `seeds: auto` chooses: by simulation, and on the command line."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from seglib.evaluation.verdicts import Noise, compare_conditions, share_level, smallest_visible
from seglib.runs.conditions import RunResult
from seglib.runs.grid_file import GridFile
from seglib.runs.planning import find_needed, foresee

SD = 0.006


def test_a_plan_of_chosen_seeds_is_that_of_its_last_look(tmp_path):
    runs = [{"lr": lr, "seed": seed} for lr in (1, 2, 3) for seed in (1, 2, 3)]
    line = foresee(runs, ["lr", "seed"], {"lr": 1}, lambda: (Noise(SD**2, 20), 2), 3)
    size = smallest_visible(Noise(SD**2, 2 + 2 + 6), 3, 2 / share_level(3, 3))
    assert (
        line
        == f"2 to 3 seeds x 3 conditions: differences from {size:.3f} at 80 % power (noise of 2 earlier grids, 20 df)"
    )


def make_grid(conditions, max_seeds, folds=1, baseline=0):
    runs = [
        SimpleNamespace(name=f"lr={lr},seed={seed},fold={fold}", parameters={"lr": lr, "seed": seed, "fold": fold})
        for seed in range(max_seeds)
        for lr in range(conditions)
        for fold in range(folds)
    ]
    file = GridFile("", "", "", {}, {}, [], {"lr": baseline}, [], max_seeds=max_seeds)
    return SimpleNamespace(runs=runs, varied=["lr", "seed", "fold"], file=file)


def play(grid, score, failed=()):
    """Run what is needed until nothing more is; the names of the runs that were run, wave by wave."""
    done, tried, waves = {}, set(), []
    while True:
        rows = [
            RunResult(
                run.name, "ok" if run.name in done else "planned", {}, run.parameters, {"miou": done.get(run.name)}
            )
            for run in grid.runs
        ]
        needed = find_needed(grid, rows, tried)
        wave = [run for run in grid.runs if run.name in needed and run.name not in tried]
        if not wave:
            return waves
        waves.append([run.name for run in wave])
        tried |= {run.name for run in wave}
        done |= {run.name: score(**run.parameters) for run in wave if run.name not in failed}


def simulate(rng, conditions, gains, kind="normal", shared=0.37, max_seeds=5):
    size = max_seeds, conditions
    own = rng.normal(size=size) if kind == "normal" else rng.standard_t(3, size=size) / 3**0.5
    return pd.DataFrame(0.5 + gains + SD * (shared**0.5 * rng.normal(size=(max_seeds, 1)) + (1 - shared) ** 0.5 * own))


def judge(scores, waves):
    """Verdicts of what `seeds: auto` ran."""
    ran = {name for wave in waves for name in wave}
    seen = pd.DataFrame(
        {lr: [scores.loc[seed, lr] if f"lr={lr},seed={seed},fold=0" in ran else np.nan for seed in scores.index]
         for lr in scores}
    )  # fmt: skip
    return compare_conditions(seen, 0, looks=seen.count(), max_looks=len(scores))["verdict"]


@pytest.mark.parametrize("kind", ["normal", "t3"])
def test_chosen_seeds_come_to_the_verdicts_of_all_seeds_with_three_fifths_of_the_runs(kind):
    rng, agree, cost = np.random.default_rng(1), [], []
    told = {"better": 1, "worse": -1}
    for _ in range(12):
        scores = simulate(rng, 8, np.array([0, 0.02, 0, 0.01, 0, 0, 0, -0.03]), kind)
        waves = play(make_grid(8, 5), lambda lr, seed, fold, scores=scores: scores.loc[seed, lr])
        ours, all_seeds = judge(scores, waves).map(told), compare_conditions(scores, 0)["verdict"].map(told)
        agree.extend(ours.fillna(0) == all_seeds.fillna(0))
        cost.append(sum(map(len, waves)) / scores.size)
    assert np.mean(agree) > 0.9 and np.mean(cost) < 0.6, (np.mean(agree), np.mean(cost))


@pytest.mark.parametrize("conditions", [2, 4])
def test_looking_after_each_seed_is_wrong_no_more_often(conditions):
    rng, wrong = np.random.default_rng(2), 0
    for _ in range(50):
        scores = simulate(rng, conditions, 0.0)
        waves = play(make_grid(conditions, 5), lambda lr, seed, fold, scores=scores: scores.loc[seed, lr])
        wrong += judge(scores, waves).isin(["better", "worse"]).any()
    assert wrong / 50 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 50)


@pytest.mark.parametrize("max_looks", [2, 3, 5, 10])
@pytest.mark.parametrize("level", [0.05, 0.005])
def test_all_looks_together_spend_the_level(max_looks, level):
    """Of normal scores whose noise is known: sums of the seeds so far, each look at its share."""
    seeds = np.arange(2, max_looks + 1)
    sums = np.cumsum(np.random.default_rng(3).normal(size=(400_000, max_looks)), axis=1)[:, 1:] / np.sqrt(seeds)
    bars = [stats.norm.isf(level * share_level(count, max_looks) / 2) for count in seeds]
    spent = (np.abs(sums) > bars).any(axis=1).mean()
    assert 0.75 * level < spent < level * 1.03


def test_a_clear_loser_and_a_clear_winner_get_two_seeds_and_the_baseline_as_many_as_the_undecided():
    means = {0: 0.5, 1: 0.7, 2: 0.3, 3: 0.512}
    wobble = [0.0, 0.001, -0.001, 0.0005, -0.0005]
    noise = {0: 1, 1: -1, 2: 0.5, 3: 8}  # only the last is undecided
    waves = play(make_grid(4, 5), lambda lr, seed, fold: means[lr] + noise[lr] * wobble[seed])
    assert len(waves[0]) == 8 and waves[1:] and all(wave == [f"lr=0,seed={n},fold=0", f"lr=3,seed={n},fold=0"]
        for n, wave in enumerate(waves[1:], 2))  # fmt: skip


def test_folds_of_a_seed_go_together():
    rng = np.random.default_rng(4)
    waves = play(make_grid(2, 3, folds=3), lambda lr, seed, fold: 0.5 + 0.004 * lr + 0.01 * fold + SD * rng.normal())
    assert [len(wave) % 6 for wave in waves] == [0] * len(waves) and len(waves[0]) == 12


def test_a_seed_that_failed_gets_another_and_is_tried_again_first_the_next_time():
    grid, score = make_grid(2, 4), lambda lr, seed, fold: 0.5 + 0.1 * lr + 0.001 * seed * (1 + lr)
    waves = play(grid, score, failed={"lr=1,seed=1,fold=0"})
    assert waves[1] == ["lr=0,seed=2,fold=0", "lr=1,seed=2,fold=0"]
    status = dict.fromkeys(waves[0], "ok") | {"lr=1,seed=1,fold=0": "failed"}
    rows = [
        RunResult(run.name, status.get(run.name, "planned"), {}, run.parameters, {"miou": 0.5 if run.name in status else None})
        for run in grid.runs
    ]  # fmt: skip
    assert find_needed(grid, rows) == set(waves[0])


def test_the_command_line_runs_two_seeds_and_then_what_they_leave_open(
    call, write_grid, stand_in, records, grid_folder
):
    wobbling = 'metrics={"miou": 0.5 + p["weight"] + p["weight"] % 0.2 * (p["seed"] == 42) * 0.9 + p["seed"] * 1e-6}'
    script = (
        stand_in.read_text()
        .replace('metrics={"miou": 0.5}', wobbling)
        .replace("began = ", 'p = job["parameters"]; began = ')
    )
    stand_in.write_text(script)
    path = write_grid("grid: {weight: [0, 0.2, 0.01]}\nbaseline: {weight: 0}\nseeds: auto\nmax_seeds: 3")
    plan = call(path, "--dry-run").out
    assert (
        plan.count("run   ") == 6
        and "6 runs, 0 done before, 6 to go, up to 3 more where further seeds can tell" in plan
    )
    first = call(path)
    assert first.code == 0 and "2 more runs, where one more seed can still tell" in first.out, first
    assert len(records()) == 8 and "weight=0.2,seed=63" not in records()
    assert "looks after 2 to 3 seeds share the 5 %" in first.out.replace("\n", " ")
    assert "planned" not in (grid_folder / "leaderboard.csv").read_text()
    again = call(path)
    assert again.code == 0 and "8 runs, 8 done before, 0 to go" in again.out and len(records()) == 8
    copy = call(grid_folder / "grid.yaml", "--dry-run").out
    assert "8 runs, 8 done before, 0 to go" in copy
    assert "seed=5" in call(path, "--dry-run", "--set", "seed=[5,6]").out
