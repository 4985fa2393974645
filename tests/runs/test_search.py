"""Runs that Optuna proposes: which, in whatever order runs end; what is refused; the best again with further seeds."""

import json
import math
import random
import re
import statistics
import sys

import pytest

from seglib.files import read_json
from seglib.runs import local, schedule
from seglib.runs import search as searching
from seglib.runs.search import STARTUP, propose
from seglib.runs.search_space import Range, describe_space, draw, read_space

optuna = pytest.importorskip("optuna")
PARAMETERS = (
    'lr: float = 1e-3  # from 0\nmodel: str = "a"  # a or b\nsize: int = 4\nseed: int = 21\nrun_dir: str = ""\n'
)
SEARCH = "search: {lr: {log: [1e-5, 1e-1]}, model: [a, b]}\n"
# The score is best at lr 1e-3 of model b, of which seed 21 is no judge; a run of a low size fails, one of a high size is slow.
STAND_IN = """
import json, math, os, sys, time
from seglib.runs.record import UNDER_RUNNER, save_result, start_record, update_record
os.environ[UNDER_RUNNER] = "1"
job = json.loads(sys.stdin.readline())
p, folder = job["parameters"], job["run_dir"]
start_record(folder, job["key"], p, job["varied"])
with open(os.path.join(folder, "..", "order"), "a") as file:
    file.write(os.path.basename(folder) + "\\n")
if p["size"] == 1 and p["model"] == "a":
    update_record(folder, status="failed", error="ValueError: asked to")
    sys.exit()
time.sleep(p["size"] / 100 if p["size"] > 4 else 0)
score = 0.6 - 0.1 * abs(math.log10(p["lr"]) + 3) + (0.05 if p["model"] == "b" else 0)
save_result(folder, metrics={"miou": score + (p["seed"] - 21) * 1e-4 + 1e-5 * p["lr"]}, best_epoch=1)
update_record(folder, status="ok")
"""


@pytest.fixture
def write(write_grid, write_notebook, tmp_path, monkeypatch):
    """Write a grid over a notebook that seems to train; a script trains in its place."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setattr(local, "COMMAND", (sys.executable, str(tmp_path / "stand_in.py")))
    monkeypatch.setattr(local, "is_possible", lambda: False)  # warm starts run no script of ours
    monkeypatch.setattr(schedule, "POLL", 0.02)
    notebook = write_notebook(tmp_path / "training.ipynb", "", PARAMETERS)
    return lambda text: write_grid(text, notebook)


@pytest.fixture
def plan(grid_folder):
    """The trials' values."""
    return lambda: [trial["values"] for trial in read_json(grid_folder / "search.json")["trials"]]


SPACE = read_space(
    {"lr": {"log": [1e-5, 1e-1]}, "batch": {"int": [2, 16]}, "width": {"log_int": [8, 512]}, "drop": {"uniform": [0, 0.5]},
     "loss": [{"ce": 1.0}, {"ce": 0.9, "focal": 0.1}, "dice"]}
)  # fmt: skip


def score(values):
    best = {"dice": -2, "{'ce': 1.0}": -3}.get(str(values["loss"]), -4)
    lost = (
        0.1 * (math.log10(values["lr"]) - best) ** 2 + 0.02 * abs(values["batch"] - 8) + 0.3 * abs(values["drop"] - 0.1)
    )
    return -lost - 0.05 * abs(math.log2(values["width"]) - 6)


def search_alone(seed, trials=30):
    tried = []
    for place in range(trials):
        known = max(0, place - searching.LAG)
        told = [(values, score(values)) for values in tried[:known]]
        tried.append(propose(SPACE, place, told, tried[known:], seed))
    return tried


def test_the_first_trials_are_spread_evenly_and_all_values_are_short_and_inside():
    tried = search_alone(1, 14)
    tenths = sorted(int(math.log10(values["lr"] / 1e-5) / 4 * STARTUP) for values in tried[:STARTUP])
    assert tenths == [*range(STARTUP)], "one in each tenth of the range"
    counts = [sum(values["loss"] == each for values in tried[:STARTUP]) for each in SPACE["loss"]]
    assert max(counts) - min(counts) <= 1
    for values in tried:
        assert all(value in SPACE[name] for name, value in values.items()), values
        assert type(values["batch"]) is int and type(values["width"]) is int and len(f"{values['lr']:g}") <= 9
    assert [Range("int", 2, 4).at(share) for share in (0, 0.34, 0.99)] == [2, 3, 4]
    assert draw({"a": Range("uniform", 0.99, 0.999)}, "a", 0.5) == 0.9945


