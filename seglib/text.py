"""Values as short texts, and tables of text for a terminal, where a Korean syllable takes two columns."""

import json
import unicodedata

from seglib.files import hash_text

_SHORT = {"cross_entropy": "ce"}


def shorten(value: object) -> str:
    """A parameter's value in few characters: `{cross_entropy: 0.9, focal: 0.1}` is `ce0.9+focal0.1`."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        if "data_dir" in value:
            return _shorten_set(value)
        if len(value) == 1 and next(iter(value.values())) in (1, {}):
            return shorten(next(iter(value)))
        return "+".join(f"{shorten(name)}{_shorten_item(item)}" for name, item in value.items()) or "none"
    if isinstance(value, list):
        return "-".join(map(shorten, value)) or "none"
    return _SHORT.get(str(value), str(value).rstrip("/").rsplit("/", 1)[-1]) or "none"


def _shorten_item(value: object) -> str:
    """What a name in a mapping stands for; options follow their name: `focal@weight0.1@gamma3`."""
    if isinstance(value, dict):
        return "".join(f"@{name}{shorten(item)}" for name, item in value.items())
    return shorten(value)


def _shorten_set(value: dict) -> str:
    """An extra data set by its folder and file, `taco.annotations@weight0.5`; a class map, which is long, by its hash."""
    options = {name: item for name, item in value.items() if name not in ("data_dir", "json")}
    if options.get("classes"):
        options["classes"] = hash_text(json.dumps(options["classes"], sort_keys=True, default=str))[:4]
    file = str(value.get("json", "")).removesuffix(".json")
    return f"{shorten(value['data_dir'])}.{file}{_shorten_item(options)}"


def count_noun(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"


def align(lines: list[list[str]], shrinking: set[int], left: set[int], width: int) -> str:
    """Lay out a header and its lines, columns two spaces apart, in at most `width` terminal columns.

    The widest of the `shrinking` columns give way until the table fits; their long texts end in an ellipsis. Columns
    in `left` start at the left, all others end at the right, as numbers should.
    """
    widths = [max(map(count_columns, column)) for column in zip(*lines, strict=True)]
    while sum(widths) + 2 * (len(widths) - 1) > width and max(widths[index] for index in shrinking) > 4:
        widths[max(shrinking, key=lambda index: widths[index])] -= 1
    aligned = [fit(_line(line, widths, left), width) for line in lines]
    return "\n".join([aligned[0], "─" * min(width, sum(widths) + 2 * (len(widths) - 1)), *aligned[1:]])


def count_columns(text: str) -> int:
    """Terminal columns of a text: wide characters take two, combining marks none."""
    if text.isascii() and text.isprintable():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in _plain(text))


def fit(text: str, size: int) -> str:
    """Shorten to `size` terminal columns with an ellipsis."""
    text = _plain(text)
    if count_columns(text) <= size:
        return text
    while text and count_columns(text) > size - 1:
        text = text[:-1]
    return text + "…"


def format_number(value: float | None, pattern: str = ".4f") -> str:
    """Four decimals, whole numbers as they are, "-" for nothing."""
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else format(value, pattern)


def format_seconds(value: float | None) -> str:
    """Two units are enough: 42s, 3m05s, 1h02m."""
    if value is None:
        return "-"
    minutes, seconds = divmod(round(value), 60)
    hours, rest = divmod(minutes, 60)
    return f"{hours}h{rest:02}m" if hours else f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"


def _line(cells: list[str], widths: list[int], left: set[int]) -> str:
    padded = []
    for index, (cell, size) in enumerate(zip(cells, widths, strict=True)):
        text = fit(cell, size)
        space = " " * (size - count_columns(text))
        padded.append(text + space if index in left else space + text)
    return "  ".join(padded).rstrip()


def _plain(text: str) -> str:
    """Composed syllables (macOS names files decomposed), and nothing that a terminal would obey."""
    if text.isascii() and text.isprintable():  # nearly all are, and ten thousand rows have many
        return text
    return "".join(c if c.isprintable() else "�" for c in unicodedata.normalize("NFC", text))
