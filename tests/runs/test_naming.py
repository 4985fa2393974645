import re
import time

import pytest

from seglib.runs.grid_file import name_runs
from seglib.text import shorten


@pytest.mark.parametrize(
    ("value", "short"),
    [
        ({"cross_entropy": 0.9, "focal": 0.1}, "ce0.9+focal0.1"),
        ({"cross_entropy": 1.0}, "ce"),
        ({"focal": 0.5}, "focal0.5"),
        (1e-3, "0.001"),
        (1.0, "1"),
        (True, "true"),
        (None, "none"),
        ("", "none"),
        ("/data/taco/", "taco"),
        ([1, 2], "1-2"),
        ("/", "none"),
        ({}, "none"),
        ([], "none"),
        ({"focal": {"weight": 0.1, "gamma": 3}, "dice": 0.5}, "focal@weight0.1@gamma3+dice0.5"),
        ({"cross_entropy": {"class_weights": "balanced"}}, "ce@class_weightsbalanced"),
        (["flips", {"ElasticTransform": {"alpha": 40, "p": 0.5}}], "flips-ElasticTransform@alpha40@p0.5"),
        ([{"data_dir": "/data/taco/", "json": "annotations.json", "weight": 0.5}], "taco.annotations@weight0.5"),
        ([{"data_dir": "/data/pseudo", "json": "r1.json", "classes": {"a": "b"}}], "pseudo.r1@classesc46e"),
        ([{"OneOf": ["Blur", {"RandomGamma": {}}]}], "OneOfBlur-RandomGamma"),
    ],
)
def test_values_are_short(value, short):
    assert shorten(value) == short


def test_a_name_says_what_varies():
    varied = [{"loss": {"cross_entropy": 0.9, "focal": 0.1}, "seed": 21}, {}]
    assert name_runs(varied) == ["loss=ce0.9+focal0.1,seed=21", "run"]


@pytest.mark.parametrize(
    "values",
    [
        ["a/b", "c/b"],
        ["A", "a"],
        [0.12345678, 0.12345679],
        ["x" * 200, "x" * 201],
        ["한글" * 60, "한글" * 61],
        ["a b", "a_b", "a*b"],
        [1, 1.0, "1", True, "true"],
        ["..", "../..", "\0", "\n", "con", "-rf", "~"],
        [[1, 2], "1-2"],
    ],
)
def test_names_are_unique_and_safe_on_every_file_system(values, tmp_path):
    names = name_runs([{"encoder": value} for value in values])
    assert len({name.casefold() for name in names}) == len(values)
    for name in names:
        assert re.fullmatch(r"encoder=[\w.+=,@~-]*", name) and len(name.encode()) <= 140
        (tmp_path / name).mkdir()


def test_names_do_not_depend_on_the_other_runs_unless_they_collide():
    assert name_runs([{"seed": 1}])[0] == name_runs([{"seed": 1}, {"seed": 2}])[0] == "seed=1"


def test_twenty_thousand_runs_are_named_at_once():
    began = time.monotonic()
    assert len(set(name_runs([{"seed": number} for number in range(20_000)]))) == 20_000
    assert time.monotonic() - began < 3
