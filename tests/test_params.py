"""Every shipped grid passes the checks that come before a run."""

import pytest

from seglib.files import PROJECT
from seglib.runs.grid import load_grid


@pytest.mark.parametrize("path", sorted((PROJECT / "params").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_grid_is_valid_and_explains_itself(path, tmp_path):
    grid = load_grid(path, tmp_path, {})
    assert len(grid.runs) >= 2
    assert path.read_text().startswith("# ")
    assert not list(tmp_path.iterdir())


def test_quickstart_is_two_losses_by_two_seeds_on_the_embedded_data(tmp_path):
    grid = load_grid(PROJECT / "params" / "quickstart.yaml", tmp_path, {})
    assert len(grid.runs) == 4
    assert {run.parameters["data_dir"] for run in grid.runs} == {"synthetic"}
    assert {run.parameters["encoder_weights"] for run in grid.runs} == {""}


def test_loss_sweep_has_the_mixtures_of_the_table(tmp_path):
    grid = load_grid(PROJECT / "params" / "loss_sweep.yaml", tmp_path, {})
    assert len({str(run.parameters["loss"]) for run in grid.runs}) == 10
    assert {(run.parameters["architecture"], run.parameters["encoder"]) for run in grid.runs} == {("DeepLabV3Plus", "resnet50")}
