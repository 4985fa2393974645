"""The page of a grid: index.html, filled in by jinja2 from page.html; it loads nothing from outside.

Its runs are a JSON text in the page, which its own script draws piece by piece as one scrolls: ten thousand stay small.
"""

import base64
import hashlib
import itertools
import json
import math
import os
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from seglib.errors import printable
from seglib.files import sign, write_text
from seglib.runs.conditions import Comparison, RunResult
from seglib.runs.leaderboard import rank_rows
from seglib.runs.record import read_history
from seglib.text import format_number, format_seconds

# A mark beside each word, so that no state is told by colour alone; also the order in the summary.
STATUS_MARKS = {
    "ok": "✓", "running": "▸", "failed": "✕", "oom": "▲", "killed": "■", "interrupted": "‖", "stopped": "◧",
    "unknown": "?",
    "planned": "○",
}  # fmt: skip
VERDICT_MARKS = {"baseline": "◆", "better": "▲", "worse": "▼", "equal": "=", "can't tell yet": "?"}
MOST_PICTURES, MOST_CONDITIONS, MOST_ERRORS, MOST_PLAIN = 12, 300, 200, 20  # in one page
MOST_POINTS = 24  # of a curve: more cannot be seen at its size, and ten thousand runs must stay one small file
DIGITS = "".join(chr(code) for code in range(35, 127) if chr(code) not in "&'<>\\")  # a place in a curve is one of them
FIELDS = (
    "name", "links", "values", "status", "note", "miou", "iou", "train_loss", "curve", "miou_image", "loss", "epoch",
    "seconds", "memory",
)  # fmt: skip
PLOT = (36, 144, 5, 39)  # left, right, top, bottom of the curves [px]


def write_index(
    grid_dir: str | Path,
    rows: Sequence[RunResult],
    comparison: Comparison,
    varied: Sequence[str],
    title: str,
    notebook_stem: str,
) -> Path:
    """Write index.html into the grid's folder, whole or not at all; return its path.

    Parameters
    ----------
    rows : of `leaderboard.collect_runs`.
    comparison : of `conditions.summarise_conditions`; shown where seeds or folds were varied or a baseline was given.
    varied : names of the varied parameters, a column each.
    title : the grid's name.
    notebook_stem : "02_train" links `<run>/02_train.html` and `<run>/02_train.ipynb`, where these files exist.
    """
    import jinja2  # only who writes a page needs it
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"number": format_number, "seconds": format_seconds}
    grid_dir, ranked, class_names = (
        Path(grid_dir),
        rank_rows(rows),
        list(dict.fromkeys(n for row in rows for n in row.iou)),
    )
    axis = score_axis(comparison) if comparison.is_judged else None
    page = environment.get_template("page.html").render(
        title=title,
        now=datetime.now().astimezone(),
        rows=ranked,
        data=Markup(_compose_data(grid_dir, ranked, varied, class_names, notebook_stem)),
        varied=varied,
        class_names=[*map(printable, class_names)],  # one that turns the direction would turn those after it
        counts=Counter(row.status if row.status in STATUS_MARKS else "unknown" for row in rows),
        best_miou=max((row.miou for row in rows if row.miou is not None), default=None),
        seconds=sum(row.seconds or 0 for row in rows),
        status_marks=STATUS_MARKS,
        verdict_marks=VERDICT_MARKS,
        comparison=comparison,
        conditions=[
            item
            for place, item in enumerate(comparison.conditions)
            if place < MOST_CONDITIONS or item.verdict == "baseline"
        ],
        most_errors=MOST_ERRORS,
        most_plain=MOST_PLAIN,
        axis=axis,
        ticks=choose_ticks(*axis) if axis else (),
        broken=[row for row in rows if row.error and row.status != "stopped"],
        steps=_find_steps(grid_dir),
        pictures=_find_pictures(grid_dir, ranked[0]) if ranked and ranked[0].miou is not None else {},
    )
    own = find_scripts((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
    write_text(grid_dir / "index.html", allow_scripts(page, own))
    return grid_dir / "index.html"


def find_scripts(page: str) -> list[str]:
    """The texts of the inline scripts of a page."""
    return re.findall(r"<script(?![^>]*\bsrc=)[^>]*>(.*?)</script>", page, re.DOTALL)


def allow_scripts(page: str, own: Sequence[str], places: str = "") -> str:
    """Forbid a page all scripts but its own and those of `places`: what data brings into it cannot run.

    Source: Content Security Policy Level 3, https://www.w3.org/TR/CSP3/.
    """
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(each.encode()).digest()).decode()}'" for each in own]
    policy = f"script-src {' '.join([*hashes, places])}; object-src 'none'; base-uri 'none'"
    return page.replace("<head>", f'<head>\n<meta http-equiv="Content-Security-Policy" content="{policy}">', 1)


