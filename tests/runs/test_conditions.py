"""Runs are gathered to conditions, and judged by the rule of evaluation/verdicts.py; records are read from disk."""

import json
import statistics

import numpy as np
import pandas as pd
import pytest

from seglib.evaluation.verdicts import Noise, compare_conditions, measure_noise, shrink_means, smallest_visible
from seglib.runs.conditions import (
    compare_over_seeds,
    describe_task,
    find_earlier_noise,
    measure_earlier_noise,
    summarise_conditions,
)
from seglib.runs.leaderboard import collect_runs
from seglib.runs.planning import foresee

CE, FOCAL, DICE = {"cross_entropy": 1.0}, {"cross_entropy": 0.9, "focal": 0.1}, {"dice": 1}
SCORES = {  # loss name -> (value, scores of seeds 21, 42, 63)
    "ce": (CE, [0.4111, 0.4133, 0.4120]),
    "ce0.9+focal0.1": (FOCAL, [0.4128, 0.4121, 0.4132]),
    "dice": (DICE, [0.4412, 0.4440, 0.4419]),
}


def write_run(grid_dir, run, **record):
    (grid_dir / run).mkdir(parents=True)
    (grid_dir / run / "record.json").write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")
    return run


def write_ok(grid_dir, run, params, miou):
    return write_run(grid_dir, run, status="ok", params=params, metrics={"miou": miou}, data_hash="d")


def write_sweep(grid_dir, scores=SCORES, seeds=(21, 42, 63), **params):
    return [
        write_ok(grid_dir, f"loss={name},seed={seed}", {"loss": loss, "seed": seed, **params}, miou)
        for name, (loss, values) in scores.items()
        for seed, miou in zip(seeds, values, strict=False)
    ]


def summarise(grid_dir, runs, baseline=None, varied=("loss", "seed"), **options):
    baseline = {"loss": CE} if baseline is None else baseline
    comparison = summarise_conditions(collect_runs(grid_dir, runs, [*varied]), [*varied], baseline, **options)
    return comparison, {item.label: item for item in comparison.conditions}


def lose(grid_dir, run):
    path = grid_dir / run / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "killed"}))


def test_a_condition_gathers_the_seeds(tmp_path):
    comparison, items = summarise(tmp_path, write_sweep(tmp_path))
    scores = SCORES["dice"][1]
    assert (items["dice"].n, items["dice"].mean) == (3, statistics.fmean(scores))
    assert items["dice"].std == pytest.approx(statistics.stdev(scores))
    assert list(items) == ["dice", "ce0.9+focal0.1", "ce"] and comparison.blocks == "seeds"


def test_verdicts_are_those_of_the_rule(tmp_path):
    comparison, items = summarise(tmp_path, write_sweep(tmp_path))
    table = pd.DataFrame({name: scores for name, (_, scores) in SCORES.items()})
    expected = compare_conditions(table, "ce")
    for name, row in expected.iterrows():
        item = items[name]
        assert (item.difference, item.low, item.high, item.df, item.p_holm) == pytest.approx(
            tuple(row[["difference", "family_low", "family_high", "df", "p_holm"]])
        )
        assert item.verdict == row["verdict"] and item.paired
    assert (items["dice"].verdict, items["ce"].verdict) == ("better", "baseline")
    noise = measure_noise(table)
    assert (comparison.noise, comparison.df, comparison.earlier_df) == (pytest.approx(noise.std), 4, 0)
    assert items["dice"].shrunk == pytest.approx(shrink_means(table, noise)["dice"])


def test_a_worse_condition_is_called_worse(tmp_path):
    _, items = summarise(tmp_path, write_sweep(tmp_path), baseline={"loss": DICE})
    assert items["ce"].verdict == "worse"
    assert items["ce"].low < items["ce"].difference < items["ce"].high < 0


def test_a_lost_run_leaves_the_other_pairs(tmp_path):
    """Of the baseline or of a condition: what both sides share is compared in pairs."""
    runs = write_sweep(tmp_path)
    lose(tmp_path, "loss=ce,seed=63")
    _, items = summarise(tmp_path, runs)
    assert (items["ce"].n, items["ce"].runs, items["dice"].paired) == (2, 3, True)
    assert items["dice"].difference == pytest.approx(np.mean([0.4412 - 0.4111, 0.4440 - 0.4133]))


