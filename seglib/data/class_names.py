"""What class names may be, known without importing NumPy: those to focus on, and those that another set's become."""

from collections.abc import Mapping, Sequence

from seglib.errors import unknown_name

BACKGROUND = "Background"
IGNORE = "ignore"  # where a class name is expected: pixels that neither loss nor scores see
SYNTHETIC = ("UNKNOWN", "General trash", "Paper", "Paper pack", "Metal", "Glass", "Plastic", "Styrofoam", "Plastic bag",
             "Battery", "Clothing")  # fmt: skip


def refuse_focus(focus_classes: Sequence[str], known: Sequence[str] | None = None) -> str:
    """Say what is wrong with the classes to focus on, "" where nothing is.

    Parameters
    ----------
    known : the data's classes, Background first; None where the data is not known yet.
    """
    for place, name in enumerate(focus_classes):
        if name.casefold() == BACKGROUND.casefold():
            return f"focus_classes must be classes of objects, got {name!r}, which is always there; leave it out"
        if name in focus_classes[:place]:
            return f"focus_classes must name a class once, got {name!r} twice; take one out"
        if known and name not in known[1:]:
            return unknown_name("class in focus_classes", name, known[1:], limit=20)
    return ""


def refuse_class_map(where: str, classes: Mapping[str, str], theirs: Sequence[str], ours: Sequence[str]) -> str:
    """Say why another set's categories cannot become our classes, "" where they can.

    Parameters
    ----------
    where : the extra set, such as `extra_data[0]`.
    classes : their category -> our class, Background or "ignore"; empty where the names are the same.
    theirs, ours : names of their categories, and of our classes, Background first.
    """
    if not classes:
        unlike = [name for name in theirs if name not in ours[1:]]
        listed = ", ".join(unlike[:8]) + (f", ... ({len(unlike)} in all)" if len(unlike) > 8 else "")
        fix = f"map it, as in classes: {{{unlike[0]}: {IGNORE}}}" if unlike else ""
        return (
            f"{where} must have categories that are classes of the training data, got {listed}; {fix}" if unlike else ""
        )
    for name, target in classes.items():
        if name not in theirs:
            return f"{where}.classes: {unknown_name('category of that set', name, theirs)}"
        if target not in (*ours, IGNORE):
            return f"{where}.classes.{name}: {unknown_name('class', target, (*ours, IGNORE), limit=20)}"
    return ""
