"""Numbers as short texts, and columns of text for a terminal, where a Korean syllable takes two columns."""

import unicodedata


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
    return "".join(c if c.isprintable() else "�" for c in unicodedata.normalize("NFC", text))
