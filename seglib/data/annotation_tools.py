"""The own formats of annotation tools, each read as the COCO content that it is: Label Studio, labelme, YOLO.

A dry run of a grid imports this file: what reads pixels is imported where it does.
"""

import base64
import io
import json
import math
import os
import reprlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import yaml

from seglib.data.class_names import is_background
from seglib.data.formats import Content, Source, find_size, read_json, read_text
from seglib.data.mask_folders import DESCRIPTION, IMAGE_ENDINGS, encode_labels, read_list, remember
from seglib.errors import InputError, unknown_name
from seglib.files import hash_files, hash_text, read_file

if TYPE_CHECKING:
    import numpy as np

Annotated = tuple[Content, Iterable[tuple[str, Any]]]  # an image, and (label, segmentation) of each object
_VERSION = 1  # of what is remembered of files
_LISTS = ("labels.txt", "classes.txt")  # a name per line
_IGNORED = "__ignore__"  # labelme's class of pixels that no class has


# Label Studio: a list of tasks; coordinates are per cent of the image, brush strokes a run-length code of their own.


def open_tasks(kind: str, tasks: list[Content], path: Path, data_dir: Path) -> Source:
    """Label Studio's JSON: the tasks that were annotated."""
    shown = [(task, answer) for task in tasks if (answer := _choose_answer(task)) is not None]
    names = _name_images([task for task, _ in shown])
    results = [_read_results(answer, f"{path} [{name}]") for name, (_, answer) in zip(names, shown, strict=True)]
    used = {label for each in results for label, _ in each}
    categories, files = _list_categories(used, data_dir, path.parent, path)

    def read_one(name: str, found: list[tuple[str, Content]]) -> Annotated:
        size = dict(zip(("width", "height"), _read_size(found[0][1]), strict=True)) if found else {}
        objects = [(label, _read_shape(each, f"{path} [{name}]")) for label, each in found]
        return {"file_name": name, **size}, objects

    def read() -> Content:
        return _compose(map(read_one, names, results), categories)

    files = [path, *files]  # strokes take a while to decode
    return Source(kind, names, _name_classes(categories), lambda: remember(_digest(kind, files), read), files)


def _choose_answer(task: Content) -> Content | None:
    """The annotation of a task that counts: the ground truth, else the last; None where it was left out."""
    answers = task.get("annotations", task.get("completions")) or []
    answers = [each for each in answers if not (each.get("was_cancelled") or each.get("skipped"))]
    return max(answers, key=lambda a: (bool(a.get("ground_truth")), str(a.get("created_at", ""))), default=None)


def _name_images(tasks: Sequence[Content]) -> list[str]:
    """The files' names, with folders where these alone tell two apart."""
    values = [[each for each in task.get("data", {}).values() if isinstance(each, str)] for task in tasks]
    urls = [next((each for each in texts if _is_image(each)), texts[0] if texts else "") for texts in values]
    paths = [unquote(url.rpartition("?d=")[2].partition("?")[0]).replace("\\", "/") for url in urls]
    times = Counter(path.rpartition("/")[2] for path in paths)
    return [path.rpartition("/")[2] if times[path.rpartition("/")[2]] == 1 else path.strip("/") for path in paths]


def _is_image(url: str) -> bool:
    return os.path.splitext(url.partition("?d=")[2] or url.partition("?")[0])[1].lower() in IMAGE_ENDINGS


def _read_results(answer: Content, where: str) -> list[tuple[str, Content]]:
    """(label, result) of each region; of one that is drawn first and named then, two results have one id."""
    results = [each for each in answer.get("result", []) if isinstance(each.get("value"), dict)]
    kinds = [str(each.get("type")) for each in results]
    labels = [
        each["value"].get(kind) if kind.endswith("labels") else [] for kind, each in zip(kinds, results, strict=True)
    ]
    found = [(label[0], each) for label, each in zip(labels, results, strict=True) if label]
    named = {each.get("id") for _, each in found}
    outlined = [each.get("id") for each in results if {"points", "rle"} & each["value"].keys()]
    if lonely := sum(number not in named for number in outlined):
        raise InputError(f"{where}: regions must have a label, got {lonely} without; label or delete them")
    return found


def _read_size(result: Content) -> tuple[int, int]:
    return result.get("original_width"), result.get("original_height")


