"""Grids compared: what GridComparison says of records and confusions on disk, and notebooks/05_compare.ipynb executed."""

import json

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
import yaml
from scipy import integrate, stats

from seglib.errors import InputError
from seglib.evaluation.compare import compare_noises
from seglib.evaluation.metrics import compute_metrics, save_confusion
from seglib.evaluation.verdicts import compare_conditions
from seglib.files import PROJECT
from seglib.inference.comparison import GridComparison, _knowledge_gradient
from seglib.runs.leaderboard import collect_runs, write_leaderboard

CLASSES = ["Background", "Can", "Bag"]
NOTEBOOK = PROJECT / "notebooks" / "05_compare.ipynb"


def write_grid(folder, runs, notebook="02_train.ipynb", baseline=None, **keys):
    """grid.yaml and leaderboard.csv of run folders that are there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "grid.yaml").write_text(
        yaml.safe_dump({"notebook": notebook, "runs": runs, "baseline": baseline or {}, **keys})
    )
    names = sorted(path.name for path in folder.iterdir() if (path / "record.json").is_file())
    write_leaderboard(folder, collect_runs(folder, names, []))
    return folder


def draw_counts(quality, seed, images=12):
    """(images, C, C): of 100 pixels of each class, so many right; the scene of an image makes it easier or harder."""
    rng = np.random.default_rng(seed)
    counts = np.zeros((images, 3, 3), np.int64)
    for image in range(images):
        for name in range(3):
            right = rng.binomial(100, min(0.99, quality + 0.05 * (image // 3)))
            counts[image, name, name], counts[image, name, (name + 1) % 3] = right, 100 - right
    return counts


def write_run(folder, counts, image_ids=range(12), status="ok", images=None, **params):
    folder.mkdir(parents=True)
    ids = np.array(image_ids)
    save_confusion(folder / "confusion.npz", counts, ids, CLASSES, images)
    params = {"data_dir": "nowhere", "val_json": "val.json", "train_json": "train.json", "split": "given", **params}
    metrics = compute_metrics(counts, CLASSES, 4)
    record = {
        "status": status,
        "params": params,
        "metrics": metrics,
        "seconds": 1800,
        "data_hash": "d",
        "best_epoch": 1,
    }
    (folder / "record.json").write_text(json.dumps(record))
    pd.DataFrame({"epoch": [1, 2], "train_loss": [2, 1], "val_loss": [2, 1.5], "miou": [0.1, 0.2]}).to_csv(
        folder / "history.csv"
    )


def write_sweep(folder, qualities, seeds=(21, 42, 63), **keys):
    runs = [{"lr": lr, "seed": seed} for lr in qualities for seed in seeds]
    for run in runs:
        noise = np.random.default_rng(run["seed"]).normal(0, 0.01)
        write_run(
            folder / f"lr={run['lr']},seed={run['seed']}", draw_counts(qualities[run["lr"]] + noise, run["seed"]), **run
        )
    return write_grid(folder, runs, baseline={"lr": next(iter(qualities))}, **keys)


def test_conditions_are_judged_by_the_rule_of_the_leaderboard(tmp_path):
    grids = GridComparison(write_sweep(tmp_path / "grid", {0.1: 0.6, 0.2: 0.7, 0.3: 0.601}))
    table = grids.tabulate_conditions().set_index("condition")
    scores = grids.tabulate_runs().pivot_table(index="seed", columns="condition", values="miou")
    expected = compare_conditions(scores, "0.1")
    assert grids.varied == ["lr", "seed"] and grids.baseline.label == "0.1"
    for label in ("0.2", "0.3"):
        assert table.loc[label, "difference"] == pytest.approx(expected.loc[label, "difference"])
        assert table.loc[label, ["low", "high"]].tolist() == pytest.approx(
            expected.loc[label, ["family_low", "family_high"]].tolist()
        )
        assert table.loc[label, "verdict"] == expected.loc[label, "verdict"]
    assert table.loc["0.2", "verdict"] == "better" and "0.2 is better" in grids.describe()[0]


def test_the_two_noises_are_those_of_the_confusions(tmp_path):
    grids = GridComparison(write_sweep(tmp_path / "grid", {0.1: 0.6, 0.2: 0.7}))
    (row,) = grids.compare_noises().to_dict("records")
    sides = [np.stack([draw_counts(quality + np.random.default_rng(seed).normal(0, 0.01), seed) for seed in (21, 42, 63)])
             for quality in (0.7, 0.6)]  # fmt: skip
    scenes = grids._find_scenes(np.arange(12))
    expected = compare_noises(*sides, scenes)
    assert "stretches" in grids.scenes
    for name in ("difference", "image_std_error", "image_low", "image_high"):
        assert row[name] == pytest.approx(expected[name])
    judged = grids.tabulate_conditions().set_index("condition").loc["0.2"]  # one comparison: the page's interval
    assert [row["seed_low"], row["seed_high"]] == pytest.approx([judged["low"], judged["high"]])


def test_scenes_are_those_that_the_runs_keep_and_the_data_is_not_asked(tmp_path):
    images = pd.DataFrame({"group": [f"street {number // 3}" for number in range(12)], "file_name": ["x.jpg"] * 12})
    runs = [{"lr": lr, "seed": seed} for lr in (0.1, 0.2) for seed in (1, 2)]
    for run in runs:
        folder = tmp_path / "grid" / f"lr={run['lr']},seed={run['seed']}"
        write_run(folder, draw_counts(0.6 + run["lr"], run["seed"]), images=images, **run)
    grids = GridComparison(write_grid(tmp_path / "grid", runs, baseline={"lr": 0.1}))
    (row,) = grids.compare_noises().to_dict("records")
    assert grids.scenes == "4 scenes (by the data's groups)"
    sides = [np.stack([draw_counts(0.6 + lr, seed) for seed in (1, 2)]) for lr in (0.2, 0.1)]
    assert row["image_std_error"] == pytest.approx(compare_noises(*sides, np.arange(12) // 3)["image_std_error"])


def test_folds_are_joined_to_all_images_and_one_that_failed_is_left_out_of_both(tmp_path):
    folder, runs = tmp_path / "grid", []
    for lr, quality in ((0.1, 0.6), (0.2, 0.7)):
        for fold in range(3):
            status = "failed" if (lr, fold) == (0.2, 1) else "ok"
            counts, ids = draw_counts(quality, fold, images=4), range(4 * fold, 4 * fold + 4)
            runs.append({"lr": lr, "fold": fold})
            since = {"split_seed": 1} if fold == 2 else {}  # earlier versions divided the images by the seed
            write_run(folder / f"lr={lr},fold={fold}", counts, ids, status, split="kfold", seed=1, **runs[-1], **since)
    grids = GridComparison(write_grid(folder, runs, baseline={"lr": 0.1}))
    (row,) = grids.compare_noises().to_dict("records")
    sides = [np.concatenate([draw_counts(quality, fold, images=4) for fold in (0, 2)])[None] for quality in (0.7, 0.6)]
    assert row["difference"] == pytest.approx(compare_noises(*sides, np.arange(8))["difference"])
    assert grids.comparison.blocks == "folds"
    lines = yaml.safe_load(grids.write_next(grids.plan_next().assign(gain=1.0)))["runs"]
    assert {line["fold"] for line in lines} == {0, 1, 2}


def test_conditions_on_other_images_have_no_noise_of_images_and_the_words_say_so(tmp_path):
    for lr in (0.1, 0.2):
        for seed in (1, 2):
            run = {"lr": lr, "fold": int(10 * lr), "seed": seed}
            write_run(tmp_path / "grid" / f"lr={lr},seed={seed}", draw_counts(0.6, seed), split="kfold", **run)
    grids = GridComparison(write_grid(tmp_path / "grid", [], baseline={"lr": 0.1}))
    assert grids.compare_noises().empty and "nothing is compared" in grids.scenes and "no baseline" not in grids.scenes


def test_classes_are_corrected_all_together(tmp_path):
    grids = GridComparison(write_sweep(tmp_path / "grid", {0.1: 0.5, 0.2: 0.75, 0.3: 0.501}))
    table = grids.compare_classes()
    assert table.groupby("condition")["class"].apply(list).tolist() == [CLASSES, CLASSES]
    raw = [
        compare_conditions(
            pd.DataFrame(
                {
                    item.label: pd.Series({run.params["seed"]: run.iou[name] for run in item.scored})
                    for item in grids.conditions
                }
            ),
            "0.1",
        )["p"]
        for name in CLASSES
    ]
    p, rank = np.stack(raw).ravel(), np.argsort(np.argsort(np.stack(raw).ravel()))
    holm = np.maximum.accumulate((len(p) - np.arange(len(p))) * np.sort(p)).clip(max=1)
    assert table["p"].to_numpy() == pytest.approx(holm[rank])
    assert set(table.loc[table["condition"] == "0.2", "verdict"]) == {"better"}
    assert set(table.loc[table["condition"] == "0.3", "verdict"]) == {""}


def test_another_grid_takes_part_and_one_of_other_images_is_refused(tmp_path):
    first = write_sweep(tmp_path / "a", {0.1: 0.6, 0.2: 0.7})
    second = write_sweep(tmp_path / "b", {0.4: 0.8})
    grids = GridComparison(first, [second])
    assert [item.label for item in grids.conditions] == ["0.4", "0.2", "0.1"]
    assert grids.conditions[0].verdict == "better"
    other = tmp_path / "c"
    write_run(other / "run", draw_counts(0.5, 1), range(50, 62), lr=0.5, seed=21)
    with pytest.raises(InputError, match=r"more_grids .*required the validation images"):
        GridComparison(first, [write_grid(other, [{"lr": 0.5}])])


def test_what_is_wrong_is_said_in_one_line(tmp_path):
    grid = write_sweep(tmp_path / "grid", {0.1: 0.6, 0.2: 0.7})
    for options, words in [
        ({"baseline": {"lrr": 1}}, "baseline: unknown varied parameter 'lrr'.*did you mean 'lr'"),
        ({"baseline": {"lr": 7}}, "baseline: required values that runs with a score have, got lr7"),
    ]:
        with pytest.raises(InputError, match=words):
            GridComparison(grid, **options)
    with pytest.raises(InputError, match="required the folder of a grid"):
        GridComparison(tmp_path / "grid" / "lr=0.1,seed=21")
    with pytest.raises(InputError, match="two_runs: unknown run"):
        GridComparison(grid).compare_parameters("lr=0.1,seed=22")


def test_parameters_of_two_runs(tmp_path):
    grids = GridComparison(write_sweep(tmp_path / "grid", {0.1: 0.6, 0.2: 0.7}))
    table = grids.compare_parameters("lr=0.1,seed=21", "lr=0.2,seed=21")
    assert list(table.index) == ["lr", "mIoU"] and table.loc["lr"].tolist() == ["0.1", "0.2"]


def test_the_knowledge_gradient_is_its_integral():
    for behind, shift in ((0.0, 0.01), (0.01, 0.02), (0.03, 0.01)):
        rise, _ = integrate.quad(lambda z, b=behind, s=shift: max(0, s * z - b) * stats.norm.pdf(z), -8, 8, limit=200)
        assert _knowledge_gradient(behind, shift) == pytest.approx(rise, rel=1e-5, abs=1e-9)
    assert _knowledge_gradient(0.01, 0.0) == 0


def test_what_is_nearly_as_good_is_worth_more_seeds_than_what_is_far_behind(tmp_path):
    grids = GridComparison(write_sweep(tmp_path / "grid", {0.1: 0.6, 0.2: 0.602, 0.3: 0.4}))
    plan = grids.plan_next().set_index("condition")
    assert plan.loc["0.3", "gain"] < plan.loc["0.2", "gain"]
    seeds = plan.loc["0.2", "seeds"]
    assert plan.loc["0.2", "hours"] == pytest.approx(seeds * 2 * 0.5)  # as many of the baseline, half an hour each
    lines = yaml.safe_load(grids.write_next(grids.plan_next()))["runs"]
    assert {0.1, 0.2} <= {line["lr"] for line in lines} and not {line["seed"] for line in lines} & {21, 42, 63}


def test_a_grid_of_one_seed_says_that_its_noise_is_not_known(tmp_path):
    grids = GridComparison(write_sweep(tmp_path / "grid", {0.1: 0.6, 0.2: 0.7}, seeds=(21,)))
    assert grids.plan_next()["gain"].isna().all() and grids.write_next(grids.plan_next()) == ""
    assert "is not known" in " ".join(grids.describe())
    row = grids.compare_noises().iloc[0]
    assert np.isnan(row["seed_low"]) and np.isfinite(row["image_low"]) and np.isnan(row["low"])


@pytest.fixture(scope="module")
def compared(tmp_path_factory, small_data, make_scored_run):
    grid, runs = tmp_path_factory.mktemp("outputs") / "grid", []
    for lr in (0.001, 0.01):
        for seed in (1, 2):
            runs.append({"lr": lr, "seed": seed})
            make_scored_run(grid / f"lr={lr},seed={seed}", small_data, seed, lr=lr)
            history = pd.DataFrame(
                {"epoch": [1, 2], "train_loss": [2, 1], "val_loss": [2, 1.5], "miou": [0.1, 0.2 + lr]}
            )
            history.to_csv(grid / f"lr={lr},seed={seed}" / "history.csv", index=False)
    write_grid(grid, runs, baseline={"lr": 0.001})
    parameters = {"grid_dir": str(grid), "output_dir": str(grid / "05_compare"), "num_images": 2}
    papermill.execute_notebook(str(NOTEBOOK), str(grid / "out.ipynb"), parameters, kernel_name="python3",
                               cwd=str(NOTEBOOK.parent), progress_bar=False)  # fmt: skip
    return grid


def test_the_notebook_leaves_tables_figures_and_a_record(compared):
    folder = compared / "05_compare"
    assert {path.stem for path in folder.glob("*.csv")} == {"conditions", "noises", "classes", "runs", "plan"}
    figures = {"verdicts", "noises", "classes", "curves", "by_lr", "parallel", "images"}
    assert {path.stem for path in (folder / "figures").glob("*.png")} == figures
    record = json.loads((folder / "record.json").read_text())
    assert record["status"] == "ok" and len(record["findings"]) >= 2
    assert (folder / "findings.md").read_text().startswith("- ")


def test_the_executed_notebook_has_no_warnings(compared):
    content = nbformat.read(compared / "out.ipynb", as_version=4)
    outputs = [output for cell in content.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.get("name") == "stderr"]


def test_runs_of_one_model_give_the_same_pictures(compared):
    """The two conditions differ in a parameter that nothing was trained with: equal weights, equal masks."""
    *_, masks, names, titles = GridComparison(compared).show_images(2)
    first, second = masks.values()
    assert np.array_equal(first, second) and len(titles) == 2 and names[0] == "Background"
