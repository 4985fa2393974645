"""`focus_classes` and `extra_data` as parameters: every mistake in one line, folders made absolute."""

import json

import pytest

from seglib.data.class_names import SYNTHETIC
from seglib.data.synthetic import CLASSES
from seglib.errors import InputErrors
from seglib.files import PROJECT
from seglib.parameters import Parameters, read_defaults, read_schema
from seglib.rules import check_parameters, resolve_paths

NOTEBOOK = PROJECT / "notebooks" / "02_train.ipynb"
SCHEMA, DEFAULTS = read_schema(NOTEBOOK), read_defaults(NOTEBOOK)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra" / "annotations.json").write_text(json.dumps({"images": []}))
    return tmp_path / "extra"


def find(**values):
    return check_parameters(SCHEMA, DEFAULTS | values)[1]


@pytest.mark.parametrize(
    ("focus_classes", "words"),
    [
        (
            ["Background"],
            "focus_classes must be classes of objects, got 'Background', which is always there; leave it out",
        ),
        (["background"], "focus_classes must be classes of objects, got 'background'"),
        (["Battery", "Battery"], "focus_classes must name a class once, got 'Battery' twice; take one out"),
        ("Battery", "focus_classes must be a list, got 'Battery' (a text)"),
        ([3], "focus_classes.0 must be a text, got 3"),
    ],
)
def test_classes_that_none_can_focus_on_are_told(focus_classes, words):
    found = find(focus_classes=focus_classes)
    assert [*found] == ["focus_classes"]
    assert found["focus_classes"].startswith(words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"wieght": 1}, "unknown option of extra_data[1] 'wieght'; did you mean 'weight'?"),
        ({"weight": 0}, "extra_data[1].weight must be above 0.0, got 0"),
        ({"weight": "much"}, "extra_data[1].weight must be a number, got 'much' (a text)"),
        ({"min_confidence": 1.5}, "extra_data[1].min_confidence must be at most 1.0, got 1.5"),
        ({"min_confidence": -1}, "extra_data[1].min_confidence must be at least 0.0, got -1"),
        ({"classes": ["Metal"]}, "extra_data[1].classes must be a mapping name: value, got ['Metal'] (list)"),
        ({"classes": {"Can": 3}}, "extra_data[1].classes.Can must be a text, got 3"),
        ({"json": ""}, "extra_data[1].json must be a text that is not empty, got ''"),
        ({"json": "train.json"}, "extra_data[1].json must be a file in data_dir, got 'train.json'; "),
        (
            {"data_dir": "nowhere"},
            "extra_data[1].data_dir must be a folder with a COCO file; there is no folder 'nowhere'",
        ),
    ],
)
def test_a_wrong_option_of_an_extra_set_is_one_line(folder, changes, words):
    entry = {"data_dir": str(folder), "json": "annotations.json"}
    found = find(extra_data=[entry, entry | changes])
    assert [*found] == ["extra_data"]
    assert found["extra_data"].startswith(words)
    assert "\n" not in found["extra_data"]


@pytest.mark.parametrize(
    ("extra_data", "words"),
    [
        ([{}], "extra_data[0] must have json, and data_dir where its images are not those of the run's; got no json"),
        (
            [{"data_dir": "."}],
            "extra_data[0] must have json, and data_dir where its images are not those of the run's; got no json",
        ),
        (["taco"], "extra_data.0 must be a mapping name: value, got 'taco' (a text)"),
        ({"data_dir": "."}, "extra_data must be a list, got {'data_dir': '.'} (dict)"),
    ],
)
def test_what_is_no_extra_set_is_told(extra_data, words):
    assert find(extra_data=extra_data)["extra_data"].startswith(words)


def test_the_files_of_the_folder_are_named_where_one_is_missing(folder):
    found = find(extra_data=[{"data_dir": str(folder), "json": "train.json"}])
    assert found["extra_data"].endswith(f"{folder} has annotations.json")


def test_a_sound_set_is_kept_with_its_numbers_as_floats(folder):
    entry = {"data_dir": str(folder), "json": "annotations.json", "weight": 2, "classes": {"Can": "Metal"}}
    checked, _ = check_parameters(SCHEMA, DEFAULTS | {"extra_data": [entry], "focus_classes": ["Metal"]})
    assert checked["extra_data"] == [entry]
    assert isinstance(checked["extra_data"][0]["weight"], float)


def test_folders_of_extra_sets_are_made_absolute(tmp_path):
    entry = {"data_dir": "../taco", "json": "annotations.json"}
    resolved = resolve_paths({"extra_data": [entry, entry | {"data_dir": "/data"}]}, tmp_path / "notebooks")
    assert [each["data_dir"] for each in resolved["extra_data"]] == [str(tmp_path / "taco"), "/data"]
    assert entry["data_dir"] == "../taco"


@pytest.mark.parametrize("extra_data", [None, "taco", 3, [3], [{"data_dir": 3}], [[]], [{}]])
def test_what_has_no_folder_is_left_to_the_check(tmp_path, extra_data):
    assert resolve_paths({"extra_data": extra_data}, tmp_path) == {"extra_data": extra_data}


def test_a_notebook_hears_of_both(folder):
    values = DEFAULTS | {"extra_data": [{"data_dir": str(folder)}], "focus_classes": ["Background"]}
    with pytest.raises(InputErrors) as caught:
        Parameters(values, lambda: SCHEMA).to_dict()
    assert len(caught.value.lines) == 2


def test_the_light_list_of_the_synthetic_classes_is_the_real_one():
    assert SYNTHETIC is CLASSES
