"""Small inline SVG pictures from plain numbers: training curves, scores with whiskers, a strip of class IoUs."""

import math
from html import escape

from seglib.runs.leaderboard import Condition
from seglib.runs.text_table import format_number

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
