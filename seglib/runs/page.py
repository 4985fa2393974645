"""The page of a grid: ranking, curves, pictures."""

import csv
import math
from collections import Counter
from datetime import datetime
from html import escape
from pathlib import Path
from string import Template
from urllib.parse import quote

from seglib.files import write_text
from seglib.runs.leaderboard import (
    Condition,
    RunResult,
    describe_comparison,
    format_number,
    format_seconds,
    noise_floor,
    rank_rows,
)

# Small inline SVG pictures from plain numbers: training curves, scores with whiskers, a strip of class IoUs.


Series = list[tuple[float, float]]  # (epoch, value)

# matplotlib's viridis at 0, 0.1 .. 1: even steps of lightness, readable by colour-blind people.
VIRIDIS = "440154482475414487355f8d2a788e21918c22a88444bf707ad151bddf26fde725"
POINTS = 24  # of a curve: more cannot be seen at its size, and a thousand runs must stay one small file
CURVE, PLOT = (182, 44), (36, 144, 5, 39)  # size; left, right, top, bottom [px]
AXIS_WIDTH = 340  # [px]


def draw_curve(train_loss: Series, miou: Series, best_epoch: int | None) -> str:
    """Train loss and val mIoU over epochs, each on its own scale, whose ends are written left and right."""
    epochs = [epoch for series in (train_loss, miou) for epoch, _ in series]
    if not epochs:
        return '<span class="none">no history</span>'
    words, shapes = [], []
    for name, css, series, pattern in (("train loss", "tl", train_loss, ".3g"), ("val mIoU", "vm", miou, ".3f")):
        if series:
            low, high = (format(pick(value for _, value in series), pattern) for pick in (min, max))
            words.append(f"{name} {low} to {high}")
            shapes.append(_line(_place(series, epochs), css) + _ends(low, high, css))
    best = [place for place, (epoch, _) in zip(_place(miou, epochs), miou, strict=True) if epoch == best_epoch]
    if best:
        shapes.append('<circle class="vm" cx="{:.4g}" cy="{:.4g}" r="2.6"/>'.format(*best[-1]))
        words.append(f"best epoch {best_epoch} of {max(epochs):g}")
    return _svg("curve", *CURVE, ", ".join(words), "".join(shapes))


def draw_strip(iou: dict[str, float | None], class_names: list[str]) -> str:
    """One cell a class in the order of `class_names`, coloured by IoU from 0 to 1; hatched where the class has none."""
    cells = [_cell(name, iou.get(name)) for name in class_names]
    known = sorted((value, name) for name, value in iou.items() if value is not None)
    if not known:
        return '<span class="none">no scores</span>'
    label = f"lowest {known[0][1]} {known[0][0]:.3f}, highest {known[-1][1]} {known[-1][0]:.3f}"
    return f'<span class="strip" role="img" aria-label="{escape(label)}">{"".join(cells)}</span>'


