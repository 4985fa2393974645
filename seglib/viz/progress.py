"""One line that says how far a long step is, updated in place, and told to whoever waits outside the notebook."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

from IPython import get_ipython
from IPython.display import display

from seglib.files import write_json
from seglib.runs.text_table import format_seconds


def show_progress(what: str, folder: Path) -> Callable[[int, int], None]:
    """A function to call with (done, total), about twice a second at most; it writes folder/progress.json too.

    The line is made with the first call: a step that had nothing to do shows nothing.
    """
    began, told, line = time.monotonic(), 0.0, None

    def tell(done: int, total: int) -> None:
        nonlocal told, line
        if time.monotonic() - told < 0.5 and done < total:
            return
        told = time.monotonic()
        left = (told - began) / done * (total - done)
        text = f"{what} {done}/{total}, " + (f"{format_seconds(left)} left" if left else format_seconds(told - began))
        write_json(folder / "progress.json", {"text": text})
        if get_ipython() is None:
            print(f"\r{text}    ", end="\n" if done == total else "", file=sys.stderr, flush=True)
        elif line is None:
            line = display({"text/plain": text}, raw=True, display_id=True)
        else:
            line.update({"text/plain": text}, raw=True)

    return tell
