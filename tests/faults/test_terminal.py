"""What names and errors bring is shown on a terminal, not obeyed; no encoding of one ends in a traceback."""

import json
import os
import subprocess
import sys

import pytest

from seglib.errors import InputError, InputErrors, printable
from seglib.files import PROJECT

NAME = "\x1b]0;owned\x07 \x9b31m \u202egnp.exe \ud800 종이"


def test_control_characters_are_shown_and_letters_stay():
    assert printable(NAME + "\n\té") == r"\x1b]0;owned\x07 \x9b31m \u202egnp.exe " + "\ud800 종이\n\té"
    assert str(InputError(NAME)) == str(InputErrors([NAME])) == printable(NAME)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_hostile_data_set_is_planned_on_any_terminal(tmp_path, encoding):
    name = NAME.replace("\ud800", "")
    square = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[0, 0, 4, 0, 4, 4]]}
    content = {"images": [{"id": 1, "file_name": name, "width": 8, "height": 8}], "annotations": [square]}
    (tmp_path / "train.json").write_text(json.dumps(content | {"categories": [{"id": 1, "name": name}]}))
    (tmp_path / "grid.yaml").write_text(
        f"notebook: {PROJECT}/notebooks/02_train.ipynb\n"
        f"fixed: {{data_dir: {tmp_path}, val_json: train.json, encoder_weights: '', focus_classes: [Can]}}\n"
    )
    done = subprocess.run(
        [sys.executable, PROJECT / "run_grid.py", tmp_path / "grid.yaml", "--dry-run", "--outputs", tmp_path],
        capture_output=True, env=os.environ | {"PYTHONIOENCODING": encoding, "SEGLIB_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode == 2 and b"Traceback" not in done.stderr
    assert b"\x1b" not in done.stdout + done.stderr and rb"\x1b]0;owned\x07" in done.stderr