def _compose_data(
    grid_dir: Path, ranked: Sequence[RunResult], varied: Sequence[str], class_names: Sequence[str], stem: str
) -> str:
    """The runs, best first, as JSON for the page's script; what many share stands once, and a run has its number."""
    places = {name: _Numbers() for name in ("links", "statuses", "notes")}
    values = [_Numbers() for _ in varied]
    runs = []
    for row in ranked:
        links, train_loss, curve = _describe_folder(grid_dir / row.run, stem, row.best_epoch)
        status = row.status if row.status in STATUS_MARKS else "unknown"
        runs.append([
            "" if row.run == ",".join(f"{name}={text}" for name, text in row.texts.items()) else row.run, places["links"].add(links), [each.add(_describe_value(row, name)) for each, name in zip(values, varied, strict=True)],
            places["statuses"].add((status, row.status, STATUS_MARKS[status])), places["notes"].add(row.notes or ""),
            _round(row.metrics["miou"]), [_round(row.iou.get(name), 3, 1000) for name in class_names], train_loss, curve,
            _round(row.metrics["miou_image"]), _round(row.metrics["loss"]), row.best_epoch, _round(row.seconds, 1),
            _round(row.peak_memory_mb, 0),
        ])  # fmt: skip
    shared = {name: list(each) for name, each in places.items()} | {"values": [list(each) for each in values]}
    data = {
        "fields": FIELDS,
        "runs": runs,
        "varied": varied,
        **shared,
        "classes": [*map(printable, class_names)],
        "plot": PLOT,
        "digits": DIGITS,
    }
    text = json.dumps(data | {"marks": [*STATUS_MARKS]}, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")  # nothing in it ends the script element


class _Numbers(dict):
    """Numbers things as they come; a thing that was there keeps its number."""

    def add(self, thing: Hashable) -> int:
        return self.setdefault(thing, len(self))


def _describe_value(row: RunResult, name: str) -> tuple[str, str, float | None]:
    """A varied value: its short text, all of it, and the number to sort by."""
    value, text = row.params.get(name), row.texts.get(name, "-")
    number = value if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None
    return text, text if value is None else str(value), number


def _round(value: float | None, digits: int = 6, factor: int = 1) -> float | None:
    return None if value is None else round(value * factor) if factor > 1 else round(value, digits)


_folders: dict[tuple[Path, str], tuple[object, tuple]] = {}  # what was read of a run's folder, and of which state of it


def _describe_folder(run_dir: Path, stem: str, best_epoch: float | None) -> tuple[tuple, float | None, list | None]:
    """A run's pages and files, its last train loss, its curve; read again only where something was written since."""
    state = sign(run_dir), sign(run_dir / "history.csv"), best_epoch
    known = _folders.get((run_dir, stem))
    if known is None or known[0] != state:
        history = read_history(run_dir / "history.csv", ("epoch", "train_loss", "miou"))
        loss = next((each["train_loss"] for each in reversed(history) if "train_loss" in each), None)
        links = _find_links(run_dir, stem) if state[0] else ("", ())
        known = _folders[run_dir, stem] = (
            state,
            (links, loss and float(f"{loss:.5g}"), trace_curve(history, best_epoch)),
        )
    return known[1]


def trace_curve(history: Sequence[dict[str, float]], best_epoch: float | None) -> list | None:
    """Train loss and val mIoU over epochs, each on its own scale; None where there is no number.

    Returns
    -------
    Places over the epochs as digits of `DIGITS`, "" where they are even; of each line whether it is the mIoU, its places
    from the top (" " where there is no number), lowest and highest value; the best epoch's number among the places; the
    last epoch.
    """
    rows = [row for row in history if "train_loss" in row or "miou" in row]
    if not rows:
        return None
    rows = [rows[place] for place in thin(rows, best_epoch)]
    epochs, lines = [row["epoch"] for row in rows], []
    for name in ("train_loss", "miou"):
        values = [row[name] for row in rows if name in row]
        if values:
            low, high = min(values), max(values)
            places = "".join(_place(high - row[name], high - low) if name in row else " " for row in rows)
            lines.append([int(name == "miou"), places, *(float(f"{value:.4g}") for value in (low, high))])
    steps = {after - before for before, after in itertools.pairwise(epochs)}
    x = "" if len(steps) < 2 else "".join(_place(epoch - epochs[0], epochs[-1] - epochs[0]) for epoch in epochs)
    return [x, lines, epochs.index(best_epoch) if best_epoch in epochs else None, epochs[-1]]


def _place(distance: float, whole: float) -> str:
    return DIGITS[round(distance / (whole or 1) * (len(DIGITS) - 1))]


def thin(rows: Sequence[dict[str, float]], best_epoch: float | None) -> list[int]:
    """Numbers of at most `MOST_POINTS` evenly spread rows, and always of the lowest, the highest and the best epoch's."""
    kept = {round(index * (len(rows) - 1) / (MOST_POINTS - 1)) for index in range(MOST_POINTS)}
    for name in ("train_loss", "miou"):
        known = [place for place, row in enumerate(rows) if name in row]
        kept |= {pick(known, key=lambda place: rows[place][name]) for pick in (min, max) if known}
    return sorted(kept | {place for place, row in enumerate(rows) if row["epoch"] == best_epoch})


def score_axis(comparison: Comparison) -> tuple[float, float]:
    """Range of mIoU that shows every score, and intervals up to half that range beyond (few seeds make wide ones)."""
    conditions = comparison.conditions
    scores = [score for item in conditions for _, score in item.scores]
    low, high = min(scores), max(scores)
    reach = (high - low or 0.01) / 2
    ends = [item.baseline_mean + end for item in conditions if item.low is not None for end in (item.low, item.high)]
    shown = [*scores, *(min(max(end, low - reach), high + reach) for end in ends)]
    margin = (max(shown) - min(shown) or 0.01) * 0.05
    return min(shown) - margin, max(shown) + margin


def choose_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """At least three round values between low and high, with their labels."""
    widest = (high - low) / 3
    power = 10.0 ** math.floor(math.log10(widest))
    step = max(power * factor for factor in (1, 2, 5) if power * factor <= widest)
    digits = max(0, -math.floor(math.log10(step)))
    numbers = range(math.ceil(low / step), math.floor(high / step) + 1)
    return [(number * step, f"{number * step:.{digits}f}") for number in numbers]


def _find_links(run_dir: Path, stem: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The run's page, "" where there is none, and the other files that its folder holds, by the word that the page shows."""
    held = {*os.listdir(run_dir)}
    others = sorted(name.removesuffix(".html") for name in held if name.endswith(".html") and name != f"{stem}.html")
    pages = {other.lstrip("0123456789_").replace("_", " ") or other: f"{other}.html" for other in others}
    files = {"notebook": f"{stem}.ipynb", "record": "record.json", **pages}
    page = f"{stem}.html" if f"{stem}.html" in held else ""
    return page, tuple((word, file) for word, file in files.items() if file in held)


def _find_steps(grid_dir: Path) -> dict[str, str]:
    """The pages of the notebooks that followed the runs, such as 05_compare, each in the folder of its name."""
    pages = {path.name: f"{path.name.partition('.then')[0]}.html" for path in sorted(grid_dir.glob("[0-9]*/"))}
    return {name: _link(name, page) for name, page in pages.items() if (grid_dir / name / page).is_file()}


def _find_pictures(grid_dir: Path, best: RunResult) -> dict[str, str]:
    paths = sorted((grid_dir / best.run / "figures").glob("*.png"))[:MOST_PICTURES]
    return {path.stem: _link(best.run, "figures", path.name) for path in paths}


def _link(*parts: str) -> str:
    return "/".join(quote(part, safe="") for part in parts)