def _read_shape(result: Content, where: str) -> Any:
    """A COCO segmentation; of boxes and points none."""
    value, (width, height) = result["value"], _read_size(result)
    if result.get("image_rotation"):
        raise InputError(f"{where}: images must be upright, got one turned in Label Studio; turn it back there")
    if "points" in value:
        return [[each for x, y in value["points"] for each in (x * width / 100, y * height / 100)]]
    if value.get("format") == "rle" or "rle" in value:
        try:
            return _encode(decode_brush(value["rle"], height, width))
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{where}: a brush stroke must be readable, got: {error}; export it as COCO") from None
    return []


def decode_brush(rle: Sequence[int], height: int, width: int) -> "np.ndarray":
    """(height, width) bool of Label Studio's code of a brush stroke, bytes of RGBA in runs; ValueError where it is broken.

    Source: `encodeBytes` of @thi.ng/rle-pack, which Label Studio calls: 32 bits count of values, 5 bits length of one less
    1, four times 4 bits length of a run's length less 1; then for each run a bit (0: single values), 2 bits that choose the
    length, the run's length less 1, and its values.
    """
    import numpy as np

    bits, at, done = format(int.from_bytes(bytes(rle)), f"0{8 * len(rle)}b"), 0, 0

    def take(number: int) -> int:
        nonlocal at
        at += number
        return int(bits[at - number : at], 2)

    count, word, sizes = take(32), take(5) + 1, [take(4) + 1 for _ in range(4)]
    if count != 4 * height * width:
        raise ValueError(f"{count} values for {width}x{height} px of four")
    values = np.zeros(count, np.uint8)
    while done < count:
        is_run, length = take(1), take(sizes[take(2)]) + 1
        values[done : done + length] = take(word) if is_run else [take(word) for _ in range(length)]
        done += length
    return values.reshape(height, width, 4)[..., 3] > 0


# labelme: a JSON file for each image.


def find_labelme(data_dir: Path, name: str) -> Path | None:
    """The folder that a name is, where labelme's files lie in it."""
    if not os.path.isdir(os.path.join(data_dir, name)):
        return None
    first = min((data_dir / name).glob("*.json"), default=None)
    try:
        content = json.loads(read_file(first)) if first else None
    except (OSError, ValueError):
        return None
    return data_dir / name if is_labelme(content) else None


def is_labelme(content: Any) -> bool:
    """Whether a file's content is labelme's."""
    return isinstance(content, dict) and "shapes" in content and "imagePath" in content


def open_labelme(kind: str, folder: Path, data_dir: Path) -> Source:
    """A folder of labelme's files."""
    files = sorted(folder.glob("*.json"))
    contents = remember(_digest(kind, files), lambda: {"files": [_read_labelme(path) for path in files]})["files"]
    names = [_place_image(content["imagePath"], folder, data_dir) for content in contents]
    used = {read_text(shape, "label") for content in contents for shape in content["shapes"]}
    categories, lists = _list_categories(used, data_dir, folder, folder)

    def read_one(name: str, content: Content, path: Path) -> Annotated:
        sides = {"width": content.get("imageWidth"), "height": content.get("imageHeight")}
        outlines = [_outline(shape, path, *sides.values()) for shape in content["shapes"]]
        labels = [read_text(shape, "label") for shape in content["shapes"]]
        return {"file_name": name, **sides}, zip(labels, outlines, strict=True)

    def read() -> Content:
        return _compose(map(read_one, names, contents, files), categories)

    return Source(kind, names, _name_classes(categories), read, [*files, *lists])


def _read_labelme(path: Path) -> Content:
    """What is needed of a file: not the image, which most have in them."""
    content = read_json(path)
    if not is_labelme(content):
        raise InputError(f"{path}: must be labelme's as the files beside it, got another; move it elsewhere")
    names = ("imagePath", "imageWidth", "imageHeight", "shapes")
    return {name: content[name] for name in names if name in content}


def _place_image(image_path: str, folder: Path, data_dir: Path) -> str:
    """An image's name as seen from the data folder; of one that is not there any more only the name."""
    path = os.path.normpath(os.path.join(os.path.relpath(folder, data_dir), str(image_path).replace("\\", "/")))
    return path if os.path.isfile(data_dir / path) and not path.startswith(os.pardir) else os.path.basename(path)


