"""What `train_json` may name: a COCO file, a folder of masks, or another format, recognised by its content.

Formats that hold polygons or masks are read as COCO content, see `formats.py` and `annotation_tools.py`; the others are refused by their names. A dry
run of a grid imports this file.
"""

import json
import os
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from seglib.data import annotation_tools as tools
from seglib.data.formats import Content, Source, open_coco, open_lvis, open_panoptic, read_json, take_first
from seglib.data.mask_folders import hash_masks, is_mask_split, list_pairs, read_description, read_masks
from seglib.errors import InputError
from seglib.files import hash_files, hash_text

_COCO = "a COCO file of instances"
_VERSION = 1  # of what is made of the other formats


def open_source(data_dir: str | Path, name: str) -> Source:
    """Find out what `data_dir/name` is.

    Raises
    ------
    InputError
        Missing, unreadable, or of a format that holds no outlines or is not read here; it names the format and the fix.
    """
    path = Path(data_dir) / name
    if found := _find_folder(Path(data_dir), name):
        return _open(*found, Path(data_dir))
    if is_mask_split(data_dir, name):
        folder = read_description(data_dir)
        images = [image for image, _ in list_pairs(folder, name)]
        return Source("masks", images, folder.class_names, partial(read_masks, data_dir, name))
    content = read_json(path)
    kind, read = _recognise(content, path)
    _kinds[_stamp(path)] = kind
    return _open(read, kind, content, path, Path(data_dir))


def _open(read: Callable[..., Source], kind: str, *about: Any) -> Source:
    """What is no sound file of its format is refused, where it is opened and where it is read."""
    if kind == _COCO:  # which is looked at closely by `load_coco`
        return read(kind, *about)
    source = _refuse_unsound(kind, about[-2], partial(read, kind, *about))
    return replace(source, read=partial(_refuse_unsound, kind, about[-2], source.read))


def _refuse_unsound(kind: str, path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except InputError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, OSError, yaml.YAMLError) as error:
        raise InputError(
            f"{path}: must be as {kind} writes it, got something else ({error!r}); export it again"
        ) from error


def is_annotation_folder(data_dir: str | Path, name: str) -> bool:
    """Whether a name is a folder of labelme's or YOLO's files."""
    return _find_folder(Path(data_dir), name) is not None


def _find_folder(data_dir: Path, name: str) -> tuple[Callable[..., Source], str, Path] | None:
    """How a folder of annotations is read, its kind, and where it is; None where the name is none."""
    if os.path.splitext(name)[1].lower() == ".json" or os.path.isfile(os.path.join(data_dir, name)):
        return None
    found = ((read, kind, find(data_dir, name)) for kind, find, read in _FOLDERS)
    return next((each for each in found if each[-1]), None)


def hash_annotations(data_dir: str | Path, name: str) -> str:
    """Hash of all that decides what a name's images are annotated with; "" where there is no such file."""
    path = Path(data_dir) / name
    if is_mask_split(data_dir, name) and not is_annotation_folder(data_dir, name):
        return hash_masks(data_dir, name)
    if not os.path.exists(path) or (path.is_file() and _kinds.get(_stamp(path)) == _COCO):
        return hash_files([path])[0]
    source = open_source(data_dir, name)
    hashes = hash_files(source.files)
    if source.kind == _COCO:
        return hashes[0]
    names = [os.path.relpath(each, data_dir) for each in source.files]
    return hash_text(json.dumps([_VERSION, source.kind, names, hashes, [*source.class_names]]))


_kinds: dict[tuple, str] = {}  # of JSON files that were read, as long as they stay as they are


def _stamp(path: Path) -> tuple:
    stat = os.stat(path)
    return os.path.abspath(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


# Files, by what is in them.


def _recognise(content: Any, path: Path) -> tuple[str, Callable[..., Source]]:
    known = {list: _OF_LISTS, dict: _OF_OBJECTS}.get(type(content), {})
    first = take_first(content if isinstance(content, dict) else {"annotations": content}, "annotations")
    for kind, (fits, read) in known.items():
        if fits(content, first):
            if isinstance(read, str):
                raise InputError(f"{path}: must be {_COCO}, got {kind}; {read}")
            return kind, read
    if isinstance(content, dict):
        return _COCO, open_coco
    raise InputError(f"{path}: must hold a JSON object with `images` and `categories`, got {reprlib.repr(content)}")


def _is_lvis(image: Content) -> bool:
    return "coco_url" in image and "file_name" not in image


def _is_via(content: Content) -> bool:
    return "_via_img_metadata" in content or any(
        isinstance(each, dict) and "regions" in each for each in content.values()
    )


def _has_outlines(content: Content) -> bool:
    return any(each.get("segmentation") for each in content["annotations"] if isinstance(each, Mapping))


_Fits = Callable[[Any, Content], bool]  # of a file's content, and its first annotation or entry
_OF_LISTS: dict[str, tuple[_Fits, Any]] = {  # kind -> how it is recognised, and read, or what to do instead
    "Label Studio": (
        lambda _, first: "data" in first and bool({"annotations", "completions"} & first.keys()),
        tools.open_tasks,
    ),
    "detections without images and categories": (
        lambda _, first: "image_id" in first,
        "put them as `annotations` into a file with the `images` and `categories` that they were made for",
    ),
    "Label Studio's JSON-MIN": (lambda _, first: "annotator" in first, "export it as JSON or COCO"),
    "CreateML's boxes": (lambda _, first: "image" in first, "export polygons or masks as COCO"),
}
_OF_OBJECTS: dict[str, tuple[_Fits, Any]] = {
    "panoptic": (lambda _, first: "segments_info" in first, open_panoptic),
    "LVIS": (lambda content, _: _is_lvis(take_first(content, "images")), open_lvis),
    "captions": (lambda _, first: "caption" in first, "name the file of instances, which has outlines"),
    "keypoints without outlines": (
        lambda content, first: "keypoints" in first and not _has_outlines(content),
        "export outlines (segmentation) with them",
    ),
    "one image of labelme": (lambda content, _: tools.is_labelme(content), "name the folder of these files"),
    "one image of Cityscapes": (
        lambda content, _: {"imgHeight", "objects"} <= content.keys(),
        "use the masks (labelIds.png) with a classes.json",
    ),
    "VGG Image Annotator": (lambda content, _: _is_via(content), "export it there as COCO"),
}
_FOLDERS = (
    ("labelme", tools.find_labelme, tools.open_labelme),
    ("YOLO", tools.find_yolo, tools.open_yolo),
    ("files per image", tools.find_boxes, tools.refuse_boxes),
)
