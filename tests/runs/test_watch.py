"""A grid that is seen and steered from elsewhere, and runs that show no sign of life."""

import json
import os
import threading
import time

import pytest

from seglib.files import write_json
from seglib.runs import lock, watch
from seglib.runs.lock import only_runner
from seglib.runs.record import start_record, update_record

pytestmark = pytest.mark.usefixtures("stand_in")


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(watch, "LOOK", 0.02)


@pytest.fixture
def meanwhile():
    """Do something in a thread once a condition holds, and wait for it at the end."""
    threads, failures = [], []

    def start(condition, act):
        def wait():
            deadline = time.monotonic() + 30
            while not condition() and time.monotonic() < deadline:
                time.sleep(0.01)
            try:
                act()
            except BaseException as error:
                failures.append(error)

        threads.append(threading.Thread(target=wait))
        threads[-1].start()

    yield start
    for thread in threads:
        thread.join(30)
    assert not failures


def ignore(text):
    pass


def test_a_run_that_is_stopped_ends_and_does_not_start_again_and_one_that_waits_never_starts(
    call, write_grid, records, grid_folder, meanwhile
):
    def stop():
        for name in ("do=sleep", "do=raise"):
            watch.give_order(grid_folder, name, pause=False)

    meanwhile(lambda: (records().get("do=sleep") or {}).get("status") == "running", stop)
    result = call(write_grid("grid: {do: [sleep, ok, raise]}"))
    assert result.code == 1
    assert {name: each["status"] for name, each in records().items()} == {"do=sleep": "interrupted", "do=ok": "ok"}
    assert "do=sleep: stopped (--stop)" in result.out and "do=raise: not started (--stop)" in result.out


def test_a_pause_starts_nothing_until_it_ends(call, write_grid, records, grid_folder, meanwhile):
    seen = []

    def pause_and_resume():
        watch.give_order(grid_folder, "", pause=True)
        time.sleep(1.5)
        seen.extend(records())
        watch.give_order(grid_folder, "", pause=False)

    meanwhile(lambda: "seed=1" in records(), pause_and_resume)
    assert call(write_grid("grid: {seed: [1, 2]}\nfixed: {do: slow}")).code == 0
    assert seen == ["seed=1"] and len(records()) == 2


def test_orders_need_a_runner_and_a_run_of_its(call, write_grid, grid_folder):
    path = write_grid("grid: {seed: [1, 2]}")
    assert "required the folder of a grid that was run" in call(path, "--pause").err
    call(path)
    result = call(path, "--stop", "seed=1")
    assert result.code == 2 and "required a grid that is running, got one that nobody runs now" in result.err
    with only_runner(grid_folder, ignore):
        result = call(path, "--stop", "sed=1")
        assert result.code == 2 and "unknown run 'sed=1'; did you mean 'seed=1'" in result.err
        assert call(path, "--pause").out.startswith(f"asked process {os.getpid()} on ")
        assert (grid_folder / ".orders" / "pause.json").exists()
        assert call(path, "--resume").code == 0 and not (grid_folder / ".orders" / "pause.json").exists()
    assert call(path, "--stop", "x", "--pause").code == 2 and call("--watch", path, "--fresh").code == 2


def test_orders_to_an_earlier_runner_are_not_obeyed(tmp_path):
    write_json(tmp_path / ".orders" / "pause.json", {"pause": True})
    orders = watch.Orders(tmp_path, threading.Event())
    time.sleep(0.03)
    orders.look()
    assert not orders.paused and not orders.stopped


def test_a_grid_is_shown_until_it_ends_in_80_columns_and_without_what_a_terminal_would_obey(
    call, write_grid, grid_folder, capsys, meanwhile
):
    call(write_grid("grid: {seed: [1, 2], do: [ok, raise]}"))
    watch.watch(grid_folder)  # ended: shown once
    shown = capsys.readouterr().out
    assert "grid: nobody runs now\n4 runs: 2 ok, 2 failed\n" in shown and shown.count("ValueError: asked to") == 2
    ended = threading.Event()
    with only_runner(grid_folder, ignore):
        start_record(grid_folder / "seed=1,do=ok", "key", {}, {})
        write_json(grid_folder / "seed=1,do=ok" / "progress.json", {"text": "epoch 3/20 \x1b[31m" + "x" * 200})
        meanwhile(ended.is_set, lambda: update_record(grid_folder / "seed=1,do=ok", status="ok"))
        state = watch._read_state(grid_folder)
        text = watch.describe_grid(grid_folder, state, [*watch._list_runs(grid_folder, state.holder)], 80, 2)
        ended.set()
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80 and "\x1b" not in text and lines[-1] == "... and 2 more"
    assert lines[0].startswith(f"grid: process {os.getpid()} on ") and lines[1] == "4 runs: 3 waiting, 1 running"
    assert lines[4].startswith("seed=1,do=ok") and "epoch 3/20 " in lines[4]


def test_watching_ends_with_the_grid_and_with_ctrl_c(call, write_grid, grid_folder, capsys, monkeypatch, meanwhile):
    path = write_grid("grid: {seed: [1]}")
    call(path)
    held, release = threading.Event(), threading.Event()

    def hold():
        with only_runner(grid_folder, ignore):
            held.set()
            release.wait(10)

    meanwhile(lambda: True, hold)
    held.wait(10)
    meanwhile(lambda: True, release.set)
    assert call("--watch", path).code == 0

    def interrupt(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(watch, "_read_state", interrupt)
    assert call("--watch", grid_folder).code == 0


def test_a_grid_that_another_machine_took_is_left_at_once(
    call, write_grid, records, grid_folder, monkeypatch, meanwhile
):
    def take():
        content = json.loads((grid_folder / ".lock").read_text())
        content["process"]["host"] = "another"
        (grid_folder / ".lock").write_text(json.dumps(content))

    monkeypatch.setattr(lock, "BEAT", 0.05)
    meanwhile(lambda: (records().get("do=sleep") or {}).get("status") == "running", take)
    result = call(write_grid("grid: {do: [sleep, ok]}"))
    assert result.code == 130 and "another machine took this one for dead" in result.out
    assert records()["do=sleep"]["status"] == "running" and "do=ok" not in records()


def test_a_run_without_a_sign_of_life_is_started_again_once_and_then_failed(call, write_grid, records):
    result = call(write_grid("stall_minutes: 0.02\ngrid: {do: [sleep]}"))
    assert result.code == 1 and result.out.count("do=sleep: ended: no sign of life for 1s (stall_minutes)") == 2
    record = records()["do=sleep"]
    assert (record["status"], record["error"]) == ("failed", "no sign of life for 1s, twice (stall_minutes)")


def test_stall_minutes_is_checked(call, write_grid):
    result = call(write_grid("stall_minutes: soon"))
    assert result.code == 2 and "`stall_minutes` must be the minutes that it may be quiet" in result.err
