"""Classes that parameters name are looked for in the data before a grid starts."""

import json

import pytest

from seglib.files import PROJECT
from seglib.parameters import read_defaults
from seglib.runs.check import find_class_problems

DEFAULTS = read_defaults(PROJECT / "notebooks" / "02_train.ipynb")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"mixing": {"copy_paste": {"classes": ["Battery", "Clothng"]}}},
            "unknown class in mixing 'Clothng'; did you mean",
        ),
        ({"mixing": {"copy_paste": {"classes": ["Background"]}}}, "unknown class in mixing 'Background'"),
        ({"loss": {"focal": {"class_weights": {"Metl": 2}}}}, "unknown class in loss 'Metl'; did you mean 'Metal'?"),
    ],
)
def test_a_class_that_the_data_does_not_have_is_told_with_the_nearest(values, words):
    (problem,) = find_class_problems(DEFAULTS | values).values()
    assert problem.startswith(words)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"mixing": {"copy_paste": 0.5}},
        {"loss": {"focal": {"class_weights": "balanced"}}},
        {"loss": {"focal": {"class_weights": {"Background": 0.5, "Metal": 2}}}},
    ],
)
def test_classes_of_the_data_are_fine(values):
    assert find_class_problems(DEFAULTS | values) == {}


FOCUS = {"focus_classes": ["Battery", "Metal"]}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"focus_classes": ["Batery"]}, "unknown class in focus_classes 'Batery'; did you mean 'Battery'"),
        (FOCUS | {"mixing": {"copy_paste": {"classes": ["Paper"]}}}, "unknown class in mixing 'Paper'"),
        (FOCUS | {"loss": {"focal": {"class_weights": {"Paper": 2}}}}, "unknown class in loss 'Paper'"),
    ],
)
def test_a_specialist_knows_only_its_classes(values, words):
    (problem,) = find_class_problems(DEFAULTS | values).values()
    assert problem.startswith(words)


def test_the_classes_of_a_specialist_are_fine():
    values = {"mixing": {"copy_paste": {"classes": ["Metal"]}}, "loss": {"focal": {"class_weights": {"Background": 1}}}}
    assert find_class_problems(DEFAULTS | FOCUS | values) == {}


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ({"Can": "Metal"}, ""),
        ({"Can": "Metal", "Bottle": "ignore"}, ""),
        ({"Can": "Paper", "Bottle": "Background"}, ""),  # folded away, and still a class of the data
        ({"Can": "Metl"}, "extra_data[0].classes.Can: unknown class 'Metl'; did you mean 'Metal'"),
        ({"Cann": "Metal"}, "extra_data[0].classes: unknown category of that set 'Cann'; did you mean 'Can'"),
        ({}, "extra_data[0] must have categories that are classes of the training data, got Can, Bottle; map it,"),
    ],
)
def test_categories_of_extra_sets_must_become_classes_of_the_data(tmp_path, classes, words):
    categories = [{"id": 0, "name": "Can"}, {"id": 1, "name": "Bottle"}]
    (tmp_path / "extra.json").write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    entry = {"data_dir": str(tmp_path), "json": "extra.json", "classes": classes}
    found = find_class_problems(DEFAULTS | FOCUS | {"extra_data": [entry]})
    assert [*found] == (["extra_data"] if words else [])
    assert found.get("extra_data", "").startswith(words)


def test_names_are_those_of_the_annotation_file(small_data, tmp_path):
    content = json.loads((small_data / "train.json").read_text())
    content["categories"][0]["name"] = "유리"
    (tmp_path / "train.json").write_text(json.dumps(content))
    (tmp_path / "val.json").write_text(json.dumps(content))
    options = DEFAULTS | {"data_dir": str(tmp_path)}
    assert find_class_problems(options | {"mixing": {"copy_paste": {"classes": ["유리"]}}}) == {}
    assert find_class_problems(options | {"mixing": {"copy_paste": {"classes": ["UNKNOWN"]}}})


def test_a_file_that_cannot_be_read_is_left_to_the_check_of_the_data(tmp_path):
    for name in ("train.json", "val.json"):
        (tmp_path / name).write_text("{")
    options = DEFAULTS | {"data_dir": str(tmp_path), "mixing": {"copy_paste": {"classes": ["Glass"]}}}
    assert find_class_problems(options) == {}
