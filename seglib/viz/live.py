"""What a person sees while a model trains: one progress line and one figure, updated in place, kept as they ended."""

import io
import sys
import time
from pathlib import Path

import pandas as pd
from IPython import get_ipython
from IPython.display import DisplayHandle, Image, display

from seglib.files import write_json
from seglib.runs.text_table import format_seconds
from seglib.viz.plots import plot_history


class LiveTraining:
    """Shows progress in the notebook, and writes run_dir/progress.json for whoever waits outside.

    Displays are updated in place: an executed notebook holds one line and one picture, however long the training was.
    """

    def __init__(self, run_dir: Path, epochs: int):
        self.path, self.epochs = Path(run_dir) / "progress.json", epochs
        self.began, self.told, self.drawn = time.monotonic(), 0.0, 0.0
        self.first = None  # epochs, and part of one, that were done before this process
        self.score = ""
        self.line: DisplayHandle | None = None
        self.figure: DisplayHandle | None = None

    def step(self, epoch: int, step: int, steps: int) -> None:
        """Tell where training is, about twice a second."""
        self.first = epoch - 1 + (step - 1) / steps if self.first is None else self.first
        if time.monotonic() - self.told < 0.5 and not (epoch == self.epochs and step == steps):
            return
        done = epoch - 1 + step / steps
        spent = time.monotonic() - self.began
        left = spent / (done - self.first) * (self.epochs - done)
        self._tell(f"epoch {epoch}/{self.epochs}, step {step}/{steps}{self.score}, {format_seconds(left)} left")

    def epoch(self, history: pd.DataFrame) -> None:
        """Draw the curves, at most every three seconds."""
        last = history.iloc[-1]
        self.score = f", loss {last['train_loss']:.4f}, mIoU {last['miou']:.4f}"
        if time.monotonic() - self.drawn > 3:
            self._draw(history)
            self.drawn = time.monotonic()

    def end(self, history: pd.DataFrame) -> None:
        """Say how long it took and draw the curves once more, as they stay."""
        early = f", stopped early of {self.epochs}" if len(history) < self.epochs else ""
        self._tell(f"{len(history)} epochs in {format_seconds(time.monotonic() - self.began)}{early}{self.score}")
        self._draw(history)

    def _tell(self, text: str) -> None:
        self.told = time.monotonic()
        write_json(self.path, {"text": text})
        if get_ipython() is None:
            print(f"\r{text}    ", end="", file=sys.stderr, flush=True)
        elif self.line is None:
            self.line = display({"text/plain": text}, raw=True, display_id=True)
        else:
            self.line.update({"text/plain": text}, raw=True)

    def _draw(self, history: pd.DataFrame) -> None:
        if get_ipython() is None:
            return
        buffer = io.BytesIO()
        plot_history(history, self.epochs).savefig(buffer, format="png", dpi=90, bbox_inches="tight")
        image = Image(buffer.getvalue(), format="png", alt="loss, mIoU, learning rate and memory over the epochs")
        if self.figure is None:
            self.figure = display(image, display_id=True)
        else:
            self.figure.update(image)
