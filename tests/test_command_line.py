"""`python -m seglib`: what it lists, where it sends the rest, and that it stays light."""

import subprocess
import sys

import pytest

from seglib.__main__ import main
from seglib.parts import find_parts


def test_every_loss_is_listed_with_what_it_says_of_itself(capsys):
    assert main(["list", "loss"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*find_parts("loss")] and "focal" in lines[2]
    assert all(len(line.split()) > 3 for line in lines)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("augmentation", "elastic"),
        ("mixing", "copy_paste"),
        ("optimizer", "adamw"),
        ("scheduler", "cosine"),
        ("split", "kfold"),
    ],
)
def test_each_kind_is_listed(capsys, kind, name):
    assert main(["list", kind]) == 0
    assert name in [line.split()[0] for line in capsys.readouterr().out.splitlines()]


def test_own_parts_are_listed_with_the_shipped_ones(capsys, tmp_path):
    (tmp_path / "own.py").write_text('@register("loss")\ndef mine(logits, target, weight):\n    """My own."""\n')
    assert main(["list", "loss", "--parts", str(tmp_path / "own.py")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("cross_entropy ") and lines[-1].split() == ["mine", "My", "own."]


def test_models_are_listed_with_their_size(capsys):
    assert main(["list", "models", "--works-with", "FCN8s"]) == 0
    assert capsys.readouterr().out.split()[:2] == ["FCN8s", "vgg16"]


def test_an_unknown_name_is_one_line(capsys):
    assert main(["list", "models", "--works-with", "Fcn8s"]) == 2
    assert capsys.readouterr().err.startswith("unknown architecture or encoder 'Fcn8s'; did you mean 'FCN8s'")


@pytest.mark.parametrize("command", ["submission", "convert", "soup"])
def test_commands_have_their_own_help(capsys, command):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert f"python -m seglib {command}" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["submission", "soup"])
def test_the_old_forms_name_the_new_one(command):
    words = [sys.executable, "-m", f"seglib.inference.{command}", "run"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"python -m seglib.inference.{command} is now: python -m seglib {command}\n"


def test_help_imports_no_torch():
    code = "import sys; from seglib.__main__ import main\ntry: main(['--help'])\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False"
