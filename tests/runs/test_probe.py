"""`--dry-run --probe`, with a stand-in for the notebook that measures itself and would then go on for a minute."""

import psutil
import pytest

MEASURES = """if do == "probe":
    update_record(folder, seconds=5.0, estimate={"total": 3600.0, "peak_memory_mb": 2048.0})
    time.sleep(60)
if do == "oom":
    update_record(folder, status="oom", error="out of memory: 8 images do not fit")
    sys.exit()
if do == "kill":"""


@pytest.fixture
def grid(write_grid, write_notebook, stand_in, tmp_path):
    """A grid over a notebook that estimates itself, by what it does."""
    stand_in.write_text(stand_in.read_text().replace('if do == "kill":', MEASURES))
    notebook = write_notebook(tmp_path / "notebook.ipynb", "print(trainer.estimate(compute_loss))")
    return lambda text: write_grid(text, notebook)


def test_one_run_of_each_kind_is_measured_and_then_the_plan_is_known(call, grid, grid_folder):
    path = grid("fixed: {do: probe}\ngrid: {weight: [0.0, 0.5], seed: [1, 2, 3]}")
    result = call(path, "--dry-run", "--probe")
    assert result.code == 0 and not psutil.Process().children()
    assert result.out.count(": about 3600 s of training, 2.0 GiB of memory") == 2  # seeds are of a kind
    assert "it takes about 6h" in result.out and "2.0 GiB of memory (by runs of the same kind)" in result.out
    assert sorted(path.name for path in (grid_folder / ".probe").iterdir()) == ["weight=0,seed=1", "weight=0.5,seed=1"]
    again = call(path, "--dry-run", "--probe")
    assert "measured" not in again.out and "it takes about 6h" in again.out
    assert "6 runs, 0 done before, 6 to go" in again.out  # a probe is no result


def test_what_does_not_fit_is_known_before_the_night(call, grid):
    result = call(grid("fixed: {do: oom}"), "--dry-run", "--probe")
    assert result.code == 0 and "run: oom: out of memory: 8 images do not fit" in result.out


def test_a_notebook_that_does_not_measure_itself_is_refused(call, write_grid):
    result = call(write_grid("fixed: {do: sleep}"), "--dry-run", "--probe")
    assert result.code == 2 and "--probe: required a notebook that calls trainer.estimate(...)" in result.err
    assert call(write_grid("fixed: {do: sleep}"), "--probe").code == 2
