"""An average of weights is compared with the plain weights of the same training: it can lose."""

import csv
import json

import numpy as np
import pytest
from scipy import stats

from seglib.runs.averages import explain_averages
from seglib.runs.conditions import Comparison, summarise_conditions
from seglib.runs.leaderboard import collect_runs, format_table, read_average_scores


def write_run(folder, seed, averaging, rows):
    folder.mkdir(parents=True)
    params = {"seed": seed, "averaging": averaging}
    kept = max(value for row in rows for name, value in row.items() if name.endswith("miou"))
    record = {"status": "ok", "params": params, "metrics": {"miou": kept}}
    (folder / "record.json").write_text(json.dumps(record))
    with open(folder / "history.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["epoch", "miou", "ema_miou", "swa_miou"])
        writer.writeheader()
        writer.writerows({"epoch": epoch} | row for epoch, row in enumerate(rows, 1))
    return folder.name


def write_sweep(folder, name, differences):
    return [
        write_run(
            folder / f"{name},{seed}", seed, {name: {}}, [{"miou": 0.4}, {"miou": 0.3, f"{name}_miou": 0.4 + each}]
        )
        for seed, each in enumerate(differences)
    ]


def test_each_has_its_own_best_epoch(tmp_path):
    rows = [{"miou": 0.5, "ema_miou": 0.2}, {"miou": 0.4, "ema_miou": 0.45}]
    write_run(tmp_path / "a", 1, {"ema": {}, "swa": {}}, rows)
    params = {"averaging": {"ema": {}, "swa": {}}}
    assert read_average_scores(tmp_path / "a", params) == {"ema": (0.45, 0.5)}  # swa was never scored
    assert read_average_scores(tmp_path / "a", {"averaging": {}}) == read_average_scores(tmp_path / "b", params) == {}


def test_an_average_that_loses_is_worse_though_the_kept_score_cannot_show_it(tmp_path):
    differences = [-0.010, -0.011, -0.012]
    runs = write_sweep(tmp_path, "ema", differences)
    rows = collect_runs(tmp_path, runs, ["averaging", "seed"])
    assert {row.miou for row in rows} == {0.4} and rows[0].notes == "ema 0.3900 against plain 0.4000"
    first, line = explain_averages(tmp_path, rows, ["averaging", "seed"])
    test = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert line == f"ema (averaging=ema) -0.0110 [{test.low:+.4f}, {test.high:+.4f}] over 3, worse"
    assert "chosen on the validation images that score it" in first
    table = format_table(rows, Comparison(averages=[first, line]), ["averaging", "seed"])
    assert table.endswith(line)


def test_conditions_that_differ_in_averaging_are_compared_by_the_averages(tmp_path):
    """The kept score, the better of both, is never below that of the same training without an average."""
    runs = write_sweep(tmp_path, "ema", [-0.010, -0.011, -0.012])
    runs += [write_run(tmp_path / f"none,{seed}", seed, {}, [{"miou": 0.4 + seed / 1e4}]) for seed in range(3)]
    rows = collect_runs(tmp_path, runs, ["averaging", "seed"])
    comparison = summarise_conditions(rows, ["averaging", "seed"], {"averaging": {}})
    (ema,) = (item for item in comparison.conditions if item.verdict != "baseline")
    assert ema.verdict == "worse" and ema.difference == pytest.approx(-0.011 - 0.0001)
    alone = summarise_conditions(rows[:3], ["seed"], {})  # all have the average: what was kept is what is had
    assert alone.conditions[0].mean == pytest.approx(0.4)


def test_differences_of_other_averages_lend_their_noise(tmp_path):
    ema, swa = [0.010, 0.014], [0.001, -0.001, 0.000]
    runs = [*write_sweep(tmp_path, "ema", ema), *write_sweep(tmp_path, "swa", swa)]
    _, *lines = explain_averages(tmp_path, collect_runs(tmp_path, runs, ["averaging", "seed"]), ["averaging", "seed"])
    noise = (np.var(ema, ddof=1) + 2 * np.var(swa, ddof=1)) / 3
    half = stats.t.isf(0.05 / 2 / 2, 3) * (noise / 2) ** 0.5
    assert lines[0].startswith(f"ema (averaging=ema) +0.0120 [{0.012 - half:+.4f}, {0.012 + half:+.4f}] over 2")
    assert lines[1].endswith("over 3, equal") or lines[1].endswith("over 3, can't tell yet")


def test_one_run_can_not_tell_and_no_average_says_nothing(tmp_path):
    rows = collect_runs(tmp_path, write_sweep(tmp_path, "ema", [0.01]), ["seed"])
    assert explain_averages(tmp_path, rows, ["seed"])[1:] == ["ema +0.0100 over 1, can't tell yet"]
    assert explain_averages(tmp_path, [], ["seed"]) == []


@pytest.mark.parametrize("kind", ["normal", "t3"])
def test_averages_that_change_nothing_are_rarely_told_apart(tmp_path, kind):
    rng, errors = np.random.default_rng(3), 0
    for grid in range(40):
        draws = rng.normal(size=(4, 3)) if kind == "normal" else rng.standard_t(3, (4, 3))
        folder = tmp_path / str(grid)
        runs = [
            write_run(folder / f"{decay},{seed}", seed, {"ema": {"decay": decay}}, [{"miou": 0.4, "ema_miou": 0.4 + 0.003 * draws[decay, seed]}])
            for decay in range(4)
            for seed in range(3)
        ]  # fmt: skip
        lines = explain_averages(folder, collect_runs(folder, runs, ["averaging", "seed"]), ["averaging", "seed"])
        errors += any(line.endswith(("better", "worse")) for line in lines[1:])
    assert errors / 40 <= 0.15
