"""In which order runs start, what a deadline leaves for later, and a second try, alone, of what ran out of memory."""

import datetime
from dataclasses import replace

import pytest

from seglib.files import write_json
from seglib.runs import order, schedule
from seglib.runs.grid import Job, load_grid
from seglib.runs.local import LocalMachine
from seglib.runs.order import read_deadline
from seglib.runs.schedule import run_jobs

pytestmark = pytest.mark.usefixtures("stand_in")
NOW = datetime.datetime(2026, 12, 1, 22, 0)
# Runs out of memory where another run is on the machine, as long as one of weight 0 is; each notes when it ran.
CROWDED = """
if job["parameters"].get("weight") == 1.0:
    folders = [path for path in os.listdir(os.path.dirname(folder)) if "weight" in path]
    others = [os.path.join(os.path.dirname(folder), path, "here") for path in folders]
    time.sleep(0.5)
    if do == "never" or any(map(os.path.exists, others)):
        update_record(folder, status="oom", error="OutOfMemoryError: CUDA out of memory")
        sys.exit()
else:
    open(os.path.join(folder, "here"), "w").close()
    time.sleep(1.5)
    os.remove(os.path.join(folder, "here"))
"""


@pytest.fixture
def finish(write_grid, tmp_path):
    """Write the record of a finished run of another grid: it took so many seconds."""

    def finish(path, seconds, **params):
        run = load_grid(path, tmp_path / "outputs", {}).runs[0]
        record = {"status": "ok", "params": run.parameters | params, "seconds": seconds, "key_parts": run.key}
        write_json(tmp_path / "outputs" / "before" / str(params) / "record.json", record)

    return finish


def make_job(folder, do="ok"):
    return Job(folder.name, folder / "n.ipynb", folder, {"notebook": "a"}, {"do": do}, {})


def started(result):
    """The names of the runs in the order in which they started."""
    lines = [line.split("] ")[1] for line in result.out.splitlines() if line.startswith("[")]
    return [line for line in lines if ":" not in line]


def test_the_longest_start_first_and_what_is_not_known_keeps_its_place(call, write_grid, finish):
    path = write_grid("grid: {weight: [1, 2, 3, 4, 5]}")
    assert started(call(path)) == [f"weight={weight}" for weight in (1, 2, 3, 4, 5)]
    path = write_grid("fixed: {seed: 22}\ngrid: {weight: [1, 2, 13, 4, 5, 16]}")
    for weight, seconds in ((1, 10), (2, 30), (4, 20), (5, 30)):
        finish(path, seconds, weight=float(weight))
    names = [f"weight={weight}" for weight in (2, 5, 13, 4, 1, 16)]
    assert started(call(path, "--fresh")) == names, "13 and 16 were never measured; 2 and 5 are alike"


def test_what_halving_hands_over_starts_the_longest_first(tmp_path, write_grid, finish):
    path = write_grid("grid: {weight: [1, 2, 3]}")
    finish(path, 30, weight=3.0)
    finish(path, 10, weight=1.0)
    grid = load_grid(path, tmp_path / "outputs", {})
    jobs = [make_job(run.folder) for run in grid.runs]
    jobs = [replace(job, key=run.key, parameters=run.parameters) for job, run in zip(jobs, grid.runs, strict=True)]
    assert [job.label for job in order.Order(grid).sort(jobs)] == ["weight=3", "weight=2", "weight=1"]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("08:00", "2026-12-02 08:00"),
        ("'22:01'", "2026-12-01 22:01"),
        ("22:01", "2026-12-01 22:01"),
        ("7:30", "2026-12-02 07:30"),
        ("2026-12-24 08:00", "2026-12-24 08:00"),
        ("2026-12-24 08:00:30", "2026-12-24 08:00:30"),
    ],
)
def test_a_deadline_is_the_next_such_time(write_grid, tmp_path, written, expected):
    grid = load_grid(write_grid(f"deadline: {written}\ngrid: {{seed: [1]}}"), tmp_path / "outputs", {})
    assert str(read_deadline(grid.file.deadline, NOW)).startswith(expected)


@pytest.mark.parametrize("written", ["8", "0.5", "25:00", "tomorrow", "[8]", "2026-12-24", "true", "08.00"])
def test_what_is_no_time_is_refused_in_one_line_that_says_to_quote_it(call, write_grid, written):
    result = call(write_grid(f"deadline: {written}\ngrid: {{seed: [1]}}"), "--dry-run")
    assert result.code == 2 and result.err.count("\n") == 1, result
    assert "`deadline` must be a time of day or a day and a time, quoted, such as '08:00'" in result.err


def test_before_a_deadline_each_condition_has_its_first_seed_first_and_the_plan_says_how_many_end(
    call, write_grid, finish, monkeypatch
):
    text = "grid: {weight: [1, 2], seed: [1, 2, 3]}"
    path = write_grid(f"deadline: '2099-01-01 08:00'\n{text}")
    for weight, seconds in ((1, 60), (2, 3600)):
        finish(path, seconds, weight=float(weight), seed=9)
    plan = call(path, "--dry-run", "--workers", 2).out
    line = "deadline Thu 2099-01-01 08:00: 6 of 6 runs are expected to end by then, each condition's first seed first"
    assert line in plan
    assert started(call(path)) == [f"weight={weight},seed={seed}" for seed in (1, 2, 3) for weight in (2, 1)]
    soon = datetime.datetime.now() + datetime.timedelta(hours=1, minutes=10)
    path = write_grid(f"deadline: '{soon:%Y-%m-%d %H:%M:%S}'\n{text}")
    assert "4 of 6 runs are expected to end by then" in call(path, "--dry-run", "--fresh").out


