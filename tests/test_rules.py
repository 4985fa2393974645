import datetime
import inspect
import math
from typing import Any

import pytest

from seglib import rules
from seglib.data import loader
from seglib.data.augment import PRESETS
from seglib.data.masks import BACKGROUNDS, PAINT_ORDERS
from seglib.data.splits import SPLITS
from seglib.errors import InputErrors
from seglib.files import PROJECT
from seglib.parameters import Parameter, Parameters, check_value, read_defaults, read_schema
from seglib.parts import find_parts
from seglib.rules import check_parameters, resolve_paths
from seglib.training import loss_terms, mixing, optim
from seglib.training.averaging import AVERAGES

NOTEBOOK = PROJECT / "notebooks" / "02_train.ipynb"
SCHEMA, DEFAULTS = read_schema(NOTEBOOK), read_defaults(NOTEBOOK)


def problems(**values):
    return check_parameters(SCHEMA, DEFAULTS | values)[1]


@pytest.mark.parametrize(
    ("name", "real", "other"),
    [
        ("augmentation", PRESETS, "flip"),
        ("split", SPLITS, "kfolds"),
        ("paint_order", PAINT_ORDERS, "class"),
        ("background", BACKGROUNDS, "ignored"),
    ],
)
def test_each_name_that_builders_know_passes_and_no_other(name, real, other):
    together = {"fold": 0, "val_json": "" if name == "split" else DEFAULTS["val_json"]}
    assert not [each for each in real if name in problems(**{name: each})]
    assert name in problems(**{name: other}, **together)


def test_averages_are_those_that_are_built():
    assert set(rules._AVERAGES) == set(AVERAGES)


