"""Leaderboard and page while runs go on: written beside them, and only what changed is read again."""

import threading
import time
from types import SimpleNamespace

import pytest

from seglib.files import write_json
from seglib.runs import leaderboard, results
from seglib.runs.leaderboard import collect_runs
from seglib.runs.record import read_record
from seglib.runs.results import ResultsWriter


def test_records_that_did_not_change_are_not_read_again(tmp_path, monkeypatch):
    read, names = [], [f"seed={seed}" for seed in range(5)]
    for seed, name in enumerate(names):
        write_json(
            tmp_path / name / "record.json", {"status": "ok", "params": {"seed": seed}, "metrics": {"miou": 0.5}}
        )
    build = leaderboard._read_row
    monkeypatch.setattr(leaderboard, "_read_row", lambda folder, *a: read.append(folder.name) or build(folder, *a))
    before = collect_runs(tmp_path, names, ["seed"])
    assert read == names and collect_runs(tmp_path, names, ["seed"]) == before and read == names
    write_json(tmp_path / names[3] / "record.json", {"status": "failed", "error": "x"})
    write_json(tmp_path / names[1] / "record.json", {"status": "running"})
    rows = collect_runs(tmp_path, names, ["seed"])
    assert read[5:] == [names[1], names[3]] and [row.status for row in rows] == ["ok", "killed", "ok", "failed", "ok"]


def test_what_a_caller_does_to_a_record_is_not_seen_by_the_next(tmp_path):
    write_json(tmp_path / "record.json", {"status": "ok", "seconds": 1})
    read_record(tmp_path)["status"] = "failed"
    assert read_record(tmp_path)["status"] == "ok"
    text = (tmp_path / "record.json").read_text()
    (tmp_path / "record.json").write_text(text.replace('"ok"', '"no"'))  # a damaged one is found, not remembered
    assert read_record(tmp_path) is None


@pytest.mark.parametrize("error", [None, OSError(28, "No space left on device"), RuntimeError("odd")])
def test_runs_do_not_wait_for_the_results_and_errors_are_reported(tmp_path, monkeypatch, error):
    lines, written, go_on = [], [], threading.Event()

    def write_slowly(grid):
        go_on.wait(10)
        written.append(threading.current_thread())
        if error:
            raise error

    monkeypatch.setattr(results, "write_files", write_slowly)
    monkeypatch.setattr(results, "PAUSE", 0.0)
    monkeypatch.setattr(results, "SHARE", 0)
    writer, began = ResultsWriter(SimpleNamespace(folder=tmp_path), lines.append), time.monotonic()
    for _ in range(100):
        writer.write_soon()
    assert time.monotonic() - began < 1 and not written
    go_on.set()
    writer.close()
    writer.write_soon()
    writer.close()
    assert len(written) == 1 and written[0] is not threading.main_thread()
    assert len(lines) == bool(error)
    for line in lines:
        assert line.startswith(f"{tmp_path}: leaderboard and page were not written: {error}")
        assert line.endswith("; the runs go on") and (f"; {tmp_path} was full (" in line) == ("Errno 28" in str(error))


def test_a_run_that_ends_while_the_results_are_written_is_in_the_next(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(results, "write_files", lambda grid: written.append(grid) or time.sleep(0.2))
    monkeypatch.setattr(results, "PAUSE", 0.0)
    monkeypatch.setattr(results, "SHARE", 0)
    writer = ResultsWriter(SimpleNamespace(folder=tmp_path), print)
    writer.write_soon()
    time.sleep(0.1)
    writer.write_soon()
    time.sleep(0.5)
    writer.close()
    assert len(written) == 2
