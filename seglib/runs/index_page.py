"""A grid's results as one self-contained HTML page that points at each run's executed notebook."""

import csv
import math
from collections import Counter
from datetime import datetime
from html import escape
from pathlib import Path
from string import Template
from urllib.parse import quote

from seglib.files import write_text
from seglib.runs import pictures
from seglib.runs.leaderboard import Condition, RunResult, describe_comparison, noise_floor, rank_rows
from seglib.runs.text_table import format_number, format_seconds

# A mark beside each word, so that no state is told by colour alone; also the order in the summary.
STATUS_MARKS = {
    "ok": "✓",
    "running": "▸",
    "failed": "✕",
    "oom": "▲",
    "killed": "■",
    "interrupted": "‖",
    "unknown": "?",
    "planned": "○",
}
VERDICT_MARKS = {"baseline": "◆", "better": "▲", "worse": "▼", "within noise": "≈"}
NUMBERS = {  # header -> (metric or attribute of the row, help)
    "per image": ("miou_image", "mean over images of each image's own mIoU"),
    "val loss": ("loss", "loss on the validation images"),
}
MAX_THUMBNAILS = 12


def write_index(
    grid_dir: str | Path,
    rows: list[RunResult],
    conditions: list[Condition],
    varied: list[str],
    title: str,
    notebook_stem: str,
) -> Path:
    """Write index.html into the grid's folder, whole or not at all; returns its path.

    Parameters
    ----------
    rows : list of RunResult
        From `leaderboard.collect_runs`.
    conditions : list of Condition
        From `leaderboard.summarise_conditions`; shown when seeds were varied or a baseline was given.
    varied : list of str
        Names of the varied parameters, a column each.
    title : str
        The grid's name.
    notebook_stem : str
        "02_train" for links to `<run>/02_train.html` and `<run>/02_train.ipynb`, where these files exist.
    """
    grid_dir, ranked = Path(grid_dir), rank_rows(rows)
    class_names = list(dict.fromkeys(name for row in rows for name in row.iou))
    template = Path(__file__).with_name("index_page.html").read_text(encoding="utf-8")
    page = Template(template).substitute(
        title=escape(title),
        strip_style=pictures.strip_style(len(class_names)),
        summary=_summary(rows, conditions),
        conditions=_conditions(conditions) if "seed" in varied or any(item.verdict for item in conditions) else "",
        legend=_legend(class_names),
        head="".join(_heads(varied)),
        body="\n".join(
            _row(grid_dir, row, rank, varied, class_names, notebook_stem) for rank, row in enumerate(ranked, 1)
        ),
        count=len(rows),
        errors=_errors(rows),
        figures=_figures(grid_dir, ranked[0]) if ranked and ranked[0].miou is not None else "",
    )
    path = grid_dir / "index.html"
    write_text(path, page)
    return path


def read_history(path: Path) -> tuple[pictures.Series, pictures.Series]:
    """(epoch, train_loss) and (epoch, miou) pairs of a history.csv; lines that hold no number there are left out."""
    if not path.is_file():
        return [], []
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        lines = list(csv.DictReader(file))
    epochs = [_finite(line.get("epoch")) for line in lines]
    series = []
    for name in ("train_loss", "miou"):
        points = zip(epochs, (_finite(line.get(name)) for line in lines), strict=True)
        series.append([(epoch, value) for epoch, value in points if epoch is not None and value is not None])
    return series[0], series[1]


def _finite(text: object) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _summary(rows: list[RunResult], conditions: list[Condition]) -> str:
    counts = Counter(row.status if row.status in STATUS_MARKS else "unknown" for row in rows)
    shown = [status for status in STATUS_MARKS if counts[status]]
    bar = "".join(f'<span class="{status}" style="flex:{counts[status]}"></span>' for status in shown)
    pills = " ".join(_pill(status, f"{counts[status]} {status}") for status in shown)
    scores = [row.miou for row in rows if row.miou is not None]
    floor = noise_floor(conditions)
    facts = {
        "best mIoU": format_number(max(scores, default=None)),
        "noise between seeds": f"± {floor:.4f}" if floor is not None else "not measured",
        "time, all runs": format_seconds(sum(row.seconds or 0 for row in rows)),
    }
    cards = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())
    now = datetime.now().astimezone()
    when = f'<time datetime="{now.isoformat(timespec="seconds")}">{now:%Y-%m-%d %H:%M %Z}</time>'
    return (
        f'<p class="when">{len(rows)} runs, written {when}</p><div class="bar" aria-hidden="true">{bar}</div>'
        f'<p class="pills">{pills}</p><dl class="facts">{cards}</dl>'
    )


