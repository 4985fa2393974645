"""Executes one notebook with papermill, in a process of its own, and says in record.json how it ended.

Started by local.py as `python -m seglib.runs.execute`, with the job as one line of JSON on standard input, which
stays open for as long as the runner lives.
"""

# ruff: noqa: E402
import json
import logging
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

# jsonschema, which nbformat imports, builds a grammar of web addresses where it can; a notebook has none to check, and
# each run would start 3 s later.
sys.modules.setdefault("rfc3987_syntax", None)

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from nbconvert import HTMLExporter
from papermill import engines
from papermill.clientwrap import PapermillNotebookClient
from papermill.exceptions import PapermillExecutionError
from papermill.iorw import LocalHandler, papermill_io
from traitlets.config import Config

from seglib.errors import StoppedForNow
from seglib.files import STOP_AFTER, cache_dir, clear_parts, private_folder, sweep, write_text
from seglib.parameters import read_defaults
from seglib.runs.family import UNDER_RUNNER, adopt_orphans, kill_family
from seglib.runs.keys import calls, mend_key
from seglib.runs.lock import only_executor
from seglib.runs.page import allow_scripts, find_scripts
from seglib.runs.rank_processes import find_cause, start_others
from seglib.runs.reasons import explain, find_first_error
from seglib.runs.record import describe_key, read_record, start_record, summarise_key, update_record
from seglib.runs.trackers import NAME as TRACKING
from seglib.runs.trackers import finish_tracking
from seglib.runs.warm import fork_kernel, leave

MOST_PRINTED = 1_000_000  # characters that are kept of what a cell prints
LONGEST_FOLDER = 70  # bytes of a folder's name in which sockets are put; the system takes 107 with theirs
_DIED = "the kernel died: killed from outside, or by the system when memory ran out"
_STOPPED = {
    signal.SIGTERM: ("interrupted", "stopped before its end"),
    signal.SIGHUP: ("killed", "run_grid.py was killed, so the run was stopped"),
    signal.SIGUSR1: ("failed", "another process of the run failed"),  # says which before it is sent
}


class Stopped(KeyboardInterrupt):
    """The run is to stop; its arguments are status and error. Papermill saves the notebook and ends the kernel."""


class _WholeFiles(LocalHandler):
    """Papermill rewrites the notebook after each cell; this way a reader never meets half of one."""

    def write(self, buf: str, path: str) -> None:
        write_text(path, buf)


class _BoundedClient(PapermillNotebookClient):
    """Keeps what a cell prints up to a limit: a loop that prints without end would fill the disk."""

    def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
        if msg["msg_type"] == "stream":
            text, printed = msg["content"]["text"], self.__dict__.setdefault("printed", Counter())
            room = MOST_PRINTED - printed[cell_index]
            printed[cell_index] += len(text)
            if room <= 0:
                return None
            if len(text) > room:
                note = f"\n... what this cell prints beyond {MOST_PRINTED:,} characters is left out\n"
                msg["content"]["text"] = text[:room] + note
        return super().process_message(msg, cell, cell_index)

    async def _check_raise_for_error(self, cell: Any, cell_index: int, reply: dict[str, Any] | None) -> None:
        """Name an error that IPython could not show: without memory for its traceback it prints another one."""
        content = (reply or {}).get("content", {})
        if content.get("status") == "error" and not any(each.output_type == "error" for each in cell.outputs):
            named = {name: content.get(name, "") for name in ("ename", "evalue")}
            cell.outputs.append(nbformat.v4.new_output("error", **named, traceback=content.get("traceback") or []))
        await super()._check_raise_for_error(cell, cell_index, reply)


def execute(notebook: Path, output: Path, parameters: dict[str, Any]) -> tuple[str, str | None]:
    """Execute a notebook; return (status, error): ok, failed, oom, killed, interrupted or stopped, and one line why.

    Only parameters that are not the notebook's defaults are put into the executed copy.
    """
    defaults = read_defaults(notebook)
    changed = {name: value for name, value in parameters.items() if name not in defaults or value != defaults[name]}
    papermill_io.reset()  # papermill takes the last "local" handler of its list, which would be its own
    papermill_io.register("local", _WholeFiles())
    engines.PapermillNotebookClient = _BoundedClient  # which papermill's engine names, and takes no other
    logging.getLogger("papermill").setLevel(logging.ERROR)
    try:
        with private_folder(_find_short_folder()) as sockets:
            papermill.execute_notebook(
                str(notebook), str(output), parameters=changed, kernel_name="python3", cwd=str(notebook.parent),
                progress_bar=False, start_timeout=300, iopub_timeout=120, config=_use_sockets(sockets),
            )  # fmt: skip
    except PapermillExecutionError as error:
        if error.ename == StoppedForNow.__name__:
            return "stopped", error.evalue
        words = " ".join(f"{error.ename}: {error.evalue}".split())
        return explain(words, output.parent)
    except (DeadKernelError, RuntimeError) as error:
        if not isinstance(error, DeadKernelError) and not str(error).startswith("Kernel died"):  # while it starts
            raise
        found = find_first_error(output.parent / "run.log", or_last=False)  # where a kernel writes what it cannot send
        return "killed", explain(f"the kernel died: {found}", output.parent)[1] if found else _DIED
    except Stopped as stopped:
        return stopped.args
    return "ok", None