@pytest.mark.parametrize(
    ("kind", "module"), [("loss", loss_terms), ("scheduler", optim), ("mixing", mixing), ("mixing", loader)]
)
def test_shipped_parts_are_read_as_they_are_defined(kind, module):
    """Without importing torch the runner knows each part's name and options; their defaults are within the limits."""
    parts = {name: part for name, part in find_parts(kind).items() if part.build.__module__ == module.__name__}
    assert len(parts) >= 3
    for name, part in parts.items():
        assert part.summary and part.build is getattr(module, name)
        defaults = {
            option: parameter.default
            for option, parameter in inspect.signature(part.build).parameters.items()
            if parameter.default is not parameter.empty
        }
        assert set(part.options) == set(defaults) and Any not in part.options.values()
        for option, default in defaults.items():
            if default not in (None, ()):  # what stands for "worked out from the rest"
                value = list(default) if isinstance(default, tuple) else default
                assert check_value(name, value, part.options[option]) == value


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("lr", "fast", "lr must be a number, got 'fast' (a text)"),
        ("lr", "1e-3x", "lr must be a number, got '1e-3x' (a text)"),
        ("lr", True, "lr must be a number, got true"),
        ("lr", 0, "lr must be above 0.0, got 0"),
        ("lr", math.nan, "lr must be a finite number, got nan"),
        ("lr", math.inf, "lr must be a finite number, got inf"),
        ("epochs", 2.0, "epochs must be a whole number, got 2.0"),
        ("epochs", 0, "epochs must be at least 1, got 0"),
        ("epochs", None, "epochs must be a whole number, got None (NoneType)"),
        ("seed", 2**31, "seed must be below 2147483648, got 2147483648"),
        ("deterministic", 1, "deterministic must be true or false, got 1"),
        ("architecture", "", "architecture must be a name, or one name with its options, got ''"),
        ("split", "kfolds", "unknown split 'kfolds'; did you mean 'kfold'?"),
        ("split", False, "split must be one of given, holdout, kfold"),
        (
            "loss",
            {"focl": 1.0},
            "unknown loss 'focl'; did you mean 'focal'? choices: cross_entropy, label_smoothing, focal",
        ),
        ("loss", {"focal": "a"}, "loss.focal must be a number, got 'a' (a text)"),
        ("loss", {"focal": -1}, "loss.focal must be at least 0.0, got -1"),
        ("loss", {"focal": 0}, "loss must have a term with a weight above 0"),
        ("loss", {}, "loss must be not empty, got {} (dict)"),
        ("loss", {"focal": {"gama": 2}}, "unknown option of loss.focal 'gama'; did you mean 'gamma'?"),
        ("loss", {"dice": {"gamma": 2}}, "unknown option of loss.dice 'gamma'; choices: weight"),
        ("loss", {"focal": {"gamma": -1}}, "loss.focal.gamma must be at least 0.0, got -1"),
        ("loss", {"focal": {"weight": 0}}, "loss must have a term with a weight above 0"),
        (
            "loss",
            {"cross_entropy": {"class_weights": "balancd"}},
            "unknown loss.cross_entropy.class_weights 'balancd'; did you",
        ),
        (
            "loss",
            {"cross_entropy": {"class_weights": {"Metal": -1}}},
            "loss.cross_entropy.class_weights.Metal must be at least",
        ),
        ("loss", {"ms_ssim": {"scales": 6}}, "loss.ms_ssim.scales must be at most 5, got 6"),
        ("mixing", {"mixupp": 0.5}, "unknown mixing 'mixupp'; did you mean 'mixup'?"),
        ("mixing", {"mixup": 1.5}, "mixing.mixup must be at most 1.0, got 1.5 (p, or a mapping of options)"),
        ("mixing", {"mixup": {"alpha": 0}}, "mixing.mixup.alpha must be above 0.0, got 0"),
        ("mixing", {"copy_paste": {"count": [3, 1]}}, "mixing.copy_paste.count must be [lowest, highest], got [3, 1]"),
        ("mixing", {"background": {"replace_with": "blu"}}, "unknown mixing.background.replace_with 'blu'"),
        ("augmentation", "elastik", "unknown augmentation 'elastik'; did you mean 'elastic'?"),
        (
            "augmentation",
            [{"a": 1, "b": 2}],
            "augmentation must be a preset's name or a list of steps, each a name or one",
        ),
        ("augmentation", 3, "augmentation must be a preset's name or a list of steps"),
        ("expand", 0, "expand must be at least 1, got 0"),
        ("scheduler", "cosin", "unknown scheduler 'cosin'; did you mean 'cosine'"),
        ("loss", "focal", "loss must be a mapping name: value, got 'focal' (a text)"),
        ("image_size", 100, "image_size must be a multiple of 32 (encoder stride), got 100; nearest: 96 or 128"),
        ("image_size", 10**400, "image_size must be at most 4096, got 1000"),
        (
            "data_dir",
            "nowhere",
            "data_dir must be a folder with COCO files, or \"synthetic\"; there is no folder 'nowhere'",
        ),
        ("encoder_weights", "no.pth", 'encoder_weights must be "imagenet", "" (from scratch) or a path to a file'),
        ("encodr", "resnet18", "unknown parameter 'encodr'; did you mean 'encoder'"),
    ],
)
def test_a_wrong_value_is_worded_in_one_line(name, value, words):
    found = problems(**{name: value})
    assert [*found] == [name] and found[name].startswith(words) and "\n" not in found[name]


@pytest.mark.parametrize(
    ("values", "name", "words"),
    [
        ({"split": "kfold", "fold": 5}, "fold", "fold must be below folds (5), got 5"),
        ({"fold": 10**400, "split": "kfold"}, "fold", "fold must be below folds (5), got 1000"),
        ({"fold": 1}, "fold", "fold must be 0 with split 'given', which makes no folds, got 1"),
        (
            {"scheduler_options": {"gamma": 0.1}},
            "scheduler_options",
            "unknown option of scheduler_options.cosine 'gamma'",
        ),
        (
            {"scheduler": "step", "scheduler_options": {"gamma": 2}},
            "scheduler_options",
            "scheduler_options.step.gamma must",
        ),
        (
            {"scheduler": "constant", "scheduler_options": {"a": 2}},
            "scheduler_options",
            "unknown option of scheduler_options.constant 'a'; it has none",
        ),
        (
            {"encoder": "", "encoder_weights": "", "freeze_epochs": 1},
            "freeze_epochs",
            "freeze_epochs must be 0 for an architecture without an",
        ),
        (
            {"encoder": "", "encoder_weights": "", "encoder_lr": 0.1},
            "encoder_lr",
            "encoder_lr must be 0 for an architecture without an encoder",
        ),
        ({"encoder": ""}, "encoder_weights", 'encoder_weights must be "" for an architecture without an encoder'),
        ({"warmup_epochs": 21}, "warmup_epochs", "warmup_epochs must not be above epochs (20), got 21"),
    ],
)
def test_values_that_do_not_go_together_are_worded_too(values, name, words):
    found = problems(**values)
    assert [*found] == [name] and found[name].startswith(words)


