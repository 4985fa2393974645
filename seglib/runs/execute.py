"""Executes one notebook with papermill, in a process of its own, and says in record.json how it ended.

Started by schedule.py as `python -m seglib.runs.execute`, with the job as JSON on standard input.
"""

import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import papermill
from nbclient.exceptions import DeadKernelError
from nbconvert import HTMLExporter
from papermill.exceptions import PapermillExecutionError
from papermill.iorw import LocalHandler, papermill_io

from seglib.files import write_text
from seglib.runs.notebook import saves_result
from seglib.runs.record import UNDER_RUNNER, read_record, start_record, update_record

_OUT_OF_MEMORY = ("OutOfMemoryError", "MemoryError", "can't allocate memory", "out of memory")


class _WholeFiles(LocalHandler):
    """Papermill rewrites the notebook after each cell; this way a reader never meets half of one."""

    def write(self, buf: str, path: str) -> None:
        write_text(path, buf)


def execute(notebook: Path, output: Path, parameters: dict[str, Any]) -> tuple[str, str | None]:
    """Execute a notebook; return (status, error): ok, failed, oom, killed or interrupted, and one line why."""
    papermill_io.register("local", _WholeFiles())
    logging.getLogger("papermill").setLevel(logging.ERROR)
    try:
        papermill.execute_notebook(
            str(notebook), str(output), parameters=parameters, kernel_name="python3", cwd=str(notebook.parent),
            progress_bar=False, autosave_cell_every=30,
        )  # fmt: skip
    except PapermillExecutionError as error:
        words = " ".join(f"{error.ename}: {error.evalue}".split())
        return ("oom" if any(sign in words for sign in _OUT_OF_MEMORY) else "failed"), words[:2000]
    except DeadKernelError:
        return "killed", "the kernel died: killed from outside, or by the system when memory ran out"
    except KeyboardInterrupt:
        return "interrupted", "interrupted"
    return "ok", None


def run_job(job: dict[str, Any]) -> str:
    """Execute one run and write its record last; return its status."""
    notebook, run_dir = Path(job["notebook"]), Path(job["run_dir"])
    output = run_dir / notebook.name
    os.environ[UNDER_RUNNER] = str(os.getpid())
    began = time.monotonic()
    start_record(run_dir, job["key"], job["parameters"], job["varied"])
    status, error = execute(notebook, output, job["parameters"])
    if status == "ok" and saves_result(notebook) and "finished_at" not in (read_record(run_dir) or {}):
        # A killed kernel can leave a notebook that papermill marks complete: only its own last line proves an end.
        status, error = "killed", "the kernel ended before the notebook saved its result"
    if output.is_file():
        render_html(output)
    update_record(run_dir, status=status, error=error, seconds=round(time.monotonic() - began, 2))
    return status


def render_html(notebook: Path) -> None:
    """Write the executed notebook as one HTML page beside it."""
    exporter = HTMLExporter(embed_images=True)
    page, _ = exporter.from_filename(str(notebook))
    write_text(notebook.with_suffix(".html"), page)


def _stop(signum, frame):
    raise KeyboardInterrupt


def main() -> None:
    signal.signal(signal.SIGTERM, _stop)
    run_job(json.load(sys.stdin))


if __name__ == "__main__":
    main()
