"""Asks a child process what only heavy imports can tell, so that the runner of grids stays light; answers are kept."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from seglib.errors import InputError
from seglib.files import PROJECT, cache_dir, hash_text, write_json


def ask_child(module: str, questions: Sequence[dict], state: object) -> list[str]:
    """Give the questions to `python -m MODULE --check`, as a JSON list, and return its answers, a text for each.

    Parameters
    ----------
    state : JSON values that the answers depend on (versions, hashes of code); another state is asked anew.

    Raises
    ------
    InputError
        The child did not answer.
    """
    path = cache_dir() / f"{module}.json"
    remembered = _read_remembered(path)
    keys = [hash_text(json.dumps([question, state], sort_keys=True)) for question in questions]
    new = {key: question for key, question in zip(keys, questions, strict=True) if key not in remembered}
    if new:
        remembered |= dict(zip(new, _run_child(module, [*new.values()]), strict=True))
        write_json(path, remembered)
    return [remembered[key] for key in keys]


def _run_child(module: str, questions: Sequence[dict]) -> list[str]:
    command = [sys.executable, "-m", module, "--check"]
    child = subprocess.run(command, input=json.dumps(questions), capture_output=True, text=True, cwd=PROJECT)
    if child.returncode:
        last = (child.stderr.strip() or f"exit code {child.returncode}").splitlines()[-1]
        raise InputError(f"the check by `python -m {module} --check` could not run: {last}")
    return json.loads(child.stdout.splitlines()[-1])


def _read_remembered(path: Path) -> dict[str, str]:
    try:
        remembered = json.loads(path.read_text())
    except (OSError, ValueError):  # absent or damaged: everything is asked again
        return {}
    sound = isinstance(remembered, dict) and all(isinstance(answer, str) for answer in remembered.values())
    return remembered if sound else {}