def _find_short_folder() -> str | None:
    """Where the names of sockets fit, which may have some hundred characters: the usual folder or, where that is deep
    as on clusters, another one."""
    folders = [tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR", ""), "/tmp", "/var/tmp", "/dev/shm"]
    fit = [each for each in folders if each and len(os.fsencode(each)) <= LONGEST_FOLDER and os.path.isdir(each)]
    return next((each for each in fit if os.access(each, os.W_OK | os.X_OK)), None)


def _use_sockets(folder: Path) -> Config:
    """Talk to the kernel through files: kernels that start together can take each other's TCP ports."""
    config = Config()
    if len(os.fsencode(folder)) > LONGEST_FOLDER + 23:
        return config  # no folder is short enough: TCP, signed with a key of the kernel's own
    config.ConnectionFileMixin.transport = "ipc"
    config.KernelManager.connection_file = f"{folder}/kernel.json"
    return config


def run_job(job: dict[str, Any]) -> None:
    """Execute one job; its record is written last."""
    notebook, run_dir = Path(job["notebook"]), Path(job["run_dir"])
    output = run_dir / notebook.name
    os.environ[UNDER_RUNNER] = str(os.getpid())
    os.environ[STOP_AFTER] = str(job.get("stop_after", 0))
    os.environ.pop("MPLBACKEND", None)  # figures belong into the notebook, whatever scripts do elsewhere
    # Threads of OpenMP that wait for work spin; with two runs on the same cores that made each several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    began = time.monotonic()
    clear_parts(run_dir)
    _sweep_leftovers()
    start_record(run_dir, job["key"], job["parameters"], job["varied"])
    with start_others(job, _fail):
        status, error = execute(notebook, output, job["parameters"])
    error = find_cause(run_dir, error)
    kill_family(os.getpid())
    record = read_record(run_dir)
    if status == "ok" and calls(notebook, "save_result(") and "finished_at" not in (record or {}):
        what = "the notebook ended before it saved its result"
        status, error = "failed", what if record else "record.json was damaged or deleted while the run went on"
    if output.is_file():
        try:
            add_header(output, job, status, error)
            render_html(output)
        except Exception as problem:  # the result is there: a page that cannot be made does not undo it
            print(f"{output}: no page was made of it: {type(problem).__name__}: {problem}", flush=True)
    tracking = _send_notebook(output, job["parameters"], status)
    key = mend_key(notebook, job["parameters"], job["key"], run_dir)
    seconds = round(time.monotonic() - began, 2)
    update_record(run_dir, status=status, error=error, seconds=seconds, **describe_key(key), **tracking)


def _sweep_leftovers() -> None:
    """Delete what killed runs have left in the folders that all share; those of a run are its own."""
    cache = cache_dir()
    for folder in {tempfile.gettempdir(), _find_short_folder() or "", cache, *cache.glob("*/")}:
        sweep(folder)


def _send_notebook(output: Path, parameters: dict[str, Any], status: str) -> dict[str, Any]:
    """Send the executed notebook to the run's trackers; return what the record says of them.

    A run that was stopped goes on some time, and sends it then.
    """
    if not (output.parent / TRACKING).is_file() or status in ("killed", "interrupted", "stopped"):
        return {}
    try:
        files = [output, output.with_suffix(".html")]
        return {"tracking": finish_tracking(output.parent, parameters, files, ok=status == "ok")}
    except Stopped:  # while it was sent; how the run ended is known, and stays so
        return {}


# What an executed notebook opens with, and its page.


def add_header(path: Path, job: Mapping[str, Any], status: str, error: str | None) -> None:
    """Open an executed notebook with what varied, what came out, and the way to its grid and the runs beside it."""
    notebook, near = nbformat.read(path, as_version=4), job.get("neighbours") or {}
    metrics = (read_record(path.parent) or {}).get("metrics") or {}
    varied = ", ".join(f"{name} = {value}" for name, value in job["varied"].items())
    links = ["[grid](../index.html)", "[grid file](../grid.yaml)"] if near else []
    links += [
        f"{role} run: [{_escape(near[role])}](../{quote(near[role])}/{quote(path.name)})"
        for role in ("previous", "next")
        if near.get(role)
    ]
    lines = [
        f"**{_escape(path.parent.name)}**" + (f" · {_escape(varied)}" if varied else ""),
        _word_scores(metrics) if status == "ok" else f"**{status}**: {_escape(error or '')}",
        _compare(metrics.get("miou"), [path.parent.parent / name for name in near.get("baseline", ())]),
        " · ".join(links),
    ]
    header = "\n>\n".join(f"> {line}" for line in lines if line)
    notebook.cells.insert(0, nbformat.v4.new_markdown_cell(header, metadata={"tags": ["header"]}))
    write_text(path, nbformat.writes(notebook))


def _word_scores(metrics: Mapping[str, Any]) -> str:
    numbers = {name: value for name, value in metrics.items() if isinstance(value, float)}
    names = ["miou"] if "miou" in numbers else [*numbers][:3]
    return ", ".join(f"{'mIoU' if name == 'miou' else _escape(name)} **{numbers[name]:.4f}**" for name in names)


def _compare(miou: float | None, baseline: list[Path]) -> str:
    """The baseline's mIoU, the mean of its runs that are done, and how far this run is from it."""
    records = [record for folder in baseline if (record := read_record(folder) or {}).get("status") == "ok"]
    known = [each for record in records if (each := (record.get("metrics") or {}).get("miou")) is not None]
    if not known:
        return ""
    mean, runs = sum(known) / len(known), f", the mean of {len(known)} runs" if len(known) > 1 else ""
    return f"baseline: mIoU {mean:.4f}{runs}" + ("" if miou is None else f"; this run: {miou - mean:+.4f}")


def _escape(text: str) -> str:
    """A text as Markdown shows it, letter by letter and in one line."""
    return re.sub(r"([\\`*_{}\[\]<>()#|~$&])", r"\\\1", " ".join(text.split()))


_FOLDED = """{%- extends "lab/index.html.j2" -%}
{%- block input_group -%}
{%- if "parameters" in cell.metadata.tags or "hide-input" in cell.metadata.tags -%}
<details><summary>code</summary>{{ super() }}</details>
{%- else -%}{{ super() }}{%- endif -%}
{%- endblock input_group -%}"""
_CDN = "https://cdnjs.cloudflare.com/ajax/libs"
# What nbconvert's template loads, for formulas and diagrams; MathJax runs its settings by eval.
_TEMPLATES_SCRIPTS = f"{_CDN}/require.js/ {_CDN}/mathjax/ {_CDN}/mermaid/ {_CDN}/mermaid-layout-elk/ 'unsafe-eval'"


def render_html(notebook: Path) -> None:
    """Write the executed notebook as one HTML page beside it, its parameters and its plumbing (`hide-input`) folded."""
    content = nbformat.read(notebook, as_version=4)
    for cell in content.cells:
        if "header" in cell.metadata.get(
            "tags", []
        ):  # from page to page, where these links go from notebook to notebook
            cell.source = cell.source.replace(f"/{quote(notebook.name)})", f"/{quote(notebook.stem)}.html)")
    exporter = HTMLExporter(embed_images=True, raw_template=_FOLDED)
    page, _ = exporter.from_notebook_node(content)
    own, _ = exporter.from_notebook_node(nbformat.v4.new_notebook())
    write_text(notebook.with_suffix(".html"), allow_scripts(page, find_scripts(own), _TEMPLATES_SCRIPTS))


def _stop(signum: int, frame: object) -> None:
    for number in _STOPPED:
        signal.signal(number, signal.SIG_IGN)  # once is enough: what follows is saving
    raise Stopped(*_STOPPED[signum])


def _fail(line: str) -> None:
    _STOPPED[signal.SIGUSR1] = "failed", line
    signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)


def _watch_runner() -> None:
    """Stop when the runner is gone: standard input ends."""
    os.read(sys.stdin.fileno(), 1)
    signal.pthread_kill(threading.main_thread().ident, signal.SIGHUP)


def main(warm: bool = False) -> None:
    adopt_orphans()
    if warm:
        fork_kernel()
    for number in _STOPPED:
        signal.signal(number, _stop)
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_watch_runner, daemon=True).start()
    with only_executor(Path(job["run_dir"])):
        if not _is_done(job):
            run_job(job)


def _is_done(job: Mapping[str, Any]) -> bool:
    """A cluster starts a job again whose end it has missed."""
    record = read_record(job["run_dir"]) or {}
    return record.get("status") == "ok" and record.get("key") == summarise_key(job["key"])


if __name__ == "__main__":
    main()
    leave()
