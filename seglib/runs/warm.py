"""Warm starts: a process that has imported what every run needs forks each run, which forks its kernel: no import twice.

It has no CUDA context, no threads (but OpenBLAS's, which end before a fork and begin after it) and none of seglib's modules,
so an edited seglib counts for the next run; sockets, event loop and threads of a kernel begin after the fork. Where it
cannot be had (no Linux, a library that opens the GPU when it is imported, `SEGLIB_WARM=0`), or when it has ended, runs
start as processes of their own, as they do without.
"""

import atexit
import contextlib
import gc
import importlib
import importlib.metadata
import io
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import IO, Any

# What runs import; none of it starts a thread or opens a device. A library that is not there is missed where it is used.
LIBRARIES = (
    "torch", "torchvision", "timm", "segmentation_models_pytorch", "albumentations", "cv2", "pandas", "scipy.stats",
    "scipy.ndimage", "matplotlib.pyplot", "seaborn", "pycocotools.mask", "psutil", "yaml", "papermill", "nbconvert",
    "ipykernel.kernelapp", "ipykernel.zmqshell", "ipykernel.ipkernel",
)  # fmt: skip
LARGEST = 1 << 20  # bytes of a message: a run's environment
KEPT = ("seglib._torchvision",)  # holds torchvision's operators


def is_possible() -> bool:
    """Whether runs can be forked here, and may be: macOS's frameworks do not survive it, Windows has none."""
    return os.environ.get("SEGLIB_WARM") != "0" and sys.platform == "linux" and hasattr(os, "pidfd_open")


# In run_grid.py.


class WarmParent:
    """The process that forks runs; it ends with this one."""

    def __init__(self, folder: os.PathLike):
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.set_inheritable(True)
        read_at_import = (
            {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
        )
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "seglib.runs.warm", str(theirs.fileno())],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder,
                env=read_at_import, close_fds=False, start_new_session=True,
            )  # fmt: skip
        self.runs: dict[int, WarmRun] = {}
        self.began, self.alive, self.ready = 0, True, False  # ready: it has imported what it forks runs with

    def start(self, log: IO, environment: Mapping[str, str], start_cold: Callable[[], subprocess.Popen]) -> "WarmRun":
        """Have a run forked, as soon as the libraries are imported; OSError where it cannot be asked for."""
        theirs, ours = os.pipe()
        try:
            self.began += 1
            message = json.dumps({"run": self.began, "environment": dict(environment)}).encode()
            socket.send_fds(self.channel, [message], [theirs, log.fileno()])
        except OSError:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        self.runs[self.began] = run = WarmRun(self, self.began, ours, start_cold)
        return run

    def listen(self) -> None:
        """Take what it says of its runs: which process each is, and how it ended."""
        while self.alive:
            try:
                message = self.channel.recv(LARGEST, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            if not message:
                self.alive = False
                code = self.process.wait()
                print(f"the process that runs are forked from has ended ({code}): from here each starts by itself")
                return
            said = json.loads(message)
            if said.get("ready"):
                self.ready = True
                continue
            number = said.pop("run")
            vars(self.runs[number]).update(said)
            if "returncode" in said:
                del self.runs[number]


class WarmRun:
    """A forked run, with what `subprocess.Popen` has of it."""

    def __init__(self, parent: WarmParent, number: int, stdin: int, start_cold: Callable[[], subprocess.Popen]):
        self.parent, self.number, self.stdin, self.start_cold = parent, number, open(stdin, "w"), start_cold  # noqa: SIM115
        self.pid = self.returncode = self.cold = None

    def poll(self) -> int | None:
        self.parent.listen()
        if self.returncode is None and not self.parent.alive:
            self._poll_alone()
        return self.returncode

    def _poll_alone(self) -> None:
        """Without the parent: a run that never began starts by itself, one that did is a child of this process now."""
        if self.pid is None:
            self.cold = self.start_cold()
            self.pid, self.stdin = self.cold.pid, self.cold.stdin
        if self.cold:
            self.returncode = self.cold.poll()
            return
        with contextlib.suppress(ChildProcessError):
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
            return
        self.returncode = None if os.path.exists(f"/proc/{self.pid}") else 0  # its record says how it ended

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            if self.parent.alive:
                self.parent.channel.send(json.dumps({"run": self.number, "signal": number}).encode())
            else:
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self) -> int:
        while self.poll() is None:
            time.sleep(0.01)
        return self.returncode


# In the process that forks.


def serve(channel: socket.socket) -> None:
    """Fork a run for each message; returns in the runs alone."""
    # jsonschema, which nbformat imports, builds a grammar of web addresses where it can: see execute.py.
    sys.modules.setdefault("rfc3987_syntax", None)
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    with contextlib.suppress(ImportError):
        _rehearse()
    if _has_opened_gpu():
        sys.exit(1)
    gc.collect()
    gc.freeze()  # a collection in a run would copy all pages
    channel.send(json.dumps({"ready": True}).encode())
    waiting, runs = selectors.DefaultSelector(), {}
    waiting.register(channel, selectors.EVENT_READ)
    while True:
        for key, _ in waiting.select():
            if key.fileobj is not channel:
                number, process = key.data
                code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
                waiting.unregister(key.fileobj)
                os.close(key.fileobj)
                del runs[number]
                channel.send(json.dumps({"run": number, "returncode": code}).encode())
                continue
            message, handles, *_ = socket.recv_fds(channel, LARGEST, 2)
            if not message:  # the runner is gone; each run hears of it by itself
                os._exit(0)
            asked = json.loads(message)
            number = asked["run"]
            if "signal" in asked:
                if number in runs:
                    signal.pidfd_send_signal(runs[number], asked["signal"])
                continue
            process = os.fork()
            if not process:
                waiting.close()
                channel.close()
                for handle in runs.values():
                    os.close(handle)
                _become_run(*handles, asked["environment"])
                return
            for handle in handles:
                os.close(handle)
            runs[number] = os.pidfd_open(process)
            waiting.register(runs[number], selectors.EVENT_READ, (number, process))
            channel.send(json.dumps({"run": number, "pid": process}).encode())