def _outline(shape: Content, path: Path, width: int, height: int) -> Any:
    """A COCO segmentation; of lines and points none."""
    points, kind = shape.get("points") or [], shape.get("shape_type") or "polygon"
    try:
        if kind == "polygon":
            return [[number for point in points for number in point]]
        if kind == "rectangle":
            (left, top), (right, bottom) = points
            return [[left, top, right, top, right, bottom, left, bottom]]
        if kind == "circle":
            (x, y), edge = points
            radius, angles = math.dist((x, y), edge), [math.tau * step / 64 for step in range(64)]
            return [[each for turn in angles for each in (x + radius * math.cos(turn), y + radius * math.sin(turn))]]
        return _read_png(shape["mask"], points[0], width, height) if kind == "mask" else []
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise InputError(f"{path}: a {kind} must be readable, got: {error}; draw it again in labelme") from None


def _read_png(text: str, corner: Sequence[float], width: int, height: int) -> Content:
    """The RLE of a mask that covers a part of the image from a corner (x, y)."""
    import numpy as np
    from PIL import Image

    part = np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))).astype(bool)
    left, top = (round(each) for each in corner)
    mask = np.zeros((height, width), bool)
    mask[top : top + part.shape[0], left : left + part.shape[1]] = part[: height - top, : width - left]
    return _encode(mask)


# Folders of other tools' files: refused where no classes.json says that there are masks.


def find_boxes(data_dir: Path, name: str) -> Path | None:
    """A folder of XML or of JSON files that are not labelme's."""
    folder = data_dir / name
    if not os.path.isdir(folder) or (data_dir / DESCRIPTION).is_file():
        return None
    return next((path for ending in ("*.xml", "*.json") for path in sorted(folder.glob(ending))), None)


def refuse_boxes(kind: str, path: Path, data_dir: Path) -> Source:
    """Pascal VOC and others have a file for each image."""
    got = "XML, as Pascal VOC and CVAT write" if path.suffix == ".xml" else "JSON files that are not labelme's"
    fix = "name one of its files, or export them as COCO"
    raise InputError(f"{path.parent}: must be a COCO file, labelme's or YOLO's folder, got {got} ({path.name}); {fix}")


# YOLO: a text file for each image, with a class and the shares of width and height in each line.


def find_yolo(data_dir: Path, name: str) -> Path | None:
    """The folder of the labels: itself, in it, beside the images, or under `labels`."""
    choices = [_swap(Path(name), "images", "labels"), Path(name, "labels"), Path("labels", name), name]
    folders = [data_dir / each for each in choices if each is not None]
    return next((each for each in folders if os.path.isdir(each) and _has_labels(each)), None)


def _swap(path: Path, name: str, other: str) -> Path | None:
    """The folder beside: the path with another name for its last part of this name; None where it has none."""
    parts = path.parts
    if name not in parts:
        return None
    last = len(parts) - 1 - parts[::-1].index(name)
    return Path(*parts[:last], other, *parts[last + 1 :])


def _has_labels(folder: Path) -> bool:
    texts = (read_file(path).split() for path in folder.glob("*.txt") if path.name not in _LISTS)
    first = next(filter(None, texts), [])
    return len(first) >= 5 and first[0].isdigit() and all(map(_is_number, first))


def _is_number(text: bytes) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def open_yolo(kind: str, folder: Path, data_dir: Path) -> Source:
    """A folder of YOLO's labels."""
    classes, listing = _read_yolo_names(folder, data_dir)
    beside = _swap(folder.relative_to(data_dir), "labels", "images")
    images = data_dir / beside if beside and (data_dir / beside).is_dir() else folder
    labels = {path.stem: path for path in sorted(folder.glob("*.txt")) if path.name not in _LISTS}
    names = {path.stem: path for path in sorted(images.iterdir()) if path.suffix.lower() in IMAGE_ENDINGS}
    names = {
        stem: images / f"{stem}.jpg" for stem in labels
    } | names  # labels without an image are for the check to report
    categories = [{"id": number, "name": each} for number, each in enumerate(classes, 1)]

    def read_one(stem: str, path: Path) -> Annotated:
        width, height = find_size(str(path), "apply")
        sides = {"width": width, "height": height} if width else {}
        is_labelled = stem in labels and width
        objects = _read_lines(labels[stem], width, height, classes, listing) if is_labelled else []
        return {"file_name": os.path.relpath(path, data_dir), **sides}, objects

    def read() -> Content:
        return _compose((read_one(*each) for each in names.items()), categories)

    names_seen = [os.path.relpath(path, data_dir) for path in names.values()]
    return Source(kind, names_seen, classes, read, [*labels.values(), listing])


