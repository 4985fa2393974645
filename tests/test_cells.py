"""02_train's cells run out of order: the result is right, or one line says which cell to run. No record is false.

A worker process executes the notebook's cells as a kernel does, and forks where a case begins: so each case starts from
the same state and costs no more than the cells that it runs. A record is true where it is, to the bit, that of a run of
the whole notebook from top to bottom with the parameters that it names.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import traceback
from itertools import product
from pathlib import Path

import pytest
from jupyter_client import KernelManager

from seglib.data.synthetic import make_synthetic
from seglib.files import PROJECT
from seglib.parameters import read_code_cells

NOTEBOOK = PROJECT / "notebooks" / "02_train.ipynb"
TINY = {
    "image_size": 64, "architecture": "Linknet", "encoder": "tu-test_resnet", "encoder_weights": "", "epochs": 2,
    "batch_size": 4, "precision": "float32", "lr": 0.01,
}  # fmt: skip
SAME = (  # of a record, whatever way led to it
    "weights_sha256", "metrics", "best_epoch", "best_epochs", "weights", "data_hash", "made_by_hand", "precision",
    "deterministic", "train_images", "val_images", "final_fit",
)  # fmt: skip
CHANGES = [
    "lr = 0.05", 'loss = {"dice": 1.0}', "seed = 5", "epochs = 3", "batch_size = 2", 'mixing = {"cutmix": 1.0}',
    'averaging = {"ema": {}}', "warmup_epochs = 0.5", "deterministic = False", 'augmentation = "none"',
    'final_fit = "train_all"',
]  # fmt: skip
MODEL, TRAINER, LOOP, LAST = 7, 13, 14, 21  # places of code cells
READY, TRAINED = TRAINER, LAST  # states: which cell was run last
DRAWING = (
    "save_figure", "plot_batch", "plot_schedule", "plot_history", "plot_class_iou", "plot_predictions", "LiveTraining",
)  # fmt: skip


def read_cells(parameters: dict) -> list[str]:
    """The notebook's code cells; the first has these parameters, as a person would have typed them."""
    first, *others = (cell["source"] for cell in read_code_cells(NOTEBOOK))
    for name, value in parameters.items():
        default = re.search(rf"(?m)^{name}: [^=]+ = (.*?)  #", first)
        first = first[: default.start(1)] + repr(value) + first[default.end(1) :]
    return [first, *others]


# In the worker: a shell, states of it, and what comes of cases.


def work(folder: Path) -> None:
    """Run cell after cell; after each, fork for every case that begins there. Write one line of JSON per case."""
    import torch
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    import seglib.inference.predict
    import seglib.training.trainer
    import seglib.viz

    torch.set_num_threads(1)
    for name in DRAWING:  # it is not what is tested, and takes longest
        setattr(seglib.viz, name, lambda *_, **__: None)
    task = json.loads((folder / "task.json").read_text())
    shell = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    shell.showtraceback = lambda *_, **__: None
    pid, cells = os.getpid(), task["cells"]
    for number in range(-1, len(cells)):
        if number >= 0:
            error = run_cell(shell, cells[number])
            assert error is None, (number, error)
        for after, steps in task["cases"]:
            if after == number:
                _fork(folder, pid, {"after": after}, lambda steps=steps: run_case(shell, cells, steps))


