"""The viewer's words: of the open image, of its classes, of one pixel."""

import numpy as np

from seglib.viz.image_table import count_confusion, image_miou
from seglib.viz.mask_source import MaskSource, Sample
from seglib.viz.overlay import IGNORE_INDEX, colour_table


def describe_image(sample: Sample, source: MaskSource, image_id: str) -> list[str]:
    """Lines: the id, the size, and each run's own mIoU on this image."""
    height, width = sample.image.shape[:2]
    lines = [f"image {image_id}", f"{width} × {height} px"]
    for name in source.compared:
        confusion = count_confusion(sample.masks[source.reference], sample.masks[name], len(source.class_names))
        score = f"mIoU {image_miou(confusion):.3f}"
        against = "" if source.truth else f" against {source.reference}"
        lines.append(score if len(source.compared) == 1 and source.truth else f"{name}: {score}{against}")
    return lines


def list_legend(sample: Sample, source: MaskSource, shown: set[int]) -> list[dict]:
    """One entry a class, and one for ignored pixels where this image has any.

    id, name, colour; share: of the reference's pixels, as text, "" for none; present: in any of the masks; on: shown.
    """
    num_classes = len(source.class_names)
    counts = {name: np.bincount(mask.ravel(), minlength=256) for name, mask in sample.masks.items()}
    for count in counts.values():
        count[IGNORE_INDEX] = count[num_classes:].sum()
    pixels = counts[source.reference] if source.reference else np.zeros(256, np.int64)
    present = sum(counts.values(), np.zeros(256, np.int64)) > 0
    names = dict(enumerate(source.class_names)) | ({IGNORE_INDEX: "(ignored)"} if present[IGNORE_INDEX] else {})
    colours = colour_table(num_classes)
    return [
        {"id": class_id, "name": name, "colour": colours[class_id].tolist(), "present": bool(present[class_id]),
         "share": _percent(pixels[class_id] / max(1, pixels[:num_classes].sum() + pixels[IGNORE_INDEX])),
         "on": class_id in shown}
        for class_id, name in names.items()
    ]  # fmt: skip


def describe_pixel(sample: Sample | None, source: MaskSource, x: int, y: int) -> dict:
    """Class of each mask at a pixel: {"place": text, "rows": [[mask's name, class name, colour], ...]}.

    Outside the image the class names are empty, so that the box keeps its height.
    """
    if sample is None or not (0 <= x < sample.image.shape[1] and 0 <= y < sample.image.shape[0]):
        names = [source.reference, *source.compared] if source.reference else []
        return {"place": "point at a pixel to read it", "rows": [[name, "", None] for name in names]}
    colours = colour_table(len(source.class_names))
    rows = []
    for name, mask in sample.masks.items():
        class_id = int(mask[y, x])
        rows.append([name, _name_class(class_id, source.class_names), colours[class_id].tolist()])
    return {"place": f"x {x}, y {y}", "rows": rows}


def _name_class(class_id: int, class_names: list[str]) -> str:
    if class_id < len(class_names):
        return class_names[class_id]
    return "(ignored)" if class_id == IGNORE_INDEX else f"(id {class_id} is no class)"


def _percent(share: float) -> str:
    if share == 0:
        return ""
    return f"{100 * share:.0f} %" if share >= 0.01 else "< 1 %"