def _conditions(conditions: list[Condition]) -> str:
    if not any(item.n for item in conditions):
        return ""
    axis = pictures.score_axis(conditions)
    heads = {"condition": "", "verdict": "", "seeds": "", "mean ± std": "n", "difference [95 %]": "n", "p (Holm)": "n"}
    head = "".join(f'<th scope="col" class="{css}">{name}</th>' for name, css in {**heads, "mIoU": "plot"}.items())
    return (
        f'<section><h2>Conditions</h2><p class="note">{_explain(conditions)}</p><div class="scroll" tabindex="0" '
        f'role="region" aria-label="Conditions"><table class="conditions"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(_condition(item, axis) for item in conditions)}</tbody>"
        f'<tfoot><tr><td colspan="{len(heads)}"></td><td class="plot">{pictures.draw_ticks(axis)}</td></tr></tfoot>'
        "</table></div></section>"
    )


def _explain(conditions: list[Condition]) -> str:
    if all(item.n < 2 for item in conditions):
        return "One seed a condition: no difference here can be told from noise. Vary <code>seed</code> to measure it."
    dots = "Small dots are seeds, the large dot is their mean"
    if not any(item.verdict for item in conditions):
        return f"{dots}. Give the grid file a <code>baseline</code> to have the differences judged."
    comparison = describe_comparison(conditions)
    if not comparison:
        return f"{dots}. No condition and baseline have two seeds each, so no difference can be told from noise."
    how, count = comparison
    return (
        f"{dots}, the dashed line is the baseline's mean. The bar is the 95 % t interval of the difference ({how}): "
        f"where it crosses the line, the difference may be noise. Verdicts hold after Holm's correction for {count}."
    )


def _condition(item: Condition, axis: tuple[float, float]) -> str:
    verdict = _verdict(item.verdict) if item.verdict else "-"
    count = f"{item.n}" if item.n == item.runs else f"{item.n} of {item.runs}"
    mean = format_number(item.mean) + (f' <span class="soft">± {item.std:.4f}</span>' if item.std is not None else "")
    difference = "-" if item.difference is None else f"{item.difference:+.4f}"
    if item.low is not None:
        difference += f' <span class="soft">[{item.low:+.4f}, {item.high:+.4f}]</span>'
    p = "-" if item.p_holm is None else "&lt; 0.001" if item.p_holm < 0.001 else f"{item.p_holm:.3f}"
    numbers = "".join(f'<td class="n">{text}</td>' for text in (mean, difference, p))
    return (
        f'<tr><th scope="row" title="{escape(str(item.values))}">{escape(item.label)}</th>'
        f'<td>{verdict}</td><td>{count}</td>{numbers}<td class="plot">{pictures.draw_scores(item, axis)}</td></tr>'
    )


def _verdict(verdict: str) -> str:
    css = verdict if verdict in ("better", "worse", "baseline") else "open"
    return f'<span class="verdict {css}">{VERDICT_MARKS.get(verdict, "")} {verdict}</span>'


def _heads(varied: list[str]) -> list[str]:
    """Header cells; `down` are those whose first click puts the highest first."""
    heads = [_head("#", "rank by mIoU", "n"), _head("run", "folder of the run")]
    heads += [_head(name, "varied parameter") for name in varied]
    heads += [
        _head("status", "how the run ended"),
        _head("mIoU", "IoU of the summed confusion matrix", "n down", "descending"),
        _head("IoU by class", "sorts by the lowest class", "down"),
        _head("training", "sorts by the last train loss"),
    ]
    heads += [_head(name, words, "n" if "loss" in name else "n down") for name, (_, words) in NUMBERS.items()]
    ends = {"epoch": "epoch of the kept weights", "time": "wall time", "memory": "peak GPU memory"}
    return heads + [_head(name, words, "n") for name, words in ends.items()]


def _head(name: str, words: str, css: str = "", order: str = "none") -> str:
    button = f'<button type="button" title="{words}">{escape(name)}</button>'
    return f'<th scope="col" class="{css}" aria-sort="{order}">{button}</th>'