def _fork(folder: Path, pid: int, line: dict, run) -> None:
    outputs = Path(os.environ["SEGLIB_OUTPUTS"])
    shutil.rmtree(kept := folder / "kept", ignore_errors=True)
    outputs.mkdir(exist_ok=True)
    shutil.copytree(outputs, kept)
    child = os.fork()
    if child == 0:
        os.getpid = lambda: pid  # for the case it is the same process still
        try:
            line |= run()
        except BaseException:
            line |= {"broken": traceback.format_exc()}
        with (folder / "results.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        os._exit(0)
    os.waitpid(child, 0)
    shutil.rmtree(outputs)
    shutil.copytree(kept, outputs)


def run_case(shell, cells: list[str], steps: list) -> dict:
    """Run cells, by number, and lines of code, whatever fails on the way, as a person might; then read all records."""
    errors = []
    for step in steps:
        error = run_cell(shell, cells[step] if isinstance(step, int) else step)
        if error:
            errors.append([step, *error])
    return {"steps": steps, "errors": errors, "records": read_records()}


def run_cell(shell, source: str) -> list | None:
    """The error of a cell: its type, its words, and the innermost file of its traceback."""
    result = shell.run_cell(source, store_history=True)
    error = result.error_before_exec or result.error_in_exec
    if error is None:
        return None
    frames = traceback.extract_tb(error.__traceback__)
    return [type(error).__name__, str(error), frames[-1].filename if frames else ""]


def read_records() -> list[dict]:
    """Every finished run on disk: what its record says, and whether its weights are those."""
    from seglib.training.checkpoint import hash_weights, load_checkpoint

    found = []
    for path in sorted(Path(os.environ["SEGLIB_OUTPUTS"]).glob("notebooks/*/record.json")):
        record = json.loads(path.read_text())
        if record["status"] == "ok":
            best = path.parent / "best.pt"
            weights = hash_weights(load_checkpoint(best, ("model",))["model"]) if best.is_file() else "there are none"
            record["final_fit"] = (record.get("final_fit") or {}).get("weights_sha256")  # the rest of it is time
            found.append({"params": record["params"], "on_disk": weights} | {name: record[name] for name in SAME})
    return found


# In the test: cases, and what they must come to.


def execute(folder: Path, data_dir: Path, cases: list[tuple[int, list]], *changes: str) -> list[dict]:
    """What came of each case, (after which cell, steps), behind runs from top to bottom, one for each change."""
    cells = read_cells(TINY | {"data_dir": str(data_dir)})
    clean = [(-1, [0, *([line] if line else []), *range(1, len(cells))]) for line in ("", *changes)]
    (folder / "task.json").write_text(json.dumps({"cells": cells, "cases": clean + cases}))
    own = {"SEGLIB_OUTPUTS": str(folder / "outputs"), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    own["PYTHONPATH"] = str(PROJECT)
    command = [sys.executable, __file__, str(folder)]
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, cwd=NOTEBOOK.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def find_faults(results: list[dict]) -> list[str]:
    """What is neither right nor one line, and every record that is not true."""
    true = {}
    for result in results:
        if result["after"] == -1:
            assert not result["errors"] and len(result["records"]) == 1, result
            (record,) = result["records"]
            true[json.dumps(record["params"], sort_keys=True)] = record
    faults = []
    for result in results:
        case = f"after {result['after']}: {result.get('steps')}"
        faults += [f"{case}: {result['broken']}"] if "broken" in result else []
        for step, kind, words, file in result.get("errors", []):
            # A name that is not there says as clearly that the cell which makes it was not run.
            in_cell = kind == "NameError" and "ipython-input" in file
            if not (in_cell or kind.startswith("InputError")) or "\n" in words:
                faults.append(f"{case}: {step} raises {kind}: {words}")
        for record in result.get("records", []):
            expected = true.get(json.dumps(record["params"], sort_keys=True), {})
            false = [name for name in SAME if record[name] != expected.get(name)]
            if false or record["on_disk"] != record["weights_sha256"]:
                faults.append(f"{case}: false record: {false or 'other weights on disk'}")
    return faults


@pytest.fixture(scope="module")
def few_images(tmp_path_factory) -> Path:
    return make_synthetic(tmp_path_factory.mktemp("few") / "data", num_images=12, image_size=64, seed=3)


def test_cells_run_again_give_the_same_result_or_one_line(tmp_path, few_images):
    cases = [
        (READY, [MODEL, LOOP, LAST]),
        (READY, ["lr = 0.05", LOOP, LAST]),
        (TRAINED, [1, LAST]),  # a new folder, without results
        (TRAINED, [MODEL, LAST]),
        (TRAINED, [MODEL, TRAINER]),
        (TRAINED, ["lr = 0.05", *range(2, LAST + 1)]),
        (TRAINED, ["seed = 5", 1, *range(MODEL, LAST + 1)]),  # loaders of the old seed
    ]
    results = execute(tmp_path, few_images, cases)
    assert find_faults(results) == []
    words = [" | ".join(error[2] for error in result["errors"]) for result in results[-len(cases) :]]
    assert "compute_loss: required a call of the trainer's model, got none; run the cells of the model" in words[0]
    assert "trainer: lr was 0.01 when the run was opened and is 0.05 now; run the cell with open_run" in words[1]
    assert words[2:4] == ["", ""]
    assert "trainer: the optimizer is of another model; run the optimizer's cell again" in words[4]
    assert "trainer: lr was 0.01 when the run was opened" in words[5]
    assert "DataLoader was built with seed 21, the parameter is 5; run its cell and those after it again" in words[6]


@pytest.mark.slow
def test_every_pair_of_cells_of_a_finished_run_is_right_or_one_line(tmp_path, few_images):
    cases = [(TRAINED, [*pair, LAST]) for pair in product(range(LAST + 1), repeat=2)]
    assert find_faults(execute(tmp_path, few_images, cases)) == []


@pytest.mark.slow
def test_every_pair_of_cells_before_the_training_is_right_or_one_line(tmp_path, few_images):
    cases = [(READY, [*pair, LOOP, LOOP + 1, LAST]) for pair in product(range(LAST + 1), repeat=2)]
    assert find_faults(execute(tmp_path, few_images, cases)) == []


@pytest.mark.slow
def test_cells_that_are_passed_over_are_missed_in_one_line(tmp_path, few_images):
    cases = [(last, [cell, LAST]) for last in range(LAST) for cell in range(last + 2, LAST + 1)]
    assert find_faults(execute(tmp_path, few_images, cases)) == []


@pytest.mark.slow
@pytest.mark.parametrize("line", CHANGES)
def test_a_parameter_that_changes_reaches_all_cells_or_stops_in_one_line(tmp_path, few_images, line):
    """From any cell on, with the run opened again or not, or with one cell passed over."""
    cases = [(TRAINED, [line, *opened, *range(cell, LAST + 1)]) for cell in range(2, LAST + 1) for opened in ([], [1])]
    cases += [(TRAINED, [line, *(x for x in range(1, LAST + 1) if x != cell)]) for cell in range(2, TRAINER)]
    assert find_faults(execute(tmp_path, few_images, cases, line)) == []


@pytest.mark.slow
def test_a_real_kernel_says_the_same(tmp_path, few_images):
    manager = KernelManager(kernel_name="python3", transport="ipc", connection_file=str(tmp_path / "kernel.json"))
    environment = os.environ | {"SEGLIB_OUTPUTS": str(tmp_path / "outputs"), "PYTHONPATH": str(PROJECT)}
    manager.start_kernel(env=environment, cwd=str(NOTEBOOK.parent))
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=120)
    cells = read_cells(TINY | {"data_dir": str(few_images)})

    def run(*steps: int | str) -> list[str]:
        replies = [client.execute_interactive(cells[step] if isinstance(step, int) else step, output_hook=lambda _: 0)
                   for step in steps]  # fmt: skip
        return [reply["content"]["evalue"] for reply in replies if reply["content"]["status"] == "error"]

    try:
        assert run(*range(LAST + 1)) == []
        (path,) = (tmp_path / "outputs").glob("notebooks/*/record.json")
        before = json.loads(path.read_text())
        assert run(MODEL, LAST) == [] == run(LOOP, LOOP + 1, LAST)
        assert json.loads(path.read_text())["weights_sha256"] == before["weights_sha256"]
        (line,) = run(TRAINER)
        assert line == "trainer: the optimizer is of another model; run the optimizer's cell again"
        (line,) = run("lr = 0.05", LOOP)
        assert line.startswith(
            "trainer: lr was 0.01 when the run was opened and is 0.05 now; run the cell with open_run"
        )
        assert run(*range(1, LAST + 1)) == []
        paths = sorted((tmp_path / "outputs").glob("notebooks/*/record.json"))
        assert [json.loads(path.read_text())["params"]["lr"] for path in paths] == [0.01, 0.05]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


if __name__ == "__main__":
    work(Path(sys.argv[1]))