def strip_style(num_classes: int) -> str:
    """CSS of the strip's cells: the width that fits, and 21 colours."""
    width = max(3, min(14, 190 // max(1, num_classes)))
    return f".strip i{{width:{width}px}}" + "".join(
        f".v{step}{{background:{viridis(step / 20)}}}" for step in range(21)
    )


def viridis(value: float) -> str:
    """Colour of a value in [0, 1] as #rrggbb."""
    index = min(int(value * 10), 9)
    anchors = bytes.fromhex(VIRIDIS)[3 * index : 3 * index + 6]
    pairs = zip(anchors[:3], anchors[3:], strict=True)
    return "#" + "".join(f"{round(a + (b - a) * (value * 10 - index)):02x}" for a, b in pairs)


def score_axis(conditions: list[Condition]) -> tuple[float, float]:
    """Range of mIoU that shows every score, and intervals up to half that range beyond (few seeds make wide ones)."""
    scores = [score for item in conditions for _, score in item.scores]
    low, high = min(scores), max(scores)
    reach = (high - low or 0.01) / 2
    ends = [item.baseline_mean + end for item in conditions if item.low is not None for end in (item.low, item.high)]
    shown = [*scores, *(min(max(end, low - reach), high + reach) for end in ends)]
    margin = (max(shown) - min(shown) or 0.01) * 0.05
    return min(shown) - margin, max(shown) + margin


def draw_scores(condition: Condition, axis: tuple[float, float]) -> str:
    """Seeds as small dots, their mean, the difference's interval from the baseline's mean, which is the dashed line."""
    shapes = [f'<circle class="seed" cx="{_x(score, axis):.4g}" cy="14" r="2.5"/>' for _, score in condition.scores]
    label = f"{condition.label}: no score"
    if condition.mean is not None:
        label = f"{condition.label}: mean {condition.mean:.4f}, n {condition.n}"
        shapes.append(f'<circle class="mean" cx="{_x(condition.mean, axis):.4g}" cy="14" r="4.5"/>')
    if condition.low is not None:
        label += f", difference {condition.difference:+.4f}, 95 % from {condition.low:+.4f} to {condition.high:+.4f}"
        shapes.insert(
            0, _whisker(condition.baseline_mean + condition.low, condition.baseline_mean + condition.high, axis)
        )
    line = ""
    if condition.baseline_mean is not None:
        line = f'<span class="base" style="left:{_x(condition.baseline_mean, axis):.4g}px"></span>'
    return line + _svg("scores", AXIS_WIDTH, 28, label, "".join(shapes))


def draw_ticks(axis: tuple[float, float]) -> str:
    """Labels of the shared mIoU axis."""
    widest = (axis[1] - axis[0]) / 3
    power = 10.0 ** math.floor(math.log10(widest))
    step = max(power * factor for factor in (1, 2, 5) if power * factor <= widest)
    ticks = [index * step for index in range(math.ceil(axis[0] / step), math.floor(axis[1] / step) + 1)]
    digits = max(0, -math.floor(math.log10(step)))
    marks = "".join(
        f'<path d="M{_x(tick, axis):.4g} 0v4"/><text x="{_x(tick, axis):.4g}" y="15">{tick:.{digits}f}</text>'
        for tick in ticks
    )
    return _svg("ticks", AXIS_WIDTH, 18, "axis of mIoU", marks)


def _whisker(low: float, high: float, axis: tuple[float, float]) -> str:
    """A bar with end caps; an arrow head where the interval goes on beyond the axis."""
    shapes = [f'<path d="M{_x(max(low, axis[0]), axis):.4g} 14H{_x(min(high, axis[1]), axis):.4g}"/>']
    for end, edge, sign in ((low, axis[0], 1), (high, axis[1], -1)):
        beyond = end < edge if sign == 1 else end > edge
        x = _x(edge if beyond else end, axis)
        shapes.append(
            f'<path d="M{x + 5 * sign:.4g} 10l{-5 * sign} 4l{5 * sign} 4"/>' if beyond else f'<path d="M{x:.4g} 10v8"/>'
        )
    return f'<g class="whisker">{"".join(shapes)}</g>'


def _x(value: float, axis: tuple[float, float]) -> float:
    return (value - axis[0]) / (axis[1] - axis[0]) * AXIS_WIDTH


def _place(series: Series, epochs: list[float]) -> Series:
    """Pixels of a curve's points: epochs from left to right, the series' own lowest value at the bottom."""
    left, right, top, bottom = PLOT
    first, last = min(epochs), max(epochs)
    low, high = (pick((value for _, value in series), default=0) for pick in (min, max))
    across, down = (right - left) / (last - first or 1), (bottom - top) / (high - low or 1)
    return [(left + (epoch - first) * across, top + (high - value) * down) for epoch, value in series]


def _line(places: Series, css: str) -> str:
    """A path through at most POINTS evenly spread points, and always the lowest and the highest."""
    kept = {round(index * (len(places) - 1) / (POINTS - 1)) for index in range(POINTS)}
    kept |= {pick(range(len(places)), key=lambda index: places[index][1]) for pick in (min, max)}
    points = (places[index] for index in sorted(kept))
    return f'<path class="{css}" d="M{"L".join(f"{x:.4g} {y:.4g}" for x, y in points)}"/>'


def _ends(low: str, high: str, css: str) -> str:
    left, right, top, bottom = PLOT
    x = left - 6 if css == "tl" else right + 6
    ends = ((low, bottom + 3),) if low == high else ((high, top + 5), (low, bottom + 3))
    return "".join(f'<text class="{css}" x="{x}" y="{y}">{text}</text>' for text, y in ends)


def _cell(name: str, value: float | None) -> str:
    css = "absent" if value is None else f"v{round(min(max(value, 0), 1) * 20)}"
    return f'<i class="{css}" title="{escape(name)} {format_number(value, ".3f")}"></i>'


def _svg(css: str, width: int, height: int, title: str, shapes: str) -> str:
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return f'<svg class="{css}" {size} role="img"><title>{escape(title)}</title>{shapes}</svg>'


# A grid's results as one self-contained HTML page that points at each run's executed notebook.


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
        strip_style=strip_style(len(class_names)),
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


def read_history(path: Path) -> tuple[Series, Series]:
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
    axis = score_axis(conditions)
    heads = {"condition": "", "verdict": "", "seeds": "", "mean ± std": "n", "difference [95 %]": "n", "p (Holm)": "n"}
    head = "".join(f'<th scope="col" class="{css}">{name}</th>' for name, css in {**heads, "mIoU": "plot"}.items())
    return (
        f'<section><h2>Conditions</h2><p class="note">{_explain(conditions)}</p><div class="scroll" tabindex="0" '
        f'role="region" aria-label="Conditions"><table class="conditions"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(_condition(item, axis) for item in conditions)}</tbody>"
        f'<tfoot><tr><td colspan="{len(heads)}"></td><td class="plot">{draw_ticks(axis)}</td></tr></tfoot>'
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
        f'<td>{verdict}</td><td>{count}</td>{numbers}<td class="plot">{draw_scores(item, axis)}</td></tr>'
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
        f'<td data-v="{_key(lowest)}">{draw_strip(row.iou, class_names)}</td>',
        f'<td data-v="{_key(train_loss[-1][1] if train_loss else None)}">'
        f"{draw_curve(train_loss, miou, row.best_epoch)}</td>",
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
    colours = ",".join(viridis(step / 10) for step in range(11))
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
