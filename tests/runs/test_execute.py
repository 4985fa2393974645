"""One notebook in a kernel: how it ended, in the record."""

import json
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from seglib.files import write_json
from seglib.runs.execute import run_job
from seglib.runs.family import UNDER_RUNNER
from seglib.runs.record import read_record


@pytest.fixture
def execute(tmp_path, write_notebook, monkeypatch):
    """Execute a notebook with a given body; return its record."""
    monkeypatch.setenv(UNDER_RUNNER, "")  # run_job sets it for the kernel

    def execute(body="", name="run", neighbours=None, tags=(), **options):
        notebook = write_notebook(tmp_path / "notebook.ipynb", body, **options)
        content = json.loads(notebook.read_text())
        for place in tags:
            content["cells"][place]["metadata"]["tags"] = [tags[place]]
        notebook.write_text(json.dumps(content))
        parameters = {"do": 'it\'s "quoted"', "weight": 1e-3, "seed": 21, "run_dir": str(tmp_path / name)}
        job = {
            "notebook": notebook,
            "run_dir": tmp_path / name,
            "key": {"notebook": "k"},
            "parameters": parameters,
            "varied": {"seed": 1},
            "neighbours": neighbours,
        }
        (tmp_path / name).mkdir()
        run_job(job)
        return read_record(tmp_path / name)

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


def test_what_a_cell_prints_without_end_is_cut_and_figures_come_whatever_the_environment_says(
    execute, tmp_path, monkeypatch
):
    """In a temporary folder too deep for sockets, as clusters have them, and with a backend that shows nothing."""
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    monkeypatch.setenv("MPLBACKEND", "agg")
    body = "for _ in range(40): print('x' * 50_000)\nimport matplotlib.pyplot as plt\nplt.plot([1, 2]); plt.show()"
    assert execute(body)["status"] == "ok"
    outputs = json.loads((tmp_path / "run" / "notebook.ipynb").read_text())["cells"][-2]["outputs"]
    printed = "".join("".join(each["text"]) for each in outputs if each["output_type"] == "stream")
    assert 1_000_000 < len(printed) < 1_001_000 and printed.count("beyond 1,000,000 characters is left out") == 1
    assert any("image/png" in each.get("data", {}) for each in outputs)


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


def test_the_executed_notebook_carries_only_what_the_run_changed(execute, tmp_path):
    execute()
    cells = json.loads((tmp_path / "run" / "notebook.ipynb").read_text())["cells"]
    (injected,) = [cell["source"] for cell in cells if "injected-parameters" in cell["metadata"]["tags"]]
    assert [line.partition(" = ")[0] for line in "".join(injected).splitlines()[1:]] == ["do", "weight", "run_dir"]


def test_the_executed_notebook_opens_with_what_varied_and_what_came_out(execute, tmp_path):
    for name, miou in {"base_1": 0.25, "base_2": 0.75, "a*[b]": None}.items():
        write_json(tmp_path / name / "record.json", {"status": "ok" if miou else "failed", "metrics": {"miou": miou}})
    near = {"previous": "a*[b]", "next": "", "baseline": ["base_1", "base_2", "a*[b]", "not yet"]}
    execute(neighbours=near, name="w=<1>,s=a_b")
    folder = tmp_path / "w=<1>,s=a_b"
    header = json.loads((folder / "notebook.ipynb").read_text())["cells"][0]
    page = (folder / "notebook.html").read_text()
    assert header["cell_type"] == "markdown"
    for words in (
        "<strong>w=&lt;1&gt;,s=a_b</strong> · seed = 1</p>",
        "<p>mIoU <strong>0.5000</strong></p>",
        "<p>baseline: mIoU 0.5000, the mean of 2 runs; this run: +0.0000</p>",
        '<a href="../index.html">grid</a> · <a href="../grid.yaml">grid file</a>',
        'previous run: <a href="../a%2A%5Bb%5D/notebook.html">a*[b]</a></p>',
    ):
        assert words in page
    assert "](../a%2A%5Bb%5D/notebook.ipynb)" in "".join(header["source"]) and "next run" not in page


def test_a_failed_run_opens_with_its_error(execute, tmp_path):
    execute("raise ValueError('of <b>*this*</b>')")
    page = (tmp_path / "run" / "notebook.html").read_text()
    assert "<p><strong>failed</strong>: ValueError: of &lt;b&gt;*this*&lt;/b&gt;</p>" in page


def test_parameters_and_plumbing_are_folded_in_the_page(execute, tmp_path):
    execute(tags={1: "hide-input"})
    page = (tmp_path / "run" / "notebook.html").read_text()
    assert page.count("<details><summary>code</summary>") == 2


def test_a_page_that_cannot_be_made_does_not_fail_the_run(execute, monkeypatch, capsys):
    monkeypatch.setattr("seglib.runs.execute._FOLDED", "{% extends 'nowhere.html.j2' %}")
    assert execute()["status"] == "ok"
    assert "no page was made of it: TemplateNotFound: nowhere.html.j2" in capsys.readouterr().out
