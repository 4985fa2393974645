"""In every process that tests of kills and full disks start: kills it, or fills a disk, at the moment of a write.

KILL_AT names these moments: a list of {who, file, at, count, flag, disk}; each is hit once, which its flag says.
"""

import json
import os
import re
import resource
import signal
import sys

AIMS = json.loads(
    os.environ.get("KILL_AT", "[]")
)  # {who, file, at, count, flag}; each is hit once, which its flag says
seen = [0] * len(AIMS)


def who_am_i() -> str:
    name = sys.argv[0] if hasattr(sys, "argv") else ""  # none yet while Python starts
    return "kernel" if "ipykernel_launcher" in name else "run_grid" if name.endswith("run_grid.py") else "run"


def aim_at(moments: tuple[str, ...], path: str) -> str:
    """Where this is a moment that is aimed at for the last time but one: which; it counts as hit from now on."""
    folder, name = os.path.split(os.path.abspath(path))
    final = os.path.join(folder, re.sub(r"^\.(.*)\.seglib-\w{6}-\w{8}\.part$", r"\1", name))
    for number, aim in enumerate(AIMS):
        if aim["at"] in moments and aim["who"] == who_am_i() and re.search(aim["file"], final):
            seen[number] += 1
            if seen[number] >= aim["count"] and not os.path.exists(aim["flag"]):
                with open(aim["flag"], "x") as flag:
                    flag.write(path)
                if aim["at"] == "full":
                    fill(aim["disk"])
                return aim["at"]
    return ""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fill(disk: str) -> None:
    with open(f"{disk}/filler", "wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 16)):
                pass
        except OSError:  # no space left
            return


def look(event: str, arguments: tuple) -> None:
    if event == "open" and isinstance(arguments[0], str):
        path, mode, flags = arguments
        begins = flags & os.O_CREAT and (mode is None or not path.endswith(".part"))  # of a temporary file mkstemp's
        at = aim_at(("before", "middle", "full"), path) if begins else ""
        if at == "before":
            die()
        if at == "middle":  # the system ends a process that writes beyond; also one that does so in C++
            resource.setrlimit(resource.RLIMIT_FSIZE, (40, resource.RLIM_INFINITY))
    elif event == "os.rename" and aim_at(("rename",), os.fspath(arguments[1])):
        die()


def then_die(rename):
    def wrapped(source, target, **options):
        rename(source, target, **options)
        if aim_at(("after",), os.fspath(target)):
            die()

    return wrapped


if AIMS:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
    os.replace, os.rename = then_die(os.replace), then_die(os.rename)
    sys.addaudithook(look)