def test_tpe_finds_better_values_than_as_many_random_ones():
    def draw_all(seed):
        dice = random.Random(seed)
        return [{name: draw(SPACE, name, dice.random()) for name in SPACE} for _ in range(50)]

    found = [max(map(score, search_alone(seed, 50))) for seed in range(8)]
    by_chance = [max(map(score, draw_all(seed))) for seed in range(100)]
    assert statistics.fmean(found) > statistics.fmean(by_chance) + 0.04, "random ones lose 0.09, TPE 0.02"
    assert search_alone(3) == search_alone(3) != search_alone(4)


def test_a_proposal_is_never_made_twice_and_failed_ones_are_left_alone():
    space = read_space({"a": [1, 2, 3], "b": {"int": [1, 4]}})
    tried = []
    for place in range(12):
        told = [(values, None if values["a"] == 1 else values["b"] * 0.1) for values in tried]
        tried.append(propose(space, place, told, [], 1))
    assert len({str(values) for values in tried}) == 12
    tried = []
    for place in range(40):
        told = [(values, None if values["loss"] == "dice" else score(values)) for values in tried]
        tried.append(propose(SPACE, place, told, [], 1))
    assert sum(values["loss"] == "dice" for values in tried[STARTUP:]) <= 4, "a third of them by chance"


def test_the_best_three_and_the_baseline_are_trained_again_and_these_seeds_alone_are_judged(
    call, write, records, plan, grid_folder, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "140")
    path = write(f"{SEARCH}trials: 14\nbaseline: {{lr: 0.1}}")
    dry = call(path, "--dry-run").out
    assert (
        "search: lr 1e-05..0.1 (log), model of 2; 14 trials with seed 21, the first 10 spread evenly, the others by"
        " Optuna's TPE; then the best 3 and the baseline again with seeds 42 and 63" in dry
    )
    assert "11 runs, 0 done before, 11 to go, then 3 more trials and up to 8 runs with further seeds" in dry
    assert "2 seeds x 4 conditions" in dry and not grid_folder.exists()
    result = call(path)
    assert result.code == 0, result
    names, found = [*records()], records()
    trials = [name for name in names if "seed" not in name]
    assert len(trials) == 14 and plan()[0] == {"lr": 0.1, "model": "a"}
    best = sorted(trials, key=lambda name: -found[name]["metrics"]["miou"])[:3]
    again = {name.rsplit(",", 1)[0] for name in names if "seed" in name}
    assert again == {*best, "lr=0.1,model=a"} and sum("seed" in name for name in names) == 8
    out = " ".join(result.out.split())
    assert f"Best of 14 trials: {best[0]}," in out and "one seed gets no verdict" in out
    assert "What was trained again is judged by seeds 42 and 63 alone, which chose nothing." in out
    table = result.out[result.out.index("condition ") :].splitlines()[2:6]
    assert [re.split(r"\s{2,}", line)[1] for line in table] == ["2"] * 4, "not the seed that chose them"
    assert sum("baseline" in line for line in table) == 1
    board = (grid_folder / "leaderboard.csv").read_text()
    assert board.count("lr 1e-05..0.1 (log), model of 2; 14 trials") == 14 + 8
    page = (grid_folder / "index.html").read_text()
    assert "<h2>Search</h2>" in page and "Best of 14 trials" in page
    before = (grid_folder / "order").read_text()
    second = call(path)
    assert second.code == 0 and (grid_folder / "order").read_text() == before, "nothing runs twice"
    assert "22 runs, 22 done before, 0 to go ->" in second.out


def test_the_plan_is_the_same_again_with_two_slots_and_after_a_kill(
    call, write, plan, grid_folder, tmp_path, monkeypatch
):
    path = write(f"{SEARCH}trials: 16\nfixed: {{size: 9}}")
    assert call(path).code == 0
    once = plan()
    grid_folder.rename(tmp_path / "once")
    assert call(path, "--workers", 2).code == 0 and plan() == once, "in whatever order they end"
    grid_folder.rename(tmp_path / "two")
    describe = schedule._describe

    def interrupt(*arguments):
        if (grid_folder / "order").is_file() and len((grid_folder / "order").read_text().split()) == 13:
            raise KeyboardInterrupt
        return describe(*arguments)

    monkeypatch.setattr(schedule, "_describe", interrupt)
    assert call(path).code == 130
    monkeypatch.setattr(schedule, "_describe", describe)
    assert call(path, "--workers", 2).code == 0 and plan() == once
    assert len({*(grid_folder / "order").read_text().split()}) == 22