def _row(grid_dir: Path, row: RunResult, rank: int, varied: list[str], class_names: list[str], stem: str) -> str:
    train_loss, miou = read_history(grid_dir / row.run / "history.csv")
    lowest = min((value for value in row.iou.values() if value is not None), default=None)
    memory = None if row.peak_memory_mb is None else f"{row.peak_memory_mb / 1024:.1f} GB"
    cells = [
        _number_cell(rank if row.miou is not None else None),
        f'<th scope="row">{_links(grid_dir / row.run, row.run, stem)}</th>',
        *(_value_cell(row.params.get(name), row.texts.get(name, "-")) for name in varied),
        _status_cell(row.status, row.notes),
        _number_cell(row.metrics["miou"], css="n score"),
        f'<td data-v="{_key(lowest)}">{pictures.draw_strip(row.iou, class_names)}</td>',
        f'<td data-v="{_key(train_loss[-1][1] if train_loss else None)}">'
        f"{pictures.draw_curve(train_loss, miou, row.best_epoch)}</td>",
        *(_number_cell(row.metrics[name]) for name, _ in NUMBERS.values()),
        _number_cell(row.best_epoch),
        _number_cell(row.seconds, format_seconds(row.seconds)),
        _number_cell(row.peak_memory_mb, memory),
    ]
    best = ' class="best"' if rank == 1 and row.miou is not None else ""
    return f"<tr{best}>{''.join(cells)}</tr>"


def _number_cell(value: float | None, text: str | None = None, css: str = "n") -> str:
    return f'<td class="{css}" data-v="{_key(value)}">{text or format_number(value)}</td>'


def _value_cell(value: object, text: str) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    key = f' data-v="{value!r}"' if number else ""
    return f'<td class="value" title="{escape(text if value is None else str(value))}"{key}>{escape(text)}</td>'


def _key(value: float | None) -> str:
    """What the page sorts by; empty for nothing, which stays at the end."""
    return "" if value is None else f"{value:.9g}"


def _status_cell(status: str, notes: str | None) -> str:
    order = [*STATUS_MARKS].index(status if status in STATUS_MARKS else "unknown")
    small = f"<br><small>{escape(notes)}</small>" if notes else ""
    return f'<td data-v="{order}">{_pill(status, status)}{small}</td>'


def _pill(status: str, text: str) -> str:
    known = status if status in STATUS_MARKS else "unknown"
    return f'<span class="pill {known}"><b aria-hidden="true">{STATUS_MARKS[known]}</b> {escape(text)}</span>'


def _links(run_dir: Path, run: str, stem: str) -> str:
    """The run's name, leading to its rendered notebook, and what else its folder holds."""
    others = sorted(path.stem for path in run_dir.glob("*.html") if path.stem != stem)
    pages = {other.lstrip("0123456789_").replace("_", " ") or other: f"{other}.html" for other in others}
    files = {"notebook": f"{stem}.ipynb", "record": "record.json", **pages}
    name = escape(run).replace(",", ",<wbr>")
    if (run_dir / f"{stem}.html").is_file():
        name = f'<a href="{_href(run, f"{stem}.html")}">{name}</a>'
    found = {text: _href(run, file) for text, file in files.items() if (run_dir / file).is_file()}
    small = " · ".join(f'<a href="{href}">{escape(text)}</a>' for text, href in found.items())
    return name + (f"<small>{small}</small>" if small else "")


def _href(*parts: str) -> str:
    return "/".join(quote(part, safe="") for part in parts)


def _legend(class_names: list[str]) -> str:
    if not class_names:
        return ""
    names = " · ".join(map(escape, class_names))
    colours = ",".join(pictures.viridis(step / 10) for step in range(11))
    ramp = f'<span class="ramp" style="background:linear-gradient(90deg,{colours})"></span>'
    scale = f'<span>IoU 0 {ramp} 1, <i class="absent"></i> none</span>'
    return f'<p class="note legend">{scale} <span>left to right: {names}</span></p>'


def _errors(rows: list[RunResult]) -> str:
    broken = [row for row in rows if row.error]
    few = " open" if len(broken) <= 5 else ""
    items = [
        f"<details{few}><summary>{_pill(row.status, row.status)} {escape(row.run)}</summary>"
        f"<pre>{escape(row.error)}</pre></details>"
        for row in broken
    ]
    return f"<section><h2>Errors</h2>{''.join(items)}</section>" if items else ""


def _figures(grid_dir: Path, best: RunResult) -> str:
    paths = sorted((grid_dir / best.run / "figures").glob("*.png"))[:MAX_THUMBNAILS]
    if not paths:
        return ""
    items = "".join(_thumbnail(_href(best.run, "figures", path.name), escape(path.stem)) for path in paths)
    return (
        f'<section><h2>Best run</h2><p class="note">{escape(best.run)}</p><div class="figures">{items}</div></section>'
    )


def _thumbnail(href: str, name: str) -> str:
    image = f'<img src="{href}" alt="{name}" loading="lazy">'
    return f'<a href="{href}"><figure>{image}<figcaption>{name}</figcaption></figure></a>'