def test_a_run_that_would_end_after_the_deadline_is_left_for_the_same_command(call, write_grid, finish, records):
    soon = datetime.datetime.now() + datetime.timedelta(minutes=10)
    path = write_grid(f"deadline: '{soon:%Y-%m-%d %H:%M:%S}'\ngrid: {{weight: [1, 2, 3]}}")
    finish(path, 3600, weight=1.0)
    result = call(path)
    assert result.code == 0 and [*records()] == ["weight=2", "weight=3"]
    line = f"1 not started, since they would end after the deadline, {soon:%a %Y-%m-%d %H:%M}: weight=1"
    assert f"{line}; the same command starts them later" in result.out
    later = write_grid("grid: {weight: [1, 2, 3]}")
    assert call(later).code == 0 and records()["weight=1"]["status"] == "ok", "the deadline is no part of a key"
    assert call(later, "--dry-run").out.count("skip") == 3


def test_after_the_deadline_nothing_starts_and_a_failed_run_is_1_as_ever(call, write_grid, records):
    assert call(write_grid("deadline: '2020-01-01 08:00'\ngrid: {seed: [1, 2]}")).code == 0 and not records()
    soon = datetime.datetime.now() + datetime.timedelta(minutes=10)
    path = write_grid(f"deadline: '{soon:%Y-%m-%d %H:%M:%S}'\ngrid: {{do: [raise, ok]}}")
    assert call(path).code == 1 and len(records()) == 2


def test_a_run_that_goes_on_needs_only_the_rest(tmp_path):
    job = replace(make_job(tmp_path / "a"), parameters={"epochs": 10})
    assert order._share_left(job) == 1
    job.run_dir.mkdir()
    (job.run_dir / "history.csv").write_text("epoch,miou\n1,0.1\n6,0.2\n")
    assert order._share_left(job) == 0.4 and order._share_left(replace(job, stop_after=8)) == 0.2
    write_json(job.run_dir / "record.json", {"status": "ok"})
    assert order._share_left(job) == 1, "with --fresh it begins again"


@pytest.fixture
def crowded(stand_in):
    text = stand_in.read_text()
    stand_in.write_text(text.replace('if do == "kill":', f'{CROWDED}\nif do == "kill":'))


@pytest.mark.usefixtures("crowded")
def test_what_ran_out_of_memory_beside_another_is_tried_once_more_alone(call, write_grid, records):
    path = write_grid("grid: {weight: [0, 1]}")
    result = call(path, "--workers", 2)
    assert result.code == 0 and {each["status"] for each in records().values()} == {"ok"}, result
    assert result.out.count("weight=1: oom") == 1
    assert "weight=1: once more, alone, when those ended that ran beside it" in result.out
    assert "weight=1: ok" in result.out


@pytest.mark.usefixtures("crowded")
def test_a_second_time_counts_and_so_does_the_first_of_one_that_was_alone(call, write_grid, records):
    path = write_grid("grid: {weight: [0, 1]}\nfixed: {do: never}")
    result = call(path, "--workers", 2)
    assert result.code == 1 and result.out.count("weight=1: oom") == 2
    assert result.out.count("once more, alone") == 1 and records()["weight=1"]["status"] == "oom"
    again = call(path, "--workers", 2)
    assert again.out.count("weight=1: oom") == 1 and "once more" not in again.out


def test_alone_means_one_card_of_a_machine_with_several(tmp_path):
    cards = [{"CUDA_VISIBLE_DEVICES": name} for name in ("a", "b", "a", "b")]
    place = LocalMachine(environments=cards)
    first = place.start(make_job(tmp_path / "1", "sleep"))
    assert first.room == "a" and place.has_free_room()
    second = place.start(make_job(tmp_path / "2", "sleep"), alone=True)
    assert second.room == "b" and place.slots == 3 and not place.has_free_room()
    third = place.start(make_job(tmp_path / "3", "sleep"))
    assert third.room == "a" and not place.free
    for process in (first, second, third):
        process.kill()
        process.close(ended_well=False)
    assert place.slots == 4 and len(place.free) == 4 and place.has_free_room()


def test_a_place_that_knows_no_rooms_gives_no_second_try(tmp_path, stand_in):
    stand_in.write_text(
        stand_in.read_text().replace(
            'if do == "raise"', 'if do == "oom":\n    update_record(folder, status="oom")\nelif do == "raise"'
        )
    )
    machine, lines = LocalMachine(2), []

    class Elsewhere:
        slots, leaves = 2, False

        def start(self, job):
            process = machine.start(job)
            del process.room
            return process

    jobs = [make_job(tmp_path / "a", "oom"), make_job(tmp_path / "b", "slow")]
    assert not run_jobs(jobs, Elsewhere(), lines.append, lambda text: None)
    assert not any("once more" in line for line in lines) and schedule.POLL < 0.1
