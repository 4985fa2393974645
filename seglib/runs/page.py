"""The page of a grid: index.html, filled in by jinja2 from page.html; it loads nothing from outside."""

import base64
import hashlib
import math
import re
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from seglib.files import write_text
from seglib.runs.conditions import Comparison, RunResult
from seglib.runs.leaderboard import format_number, format_seconds, rank_rows, read_history

Points = list[tuple[float, float]]

# A mark beside each word, so that no state is told by colour alone; also the order in the summary.
STATUS_MARKS = {
    "ok": "✓", "running": "▸", "failed": "✕", "oom": "▲", "killed": "■", "interrupted": "‖", "unknown": "?",
    "planned": "○",
}  # fmt: skip
VERDICT_MARKS = {"baseline": "◆", "better": "▲", "worse": "▼", "equal": "=", "can't tell yet": "?"}
MOST_PICTURES = 12
MOST_POINTS = 24  # of a curve: more cannot be seen at its size, and a thousand runs must stay one small file
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

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"number": format_number, "seconds": format_seconds, "sort_key": _sort_key}
    grid_dir, ranked = Path(grid_dir), rank_rows(rows)
    axis = score_axis(comparison) if comparison.is_judged else None
    page = environment.get_template("page.html").render(
        title=title,
        now=datetime.now().astimezone(),
        rows=[_describe_row(grid_dir, row, rank, varied, notebook_stem) for rank, row in enumerate(ranked, 1)],
        varied=varied,
        class_names=list(dict.fromkeys(name for row in rows for name in row.iou)),
        counts=Counter(row.status if row.status in STATUS_MARKS else "unknown" for row in rows),
        best_miou=max((row.miou for row in rows if row.miou is not None), default=None),
        seconds=sum(row.seconds or 0 for row in rows),
        status_marks=STATUS_MARKS,
        verdict_marks=VERDICT_MARKS,
        comparison=comparison,
        axis=axis,
        ticks=choose_ticks(*axis) if axis else (),
        broken=[row for row in rows if row.error],
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


def _describe_row(grid_dir: Path, row: RunResult, rank: int, varied: Sequence[str], stem: str) -> dict:
    history = read_history(grid_dir / row.run / "history.csv")
    return {
        "result": row,
        "rank": None if row.miou is None else rank,
        "best": rank == 1 and row.miou is not None,
        "values": [(row.params.get(name), row.texts.get(name, "-")) for name in varied],
        "status": row.status if row.status in STATUS_MARKS else "unknown",
        "lowest": min((value for value in row.iou.values() if value is not None), default=None),
        "train_loss": next((each["train_loss"] for each in reversed(history) if "train_loss" in each), None),
        "curve": trace_curve(history, row.best_epoch),
        "page": _link(row.run, f"{stem}.html") if (grid_dir / row.run / f"{stem}.html").is_file() else "",
        "links": _find_links(grid_dir / row.run, stem),
    }


def trace_curve(history: Sequence[dict[str, float]], best_epoch: float | None) -> dict | None:
    """Train loss and val mIoU over epochs as pixels, each on its own scale; None where there is no number."""
    series = {
        name: [(row["epoch"], row[name]) for row in history if {"epoch", name} <= row.keys()]
        for name in ("train_loss", "miou")
    }
    epochs = [epoch for points in series.values() for epoch, _ in points]
    if not epochs:
        return None
    words, lines, places = [], [], {}
    for name, css, pattern in (("train_loss", "tl", ".3g"), ("miou", "vm", ".3f")):
        if series[name]:
            low, high = (format(pick(value for _, value in series[name]), pattern) for pick in (min, max))
            words.append(f"{'train loss' if name == 'train_loss' else 'val mIoU'} {low} to {high}")
            placed = _place(series[name], min(epochs), max(epochs))
            places[name] = dict(zip((epoch for epoch, _ in series[name]), placed, strict=True))
            lines.append({"css": css, "points": thin(placed), "low": low, "high": high})
    best = places.get("miou", {}).get(best_epoch)
    words += [f"best epoch {best_epoch} of {max(epochs):g}"] if best else []
    return {"title": ", ".join(words), "lines": lines, "best": best, "plot": PLOT}


def _place(series: Points, first: float, last: float) -> Points:
    """Pixels of (epoch, value): epochs from left to right, the series' own lowest value at the bottom."""
    left, right, top, bottom = PLOT
    low, high = (pick(value for _, value in series) for pick in (min, max))
    across, down = (right - left) / (last - first or 1), (bottom - top) / (high - low or 1)
    return [(left + (epoch - first) * across, top + (high - value) * down) for epoch, value in series]


def thin(places: Points) -> Points:
    """At most `MOST_POINTS` evenly spread points, and always the lowest and the highest."""
    kept = {round(index * (len(places) - 1) / (MOST_POINTS - 1)) for index in range(MOST_POINTS)}
    kept |= {pick(range(len(places)), key=lambda index: places[index][1]) for pick in (min, max)}
    return [places[index] for index in sorted(kept)]


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


def _sort_key(value: float | None) -> str:
    """What the page sorts by; empty for nothing, which stays at the end."""
    return "" if value is None else f"{value:.9g}"


def _find_links(run_dir: Path, stem: str) -> dict[str, str]:
    """What a run's folder holds, by the word that the page shows."""
    others = sorted(path.stem for path in run_dir.glob("*.html") if path.stem != stem)
    pages = {other.lstrip("0123456789_").replace("_", " ") or other: f"{other}.html" for other in others}
    files = {"notebook": f"{stem}.ipynb", "record": "record.json", **pages}
    return {word: _link(run_dir.name, file) for word, file in files.items() if (run_dir / file).is_file()}


def _find_steps(grid_dir: Path) -> dict[str, str]:
    """The pages of the notebooks that followed the runs, such as 05_compare, each in the folder of its name."""
    pages = {path.name: f"{path.name.partition('.then')[0]}.html" for path in sorted(grid_dir.glob("[0-9]*/"))}
    return {name: _link(name, page) for name, page in pages.items() if (grid_dir / name / page).is_file()}


def _find_pictures(grid_dir: Path, best: RunResult) -> dict[str, str]:
    paths = sorted((grid_dir / best.run / "figures").glob("*.png"))[:MOST_PICTURES]
    return {path.stem: _link(best.run, "figures", path.name) for path in paths}


def _link(*parts: str) -> str:
    return "/".join(quote(part, safe="") for part in parts)