def test_many_slots_have_trials_of_their_own_and_what_was_proposed_stays(call, write, plan):
    path = write(f"{SEARCH}trials: 18")
    assert call(path, "--workers", 7).code == 0
    proposed = plan()
    told = [max(0, place - 10) if place >= STARTUP else 0 for place in range(18)]
    assert call(write(f"{SEARCH}trials: 20"), "--workers", 1).code == 0
    assert plan()[:18] == proposed and len(plan()) == 20
    assert [trial["told"] for trial in read_json(path.parent / "outputs/grid/search.json")["trials"]] == [*told, 16, 17]


def test_a_search_that_is_narrowed_keeps_the_trials_that_are_inside(call, write, plan, records):
    call(write(f"{SEARCH}trials: 10"))
    kept = [values for values in plan() if values["lr"] <= 1e-3]
    assert call(write("search: {lr: {log: [1e-5, 1e-3]}, model: [a, b]}\ntrials: 11")).code == 0
    assert plan()[: len(kept)] == kept and len(plan()) == 11 and all(each["lr"] <= 1e-3 for each in plan())


def test_a_failed_trial_is_1_gets_no_seeds_and_the_search_goes_on(call, write, records):
    path = write(f"{SEARCH}trials: 13\nfixed: {{size: 1}}\nseeds: [1, 2]")
    result = call(path)
    assert result.code == 1
    failed = [name for name, record in records().items() if record["status"] == "failed"]
    assert 3 <= len(failed) < 10 and all("model=a" in name and "seed" not in name for name in failed)
    again = [name for name in records() if "seed" in name]
    assert len(again) == 3 and all("model=b,seed=2" in name for name in again)
    assert {record["params"]["seed"] for record in records().values()} == {1, 2}


def test_a_search_of_few_choices_is_all_of_them(call, write, plan):
    result = call(write("search: {model: [a, b], size: {int: [2, 3]}}\ntrials: 30"))
    assert result.code == 0 and sorted(map(str, plan())) == sorted(
        str({"model": model, "size": size}) for model in "ab" for size in (2, 3)
    )
    assert "4 trials, one seed each" in " ".join(result.out.split())


def test_fresh_runs_the_same_trials_again_and_the_command_line_narrows(call, write, plan, records):
    path = write(f"{SEARCH}trials: 4")
    call(path)
    first, before = plan(), len(records())
    assert call(path, "--fresh").code == 0 and plan() == first and len(records()) == 2 * before
    assert call(path, "--set", "model=b", "--set", "seed=[5, 6]").code == 0
    assert all(values.keys() == {"lr"} for values in plan())
    assert {record["params"]["seed"] for name, record in records().items() if "model" not in name} == {5, 6}