def test_a_missing_annotation_file_is_told_with_those_that_are_there(small_data):
    found = problems(data_dir=str(small_data), val_json="valid.json")
    assert [*found] == ["val_json"]
    assert (
        found["val_json"].startswith("val_json must be a file in data_dir, got 'valid.json'")
        and "val.json" in found["val_json"]
    )
    assert problems(data_dir=str(small_data), val_json="valid.json", split="kfold") == {}


@pytest.mark.parametrize("name", [*SCHEMA, "nonsense"])
def test_no_value_makes_the_check_itself_fail(name):
    values = [
        None,
        True,
        -1,
        10**400,
        1.5,
        math.nan,
        "",
        "\0",
        "x" * 5000,
        "~nobody/x",
        b"\xff",
        [],
        {},
        {"a": {"b": [1]}},
        {1: 2},
    ]
    for value in [*values, {"focal": math.nan}, datetime.date(2026, 1, 1), {1}, object()]:
        _, found = check_parameters(SCHEMA, resolve_paths(DEFAULTS | {name: value}, PROJECT))
        assert all("\n" not in problem for problem in found.values())


def test_a_notebook_hears_of_all_its_mistakes_at_once():
    namespace = DEFAULTS | {"lr": "fast", "epochs": 0, "unrelated": object()}
    del namespace["seed"]
    with pytest.raises(InputErrors) as caught:
        Parameters(namespace, lambda: SCHEMA).to_dict()
    assert caught.value.lines == [
        "parameters: lr must be a number, got 'fast' (a text) (learning rate after the warm-up)",
        "parameters: epochs must be at least 1, got 0 (passes over the training images)",
        "parameters: seed is missing; the notebook's parameters cell must set it",
    ]


def test_paths_are_made_absolute_and_words_are_left_alone(tmp_path):
    values = {"data_dir": "../data", "encoder_weights": "imagenet", "train_json": "train.json"}
    assert resolve_paths(values, tmp_path / "notebooks") == values | {"data_dir": str(tmp_path / "data")}
    assert resolve_paths({"data_dir": "synthetic", "encoder_weights": ""}, tmp_path)["data_dir"] == "synthetic"


ENSEMBLE = PROJECT / "notebooks" / "04_ensemble.ipynb"


@pytest.mark.parametrize(
    ("values", "name", "words"),
    [
        ({"weights": "ascent"}, "weights", "unknown weights 'ascent'; choices: auto, greedy, mean, best"),
        ({"weights": {"a": -1}}, "weights", "weights.a must be at least 0.0, got -1"),
        ({"tta": {"flips": "none"}}, "tta", "tta.flips must be a list, got 'none' (a text)"),
        ({"resizing": "probabilities"}, "resizing", "resizing: probabilities has no masks before it is done, so it"),
        ({"vote": "hard", "crf_candidates": 2}, "crf_candidates", "crf_candidates must be 0 with vote: hard, which"),
        ({"vote": "hard", "specialist_weight": 1}, "specialist_weight", "specialist_weight must be 0 with vote: hard,"),
        ({"tie_break": "a"}, "tie_break", "tie_break is for vote: hard, got vote: soft"),
        ({"pseudo_precision": 0.5}, "pseudo_precision", "pseudo_precision needs test_json, the images to label"),
    ],
)
def test_an_ensemble_that_cannot_be_is_worded(values, name, words):
    _, found = check_parameters(read_schema(ENSEMBLE), read_defaults(ENSEMBLE) | values)
    assert [*found] == [name] and found[name].startswith(words)


def test_a_limit_is_of_a_name_and_its_type():
    schema = {
        "epochs": Parameter("float", 0.5, ""),
        "track": Parameter("bool", True, ""),
        "loss": Parameter("", "", ""),
    }
    values = {"epochs": 0, "track": False, "loss": "mine"}
    assert check_parameters(schema, values) == ({"epochs": 0.0, "track": False, "loss": "mine"}, {})
