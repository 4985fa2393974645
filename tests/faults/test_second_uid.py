"""Two users of one machine: caches, outputs, locks and run folders that belong to another one."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from seglib.data.synthetic import make_synthetic
from seglib.files import PROJECT
from seglib.runs.record import read_record

UID = 12345
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.geteuid() != 0 or subprocess.run(["unshare", "-m", "setpriv", "true"], capture_output=True).returncode != 0,
        reason="another user is one that root becomes, in a mount namespace of its own",
    ),
]
# Where Python or the checkout are in a home folder that others may not enter: the same places, entered by all.
OPEN = """
for place in "$@"; do
    mkdir -p "$HELD$place" && mount --bind "$place" "$HELD$place"
done
for closed in $CLOSED; do mount -t tmpfs -o mode=755 none "$closed"; done
for place in "$@"; do
    mkdir -p "$place" && mount --bind "$HELD$place" "$place"
done
exec setpriv --reuid $USER_ID --regid $USER_ID --clear-groups "$PYTHON" run_grid.py $ARGUMENTS
"""


@pytest.fixture
def place():
    """A folder that everybody may enter and write to; pytest's own are its user's."""
    folder = Path(tempfile.mkdtemp(prefix="two-users-", dir="/tmp"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def run_as(place, totals):
    """Run a grid as a user, with a home of its own; (exit code, what was printed)."""

    def run_as(uid, path, cache, outputs=None, **environment):
        needed = {
            os.path.realpath(sys.base_prefix),
            os.path.abspath(sys.prefix),
            os.path.realpath(sys.prefix),
            str(PROJECT),
        }
        closed = {str(each) for name in needed for each in Path(name).parents if not each.stat().st_mode & 0o001}
        home = place / f"home{uid}"
        home.mkdir(exist_ok=True)
        os.chown(home, uid, uid)
        environment = {
            "PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(PROJECT), "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1", "SEGLIB_CACHE": str(cache), "HELD": str(place / "held"), "USER_ID": str(uid),
            "CLOSED": " ".join(sorted(closed)), "PYTHON": sys.executable,
            "ARGUMENTS": f"{path} --outputs {outputs or place / 'outputs'}",
        } | environment  # fmt: skip
        places = sorted(name for name in needed if any(name.startswith(each) for each in closed))
        done = subprocess.run(
            ["unshare", "-m", "sh", "-ec", OPEN, "sh", *places],
            cwd=PROJECT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
        )  # fmt: skip
        totals.tried["commands"] += 1
        totals.wrong["traceback"] += [done.stdout] if "Traceback" in done.stdout else []
        return done.returncode, done.stdout

    yield run_as
    totals.require_none()  # what is unclear or lost fails the test itself


@pytest.fixture
def trainings(place):
    """A grid of a short training, and its data."""
    make_synthetic(place / "data", num_images=24, image_size=64, seed=3)

    def write(**fixed):
        fixed = {
            "data_dir": str(place / "data"), "image_size": 64, "architecture": "PSPNet", "encoder": "tu-test_resnet",
            "encoder_weights": "", "epochs": 1, "batch_size": 4, **fixed,
        }  # fmt: skip
        content = {"notebook": str(PROJECT / "notebooks/02_train.ipynb"), "fixed": fixed, "grid": {"seed": [1]}}
        (place / "grid.yaml").write_text(yaml.safe_dump(content))
        return place / "grid.yaml"

    return write


def read_texts(run_dir):
    """What the cells of the executed notebook printed."""
    (path,) = run_dir.glob("*.ipynb")
    cells = json.loads(path.read_text())["cells"]
    return "".join("".join(output.get("text", "")) for cell in cells for output in cell.get("outputs", []))


def list_weights(outputs):
    return {
        path.parent.name: json.loads(path.read_text())["weights_sha256"] for path in outputs.glob("grid/*/record.json")
    }


def test_a_cache_of_another_user_is_read_and_where_it_cannot_be_the_run_goes_on(place, run_as, trainings):
    cache = place / "cache"
    code, said = run_as(0, trainings(), cache, place / "first")
    assert code == 0, said
    state = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    cases = [("whole", {}, 0o755), ("not whole", {"image_size": 32}, 0o755), ("closed", {}, 0o700)]
    for name, fixed, mode in cases:
        cache.chmod(mode)
        code, said = run_as(UID, trainings(**fixed), cache, place / name.replace(" ", "-"))
        folder = place / name.replace(" ", "-") / "grid/seed=1"
        assert code == 0 and read_record(folder)["status"] == "ok", said
        for text in (said, read_texts(folder)):
            lines = [line for line in text.splitlines() if "SEGLIB_CACHE" in line]
            assert len(lines) <= 1, f"{name}: {text}"
            assert all(re.match(rf"{cache}: cannot be written to \(.*\), so nothing is cached", line) for line in lines)
            assert lines or name == "whole" or text == said, f"{name}: {text}"
        if not fixed:
            assert list_weights(place / "first") == list_weights(place / name.replace(" ", "-"))
    cache.chmod(0o755)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == state


@pytest.fixture
def path(place, write_notebook):
    """A grid of two runs that train nothing."""
    write_notebook(place / "notebook.ipynb")
    (place / "grid.yaml").write_text(f"notebook: {place}/notebook.ipynb\ngrid: {{seed: [1, 2]}}")
    return place / "grid.yaml"


def test_outputs_of_another_user_are_refused_in_a_line(place, run_as, path):
    (place / "outputs").mkdir(mode=0o755)
    code, said = run_as(UID, path, place / "cache")
    assert code == 2 and said.count("\n") == 1, said
    assert said.startswith(
        f"{place}/outputs/grid: required a folder to write to, got Permission denied; choose --outputs"
    )


def test_a_lock_of_another_user_and_one_that_is_a_link_are_refused_in_a_line(place, run_as, path):
    (place / "outputs/grid").mkdir(parents=True)
    for folder in (place / "outputs", place / "outputs/grid"):
        folder.chmod(0o777)
    lock = place / "outputs/grid/.lock"
    lock.touch(0o644)
    code, said = run_as(UID, path, place / "cache")
    assert code == 2 and said.count("\n") == 1 and "required a folder to write to, got Permission denied" in said, said
    lock.unlink()
    (place / "precious").write_text("mine")
    (place / "precious").chmod(0o666)
    lock.symlink_to(place / "precious")
    code, said = run_as(UID, path, place / "cache")
    assert code == 2 and said.count("\n") == 1 and "required a folder to write to, got" in said, said
    assert (place / "precious").read_text() == "mine"


def test_a_run_folder_of_another_user_fails_this_run_and_the_others_go_on(place, run_as, path):
    (place / "outputs/grid/seed=1").mkdir(parents=True)
    for folder in (place / "outputs", place / "outputs/grid"):
        folder.chmod(0o1777)  # as /tmp: nobody moves what is another's
    code, said = run_as(UID, path, place / "cache")
    assert code == 1 and "seed=2: ok" in said, said
    (line,) = [line for line in said.splitlines() if "seed=1: failed" in line]
    assert "not permitted: " in line and f"{place}/outputs/grid/seed=1'" in line, line
    os.chown(place / "outputs/grid/seed=1", UID, UID)
    code, said = run_as(UID, path, place / "cache")
    assert code == 0 and "2 runs, 1 done before, 1 to go" in said, said
