"""One notebook in a kernel: how it ended, in the record."""

import json
import sys
import threading
from pathlib import Path

import pytest

from seglib.runs.execute import run_job
from seglib.runs.record import UNDER_RUNNER, read_record


@pytest.fixture
def execute(tmp_path, write_notebook, monkeypatch):
    """Execute a notebook with a given body; return its record."""
    monkeypatch.setenv(UNDER_RUNNER, "")  # run_job sets it for the kernel

    def execute(body="", **options):
        notebook = write_notebook(tmp_path / "notebook.ipynb", body, **options)
        parameters = {"do": 'it\'s "quoted"', "weight": 1e-3, "run_dir": str(tmp_path / "run")}
        job = {
            "notebook": notebook,
            "run_dir": tmp_path / "run",
            "key": {"notebook": "k"},
            "parameters": parameters,
            "varied": {"seed": 1},
        }
        (tmp_path / "run").mkdir()
        run_job(job)
        return read_record(tmp_path / "run")

    return execute


def test_a_notebook_gets_its_parameters_runs_in_its_own_folder_and_speaks_through_files(execute, tmp_path, capfd):
    body = "assert (do, weight, seed) == ('it\\'s \"quoted\"', 0.001, 21)\nprint(os.getcwd(), sys.executable)"
    record = execute(body)
    executed = json.loads((tmp_path / "run" / "notebook.ipynb").read_text())
    assert f"{tmp_path} {sys.executable}" in str(executed["cells"])
    assert record["status"] == "ok" and record["error"] is None and record["metrics"] == {"miou": 0.5}
    assert (
        record["key_parts"] == {"notebook": "k"}
        and record["varied"] == {"seed": 1}
        and record["seconds"] > 0
        and "process" not in record
    )
    assert "<html" in (tmp_path / "run" / "notebook.html").read_text()
    assert "encryption" not in capfd.readouterr().err
    assert not [*Path(tmp_path).glob("kernel*")]


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ("1 / 0", "failed", "ZeroDivisionError: division by zero"),
        ("raise MemoryError('Unable to allocate 4 TiB')", "oom", "MemoryError: Unable to allocate 4 TiB"),
        (
            "class OutOfMemoryError(RuntimeError): pass\nraise OutOfMemoryError('CUDA out of memory.\\nTried 20 GiB')",
            "oom",
            "OutOfMemoryError: CUDA out of memory. Tried 20 GiB",
        ),
        ("raise RuntimeError('DefaultCPUAllocator: can\\'t allocate memory')", "oom", "RuntimeError: DefaultCPU"),
        ("sys.exit(0)", "failed", "the notebook ended before it saved its result"),
        ("os.kill(os.getpid(), 9)", "killed", "the kernel died: killed from outside, or by the system"),
    ],
)
def test_how_a_notebook_ends_is_told_in_one_line(execute, tmp_path, body, status, error):
    record = execute(body)
    assert record["status"] == status and record["error"].startswith(error)
    assert (tmp_path / "run" / "notebook.ipynb").is_file() and "metrics" not in record


def test_a_notebook_that_saves_no_result_is_ok_when_it_ran_to_its_end(execute):
    assert execute(result="print('looked at it')")["status"] == "ok"


def test_a_reader_never_meets_half_a_notebook(execute, tmp_path):
    """papermill writes the notebook after each cell, here with a megabyte of output."""
    path, ended, broken, read = tmp_path / "run" / "notebook.ipynb", threading.Event(), [], 0

    def look():
        nonlocal read
        while not ended.is_set():
            if path.is_file():
                try:
                    json.loads(path.read_bytes())
                except ValueError as error:
                    broken.append(str(error))
                read += 1

    reader = threading.Thread(target=look)
    reader.start()
    try:
        assert execute("print('x' * 1_000_000)")["status"] == "ok"
    finally:
        ended.set()
        reader.join()
    assert read > 20 and not broken
