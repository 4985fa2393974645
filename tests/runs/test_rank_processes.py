"""Runs of several processes through the command line."""

import time

import pandas as pd
import pytest


def test_a_notebook_without_a_trainer_is_refused(call, write_grid):
    result = call(write_grid("gpus_per_run: 2"), "--dry-run")
    assert result.code == 2 and "`gpus_per_run` must be 1 for" in result.err and "makes no `Trainer(...)`" in result.err
    for wrong in ("0", "1.5", "true", "two"):
        result = call(write_grid(f"gpus_per_run: {wrong}"), "--dry-run")
        assert result.code == 2 and "`gpus_per_run` must be a whole number from 1" in result.err


def test_a_failure_in_another_process_is_the_runs_own_and_said_at_once(
    call, write_grid, write_notebook, records, tmp_path
):
    body = "from seglib import ranks\nif ranks.number():\n    raise ValueError('the second one')\n"
    body += "time.sleep(100)\ntrainer = Trainer()"
    began = time.monotonic()
    result = call(write_grid("gpus_per_run: 2", write_notebook(tmp_path / "notebook.ipynb", body)))
    assert result.code == 1 and time.monotonic() - began < 90
    record = records()["run"]
    assert (record["status"], record["error"]) == ("failed", "process 2 of 2: ValueError: the second one")


@pytest.mark.slow
def test_the_training_notebook_trains_in_two_processes(call, write_grid, tmp_path, grid_folder):
    fixed = "architecture: Linknet, encoder: tu-test_resnet, encoder_weights: '', epochs: 2, image_size: 64, precision: float32"
    path = write_grid(f"gpus_per_run: 2\nfixed: {{{fixed}}}", "notebooks/02_train.ipynb")
    assert call(path).code == 0
    run = grid_folder / "run"
    assert pd.read_csv(run / "history.csv")["conditions"].str.endswith("2 processes").all()
    assert not (run / "ranks").exists() and (run / "best.pt").is_file()
    assert "1 done before, 0 to go" in call(path, "--dry-run").out
