"""What only the builders of parts can tell is asked of one child process, once, and remembered."""

import json
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
