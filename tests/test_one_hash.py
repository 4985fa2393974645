"""The training notebook gives one hash, however it is run: the runner, the exported script, a real JupyterLab server."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from urllib.request import Request, urlopen

import nbformat
import numpy as np
import pytest
import websocket
import yaml
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from seglib.files import PROJECT

pytestmark = pytest.mark.slow

NOTEBOOK = PROJECT / "notebooks" / "02_train.ipynb"
# All that draws: augmentation, mixes of samples and of batches, dropout (DeepLabV3Plus has it), the order of an epoch.
PARAMETERS = {
    "image_size": 64, "architecture": "DeepLabV3Plus", "encoder": "tu-test_resnet", "encoder_weights": "", "lr": 3e-3,
    "epochs": 3, "batch_size": 8, "augmentation": ["elastic", "brightness", "dropout"],
    "mixing": {"mosaic": 0.3, "copy_paste": 0.5, "cutmix": 0.5}, "num_workers": 0, "seed": 21,
}  # fmt: skip
TOKEN = "of-this-test-only"


@pytest.fixture(scope="module", autouse=True)
def _same_threads():
    """Sums over pixels are made in another order with another number of threads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "2")
        yield


@pytest.fixture(scope="module")
def run_grid(tmp_path_factory, small_data):
    """Run the notebook on the command line, `grid` being what varies; give the folders of the runs by their names."""

    def run_grid(grid: dict, *options: str) -> dict[str, Path]:
        folder = tmp_path_factory.mktemp("grid")
        fixed = {name: value for name, value in PARAMETERS.items() if name not in grid}
        content = {"notebook": str(NOTEBOOK), "fixed": fixed | {"data_dir": str(small_data)}, "grid": grid}
        (folder / "grid.yaml").write_text(yaml.safe_dump(content))
        command = [sys.executable, str(PROJECT / "run_grid.py"), str(folder / "grid.yaml"), "--outputs", str(folder)]
        result = subprocess.run([*command, *options], capture_output=True, text=True, timeout=600)
        assert result.returncode == 0, result.stdout + result.stderr
        return {record.parent.name: record.parent for record in (folder / "grid").glob("*/record.json")}

    return run_grid


@pytest.fixture(scope="module")
def by_workers(run_grid) -> dict[str, Path]:
    """Through papermill, alone, with loaders of 0, 1 and 4 processes."""
    return run_grid({"num_workers": [0, 1, 4]})


@pytest.fixture(scope="module")
def expected(by_workers) -> tuple:
    return read_result(by_workers["num_workers=0"])


def read_result(run_dir: Path) -> tuple[str, str, int, bytes, list]:
    """All that must be the same: the weights' hash, precision and threads, every image's confusion matrix."""
    record = json.loads((run_dir / "record.json").read_text())
    assert record["status"] == "ok", record["error"]
    with np.load(run_dir / "confusion.npz", allow_pickle=False) as saved:
        confusion, image_ids = saved["confusion"], saved["image_ids"].tolist()
    assert confusion.sum() == len(image_ids) * PARAMETERS["image_size"] ** 2
    return record["weights_sha256"], record["precision"], record["threads"], confusion.tobytes(), image_ids


def write_parameterised(path: Path, data_dir: Path, run_dir: Path) -> None:
    """The notebook with the parameters in a cell below its own, as papermill puts them there."""
    values = PARAMETERS | {"data_dir": str(data_dir), "run_dir": str(run_dir)}
    notebook = load_notebook_node(str(NOTEBOOK))
    content = parameterize_notebook(notebook, values, kernel_name="python3", language="python")
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(content, path)


def test_loaders_of_0_1_and_4_processes_give_one_hash(by_workers, expected):
    assert len(by_workers) == 3
    for folder in by_workers.values():
        assert read_result(folder) == expected


def test_a_run_beside_another_gives_the_hash_that_it_gives_alone(run_grid, expected):
    folders = run_grid({"seed": [PARAMETERS["seed"], 22]}, "--workers", "2")
    assert read_result(folders["seed=21"]) == expected
    assert read_result(folders["seed=22"])[0] != expected[0]  # a hash of nothing would be the same too