def test_folds_are_blocks_alone_and_with_seeds(tmp_path):
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 0.05, 3)  # folds differ far more than what is compared
    runs = [
        write_ok(tmp_path, f"lr={lr},fold={fold},seed={seed}", {"lr": lr, "fold": fold, "seed": seed}, score)
        for lr in (0.1, 0.2)
        for fold in range(3)
        for seed in (1, 2)
        for score in [0.5 + hard[fold] + 0.02 * (lr == 0.2) + rng.normal(0, 0.002)]
    ]
    comparison, items = summarise(tmp_path, runs, {"lr": 0.1}, ("lr", "fold", "seed"))
    assert comparison.blocks == "seeds and folds" and items["0.2"].n == 6
    assert items["0.2"].verdict == "better" and items["0.2"].difference == pytest.approx(0.02, abs=0.004)
    of_one_seed = [run for run in runs if run.endswith("seed=1")]
    comparison, items = summarise(tmp_path, of_one_seed, {"lr": 0.1}, ("lr", "fold"))
    assert comparison.blocks == "folds" and (items["0.2"].n, items["0.2"].paired) == (3, True)


def test_folds_that_do_not_tell_are_to_be_trained_again_with_other_seeds(tmp_path):
    gains = (0.01, 0.03, -0.01)
    runs = [
        write_ok(tmp_path, f"lr={lr},fold={fold}", {"lr": lr, "fold": fold}, 0.5 + (lr == 0.2) * gains[fold])
        for lr in (0.1, 0.2)
        for fold in range(3)
    ]
    item = summarise(tmp_path, runs, {"lr": 0.1}, ("lr", "fold"))[1]["0.2"]
    seeds = -(-item.more // 3)
    assert item.more > 3 and item.hint == f"{seeds} more seeds of all folds"


def test_split_seeds_are_blocks_too(tmp_path):
    runs = [
        write_ok(
            tmp_path, f"lr={lr},split_seed={s}", {"lr": lr, "split": "holdout", "split_seed": s}, 0.5 + lr / 99 + s / 7
        )
        for lr in (0.1, 0.2)
        for s in (1, 2, 3)
    ]
    comparison, items = summarise(tmp_path, runs, {"lr": 0.1}, ("lr", "split_seed"))
    assert comparison.blocks == "split seeds" and (items["0.2"].n, items["0.2"].paired) == (3, True)


def test_seeds_that_were_the_split_s_too_lend_no_noise(tmp_path):
    """Before there was a split_seed, another seed of a drawn split had other images."""
    task = {"epochs": 3, "image_size": 64, "split": "holdout"}
    write_sweep(tmp_path / "before", **task)
    runs = write_sweep(tmp_path / "now", seeds=(21,), split_seed=21, **task)
    assert find_earlier_noise(tmp_path, tmp_path / "now", runs) is None
    write_sweep(tmp_path / "since", split_seed=21, **task)
    assert find_earlier_noise(tmp_path, tmp_path / "now", runs).df == 4


def test_one_seed_can_not_tell_and_says_why(tmp_path):
    comparison, items = summarise(tmp_path, write_sweep(tmp_path, seeds=(21,)))
    item = items["dice"]
    assert (item.std, item.low, item.p_holm, item.verdict, item.hint) == (None,) * 3 + (
        "can't tell yet",
        "noise unknown",
    )
    assert item.difference == pytest.approx(0.4412 - 0.4111)
    assert comparison.explain() == ["Noise between seeds is not known: no difference can be told from it; vary seed."]


def test_earlier_grids_on_the_same_task_lend_their_noise(tmp_path):
    alike = {"epochs": 3, "image_size": 64}
    write_sweep(tmp_path / "before", lr=0.5, **alike)
    write_sweep(tmp_path / "longer", seeds=(1, 2, 3), epochs=9, image_size=64)
    runs = write_sweep(tmp_path / "now", seeds=(21,), **alike)
    rows = collect_runs(tmp_path / "now", runs, ["loss"])
    noise = find_earlier_noise(tmp_path, tmp_path / "now", runs)
    expected = measure_noise(pd.DataFrame({name: scores for name, (_, scores) in SCORES.items()}))
    assert (noise.std, noise.df) == (pytest.approx(expected.std), expected.df)
    comparison = summarise_conditions(rows, ["loss"], {"loss": CE}, earlier=lambda: noise)
    (dice,) = (item for item in comparison.conditions if item.label == "dice")
    assert (dice.verdict, dice.df, comparison.earlier_df) == ("better", 4, 4)
    assert "(4 df, 4 of them from earlier grids)" in comparison.explain()[0]
    asked = summarise(
        tmp_path / "before", [path.name for path in (tmp_path / "before").iterdir()], earlier=lambda: None
    )
    assert asked[0].earlier_df == 0
    assert find_earlier_noise(tmp_path, tmp_path / "longer", []) is None


def test_a_plan_says_what_it_will_be_able_to_see(tmp_path):
    def plan(*seeds, baseline={"loss": CE}, losses=SCORES):  # noqa: B006
        runs = [{"loss": SCORES[name][0], "seed": seed} for name in losses for seed in seeds]
        task = describe_task({"epochs": 3, "image_size": 64}, "d")
        return foresee(runs, ["loss", "seed"], baseline, lambda: measure_earlier_noise(tmp_path, task))

    assert plan(1, 2).endswith(
        "2 seeds x 3 conditions: what they will see is not known; two seeds on this data, epochs and image size make it known"
    )
    assert "no verdict will be possible, the noise is not known; two seeds of each" in plan(1)
    for name in ("a", "b"):
        write_sweep(tmp_path / name, epochs=3, image_size=64)
    write_sweep(tmp_path / "trial", epochs=3, image_size=64, debug=True)
    noise, grids = measure_earlier_noise(tmp_path, ("d", 3, 64, False))
    assert (noise.df, grids) == (8, 2)
    size = smallest_visible(Noise(noise.variance, 2 + 2 + 6), 3, 2)  # own pairs, the rest of the grid, earlier ones
    known = "at 80 % power (noise of 2 earlier grids, 8 df)"
    assert plan(1, 2, 3) == f"3 seeds x 3 conditions: differences from {size:.3f} {known}"
    size = smallest_visible(Noise(noise.variance, 6), 1, 2)
    assert plan(1) == f"1 seed x 3 conditions: differences from {size:.3f} {known}"
    assert (
        plan(1, 2, baseline={}) == "2 seeds x 3 conditions: no verdict will be possible without a `baseline`; name one"
    )
    assert plan(1, 2, losses=["ce"]) == ""


def test_more_seeds_that_would_tell_are_counted(tmp_path):
    scores = {"ce": (CE, [0.40, 0.42, 0.41]), "dice": (DICE, [0.41, 0.425, 0.43])}
    _, items = summarise(tmp_path, write_sweep(tmp_path, scores))
    assert items["dice"].verdict == "can't tell yet" and items["dice"].hint.endswith("more seeds")


def test_equal_is_within_what_is_worth_having(tmp_path):
    scores = {"ce": (CE, [0.41, 0.42, 0.43]), "dice": (DICE, [0.4101, 0.4199, 0.4301])}
    runs = write_sweep(tmp_path, scores)
    assert summarise(tmp_path, runs)[1]["dice"].verdict == "equal"
    assert summarise(tmp_path, runs, worthwhile=0.0001)[1]["dice"].verdict == "can't tell yet"


def test_a_condition_without_any_score_says_so(tmp_path):
    runs = write_sweep(tmp_path)
    runs.append(write_run(tmp_path, "loss=bad,seed=21", status="oom", params={"loss": "bad", "seed": 21}))
    _, items = summarise(tmp_path, runs)
    assert (items["bad"].n, items["bad"].runs, items["bad"].mean, items["bad"].verdict) == (0, 1, None, "no score")
    for seed in (21, 42, 63):
        lose(tmp_path, f"loss=ce,seed={seed}")
    assert summarise(tmp_path, runs)[1]["dice"].verdict == "no baseline score"


def test_a_seed_that_changes_nothing_is_no_proof(tmp_path):
    runs = write_sweep(tmp_path, {"ce": (CE, [0.4, 0.4]), "dice": (DICE, [0.5, 0.5])})
    _, items = summarise(tmp_path, runs)
    assert (items["dice"].verdict, items["dice"].hint, items["dice"].p_holm) == (
        "can't tell yet", "no spread over seeds", None,
    )  # fmt: skip


def test_runs_of_one_seed_are_paired_with_none(tmp_path):
    runs = [
        write_ok(tmp_path, f"{lr}-{number}", {"lr": lr, "seed": 1}, lr + number / 100)
        for lr in (0.1, 0.2)
        for number in range(3)
    ]
    _, items = summarise(tmp_path, runs, {"lr": 0.1}, ("lr", "seed"))
    assert (items["0.2"].n, items["0.2"].paired) == (3, False)


def test_numbers_of_the_baseline_match_however_they_are_spelled(tmp_path):
    runs = [
        write_ok(tmp_path, f"lr={lr},seed={s}", {"lr": lr, "seed": s}, lr + s / 99)
        for lr in (0.001, 1.0)
        for s in (1, 2)
    ]
    for baseline in ({"lr": "1e-3"}, {"lr": 0.001}):
        assert summarise(tmp_path, runs, baseline, ("lr", "seed"))[1]["0.001"].verdict == "baseline"
    assert summarise(tmp_path, runs, {"lr": 1}, ("lr", "seed"))[1]["1"].verdict == "baseline"


def test_a_partial_baseline_compares_within_the_other_values(tmp_path):
    scores = {("r18", "ce"): 0.30, ("r18", "dice"): 0.32, ("r50", "ce"): 0.40, ("r50", "dice"): 0.45}
    runs = [
        write_ok(tmp_path, f"encoder={e},loss={loss},seed={s}", {"encoder": e, "loss": loss, "seed": s}, m + s / 1000)
        for (e, loss), m in scores.items()
        for s in (1, 2)
    ]
    _, items = summarise(tmp_path, runs, {"loss": "ce"}, ("encoder", "loss", "seed"))
    assert items["encoder=r18, loss=dice"].difference == pytest.approx(0.02)
    assert items["encoder=r50, loss=dice"].difference == pytest.approx(0.05)
    assert [items[f"encoder={e}, loss=ce"].verdict for e in ("r18", "r50")] == ["baseline", "baseline"]


def test_without_a_baseline_nothing_is_judged(tmp_path):
    comparison, items = summarise(tmp_path, write_sweep(tmp_path), baseline={})
    assert {(item.verdict, item.difference) for item in items.values()} == {("", None)}
    assert comparison.noise == pytest.approx(measure_noise(pd.DataFrame({k: v for k, (_, v) in SCORES.items()})).std)


@pytest.mark.parametrize(
    ("conditions", "seeds", "shared", "kind"), [(4, 3, 0.4, "normal"), (10, 2, 0.0, "normal"), (4, 2, 0.4, "t3")]
)
def test_grids_whose_conditions_do_not_differ_are_rarely_told_apart(tmp_path, conditions, seeds, shared, kind):
    """From records on disk, 60 grids a cell; the rule's own simulations with more are in evaluation/test_verdicts.py."""
    rng, errors = np.random.default_rng([conditions, seeds]), 0
    for grid in range(60):
        common = rng.normal(size=(seeds, 1)) * shared**0.5
        draws = (
            rng.normal(size=(seeds, conditions))
            if kind == "normal"
            else rng.standard_t(3, (seeds, conditions)) / 3**0.5
        )
        scores = 0.5 + 0.006 * (common + (1 - shared) ** 0.5 * draws)
        runs = [
            write_ok(tmp_path / str(grid), f"lr={c},seed={s}", {"lr": c, "seed": s}, float(scores[s, c]))
            for c in range(conditions)
            for s in range(seeds)
        ]
        _, items = summarise(tmp_path / str(grid), runs, {"lr": 0}, ("lr", "seed"))
        errors += any(item.verdict in ("better", "worse") for item in items.values())
    assert errors / 60 <= 0.12  # 5 % expected; more than 7 of 60 in 1 of 100 tests


def test_two_runs_are_compared_over_the_seeds_of_their_conditions(tmp_path):
    write_sweep(tmp_path)
    line = compare_over_seeds(tmp_path / "loss=dice,seed=42", tmp_path / "loss=ce,seed=21")
    assert line.startswith("Over 3 and 3 runs of the two conditions the difference is +0.0302, 95 % interval +0.02")
    assert line.endswith("over seeds and folds: A is better.")
    write_sweep(tmp_path / "one", seeds=(21,))
    line = compare_over_seeds(tmp_path / "one" / "loss=dice,seed=21", tmp_path / "one" / "loss=ce,seed=21")
    assert line == "Whether another seed would change it was not looked at: no condition here has two."


def test_two_seeds_of_one_condition_give_no_verdict_on_methods(tmp_path):
    rng = np.random.default_rng(0)
    for pair in range(20):
        folder = tmp_path / str(pair)
        names = write_sweep(folder, {"ce": (CE, rng.normal(0.4, 0.014, 2).tolist())}, seeds=(1, 2))
        line = compare_over_seeds(folder / names[0], folder / names[1])
        assert line == "Both are runs of one condition: seeds and folds alone make the difference."
