"""What only the builders of parts can tell is asked of one child process, once, and remembered."""

import json
import shutil
import subprocess
import sys

import pytest

from seglib.__main__ import main
from seglib.errors import InputError
from seglib.files import PROJECT, cache_dir
from seglib.runs import check
from seglib.runs.check import ask_builders


@pytest.fixture
def builders_answer_here():
    """Here it is the child that answers, as it does for a grid."""


def model(architecture, encoder, image_size=128, batch_size=2, parts=()):
    values = {"architecture": architecture, "encoder": encoder, "image_size": image_size, "batch_size": batch_size}
    return {"about": "model", **values, "parts": [*map(str, parts)]}


@pytest.fixture
def count_children(monkeypatch, tmp_path):
    """No answers remembered; returns the list of what children are asked."""
    monkeypatch.setenv("SEGLIB_CACHE", str(tmp_path / "cache"))
    asked = []

    def answer(questions):
        asked.extend(questions)
        return [f"no {each['encoder']}" for each in questions]

    monkeypatch.setattr(check, "_run_child", answer)
    return asked


OWN = """
import torch
from seglib import register

@register("model")
class Halving(torch.nn.Conv2d):
    def __init__(self, num_classes: int, stride: int = 2):
        super().__init__(3, num_classes, stride, stride)
"""


def test_one_child_answers_for_all_kinds_and_its_answers_are_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGLIB_CACHE", str(tmp_path))
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "taken.py").write_text(OWN.replace("Halving", "FPN"))
    own, taken = [str(tmp_path / "own.py")], [str(tmp_path / "taken.py")]
    expected = [
        (model("FPN", "resnet18"), ""),
        (model("FPN", "tu-resnet10t", 64, 1), ""),
        (model("FPN", "tu-resnet10x"), "unknown encoder 'tu-resnet10x'; did you mean 'tu-resnet10t'"),
        (model("Unet++", "resnet18"), "unknown architecture 'Unet++'; did you mean 'Unet'"),
        (
            model("DeepLabV3", "resnet18", 128, 1),
            "DeepLabV3 pools to one pixel in front of a batch norm: batch_size must",
        ),
        (model("PAN", "tu-resnet10t", 64), "PAN with encoder 'tu-resnet10t' cannot take image_size=64 "),
        (model("Halving", "", 64, parts=own), "architecture Halving: required logits (N, C, H, W) of (2, 3, 64, 64)"),
        (model({"Halving": {"stride": 1}}, "", 64, parts=own), ""),
        (model("Halvin", "", 64, parts=own), "unknown architecture 'Halvin'; did you mean 'Halving'"),
        (model("FPN", "resnet18", parts=taken), "@register: model 'FPN': required a name of its own"),
        ({"about": "optimizer", "optimizer": "adamw", "parts": []}, ""),
        ({"about": "optimizer", "optimizer": "adamv", "parts": []}, "unknown optimizer 'adamv'; did you mean"),
        ({"about": "augmentation", "augmentation": ["flips"], "image_size": 64, "parts": []}, ""),
        (
            {"about": "augmentation", "augmentation": ["flip"], "image_size": 64, "parts": []},
            "augmentation: unknown transform 'flip'; did you mean 'flips'",
        ),
        ({"about": "size", "architecture": "FPN", "encoder": "resnet18", "parts": []}, "13.05"),
    ]
    answers = ask_builders([question for question, _ in expected])
    for answer, (question, words) in zip(answers, expected, strict=True):
        assert (answer.startswith(words) if words else answer == "") and "\n" not in answer, (question, answer)
    monkeypatch.setattr(check, "_run_child", lambda questions: pytest.fail("asked twice"))
    assert ask_builders([question for question, _ in expected]) == answers


def test_with_other_versions_code_or_parts_the_child_is_asked_again(count_children, monkeypatch, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    asked = [model("FPN", "resnet18"), model("Halving", "none", parts=[tmp_path / "own.py"])]
    ask_builders(asked)
    (tmp_path / "own.py").write_text(OWN + "# a comment")
    ask_builders(asked)
    assert count_children == asked
    (tmp_path / "own.py").write_text(OWN.replace("stride: int = 2", "stride: int = 4"))
    ask_builders(asked)
    assert count_children == [*asked, asked[1]]
    monkeypatch.setattr(check.importlib.metadata, "version", lambda name: "9.9")
    assert ask_builders(asked) == ["no resnet18", "no none"] and count_children[3:] == asked


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 3}', ""])
def test_damaged_answers_are_asked_for_again(count_children, content):
    asked = [model("FPN", "tu-resnet10t")]
    ask_builders(asked)
    ask_builders(asked)
    assert len(count_children) == 1
    (cache_dir() / "answers.json").write_text(content)
    assert ask_builders(asked) == ["no tu-resnet10t"] and len(count_children) == 2


