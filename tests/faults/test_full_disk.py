"""Disks that are full, at each kind of write: what cannot go on says which folder is, the rest goes on, nothing is lost."""

import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

# (who writes, the file, of which write in this process); each run meets one.
OF_RUNS = [
    ("kernel", r"/last.pt$", 3), ("run", r"/02_train.ipynb$", 5), ("kernel", r"/record.json$", 1),
    ("run", r"/record.json$", 2), ("run", r"/record.json$", 1),
]  # fmt: skip
OF_RESULTS = [("run_grid", r"/leaderboard.csv$", 1), ("kernel", r"\.part/probabilities.npy$", 1)]
SEEDS = range(1, 9)


@pytest.fixture
def mount(tmp_path):
    """Mount a small disk at a folder of tmp_path."""
    mounted = []

    def mount(name, size="80m"):
        (tmp_path / name).mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(tmp_path / name)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("small disks are mounted by root")
        mounted.append(tmp_path / name)
        return tmp_path / name

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def fill(tmp_path, totals):
    """Run a grid's command with a disk that gets full at these writes, until each was met; what it printed.

    Room is made when the full disk was spoken of, which may be too late for the run that follows.
    """

    def fill(grid, disk, aims, words):
        before, said = totals.tried.total(), ""
        aims = [
            {"who": who, "file": file, "at": "full", "count": count, "disk": str(disk), "flag": f"{tmp_path}/hit-{before}-{number}"}
            for number, (who, file, count) in enumerate(aims)
        ]  # fmt: skip
        while not all(Path(aim["flag"]).exists() for aim in aims):
            before = count_hits(aims)
            make_room(grid.aim(aims), grid, disk / "filler", words)
            said += grid.log.read_text()
            assert count_hits(aims) > before, said
        for name in re.findall(r"/(seed=\d+)/", " ".join(Path(aim["flag"]).read_text() for aim in aims)):
            clear = re.search(words.replace(r"seed=\d", name), said)
            totals.wrong["unclear"] += [] if clear else [f"{name}: {said}"]
        count(grid, [aim["file"] for aim in aims], words, said)
        return said

    def count(grid, kinds, words, said):
        for kind in kinds:
            totals.tried[re.findall(r"[\w.]{3,}", kind.replace("\\", ""))[-1]] += 1
        totals.look(grid, f"{kinds}")
        clear = re.findall(words, said)
        totals.wrong["unclear"] += [f"{len(clear)} of {kinds}: {said}"] if len(clear) < len(kinds) else []

    fill.count = count
    return fill


def make_room(process, grid, filler, words):
    """Delete the filler when what was said of it has become more."""
    known = None
    while process.poll() is None:
        if filler.exists():
            found = len(re.findall(words, grid.log.read_text()))
            known = found if known is None else known
            if found > known:
                filler.unlink()
                known = None
        time.sleep(0.02)
    filler.unlink(missing_ok=True)


def count_hits(aims):
    return sum(Path(aim["flag"]).exists() for aim in aims)


def test_outputs(make_trainings, undisturbed, tmp_path, mount, fill, totals):
    disk = mount("outputs")
    grid = make_trainings(tmp_path / "grid", SEEDS, 1, disk)
    full = rf"{disk}\S* is full \(0\.\d MB are free"
    said = fill(grid, disk, OF_RUNS, rf"\] seed=\d: failed.*{full}")
    said += fill(grid, disk, OF_RESULTS, full)
    assert re.search(rf"{full}(.*\n)*.*\] seed=\d: ok", said), said  # others went on
    fill(grid, disk, [("run_grid", r"/grid.yaml$", 1)], rf"stopped: .*{full}")
    said = grid.run()
    assert "04_ensemble: ok" in said, said
    for name in ("leaderboard.csv", "index.html"):
        fill(grid, disk, [("run_grid", f"/{name}$", 1)], rf"stopped: .*{full}")
    said = grid.run()
    assert "0 to go" in said, said
    totals.compare(grid, undisturbed)
    totals.require_none()


def test_the_cache(make_trainings, undisturbed, tmp_path, mount, fill, totals):
    disk = mount("cache")
    grid = make_trainings(tmp_path / "grid", SEEDS[:2], 1)
    grid.environment["SEGLIB_CACHE"] = str(disk)
    words = rf"seed=\d: failed.*{disk}\S* the pixel cache needs 0\.\d MB, got 0\.\d MB free; set SEGLIB_CACHE"
    said = fill(grid, disk, [("kernel", r"pixels/.*/images.npy$", 1)], words)
    assert ": ok" in said, said
    shutil.rmtree(disk / "pixels")
    shutil.rmtree(grid.folder)
    totals.known.clear()
    filler = (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - (1 << 14)))
    assert filler
    said = grid.run()
    fill.count(grid, ["/start"], words, said)
    (disk / "filler").unlink()
    said = grid.run()
    assert "04_ensemble: ok" in said, said
    totals.compare(grid, undisturbed)
    totals.require_none()


def test_tmpdir_and_shared_memory(make_trainings, undisturbed, tmp_path, mount, fill, totals):
    disk = mount("tmp", "1m")
    grid = make_trainings(tmp_path / "grid", SEEDS[:2], 1)
    grid.environment["TMPDIR"] = str(disk)
    said = fill(grid, disk, [("run", r"/kernel.json$", 1)], rf"seed=\d: failed.*{disk} is full .*\(TMPDIR\)")
    assert ": ok" in said, said
    shutil.rmtree(grid.folder)
    totals.known.clear()
    small = 'mount -t tmpfs -o size=16k none /dev/shm && exec "$@"'
    grid.command[:0] = ["unshare", "-m", "sh", "-c", small, "sh"]
    said = grid.run()
    fill.count(grid, ["/shm"] * 2, r"seed=\d: (?:failed|killed).*/dev/shm, .* is full .*: set num_workers: 0", said)
    del grid.command[:6]
    said = grid.run()
    assert "04_ensemble: ok" in said, said
    totals.compare(grid, undisturbed)
    totals.require_none()