def _read_yolo_names(folder: Path, data_dir: Path) -> tuple[list[str], Path]:
    """The classes in order, and the file that lists them: data.yaml or classes.txt here or in a folder above."""
    for place in _climb(folder, data_dir):
        for path in [*sorted([*place.glob("*.yaml"), *place.glob("*.yml")]), *(place / each for each in _LISTS)]:
            if path.suffix == ".txt":
                names = _read_names(path)
            else:
                content = yaml.safe_load(read_file(path).decode("utf-8-sig"))
                content = content if isinstance(content, dict) else {}
                if "kpt_shape" in content:
                    got = "got its keypoints; export segmentation labels"
                    raise InputError(f"{path}: must be of YOLO's polygons, {got}")
                names = content.get("names") or []
            if isinstance(names, dict):
                if {*names} != {*range(len(names))}:
                    raise InputError(f"{path} [names]: must be numbered from 0 on, got {[*names][:9]}; name them all")
                names = [names[number] for number in range(len(names))]
            if names and not all(isinstance(each, str | int) for each in names):
                raise InputError(f"{path} [names]: must be texts, got {reprlib.repr(names)}; correct it")
            if names:
                return [str(each) for each in names], path
    fix = "write `names: [bottle, can]` into data.yaml there, or the names into classes.txt, one per line"
    raise InputError(f"{data_dir}: YOLO's labels need a file that names the classes, got none; {fix}")


def _read_lines(
    path: Path, width: int, height: int, classes: Sequence[str], listing: Path
) -> Iterator[tuple[str, list]]:
    """(class, segmentation) of each line; of boxes none."""
    for number, line in enumerate(read_file(path).decode().splitlines(), 1):
        words = line.split()
        if not words:
            continue
        where = f"{path} [line {number}]"
        if not all(_is_number(word.encode()) for word in words) or not words[0].isdigit():
            raise InputError(
                f"{where}: must be a class and coordinates, all numbers, got {line[:60]!r}; export it again"
            )
        if int(words[0]) >= len(classes):
            raise InputError(
                f"{where}: class must be 0 to {len(classes) - 1} as in {listing.name}, got {words[0]}; add it"
            )
        shares = [float(word) for word in words[1:]]
        sides = (width, height) * len(shares)
        polygon = [share * side for share, side in zip(shares, sides, strict=False)]
        yield classes[int(words[0])], [polygon] if len(polygon) > 4 else []


# What several have in common.


def _climb(folder: Path, data_dir: Path) -> list[Path]:
    """A folder and those above it, up to the data folder."""
    inside = [each for each in (folder, *folder.parents) if each.is_relative_to(data_dir)]
    return inside or [folder, data_dir]


def _read_names(path: Path) -> list[str]:
    return read_list(path) if path.is_file() else []


def _list_categories(used: set[str], data_dir: Path, folder: Path, where: Path) -> tuple[list[Content], list[Path]]:
    """Categories as labels.txt or classes.txt orders them, and that file; else the labels that are used, sorted."""
    lists = [place / name for place in _climb(folder, data_dir) for name in _LISTS if (place / name).is_file()][:1]
    names = _read_names(lists[0]) if lists else sorted(used)
    if unknown := sorted(used - {*names}):
        raise InputError(f"{where}: {unknown_name(f'label, by {lists[0].name},', unknown[0], names)}")
    names = [each for each in names if each in used or not is_background(each)]  # labelme's lists have it as a rule
    categories = [{"id": number, "name": each} for number, each in enumerate(names, 1)]
    return [each | {"ignore": 1} if each["name"] == _IGNORED else each for each in categories], lists


def _name_classes(categories: Sequence[Content]) -> list[str]:
    return [each["name"] for each in categories if "ignore" not in each]


def _compose(found: Iterable[Annotated], categories: Sequence[Content]) -> Content:
    """COCO content of images and their objects."""
    ids, images, annotations = {each["name"]: each["id"] for each in categories}, [], []
    for image_id, (image, objects) in enumerate(found, 1):
        images.append({"id": image_id, **image})
        for label, segmentation in objects:
            row = {"id": len(annotations) + 1, "image_id": image_id, "category_id": ids[label]}
            annotations.append(row | {"segmentation": segmentation, "iscrowd": 0})
    return {"images": images, "annotations": annotations, "categories": list(categories)}


def _digest(kind: str, files: Sequence[Path]) -> str:
    return hash_text(json.dumps([_VERSION, kind, hash_files(files)]))


def _encode(mask: "np.ndarray") -> Content:
    """The compressed RLE of a mask."""
    return encode_labels(mask.astype("int64"), 1)[0][0]
