"""Slots: which GPU and how many threads each run gets; a script stands in for nvidia-smi."""

import itertools

import pytest

from seglib.errors import InputError
from seglib.runs import local, slots
from seglib.runs.grid import Job
from seglib.runs.schedule import run_jobs
from seglib.runs.slots import choose_slots, find_gpus

UUIDS = [f"GPU-{number}a0f6f6e-1c5d" for number in range(8)]


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Write an nvidia-smi that lists what it is given; there is no other on the PATH, and the environment names none."""
    for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(slots, "count_cores", lambda: 16)
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def write(lines, code=0):
        script = folder / "nvidia-smi"
        script.write_text("#!/bin/sh\ncat <<END\n" + "\n".join(lines) + f"\nEND\nexit {code}\n")
        script.chmod(0o755)

    write(f"GPU {number}: NVIDIA A100-SXM4-40GB (UUID: {name})" for number, name in enumerate(UUIDS))
    return write


def gpus_of(chosen):
    return [slot.get("CUDA_VISIBLE_DEVICES") for slot in chosen]


@pytest.mark.parametrize(
    ("gpus", "workers", "per_gpu", "expected"),
    [
        (None, None, 2, [None]),
        (None, 1, 1, [None]),
        (None, 3, 1, UUIDS[:3]),
        (None, 0, 1, UUIDS),
        ("all", None, 1, UUIDS),
        ("0,1", None, 1, UUIDS[:2]),
        ("1, 3", None, 2, [UUIDS[1], UUIDS[3]] * 2),
        ("1,3", 3, 1, [UUIDS[1], UUIDS[3], UUIDS[1]]),
        ("GPU-5,0", None, 1, [UUIDS[5], UUIDS[0]]),
        ("none", None, 2, [""]),
        ("none", 2, 1, ["", ""]),
        ("none", 0, 1, [""] * 4),
    ],
)
def test_runs_are_dealt_over_the_gpus(nvidia_smi, gpus, workers, per_gpu, expected):
    assert gpus_of(choose_slots(gpus, workers, per_gpu)) == expected


@pytest.mark.parametrize(
    ("gpus", "words"),
    [
        ("8", "required all, none, or 0 to 7 or one of GPU-0a0f6f6e-1c5d"),
        ("0,0", "required each GPU once; for several runs on one set per_gpu"),
        ("0,", "got ''"),
        ("-1", "got '-1'"),
        ("GPU-", "got 'GPU-'"),
    ],
)
def test_gpus_that_are_not_there_are_refused(nvidia_smi, gpus, words):
    with pytest.raises(InputError, match=words):
        choose_slots(gpus, None)


def test_a_run_on_several_gpus_gets_them_together(nvidia_smi, monkeypatch):
    assert gpus_of(choose_slots("0,1,2,5,6", None, 1, 2)) == [",".join(UUIDS[:2]), f"{UUIDS[2]},{UUIDS[5]}"]
    assert {slot["OMP_NUM_THREADS"] for slot in choose_slots("all", None, 1, 2)} == {"2"}
    assert gpus_of(choose_slots("none", 2, 1, 2)) == ["", ""]
    with pytest.raises(InputError, match="`gpus_per_run`: required 2 GPUs, got 1"):
        choose_slots("3", None, 1, 2)


@pytest.mark.parametrize(("machine", "found"), [("arm64", [slots._MPS]), ("x86_64", [])])
def test_apples_gpu_is_one_slot_that_needs_no_variable(nvidia_smi, monkeypatch, machine, found):
    monkeypatch.setattr(slots.sys, "platform", "darwin")
    monkeypatch.setattr(slots.platform, "machine", lambda: machine)
    assert find_gpus() == found
    assert gpus_of(choose_slots(None, 2)) == [None, None]


@pytest.mark.parametrize("code", [0, 9])
def test_without_a_gpu_runs_go_to_the_cpu_and_asking_for_one_is_refused(nvidia_smi, code):
    nvidia_smi(["No devices found."], code)
    assert gpus_of(choose_slots(None, 0)) == [None] * 4
    for gpus in ("all", "0"):
        with pytest.raises(InputError, match=r"required a GPU, got none|a GPU, and there is none"):
            choose_slots(gpus, None)


@pytest.mark.parametrize(
    ("visible", "found"),
    [("2,MIG-7", ["2", "MIG-7"]), ("1,-1,3", ["1"]), ("", []), ("-1", []), (" 3 ", ["3"])],
)
def test_what_the_environment_hides_is_not_used(nvidia_smi, monkeypatch, visible, found):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert find_gpus() == found


def test_a_divided_gpu_counts_by_its_parts(nvidia_smi):
    nvidia_smi(
        [
            "GPU 0: NVIDIA H100 (UUID: GPU-a)",
            "  MIG 3g.40gb     Device  0: (UUID: MIG-1)",
            "  MIG 3g.40gb     Device  1: (UUID: MIG-2)",
            "GPU 1: NVIDIA H100 (UUID: GPU-b)",
        ]
    )
    assert find_gpus() == ["MIG-1", "MIG-2", "GPU-b"]


def test_without_nvidia_smi_the_driver_says_which_gpus_this_container_has(nvidia_smi, tmp_path, monkeypatch):
    for minor, name in enumerate(("GPU-a", "GPU-b")):
        folder = tmp_path / "gpus" / f"0000:0{minor}:00.0"
        folder.mkdir(parents=True)
        (folder / "information").write_text(f"Model: \t\t NVIDIA H100\nGPU UUID: \t {name}\nDevice Minor: \t {minor}\n")
    (tmp_path / "nvidia1").touch()
    monkeypatch.setattr(slots, "_DRIVER", tmp_path / "gpus")
    monkeypatch.setattr(slots, "_DEVICES", tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    assert find_gpus() == ["GPU-b"]


def test_cores_are_divided_by_the_runs_unless_the_environment_says_how_many(nvidia_smi, monkeypatch):
    assert {slot["OMP_NUM_THREADS"] for slot in choose_slots("none", 3)} == {"5"}
    assert {slot["OMP_NUM_THREADS"] for slot in choose_slots("none", 99)} == {"1"}
    assert choose_slots(None, 1) == [{}]
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert choose_slots("none", 2) == [{"CUDA_VISIBLE_DEVICES": ""}] * 2


@pytest.mark.parametrize(("quota", "cores"), [("150000 100000", 2), ("max 100000", 6)])
def test_a_containers_quota_is_no_more_cores_than_it_is_worth(tmp_path, monkeypatch, quota, cores):
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(slots, "_CPU_MAX", tmp_path / "cpu.max")
    monkeypatch.setattr(slots.os, "sched_getaffinity", lambda pid: range(12))
    monkeypatch.setattr(slots.psutil, "cpu_count", lambda logical: 6)
    assert slots.count_cores() == cores


@pytest.mark.parametrize("value", [0, "two", True, 1.5])
def test_per_gpu_is_a_number_of_runs(call, write_grid, value):
    result = call(write_grid(f"grid: {{seed: [1]}}\nper_gpu: {value}"), "--dry-run")
    assert result.code == 2 and "`per_gpu` must be the number of runs on one GPU" in result.err


def test_gpus_that_stand_idle_are_named_once(nvidia_smi, call, write_grid, stand_in):
    path = write_grid("grid: {seed: [1, 2]}\nper_gpu: 2")
    hint = "8 GPUs are here, and one run at a time uses 1; --gpus all uses all"
    assert call(path, "--dry-run").out.startswith(hint)
    assert hint not in call(path, "--dry-run", "--workers", 1).out + call(path, "--dry-run", "--gpus", "0").out
    result = call(path, "--dry-run", "--gpus", "9")
    assert result.code == 2 and result.err.startswith("--gpus: required all, none, or 0 to 7")


@pytest.fixture
def with_slot(stand_in):
    """The stand-in keeps its slot in the record."""
    seen = 'gpu=os.environ.get("CUDA_VISIBLE_DEVICES"), threads=os.environ.get("OMP_NUM_THREADS"), began=began,'
    stand_in.write_text(stand_in.read_text().replace("began=began,", seen))


@pytest.mark.usefixtures("with_slot")
def test_sixty_runs_in_eight_slots_begin_in_order_and_no_gpu_is_ever_double(nvidia_smi, call, write_grid, records):
    result = call(write_grid(f"grid: {{seed: {[*range(60)]}}}"), "--gpus", "all")
    found = records()
    begun = [line.split("] ")[1] for line in result.out.splitlines() if line.startswith("[") and ": " not in line]
    assert result.code == 0 and begun == [f"seed={seed}" for seed in range(60)] and {*begun} == {*found}
    assert {record["gpu"] for record in found.values()} == {*UUIDS}
    assert {record["threads"] for record in found.values()} == {"2"}
    for name in UUIDS:
        spans = sorted((record["began"], record["ended"]) for record in found.values() if record["gpu"] == name)
        assert len(spans) > 1
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))


@pytest.mark.usefixtures("with_slot")
def test_a_slot_is_free_again_after_a_run_that_failed_or_was_killed(nvidia_smi, call, write_grid, records):
    result = call(write_grid("grid: {do: [crash, kill, raise, ok], seed: [1, 2]}"), "--gpus", "0,1")
    ended = [record for record in records().values() if record["status"] == "ok"]
    assert result.code == 1 and len(ended) == 2 and len(records()) == 8
    assert {record["gpu"] for record in ended} <= {*UUIDS[:2]}


def test_a_run_that_cannot_be_started_takes_no_slot(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "COMMAND", ("/no/such/program",))
    lines, jobs = [], [Job(name, tmp_path, tmp_path / name, {}, {}, {}) for name in "abc"]
    place = local.LocalMachine(environments=[{"A": "1"}, {"A": "2"}])
    assert not run_jobs(jobs, place, lines.append, print)
    assert len(lines) == 3 and all("failed, not started" in line for line in lines) and len(place.free) == 2