def test_four_processes_at_once_get_their_answers_and_leave_a_whole_file(tmp_path, monkeypatch):
    script = (
        "import sys\nfrom seglib.runs import check\n"
        "check._run_child = lambda questions: [each['optimizer'] for each in questions]\n"
        "for number in range(40):\n"
        "    name = f'{sys.argv[1]}-{number}'\n"
        "    assert check.ask_builders([{'about': 'optimizer', 'optimizer': name, 'parts': []}]) == [name]"
    )
    monkeypatch.setenv("SEGLIB_CACHE", str(tmp_path))
    children = [subprocess.Popen([sys.executable, "-c", script, str(number)], cwd=PROJECT) for number in range(4)]
    assert [child.wait() for child in children] == [0, 0, 0, 0]
    assert len(json.loads((tmp_path / "answers.json").read_text())) >= 40
    assert [path.name for path in tmp_path.iterdir()] == ["answers.json"]


def test_a_child_that_fails_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("SEGLIB_CACHE", str(tmp_path))
    monkeypatch.setattr(check, "PROJECT", tmp_path)
    (tmp_path / "seglib").mkdir()
    (tmp_path / "seglib" / "__init__.py").write_text("raise ImportError('no torch here')")
    with pytest.raises(InputError, match=r"seglib\.runs\.check` could not run: ImportError: no torch here") as caught:
        ask_builders([model("FPN", "tu-resnet10t")])
    assert "\n" not in str(caught.value)


def test_pairs_are_listed_with_their_size(capsys, monkeypatch):
    sizes = {"FPN": "9.02", "Unet": "13.61"}
    monkeypatch.setattr(check, "ask_builders", lambda asked: [sizes.get(each["architecture"], "") for each in asked])
    assert main(["list", "model", "--works-with", "densenet121"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split() for line in listed] == [
        ["FPN", "densenet121", "9.02", "M"], ["Unet", "densenet121", "13.61", "M"],
    ]  # fmt: skip
    assert main(["list", "model", "--works-with", "resnet81"]) == 2
    assert "unknown architecture or encoder 'resnet81'; did you mean 'resnet18'" in capsys.readouterr().err


def ask_data(folder, **changes) -> list[str]:
    values = {
        "train_json": "train.json",
        "val_json": "val.json",
        "split": "given",
        "folds": 0,
        "fold": 0,
        "split_seed": 0,
    }
    values |= {"data_dir": str(folder), "focus_classes": [], "extra_data": [], "parts": [], "content": "1"} | changes
    return json.loads(ask_builders([{"about": "data", **values}])[0])


def test_data_is_checked_as_a_run_would_and_what_is_found_is_told(small_data, tmp_path, monkeypatch):
    monkeypatch.setenv("SEGLIB_CACHE", str(tmp_path / "cache"))
    folder = shutil.copytree(small_data, tmp_path / "data")
    content = json.loads((folder / "train.json").read_text())
    content["annotations"][0]["segmentation"] = []
    (folder / "train.json").write_text(json.dumps(content))
    refusal, printed = ask_data(folder)
    assert refusal == ""
    assert "train.json: warning: empty-segmentation: annotation" in printed
    assert f"1 of {len(content['annotations'])} annotations paint nothing" in printed
    assert "that all are in train.json" in ask_data(folder, val_json="train.json", content="2")[0]
    for annotation in content["annotations"]:
        annotation["segmentation"] = []
    (folder / "train.json").write_text(json.dumps(content))
    (folder / "val.json").write_text("{")
    lines = ask_data(folder, content="3")[0].splitlines()
    assert (
        len(lines) == 1 and "val.json: must be JSON" in lines[0]
    )  # what a file paints is looked at once all can be read


def test_refusals_that_may_pass_are_asked_again(count_children, monkeypatch):
    answers = iter([json.dumps(["no such file", ""]), json.dumps(["", ""])])
    monkeypatch.setattr(check, "_run_child", lambda questions: [next(answers)])
    assert [ask_data("here")[0], ask_data("here")[0], ask_data("here")[0]] == ["no such file", "", ""]


def test_weights_are_asked_for_once_an_encoder_and_not_where_training_starts_elsewhere(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        check, "ask_builders", lambda questions: asked.extend(questions) or ["cannot be had"] * len(questions)
    )
    defaults = check.read_defaults(PROJECT / "notebooks/02_train.ipynb")
    schema = check.read_schema(PROJECT / "notebooks/02_train.ipynb")
    runs = [
        defaults | {"lr": lr} | changes
        for lr in (1e-3, 1e-4)
        for changes in ({}, {"init_from": "run"}, {"encoder_weights": ""})
    ]
    assert check.find_missing_weights(schema, runs) == ["cannot be had"]
    assert [(each["encoder"], each["encoder_weights"]) for each in asked] == [("resnet18", "imagenet")]
