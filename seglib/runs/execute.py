"""Executes one notebook with papermill, in a process of its own, and says in record.json how it ended.

Started by engine.py as `python -m seglib.runs.execute`, with the job as one line of JSON on standard input, which
stays open for as long as the runner lives.
"""

import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import papermill
from nbclient.exceptions import DeadKernelError
from nbconvert import HTMLExporter
from papermill.exceptions import PapermillExecutionError
from papermill.iorw import LocalHandler, papermill_io
from traitlets.config import Config

from seglib.files import clear_parts, write_text
from seglib.runs.keys import saves_result
from seglib.runs.record import UNDER_RUNNER, kill_family, read_record, start_record, update_record
from seglib.runs.trackers import NAME as TRACKING
from seglib.runs.trackers import finish_tracking

_OUT_OF_MEMORY = ("OutOfMemoryError", "MemoryError", "can't allocate memory", "out of memory", "_STATUS_ALLOC_FAILED")
_DIED = "the kernel died: killed from outside, or by the system when memory ran out"
_STOPPED = {
    signal.SIGTERM: ("interrupted", "stopped before its end"),
    signal.SIGHUP: ("killed", "run_grid.py was killed, so the run was stopped"),
}


class Stopped(KeyboardInterrupt):
    """The run is to stop; its arguments are status and error. Papermill saves the notebook and ends the kernel."""


class _WholeFiles(LocalHandler):
    """Papermill rewrites the notebook after each cell; this way a reader never meets half of one."""

    def write(self, buf: str, path: str) -> None:
        write_text(path, buf)


def execute(notebook: Path, output: Path, parameters: dict[str, Any]) -> tuple[str, str | None]:
    """Execute a notebook; return (status, error): ok, failed, oom, killed or interrupted, and one line why."""
    papermill_io.reset()  # papermill takes the last "local" handler of its list, which would be its own
    papermill_io.register("local", _WholeFiles())
    logging.getLogger("papermill").setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory(prefix="seglib-") as sockets:
            papermill.execute_notebook(
                str(notebook), str(output), parameters=parameters, kernel_name="python3", cwd=str(notebook.parent),
                progress_bar=False, start_timeout=300, iopub_timeout=120, config=_use_sockets(sockets),
            )  # fmt: skip
    except PapermillExecutionError as error:
        words = " ".join(f"{error.ename}: {error.evalue}".split())
        return ("oom" if any(sign in words for sign in _OUT_OF_MEMORY) else "failed"), words[:2000]
    except DeadKernelError:
        return "killed", _DIED
    except RuntimeError as error:
        if not str(error).startswith("Kernel died"):  # jupyter_client's words for one that dies while it starts
            raise
        return "killed", _DIED
    except Stopped as stopped:
        return stopped.args
    return "ok", None


def _use_sockets(folder: str) -> Config:
    """Talk to the kernel through files: kernels that start together can take each other's TCP ports."""
    config = Config()
    config.ConnectionFileMixin.transport = "ipc"
    config.KernelManager.connection_file = f"{folder}/kernel.json"
    return config


def run_job(job: dict[str, Any]) -> None:
    """Execute one job; its record is written last."""
    notebook, run_dir = Path(job["notebook"]), Path(job["run_dir"])
    output = run_dir / notebook.name
    os.environ[UNDER_RUNNER] = str(os.getpid())
    # Threads of OpenMP that wait for work spin; with two runs on the same cores that made each several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    began = time.monotonic()
    clear_parts(run_dir)
    start_record(run_dir, job["key"], job["parameters"], job["varied"])
    status, error = execute(notebook, output, job["parameters"])
    kill_family(os.getpid())
    if status == "ok" and saves_result(notebook) and "finished_at" not in (read_record(run_dir) or {}):
        status, error = "failed", "the notebook ended before it saved its result"
    if output.is_file():
        render_html(output)
    tracking = _send_notebook(output, job["parameters"], status)
    update_record(run_dir, status=status, error=error, seconds=round(time.monotonic() - began, 2), **tracking)


def _send_notebook(output: Path, parameters: dict[str, Any], status: str) -> dict[str, Any]:
    """Send the executed notebook to the run's trackers; return what the record says of them.

    A run that was stopped goes on some time, and sends it then.
    """
    if not (output.parent / TRACKING).is_file() or status in ("killed", "interrupted"):
        return {}
    try:
        files = [output, output.with_suffix(".html")]
        return {"tracking": finish_tracking(output.parent, parameters, files, ok=status == "ok")}
    except Stopped:  # while it was sent; how the run ended is known, and stays so
        return {}


def render_html(notebook: Path) -> None:
    """Write the executed notebook as one HTML page beside it."""
    exporter = HTMLExporter(embed_images=True)
    page, _ = exporter.from_filename(str(notebook))
    write_text(notebook.with_suffix(".html"), page)


def _stop(signum: int, frame: object) -> None:
    for number in _STOPPED:
        signal.signal(number, signal.SIG_IGN)  # once is enough: what follows is saving
    raise Stopped(*_STOPPED[signum])


def _watch_runner() -> None:
    """Stop when the runner is gone: standard input ends."""
    os.read(sys.stdin.fileno(), 1)
    signal.pthread_kill(threading.main_thread().ident, signal.SIGHUP)


def main() -> None:
    for number in _STOPPED:
        signal.signal(number, _stop)
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_watch_runner, daemon=True).start()
    run_job(job)


if __name__ == "__main__":
    main()