def test_the_exported_script_gives_the_hash_of_papermill(tmp_path, small_data, expected):
    write_parameterised(tmp_path / "train.ipynb", small_data, tmp_path / "run")
    export = [sys.executable, "-m", "nbconvert", "--to", "script", str(tmp_path / "train.ipynb")]
    subprocess.run(export, check=True, capture_output=True, timeout=120)
    assert (tmp_path / "train.py").is_file(), "exported as text: language_info of the notebook has no file_extension"
    script = subprocess.run(
        [sys.executable, str(tmp_path / "train.py")], cwd=NOTEBOOK.parent, env=os.environ | {"MPLBACKEND": "agg"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert script.returncode == 0, script.stderr
    assert read_result(tmp_path / "run") == expected


def test_jupyterlab_gives_the_hash_of_papermill(tmp_path, small_data, expected):
    write_parameterised(tmp_path / "lab" / "train.ipynb", small_data, tmp_path / "run")
    with jupyterlab(tmp_path) as ask:
        content = ask("GET", "/api/contents/train.ipynb")["content"]
        wanted = {"path": "train.ipynb", "name": "", "type": "notebook", "kernel": {"name": "python3"}}
        session = ask("POST", "/api/sessions", wanted)
        sources = [cell["source"] for cell in content["cells"] if cell["cell_type"] == "code"]
        assert len(sources) > 10
        run_cells(ask.server, session["kernel"]["id"], sources)
        ask("DELETE", f"/api/sessions/{session['id']}")
    assert read_result(tmp_path / "run") == expected


@contextlib.contextmanager
def jupyterlab(folder: Path):
    """Start JupyterLab in `folder`/lab with settings of its own; give what asks its REST interface; shut it down."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {name: str(folder / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0", f"--ServerApp.root_dir={folder / 'lab'}", f"--IdentityProvider.token={TOKEN}",
    ]  # fmt: skip
    log = folder / "lab.log"
    with log.open("w") as file:
        server = subprocess.Popen(command, env=os.environ | own, stdout=file, stderr=file)

    def ask(method: str, path: str, body: object = None):
        headers = {"Authorization": f"token {TOKEN}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        with urlopen(Request(f"http://127.0.0.1:{port}{path}", data, headers, method=method), timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    ask.server = f"127.0.0.1:{port}"
    try:
        wait_for_server(ask, server, log)
        yield ask
        ask("POST", "/api/shutdown")
        assert server.wait(30) == 0, log.read_text()
    finally:
        server.kill()
        server.wait()


def wait_for_server(ask, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 90
    while True:
        assert server.poll() is None and time.monotonic() < deadline, log.read_text()
        with contextlib.suppress(OSError):  # not listening yet
            ask("GET", "/api/status")
            return
        time.sleep(0.2)


def run_cells(server: str, kernel_id: str, sources: list[str]) -> None:
    """Execute cells one after another over the kernel's websocket, as the browser does; stop at the first error."""
    address = f"ws://{server}/api/kernels/{kernel_id}/channels?session_id={uuid.uuid4().hex}&token={TOKEN}"
    channels = websocket.create_connection(address, timeout=300)
    try:
        for source in sources:
            execute_cell(channels, source)
    finally:
        channels.close()


def execute_cell(channels: websocket.WebSocket, source: str) -> None:
    """Send one cell and read until the kernel has replied and is idle again."""
    message_id = uuid.uuid4().hex
    header = {
        "msg_id": message_id,
        "msg_type": "execute_request",
        "username": "",
        "session": message_id,
        "version": "5.3",
    }
    content = {"code": source, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
    channels.send(
        json.dumps({"channel": "shell", "header": header, "parent_header": {}, "metadata": {}, "content": content})
    )
    replied = idle = False
    while not (replied and idle):
        message = json.loads(channels.recv())
        if message["parent_header"].get("msg_id") != message_id:
            continue
        if message["msg_type"] == "execute_reply":
            replied = True
            assert message["content"]["status"] == "ok", message["content"]
        idle = idle or (message["msg_type"] == "status" and message["content"]["execution_state"] == "idle")
