"""The formats of COCO's kind, each read as the COCO content that it is: COCO itself, LVIS, panoptic.

A dry run of a grid imports this file: what reads pixels is imported where it does.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from seglib.data.class_names import find_jsons
from seglib.data.mask_folders import encode_labels, remember
from seglib.errors import InputError, InputErrors, unknown_name
from seglib.files import hash_files, hash_text, read_file

_VERSION = 1  # of what is made of panoptic images
Content = dict[str, Any]


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


def open_coco(kind: str, content: Content, path: Path, data_dir: Path) -> Source:
    """A COCO file, whatever is wrong inside."""
    images, categories = (content.get(name) for name in ("images", "categories"))
    names = [read_text(each, "file_name") for each in images] if isinstance(images, list) else [""]
    listed = [each for each in categories if isinstance(each, dict)] if isinstance(categories, list) else []
    classes = [read_text(each, "name") for each in listed if each.get("ignore") != 1]
    return Source(kind, names, classes, lambda: content, [path])


def take_first(content: Any, name: str) -> Content:
    """The first entry of a list in a file's content, {} where there is none."""
    entries = content.get(name) if isinstance(content, dict) else None
    return entries[0] if isinstance(entries, list) and entries and isinstance(entries[0], dict) else {}


def read_text(entry: Any, name: str) -> str:
    """An option of an entry as a text, "" where there is none."""
    return str(entry.get(name, "")) if isinstance(entry, dict) else ""


def open_lvis(kind: str, content: Content, path: Path, data_dir: Path) -> Source:
    """LVIS names its images by their addresses, `.../train2017/000000391895.jpg`."""
    images = [
        {"file_name": "/".join(read_text(each, "coco_url").split("/")[-2:]), **each} for each in content["images"]
    ]
    return open_coco(kind, content | {"images": images}, path, data_dir)


def open_panoptic(kind: str, content: Content, path: Path, data_dir: Path) -> Source:
    """Panoptic JSON, and its PNGs in a folder of the file's name, or beside it."""
    entries = [each for each in content["annotations"] if read_text(each, "file_name")]
    names = [Path(each["file_name"]) for each in entries]
    if outside := [str(name) for name in names if name.is_absolute() or ".." in name.parts]:
        raise InputError(
            f"{path}: files of segments must stay inside the data folder, got {outside[0]!r}; export it again"
        )
    folders = [path.with_suffix(""), data_dir / path.stem, path.parent, data_dir]
    folder = next((each for each in folders if names and (each / names[0]).is_file()), folders[0])
    files = [path, *(folder / name for name in names)]

    def read() -> Content:
        digest = hash_text(json.dumps([_VERSION, hash_files(files)]))
        return remember(digest, lambda: _decode_panoptic(content, entries, files[1:]))

    return replace(open_coco(kind, content, path, data_dir), files=files, read=read)


def _decode_panoptic(content: Content, entries: Sequence[Content], pngs: Sequence[Path]) -> Content:
    """Each segment is an object; pixels of none (black) are not annotated."""
    annotations, problems = [], []
    for entry, path in zip(entries, pngs, strict=True):
        segments = [each for each in entry["segments_info"] if "id" in each]
        try:
            found = _read_segments(path, [each["id"] for each in segments])
        except InputError as error:
            problems.append(str(error))
            continue
        for segment, (rle, area) in zip(segments, found, strict=True):
            own = {"image_id": entry.get("image_id"), "segmentation": rle, "area": area}
            annotations.append({**segment, **own, "id": len(annotations) + 1})
    if problems:
        raise InputErrors(problems[:100])
    return content | {"annotations": annotations}


def _read_segments(path: Path, ids: Sequence[int]) -> list[tuple[Content, int]]:
    """(RLE, pixels) of each segment: the id is red + 256 green + 65,536 blue."""
    import numpy as np

    from seglib.data.images import opening

    with opening(path, "the segments of an image must be a PNG that can be read", "copy it again") as image:
        codes = np.asarray(image.convert("RGB"), np.int64) @ [1, 256, 65536]
    found, labels = np.unique(codes, return_inverse=True)
    places = {code: place for place, code in enumerate(ids, 1)} | {0: 0}
    if unknown := [code for code in found.tolist() if code not in places]:
        raise InputError(f"{path}: ids must be those of segments_info, got {unknown[0]}; export both again")
    labels = np.array([places[code] for code in found.tolist()], np.int64)[labels.reshape(codes.shape)]
    return encode_labels(labels, len(ids))


def find_size(path: str, exif: str) -> tuple[int, int]:
    """(width, height) [px] of an image as it is read, turned by its EXIF orientation unless that is to be ignored; (0, 0)
    where it cannot be read, which the check reports."""
    from seglib.data.images import choose_turn, read_header

    try:
        width, height, orientation = read_header(path)
    except InputError:
        return 0, 0
    return (height, width) if choose_turn((width, height), orientation, None, exif) >= 5 else (width, height)
