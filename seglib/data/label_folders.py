"""Folders with a file of labels per image, as labelme and YOLO write them, read as the COCO content that they are.

And what all formats have in common. A dry run of a grid imports this file: what reads pixels is imported where it does.
"""

import base64
import io
import json
import math
import os
import reprlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from seglib.data.class_names import find_jsons, is_background
from seglib.data.mask_folders import DESCRIPTION, IMAGE_ENDINGS, encode_labels, read_list, remember
from seglib.errors import InputError, unknown_name
from seglib.files import hash_files, hash_text, read_file

if TYPE_CHECKING:
    import numpy as np

Content = dict[str, Any]
AnnotatedImage = tuple[Content, Iterable[tuple[str, Any]]]  # an image, and (label, segmentation) of each object
_VERSION = 1  # of what is remembered of files
_LISTS = ("labels.txt", "classes.txt")  # a name per line
_IGNORED = "__ignore__"  # labelme's class of pixels that no class has


@dataclass(frozen=True)
class Source:
    """What a name in a data folder is, before any pixel is read.

    `images`: file names as `ImageFinder` takes them, "" where there is none; `class_names`: of the categories that are not
    ignored, in the file's order; `read`: makes the COCO content; `files`: whose content decides what is annotated (of masks see `hash_masks`).
    """

    kind: str
    images: Sequence[str]
    class_names: Sequence[str]
    read: Callable[[], Content]
    files: Sequence[Path] = field(default=())


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    try:
        return json.loads(read_file(path))
    except (FileNotFoundError, NotADirectoryError):
        if not path.parent.is_dir():
            required = "the data folder must exist, got no such folder"
            raise InputError(f"{path.parent}: {required}; check data_dir") from None
        raise InputError(f"{path.parent}: {unknown_name('JSON file', path.name, find_jsons(path.parent))}") from None
    except json.JSONDecodeError as error:
        got, fix = f"a file that breaks at line {error.lineno} column {error.colno} ({error.msg})", "export it again"
        if path.suffix.lower() in (".yaml", ".yml"):
            fix = "of YOLO's labels name the folder, such as labels/train"
        elif path.suffix.lower() == ".xml":
            got, fix = "XML, as CVAT and Pascal VOC write", "export it as COCO 1.0"
        raise InputError(f"{path}: must be JSON, got {got}; {fix}") from None
    except RecursionError:
        raise InputError(f"{path}: must be COCO JSON, got lists nested too deep to read; export it again") from None
    except (OSError, ValueError) as error:  # not UTF-8, a folder, no permission, a number of thousands of digits
        raise InputError(f"{path}: must be a JSON file that can be read, got: {error}; export it again") from None


def read_text(entry: Any, name: str) -> str:
    """An option of an entry as a text, "" where there is none."""
    return str(entry.get(name, "")) if isinstance(entry, dict) else ""


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
    contents = remember_files(kind, files, lambda: {"files": [_read_labelme(path) for path in files]})["files"]
    names = [_place_image(content["imagePath"], folder, data_dir) for content in contents]
    used = {read_text(shape, "label") for content in contents for shape in content["shapes"]}
    categories, lists = list_categories(used, data_dir, folder, folder)

    def read_one(name: str, content: Content, path: Path) -> AnnotatedImage:
        sides = {"width": content.get("imageWidth"), "height": content.get("imageHeight")}
        outlines = [_outline(shape, path, *sides.values()) for shape in content["shapes"]]
        labels = [read_text(shape, "label") for shape in content["shapes"]]
        return {"file_name": name, **sides}, zip(labels, outlines, strict=True)

    def read() -> Content:
        return compose(map(read_one, names, contents, files), categories)

    return Source(kind, names, name_classes(categories), read, [*files, *lists])


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
    return encode_mask(mask)


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

    def read_one(stem: str, path: Path) -> AnnotatedImage:
        width, height = find_size(str(path), "apply")
        sides = {"width": width, "height": height} if width else {}
        is_labelled = stem in labels and width
        objects = _read_lines(labels[stem], width, height, classes, listing) if is_labelled else []
        return {"file_name": os.path.relpath(path, data_dir), **sides}, objects

    def read() -> Content:
        return compose((read_one(*each) for each in names.items()), categories)

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


def list_categories(used: set[str], data_dir: Path, folder: Path, where: Path) -> tuple[list[Content], list[Path]]:
    """Categories as labels.txt or classes.txt orders them, and that file; else the labels that are used, sorted."""
    lists = [place / name for place in _climb(folder, data_dir) for name in _LISTS if (place / name).is_file()][:1]
    names = _read_names(lists[0]) if lists else sorted(used)
    if unknown := sorted(used - {*names}):
        raise InputError(f"{where}: {unknown_name(f'label, by {lists[0].name},', unknown[0], names)}")
    names = [each for each in names if each in used or not is_background(each)]  # labelme's lists have it as a rule
    categories = [{"id": number, "name": each} for number, each in enumerate(names, 1)]
    return [each | {"ignore": 1} if each["name"] == _IGNORED else each for each in categories], lists


def name_classes(categories: Sequence[Content]) -> list[str]:
    return [each["name"] for each in categories if "ignore" not in each]


def compose(found: Iterable[AnnotatedImage], categories: Sequence[Content]) -> Content:
    """COCO content of images and their objects."""
    ids, images, annotations = {each["name"]: each["id"] for each in categories}, [], []
    for image_id, (image, objects) in enumerate(found, 1):
        images.append({"id": image_id, **image})
        for label, segmentation in objects:
            row = {"id": len(annotations) + 1, "image_id": image_id, "category_id": ids[label]}
            annotations.append(row | {"segmentation": segmentation, "iscrowd": 0})
    return {"images": images, "annotations": annotations, "categories": list(categories)}


def remember_files(kind: str, files: Sequence[Path], make: Callable[[], Content]) -> Content:
    """What `make` makes of these files, until one of them changes."""
    return remember(hash_text(json.dumps([_VERSION, kind, hash_files(files)])), make)


def encode_mask(mask: "np.ndarray") -> Content:
    """The compressed RLE of a mask."""
    return encode_labels(mask.astype("int64"), 1)[0][0]


def find_size(path: str, exif: str) -> tuple[int, int]:
    """(width, height) [px] of an image as it is read, turned by its EXIF orientation unless that is to be ignored; (0, 0)
    where it cannot be read, which the check reports."""
    from seglib.data.images import choose_turn, read_header

    try:
        width, height, orientation = read_header(path)
    except InputError:
        return 0, 0
    return (height, width) if choose_turn((width, height), orientation, None, exif) >= 5 else (width, height)
