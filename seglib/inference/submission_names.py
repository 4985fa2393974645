"""The file names of a submission against those required: missing, extra, twice, misspelt, out of order."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

BATCH_SIZES = (4, 8, 16, 32, 64, 128)  # tried where the prediction's is not known
MISSPELT: dict[str, Callable[[str], str]] = {
    "lack their folder": lambda name: PurePosixPath(name).name,
    "have backslashes": lambda name: name.replace("/", "\\"),
    "lack their extension": lambda name: str(PurePosixPath(name).with_suffix("")),
    "are in lower case": str.lower,
    "are in upper case": str.upper,
    "begin with './'": lambda name: f"./{name}",
    "end in a space": lambda name: f"{name} ",
}


def find_name_problems(
    names: Sequence[str], required: Sequence[str], batch_size: int = 0, any_order: bool = False
) -> list[str]:
    """One line for each kind of problem.

    Parameters
    ----------
    names, required : in their orders
    batch_size : of the prediction [images], 0 where unknown
    """
    if not names:
        return [f"required {len(required)} rows, got none"]
    given, wanted = set(names), set(required)
    missing = [name for name in required if name not in given]
    extra = [name for name in dict.fromkeys(names) if name not in wanted]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if line := _explain_spelling(missing, extra):
        return [line]
    lines = []
    if missing:
        lines.append(_word_missing(missing, required, batch_size))
    if extra:
        lines.append(f"{_rows(len(extra))} of images that are not asked for: {list_names(extra)}; leave them out")
    if twice:
        lines.append(f"{_rows(len(twice), 'image')} with more than one row: {list_names(twice)}; keep one of each")
    if not lines and not any_order:
        lines += _word_order(names, required)
    return lines


def list_names(names: Sequence[str]) -> str:
    """At most three names, and how many more."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _explain_spelling(missing: Sequence[str], extra: Sequence[str]) -> str:
    """Names that are all the required ones, written in another way."""
    if not missing or len(extra) != len(missing):
        return ""
    where = f"got {extra[0]!r} where {missing[0]!r} is required"
    if all(name.strip().isdecimal() for name in extra):
        return f"{len(extra)} image_ids are numbers: {where}; write the file_name of the test set's images"
    for words, change in MISSPELT.items():
        if set(map(change, missing)) == set(extra):
            return f"{len(extra)} image_ids {words}: {where}; write each file_name as the test set has it"
    if all(any(name.endswith(f"/{right}") for name in extra) for right in missing):
        return f"{len(extra)} image_ids have a folder before them: {where}; write each file_name as the test set has it"
    return ""


def _word_missing(missing: Sequence[str], required: Sequence[str], batch_size: int) -> str:
    count, of = len(missing), len(required)
    fitting = [size for size in ([batch_size] if batch_size else BATCH_SIZES) if of % size == count]
    batches = f"batches of {' or '.join(map(str, fitting))}"
    if list(missing) != list(required[-count:]):
        cause = f"; {count} is what {batches} leave over: a shuffled loader with drop_last=True?" if fitting else ""
        return f"{_rows(count)} missing: {list_names(missing)}{cause}"
    line = f"the last {_rows(count)} of {of} missing, from {missing[0]} on"
    if fitting:
        return f"{line}: what {batches} leave over, the last incomplete batch (drop_last=True?)"
    return f"{line}: did the prediction stop early?"


def _word_order(names: Sequence[str], required: Sequence[str]) -> list[str]:
    wrong = [row for row, (name, right) in enumerate(zip(names, required, strict=True)) if name != right]
    if not wrong:
        return []
    how = " (sorted by name)" if list(names) == sorted(names) else ""
    first = wrong[0]
    return [
        f"{len(wrong)} of {len(required)} rows are out of order{how}: row {first + 1} is {names[first]} where "
        f"{required[first]} is required; write them in the sample's order"
    ]


def _rows(count: int, what: str = "row") -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
