"""A model that a cell made by hand, trained as it is: 03 and 04 open it by the run's parts, or say what is missing."""

import shutil

import numpy as np
import pytest
import torch
from torch import nn

from seglib import parts
from seglib.errors import InputError
from seglib.inference.analysis import ErrorAnalysis
from seglib.inference.ensemble import open_ensemble
from seglib.inference.predict import count_confusion, open_predictions
from seglib.inference.runs import load_finished_run
from seglib.training.checkpoint import load_checkpoint
from seglib.training.scoring import predict
from seglib.zoo.soup import make_soup

CPU = torch.device("cpu")
CODE = """from torch import nn
from seglib import register


@register("model")
class HandMade(nn.Module):
    def __init__(self, num_classes: int, width: int = 8):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, num_classes, 1))

    def forward(self, images):
        return self.layers(images)
"""


class HandMade(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, num_classes, 1))

    def forward(self, images):
        return self.layers(images)


@pytest.fixture(autouse=True)
def no_parts(monkeypatch):
    """Parts of other tests are not known, nor those of these tests later."""
    monkeypatch.setattr(parts, "_registered", {})


@pytest.fixture
def run_dir(tmp_path, small_data, make_scored_run):
    return make_scored_run(tmp_path / "grid" / "hand", small_data, 1, HandMade)


def keep(run_dir, code=CODE, name="my_parts.py"):
    (run_dir / "parts").mkdir(exist_ok=True)
    (run_dir / "parts" / name).write_text(code)


def test_a_run_without_the_model_s_file_says_in_one_line_what_is_missing(run_dir):
    for code, got in (
        (None, "none"),
        (CODE.replace("HandMade", "A") + CODE[CODE.index("@") :].replace("HandMade", "B"), "A, B"),
    ):
        if code:
            keep(run_dir, code)
        with pytest.raises(InputError) as caught:
            load_finished_run(run_dir)
        assert "holds a HandMade that was made by hand: required a file in" in str(caught.value)
        assert f"with @register('model') before its class, got {got}" in str(caught.value)
        assert "\n" not in str(caught.value) and "train it again" not in str(caught.value)


@pytest.mark.parametrize("name", ["HandMade", "net"])
def test_it_opens_by_the_part_of_its_name_or_the_only_model_and_predicts_the_run_s_bits(run_dir, name):
    keep(run_dir, CODE.replace("HandMade", name))
    run = load_finished_run(run_dir)
    best = load_checkpoint(run_dir / "best.pt", required=("model",))["model"]
    assert all(torch.equal(weight, best[name]) for name, weight in run.model.state_dict().items())
    np.testing.assert_array_equal(count_confusion(run, open_predictions(run, CPU).preds), run.confusion)
    assert predict(run.model, run.val_images, [0], CPU, "float32")[2].shape == (1, 64, 64)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (
            "width: int = 8",
            "width: int = 4",
            r"required weights of HandMade as it is built now.* give its options in .*parts",
        ),
        ("width: int = 8", "width: int", "HandMade: required the option width, which has no default, got none"),
    ],
)
def test_options_of_the_cell_are_wanted_as_defaults(run_dir, before, after, words):
    keep(run_dir, CODE.replace(before, after))
    with pytest.raises(InputError, match=words) as caught:
        load_finished_run(run_dir)
    assert "train it again" not in str(caught.value)


def test_a_file_that_computes_something_else_is_named(run_dir):
    keep(run_dir, CODE.replace("return self.layers(images)", "return -self.layers(images)"))
    run = load_finished_run(run_dir)
    with pytest.raises(InputError, match="is not that of the cell that made the model: correct it") as caught:
        count_confusion(run, open_predictions(run, CPU).preds)
    assert "train it again" not in str(caught.value)


def test_it_is_analysed_combined_and_averaged_as_any_other(run_dir, two_runs, tmp_path, small_data, make_scored_run):
    second = make_scored_run(tmp_path / "grid" / "second", small_data, 2, HandMade)
    for folder in (run_dir, second):
        keep(folder)
    assert "confusion.npz exactly" in repr(ErrorAnalysis(run_dir))
    other = shutil.copytree(two_runs[0], tmp_path / "grid" / "seed=1")
    team = open_ensemble([run_dir, other]).predict(tmp_path / "masks")
    assert team.names == ["hand", "seed=1"] and 0 < team.miou < 1
    tested = team.try_views({"flips": ["none", "horizontal"]}).predict_test("test.json")
    assert next(tested.predict_masks()).shape == (64, 64)
    folder = make_soup([run_dir, second], tmp_path / "soup", report=lambda line: None)
    parts._registered.clear()
    assert load_finished_run(folder).record["status"] == "ok"