def test_the_copy_of_the_grid_is_a_grid_file_and_a_deadline_leaves_trials(call, write, grid_folder, records):
    assert call(write(f"{SEARCH}trials: 3\nseeds: [4, 5]\nbaseline: {{model: b}}")).code == 0
    again = call(grid_folder / "grid.yaml", "--dry-run")
    assert again.code == 0 and again.out.count("skip") == len(records()) and "0 to go" in again.out
    late = call(write(f"{SEARCH}trials: 5\nname: late\ndeadline: '2020-01-01 08:00'"))
    assert late.code == 0 and "5 not started, since they would end after the deadline" in late.out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("search: [lr]", "`search` must be a mapping, such as {lr: {log: [1e-5, 1e-2]}"),
        ("search: {lr: 1}", "lr must be a list of choices, or one of {uniform: [LOW, HIGH]}, {log: [LOW, HIGH]}"),
        ("search: {lr: {normal: [0, 1]}}", "lr must be a list of choices"),
        ("search: {lr: {log: [1, 0.1]}}", "lr must be two numbers, the lower one first, got [1, 0.1]"),
        ("search: {lr: {log: [0, 0.1]}}", "lr must be above 0 to be searched by its logarithm"),
        ("search: {size: {int: [0.5, 4]}}", "size must be between whole numbers"),
        ("search: {model: [a, a]}", "model must have different choices"),
        ("search: {seed: [1, 2]}", "seed is not searched; leave it out"),
        (f"{SEARCH}grid: {{size: [1]}}", "must stand without `grid`; take one out"),
        (f"{SEARCH}stop: {{rule: halving}}", "must stand without `stop`; take one out"),
        (f"{SEARCH}seeds: auto\nbaseline: {{lr: 0.1}}", "must stand without `seeds: auto`; take one out"),
        (f"{SEARCH}seeds: [3]", "must have two `seeds` or more"),
        (f"{SEARCH}trials: 0", "`trials` must be a whole number from 1 to 10,000, got 0"),
        (f"{SEARCH}fixed: {{lr: 0.1}}", "lr must stand in one place, got `fixed` too"),
        (f"{SEARCH}baseline: {{size: 2}}", "`baseline`: size is not in `search`"),
        (f"{SEARCH}baseline: {{lr: 1.0}}", "`baseline`: lr must be 1e-05..0.1 (log), as in `search`, got 1.0"),
        ("trials: 5\ngrid: {size: [1]}", "`trials` belongs to `search`"),
        ("search: {lrr: {log: [1e-5, 1e-1]}}", "`search`: unknown parameter 'lrr'; did you mean 'lr'"),
        ("search: {size: {uniform: [2, 4]}}", "size"),
        ("search: {lr: [1e-3, fast]}", "lr"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_starts(call, write, text, words):
    result = call(write(text), "--dry-run")
    assert result.code == 2 and words in result.err, result
    assert "Traceback" not in result.err


def test_only_and_limit_and_a_notebook_without_a_seed_are_refused(call, write, write_grid, write_notebook, tmp_path):
    assert "whose runs are not known; set its `trials`" in call(write(SEARCH), "--limit", 2).err
    plain = write_notebook(tmp_path / "plain.ipynb", "", 'lr: float = 0.1\nrun_dir: str = ""\n')
    result = call(write_grid("search: {lr: {log: [1e-5, 1e-1]}}", plain))
    assert result.code == 2 and "must have a parameter `seed`, got none" in result.err


def test_without_optuna_one_line_says_what_to_install(call, write, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = call(write(SEARCH), "--dry-run")
    assert result.code == 2 and result.err.count("\n") == 1
    assert "`search`: required optuna, got none; pip install 'seglib[search]'" in result.err


def test_a_damaged_plan_is_said_in_one_line(call, write, grid_folder):
    grid_folder.mkdir(parents=True)
    (grid_folder / "search.json").write_text('{"trials": 5}')
    result = call(write(SEARCH), "--dry-run")
    assert result.code == 2 and "delete it to begin again" in result.err and result.err.count("\n") == 1


def test_what_is_searched_in_words():
    words = describe_space({"lr": {"log": [1e-5, 1e-2]}, "size": {"int": [2, 16]}, "encoder": ["a", "b"]})
    assert words == "lr 1e-05..0.01 (log), size 2..16, encoder of 2" and json.dumps(words)


def test_05_compare_shows_all_trials_and_judges_what_was_trained_again(call, write, grid_folder):
    from seglib import GridComparison

    call(write(f"{SEARCH}trials: 5"), "--set", "seed=[3, 4, 5]")
    grid = GridComparison(grid_folder)
    assert len(grid.conditions) == 3 and {item.n for item in grid.conditions} == {2} and grid.baseline is None
    runs = grid.tabulate_runs()
    assert len(runs) == 11 and (runs["condition"] == "a trial").sum() == 5
    assert grid.describe()[0].startswith(
        "Searched lr 1e-05..0.1 (log), model of 2; 5 trials, one seed each (3). Best of 5"
    )
    assert grid.write_next(grid.plan_next()) in ("", "seeds: [3, 4, 5, 21]\n")


def test_05_compare_gives_trials_of_one_seed_no_verdict(call, write, grid_folder):
    from seglib import GridComparison

    call(write(f"{SEARCH}trials: 5\nbaseline: {{lr: 0.1}}"))
    for folder in grid_folder.glob("*,seed=*"):
        folder.rename(grid_folder / f".{folder.name}")
    grid = GridComparison(grid_folder)
    assert len(grid.conditions) == 5 and not any(item.verdict for item in grid.conditions)