def _has_opened_gpu() -> bool:
    """Whether CUDA's driver was begun here: it does not work in what is forked then."""
    found = []
    for handle in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the list's own
            found.append(os.readlink(f"/proc/self/fd/{handle}"))
    return any(name.startswith("/dev/nvidia") for name in found)


def _rehearse() -> None:
    """A page and a figure, thrown away: what these compile and look up when they are first made is there for all runs."""
    import nbformat
    from matplotlib.figure import Figure
    from nbconvert import HTMLExporter

    cells = [nbformat.v4.new_markdown_cell("**a** | b"), nbformat.v4.new_code_cell("x = f'{1}'  # of\nx")]
    HTMLExporter(embed_images=True).from_notebook_node(nbformat.v4.new_notebook(cells=cells))
    figure = Figure()
    figure.add_subplot(title="a").plot([0, 1])
    figure.savefig(io.BytesIO())


def _become_run(stdin: int, log: int, environment: Mapping[str, str]) -> None:
    os.setsid()
    for number, handle in enumerate((stdin, log, log)):
        os.dup2(handle, number)
    for handle in (stdin, log):
        os.close(handle)
    _begin(environment)


def _begin(environment: Mapping[str, str]) -> None:
    """What a new process would have: its environment, seglib as it is on disk, signals, random state, threads."""
    os.environ.clear()
    os.environ.update(environment)
    for name in [name for name in sys.modules if name.split(".")[0] == "seglib" and name not in KEPT]:
        del sys.modules[name]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # Python's own generator does so by itself
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.seed()
    threads = environment.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and "torch" in sys.modules:
        from threadpoolctl import threadpool_limits

        sys.modules["torch"].set_num_threads(int(threads))
        threadpool_limits(int(threads))


def leave() -> None:
    """End the process as Python does, but do not take its modules apart, which takes half a second after torch."""
    threading._shutdown()  # waits for threads that others started, as multiprocessing's processes do
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


# In a run: its kernel is forked at the very beginning, before there are threads, and begins when it is asked for.


class _Child:
    """A forked process, with what `subprocess.Popen` has of it."""

    stdin = stdout = stderr = returncode = None

    def __init__(self, pid: int):
        self.pid = pid

    def poll(self) -> int | None:
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
            except ChildProcessError:  # `kill_family` has seen its end
                self.returncode = -signal.SIGKILL
        return self.returncode

    def wait(self) -> int:
        while self.poll() is None:
            time.sleep(0.01)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def fork_kernel() -> None:
    """Fork the kernel of this run, which waits for `papermill` to start it, through jupyter_client's provisioner."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = os.fork()
    if not process:
        ours.close()
        _become_kernel(theirs)
    theirs.close()
    from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

    class Provisioner(LocalProvisioner):
        """Starts the kernel that was forked; any other than this Python's as always."""

        async def launch_kernel(self, cmd: list[str], **options: Any) -> Any:
            if cmd[:3] != [sys.executable, "-m", "ipykernel_launcher"] or ours.fileno() == -1:
                return await super().launch_kernel(cmd, **options)
            self.process, self.pid, self.pgid, self.cwd = (
                _Child(process),
                process,
                process,
                options.get("cwd") or os.getcwd(),
            )
            parent = f"--IPKernelApp.parent_handle={os.getpid()}"  # it asks the environment only when it is imported
            asked = {"arguments": [*cmd[3:], parent], "environment": options["env"], "cwd": str(self.cwd)}
            ours.send(json.dumps(asked).encode())
            ours.close()
            return self.connection_info

    class Known(importlib.metadata.EntryPoint):
        def load(self) -> type:
            return Provisioner

    factory, name = KernelProvisionerFactory.instance(), "seglib-forked"
    factory.provisioners[name] = Known(name, "seglib.runs.warm", factory.GROUP_NAME)
    factory.default_provisioner_name = name


def _become_kernel(channel: socket.socket) -> None:
    message = channel.recv(LARGEST)
    if not message:  # the run ended before it needed one
        os._exit(0)
    asked = json.loads(message)
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for handle in map(int, os.listdir("/proc/self/fd")):
        if handle > 2:
            with contextlib.suppress(OSError):  # the list's own
                os.close(handle)
    channel.detach()
    os.chdir(asked["cwd"])
    _begin(asked["environment"])
    if not sys.flags.safe_path:
        del sys.path[0]  # of `python -m`, as ipykernel_launcher does
    sys.argv = [importlib.util.find_spec("ipykernel_launcher").origin, *asked["arguments"]]
    from ipykernel import kernelapp

    kernelapp.launch_new_instance()
    leave()


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
    sys.argv = sys.argv[:1]
    from seglib.runs.execute import main

    main(warm=True)
    leave()
